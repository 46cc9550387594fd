import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from redis import Redis

from routing.classes import MemoryClass
from routing.estimate import MemoryModel
from routing.queues import Engine
from tasks import events
from tasks.cache.index import PackIndex
from tasks.contract import record_key
from tasks.data.read_policy import ReadPolicy
from tasks.dataset import dataset_of
from tasks.errors import (
    CancelledJobError,
    ErrorCode,
    JobError,
    StoreError,
    SupersededError,
    TrainerError,
    UnreadableFileError,
)
from tasks.metrics import STEPS
from tasks.stages import event_buffer, stage_context
from tasks.stages.cache import cache
from tasks.stages.outcomes import (
    Cancelled,
    Discarded,
    Done,
    Failed,
    Paused,
    Requeued,
    Rerouted,
    RetriedAfterDelay,
    StageOutcome,
)
from tasks.stages.publish import publish
from tasks.stages.runner import Delivery
from tasks.stages.runner import run_stage as run_any_stage
from tasks.stages.stage_context import StageBody, StageContext, StageResult
from tasks.stages.submit import submit
from tasks.stages.train import train
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.stages.worker_context import Backoff, TrainerInterrupted, WorkerContext, WorkerServices
from tasks.state.artifacts import JobArtifacts
from tasks.state.audit import Action, AuditLog, newest_actor
from tasks.state.control import JobControl
from tasks.state.counters import Counters
from tasks.state.job_store import DispatchOutcome, JobStore
from tasks.state.record import JobStatus, queue_of
from tasks.store import Store, dataset_key

CACHES = ("cache_text_encoder_outputs", "cache_vae_outputs")


class ScriptedTrainer:
    """A ``Trainer`` that reports its events, then answers or raises."""

    def __init__(self, *reported: events.Event, ends: BaseException | None = None) -> None:
        self.reported, self.ends = reported, ends
        self.requests: list[TrainerRequest] = []

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[events.Event], None],
        stop_requested: Callable[[], bool],
    ) -> events.CacheDone | events.TrainDone:
        self.requests.append(request)
        for event in self.reported:
            on_event(event)
        if self.ends is not None:
            raise self.ends
        answer = self.reported[-1]
        assert isinstance(answer, events.CacheDone | events.TrainDone)
        return answer

    def close(self) -> None:
        """It keeps nothing."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    """A job that caches nothing: its base model does not exist."""
    job_document["training"] |= dict.fromkeys(CACHES, False)
    return submit(job_document, state, "result").job_id


def worker_with(
    state: JobStore, store: Store, tmp_path: Path, trainer: ScriptedTrainer
) -> WorkerContext:
    cache = PackIndex(state._redis, timedelta(hours=1), timedelta(seconds=4))
    return WorkerContext(
        state=state,
        pack_index=cache,
        store=store,
        trainer=trainer,
        read_policy=ReadPolicy(),
        downloads_dir=tmp_path / "downloads",
        scratch_dir=tmp_path / "scratch",
        name="gpu@here",
        device="cpu",
    )


def outcome_of(
    stage: str,
    body: StageBody,
    job_id: str,
    worker: WorkerContext,
    delivery: Delivery | None = None,
    draining: bool = False,
) -> StageOutcome:
    if delivery is None:
        queue = queue_of(stage, worker.state.get(job_id).gpu_queue, None)
        delivery = Delivery(queue=queue, tag="first")
    return run_any_stage(stage, body, job_id, delivery, worker, lambda: draining)


def run_stage(
    stage: str,
    body: StageBody,
    job_id: str,
    worker: WorkerContext,
    delivery: Delivery | None = None,
) -> dict[str, Any]:
    outcome = outcome_of(stage, body, job_id, worker, delivery)
    assert isinstance(outcome, Done)
    return outcome.answer


def run_all(stages: tuple[str, ...], job_id: str, worker: WorkerContext) -> None:
    """Stages that do nothing, so that a later one may begin."""
    for stage in stages:
        run_stage(stage, leave(), job_id, worker)


def leave(**artifacts: Any) -> StageBody:
    return lambda context: StageResult("left", JobArtifacts(**artifacts))


def empty_dataset(store: Store) -> str:
    dataset = dataset_of([])
    store.put(dataset_key(dataset.digest), dataset.model_dump_json().encode())
    return dataset_key(dataset.digest)


def saved(store: Store, step: int) -> events.CheckpointSaved:
    state_key, weights_key = f"jobs/x/{step}/state", f"jobs/x/{step}/lamp.safetensors"
    store.put(state_key, b"state")
    data = b"weights %d" % step
    store.put(weights_key, data)
    size = len(data)
    weights = events.Artifact(name="lamp.safetensors", key=weights_key, sha256="0" * 64, size=size)
    return events.CheckpointSaved(step=step, state_key=state_key, weights=weights)


TRAINED = events.TrainDone(steps=20, final_loss=0.5)


def test_a_job_passes_all_stages_and_is_published(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    checkpoints = [saved(store, 10), saved(store, 20)]
    run_stage(
        "prepare",
        leave(dataset=empty_dataset(store)),
        job_id,
        worker_with(state, store, tmp_path, ScriptedTrainer()),
    )
    idle = ScriptedTrainer()
    run_stage("cache", cache, job_id, worker_with(state, store, tmp_path, idle))
    training = ScriptedTrainer(*checkpoints, TRAINED)
    run_stage("train", train, job_id, worker_with(state, store, tmp_path, training))
    result = run_stage(
        "publish", publish, job_id, worker_with(state, store, tmp_path, ScriptedTrainer())
    )

    assert idle.requests == []
    assert training.requests[0].cache_index_key == f"jobs/{job_id}/cache.json"
    assert training.requests[0].resume_state_key is None
    assert Path(result["published"]).read_bytes() == b"weights 20"
    assert result["files"] == [
        f"outputs/{job_id}/lamp.safetensors",
        f"outputs/{job_id}/lamp-step00000010.safetensors",
        f"outputs/{job_id}/lamp.json",
        f"outputs/{job_id}/lamp-step00000010.json",
    ]
    record = state.get(job_id)
    assert record.status == JobStatus.SUCCEEDED
    assert record.stages["train"].summary == "20 steps, loss 0.5000"


@pytest.mark.parametrize(("over", "warned"), [(1.0, False), (1.09, False), (1.2, True)])
def test_a_run_above_its_memory_estimate_warns(
    state: JobStore, store: Store, tmp_path: Path, job_id: str, over: float, warned: bool
) -> None:
    estimated = state.get(job_id).estimate.needed_bytes
    peak = int(over * estimated)
    trained = TRAINED.model_copy(update={"peak_memory_bytes": peak})
    refs = leave(dataset=empty_dataset(store))
    for stage, body, trainer in (
        ("prepare", refs, ScriptedTrainer()),
        ("cache", cache, ScriptedTrainer()),
        ("train", train, ScriptedTrainer(saved(store, 20), trained)),
        ("publish", publish, ScriptedTrainer()),
    ):
        run_stage(stage, body, job_id, worker_with(state, store, tmp_path, trainer))
    manifest = json.loads(store.get(f"outputs/{job_id}/manifest.json"))
    assert manifest["gpu_memory"] == {
        "estimated_bytes": estimated,
        "peak_bytes": peak,
        "checkpointed_blocks": 57,
    }
    notes = [event for _, event in state.events(job_id) if isinstance(event, events.Note)]
    assert any("GiB of GPU memory at its peak" in note.message for note in notes) == warned


def test_train_resumes_from_the_newest_checkpoint(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    refs = leave(dataset=empty_dataset(store))
    run_stage("prepare", refs, job_id, worker_with(state, store, tmp_path, ScriptedTrainer()))
    run_stage("cache", cache, job_id, worker_with(state, store, tmp_path, ScriptedTrainer()))
    interrupted = ScriptedTrainer(saved(store, 10), ends=TrainerInterrupted())
    outcome = outcome_of("train", train, job_id, worker_with(state, store, tmp_path, interrupted))
    assert isinstance(outcome, Requeued)
    assert state.get(job_id).pending_queue == "gpu.40gb"
    resumed = ScriptedTrainer(saved(store, 20), TRAINED)
    run_stage("train", train, job_id, worker_with(state, store, tmp_path, resumed))
    assert resumed.requests[0].resume_state_key == "jobs/x/10/state"
    assert state.get(job_id).stages["train"].summary == "20 steps, loss 0.5000, from step 10"


def test_old_checkpoints_are_pruned_after_a_newer_is_recorded(
    state: JobStore, store: Store, tmp_path: Path, job_document: dict[str, Any]
) -> None:
    changes = {"max_checkpoints": 1, **dict.fromkeys(CACHES, False)}
    job_document["training"] |= changes
    job_id = submit(job_document, state, "result").job_id
    refs = leave(dataset=empty_dataset(store))
    run_stage("prepare", refs, job_id, worker_with(state, store, tmp_path, ScriptedTrainer()))
    run_stage("cache", cache, job_id, worker_with(state, store, tmp_path, ScriptedTrainer()))
    trainer = ScriptedTrainer(saved(store, 10), saved(store, 20), TRAINED)
    run_stage("train", train, job_id, worker_with(state, store, tmp_path, trainer))
    assert store.keys("jobs/x") == ["jobs/x/20/lamp.safetensors", "jobs/x/20/state"]


def test_a_pause_changes_no_published_file(
    state: JobStore, store: Store, tmp_path: Path, job_document: dict[str, Any]
) -> None:
    job_document["training"] |= {"max_checkpoints": 2, **dict.fromkeys(CACHES, False)}
    job_id = submit(job_document, state, "result").job_id
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_stage("prepare", leave(dataset=empty_dataset(store)), job_id, worker)
    run_stage("cache", cache, job_id, worker)
    epochs = [saved(store, 10 * epoch).model_copy(update={"epoch": epoch}) for epoch in (1, 2, 3)]
    paused = saved(store, 27).model_copy(update={"epoch": 2, "scheduled": False})
    stopped = ScriptedTrainer(*epochs[:2], paused, ends=TrainerInterrupted())
    outcome_of("train", train, job_id, worker_with(state, store, tmp_path, stopped))
    kept = [checkpoint.step for checkpoint in state.get(job_id).artifacts.checkpoints]
    assert kept == [10, 20, 27]
    resumed = ScriptedTrainer(epochs[2], TRAINED)
    run_stage("train", train, job_id, worker_with(state, store, tmp_path, resumed))
    assert resumed.requests[0].resume_state_key == paused.state_key
    assert {key.split("/")[2] for key in store.keys("jobs/x")} == {"20", "30"}
    result = run_stage("publish", publish, job_id, worker)
    names = [key.rsplit("/", 1)[1] for key in result["files"]]
    assert names[:2] == ["lamp.safetensors", "lamp-000002.safetensors"]
    assert {name.partition(".")[0] for name in names} == {"lamp", "lamp-000002"}


def test_a_failing_stage_fails_the_job_with_its_message(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    def broken(context: StageContext) -> StageResult:
        raise JobError("cat.png is no image", ErrorCode.INVALID_DATASET)

    outcome = outcome_of(
        "prepare", broken, job_id, worker_with(state, store, tmp_path, ScriptedTrainer())
    )
    assert isinstance(outcome, Failed)
    assert "cat.png" in str(outcome.error)
    record = state.get(job_id)
    assert (record.status, record.error_code, record.error_stage) == (
        JobStatus.FAILED,
        ErrorCode.INVALID_DATASET,
        "prepare",
    )
    # A message after the end has the same error: its sender may wait for its result.
    outcome = outcome_of(
        "cache", cache, job_id, worker_with(state, store, tmp_path, ScriptedTrainer())
    )
    assert isinstance(outcome, Failed)
    assert "cat.png" in str(outcome.error)


def test_an_unexpected_error_is_reported_by_its_type(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    def broken(context: StageContext) -> StageResult:
        raise ZeroDivisionError("by nothing")

    outcome = outcome_of(
        "prepare", broken, job_id, worker_with(state, store, tmp_path, ScriptedTrainer())
    )
    assert isinstance(outcome, Failed)
    assert "ZeroDivisionError: by nothing" in str(outcome.error)
    assert state.get(job_id).error_code == ErrorCode.INTERNAL


def test_an_unavailable_broker_fails_no_job(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    def cut_off(context: StageContext) -> StageResult:
        raise redis.ConnectionError("away")

    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    outcome = outcome_of("prepare", cut_off, job_id, worker)
    assert isinstance(outcome, Requeued)
    assert not state.get(job_id).status.ended
    again = Delivery(queue="cpu", tag="second")
    run_stage("prepare", leave(dataset="d"), job_id, worker, again)
    assert state.get(job_id).pending_queue == "gpu.40gb"


class Away(JobStore):
    """The jobs of a broker that can be taken away."""

    away = False

    def write(self, *args: Any) -> None:
        self._check()
        super().write(*args)

    def requested_state(self, *args: Any) -> JobStatus:
        self._check()
        return super().requested_state(*args)

    def _check(self) -> None:
        if self.away:
            raise redis.ConnectionError("away")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect to an unavailable broker at once."""
    monkeypatch.setattr(event_buffer, "_RETRY_AFTER_S", 0.0)
    monkeypatch.setattr(stage_context, "_RECONNECT_EVERY_S", 0.0)


@pytest.mark.usefixtures("hasty")
def test_events_are_buffered_while_the_broker_is_unavailable(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    broker = Away(state._redis, timedelta(hours=1))
    pruned: list[int] = []

    def cut_off(context: StageContext) -> StageResult:
        broker.away = True
        for step in (1, 2, 3):
            context.emit(events.Progress(stage="train", done=step, total=3, unit="steps"))
        for step in (10, 20):
            then = partial(pruned.append, step)
            artifacts = JobArtifacts(checkpoints=(saved(store, step),))
            context.emit(saved(store, step), artifacts, then)
        assert not context.stop_requested()
        assert pruned == []
        broker.away = False
        assert not context.stop_requested()
        return StageResult("done")

    run_stage("prepare", cut_off, job_id, worker_with(broker, store, tmp_path, ScriptedTrainer()))
    assert pruned == [10, 20]
    assert state.get(job_id).artifacts == JobArtifacts(checkpoints=(saved(store, 20),))
    written = [event for _, event in state.events(job_id)]
    # The first one was sent and may have been written; it is not replaced any more.
    assert [event.done for event in written if isinstance(event, events.Progress)] == [1, 3]
    assert [event.step for event in written if isinstance(event, events.CheckpointSaved)] == [
        10,
        20,
    ]


@pytest.mark.usefixtures("hasty")
def test_a_superseded_start_drops_its_buffered_events(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    broker = Away(state._redis, timedelta(hours=1))

    def cut_off(context: StageContext) -> StageResult:
        broker.away = True
        context.emit(saved(store, 10), JobArtifacts(checkpoints=(saved(store, 10),)))
        state.begin(job_id, "prepare", worker="other", queue="cpu", tag="second")
        broker.away = False
        context.stop_requested()
        raise AssertionError("it continued")

    outcome = outcome_of(
        "prepare", cut_off, job_id, worker_with(broker, store, tmp_path, ScriptedTrainer())
    )
    assert isinstance(outcome, Discarded)
    assert state.get(job_id).artifacts == JobArtifacts()


class Larger(WorkerServices):
    """A fleet with a GPU of 80 GB."""

    def next_larger_class(self, engine: Engine) -> MemoryClass | None:
        return MemoryClass.GB80


def failing(error: JobError) -> StageBody:
    def body(context: StageContext) -> StageResult:
        raise error

    return body


def test_transient_errors_are_retried_until_the_limit(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    backoff = Backoff(max_retries=2, first_s=100.0)
    worker = replace(worker_with(state, store, tmp_path, ScriptedTrainer()), backoff=backoff)
    away = failing(StoreError("the store is unavailable"))
    for pause_s in (100, 200):
        outcome = outcome_of("prepare", away, job_id, worker)
        assert isinstance(outcome, RetriedAfterDelay)
        assert "the store is unavailable; retry" in outcome.reason
        record = state.get(job_id)
        assert record.due_at is not None
        waits_s = (record.due_at - record.updated_at).total_seconds()
        assert 0.5 * pause_s <= waits_s <= 1.5 * pause_s
    outcome = outcome_of("prepare", away, job_id, worker)
    assert isinstance(outcome, Failed)
    assert "the store is unavailable" in str(outcome.error)
    assert state.get(job_id).error_code == ErrorCode.STORE


def test_a_job_is_retried_twice_after_its_gpu_failed(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    backoff = Backoff(max_retries=9, first_s=1.0)
    worker = replace(worker_with(state, store, tmp_path, ScriptedTrainer()), backoff=backoff)
    failed = failing(TrainerError("the GPU failed", "prepare", ErrorCode.GPU_FAILED, True))
    outcomes = [outcome_of("prepare", failed, job_id, worker) for _ in range(3)]
    assert [type(outcome) for outcome in outcomes] == [RetriedAfterDelay] * 2 + [Failed]
    assert state.get(job_id).error_code == ErrorCode.GPU_FAILED


def test_a_permanent_error_is_not_retried(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    backoff = Backoff(max_retries=2, first_s=100.0)
    worker = replace(worker_with(state, store, tmp_path, ScriptedTrainer()), backoff=backoff)
    outcome = outcome_of("prepare", failing(JobError("no image")), job_id, worker)
    assert isinstance(outcome, Failed)
    assert "no image" in str(outcome.error)
    assert state.get(job_id).status == JobStatus.FAILED


def test_out_of_memory_escalates_to_the_next_class_once(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    full = TrainerError("the GPU's memory is full", "train", ErrorCode.OUT_OF_MEMORY)
    worker = replace(
        worker_with(state, store, tmp_path, ScriptedTrainer()),
        services=Larger(),
    )
    run_all(("prepare", "cache"), job_id, worker)
    moved = outcome_of("train", failing(full), job_id, worker)
    assert isinstance(moved, Rerouted)
    assert moved.queue == "gpu.80gb"
    record = state.get(job_id)
    assert (record.gpu_queue, record.pending_queue) == ("gpu.80gb", "gpu.80gb")
    assert "memory is full" in record.reason
    outcome = outcome_of("train", failing(full), job_id, worker)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, TrainerError)
    assert state.get(job_id).error_code == ErrorCode.OUT_OF_MEMORY


def test_auto_is_decided_at_submit_and_again_in_a_larger_class_only(
    state: JobStore, store: Store, tmp_path: Path, job_document: dict[str, Any]
) -> None:
    cached = dict.fromkeys(CACHES, False)
    job_document["training"] |= {**cached, "train_batch_size": 1, "gradient_checkpointing": "auto"}
    job_id = submit(job_document, state, "result").job_id
    chosen = state.get(job_id)
    assert 0 < chosen.checkpointed_blocks < 57
    # The same job for a process with another calibration.
    other = JobStore(state._redis, timedelta(hours=1), MemoryModel(flux_kept_copies=40))
    assert submit(job_document | {"id": job_id}, other, "result").outcome == DispatchOutcome.SENT
    assert other.get(job_id).checkpointed_blocks == chosen.checkpointed_blocks

    def blocks_of(ends: BaseException) -> bool | int | str:
        trainer = ScriptedTrainer(ends=ends)
        worker = replace(worker_with(state, store, tmp_path, trainer), services=Larger())
        assert isinstance(outcome_of("train", train, job_id, worker), Requeued | Rerouted)
        return trainer.requests[0].training.gradient_checkpointing

    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_stage("prepare", leave(dataset=empty_dataset(store)), job_id, worker)
    run_stage("cache", cache, job_id, worker)
    full = TrainerError("the GPU's memory is full", "train", ErrorCode.OUT_OF_MEMORY)
    assert blocks_of(TrainerInterrupted()) == chosen.checkpointed_blocks
    assert blocks_of(full) == chosen.checkpointed_blocks
    moved = state.get(job_id)
    assert moved.gpu_queue == "gpu.80gb"
    assert moved.checkpointed_blocks < chosen.checkpointed_blocks
    assert chosen.estimate.needed_gib < moved.estimate.needed_gib < MemoryClass.GB80.floor_gib
    assert blocks_of(TrainerInterrupted()) == moved.checkpointed_blocks


def test_out_of_memory_fails_without_a_larger_class(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    full = TrainerError("the GPU's memory is full", "train", ErrorCode.OUT_OF_MEMORY)
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_all(("prepare", "cache"), job_id, worker)
    outcome = outcome_of("train", failing(full), job_id, worker)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, TrainerError)


def test_a_paused_jobs_stage_is_released_and_its_message_discarded(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    control = JobControl(state._redis, timedelta(hours=1))

    def paused_meanwhile(context: StageContext) -> StageResult:
        assert control.pause(job_id) == JobStatus.PAUSING
        assert context.stop_requested()
        raise TrainerInterrupted

    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    outcome = outcome_of("prepare", paused_meanwhile, job_id, worker)
    assert isinstance(outcome, Paused)
    assert state.get(job_id).status == JobStatus.PAUSED
    outcome = outcome_of("prepare", leave(dataset="d"), job_id, worker)
    assert isinstance(outcome, Discarded)
    assert "paused" in outcome.reason
    assert control.resume(job_id)
    run_stage("prepare", leave(dataset="d"), job_id, worker)


class Audited(WorkerServices):
    """A fleet with an audit log."""

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def actor_of(self, action: Action, job_id: str) -> str | None:
        return newest_actor(self._redis, action, job_id)


@pytest.mark.parametrize(
    ("action", "ended"),
    [(Action.JOB_PAUSE, "paused by key alice"), (Action.JOB_CANCEL, "cancelled by key alice")],
)
def test_log_has_start_end_and_who_stopped_the_stage(
    state: JobStore,
    store: Store,
    tmp_path: Path,
    job_id: str,
    caplog: pytest.LogCaptureFixture,
    action: Action,
    ended: str,
) -> None:
    control = JobControl(state._redis, timedelta(hours=1))
    audit = AuditLog(state._redis, timedelta(hours=1))

    def stopped_meanwhile(context: StageContext) -> StageResult:
        audit.record("key bob", action, "another job")
        audit.record("key alice", action, job_id)
        (control.pause if action == Action.JOB_PAUSE else control.cancel)(job_id)
        assert context.stop_requested()
        raise TrainerInterrupted

    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    worker = replace(worker, services=Audited(state._redis))
    caplog.set_level("INFO", "tasks.stages.runner")
    outcome_of("prepare", stopped_meanwhile, job_id, worker)
    begins, why, ends = (it for it in caplog.records if it.name == "tasks.stages.runner")
    assert (begins.message, why.message) == ("prepare begins", "prepare stops as requested")
    assert re.fullmatch(rf"prepare ended after \d\.\d s: {ended}", ends.message)
    for record in (begins, why, ends):
        facts = {name: getattr(record, name) for name in ("tenant", "job", "stage")}
        assert facts == {"tenant": "default", "job": job_id, "stage": "prepare"}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StoreError("the store is unavailable", retryable=True), "retried: the store"),
        (TrainerError("it crashed", "prepare"), "failed: it crashed"),
    ],
)
def test_a_failed_or_retried_stage_is_one_warning(
    state: JobStore,
    store: Store,
    tmp_path: Path,
    job_id: str,
    caplog: pytest.LogCaptureFixture,
    error: JobError,
    text: str,
) -> None:
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    worker = replace(worker, backoff=Backoff(max_retries=2, first_s=1.0))
    outcome_of("prepare", failing(error), job_id, worker)
    [warning] = (it for it in caplog.records if it.levelname == "WARNING")
    assert re.match(rf"prepare ended after \d\.\d s: {text}", warning.message)


def test_cancel_with_save_publishes_the_last_checkpoint(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    control = JobControl(state._redis, timedelta(hours=1))
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    refs = leave(dataset=empty_dataset(store))
    run_stage("prepare", refs, job_id, worker)
    run_stage("cache", cache, job_id, worker)

    def cancelled_meanwhile(context: StageContext) -> StageResult:
        context.emit(saved(store, 10), JobArtifacts(checkpoints=(saved(store, 10),)))
        control.cancel(job_id, save=True)
        assert context.stop_requested()
        raise TrainerInterrupted

    run_stage("train", cancelled_meanwhile, job_id, worker)
    result = run_stage("publish", publish, job_id, worker)
    assert Path(result["published"]).read_bytes() == b"weights 10"
    record = state.get(job_id)
    assert record.status == JobStatus.CANCELLED
    assert record.result is not None
    assert control.in_flight() == []


def test_cancel_with_save_publishes_after_a_transient_error(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    control = JobControl(state._redis, timedelta(hours=1))
    backoff = Backoff(max_retries=2, first_s=100.0)
    worker = replace(worker_with(state, store, tmp_path, ScriptedTrainer()), backoff=backoff)
    run_stage("prepare", leave(dataset=empty_dataset(store)), job_id, worker)
    run_stage("cache", cache, job_id, worker)

    def cancelled_meanwhile(context: StageContext) -> StageResult:
        context.emit(saved(store, 10), JobArtifacts(checkpoints=(saved(store, 10),)))
        control.cancel(job_id, save=True)
        raise StoreError("the store is unavailable")

    run_stage("train", cancelled_meanwhile, job_id, worker)
    result = run_stage("publish", publish, job_id, worker)
    assert Path(result["published"]).read_bytes() == b"weights 10"
    assert state.get(job_id).status == JobStatus.CANCELLED


def test_cancel_ends_a_running_stage_as_cancelled(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    def cancelled_meanwhile(context: StageContext) -> StageResult:
        assert not context.stop_requested()
        JobControl(state._redis, timedelta(hours=1)).cancel(context.job_id)
        assert context.stop_requested()
        raise TrainerInterrupted

    outcome = outcome_of(
        "prepare",
        cancelled_meanwhile,
        job_id,
        worker_with(state, store, tmp_path, ScriptedTrainer()),
    )
    assert isinstance(outcome, Cancelled)
    assert isinstance(outcome.error, CancelledJobError)
    assert state.get(job_id).status == JobStatus.CANCELLED


def test_a_superseded_start_changes_nothing(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    def taken_over(context: StageContext) -> StageResult:
        state.begin(job_id, "prepare", worker="other", queue="cpu", tag="second")
        return StageResult("too late", JobArtifacts(dataset="stale"))

    outcome = outcome_of(
        "prepare", taken_over, job_id, worker_with(state, store, tmp_path, ScriptedTrainer())
    )
    assert isinstance(outcome, Discarded)
    record = state.get(job_id)
    assert record.artifacts == JobArtifacts()
    assert record.stages["prepare"].worker == "other"


def test_publish_is_idempotent(state: JobStore, store: Store, tmp_path: Path, job_id: str) -> None:
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    refs = leave(dataset="d", checkpoints=(saved(store, 20),), trained=TRAINED)
    run_stage("prepare", refs, job_id, worker)
    run_all(("cache", "train"), job_id, worker)

    def publish_and_die(context: StageContext) -> StageResult:
        publish(context)
        raise SystemExit

    with pytest.raises(SystemExit):
        run_stage("publish", publish_and_die, job_id, worker)
    first = store.get(f"outputs/{job_id}/manifest.json")
    run_stage("publish", publish, job_id, worker, Delivery(queue="cpu", tag="second"))
    assert store.get(f"outputs/{job_id}/manifest.json") == first
    assert state.get(job_id).status == JobStatus.SUCCEEDED


def test_only_the_newest_start_publishes_after_a_failover(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    refs = leave(dataset="d", checkpoints=(saved(store, 20),), trained=TRAINED)
    run_stage("prepare", refs, job_id, worker)
    run_all(("cache", "train"), job_id, worker)
    before = cast("Any", state._redis.dump(record_key(job_id)))
    attempts: list[int] = []
    answers: list[dict[str, Any]] = []

    def fail_over_and_publish(context: StageContext) -> StageResult:
        old = context
        attempts.append(old.token.attempt)
        # The replica that takes over has never got this start.
        state._redis.restore(record_key(job_id), 0, before, replace=True)

        def publish_elsewhere(context: StageContext) -> StageResult:
            attempts.append(context.token.attempt)
            with pytest.raises(SupersededError):
                publish(old)
            assert not store.exists(f"outputs/{job_id}/lamp.safetensors")
            return publish(context)

        other = Delivery(queue="cpu", tag="second")
        answers.append(run_stage("publish", publish_elsewhere, job_id, worker, other))
        old.check_not_cancelled()
        return publish(old)

    outcome = outcome_of("publish", fail_over_and_publish, job_id, worker)
    assert isinstance(outcome, Discarded)
    assert attempts == [4, 4]
    assert state.get(job_id).status == JobStatus.SUCCEEDED
    assert Path(answers[0]["published"]).read_bytes() == b"weights 20"


def test_a_damaged_checkpoint_is_dropped(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_stage("prepare", leave(dataset=empty_dataset(store)), job_id, worker)
    run_stage("cache", cache, job_id, worker)
    interrupted = ScriptedTrainer(saved(store, 10), saved(store, 20), ends=TrainerInterrupted())
    outcome = outcome_of("train", train, job_id, replace(worker, trainer=interrupted))
    assert isinstance(outcome, Requeued)

    class Reader(ScriptedTrainer):
        def run(self, request: TrainerRequest, **calls: Any) -> events.CacheDone | events.TrainDone:
            if request.resume_state_key == "jobs/x/20/state":
                self.requests.append(request)
                raise UnreadableFileError("it is damaged", "train", "jobs/x/20/state")
            return super().run(request, **calls)

    reader = Reader(saved(store, 20), TRAINED)
    run_stage("train", train, job_id, replace(worker, trainer=reader))
    assert [request.resume_state_key for request in reader.requests] == [
        "jobs/x/20/state",
        "jobs/x/10/state",
    ]
    assert (state.get(job_id).stages["train"].summary or "").endswith("from step 10")


class ForgetfulRedis:
    """A client that loses the first reply to each script."""

    def __init__(self, client: Redis) -> None:
        self._client, self._lost = client, Counter[tuple[object, ...]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def evalsha(self, *call: Any) -> object:
        reply = self._client.evalsha(*call)
        self._lost[call] += 1
        if self._lost[call] == 1:
            raise redis.TimeoutError("the reply is lost")
        return reply


def counts(state: JobStore) -> Counter[str]:
    """Return the counters that do not depend on how long a test took."""
    counters = Counters(state._redis, timedelta(hours=1)).read()
    return Counter({name: count for name, count in counters.items() if "seconds" not in name})


@pytest.mark.usefixtures("hasty")
def test_lost_replies_change_nothing(
    state: JobStore, store: Store, tmp_path: Path, job_id: str, job_document: dict[str, Any]
) -> None:
    def work(context: StageContext) -> StageResult:
        for step in (10, 20):
            context.telemetry.count(STEPS.one("FLUX_LORA", "none", by=10))
            context.emit(saved(store, step), JobArtifacts(checkpoints=(saved(store, step),)))
        if context.stage == "prepare" and context.record.retries == 0:
            raise StoreError("the store is unavailable")
        result = {"published": "/lamp"} if context.stage == "publish" else None
        return StageResult("done", result=result)

    other = submit({**job_document, "id": "other"}, state, "result").job_id
    forgetful = JobStore(cast("Redis", ForgetfulRedis(state._redis)), timedelta(hours=1))
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    worker = replace(worker, backoff=Backoff(max_retries=2, first_s=0.0))
    reports: list[list[tuple[str, object]]] = []
    counted: list[Counter[str]] = []
    for each, jobs in ((other, state), (job_id, forgetful)):
        before = counts(state)
        for stage in ("prepare", "prepare", "cache", "train", "publish"):
            outcome_of(stage, work, each, replace(worker, state=jobs))
            JobControl(state._redis, timedelta(hours=1)).take_due()
        counted.append(counts(state) - before)
        emitted = [event for _, event in state.events(each)]
        reports.append([(event.kind, getattr(event, "attempt", 0)) for event in emitted])
    assert reports[0] == reports[1]
    assert counted[0] == counted[1]
    assert state.get(job_id).attempt == state.get(other).attempt == 5


def test_a_failed_jobs_lost_reply_keeps_its_error(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    forgetful = JobStore(cast("Redis", ForgetfulRedis(state._redis)), timedelta(hours=1))
    worker = worker_with(forgetful, store, tmp_path, ScriptedTrainer())
    outcome = outcome_of("prepare", failing(JobError("no image")), job_id, worker)
    assert isinstance(outcome, Failed)


@pytest.mark.usefixtures("hasty")
def test_the_buffer_of_a_long_outage_is_bounded(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    broker = Away(state._redis, timedelta(hours=1))

    def cut_off(context: StageContext) -> StageResult:
        broker.away = True
        note = events.Note(level="info", message="a note")
        for step in range(5000):
            context.emit(events.Progress(stage="train", done=step, total=5000, unit="steps"))
            if step % 10 == 0:
                context.emit(saved(store, step), JobArtifacts(checkpoints=(saved(store, step),)))
            context.emit(note)
        broker.away = False
        return StageResult("done")

    run_stage("prepare", cut_off, job_id, worker_with(broker, store, tmp_path, ScriptedTrainer()))
    assert state.get(job_id).artifacts.checkpoints == (saved(store, 4990),)
    written = Counter(event.kind for _, event in state.events(job_id))
    assert written.total() <= 2010


def test_an_early_message_starts_no_stage(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    for stage in ("cache", "train", "publish"):
        outcome = outcome_of(stage, leave(), job_id, worker)
        assert isinstance(outcome, Discarded)
        assert "duplicate" in outcome.reason
    run_stage("prepare", leave(dataset="d"), job_id, worker)
    outcome = outcome_of("publish", leave(), job_id, worker)
    assert isinstance(outcome, Discarded)
    assert "duplicate" in outcome.reason
    assert state.get(job_id).pending_queue == "gpu.40gb"


@dataclass(frozen=True)
class Of(WorkerServices):
    """A worker with a GPU of this class, or none."""

    memory_class: MemoryClass | None

    def has_class(self, needed: MemoryClass) -> bool:
        return self.memory_class is not None and self.memory_class >= needed


@pytest.mark.parametrize("memory_class", [None, MemoryClass.GB24])
@pytest.mark.parametrize("queue", ["gpu.40gb", "gpu.24gb"], ids=["message", "record"])
def test_no_stage_runs_on_a_gpu_below_its_class(
    state: JobStore,
    store: Store,
    tmp_path: Path,
    job_id: str,
    queue: str,
    memory_class: MemoryClass | None,
) -> None:
    """Neither by a queue that its worker should not serve, nor by a wrong record."""
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_all(("prepare",), job_id, worker)
    state._redis.hset(f"training:job:{job_id}", "gpu_queue", queue)
    small = replace(worker, services=Of(memory_class))
    bodies: list[StageContext] = []

    def body(context: StageContext) -> StageResult:
        bodies.append(context)
        return StageResult("left")

    for stage in ("cache", "train"):
        moved = outcome_of(stage, body, job_id, small)
        assert isinstance(moved, Rerouted)
        assert moved.queue == "gpu.40gb"
        assert bodies == []
        assert state.get(job_id).gpu_queue == "gpu.40gb"
        assert state._redis.hget(f"training:job:{job_id}", "starts") == "0"
        large = replace(worker, services=Of(MemoryClass.GB40))
        assert isinstance(outcome_of(stage, leave(), job_id, large), Done)


def test_a_message_in_a_foreign_queue_is_rerouted(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_all(("prepare", "cache"), job_id, worker)
    for queue in ("cpu", "gpu.8gb", "gpu.80gb"):
        moved = outcome_of("train", leave(), job_id, worker, Delivery(queue, "tag"))
        assert isinstance(moved, Rerouted)
        assert moved.queue == "gpu.40gb"
    assert state.get(job_id).pending_queue == "gpu.40gb"
    assert state.get(job_id).retries == 0
    run_all(("train",), job_id, worker)


def test_only_stages_that_use_the_gpu_cost_gpu_time(
    state: JobStore, store: Store, tmp_path: Path, job_id: str
) -> None:
    def run(stage: str, body: StageBody, *answers: Any) -> dict[str, float]:
        worker = worker_with(state, store, tmp_path, ScriptedTrainer(*answers))
        run_stage(stage, body, job_id, worker, Delivery("gpu.40gb", f"tag of {stage}"))
        return state.get(job_id).gpu_use.seconds

    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_stage("prepare", leave(dataset=empty_dataset(store)), job_id, worker)
    assert run("cache", cache) == {}
    assert run("train", train, saved(store, 10), TRAINED)["40gb"] >= 0
