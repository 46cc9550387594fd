import time
from collections.abc import Callable

import pytest
from kombu.exceptions import OperationalError
from redis import Redis

from tasks.app import make_app
from tasks.settings.settings import Settings

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.mark.parametrize("draining", [lambda: True, None], ids=["draining worker", "command"])
def test_a_message_for_a_lost_broker_is_given_up(draining: Callable[[], bool] | None) -> None:
    began = time.monotonic()
    with pytest.raises(OperationalError):
        make_app(Settings(), NOWHERE, draining).send_task("work", queue="cpu", ignore_result=True)
    assert time.monotonic() - began < 20


def test_a_command_reports_that_the_broker_refuses(broker_url: str, redis_client: Redis) -> None:
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(OperationalError, match="OOM"):
            make_app(Settings(), broker_url).send_task("work", queue="cpu", ignore_result=True)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert redis_client.llen("cpu") == 0
