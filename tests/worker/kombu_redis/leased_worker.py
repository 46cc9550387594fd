"""A worker with leases and a task that only sleeps: ``python -m ... URL LOG NAME TIMEOUT``.

With a fifth argument, a restore interval in seconds, it is a stock Celery worker without leases and
with kombu's own redelivery. Each start and end of the task is a line ``NAME begins ID`` in the file
LOG. In the environment, ``TRANSPORT_OPTIONS`` adds JSON to the broker's options; ``HANGS_S`` lets
the main loop hang for a time; ``DIES_ON_DELIVERY`` kills the worker with a message that it has not
recorded as unacknowledged; ``IDLE_S`` stops an idle worker after a time; ``QUEUES`` are the queues.
"""

import json
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.exceptions import SecurityWarning
from celery.signals import worker_ready

from tasks.app import make_app
from tasks.settings.settings import Settings
from tasks.state.connection import connect
from worker.kombu_redis.leases import LeaseOptions, install_leases
from worker.kombu_redis.redelivery import Redelivery
from worker.kombu_redis.transport import Keys, QoS, use_for_redis
from worker.kombu_redis.unreadable import UnreadableMessages
from worker.lifecycle.idle_shutdown import IdleShutdown
from worker.maintenance.leader import LeaderLoop
from worker.periodic import ThreadWatch
from worker.policy import install_policies

QUEUES = ("cpu", "gpu.8gb")
# All options of kombu that rename its keys, for ``TRANSPORT_OPTIONS``.
KEYS = {
    "global_keyprefix": "ours:",
    "unacked_key": "held",
    "unacked_index_key": "held_since",
    "sep": ":",
    "priority_steps": [0, 5],
}


def leased(url: str, timeout: timedelta) -> Celery:
    app = make_app(Settings(visibility_timeout=timeout), url, draining=lambda: False)
    options = app.conf.broker_transport_options
    options |= json.loads(os.environ.get("TRANSPORT_OPTIONS", "{}"))
    client = connect(url)
    install_leases(app, LeaseOptions(client))
    if idle := os.environ.get("IDLE_S"):
        end = partial(os.kill, os.getpid(), signal.SIGTERM)
        install_policies(app, [IdleShutdown(float(idle), end)])
    unreadable = UnreadableMessages(client, "unreadable")
    use_for_redis(unreadable=unreadable)
    redelivery = Redelivery(client, timeout, Keys.of(options), unreadable)
    jobs = {"redelivery": redelivery.redeliver_expired}
    leader = LeaderLoop(
        client, timeout, jobs, lease="lease", watch=ThreadWatch(), after_outage=timeout
    )
    worker_ready.connect(lambda **_: leader.start(), weak=False)
    return app


def stock(url: str, timeout: timedelta, restore_interval_s: float) -> Celery:
    app = Celery("stock", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": timeout.total_seconds(),
            "unacked_restore_interval": restore_interval_s,
            "unacked_restore_throttle": 1,
        },
    )
    return app


def main(url: str, log: str, name: str, timeout_s: str, restore_interval_s: str = "") -> None:
    warnings.simplefilter("ignore", SecurityWarning)
    timeout = timedelta(seconds=float(timeout_s))
    if restore_interval_s:
        app = stock(url, timeout, float(restore_interval_s))
    else:
        app = leased(url, timeout)

    def note(line: str) -> None:
        with Path(log).open("a") as file:
            file.write(f"{name} {line}\n")

    @app.task(name="work", bind=True, shared=False)  # type: ignore[untyped-decorator]
    def work(self: Task, seconds: float) -> None:
        note(f"begins {self.request.id}")
        time.sleep(seconds)
        note(f"ends {self.request.id}")

    worker_ready.connect(lambda **_: note("is ready"), weak=False)
    if hangs := os.environ.get("HANGS_S"):
        # In the main loop, after its start.
        worker_ready.connect(
            lambda sender, **_: sender.timer.call_after(1, time.sleep, (float(hangs),)), weak=False
        )
    if "DIES_ON_DELIVERY" in os.environ:
        QoS.append = _die  # type: ignore[assignment, method-assign]
    hostname = f"{name}@here"
    queues = os.environ.get("QUEUES", ",".join(QUEUES)).split(",")
    app.Worker(hostname=hostname, queues=queues, without_mingle=True, without_gossip=True).start()


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
