"""A cache stage in a separate process that is killed repeatedly."""

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from redis import Redis

from tasks.cache.index import PackIndex
from tasks.cache.packs import verify_pack
from tasks.cache.plan import CacheIndex
from tasks.data.read_policy import ReadPolicy
from tasks.dataset import Sample, dataset_of
from tasks.events import CacheDone, EncoderDigests, Event, TrainDone
from tasks.stages.cache import cache
from tasks.stages.runner import Delivery, run_stage
from tasks.stages.stage_context import StageResult
from tasks.stages.submit import submit
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.stages.worker_context import WorkerContext
from tasks.state.artifacts import JobArtifacts
from tasks.state.connection import connect
from tasks.state.job_store import JobStore
from tasks.store import PACKS, Store, cache_index_key, dataset_key
from tests.tasks.cache.pack_files import put_pack

ENCODERS = EncoderDigests(text="t" * 64, vae="v" * 64)
BATCH = 4
KILLS = 20


class LoggingEncoder:
    """A ``Trainer`` that logs each batch before it stores its pack."""

    def __init__(self, store: Store, log: Path) -> None:
        self._store, self._log = store, log

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        if request.encoders is None:
            return CacheDone(encoders=ENCODERS)
        left = list(request.cache_entries)
        while left:
            batch, left = left[:BATCH], left[BATCH:]
            stop_requested()
            with self._log.open("a") as log:
                log.write(json.dumps(batch) + "\n")
            time.sleep(0.01)
            on_event(put_pack(self._store, "latents", batch, size=4096))
        return CacheDone()

    def close(self) -> None:
        """It keeps nothing."""


def worker_of(broker_url: str, folder: Path) -> WorkerContext:
    client, store = connect(broker_url), Store((folder / "store").as_uri())
    return WorkerContext(
        state=JobStore(client, timedelta(hours=1)),
        pack_index=PackIndex(client, timedelta(hours=1), timedelta(seconds=1)),
        store=store,
        trainer=LoggingEncoder(store, folder / "encoded"),
        read_policy=ReadPolicy(),
        downloads_dir=folder / "downloads",
        scratch_dir=folder / "scratch",
        name="gpu@here",
        device="cpu",
    )


def run_cache(broker_url: str, folder: Path, job_id: str) -> None:
    """One start of the job's cache stage, as a message that the broker gives again."""
    delivery = Delivery(queue="gpu.40gb", tag="t")
    worker = worker_of(broker_url, folder)
    # No more starts than there may be are spent on kills.
    worker.state._redis.hset(f"training:job:{job_id}", "starts", "0")
    run_stage("cache", cache, job_id, delivery, worker, lambda: False)


@pytest.mark.timeout(180)
def test_kills_damage_no_pack_and_repeat_only_batches_in_flight(
    redis_client: Redis, broker_url: str, tmp_path: Path, job_document: dict[str, Any]
) -> None:
    (tmp_path / "model").mkdir()
    job_document["training"] |= {"cache_vae_outputs": True, "cache_text_encoder_outputs": True}
    worker = worker_of(broker_url, tmp_path)
    job_id = submit(job_document, worker.state, "result").job_id
    dataset = dataset_of(
        Sample(image=f"{n:04}", width=512, height=512, caption=f"image {n}", source=f"{n}.png")
        for n in range(600)
    )
    key = dataset_key(dataset.digest)
    worker.store.put(key, dataset.model_dump_json().encode())
    prepared = Delivery(queue="cpu", tag="t")
    run_stage(
        "prepare",
        lambda _: StageResult("left", JobArtifacts(dataset=key)),
        job_id,
        prepared,
        worker,
        lambda: False,
    )
    draw, log, killed = Random(0), tmp_path / "encoded", 0
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    while killed < KILLS:
        child = processes.Process(target=run_cache, args=(broker_url, tmp_path, job_id))
        child.start()
        before = log.stat().st_size if log.exists() else 0
        while child.is_alive() and (not log.exists() or log.stat().st_size == before):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        killed += 1
    run_cache(broker_url, tmp_path, job_id)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    encoded = Counter(digest for batch in lines for digest in batch)
    assert killed == KILLS
    assert len(encoded) == 1201
    assert encoded.total() - len(encoded) <= KILLS * BATCH
    for pack in worker.store.keys(PACKS):
        verify_pack(worker.store, pack)
    index = CacheIndex.model_validate_json(worker.store.get(cache_index_key(job_id)))
    assert set(index.packs) == set(encoded)
