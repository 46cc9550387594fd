"""The project's language: no word of its former dialect in texts, messages and names.

``docs/glossary.md`` has the standard terms.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.reference import ROOT

WORDS = {
    "anew": "again",
    "enlarged": "escalated",
    "enlargements": "escalations",
    "hear": "receive",
    "heard": "received",
    "hears": "receives",
    "lane": "tenant queue",
    "lanes": "tenant queues",
    "likeness": "near duplicate",
    "mend": "fix",
    "mended": "fixed",
    "mends": "fixes",
    "nobody": "no worker, no user",
    "outbox": "event buffer",
    "picture": "image",
    "pictures": "images",
    "somebody": "the operator, a user",
    "tell": "report",
    "tells": "reports",
    "told": "reported",
    "unfit": "unhealthy",
    "upkeep": "maintenance",
    "whoever": "the worker, the operator",
    "whomever": "the worker, the operator",
    "wish": "requested state",
    "wishes": "requested states",
}
"""Former words, with the standard term. They appear nowhere: in text, code, comments or names."""

PHRASES = {
    r"a good (?:day|hour|minute)": "about a day",
    r"br(?:oke|oken|eaks) off": "interrupted, truncated",
    r"data[ _-]sets?": "dataset",
    r"dead list|list of the dead|dead (?:ls|replay|drop)": "dead-letter queue",
    r"(?:go|goes|gone|went) on (?:with|from|where)|(?:goes|gone) on": "resume, continue",
    r"how much of it": "capacity",
    r"(?:just )?so many": "N",
    r"look(?:s|ed)? after": "manage",
    r"no fault of (?:its|their) own": "infrastructure failure",
    r"of (?:ours|yours|theirs)": "our, your, their",
    r"once more": "again",
    r"passing (?:fault|error)s?": "transient error",
    r"stands? for": "is about",
    r"(?:is|are|takes?) some \d+": "about N",
    r"tr(?:y|ies|ied) (?:it )?again": "retry",
    r"where there is none": "without one",
}
"""Former phrases, with the standard term. They appear in no text and no message."""

ALLOWED = {
    "tasks/jobs/data_loaders.py": ("picture", "caption templates of invoke-training"),
}
"""File to a word that may stand there, and why."""

SELF = "tests/docs/test_language.py"
CODE = ("benchmarks", "console", "examples", "routing", "tasks", "worker", "deploy/contract")
TEXT = {".md", ".yml", ".yaml", ".sh", ".service", ".target", ".lua", ".ts", ".js", ".json"}
RENAMED = "### Renamed since the development versions"
"""The changelog lists former names below this heading."""

_PHRASES = re.compile("|".join(rf"(?<!\w)(?:{phrase})(?!\w)" for phrase in PHRASES), re.IGNORECASE)
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listed.stdout.decode().split("\n") if name]
    return [path for path in paths if path.is_file()]


def former_words(text: str) -> Iterator[str]:
    """Former words in a text; names are split at underscores and capitals."""
    for part in _PARTS.findall(text):
        if part.lower() in WORDS:
            yield part.lower()


def former_phrases(text: str) -> Iterator[str]:
    """Former phrases in a text, also over the ends of lines."""
    for match in _PHRASES.finditer(" ".join(re.sub(r"\n[ \t]*[#*/-]*", "\n", text).split())):
        yield match.group().lower()


def messages(source: str) -> Iterator[str]:
    """String literals of a module, without its docstrings."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)


def names(source: str) -> Iterator[str]:
    """Functions and classes of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def comments(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def violations(path: Path) -> Iterator[str]:
    name = path.relative_to(ROOT).as_posix()
    if path.suffix == ".py":
        source = path.read_text("utf-8")
        if name.startswith("tests/"):
            for text in (*names(source), *comments(source)):
                yield from former_words(text)
            return
        yield from former_words(source)
        for text in messages(source):
            yield from former_phrases(text)
    elif path.suffix in TEXT and not name.startswith("tests/"):
        text = path.read_text("utf-8").partition(RENAMED)[0]
        yield from former_words(text)
        yield from former_phrases(text)


@pytest.mark.parametrize("folder", sorted({path.relative_to(ROOT).parts[0] for path in tracked()}))
def test_language_is_standard(folder: str) -> None:
    standard = {**WORDS, **PHRASES}
    problems = []
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        if name.split("/")[0] == folder and name != SELF:
            allowed = ALLOWED.get(name, ("", ""))[0]
            problems += [
                f"{name}: {word} (use: {standard.get(word, 'see PHRASES')})"
                for word in dict.fromkeys([*violations(path), *former_words(path.stem)])
                if word != allowed
            ]
    assert problems == []


def test_exceptions_are_needed() -> None:
    for name, (word, _) in ALLOWED.items():
        assert word in set(violations(ROOT / name)), name
