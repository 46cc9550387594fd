"""A job's document: its limits, and its text as YAML or JSON.

A document may hold one value in many places: it can be far larger than its text.
"""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import yaml

from tasks.escaping import quoted, shortened

MAX_DOCUMENT_BYTES = 2**20
"""The maximum size of a job's document as JSON."""
MAX_VALUES = 20_000
"""The maximum number of its keys and values; each may be a problem to report."""
# No job is half as deep, and recursive code is safe far beyond.
_MAX_DEPTH = 32
# Python takes quadratic time to read long numbers.
_MAX_DIGITS = 400
_MAX_PROBLEMS = 20
# The core schema of YAML 1.2 (chapter 10.3): which plain words are no text. In YAML 1.1, PyYAML's,
# 0100 is 64, 1:30 is 90, "on" is true and 1e-4 is text.
_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = {
    f"{_TAG}null": r"~|null|Null|NULL|",
    f"{_TAG}bool": r"true|True|TRUE|false|False|FALSE",
    f"{_TAG}int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    f"{_TAG}float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_PREFIXES = {"0o": 8, "0x": 16}
# YAML has JSON's mappings, too, but without tabs.
_JSON_START = re.compile(r'\s*\{\s*"')
# What JSON has outside of strings, and YAML does not.
_NOT_YAML = re.compile(r"[^\n\r -~]")


class DocumentError(ValueError):
    """A document is too large, too deep, or cannot be read."""


@dataclass
class DocumentText:
    """A document as it was read from text.

    Attributes:
        values: The document, in the types of JSON.
        lines: The line of each key and item, by its dotted path.
    """

    values: Any = None
    lines: dict[str, int] = field(default_factory=dict)


def plain_document(document: Any) -> Any:
    """Return a document as JSON can carry it: a copy, without shared parts.

    Raises:
        DocumentError: It is too large, too deep, or no JSON.
    """
    _check_size(document)
    try:
        # Text for what JSON has no form of, such as dates.
        text = json.dumps(document, default=str, ensure_ascii=False)
    except (TypeError, ValueError) as error:  # keys that are not text, numbers of 4,300 digits
        raise DocumentError(f"is not JSON: {error}") from error
    if len(text.encode("utf-8", "surrogatepass")) > MAX_DOCUMENT_BYTES:
        raise _too_large()
    return json.loads(text)


def refuse_repeated_keys(text: bytes | str) -> None:
    """Refuse a JSON text with equal keys in one mapping: parsers differ in which one they take.

    Raises:
        DocumentError: It has some.
    """
    json.loads(text, object_pairs_hook=_without_repeated_keys)


def read_json(text: bytes) -> Any:
    """Return the document in a JSON text.

    Raises:
        DocumentError: The text is no JSON, by line and column, or has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except DocumentError:
        raise
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DocumentError(f"is not JSON: {where}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DocumentError("is not UTF-8 text; save it as UTF-8") from error
    except ValueError as error:
        raise DocumentError(f"is not JSON: {error}") from error
    except RecursionError as error:
        raise _too_deep() from error


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise DocumentError(f"has the key {quoted(name)} more than once in a mapping; keep one")
    return values


def read_document(data: bytes) -> DocumentText:
    """Return the document in a text of YAML 1.2 or JSON.

    Raises:
        DocumentError: The text cannot be read, has a key twice, or is over a limit; the message
            names the line.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _too_large()
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            raise DocumentError("is UTF-16 text or no text; save it as UTF-8")
        node = _Loader(_as_yaml(text)).get_single_node()
    except UnicodeDecodeError as error:
        raise DocumentError("is not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise DocumentError(_syntax_problem(error)) from error
    except RecursionError as error:
        raise _too_deep() from error
    reader = _Reader()
    values = None if node is None else reader.value_of(node, ())
    if reader.problems:
        raise DocumentError("; ".join(reader.problems[:_MAX_PROBLEMS]))
    return DocumentText(plain_document(values), reader.lines)


def write_document(document: Any) -> str:
    """Return a document as YAML that readers of YAML 1.1 and of 1.2 read alike."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Composes the nodes of YAML 1.2, without what makes a small text large."""

    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, a few lines of which can hold billions of values, and too many values."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise _too_many()
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"the alias *{shortened(event.anchor)} is not read; write its value here"
            raise DocumentError(f"has a problem in line {event.start_mark.line + 1}: {problem}")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a shared value at each of its places."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape line ends that only YAML 1.1 knows: PyYAML does not read back what it writes."""
        style = '"' if set(data) & {"\x85", "\u2028", "\u2029"} else None
        return self.represent_scalar(f"{_TAG}str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern in _CORE_SCHEMA.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)


class _Reader:
    """Reads values from nodes, and notes their lines and problems."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[str] = []

    def value_of(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        """Return the value of a node."""
        if len(path) > _MAX_DEPTH:
            raise _too_deep()
        self.lines.setdefault(".".join(path), node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value_of(each, (*path, str(n))) for n, each in enumerate(node.value)]
        try:
            return _scalar(node)
        except ValueError as error:
            self._add(node, str(error))
            return None

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        mapping, lines = {}, defaultdict(list)
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._add(key, "a key must be text")
                continue
            if key.value == "<<" and key.style is None:
                self._add(key, "the merge key << is not read; write its values here")
                continue
            # A key is text as it stands: on, 1 and null are names.
            name = _joined(key.value)
            lines[name].append(key.start_mark.line + 1)
            self.lines[".".join((*path, name))] = key.start_mark.line + 1
            mapping[name] = self.value_of(value, (*path, name))
        for name, found in lines.items():
            if len(found) > 1:
                where = ", ".join(map(str, found[:-1]))
                self.problems.append(
                    f"has the key {quoted('.'.join((*path, name)))} in line {where} and again in "
                    f"line {found[-1]}; keep one"
                )
        return mapping

    def _add(self, node: yaml.Node, problem: str) -> None:
        self.problems.append(f"has a problem in line {node.start_mark.line + 1}: {problem}")


def _scalar(node: yaml.Node) -> Any:
    """Return a scalar's value.

    Raises:
        ValueError: It is none of JSON's types, or does not fit its tag.
    """
    text: str = node.value
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        return _joined(text)
    if kind not in ("null", "bool", "int", "float"):
        raise ValueError(f"the tag {quoted(node.tag)} is not read; leave it out")
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"the number {quoted(text)} is too long")
    if not re.fullmatch(_CORE_SCHEMA[node.tag], text):
        raise ValueError(f"{quoted(text)} does not fit its tag !!{kind}")
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, _PREFIXES.get(text[:2], 10))
        case _:
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _joined(text: str) -> str:
    r"""Join the halves of characters that JSON escapes as two: ``\ud83d\ude00``."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _as_yaml(text: str) -> str:
    """Return a text with what only JSON permits replaced, on the same lines.

    JSON may be indented with tabs, and its strings may have any character, as their escapes.
    """
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if _JSON_START.match(text) and "\n\t" in text:
            where = f"line {error.lineno}, column {error.colno}"
            raise DocumentError(f"is not JSON: {where}: {error.msg}") from error
        return text
    except (ValueError, RecursionError):
        return text
    return _NOT_YAML.sub(
        lambda it: " " if it[0] == "\t" else it[0].encode("unicode_escape").decode(), text
    )


def _syntax_problem(error: yaml.YAMLError) -> str:
    """Return what is wrong with a text that is not YAML, on one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"is not YAML: {str(error).splitlines()[0]}"
    mark, problem = error.problem_mark, str(error.problem)
    if "'\\t'" in problem:
        advice = "indent with spaces, not with tabs"
    elif problem == "but found another document":
        problem, advice = "here begins another document", "a file holds one job; make a file of it"
    elif problem == "mapping values are not allowed here":
        problem = "this ':' is not expected"
        advice = "indent options of one mapping alike, and quote text that has ': ' in it"
    else:
        advice = "check the indentation, and quote text that has special characters"
    return f"is not YAML: line {mark.line + 1}, column {mark.column + 1}: {problem}; {advice}"


def _too_large() -> DocumentError:
    return DocumentError(f"is larger than {MAX_DOCUMENT_BYTES:,} bytes as JSON, the maximum")


def _too_many() -> DocumentError:
    return DocumentError(f"has more than {MAX_VALUES:,} keys and values, the maximum")


def _too_deep() -> DocumentError:
    return DocumentError("is nested too deeply")


def _check_size(document: Any) -> None:
    """Check a document's depth and size, in bounded time however often it holds one value."""
    values, length, waiting = 1, 0, [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise _too_deep()
        inner: Any = value if isinstance(value, list | tuple) else ()
        if isinstance(value, dict):
            inner = [*value, *value.values()]
        values += len(inner)
        length += len(value) if isinstance(value, str) else 0
        if values > MAX_VALUES:
            raise _too_many()
        if length > MAX_DOCUMENT_BYTES:
            raise _too_large()
        waiting += [(each, depth + 1) for each in inner]
