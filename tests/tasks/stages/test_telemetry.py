"""What stages count, and the traces that they make."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis

from routing.classes import MemoryClass
from tasks import events
from tasks.client import Client
from tasks.errors import ErrorCode, JobError, StoreError, TrainerError
from tasks.metrics import METRICS
from tasks.settings.settings import Settings
from tasks.stages.cache import cache
from tasks.stages.outcomes import (
    Cancelled,
    Failed,
    Requeued,
    Rerouted,
    RetriedAfterDelay,
)
from tasks.stages.publish import publish
from tasks.stages.stage_context import StageBody, StageContext, StageResult
from tasks.stages.submit import submit
from tasks.stages.train import train
from tasks.stages.worker_context import Backoff, TrainerInterrupted, WorkerContext
from tasks.state.control import JobControl
from tasks.state.counters import Counters
from tasks.state.job_store import JobStore, StartOutcome
from tasks.state.record import JobStatus
from tasks.store import Store, output_prefix
from tasks.tracing.export import JobIds
from tasks.tracing.spans import Tracing
from tests.tasks.stages.test_runner import (
    CACHES,
    TRAINED,
    Larger,
    ScriptedTrainer,
    empty_dataset,
    leave,
    outcome_of,
    run_stage,
    saved,
    worker_with,
)

HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    job_document["training"] |= dict.fromkeys(CACHES, False)
    return submit(job_document, state, "result").job_id


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(id_generator=JobIds(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider.get_tracer("tests"))


@pytest.fixture
def worker(
    state: JobStore, store: Store, tmp_path: Path, tracing: Tracing
) -> Callable[..., WorkerContext]:
    def make(*emitted: events.Event, ends: BaseException | None = None) -> WorkerContext:
        made = worker_with(state, store, tmp_path, ScriptedTrainer(*emitted, ends=ends))
        return replace(
            made,
            memory_class=MemoryClass.GB40,
            tracing=tracing,
            backoff=Backoff(max_retries=1, first_s=60),
        )

    return make


@pytest.fixture
def counted(redis_client: Redis) -> Callable[[], dict[str, int]]:
    """What was counted, without the prefix of the names, and without seconds."""

    def read() -> dict[str, int]:
        counts = Counters(redis_client, HOUR).read()
        names = {field.split("|")[0].removesuffix("_sum_ms") for field in counts}
        assert names <= {metric.name for metric in METRICS}
        return {
            field.removeprefix("training_"): value
            for field, value in counts.items()
            if "_seconds" not in field
        }

    return read


def raising(error: Exception) -> StageBody:
    def body(context: StageContext) -> StageResult:
        raise error

    return body


def step(done: int) -> events.Progress:
    return events.Progress(stage="train", done=done, total=20, unit="steps")


def phase(name: events.PhaseName, at: int | None = None) -> events.TrainerPhase:
    return events.TrainerPhase(name=name, began_at=time.time(), seconds=0.0, step=at)


COLD = events.TrainerStarted(how="cold")
RESTART = events.TrainerStarted(how="restart")


def run_all(job_id: str, store: Store, worker: Callable[..., WorkerContext], *emitted: Any) -> None:
    bodies = {"prepare": leave(dataset=empty_dataset(store)), "cache": cache, "train": train}
    for stage, body in {**bodies, "publish": publish}.items():
        run_stage(stage, body, job_id, worker(*(emitted if stage == "train" else ())))


def test_successful_job_is_counted_with_steps_and_bytes(
    job_id: str,
    store: Store,
    worker: Callable[..., WorkerContext],
    counted: Callable[[], dict[str, int]],
    redis_client: Redis,
) -> None:
    # The trainer is started again from step 10 and makes two steps twice.
    steps = [step(4), step(10), saved(store, 10), step(12), RESTART, step(20), saved(store, 20)]
    run_all(job_id, store, worker, COLD, phase("load"), *steps, TRAINED)
    published = store.sizes(output_prefix(job_id, None))
    assert counted() == {
        "jobs_total|FLUX_LORA|succeeded": 1,
        **{
            f"stage_ends_total|{stage}|done": 1
            for stage in ("prepare", "cache", "train", "publish")
        },
        "trainer_starts_total|cold": 1,
        "trainer_starts_total|restart": 1,
        "steps_total|FLUX_LORA|40gb": 22,
        "published_bytes_total": sum(
            size for key, size in published.items() if not key.endswith("/manifest.json")
        ),
    }
    counts = Counters(redis_client, HOUR).read()
    assert counts["training_stage_seconds|train|FLUX_LORA|40gb|0.1"] == 1
    assert 0 < counts["training_wait_seconds_sum_ms|gpu.40gb"] < 60_000
    assert 0 < redis_client.ttl("training:counts") <= 3600


def test_failures_and_dead_letters_are_counted(
    job_id: str,
    state: JobStore,
    worker: Callable[..., WorkerContext],
    counted: Callable[[], dict[str, int]],
    job_document: dict[str, Any],
) -> None:
    outcome = outcome_of(
        "prepare", raising(JobError("x", ErrorCode.INVALID_MODEL)), job_id, worker()
    )
    assert isinstance(outcome, Failed)
    other = submit(job_document, state, "result").job_id
    outcome = outcome_of("prepare", raising(ZeroDivisionError()), other, worker())
    assert isinstance(outcome, Failed)
    found = counted()
    assert found["jobs_total|FLUX_LORA|failed"] == 2
    assert found["stage_ends_total|prepare|failed"] == 2
    assert found["stage_failures_total|prepare|invalid_model"] == 1
    assert found["stage_failures_total|prepare|internal"] == 1
    assert found["dead_letters_total"] == 1


def test_retry_cancel_and_release_are_counted(
    job_id: str,
    state: JobStore,
    worker: Callable[..., WorkerContext],
    counted: Callable[[], dict[str, int]],
    redis_client: Redis,
) -> None:
    control = JobControl(redis_client, HOUR)
    outcome = outcome_of("prepare", raising(StoreError("away")), job_id, worker())
    assert isinstance(outcome, RetriedAfterDelay)
    outcome = outcome_of("prepare", raising(TrainerInterrupted()), job_id, worker())
    assert isinstance(outcome, Requeued)

    def cancelled(context: StageContext) -> StageResult:
        control.cancel(job_id)
        raise TrainerInterrupted

    outcome = outcome_of("prepare", cancelled, job_id, worker())
    assert isinstance(outcome, Cancelled)
    assert counted() == {
        "stage_failures_total|prepare|store": 1,
        "stage_ends_total|prepare|retried": 1,
        "stage_ends_total|prepare|released": 1,
        "stage_ends_total|prepare|cancelled": 1,
        "jobs_total|FLUX_LORA|cancelled": 1,
    }


def test_cancelled_waiting_job_is_counted(
    job_id: str, counted: Callable[[], dict[str, int]], redis_client: Redis
) -> None:
    assert JobControl(redis_client, HOUR).cancel(job_id) == JobStatus.CANCELLED
    assert counted() == {"jobs_total|FLUX_LORA|cancelled": 1}


def test_out_of_memory_counts_as_failure_and_escalation(
    job_id: str,
    store: Store,
    worker: Callable[..., WorkerContext],
    counted: Callable[[], dict[str, int]],
) -> None:
    full = TrainerError("full", "train", ErrorCode.OUT_OF_MEMORY)
    larger = replace(worker(), services=Larger())
    outcome = outcome_of("prepare", raising(full), job_id, larger)
    assert isinstance(outcome, Rerouted)
    found = counted()
    assert found["stage_failures_total|prepare|out_of_memory"] == 1
    assert found["stage_ends_total|prepare|rerouted"] == 1
    assert found["oom_escalations_total|gpu.80gb"] == 1


def test_takeovers_and_requeues_are_counted(
    job_id: str,
    state: JobStore,
    counted: Callable[[], dict[str, int]],
    redis_client: Redis,
) -> None:
    for tag in ("first", "second"):
        outcome, token, *_ = state.begin(job_id, "prepare", worker="w", queue="cpu", tag=tag)
        assert outcome == StartOutcome.BEGUN
    assert JobControl(redis_client, HOUR).requeue(job_id, token.attempt, "prepare")
    assert counted() == {
        "stage_takeovers_total|prepare": 1,
        "requeues_total|prepare": 1,
    }


def by_name(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def own_ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def parent_ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.parent is not None
    return span.parent.trace_id, span.parent.span_id


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def ends(spans: Sequence[ReadableSpan]) -> list[tuple[str, str | None]]:
    return [(span.name, span.status.description) for span in spans]


def test_trace_holds_job_stages_and_trainers_work(
    job_id: str,
    store: Store,
    worker: Callable[..., WorkerContext],
    exporter: InMemorySpanExporter,
) -> None:
    save = [phase("checkpoint", 10), phase("export", 10), saved(store, 10)]
    rest = [step(10), step(19), saved(store, 20), TRAINED]
    run_all(job_id, store, worker, COLD, phase("load"), step(4), *save, *rest)
    spans = exporter.get_finished_spans()
    assert len({own_ids(span)[0] for span in spans}) == 1
    assert len({own_ids(span)[1] for span in spans}) == len(spans)
    [job] = by_name(spans, "job")
    assert job.parent is None
    assert job.attributes is not None
    assert job.attributes["training.job.status"] == "succeeded"
    began, ended = times(job)
    for stage in ("prepare", "cache", "train", "publish"):
        [span] = by_name(spans, stage)
        assert parent_ids(span) == own_ids(job)
        assert began <= times(span)[0] <= times(span)[1] <= ended
        [wait] = by_name(spans, f"{stage} waits")
        assert (parent_ids(wait), times(wait)[1]) == (own_ids(job), times(span)[0])
    [train] = by_name(spans, "train")
    below = [span for span in spans if span.parent and parent_ids(span) == own_ids(train)]
    steps = {"training.first_step": 1, "training.step": 10}
    assert [(span.name, dict(span.attributes or {})) for span in below] == [
        ("load", {}),
        ("steps", steps),
        ("checkpoint", {"training.step": 10}),
        ("export", {"training.step": 10}),
        ("steps", {"training.first_step": 11, "training.step": 19}),
    ]
    values = [value for span in spans for value in (span.attributes or {}).values()]
    assert not any("/" in str(value) for value in values)


def test_every_start_is_a_span_with_its_outcome_and_error_code(
    job_id: str,
    worker: Callable[..., WorkerContext],
    exporter: InMemorySpanExporter,
) -> None:
    outcome = outcome_of("prepare", raising(StoreError("/secret/path")), job_id, worker())
    assert isinstance(outcome, RetriedAfterDelay)
    outcome = outcome_of("prepare", raising(StoreError("/secret/path")), job_id, worker())
    assert isinstance(outcome, Failed)
    spans = exporter.get_finished_spans()
    starts = by_name(spans, "prepare")
    attributes = [span.attributes or {} for span in starts]
    assert [values["training.outcome"] for values in attributes] == ["retried", "failed"]
    assert [values["training.attempt"] for values in attributes] == [1, 2]
    assert ends(starts) == [("prepare", None), ("prepare", "store")]
    [job] = by_name(spans, "job")
    assert ends([job]) == [("job", "store")]
    assert job.attributes is not None
    assert job.attributes["training.job.status"] == "failed"
    assert {own_ids(span)[0] for span in starts} == {own_ids(job)[0]}
    assert "secret" not in "".join(span.to_json() for span in spans)


def test_job_with_too_many_starts_ends_its_trace(
    job_id: str,
    state: JobStore,
    worker: Callable[..., WorkerContext],
    exporter: InMemorySpanExporter,
) -> None:
    for number in range(5):
        state.begin(job_id, "prepare", worker="w", queue="cpu", tag=str(number))
    for _ in range(2):
        outcome = outcome_of("prepare", leave(), job_id, worker())
        assert isinstance(outcome, Failed)
        assert "5 times" in str(outcome.error)
    assert ends(exporter.get_finished_spans()) == [("job", "trainer_failed")]


def test_cancelling_a_waiting_job_ends_its_trace(
    job_id: str, broker_url: str, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    settings = Settings.model_validate({"broker_url": broker_url})
    assert (
        Client(settings, broker_url, tracing.tracer).cancel(job_id, "key a") == JobStatus.CANCELLED
    )
    assert ends(exporter.get_finished_spans()) == [("job", "cancelled")]
