"""A worker without a broker, or with one that refuses, waits, and reports it once."""

import logging
import time

import redis
from celery import Celery
from celery.worker.state import maybe_shutdown
from redis import Redis

from tasks.state.availability import check_writes
from worker.kombu_redis.consumer import Consumer

logger = logging.getLogger(__name__)

_RETRY_EVERY_S = 1.0


class PatientConsumer(Consumer):
    """Connects once the broker accepts writes: a worker cannot take messages before.

    Celery makes the instance; the client is the app's ``probe_client``.
    """

    def connect(self) -> object:
        """Wait for the broker, at first and after each loss of the connection."""
        wait_for_writes(self.app.probe_client)
        connection: object = super().connect()
        return connection


def install_patience(app: Celery, client: Redis) -> None:
    """Let the workers of an app wait for their broker.

    Args:
        app: The worker's application.
        client: A connection to the broker that gives up early.
    """
    app.probe_client = client
    app.conf.worker_consumer = f"{__name__}:{PatientConsumer.__name__}"


def wait_for_writes(client: Redis) -> None:
    """Return once the broker accepts writes.

    Raises:
        WorkerShutdown: The worker was asked to stop.
    """
    reason = ""
    while True:
        maybe_shutdown()
        try:
            check_writes(client)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if str(error) != reason:
                reason = str(error)
                logger.warning("the worker waits for the broker: %s", reason)
            time.sleep(_RETRY_EVERY_S)
        else:
            if reason:
                logger.info("the broker is available again")
            return
