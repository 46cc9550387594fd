"""The fleet as an account may see it: GPUs, what each does, who waits, and presets that fit."""

from statistics import median
from typing import Any

from console.services.jobs import JobViews, for_tenants
from console.views import FleetView, PresetView, QueueView, WorkerView
from routing.queues import ALL_QUEUES, ENGINE_QUEUES
from tasks.api_keys import Caller
from tasks.client import Client
from tasks.jobs.job import TrainingJob, parse_job
from tasks.jobs.presets import joined, preset, preset_names
from tasks.settings.settings import Settings
from tasks.state.record import JobRecord
from tasks.state.workers import WorkerInfo

# What presets leave to the job.
_DATASET = {"type": "IMAGE_DIR_DATASET", "dataset_dir": "images"}
_CAPTIONED = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "images"}
_NEW_WORD = {
    "placeholder_token": "<word>",
    "initializer_token": "word",
    "data_loader": {"dataset": _DATASET, "caption_preset": "object"},
}


class FleetViews:
    """Makes what is shown of the fleet; safe to use by several threads.

    Args:
        client: The fleet.
        settings: Tell what jobs are routed with.
        jobs: Knows what finished runs have taught.
    """

    def __init__(self, client: Client, settings: Settings, jobs: JobViews) -> None:
        self._client, self._settings, self._jobs = client, settings, jobs

    def fleet(self, account: Caller) -> FleetView:
        """The fleet as it is now."""
        flying = self._client.control.in_flight()
        running = {
            record.stages[record.stage].worker: record
            for record in flying
            if record.pending_queue is None and record.stage in record.stages
        }
        workers = tuple(
            _worker(name, presence, running.get(name), account)
            for name, presence in self._client.present_workers().items()
        )
        return FleetView(workers=workers, queues=self._queues(flying, account))

    def presets(self) -> tuple[PresetView, ...]:
        """All presets, the recommended one of each type marked."""
        views = [self._preset(name) for name in preset_names()]
        best: dict[str, PresetView] = {}
        for view in views:
            other = best.get(view.type)
            if view.served and (other is None or _worth(view) > _worth(other)):
                best[view.type] = view
        return tuple(
            view.model_copy(update={"recommended": best.get(view.type) is view}) for view in views
        )

    def _queues(self, flying: list[JobRecord], account: Caller) -> tuple[QueueView, ...]:
        in_lanes, waits = self._client.tenant_queues.waiting(), self._jobs.learned().waits
        views = []
        for queue in ALL_QUEUES:
            tenants = dict(in_lanes.get(queue, {}))
            for record in flying:
                if record.pending_queue == queue:
                    tenants[record.job.tenant] = tenants.get(record.job.tenant, 0) + 1
            waiting, is_operator = sum(tenants.values()), account.tenant is None
            unserved = self._client.why_waiting(queue)
            if queue in ENGINE_QUEUES and unserved is not None and not waiting:
                continue
            views.append(
                QueueView(
                    name=queue,
                    waiting=waiting,
                    own=waiting if is_operator else tenants.get(account.tenant or "", 0),
                    tenants=tenants if is_operator else None,
                    usual_wait_s=median(waits[queue]) if waits.get(queue) else None,
                    unserved=for_tenants(unserved, account),
                )
            )
        return tuple(views)

    def _preset(self, name: str) -> PresetView:
        found = preset(name)
        job = _job_of(name, found["training"])
        route = job.route(self._settings.constants)
        return PresetView(
            name=name,
            type=job.training.type,
            summary=found["summary"],
            memory_class=str(route.memory_class),
            needed_gib=route.estimate.needed_gib,
            recommended=False,
            served=self._client.why_waiting(route.gpu_queue) is None,
            training=found["training"],
        )


def _job_of(name: str, training: dict[str, Any]) -> TrainingJob:
    """A job of a preset, with something for what it leaves open."""
    needed: dict[str, Any] = {"data_loader": {"dataset": _CAPTIONED}}
    if training["type"] == "SDXL_TEXTUAL_INVERSION":
        needed = _NEW_WORD
    return parse_job({"preset": name, "training": joined({}, needed)})


def _worth(view: PresetView) -> tuple[int, float]:
    return int(view.memory_class.removesuffix("gb")), view.needed_gib


def _worker(
    name: str, presence: WorkerInfo, record: JobRecord | None, account: Caller
) -> WorkerView:
    its_own = record is not None and account.sees(record.job.tenant)
    is_operator = account.tenant is None
    runs = None if record is None else "another tenant's job"
    return WorkerView(
        name=name,
        queues=presence.queues,
        memory_class=None if presence.memory_class is None else str(presence.memory_class),
        gpu=presence.gpu_name,
        gpu_mib=presence.gpu_mib,
        quarantined=presence.quarantined is not None,
        quarantine_reason=presence.quarantined if is_operator else None,
        busy=record is not None,
        job=record.id if record is not None and its_own else None,
        runs=f"{record.job.name}: {record.stage}" if record is not None and its_own else runs,
    )
