"""Connect a command to the fleet: a configured one, or the one that ``up`` started."""

from opentelemetry.trace import Tracer

from tasks.client import Client
from tasks.settings.settings import Settings
from worker.local.embedded_broker import broker_url


def client_of(settings: Settings, tracer: Tracer | None = None) -> Client:
    """Connect to the configured broker, or to the embedded broker of this machine.

    Args:
        settings: This process's settings.
        tracer: Traces the jobs that this process ends.

    Raises:
        NoBrokerError: There is no broker, or it does not answer.
    """
    return Client(settings, broker_url(settings), tracer)
