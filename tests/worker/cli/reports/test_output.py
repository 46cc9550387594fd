import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from tasks.events import Note, StageFinished
from tests.tasks.test_escaping import CONTROLS
from worker import __main__ as main
from worker.cli.reports.follow import _Display
from worker.cli.reports.output import print_error, print_json, print_warning, stderr, stdout

ATTACK = "\x1b]0;title\x07\x1b[2J\n  17:00:00 cpu INFO forged\u202e"
TEXTS = st.text() | st.text(alphabet=f"a [/]{CONTROLS}:") | st.just(ATTACK)


def printed(text: str) -> list[str]:
    with stdout.capture() as out, stderr.capture() as err:
        stdout.print(text)
        table = Table(text, title=text)
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
