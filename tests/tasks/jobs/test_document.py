"""Documents that were made to be slow or large: each is refused at once, in a few words."""

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InvalidJobError
from tasks.jobs.document import (
    MAX_DOCUMENT_BYTES,
    DocumentError,
    plain_document,
    read_document,
    write_document,
)
from tasks.jobs.job import parse_job
from tests.tasks.jobs.test_flux_lora import GOOD, with_values

CAT = "\N{CAT}"
# A refused document may cost a worker a second, and Redis 10 KB with its traceback.
MAX_S, MAX_BYTES = 1.0, 5000


def unknown(count: int, length: int = 1) -> dict[str, int]:
    return {f"{number:0{length}}": 1 for number in range(count)}


def billions() -> list[Any]:
    value: list[Any] = [1] * 10
    for _ in range(9):
        value = [value] * 10
    return value


WORST: dict[str, Any] = {
    "1,000 unknown keys": {**GOOD, **unknown(1000)},
    "8,000 unknown keys": {**GOOD, **unknown(8000)},
    "300,000 unknown keys": {**GOOD, **unknown(300_000)},
    "8,000 unknown options": with_values(**unknown(8000)),
    "300,000 unknown options": with_values(**unknown(300_000)),
    "8,000 options of a preset's job": {**with_values(**unknown(8000)), "preset": "flux_1x40gb"},
    "8,000 options of the optimizer": with_values(optimizer=unknown(8000)),
    "5 MB of keys": {**GOOD, **unknown(1000, 5000)},
    "keys of 100 characters": {**GOOD, **{CAT * 100 + key: 1 for key in unknown(1000)}},
    "a key of dots": {**GOOD, "a." * 400_000: 1},
    "a name of 5 MB": {**GOOD, "name": "x" * 5_000_000},
    "a name of 200,000 cats": {**GOOD, "name": CAT * 200_000},
    "a tenant of 1 MB": {**GOOD, "tenant": "x" * 1_000_000},
    "a type of 1 MB": with_values(type="x" * 1_000_000),
    "a type of many values": with_values(type=[[]] * 10_000),
    "a preset of 1 MB": {**GOOD, "preset": "x" * 1_000_000},
    "a preset of many values": {**GOOD, "preset": [1] * 10_000},
    "a training of 1 MB": {"training": "x" * 1_000_000},
    "many wrong prompts": with_values(validation_prompts=list(range(15_000))),
    "many unknown layers": with_values(flux_lora_target_modules=list(unknown(15_000))),
    "billions of values": with_values(seed=billions()),
    "a long number": with_values(seed=10**100_000),
    "a deep value": with_values(seed=json.loads("[" * 900 + "]" * 900)),
}


@pytest.mark.parametrize("document", WORST.values(), ids=WORST)
def test_the_worst_documents_are_refused_at_once(document: Any) -> None:
    began_s = time.process_time()
    with pytest.raises(InvalidJobError) as caught:
        parse_job(document)
    assert time.process_time() - began_s < MAX_S
    assert len(json.dumps(caught.value.args)) < MAX_BYTES
    assert len(caught.value.problems) <= 20
    assert sum(len(str(problem)) for problem in caught.value.problems) < 10_000


def test_twice_the_keys_take_twice_the_time() -> None:
    def seconds(count: int) -> float:
        began_s = time.process_time()
        with pytest.raises(InvalidJobError):
            parse_job({**GOOD, **unknown(count)})
        return time.process_time() - began_s

    small, large = (min(seconds(count) for _ in range(3)) for count in (1000, 8000))
    assert large < 24 * small


def test_the_first_problems_are_listed_and_the_rest_counted() -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job({**GOOD, **unknown(1234)})
    lines = str(caught.value).splitlines()
    assert lines[1] == "  - 0: is not an option; check its spelling"
    assert lines[21:] == ["  - and 1,214 more"]


KINDS = st.sampled_from(["name", "preset", "tenant", "training", "engine"])
TEXTS = st.builds(
    lambda text, count: text * count, st.text(min_size=1, max_size=5), st.integers(1, 20_000)
)
LARGE = st.one_of(
    TEXTS,
    st.lists(TEXTS, max_size=3),
    st.dictionaries(TEXTS, TEXTS | st.integers(), max_size=3),
    st.builds(lambda value, count: [value] * count, st.none() | TEXTS, st.integers(0, 50_000)),
)


@given(KINDS, LARGE)
def test_any_large_value_is_refused_in_a_few_words(name: str, value: Any) -> None:
    for document in ({**GOOD, name: value}, with_values(**{name: value})):
        began_s = time.process_time()
        refused = None
        try:
            parse_job(document)
        except InvalidJobError as error:
            refused = error
        assert time.process_time() - began_s < MAX_S
        assert all(line.isprintable() for line in str(refused).split("\n"))
        assert refused is None or len(json.dumps(refused.args)) < MAX_BYTES


def test_a_document_may_have_a_mebibyte() -> None:
    assert plain_document({"a": "x" * (MAX_DOCUMENT_BYTES - 9)})
    for document in ({"a": "x" * (MAX_DOCUMENT_BYTES - 8)}, {"a": CAT * (MAX_DOCUMENT_BYTES // 3)}):
        with pytest.raises(DocumentError, match="is larger than 1,048,576 bytes"):
            plain_document(document)


def test_a_plain_document_shares_no_part_with_its_source() -> None:
    shared = {"b": [1]}
    document = plain_document({"a": shared, "c": shared})
    document["a"]["b"].append(2)
    assert document["c"] == shared == {"b": [1]}


CORE_SCHEMA = {
    "0100": 100,
    "-07": -7,
    "0o17": 15,
    "0x1F": 31,
    "0b11": "0b11",
    "1_000": "1_000",
    "1:30": "1:30",
    "1e-4": 1e-4,
    "1E5": 1e5,
    ".5": 0.5,
    "-1.": -1.0,
    ".inf": float("inf"),
    "-.Inf": float("-inf"),
    "true": True,
    "FALSE": False,
    "on": "on",
    "off": "off",
    "yes": "yes",
    "No": "No",
    "y": "y",
    "~": None,
    "null": None,
    "": None,
    "2001-01-01": "2001-01-01",
    "=": "=",
    "!!str 1": "1",
    "'1'": "1",
}


@pytest.mark.parametrize(("text", "value"), CORE_SCHEMA.items(), ids=map(repr, CORE_SCHEMA))
def test_plain_words_are_read_as_yaml_1_2_says(text: str, value: Any) -> None:
    found = read_document(f"a: {text}".encode()).values["a"]
    assert (found, type(found)) == (value, type(value))


def test_a_key_is_text_as_it_stands() -> None:
    assert read_document(b"{on: 1, 0x1: 2, null: 3, 1: 4}").values == {
        "on": 1,
        "0x1": 2,
        "null": 3,
        "1": 4,
    }


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=20), inner),
    max_leaves=10,
)


@given(JSON_VALUES, st.booleans(), st.sampled_from([None, 2, "\t"]))
def test_json_reads_as_json(value: Any, is_ascii: bool, indent: Any) -> None:
    text = json.dumps({"a": value}, ensure_ascii=is_ascii, indent=indent, allow_nan=False)
    assert read_document(text.encode()).values == {"a": value}


@given(JSON_VALUES | st.sampled_from(list(CORE_SCHEMA)))
def test_a_written_document_reads_alike_in_both_yamls(value: Any) -> None:
    text = write_document({"a": value, "b": value})
    assert read_document(text.encode()).values == {"a": value, "b": value}
    assert yaml.safe_load(text) == {"a": value, "b": value}


def test_each_option_has_its_line() -> None:
    lines = read_document(b"a:\n  b: 1\n  c:\n    - 1\n    - d: 2\n").lines
    assert lines == {"": 1, "a": 1, "a.b": 2, "a.c": 3, "a.c.0": 4, "a.c.1": 5, "a.c.1.d": 5}
