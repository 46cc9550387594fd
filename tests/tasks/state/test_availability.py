"""Every reply of a broker that refuses is a lost connection to those who ask."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from redis import Redis
from redis._parsers import BaseParser
from redis.exceptions import NoScriptError

from tasks.state.availability import RefusedError, check_writes, raise_refusals
from tasks.state.connection import connect
from tests.refusals import REFUSALS, Refusal
from worker.local.embedded_broker import EmbeddedBroker

IN_SCRIPT = " script: 5d2b7a, on @user_script:12."
REPLIES = [
    "OOM command not allowed when used memory > 'maxmemory'.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS Not enough good replicas to write.",
    "READONLY You can't write against a read only replica.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "ERR max number of clients reached",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refusing")


@pytest.fixture(scope="module")
def broker(home: Path) -> Iterator[EmbeddedBroker]:
    """A broker that these tests may bring to any state."""
    with EmbeddedBroker(home) as broker:
        yield broker


@pytest.fixture(params=REFUSALS, ids=lambda refusal: refusal.code)
def refusal(
    request: pytest.FixtureRequest, broker: EmbeddedBroker, home: Path
) -> Iterator[Refusal]:
    """The broker refuses."""
    refusal: Refusal = request.param
    with connect(broker.url) as client:
        with refusal.during(client, home / "broker"):
            yield refusal
        check_writes(client)


def parsed(reply: str) -> Exception:
    raise_refusals()
    error: Exception = BaseParser.parse_error(reply)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "EXECABORT Transaction discarded because of: {}",
        "{}" + IN_SCRIPT,
        "ERR Error running script (call to f_5d2b7a): @user_script:3: @user_script: 3: -{}",
    ],
    ids=["alone", "in EXEC", "in a script", "in a script of Redis 6"],
)
def test_each_reply_is_recognized(form: str, reply: str) -> None:
    error = parsed(form.format(reply))
    assert isinstance(error, RefusedError)
    first_sentence = reply.partition(". ")[0].rstrip(".")
    assert str(error) == f'it replies "{first_sentence}"; {error.remedy}'
    assert error.remedy


@pytest.mark.parametrize(
    "reply",
    [
        "BUSYGROUP Consumer Group name already exists",
        "BUSYKEY Target key name already exists.",
        "NOPERM User worker has no permissions to run the 'set' command",
        "ERR unknown command 'READONLY '",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "EXECABORT Transaction discarded because of previous errors.",
        "ERR Error running script (call to f_1): @user_script:3: WRONGTYPE of a READONLY value",
    ],
)
def test_other_errors_stay_what_they_are(reply: str) -> None:
    error = parsed(reply)
    assert isinstance(error, redis.ResponseError)
    assert not isinstance(error, redis.ConnectionError)


def test_repeated_calls_change_nothing() -> None:
    raise_refusals()
    assert isinstance(parsed("NOSCRIPT No matching script."), NoScriptError)


def test_every_request_of_ours_meets_a_lost_connection(
    refusal: Refusal, broker: EmbeddedBroker
) -> None:
    with connect(broker.url) as client:
        with pytest.raises(RefusedError, match=refusal.code):
            client.set("key", "value")
        with pytest.raises(RefusedError, match=refusal.code):
            check_writes(client)
        for is_transaction in (True, False):
            with client.pipeline(transaction=is_transaction) as pipe:
                pipe.set("key", "value").set("key", "value")
                with pytest.raises(RefusedError, match=refusal.code):
                    pipe.execute()
        # No reply of a refused pipeline is left for the next request.
        if not refusal.refuses_reads:
            assert client.get("key") is None
            assert client.llen("list") == 0


def test_kombu_and_celery_meet_a_lost_connection(refusal: Refusal, broker: EmbeddedBroker) -> None:
    raise_refusals()
    app = Celery(broker=broker.url, backend=broker.url, set_as_current=False)
    with pytest.raises(app.backend.connection_errors):
        app.backend._set("key", "value")
    with Connection(broker.url) as connection:  # type: ignore[no-untyped-call]
        lost = (*connection.connection_errors, OperationalError)
        with pytest.raises(lost, match=refusal.code):
            connection.SimpleQueue("queue").put({})


def test_a_failover_interrupts_a_blocked_request(broker: EmbeddedBroker, home: Path) -> None:
    [readonly] = [each for each in REFUSALS if each.code == "READONLY"]
    errors: list[Exception] = []

    def wait(client: Redis) -> None:
        try:
            client.blpop("empty", 8)
        except redis.ConnectionError as error:
            errors.append(error)

    with connect(broker.url) as client, connect(broker.url) as waiting:
        thread = threading.Thread(target=wait, args=(waiting,))
        thread.start()
        while not client.info("clients")["blocked_clients"]:
            pass
        with readonly.during(client, home / "broker"):
            thread.join(5)
    [error] = errors
    assert "UNBLOCKED" in str(error)
