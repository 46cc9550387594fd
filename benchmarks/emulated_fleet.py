"""Many workers in the threads of one process: complete but for their processes and their work.

Each sends heartbeats, receives messages with its own kombu consumer, and runs Celery's task, whose
stage only sleeps.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path
from threading import Event, Lock, Thread, current_thread, local
from typing import Any

from celery.app.trace import build_tracer
from kombu.entity import Queue

from routing.classes import MemoryClass
from routing.queues import CPU_QUEUE, class_of, served_queues, with_submit_queue
from tasks.cache.index import PackIndex
from tasks.client import Client
from tasks.contract import STAGES
from tasks.data.read_policy import ReadPolicy
from tasks.eta.history import RunHistoryStore
from tasks.settings.settings import Settings
from tasks.stages.celery_tasks import STAGE_BODIES, make_worker_app
from tasks.stages.stage_context import StageContext, StageResult
from tasks.stages.worker_context import WorkerContext
from tasks.state.connection import connect
from tasks.state.job_store import JobStore
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tasks.store import Store
from worker.context import FleetServices
from worker.kombu_redis.transport import use_for_redis

# Long enough that all workers are busy at once, at the rate that one process can serve.
_HOLD_S = 1.0
_CLASSES = (MemoryClass.GB40, MemoryClass.GB80)


class EmulatedFleet:
    """A fleet with half of the workers on the CPU queue, the others on GPUs of 40 and 80 GB.

    Args:
        client: To the fleet's broker.
        settings: Of the workers.
        workers: How many.
        folder: For the store that no stage uses.
    """

    def __init__(self, client: Client, settings: Settings, workers: int, folder: Path) -> None:
        use_for_redis()
        STAGE_BODIES.update(dict.fromkeys(STAGES, self._do_nothing))
        self._client, self._settings, self._folder = client, settings, folder
        self._own = local()
        self._app = make_worker_app(settings, client.broker_url, self._runtime)
        self._tracers = {
            name: build_tracer(name, task, app=self._app) for name, task in self._app.tasks.items()
        }
        gpus = [
            served_queues(memory_class) for memory_class in islice(cycle(_CLASSES), workers // 2)
        ]
        self._served = [*[with_submit_queue((CPU_QUEUE,))] * (workers - len(gpus)), *gpus]
        self.done = 0
        self._lock = Lock()

    def present(self) -> None:
        """Record a heartbeat of each worker for an hour."""
        redis = connect(self._client.broker_url)
        for number, queues in enumerate(self._served):
            presence = WorkerInfo(queues=queues, memory_class=None)
            name = f"emulated-{number}"
            WorkerHeartbeat(redis, name, presence, timedelta(hours=1)).renew()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let all workers receive messages; on exit they finish their stages."""
        stopped = Event()
        threads = [Thread(target=self._work, args=(queues, stopped)) for queues in self._served]
        for thread in threads:
            thread.start()
        yield
        stopped.set()
        for thread in threads:
            thread.join()

    def _work(self, queues: tuple[str, ...], stopped: Event) -> None:
        self._own.memory_class = class_of(queues[0])
        with self._app.connection_for_read() as connection:
            consumer = connection.Consumer(
                [Queue(name, routing_key=name) for name in queues],  # type: ignore[no-untyped-call]
                callbacks=[self._run],
                accept=["json"],
                prefetch_count=1,
            )
            with consumer:
                while not stopped.is_set():
                    try:
                        connection.drain_events(timeout=1)
                    except TimeoutError:
                        continue

    def _run(self, body: Any, message: Any) -> None:
        """Run a message's task, as a worker's child does."""
        arguments, keywords, embedded = body
        request = {
            **message.headers,
            **embedded,
            "args": arguments,
            "kwargs": keywords,
            "delivery_info": message.delivery_info,
            "properties": message.properties,
            "is_eager": False,
        }
        tracer = self._tracers[message.headers["task"]]
        tracer(message.headers["id"], arguments, keywords, request)
        message.ack()

    def _do_nothing(self, context: StageContext) -> StageResult:
        time.sleep(_HOLD_S)
        with self._lock:
            self.done += 1
        return StageResult("nothing", result={} if context.stage == STAGES[-1] else None)

    def _runtime(self) -> WorkerContext:
        """Return the thread's context, as each process has one."""
        if not hasattr(self._own, "runtime"):
            redis, ttl = connect(self._client.broker_url), self._settings.job_ttl
            self._own.runtime = WorkerContext(
                state=JobStore(redis, ttl),
                pack_index=PackIndex(redis, ttl, self._settings.visibility_timeout),
                store=Store(self._folder.as_uri()),
                trainer=None,  # type: ignore[arg-type]  # no stage asks for it
                read_policy=ReadPolicy(),
                downloads_dir=self._folder,
                scratch_dir=self._folder / "scratch",
                name=current_thread().name,
                device="cpu",
                services=FleetServices(
                    redis,
                    self._own.memory_class,
                    lambda _needed_gib: None,
                    TenantQueues(redis, ttl),
                    RunHistoryStore(redis, ttl),
                ),
            )
        runtime: WorkerContext = self._own.runtime
        return runtime
