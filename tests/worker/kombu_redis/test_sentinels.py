"""Every kind of connection finds the master that sentinels name, also after a failover."""

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any, cast
from unittest.mock import ANY

import pytest
import redis
from celery import Celery
from kombu.transport import TRANSPORT_ALIASES
from pydantic import SecretStr

from tasks.app import make_app
from tasks.settings.settings import Settings
from tasks.state.broker_url import with_sentinel
from tasks.state.connection import check_server, connect, connect_async
from tests.redis_servers import MASTER, QUOTED_PASSWORD, SENTINEL_PASSWORD, Sentinels
from tests.waiting import wait_until
from worker.kombu_redis.transport import Channel, use_for_redis
from worker.maintenance.doctor import check_all


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with Sentinels(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture
def url(sentinels: Sentinels) -> str:
    return with_sentinel(sentinels.url, MASTER, SENTINEL_PASSWORD)


@pytest.fixture
def app(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    # Other tests of this process take messages of any kind.
    for scheme, transport in TRANSPORT_ALIASES.items():
        monkeypatch.setitem(TRANSPORT_ALIASES, scheme, transport)
    use_for_redis()
    app = make_app(Settings(), url)
    yield app
    app.close()


def found(url: str, tmp_path: Path) -> str:
    settings = Settings(home=tmp_path, broker_url=SecretStr(url), flower_port=0)
    parts = "sentinel", "broker"
    return "\n".join(
        f"{each.level} {each.subject}: {each.message}; {each.remedy}"
        for each in check_all(settings)
        if each.subject.startswith(parts)
    )


async def read_async(url: str, key: str) -> object:
    client = connect_async(url)
    try:
        return await client.get(key)
    finally:
        await client.aclose()
        await cast("Any", client.connection_pool).sentinel_manager.aclose()


def receive(app: Celery, queue: str) -> Any:
    with app.connection() as connection, connection.SimpleQueue(queue) as messages:
        assert isinstance(connection.default_channel, Channel)
        message = messages.get(timeout=5)
        message.ack()
        with pytest.raises(Empty):
            messages.get(block=False)
        return message.payload


def test_clients_follow_a_failover(
    sentinels: Sentinels, url: str, app: Celery, tmp_path: Path
) -> None:
    with connect(url, patience=timedelta(seconds=15)) as client, app.connection() as connection:
        check_server(client, url)
        client.set("key", "before")
        app.backend.store_result("task", {"n": 1}, "SUCCESS")
        with connection.SimpleQueue("queue") as messages:
            messages.put("sent before")
        assert client.execute_command("WAIT", 1, 5000) == 1
        old = sentinels.master_port()
        new = sentinels.kill_master()
        assert client.get("key") == "before"
        refused = pytest.raises(redis.ConnectionError, match="start its replicas")
        with connect(url) as impatient, refused:
            impatient.set("key", "refused")
        sentinels.start_server(old)
        client.set("key", "after")
    assert asyncio.run(read_async(url, "key")) == "after"
    assert app.backend.get_result("task") == {"n": 1}
    assert receive(app, "queue") == "sent before"
    wait_until(
        lambda: f"ok sentinels: master 127.0.0.1:{new}, replicas 1" in found(url, tmp_path),
        timeout_s=30,
        description="doctor finds the old master as the replica",
        detail=lambda: found(url, tmp_path),
    )


def test_the_guides_backend_sends_and_reads_results(sentinels: Sentinels, app: Celery) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "failover.md").read_text("utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    hosts = tuple(f"127.0.0.1:{port}" for port in sentinels.ports)
    code = code.replace("backend:", ":").replace("{host}:26379", "{host}")
    names = {
        "Celery": partial(Celery, set_as_current=False),
        "password": QUOTED_PASSWORD,
        "sentinel_password": SENTINEL_PASSWORD,
    }
    exec(code.replace('("a", "b", "c")', repr(hosts)), names)  # our own guide
    backend: Any = names["app"]
    sent = backend.send_task("task", queue="queue")
    assert receive(app, "queue") == [[], {}, ANY]
    app.backend.store_result(sent.id, "result", "SUCCESS")
    assert sent.get(timeout=10) == "result"
    backend.close()


def test_doctor_warns_of_a_master_that_needs_no_replica(
    sentinels: Sentinels, url: str, tmp_path: Path
) -> None:
    warning = "warning broker replication: min-replicas-to-write is 0"
    assert warning not in found(url, tmp_path)
    with sentinels.client(sentinels.master_port()) as master:
        master.config_set("min-replicas-to-write", 0)
        assert warning in found(url, tmp_path)
        master.config_set("min-replicas-to-write", 1)


@pytest.mark.parametrize(
    ("master", "password", "problem"),
    [("unknown", SENTINEL_PASSWORD, "No such master"), (MASTER, "wrong", "invalid username")],
)
def test_doctor_names_what_sentinels_refuse(
    sentinels: Sentinels, tmp_path: Path, master: str, password: str, problem: str
) -> None:
    url = with_sentinel(sentinels.url, master, password)
    assert f"error sentinel 1: {problem}" in found(url, tmp_path)
    assert "error broker: the broker does not answer: No master found" in found(url, tmp_path)
