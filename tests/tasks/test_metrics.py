import re
from pathlib import Path
from typing import Any

import pytest

from tasks.metrics import METRICS, STAGE_ENDS, STAGE_SECONDS, STEPS, Metric
from tests.promql import DASHBOARDS, MetricUse, expressions, metrics_in, panels, rules
from tests.worker.cli.test_cli import COMMANDS

DOCS = Path(__file__).parents[2] / "docs"
RUN_BOOK = DOCS / "runbook"
# Metrics of Prometheus itself.
OTHERS = {"up": {"job", "instance"}}
COMMAND = re.compile(r"`training-worker ([a-z-]+(?: (?:list|replay|discard|prune|verify)\b)?)")


def queryable() -> dict[str, set[str]]:
    """Return every name that a query may use, with its labels."""
    names = {name: set(labels) for name, labels in OTHERS.items()}
    for metric in METRICS:
        labels = set(metric.labels)
        if metric.kind == "histogram":
            names[f"{metric.name}_bucket"] = labels | {"le"}
            names[f"{metric.name}_sum"] = names[f"{metric.name}_count"] = labels
        else:
            names[metric.name] = labels
    for _, rule in rules():
        if "record" in rule:
            level = rule["record"].rpartition(":training")[0] if ":" in rule["record"] else ""
            names[rule["record"]] = set(level.split("_")) - {""}
    return names


@pytest.mark.parametrize("metric", METRICS, ids=lambda it: it.name)
def test_names_and_units_follow_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"training_[a-z0-9_]+", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert metric.help.endswith(".")
    assert not re.search(r"_(ms|mib|kib|percent|minutes)", metric.name)


def test_no_two_metrics_share_a_name_or_a_family() -> None:
    families = [it.name.removesuffix("_total") for it in METRICS]
    assert len(set(families)) == len(families)


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_rules_and_dashboards_query_known_metrics(expression: str) -> None:
    known = queryable()
    for use in metrics_in(expression):
        assert use.metric in known, f"no metric is named {use.metric}"
        unknown = use.labels - known[use.metric]
        assert not unknown, f"{use.metric} has no labels {unknown}"


def test_expressions_are_searched_at_every_depth() -> None:
    left = 'sum by (a) (rate(x{b="1"}[5m])) > 0 unless on (c) -(y offset 1h)'
    found = metrics_in(f"{left} or max_over_time(z[1h:1m])")
    assert found == {
        MetricUse("x", frozenset("abc")),
        MetricUse("y", frozenset("c")),
        MetricUse("z", frozenset()),
    }
    with pytest.raises(ValueError, match="unclosed"):
        metrics_in("sum by (")


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    used = {use.metric for expression in expressions() for use in metrics_in(expression)}
    ends = ("", "_bucket", "_sum", "_count")
    unused = [m.name for m in METRICS if not {f"{m.name}{end}" for end in ends} & used]
    assert unused == []


def test_panels_have_a_unit_and_a_description_and_do_not_overlap() -> None:
    taken: dict[tuple[str, int, int], str] = {}
    for path, panel in panels():
        where, title = panel["gridPos"], panel["title"]
        assert panel["description"].endswith("."), title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert where["x"] + where["w"] <= 24, title
        for x in range(where["x"], where["x"] + where["w"]):
            for y in range(where["y"], where["y"] + where["h"]):
                other = taken.setdefault((path.name, x, y), title)
                assert other == title, f"{title} overlaps {other}"
    assert {path.name for path, _ in panels()} == {path.name for path in DASHBOARDS}


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for _, rule in rules() if "alert" in rule}


def test_every_alert_has_a_severity_and_a_runbook_page() -> None:
    pages = {path.stem for path in RUN_BOOK.glob("*.md")} - {"README"}
    assert pages == set(alerts())
    index = (RUN_BOOK / "README.md").read_text("utf-8")
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["runbook_url"] == f"docs/runbook/{name}.md"
        assert f"[{name}]({name}.md) | {rule['labels']['severity']} |" in index


@pytest.mark.parametrize("page", sorted(RUN_BOOK.glob("*.md")), ids=lambda it: it.stem)
def test_the_runbook_names_existing_commands_and_pages(page: Path) -> None:
    text = page.read_text("utf-8")
    for command in COMMAND.findall(text):
        assert command in COMMANDS, f"there is no command {command}"
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (RUN_BOOK / link).exists()


def test_counters_are_zero_before_the_first_count() -> None:
    counts = STAGE_ENDS.one("train", "done", by=3) | STEPS.one("FLUX_LORA", "40gb")
    samples = dict(STAGE_ENDS.samples(counts))
    assert samples["train", "done"] == 3
    assert samples["train", "failed"] == 0
    assert len(samples) == 4 * 6
    assert dict(STEPS.samples(counts)) == {("FLUX_LORA", "40gb"): 1}
    assert STEPS.one("FLUX_LORA", "40gb", by=0) == {}


def test_histogram_buckets_are_cumulative() -> None:
    counts: dict[str, int] = {}
    for seconds in (0.1, 0.11, 3600, 1e6):
        for field, by in STAGE_SECONDS.observed(seconds, "train", "FLUX_LORA", "40gb").items():
            counts[field] = counts.get(field, 0) + by
    [(labels, buckets, total)] = STAGE_SECONDS.histograms(counts)
    assert labels == ("train", "FLUX_LORA", "40gb")
    held = dict(buckets)
    assert [held[it] for it in ("0.1", "0.5", "1800", "3600", "86400", "+Inf")] == [
        1,
        2,
        2,
        3,
        3,
        4,
    ]
    assert total == pytest.approx(1003600.21)
