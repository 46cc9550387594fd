"""Refusals that a real broker can be brought to, and back from."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis import Redis

from tests.waiting import wait_until


@dataclass(frozen=True)
class Refusal:
    """One reply with which a broker refuses requests.

    Attributes:
        code: The first word of the reply.
        during: A context in which a server replies so; takes a client of it and its data's folder.
        refuses_reads: Whether it refuses reads, too, or the PING of a new connection.
    """

    code: str
    during: Callable[[Redis, Path], AbstractContextManager[None]]
    refuses_reads: bool = False


@contextmanager
def _full_memory(client: Redis, folder: Path) -> Iterator[None]:
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def _lost_primary(client: Redis, folder: Path) -> Iterator[None]:
    client.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


@contextmanager
def _lost_primary_and_data(client: Redis, folder: Path) -> Iterator[None]:
    client.config_set("replica-serve-stale-data", "no")
    try:
        with _lost_primary(client, folder):
            yield
    finally:
        client.config_set("replica-serve-stale-data", "yes")


@contextmanager
def _lost_replica(client: Redis, folder: Path) -> Iterator[None]:
    client.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        client.config_set("min-replicas-to-write", 0)


@contextmanager
def _failing_snapshots(client: Redis, folder: Path) -> Iterator[None]:
    snapshot = folder / "dump.rdb"
    snapshot.mkdir()
    client.config_set("save", "3600 1000000")
    client.bgsave()
    wait_until(lambda: _has_failed(client), timeout_s=20, description="the snapshot fails")
    try:
        yield
    finally:
        client.config_set("save", "")
        snapshot.rmdir()


def _has_failed(client: Redis) -> bool:
    info: Any = client.info("persistence")
    return info["rdb_last_bgsave_status"] == "err" and not info["rdb_bgsave_in_progress"]


@contextmanager
def _endless_script(client: Redis, folder: Path) -> Iterator[None]:
    client.config_set("busy-reply-threshold", 50)
    # A new connection would be refused.
    connection: Any = client.connection_pool.get_connection()
    script = threading.Thread(target=_run_endless_script, args=(client,))
    script.start()
    wait_until(lambda: _is_busy(client), timeout_s=20, description="the script runs")
    try:
        yield
    finally:
        connection.send_command("SCRIPT", "KILL", check_health=False)
        connection.read_response()
        client.connection_pool.release(connection)
        script.join()


def _run_endless_script(client: Redis) -> None:
    with suppress(redis.RedisError):  # it is killed, or waiting for it times out
        client.eval("while true do end", 0)


def _is_busy(client: Redis) -> bool:
    try:
        client.ping()
    except redis.RedisError as error:
        return "BUSY" in str(error)
    return False


REFUSALS = (
    Refusal("OOM", _full_memory),
    Refusal("READONLY", _lost_primary),
    Refusal("NOREPLICAS", _lost_replica),
    Refusal("MISCONF", _failing_snapshots, refuses_reads=True),
    Refusal("MASTERDOWN", _lost_primary_and_data, refuses_reads=True),
    Refusal("BUSY", _endless_script, refuses_reads=True),
)
