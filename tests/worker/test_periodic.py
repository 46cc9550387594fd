import threading
from collections.abc import Callable

import pytest

from tests.waiting import wait_until
from worker import periodic
from worker.periodic import PeriodicThread, ThreadWatch


@pytest.fixture(autouse=True)
def fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "_MIN_DELAY_AFTER_FAILURE_S", 0.01)


def failing(errors: list[BaseException], rounds: list[int]) -> Callable[[], None]:
    def run_round() -> None:
        rounds.append(len(errors))
        if errors:
            raise errors.pop()

    return run_round


def has_ended() -> bool:
    return all(alive.name != "sampler" for alive in threading.enumerate())


@pytest.mark.parametrize(
    "error", [OSError("read-only"), ValueError("odd"), MemoryError(), AssertionError(), KeyError(1)]
)
def test_a_round_survives_every_exception(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    watch, rounds = ThreadWatch(), list[int]()
    thread = PeriodicThread(watch, "sampler", 0.01, failing([error, error], rounds))
    thread.start()
    wait_until(lambda: len(rounds) > 3, timeout_s=5, description="rounds follow")
    thread.stop()
    assert watch.take_failures() == {"sampler": 2}
    assert watch.take_failures() == {}
    assert len([record for record in caplog.records if "sampler failed" in record.message]) == 1
    assert not watch.has_given_up


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_thread_that_ends_drains_its_worker(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    drains: list[int] = []
    watch = ThreadWatch(lambda: drains.append(1))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    PeriodicThread(watch, "sampler", 0.01, failing([error], [])).start()
    wait_until(has_ended, timeout_s=5, description="the thread ends")
    assert drains == [1]
    assert watch.has_given_up


def test_a_thread_that_cannot_start_drains_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    drains: list[int] = []

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    PeriodicThread(ThreadWatch(lambda: drains.append(1)), "sampler", 1, lambda: None).start()
    assert drains == [1]


def test_a_stopped_thread_ends_quietly() -> None:
    watch = ThreadWatch()
    thread = PeriodicThread(watch, "sampler", 0.01, lambda: thread.stop())
    thread.start()
    wait_until(has_ended, timeout_s=5, description="the thread ends")
    assert not watch.has_given_up
