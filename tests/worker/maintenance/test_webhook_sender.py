import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.maintenance.webhook_sender import WebhookSender

SECRET = "whsec_" + "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"


def test_a_name_server_that_hangs_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        answers.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr("worker.maintenance.webhook_sender._DEADLINE_S", 0.2)
    with ThreadPoolExecutor() as pool:
        sender = WebhookSender(frozenset())
        sent = pool.submit(sender.send, "https://hangs.example/", "msg_1", 1.0, "{}", [SECRET])
        answer = sent.result(timeout=20)
        assert not answers.is_set()
        answers.set()
    assert answer.problem == "TimeoutError"
