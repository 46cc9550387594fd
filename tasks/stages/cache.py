"""The ``cache`` stage: compute the text-encoder and VAE outputs that are not cached yet.

A start claims a few entries at a time, so that jobs that need the same ones share the work and
none is computed twice. An entry counts as soon as its pack is in the store; the claims of a killed
start expire after a while.
"""

import time
from collections.abc import Callable, Sequence

from pydantic_core import to_json

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
from tasks.stages.outcomes import Rerouted
from tasks.stages.stage_context import StageContext, StageResult
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.stages.worker_context import TrainerInterrupted, WorkerContext
from tasks.state.artifacts import JobArtifacts
from tasks.store import cache_index_key

# About thirty encoder batches: large enough that claims cost little, small enough to share work.
_CLAIMED_AT_ONCE = 256
# How often a job checks whether other jobs have computed the entries that it waits for.
_POLL_EVERY_S = 0.5
_POLLED_AT_ONCE = 20_000


def cache(context: StageContext) -> StageResult | Rerouted:
    """Compute what is missing and leave an index of the entries for ``train``."""
    on_gpu = context.queue != CPU_QUEUE
    config = context.record.job.training
    encoders = _recorded_encoders(context.worker, config)
    if encoders is None and not on_gpu:
        return Rerouted(context.record.gpu_queue, "the base model's digests are not recorded")
    fill = _CacheFill(context, encoders or _computed_encoders(context))
    # Once more after the last entry: packs that were found first may have been evicted meanwhile.
    while len(packs := fill.locate(fill.plan.digests)) < len(fill.plan.digests):
        missing = [digest for digest in fill.plan.digests if digest not in packs]
        if not on_gpu:
            return Rerouted(context.record.gpu_queue, f"{len(missing)} entries are missing")
        while missing:
            fill.compute(missing)
            found = fill.locate(missing)
            missing = [digest for digest in missing if digest not in found]
    context.worker.pack_index.touch(set(packs.values()))
    context.telemetry.count(fill.counts())
    key = cache_index_key(context.job_id)
    context.worker.store.put(key, to_json(fill.plan.index(packs)))
    return StageResult(fill.summary(), JobArtifacts(cache_index=key), work=fill.work())


def is_cached(worker: WorkerContext, config: PipelineConfig, dataset: Dataset) -> bool:
    """Whether every entry of a job is cached, as far as this machine knows."""
    try:
        encoders = _recorded_encoders(worker, config)
    except BaseModelFilesError:
        return False
    if encoders is None:
        return False
    worker.pack_index.rebuild_if_lost(worker.store)
    digests = CachePlan(config, dataset, encoders).digests
    return len(worker.pack_index.locate(digests)) == len(digests)


def packs_of(context: StageContext) -> set[str]:
    """Return the packs that the job's training reads."""
    key = cache_index_key(context.job_id)
    return set(CacheIndex.model_validate_json(context.worker.store.get(key)).packs.values())


def _recorded_encoders(worker: WorkerContext, config: PipelineConfig) -> EncoderDigests | None:
    """Return the encoders' digests; None if they are not recorded yet.

    Raises:
        BaseModelFilesError: This machine does not have the base model's files.
    """
    if not (config.caches_text or config.cache_vae_outputs):
        return EncoderDigests()
    return worker.pack_index.encoders(encoders_identity(config))


def _computed_encoders(context: StageContext) -> EncoderDigests:
    """Let the trainer compute the encoders' digests, and record them."""
    request = context.trainer_request(stage="cache")
    answer = _answer(context, request, context.event_router(), context.stop_requested)
    if answer.encoders is None:
        raise TypeError("the trainer did not answer with the encoders' digests")
    identity = encoders_identity(context.record.job.training)
    context.worker.pack_index.record_encoders(identity, answer.encoders)
    return answer.encoders


def _answer(
    context: StageContext,
    request: TrainerRequest,
    on_event: Callable[[Event], None],
    stop_requested: Callable[[], bool],
) -> CacheDone:
    done = context.worker.trainer.run(request, on_event=on_event, stop_requested=stop_requested)
    if not isinstance(done, CacheDone):
        raise TypeError(f"the trainer answered a cache request with {done.kind}")
    return done


class _CacheFill:
    """One start's work: its claims, its requests to the trainer, and the entries it computed."""

    def __init__(self, context: StageContext, encoders: EncoderDigests) -> None:
        self._context = context
        self._encoders = encoders
        dataset = context.worker.store.get(context.artifact("dataset"))
        self.plan = CachePlan(
            context.record.job.training, Dataset.model_validate_json(dataset), encoders
        )
        self._events = context.event_router()
        self._events.handle(PackStored, self._add_pack)
        self._index = context.worker.pack_index
        self._index.rebuild_if_lost(context.worker.store)
        self._owner = owner_of(context.job_id, context.token.attempt)
        self._checked_packs: set[str] = set()
        self._computed: set[str] = set()
        self._meter = RateMeter()
        self._claimed: list[str] = []
        self._stored: set[str] = set()
        """Of the claimed entries."""
        self._renewed_s = 0.0
        self._total = 0
        self._began_s = time.monotonic()

    def locate(self, digests: Sequence[str]) -> dict[str, str]:
        """Return the pack of each entry that is cached, without packs that the store has lost."""
        store = self._context.worker.store
        while True:
            packs = self._index.locate(digests)
            new = set(packs.values()) - self._checked_packs
            self._checked_packs |= new
            if not drop_where(self._index, store, new, lambda key: not store.exists(key)):
                return packs

    def compute(self, missing: Sequence[str]) -> None:
        """Compute the entries that no other job computes, or wait a moment if there are none.

        Raises:
            TrainerInterrupted: The stage is to stop.
        """
        self._total = max(self._total, len(self._computed) + len(missing))
        is_idle = True
        for start in range(0, len(missing), _CLAIMED_AT_ONCE):
            part = missing[start : start + _CLAIMED_AT_ONCE]
            if claimed := self._index.claim(part, self._owner, len(part)):
                is_idle = False
                self._compute_claimed(claimed)
        # Each look at many entries costs the broker much.
        for _ in range(1 + len(missing) // _POLLED_AT_ONCE if is_idle else 0):
            if self._context.stop_requested():
                raise TrainerInterrupted
            time.sleep(_POLL_EVERY_S)

    def summary(self) -> str:
        """Return what was done, in a few words."""
        images, captions = self._images_and_captions(self._computed)
        all_images, all_captions = self._images_and_captions(set(self.plan.digests))
        reused = f"{all_images - images} and {all_captions - captions} reused"
        return f"{images} images and {captions} captions encoded, {reused}"

    def counts(self) -> Counts:
        """Return how many entries were cached before, and how many were not, by kind."""
        counts: dict[str, int] = {}
        for kind, entries in (("text", self.plan.texts), ("latents", self.plan.latents)):
            computed = len(self._computed & entries.keys())
            counts |= CACHE_ENTRIES.one(kind, "miss", by=computed)
            counts |= CACHE_ENTRIES.one(kind, "hit", by=len(entries) - computed)
        return counts

    def work(self) -> WorkDone:
        """Return how many entries were computed, and the seconds per entry."""
        return WorkDone(len(self._computed), self._meter.unit_s)

    def _compute_claimed(self, claimed: list[str]) -> None:
        self._claimed = claimed
        self._stored.clear()
        try:
            request = self._context.trainer_request(
                stage="cache", encoders=self._encoders, cache_entries=tuple(claimed)
            )
            _answer(self._context, request, self._events, self._stop_requested)
            if not self._stored.issuperset(claimed):
                raise TypeError("the trainer stored fewer entries than requested")
        finally:
            self._meter.pause()
            self._index.release(claimed, self._owner)

    def _add_pack(self, event: PackStored) -> None:
        self._index.add(event.key, event.size, event.entries)
        self._index.release(event.entries, self._owner)
        self._stored.update(event.entries)
        self._computed.update(event.entries)
        done = len(self._computed)
        self._meter.update(done)
        self._context.emit(
            Progress(
                stage="cache",
                done=done,
                total=self._total,
                unit="entries",
                per_second=done / max(time.monotonic() - self._began_s, 1e-6),
            )
        )

    def _stop_requested(self) -> bool:
        """Renew the claims; the trainer's supervisor calls this about twice a second."""
        now = time.monotonic()
        if now - self._renewed_s > self._index.renew_every_s:
            self._renewed_s = now
            held = [digest for digest in self._claimed if digest not in self._stored]
            self._index.renew(held, self._owner)
        return self._context.stop_requested()

    def _images_and_captions(self, digests: set[str]) -> tuple[int, int]:
        """Return how many images and how many captions the entries are of."""
        latents = self.plan.latents
        images = {latents[digest].image for digest in digests if digest in latents}
        return len(images), len(digests & self.plan.texts.keys())
