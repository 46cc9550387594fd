"""The metrics and labels that the PromQL of rules and dashboards reads."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
# Values for Grafana's variables.
_VARIABLES = {"$__rate_interval": "5m", "$queue": "cpu"}


@dataclass(frozen=True)
class MetricUse:
    """A metric that an expression reads, and the labels that it uses."""

    metric: str
    labels: frozenset[str]


def rules() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every rule, with its file."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                yield path, rule


def panels() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every panel except rows, with its file."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            if panel["type"] != "row":
                yield path, panel


def expressions() -> Iterator[str]:
    """Yield every expression of rules and dashboards."""
    for _, rule in rules():
        yield rule["expr"]
    for _, panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in _VARIABLES.items():
                expression = expression.replace(name, value)
            yield expression


def metrics_in(expression: str) -> set[MetricUse]:
    """Return what an expression reads.

    Raises:
        ValueError: It is not PromQL.
    """
    return _uses(promql_parser.parse(expression))


def _uses(node: promql_parser.Expr) -> set[MetricUse]:
    match node:
        case promql_parser.VectorSelector():
            labels = frozenset(matcher.name for matcher in node.matchers.matchers)
            return {MetricUse(str(node.name), labels)}
        case promql_parser.MatrixSelector():
            return _uses(node.vector_selector)
        case promql_parser.AggregateExpr():
            labels = frozenset(node.modifier.labels if node.modifier else ())
            return _with(labels, _uses(node.expr))
        case promql_parser.BinaryExpr():
            matching = node.modifier.matching if node.modifier else None
            labels = frozenset(matching.labels if matching else ())
            return _with(labels, _uses(node.lhs) | _uses(node.rhs))
        case promql_parser.Call():
            return {use for argument in node.args for use in _uses(argument)}
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            return _uses(node.expr)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            return set()
    raise AssertionError(f"{type(node).__name__} is not supported")


def _with(labels: frozenset[str], uses: set[MetricUse]) -> set[MetricUse]:
    """Add the labels of an aggregation or a matching to all metrics below it."""
    return {MetricUse(use.metric, use.labels | labels) for use in uses}
