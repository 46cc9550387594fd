import json
from datetime import timedelta

from redis import Redis

from tests.worker.cli.conftest import Invoke
from worker.message_guard import unreadable_messages


def test_list_shows_reasons_and_discard_empties_the_list(
    invoke: Invoke, broker_url: str, redis_client: Redis
) -> None:
    unreadable = unreadable_messages(redis_client, timedelta(hours=1))
    unreadable.add(b"\x1b[2J https://secret", "cpu", "is junk")
    table = invoke("unreadable", "list", TRAINING_BROKER_URL=broker_url)
    assert "is junk" in table
    assert "secret" not in table
    document = invoke("unreadable", "list", "--json", TRAINING_BROKER_URL=broker_url)
    [message] = json.loads(document)
    assert (message["queue"], message["size"]) == ("cpu", 19)
    assert message["text"] == "\x1b[2J https://secret"
    shown = invoke("unreadable", "discard", "--json", TRAINING_BROKER_URL=broker_url)
    assert json.loads(shown) == {"discarded": 1}
    assert list(unreadable) == []
