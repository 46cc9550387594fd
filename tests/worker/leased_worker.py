"""A Celery worker with our leases and a task that only works: ``python -m ... URL NAME VT``.

With a sweep interval in seconds behind, stock Celery instead: no leases of ours, kombu's own sweep.
Each start and end of the task is noted in the list ``log`` of the broker, as ``NAME begins ID``.
"""

import os
import sys
import time
import warnings
from datetime import timedelta
from typing import Any

from celery import Celery, Task
from celery.exceptions import SecurityWarning
from celery.signals import worker_ready

from tasks.state import connect
from worker.leases import LeaseRenewal
from worker.sweep import Sweep
from worker.transport import use_for_redis
from worker.upkeep import Upkeep


def make(url: str, name: str, timeout: timedelta) -> Celery:
    app = Celery("leased", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_default_queue="work",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": timeout.total_seconds()},
    )

    @app.task(name="work", bind=True)  # type: ignore[untyped-decorator]
    def work(self: Task, seconds: float) -> None:
        client = connect(url, patience=timedelta(minutes=1))
        client.rpush("log", f"{name} begins {self.request.id}")
        time.sleep(seconds)
        client.rpush("log", f"{name} ends {self.request.id}")

    return app


def main(url: str, name: str, seconds: str, sweep_interval: str | None = None) -> None:
    warnings.simplefilter("ignore", SecurityWarning)
    timeout = timedelta(seconds=float(seconds))
    app = make(url, name, timeout)
    client = connect(url)
    if sweep_interval is None:
        use_for_redis()
        app.steps["consumer"].add(LeaseRenewal.with_client(connect(url)))
    else:
        options = {"unacked_restore_interval": float(sweep_interval), "unacked_restore_throttle": 1}
        app.conf.broker_transport_options |= options

    def ready(**_: Any) -> None:
        if sweep_interval is None:
            Upkeep(client, timeout, (), restore=Sweep(client, timeout).restore_expired).start()
        client.rpush("log", f"{name} is ready")

    worker_ready.connect(ready, weak=False)

    def hang(seconds: float) -> None:
        time.sleep(seconds)

    if hangs := os.environ.get("HANGS_S"):
        # In the main loop, once it turns.
        worker_ready.connect(
            lambda sender, **_: sender.timer.call_after(1, hang, (float(hangs),)), weak=False
        )
    app.Worker(hostname=f"{name}@here", without_mingle=True, without_gossip=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
