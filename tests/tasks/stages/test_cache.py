import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from routing.queues import CPU_QUEUE
from tasks import events
from tasks.cache.eviction import drop_damaged
from tasks.cache.index import PackIndex, owner_of
from tasks.cache.plan import CacheIndex, CachePlan
from tasks.data.read_policy import ReadPolicy
from tasks.dataset import Dataset, Sample, dataset_of
from tasks.eta.history import WorkDone
from tasks.events import EncoderDigests
from tasks.jobs.job import parse_job
from tasks.stages.cache import cache, is_cached
from tasks.stages.outcomes import Done, Requeued, Rerouted, StageOutcome
from tasks.stages.runner import Delivery, run_stage
from tasks.stages.stage_context import StageResult
from tasks.stages.submit import submit
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.stages.worker_context import TrainerInterrupted, WorkerContext, WorkerServices
from tasks.state.artifacts import NO_ARTIFACTS, JobArtifacts
from tasks.state.job_store import JobStore
from tasks.store import Store, cache_index_key, dataset_key
from tests.tasks.cache.pack_files import put_pack
from tests.waiting import wait_until

ENCODERS = EncoderDigests(text="t" * 64, vae="v" * 64)
GPU = Delivery(queue="gpu.40gb", tag="t")


class Encoder:
    """Stands at the Trainer protocol: packs eight entries at a time.

    Args:
        store: Where packs go.
        dies_after: Packs after which it is interrupted.
        pack_size: Entries of a pack.
    """

    def __init__(self, store: Store, dies_after: int | None = None, pack_size: int = 8) -> None:
        self._store = store
        self._pack_size = pack_size
        self._left = dies_after
        self.encoded: Counter[str] = Counter()
        self.on_pack: Callable[[], None] = lambda: None

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[events.Event], None],
        stop_requested: Callable[[], bool],
    ) -> events.CacheDone | events.TrainDone:
        if request.encoders is None:
            return events.CacheDone(encoders=ENCODERS)
        left = list(request.cache_entries)
        while left:
            if self._left == 0:
                raise TrainerInterrupted
            stop_requested()
            batch, left = left[: self._pack_size], left[self._pack_size :]
            self.encoded.update(batch)
            on_event(put_pack(self._store, "latents", batch))
            self._left = None if self._left is None else self._left - 1
            self.on_pack()
        return events.CacheDone()

    def close(self) -> None:
        """It keeps nothing."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


@pytest.fixture
def pack_index(redis_client: Redis) -> PackIndex:
    return PackIndex(redis_client, timedelta(hours=1), timedelta(seconds=2))


@pytest.fixture
def document(job_document: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A job that caches everything; its base model is a file of any bytes."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"weights")
    job_document["training"]["cache_vae_outputs"] = True
    job_document["training"]["cache_text_encoder_outputs"] = True
    return job_document


def dataset(count: int, edited: int | None = None) -> Dataset:
    return dataset_of(
        Sample(
            image=f"{number}{'*' if number == edited else ''}",
            width=512,
            height=512,
            caption=f"image {number}",
            source=f"{number}.png",
        )
        for number in range(count)
    )


def put(store: Store, found: Dataset) -> str:
    key = dataset_key(found.digest)
    store.put(key, found.model_dump_json().encode())
    return key


class Job:
    """A job whose cache stage is run, any number of times."""

    def __init__(
        self,
        state: JobStore,
        pack_index: PackIndex,
        store: Store,
        document: dict[str, Any],
        images: Dataset,
        artifacts: JobArtifacts,
    ) -> None:
        self.state, self.pack_index, self.store = state, pack_index, store
        self.id = submit(document, state, "result").job_id
        key = put(store, images)
        body = lambda _: StageResult("left", artifacts.updated(JobArtifacts(dataset=key)))  # noqa: E731
        worker = self.worker(Encoder(store))
        run_stage("prepare", body, self.id, Delivery("cpu", "t"), worker, lambda: False)

    def worker(self, encoder: Encoder) -> WorkerContext:
        scratch = Path(self.store.url.removeprefix("file://")) / "scratch"
        return WorkerContext(
            state=self.state,
            pack_index=self.pack_index,
            store=self.store,
            trainer=encoder,
            read_policy=ReadPolicy(),
            downloads_dir=scratch / "downloads",
            scratch_dir=scratch,
            name="gpu@here",
            device="cpu",
        )

    def run_cache(self, encoder: Encoder, delivery: Delivery = GPU) -> StageOutcome:
        return run_stage("cache", cache, self.id, delivery, self.worker(encoder), lambda: False)

    def cache(self, encoder: Encoder, delivery: Delivery = GPU) -> str:
        assert isinstance(self.run_cache(encoder, delivery), Done)
        return self.state.get(self.id).stages["cache"].summary or ""

    def index(self) -> CacheIndex:
        return CacheIndex.model_validate_json(self.store.get(cache_index_key(self.id)))


@pytest.fixture
def job_of(
    state: JobStore, pack_index: PackIndex, store: Store, document: dict[str, Any]
) -> Callable[..., Job]:
    def make(
        count: int = 20,
        edited: int | None = None,
        artifacts: JobArtifacts = NO_ARTIFACTS,
        **training: Any,
    ) -> Job:
        changed = {**document, "training": {**document["training"], **training}}
        return Job(state, pack_index, store, changed, dataset(count, edited), artifacts)

    return make


def test_everything_is_encoded_once(job_of: Callable[..., Job], store: Store) -> None:
    encoder = Encoder(store)
    first = job_of().cache(encoder)
    assert first == "20 images and 21 captions encoded, 0 and 0 reused"
    assert set(encoder.encoded.values()) == {1}
    assert len(encoder.encoded) == 41
    again = Encoder(store)
    assert job_of().cache(again) == "0 images and 0 captions encoded, 20 and 21 reused"
    assert not again.encoded


def test_encoding_records_the_time_of_an_entry(job_of: Callable[..., Job], store: Store) -> None:
    recorded: list[WorkDone] = []

    class Recorder(WorkerServices):
        def record_run(self, *args: Any) -> None:
            recorded.append(args[-1])

    job = job_of()
    worker = replace(job.worker(Encoder(store)), services=Recorder())
    run_stage("cache", cache, job.id, GPU, worker, lambda: False)
    [work] = recorded
    assert work.units == 41
    assert work.unit_s is not None


def test_an_edited_image_encodes_one_image(job_of: Callable[..., Job], store: Store) -> None:
    job_of().cache(Encoder(store))
    summary = job_of(edited=7).cache(Encoder(store))
    assert summary == "1 images and 0 captions encoded, 19 and 21 reused"


def test_the_index_has_a_pack_for_every_entry(job_of: Callable[..., Job], store: Store) -> None:
    job = job_of()
    job.cache(Encoder(store))
    index = job.index()
    wanted = {digest for row in index.samples for digest in (row.text, row.latents) if digest}
    assert wanted | {index.blank_text} == set(index.packs)
    assert set(index.packs.values()) == set(store.keys("cache"))


def test_concurrent_jobs_share_the_work(job_of: Callable[..., Job], store: Store) -> None:
    first, second = Encoder(store), Encoder(store)
    jobs = [job_of(400), job_of(400)]
    other = threading.Thread(target=lambda: jobs[1].cache(second))
    begun = threading.Event()

    def let_the_other_begin() -> None:
        if not begun.is_set():
            begun.set()
            other.start()
            wait_until(lambda: bool(second.encoded), timeout_s=20, description="both encode")

    first.on_pack = let_the_other_begin
    jobs[0].cache(first)
    other.join(30)
    together = first.encoded + second.encoded
    assert len(together) == 801
    assert set(together.values()) == {1}
    assert jobs[0].index().packs == jobs[1].index().packs


def test_the_cost_grows_with_the_entries_only(
    job_of: Callable[..., Job], store: Store, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    hmget = redis_client.hmget

    def counting(name: str, keys: list[str]) -> Any:
        looks.append(len(keys))
        return hmget(name, keys)

    job = job_of(count=5000)
    monkeypatch.setattr(redis_client, "hmget", counting)
    assert job.cache(Encoder(store, pack_size=500)).startswith("5000 images and 5001 captions")
    # Two looks at all 10,001 entries and one at the missing ones, 1,000 at a time.
    assert len(looks) == 3 * 11
    assert sum(looks) == 3 * 10_001


def test_stored_entries_survive_a_stop(job_of: Callable[..., Job], store: Store) -> None:
    job, encoded = job_of(), Counter[str]()
    for _ in range(3):
        encoder = Encoder(store, dies_after=1)
        assert isinstance(job.run_cache(encoder), Requeued)
        encoded += encoder.encoded
    last = Encoder(store)
    job.cache(last)
    assert set((encoded + last.encoded).values()) == {1}


def test_claims_of_a_killed_job_expire(
    job_of: Callable[..., Job], store: Store, pack_index: PackIndex
) -> None:
    job = job_of()
    plan = CachePlan(job.state.get(job.id).job.training, dataset(20), ENCODERS)
    assert len(pack_index.claim(plan.digests, owner_of("killed", 1), 1000)) == 41
    assert pack_index.claim(plan.digests, owner_of(job.id, 1), 1000) == []
    job.cache(Encoder(store))
    assert len(job.index().packs) == 41


def test_claims_belong_to_their_owner(pack_index: PackIndex) -> None:
    assert pack_index.claim(["a", "b", "c"], "one 1", 2) == ["a", "b"]
    assert pack_index.claim(["a", "b", "c"], "two 1", 5) == ["c"]
    pack_index.release(["a"], "two 1")
    assert pack_index.claim(["a"], "two 1", 5) == []
    pack_index.release(["a"], "one 1")
    assert pack_index.claim(["a"], "two 1", 5) == ["a"]
    assert pack_index.claim(["b"], "one 2", 5) == ["b"]
    assert pack_index.claim(["b"], "one 1", 5) == []


def test_every_key_in_redis_has_a_ttl(
    job_of: Callable[..., Job], store: Store, redis_client: Redis
) -> None:
    job_of().cache(Encoder(store))
    keys = list(redis_client.scan_iter("training:*"))
    assert [key for key in keys if redis_client.ttl(key) < 0] == []


def test_a_lost_index_is_rebuilt_from_the_packs(
    job_of: Callable[..., Job], store: Store, redis_client: Redis
) -> None:
    job_of().cache(Encoder(store))
    for key in redis_client.scan_iter("training:cache:*"):
        redis_client.delete(key)
    again = Encoder(store)
    assert job_of().cache(again).startswith("0 images and 0 captions")


def test_only_damaged_and_lost_packs_are_encoded_again(
    job_of: Callable[..., Job], store: Store
) -> None:
    job = job_of()
    job.cache(Encoder(store))
    damaged, lost, sound = store.keys("cache")[:3]
    store.put(damaged, store.get(damaged)[:-1] + b"?")
    store.delete([lost])
    dropped = drop_damaged(job.pack_index, store, [damaged, lost, sound])
    assert sorted(dropped) == sorted([damaged, lost])
    again = Encoder(store)
    job_of().cache(again)
    assert 0 < len(again.encoded) <= 16


def test_a_removed_pack_is_encoded_again(job_of: Callable[..., Job], store: Store) -> None:
    job_of().cache(Encoder(store))
    store.delete(store.keys("cache")[:1])
    again = Encoder(store)
    job_of().cache(again)
    assert 0 < len(again.encoded) <= 8


def test_missing_entries_reroute_a_cpu_worker_to_the_gpu_queue(
    job_of: Callable[..., Job], store: Store
) -> None:
    job_of(10).cache(Encoder(store))
    cpu = Delivery(CPU_QUEUE, tag="t")
    without_gpu = JobArtifacts(cache_queue=CPU_QUEUE)
    whole, lacking = job_of(10, artifacts=without_gpu), job_of(11, artifacts=without_gpu)
    assert whole.cache(Encoder(store), cpu).startswith("0 images")
    moved = lacking.run_cache(Encoder(store), cpu)
    assert isinstance(moved, Rerouted)
    assert moved.queue == "gpu.40gb"
    assert lacking.state.get(lacking.id).pending_queue == "gpu.40gb"
    assert lacking.cache(Encoder(store)).startswith("1 images")


def test_is_cached_needs_no_encoders(
    job_of: Callable[..., Job], store: Store, document: dict[str, Any]
) -> None:
    job = job_of(10)
    config, worker = parse_job(document).training, job.worker(Encoder(store))
    assert not is_cached(worker, config, dataset(10))
    job.cache(Encoder(store))
    assert is_cached(worker, config, dataset(10))
    assert not is_cached(worker, config, dataset(11))
    Path(document["training"]["model"], "weights").write_bytes(b"others")
    assert not is_cached(worker, config, dataset(10))
