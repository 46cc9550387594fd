import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tasks.escaping import escaped, listed, quoted, shortened

CONTROLS = (
    "\x00\x07\x1b\n\r\t\x7f\x85\x9b\u061c\u200b\u200e\u2028\u2029\u202e\u2066\ufeff\U000e0041\ud800"
)


def test_what_a_terminal_runs_is_escaped() -> None:
    for each in CONTROLS:
        assert escaped(each).isascii()
        assert escaped(each).startswith("\\")
    assert escaped("a\x1b[2J\nb\u202ec") == r"a\u001b[2J\nb\u202ec"


def test_text_that_prints_stays_as_it_is() -> None:
    text = "Zoë's [red] cat: 猫 🐈 50 % \\n"
    assert escaped(text) == text


@given(st.text())
def test_escaped_text_prints_on_one_line(text: str) -> None:
    assert escaped(text).isprintable()
    assert escaped(escaped(text)) == escaped(text)


@given(st.recursive(st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=5))
def test_escaped_json_keeps_its_meaning(value: Any) -> None:
    assert json.loads(escaped(json.dumps(value, ensure_ascii=False))) == value


@given(st.text() | st.integers() | st.floats() | st.none())
def test_quoted_values_print_and_are_short(value: Any) -> None:
    assert quoted(value).isprintable()
    assert len(quoted(value)) <= 103


def test_long_values_and_lists_are_cut() -> None:
    assert quoted("x" * 10**6) == "'" + "x" * 99 + "..."
    assert shortened(shortened("x" * 200)) == shortened("x" * 200)
    assert listed(["x" * 200] * 3) == ", ".join([f"{'x' * 100}..."] * 3)
    assert listed(list("abcdefghijklm")) == "a, b, c, d, e, f, g, h, i, j and 3 more"
