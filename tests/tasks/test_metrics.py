import re
from pathlib import Path
from typing import Any

import pytest

from tasks.metrics import METRICS, STAGE_ENDS, STAGE_SECONDS, STEPS, Metric
from tests.promql import DASHBOARDS, Asked, asked, expressions, panels, rules
from tests.worker.cli.test_cli import COMMANDS

DOCS = Path(__file__).parents[2] / "docs"
RUN_BOOK = DOCS / "runbook"
# What Prometheus tells of its own.
OTHERS = {"up": {"job", "instance"}}
COMMAND = re.compile(r"`training-worker ([a-z-]+(?: (?:list|replay|discard|prune|verify)\b)?)")


def told() -> dict[str, set[str]]:
    """Every name that may be asked for, with its labels."""
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
def test_names_and_units_are_as_prometheus_wants_them(metric: Metric) -> None:
    assert re.fullmatch(r"training_[a-z0-9_]+", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert metric.help.endswith(".")
    assert not re.search(r"_(ms|mib|kib|percent|minutes)", metric.name)


def test_no_two_metrics_share_a_name_or_a_family() -> None:
    families = [it.name.removesuffix("_total") for it in METRICS]
    assert len(set(families)) == len(families)


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_rules_and_dashboards_ask_for_what_there_is(expression: str) -> None:
    known = told()
    for it in asked(expression):
        assert it.metric in known, f"nobody tells {it.metric}"
        assert it.labels <= known[it.metric], f"{it.metric} has no {it.labels - known[it.metric]}"


def test_an_expression_is_looked_into_everywhere() -> None:
    left = 'sum by (a) (rate(x{b="1"}[5m])) > 0 unless on (c) -(y offset 1h)'
    found = asked(f"{left} or max_over_time(z[1h:1m])")
    assert found == {
        Asked("x", frozenset("abc")),
        Asked("y", frozenset("c")),
        Asked("z", frozenset()),
    }
    with pytest.raises(ValueError, match="unclosed"):
        asked("sum by (")


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    used = {it.metric for expression in expressions() for it in asked(expression)}
    ends = ("", "_bucket", "_sum", "_count")
    unused = [m.name for m in METRICS if not {f"{m.name}{end}" for end in ends} & used]
    assert unused == []


def test_every_panel_has_a_unit_a_description_and_a_place_of_its_own() -> None:
    taken: dict[tuple[str, int, int], str] = {}
    for path, panel in panels():
        where, title = panel["gridPos"], panel["title"]
        assert panel["description"].endswith("."), title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert where["x"] + where["w"] <= 24, title
        for x in range(where["x"], where["x"] + where["w"]):
            for y in range(where["y"], where["y"] + where["h"]):
                other = taken.setdefault((path.name, x, y), title)
                assert other == title, f"{title} lies over {other}"
    assert {path.name for path, _ in panels()} == {path.name for path in DASHBOARDS}


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for _, rule in rules() if "alert" in rule}


def test_every_alert_has_a_severity_and_a_page_in_the_run_book_and_every_page_an_alert() -> None:
    pages = {path.stem for path in RUN_BOOK.glob("*.md")} - {"README"}
    assert pages == set(alerts())
    index = (RUN_BOOK / "README.md").read_text("utf-8")
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["runbook_url"] == f"docs/runbook/{name}.md"
        assert f"[{name}]({name}.md) | {rule['labels']['severity']} |" in index


@pytest.mark.parametrize("page", sorted(RUN_BOOK.glob("*.md")), ids=lambda it: it.stem)
def test_the_run_book_names_commands_and_pages_that_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for command in COMMAND.findall(text):
        assert command in COMMANDS, f"there is no command {command}"
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (RUN_BOOK / link).exists()


def test_what_is_counted_is_told_with_zeros_for_what_was_not() -> None:
    counts = STAGE_ENDS.one("train", "done", by=3) | STEPS.one("FLUX_LORA", "40gb")
    told = dict(STAGE_ENDS.samples(counts))
    assert told["train", "done"] == 3
    assert told["train", "failed"] == 0
    assert len(told) == 4 * 6
    assert dict(STEPS.samples(counts)) == {("FLUX_LORA", "40gb"): 1}
    assert STEPS.one("FLUX_LORA", "40gb", by=0) == {}


def test_a_histogram_counts_each_value_in_all_buckets_that_hold_it() -> None:
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
