"""Documents that were made to be slow or large: each is refused at once, in a few words."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InvalidJobError
from tasks.jobs.document import MAX_DOCUMENT_BYTES, DocumentError, plain_document
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
