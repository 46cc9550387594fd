"""Metrics and traces of a working fleet."""

import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from tasks.metrics import METRICS
from tasks.tracing.spans import span_id
from tests.integration.fleets import PATIENCE_S, Fleet
from tests.otlp import Receiver
from tests.waiting import wait_until

Samples = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def scrape(fleet: Fleet) -> Callable[[], Samples]:
    """Return the samples of a scrape, by name and sorted values of labels."""
    url = fleet.metrics_url
    assert fleet.log().count(f"metrics: {url}") == 1

    def read() -> Samples:
        with urllib.request.urlopen(url, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        assert {family.name for family in families} == {
            metric.name.removesuffix("_total") for metric in METRICS
        }
        return {
            (sample.name.removeprefix("training_"), tuple(sorted(sample.labels.values()))): (
                sample.value
            )
            for family in families
            for sample in family.samples
        }

    return read


def published(fleet: Fleet, job: dict[str, Any]) -> str:
    ran = fleet.submit(job, "--watch")
    assert ran.code == 0, f"{ran}\n{fleet.log()}"
    job_id: str = ran.documents[-1]["job_id"]
    return job_id


def test_a_scrape_has_every_metric_and_counts_a_job(
    fleet: Fleet, scrape: Callable[[], Samples], job: dict[str, Any], images: Path
) -> None:
    (images / "03.txt").write_text("a caption of the test of metrics", "utf-8")
    before = scrape()
    published(fleet, job)
    between = scrape()

    def grown(new: Samples, old: Samples, name: str, *labels: str) -> float:
        key = (name, tuple(sorted(labels)))
        return new[key] - old.get(key, 0)

    for name, labels, by in (
        ("jobs_total", ("FLUX_LORA", "succeeded"), 1),
        ("stage_ends_total", ("train", "done"), 1),
        ("stage_seconds_count", ("train", "FLUX_LORA", "40gb"), 1),
        ("steps_total", ("FLUX_LORA", "40gb"), 12),
        ("jobs_total", ("FLUX_LORA", "failed"), 0),
        ("stage_takeovers_total", ("train",), 0),
    ):
        assert grown(between, before, name, *labels) == by, name
    assert grown(between, before, "cache_entries_total", "text", "miss") >= 1
    assert grown(between, before, "published_bytes_total") > 1000
    assert between["workers", ("40gb", "idle")] == 1
    assert between["queue_workers", ("gpu.80gb",)] == 0
    assert between["broker_up", ()] == between["broker_noeviction", ()] == 1

    published(fleet, job)
    after = scrape()
    wanted = grown(after, between, "cache_entries_total", "text", "hit")
    assert wanted > 1
    assert grown(after, between, "cache_entries_total", "text", "miss") == 0
    assert grown(after, between, "stage_seconds_count", "cache", "FLUX_LORA", "cpu") == 1


def test_a_trace_has_the_stages_and_the_trainers_phases(
    fleet: Fleet, job: dict[str, Any], images: Path, traces: Receiver
) -> None:
    (images / "04.txt").write_text("a caption of the test of traces", "utf-8")
    job_id = published(fleet, job)
    trace_id = int(fleet.status(job_id)["trace_id"], 16)
    stages = {"prepare", "cache", "train", "publish"}
    wait_until(
        lambda: {*stages, "job"} <= {span.name for span in traces.trace(trace_id)},
        timeout_s=PATIENCE_S,
        description="the spans of all workers have come",
        detail=fleet.log,
    )
    spans = traces.trace(trace_id)
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    [root] = [span for span in spans if not span.parent_span_id]
    assert root.name == "job"
    assert int.from_bytes(root.span_id) == span_id(job_id)

    def below(parent: Span) -> dict[str, list[Span]]:
        found: dict[str, list[Span]] = {}
        for span in spans:
            if span.parent_span_id == parent.span_id:
                found.setdefault(span.name, []).append(span)
        return found

    under_root = below(root)
    assert set(under_root) == stages | {f"{stage} waits" for stage in stages}
    assert set(below(under_root["cache"][0])) == {"load", "encode"}
    [train] = under_root["train"]
    work = below(train)
    assert {name: len(of) for name, of in work.items()} == {
        "load": 1,
        "steps": 3,
        "checkpoint": 3,
        "export": 3,
    }
    last = {attribute.key: attribute.value.int_value for attribute in work["steps"][-1].attributes}
    assert last == {"training.first_step": 9, "training.step": 12}
    for span in (span for of in work.values() for span in of):
        assert train.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= train.end_time_unix_nano
    # The workers of the CPU queue and of the 40 GB GPU.
    assert len(traces.workers) >= 2
    text = str(spans)
    assert "caption" not in text
    assert str(images) not in text
