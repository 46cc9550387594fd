"""Connect a command to the fleet: a configured one, or the one that ``up`` started."""

from opentelemetry.trace import Tracer

from tasks.client import Client
from tasks.errors import NoBrokerError
from tasks.settings.settings import Settings
from worker.local.embedded_broker import find_running


def client_of(settings: Settings, tracer: Tracer | None = None) -> Client:
    """Connect to the configured broker, or to the embedded broker of this machine.

    Args:
        settings: This process's settings.
        tracer: Traces the jobs that this process ends.

    Raises:
        NoBrokerError: There is no broker, or it does not answer.
    """
    return Client(settings, broker_url(settings), tracer)


def broker_url(settings: Settings) -> str:
    """Return the URL of the configured broker, or of the embedded broker of this machine.

    Raises:
        NoBrokerError: There is no broker.
    """
    if settings.broker_url is not None:
        return settings.broker_url.get_secret_value()
    url = find_running(settings.home_dir)
    if url is None:
        raise NoBrokerError(
            "there is no broker: start one with 'training-worker up', or set TRAINING_BROKER_URL"
        )
    return url
