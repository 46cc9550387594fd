import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.events import DatasetChecked, Note, StageFinished
from tests.tasks.test_escaping import CONTROLS
from worker import __main__ as main
from worker.cli.reports.follow import _Display
from worker.cli.reports.output import (
    FoldedTable,
    print_error,
    print_json,
    print_table,
    print_warning,
    stderr,
    stdout,
)

ATTACK = "\x1b]0;title\x07\x1b[2J\n  17:00:00 cpu INFO forged\u202e"
TEXTS = (
    st.text(max_size=200) | st.text(alphabet=f"a [/]{CONTROLS}:", max_size=200) | st.just(ATTACK)
)


def printed(text: str) -> list[str]:
    with stdout.capture() as out, stderr.capture() as err:
        stdout.print(text)
        table = FoldedTable(text, title=text)
        table.add_row(text)
        stdout.print(table)
        print_error(text)
        print_warning(text)
        with _Display() as display:
            display.show(Note(level="warning", message=text))
            display.show(
                StageFinished(stage="prepare", attempt=1, seconds=1.0, summary=f"{text} end")
            )
    return f"{out.get()}\n{err.get()}".split("\n")


# No deadline: it would measure the load of the machine. The texts are short instead.
@settings(deadline=None)
@given(TEXTS)
def test_no_text_writes_to_the_terminal(text: str) -> None:
    for line in printed(text):
        assert line.isprintable()


@pytest.mark.parametrize(
    "text", ["[red]cat[/]", "[/]", "[link=https://x]cat", ":cat:", "[@click=x]"]
)
def test_markup_is_text(text: str) -> None:
    lines = "\n".join(printed(text))
    assert lines.count(text) == 8


def test_an_event_is_one_line() -> None:
    with stdout.capture() as out, _Display() as display:
        display.show(Note(level="warning", message=f"a{ATTACK}"))
    assert out.get().strip() == r"a\u001b]0;title\u0007\u001b[2J\n  17:00:00 cpu INFO forged\u202e"


# No deadline: it would measure the load of the machine. The texts are short instead.
@settings(deadline=None)
@given(TEXTS)
def test_printed_json_prints_and_keeps_its_meaning(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr(stdout.file, "write", written.append)
        print_json({text: [text]})
    [line] = written
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert json.loads(line) == {text: [text]}


def test_the_traceback_of_a_bug_controls_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(prog_name: str) -> None:
        raise ValueError(f"{prog_name}: {ATTACK}")

    monkeypatch.setattr(main, "cli", fail)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    written = capfd.readouterr().err
    assert "forged" in written
    assert all(line.isprintable() for line in written.split("\n"))


@pytest.mark.parametrize("width", [40, 80, 2000])
def test_a_table_cuts_nothing_off(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdout, "_width", width)
    texts = ("TRAINING_DATA_MAX_BYTES", "http://127.0.0.1:25555/a/long/address", "x" * 90)
    table = FoldedTable("setting", "address", "reason")
    table.add_row(*texts)
    with stdout.capture() as out:
        print_table(table, "nothing")
    lines = out.get().splitlines()
    assert max(map(len, lines)) <= width
    cells = [line.split("│")[1:-1] for line in lines if "│" in line]
    assert (
        tuple("".join(part.strip() for part in column) for column in zip(*cells, strict=True))
        == texts
    )


def test_an_empty_table_is_a_sentence() -> None:
    with stdout.capture() as out:
        print_table(FoldedTable("tenant", "share"), "no tenant has a share yet")
    assert out.get() == "no tenant has a share yet\n"


def test_a_repeated_error_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdout, "_width", 200)
    error = "prepare: the Hub is unavailable: a long text; with a cause"
    with stdout.capture() as out, _Display() as display:
        for number, delay_s in ((1, 9), (2, 21)):
            retry = f"retry {number} of 6 in {delay_s} s"
            display.show(Note(level="warning", message=f"{error}; {retry}"))
        display.show(
            Note(level="warning", message="prepare: the disk is full; retry 3 of 6 in 4 s")
        )
        display.show(Note(level="warning", message="prepare: the disk is full"))
    assert [line.strip() for line in out.get().strip().splitlines()] == [
        "prepare: the Hub is unavailable: a long text; with a cause; retry 1 of 6 in 9 s",
        "the same error; retry 2 of 6 in 21 s",
        "prepare: the disk is full; retry 3 of 6 in 4 s",
        "prepare: the disk is full",
    ]


def test_one_image_is_no_plural() -> None:
    with stdout.capture() as out, _Display() as display:
        display.show(DatasetChecked(images=1, errors=0, warnings=1, report_key="report"))
    assert out.get().strip() == "1 image, 0 errors, 1 warning"
