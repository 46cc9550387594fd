"""The fleet as a caller sees it: GPUs and their activity, queues, and presets that suit it."""

from collections.abc import Collection
from statistics import median

from console.errors import ForbiddenError
from console.services.jobs.jobs import Jobs, without_quarantine_reasons
from console.services.threads import in_thread
from console.views import PresetView, TenantUsage, UsagePage, View
from routing.classes import MemoryClass
from routing.fair_share import OTHERS
from routing.queues import ENGINE_QUEUES, STAGE_QUEUES
from tasks.access.api_keys import Caller
from tasks.client import Client
from tasks.jobs.job import preset_job
from tasks.jobs.presets import FAST_SUFFIX, preset, preset_names
from tasks.settings.settings import Settings
from tasks.state.record import JobRecord
from tasks.state.workers import WorkerInfo, emulated_classes


class WorkerView(View):
    """A live worker."""

    name: str
    queues: tuple[str, ...]
    """Queues in order of precedence."""
    memory_class: str | None
    """Null for a CPU worker."""
    gpu: str | None
    """Product name of the GPU."""
    gpu_mib: int
    """GPU memory; 0 for an emulated GPU or a CPU worker."""
    emulated: bool
    """Whether its GPU is emulated on a CPU."""
    quarantined: bool
    quarantine_reason: str | None
    """Null for tenants."""
    busy: bool
    job_id: str | None
    """Job that the worker runs; null for another tenant's job."""
    activity: str | None
    """What the worker runs: a job's name and stage, or "another tenant's job"."""


class QueueView(View):
    """A queue, with the tenant queues in front of it."""

    name: str
    waiting: int
    """Number of waiting jobs."""
    own_waiting: int
    """Number of waiting jobs that the caller sees."""
    waiting_by_tenant: dict[str, int] | None
    """Number of waiting jobs by tenant; null for tenants."""
    median_wait_s: float | None
    """Median of recent waiting times; null without history."""
    oldest_wait_s: float | None
    """How long the oldest of ``own_waiting`` in tenant queues has waited; null without any."""
    expected_wait_s: float | None
    """Expected wait of a job that the caller would add now; null when unknown."""
    unserved_reason: str | None
    """Why no live worker serves the queue; null when one does."""


class FleetView(View):
    """The fleet as it is now."""

    workers: tuple[WorkerView, ...]
    queues: tuple[QueueView, ...]
    """Queues; those of an engine without a live worker only while jobs wait in them."""


class Fleet:
    """Views of the fleet; thread-safe.

    Tenants see the numbers of waiting jobs and the names of their own jobs only.

    Args:
        client: The fleet's client.
        settings: The memory model that jobs are routed with.
        jobs: The jobs service, for the history of finished runs.
    """

    def __init__(self, client: Client, settings: Settings, jobs: Jobs) -> None:
        self._client, self._settings, self._jobs = client, settings, jobs

    @in_thread
    def get(self, caller: Caller) -> FleetView:
        """Return the fleet as it is now."""
        in_flight = self._client.control.in_flight()
        running = {
            record.stages[record.stage].worker: record
            for record in in_flight
            if record.pending_queue is None and record.stage in record.stages
        }
        workers = tuple(
            _worker(name, info, running.get(name), caller)
            for name, info in self._client.live_workers().items()
        )
        return FleetView(workers=workers, queues=self._queues(in_flight, caller))

    @in_thread
    def usage(self, caller: Caller, month: str | None, tenant: str | None, limit: int) -> UsagePage:
        """Return what tenants used in a month; a tenant's key sees its own.

        Args:
            caller: The caller.
            month: ``2026-11``; None is this month.
            tenant: A tenant; operators may name any.
            limit: Maximum number of tenants.

        Raises:
            ForbiddenError: The caller may not see this tenant.
        """
        if tenant is not None and not caller.sees(tenant):
            raise ForbiddenError("this key sees only its tenant's usage", "tenant")
        store, tenant = self._client.usage, caller.tenant or tenant
        month = month or store.this_month()
        found = store.all(month) if tenant is None else [store.of(tenant, month)]
        found.sort(key=lambda usage: (-usage.gpu_hours, usage.tenant))
        quotas = self._client.quotas.all()
        return UsagePage(
            month=month,
            tenants=tuple(
                TenantUsage(usage=usage, quotas=quotas.get(usage.tenant) or quotas.get(OTHERS))
                for usage in found[:limit]
            ),
        )

    @in_thread
    def emulated_queues(self) -> frozenset[str]:
        """Return the queues whose jobs run on emulated GPUs only, as far as workers are live."""
        workers = [it for it in self._client.live_workers().values() if it.memory_class is not None]
        real = {queue for it in workers if not it.is_emulated for queue in it.queues}
        emulated = {queue for it in workers if it.is_emulated for queue in it.queues}
        return frozenset(emulated - real)

    @in_thread
    def presets(self) -> tuple[PresetView, ...]:
        """Return all presets, with the best one of each type for this fleet recommended.

        The fast ones leave little memory for changed options, and are not recommended.
        """
        emulated = emulated_classes(self._client.live_workers())
        views = [self._preset(name, emulated) for name in preset_names()]
        best: dict[str, PresetView] = {}
        for view in views:
            other = best.get(view.type)
            may_be_best = view.served and not view.name.endswith(FAST_SUFFIX)
            if may_be_best and (other is None or _capacity(view) > _capacity(other)):
                best[view.type] = view
        return tuple(
            view.model_copy(update={"recommended": best.get(view.type) is view}) for view in views
        )

    @in_thread
    def ping(self) -> None:
        """Read something small from the broker.

        Raises:
            redis.RedisError: The broker is unavailable.
        """
        self._client.tenant_queues.shares()

    def _queues(self, in_flight: list[JobRecord], caller: Caller) -> tuple[QueueView, ...]:
        in_tenant_queues = self._client.tenant_queues.waiting()
        waits = self._jobs.run_history().waits
        oldest_s = self._client.tenant_queues.oldest_waits_s(caller.tenant)
        expected_s = self._client.positions.expected_waits_s(caller.tenant)
        views = []
        for queue in STAGE_QUEUES:
            tenants = dict(in_tenant_queues.get(queue, {}))
            for record in in_flight:
                if record.pending_queue == queue:
                    tenants[record.job.tenant] = tenants.get(record.job.tenant, 0) + 1
            waiting = sum(tenants.values())
            unserved_reason = self._client.unserved_reason(queue)
            if queue in ENGINE_QUEUES and unserved_reason is not None and not waiting:
                continue
            views.append(
                QueueView(
                    name=queue,
                    waiting=waiting,
                    own_waiting=waiting if caller.tenant is None else tenants.get(caller.tenant, 0),
                    waiting_by_tenant=tenants if caller.is_operator else None,
                    median_wait_s=median(waits[queue]) if waits.get(queue) else None,
                    oldest_wait_s=oldest_s.get(queue),
                    expected_wait_s=expected_s.get(queue),
                    unserved_reason=without_quarantine_reasons(unserved_reason, caller),
                )
            )
        return tuple(views)

    def _preset(self, name: str, emulated: Collection[MemoryClass]) -> PresetView:
        document = preset(name)
        job = preset_job(name)
        route = job.route(self._settings.constants)
        return PresetView(
            name=name,
            type=job.training.type,
            summary=document["summary"],
            memory_class=str(route.memory_class),
            needed_gib=route.estimate.needed_gib,
            recommended=False,
            served=self._client.unserved_reason(route.gpu_queue) is None,
            emulated=route.memory_class in emulated,
            title=document["title"],
            training=document["training"],
        )


def _capacity(view: PresetView) -> tuple[int, float]:
    return int(view.memory_class.removesuffix("gb")), view.needed_gib


def _worker(name: str, info: WorkerInfo, record: JobRecord | None, caller: Caller) -> WorkerView:
    is_visible = record is not None and caller.sees(record.job.tenant)
    activity = None if record is None else "another tenant's job"
    if record is not None and is_visible:
        activity = f"{record.job.name}: {record.stage}"
    return WorkerView(
        name=name,
        queues=info.queues,
        memory_class=None if info.memory_class is None else str(info.memory_class),
        gpu=info.gpu_name,
        gpu_mib=info.gpu_mib,
        emulated=info.is_emulated,
        quarantined=info.quarantined is not None,
        quarantine_reason=info.quarantined if caller.is_operator else None,
        busy=record is not None,
        job_id=record.id if record is not None and is_visible else None,
        activity=activity,
    )
