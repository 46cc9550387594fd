from worker.lifecycle.drain import Drain


def test_a_drain_is_requested_once_the_worker_stops() -> None:
    drain = Drain()
    assert not drain.requested()
    drain.on_stopping()
    assert drain.requested()
    assert drain.requested()
