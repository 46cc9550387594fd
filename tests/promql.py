"""What the repository's PromQL asks for: every expression of rules and dashboards, taken apart."""

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
# As Grafana would put them in.
_VARIABLES = {"$__rate_interval": "5m", "$queue": "cpu"}


@dataclass(frozen=True)
class Asked:
    """A metric that an expression reads, and the labels that it names of it."""

    metric: str
    labels: frozenset[str]


def rules() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every rule, with its file."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                yield path, rule


def panels() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every panel but the rows, with its file."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            if panel["type"] != "row":
                yield path, panel


def expressions() -> Iterator[str]:
    """Every expression of rules and dashboards."""
    for _, rule in rules():
        yield rule["expr"]
    for _, panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in _VARIABLES.items():
                expression = expression.replace(name, value)
            yield expression


def asked(expression: str) -> set[Asked]:
    """What an expression reads.

    Raises:
        ValueError: It is no PromQL.
    """
    return _asked(promql_parser.parse(expression))


def _asked(node: promql_parser.Expr) -> set[Asked]:
    match node:
        case promql_parser.VectorSelector():
            labels = frozenset(it.name for it in node.matchers.matchers)
            return {Asked(str(node.name), labels)}
        case promql_parser.MatrixSelector():
            return _asked(node.vector_selector)
        case promql_parser.AggregateExpr():
            labels = frozenset(node.modifier.labels if node.modifier else ())
            return _with(labels, _asked(node.expr))
        case promql_parser.BinaryExpr():
            matching = node.modifier.matching if node.modifier else None
            labels = frozenset(matching.labels if matching else ())
            return _with(labels, _asked(node.lhs) | _asked(node.rhs))
        case promql_parser.Call():
            return {it for argument in node.args for it in _asked(argument)}
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            return _asked(node.expr)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            return set()
    raise AssertionError(f"{type(node).__name__} is not looked into")


def _with(labels: frozenset[str], found: set[Asked]) -> set[Asked]:
    """The labels of an aggregation or a matching are asked of all below it."""
    return {Asked(it.metric, it.labels | labels) for it in found}
