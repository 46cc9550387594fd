import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routing.queues import DIFFUSERS, INVOKE, Engine
from tasks.errors import ErrorCode, TrainerError
from tasks.events import Event, TrainDone
from tasks.jobs.invoke import PATCHES
from tasks.settings.settings import Settings
from tasks.stages.trainer_protocol import CaptionRequest, TrainerRequest
from tests.worker.cli.test_cli import run
from tests.worker.trainer.runs_options import flux_request
from worker.supervision.engines import (
    EngineTrainers,
    engine_marker,
    engine_python,
    find_diffusers,
    find_invoke,
    invoke_environment,
    invoke_python,
)
from worker.trainer.invoke import describe


def interpreter(tmp_path: Path, says: str, code: int = 0) -> Path:
    """A program that answers like an interpreter."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\necho '{says}'\necho 'no module' >&2\nexit {code}\n", "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_engine_diffusers_is_installed() -> None:
    assert find_diffusers().is_usable
    assert "torch" in find_diffusers().versions


def test_an_absent_interpreter_is_reported_with_the_guide() -> None:
    unset = find_invoke(None)
    assert unset.problems == ("it is not installed",)
    assert "training-worker engines install" in unset.remedy
    assert "docs/guides/invoke-training.md" in unset.remedy
    absent = find_invoke(Path("/nowhere/python"))
    assert not absent.is_usable
    assert "No such file" in absent.problems[0]


def test_an_interpreter_without_the_library_is_reported() -> None:
    found = find_invoke(Path(sys.executable))
    assert not found.is_usable
    assert f"{sys.executable}: invoke-training is not installed" in found.problems
    assert any("the library needs 4" in problem for problem in found.problems)


def test_only_a_complete_installation_is_found(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    engine_python(tmp_path).parent.mkdir(parents=True)
    engine_python(tmp_path).touch()
    assert invoke_python(settings) is None
    engine_marker(tmp_path).touch()
    assert invoke_python(settings) == engine_python(tmp_path)
    own = settings.model_copy(update={"invoke_python": Path("/opt/python")})
    assert invoke_python(own) == Path("/opt/python")


def test_a_library_that_cannot_be_imported_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "invoke_training"
    package.mkdir()
    (package / "__init__.py").write_text("print('loading')\nraise RuntimeError('no nms\\nhere')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torchvision.py").touch()
    monkeypatch.setattr(describe, "NEEDED", ())
    assert describe.describe() == {
        "versions": {},
        "errors": [
            "importing invoke_training.config.pipeline_config fails: RuntimeError: no nms here",
        ],
    }
    assert capsys.readouterr().out == ""


def test_an_interpreter_that_answers_is_usable(tmp_path: Path) -> None:
    answer = json.dumps({"versions": {"invoke-training": "0.0.1"}, "errors": []})
    assert find_invoke(interpreter(tmp_path, answer)).versions == {"invoke-training": "0.0.1"}
    crashed = find_invoke(interpreter(tmp_path, "", code=1))
    assert crashed.problems == (f"{tmp_path / 'python'} cannot be used: no module",)
    assert not find_invoke(interpreter(tmp_path, "hello")).is_usable


def test_the_invoke_environment_holds_only_this_package() -> None:
    env = invoke_environment({"PYTHONPATH": "/elsewhere", "HOME": "/home"})
    assert env["HOME"] == "/home"
    assert (Path(env["PYTHONPATH"]) / "worker" / "supervision" / "engines.py").is_file()


class Noted:
    """A trainer that records its calls."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.request: TrainerRequest | None = None

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> TrainDone:
        self.log.append(f"{self.name} runs")
        self.request = request
        return TrainDone(steps=1, final_loss=1.0)

    def caption(
        self,
        request: CaptionRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        self.log.append(f"{self.name} captions")

    def close(self) -> None:
        self.log.append(f"{self.name} closes")


@pytest.mark.parametrize(
    ("engine", "expected"),
    [(DIFFUSERS, ["own runs"]), (INVOKE, ["own closes", "invoke runs"])],
)
def test_a_request_goes_to_its_engine_on_a_free_gpu(engine: Engine, expected: list[str]) -> None:
    log: list[str] = []
    own, invoke = Noted("own", log), Noted("invoke", log)
    trainers = EngineTrainers(own, invoke, "-noise", lambda _: None)
    request = flux_request(engine=engine)
    trainers.run(request, on_event=lambda _: None, stop_requested=lambda: False)
    assert log == expected
    if invoke.request is not None:
        assert set(invoke.request.patches) == set(PATCHES) - {"noise"}


def test_engines_are_listed_with_their_options(tmp_path: Path) -> None:
    listed: list[dict[str, Any]] = json.loads(run("engines", "--json", home=tmp_path).stdout)
    own, library = listed
    assert (own["engine"], own["usable"]) == ("diffusers", True)
    assert library["engine"] == "invoke-training"
    assert not library["usable"]
    assert {it["name"] for it in library["patches"]} == set(PATCHES)
    assert all(it["applied"] for it in library["patches"])
    assert "weight_dtype" in {it["option"] for it in library["unsupported"]}
    shown = run("engines", home=tmp_path, COLUMNS="200", TRAINING_INVOKE_PATCHES="none").stdout
    assert "engines install" in " ".join(shown.split())


@pytest.mark.parametrize("code", [ErrorCode.GPU_FAILED, ErrorCode.TRAINER_FAILED])
def test_a_failure_of_the_gpu_is_reported_to_its_worker(code: ErrorCode) -> None:
    class Failing(Noted):
        def run(self, *_: Any, **__: Any) -> TrainDone:
            raise TrainerError("misaligned address", "train", code)

    reported: list[str] = []
    own, invoke = Failing("own", []), Noted("invoke", [])
    trainers = EngineTrainers(own, invoke, "all", reported.append)
    with pytest.raises(TrainerError):
        trainers.run(flux_request(), on_event=lambda _: None, stop_requested=lambda: False)
    assert reported == (["misaligned address"] if code == ErrorCode.GPU_FAILED else [])
