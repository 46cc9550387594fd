"""The fleet that a command of this machine talks to."""

from opentelemetry.trace import Tracer

from tasks.client import Client
from tasks.errors import NoBrokerError
from tasks.settings.settings import Settings
from worker.local.embedded_broker import find_running


def client_of(settings: Settings, tracer: Tracer | None = None) -> Client:
    """A connection to the configured broker, or to the embedded one of this home.

    Args:
        settings: This process's.
        tracer: Makes the spans of jobs that end here.

    Raises:
        NoBrokerError: There is none, or it does not answer.
    """
    return Client(settings, broker_url(settings), tracer)


def broker_url(settings: Settings) -> str:
    """The configured broker, or the embedded one of this home.

    Raises:
        NoBrokerError: There is none.
    """
    if settings.broker_url is not None:
        return settings.broker_url.get_secret_value()
    found = find_running(settings.home_dir)
    if found is None:
        raise NoBrokerError(
            "there is no broker: start one with 'training-worker up', or set TRAINING_BROKER_URL"
        )
    return found
