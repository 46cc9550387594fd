"""The ``cache`` stage: text-encoder and VAE outputs of everything that is not cached yet.

Entries are claimed a few at a time, so that jobs that want the same ones share the work and none is
made twice. A pack that is in the store counts at once; what is claimed and not made, because this
start was killed, is free again after a while.
"""

import time
from collections.abc import Callable

from routing.queues import CPU_QUEUE
from tasks.base_models.files import encoders_identity
from tasks.cache.eviction import drop_where
from tasks.cache.index import owner_of
from tasks.cache.plan import CacheIndex, CachePlan
from tasks.dataset import Dataset
from tasks.errors import BaseModelFilesError
from tasks.eta.history import RateMeter, WorkDone
from tasks.events import CacheDone, EncoderDigests, Event, PackStored, Progress
from tasks.jobs.pipeline import PipelineConfig
from tasks.metrics import CACHE_ENTRIES, Counts
from tasks.stages.runner import Rerouted, StageContext, StageResult
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.stages.worker_context import TrainerInterrupted, WorkerContext
from tasks.store import cache_index_key

# Some thirty encoder batches: large enough that asking costs nothing, small enough to share.
_CLAIMED_AT_ONCE = 256
# How often a job looks whether another one has made what it waits for.
_LOOK_EVERY_S = 0.5


def cache(context: StageContext) -> StageResult:
    """Encode what is missing and leave an index of the entries for ``train``."""
    runtime = context.runtime
    work = _Work(context, _encoders(context))
    packs = work.filled()
    context.telemetry.count(work.counts())
    key = cache_index_key(context.job_id)
    runtime.store.put(key, work.plan.index(packs).model_dump_json().encode())
    return StageResult(work.summary(), {"cache_index": key}, made=work.made())


def is_cached(runtime: WorkerContext, config: PipelineConfig, dataset: Dataset) -> bool:
    """Whether there is nothing to encode for a job, as far as this machine can tell."""
    if not (config.caches_text or config.cache_vae_outputs):
        return True
    try:
        encoders = runtime.cache.encoders(encoders_identity(config))
    except BaseModelFilesError:
        return False
    if encoders is None:
        return False
    runtime.cache.rebuild_if_lost(runtime.store)
    wanted = CachePlan(config, dataset, encoders).digests
    return len(runtime.cache.locate(wanted)) == len(wanted)


def packs_of(context: StageContext) -> set[str]:
    """The packs that the job's training reads."""
    data = context.runtime.store.get(context.runtime.state.get(context.job_id).refs["cache_index"])
    return set(CacheIndex.model_validate_json(data).packs.values())


def _encoders(context: StageContext) -> EncoderDigests:
    """The encoders' digests: as recorded, or as the trainer finds them."""
    registry, config = context.runtime.cache, context.record.job.training
    if not (config.caches_text or config.cache_vae_outputs):
        return EncoderDigests()
    identity = encoders_identity(config)
    known = registry.encoders(identity)
    if known is not None:
        return known
    if context.queue == CPU_QUEUE:
        raise Rerouted(context.record.gpu_queue, "the base model is not known here")
    request = context.trainer_request(stage="cache")
    answer = _answer(context, request, context.emit, context.stop_requested)
    if answer.encoders is None:
        raise TypeError("the trainer was asked for the encoders' digests and gave none")
    registry.record_encoders(identity, answer.encoders)
    return answer.encoders


def _answer(
    context: StageContext,
    request: TrainerRequest,
    on_event: Callable[[Event], None],
    stop_requested: Callable[[], bool],
) -> CacheDone:
    done = context.run_trainer(request, on_event, stop_requested)
    if not isinstance(done, CacheDone):
        raise TypeError(f"the trainer answered a cache request with {done.kind}")
    return done


class _Work:
    """One start's work: claims, requests to the trainer, and what became of them."""

    def __init__(self, context: StageContext, encoders: EncoderDigests) -> None:
        dataset = context.runtime.store.get(context.record.refs["dataset"])
        self._context = context
        self._encoders = encoders
        self.plan = CachePlan(
            context.record.job.training, Dataset.model_validate_json(dataset), encoders
        )
        self._registry = context.runtime.cache
        self._owner = owner_of(context.job_id, context.attempt)
        self._made: set[str] = set()
        self._meter = RateMeter()
        self._stored: set[str] = set()
        """Of those that are claimed now."""
        self._claimed: list[str] = []
        self._renewed_at = 0.0
        self._total = 0
        self._begun_at = time.monotonic()

    def filled(self) -> dict[str, str]:
        """The pack of each entry, once all are there.

        Raises:
            Rerouted: Something is missing, and this worker has no GPU.
            TrainerInterrupted: The stage was asked to stop.
        """
        runtime = self._context.runtime
        self._registry.rebuild_if_lost(runtime.store)
        checked: set[str] = set()
        while True:
            packs = self._registry.locate(self.plan.digests)
            missing = [digest for digest in self.plan.digests if digest not in packs]
            if missing:
                self._make(missing)
                continue
            new = set(packs.values()) - checked
            if not drop_where(
                self._registry, runtime.store, new, lambda key: not runtime.store.exists(key)
            ):
                self._registry.use(set(packs.values()))
                return packs
            checked |= new

    def summary(self) -> str:
        """What was done, in a few words."""
        encoded = [self._counts(self._made), self._counts(set(self.plan.digests))]
        (images, captions), (all_images, all_captions) = encoded
        reused = f"{all_images - images} and {all_captions - captions} reused"
        return f"{images} images and {captions} captions encoded, {reused}"

    def counts(self) -> Counts:
        """How many entries were there, and how many were not, by kind."""
        counts: dict[str, int] = {}
        for kind, wanted in (("text", self.plan.texts), ("latents", self.plan.latents)):
            made = len(self._made & wanted.keys())
            counts |= CACHE_ENTRIES.one(kind, "miss", by=made)
            counts |= CACHE_ENTRIES.one(kind, "hit", by=len(wanted) - made)
        return counts

    def made(self) -> WorkDone:
        """How many entries, and what each took."""
        return WorkDone(len(self._made), self._meter.unit_s)

    def _make(self, missing: list[str]) -> None:
        """Make what can be claimed of it, or wait a moment for those who make it."""
        if self._context.queue == CPU_QUEUE:
            raise Rerouted(self._context.record.gpu_queue, f"{len(missing)} entries are missing")
        self._total = max(self._total, len(self._made) + len(missing))
        self._claimed = self._registry.claim(missing, self._owner, _CLAIMED_AT_ONCE)
        if not self._claimed:
            if self._context.stop_requested():
                raise TrainerInterrupted
            time.sleep(_LOOK_EVERY_S)
            return
        try:
            request = self._context.trainer_request(
                stage="cache", encoders=self._encoders, cache_entries=tuple(self._claimed)
            )
            self._stored.clear()
            _answer(self._context, request, self._on_event, self._stop_requested)
            if not self._stored.issuperset(self._claimed):
                raise TypeError("the trainer was asked for more entries than it stored")
        finally:
            self._meter.pause()
            self._registry.release(self._claimed, self._owner)

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, PackStored):
            self._context.emit(event)
            return
        self._registry.add(event.key, event.size, event.entries)
        self._registry.release(event.entries, self._owner)
        self._stored.update(event.entries)
        self._made.update(event.entries)
        done = len(self._made)
        self._meter.update(done)
        self._context.emit(
            Progress(
                stage="cache",
                done=done,
                total=self._total,
                unit="entries",
                per_second=done / max(time.monotonic() - self._begun_at, 1e-6),
            )
        )

    def _stop_requested(self) -> bool:
        """Asked about twice a second while the trainer runs: a good time to renew claims."""
        now = time.monotonic()
        if now - self._renewed_at > self._registry.renew_every_s:
            self._renewed_at = now
            left = [digest for digest in self._claimed if digest not in self._stored]
            self._registry.renew(left, self._owner)
        return self._context.stop_requested()

    def _counts(self, digests: set[str]) -> tuple[int, int]:
        """How many images and captions these entries are of."""
        variants = self.plan.latents
        images = {variants[digest].image for digest in digests if digest in variants}
        return len(images), len(digests & self.plan.texts.keys())
