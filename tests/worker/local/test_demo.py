import zipfile
from pathlib import Path

import pytest

from tasks.errors import JobError
from tasks.jobs.document import read_document
from tasks.jobs.job import parse_job
from tasks.settings.demo_folder import DemoFolder
from tasks.settings.settings import Settings
from worker.gpu.inventory import declared_gpus
from worker.local import demo
from worker.local.demo import Family, prepare_demo
from worker.local.local_fleet import _demo_maker, _has_no_real_work
from worker.local.log_files import LogFiles


@pytest.mark.parametrize(("family", "queue"), [("flux", "gpu.40gb"), ("sdxl", "gpu.8gb")])
def test_a_demo_is_made_once(
    tmp_path: Path, family: Family, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = DemoFolder(tmp_path / "demo")
    document = prepare_demo(folder.path, family)
    assert read_document(folder.job.read_bytes()).values == document
    job = parse_job(document)
    assert job.route(Settings().constants).gpu_queue == queue
    with zipfile.ZipFile(folder.archive) as archive:
        assert len(archive.namelist()) == 56
    # The model is kept, and nothing else is left.
    monkeypatch.setattr("subprocess.run", None)
    assert prepare_demo(folder.path, family) == document
    assert not list(folder.path.glob("*.part"))


def test_a_demo_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = DemoFolder(tmp_path)
    monkeypatch.setattr("sys.argv", ["demo", str(tmp_path), "--family", "sdxl"])
    monkeypatch.setattr(demo, "_tiny_sdxl", _fail)
    assert demo.main() == 1
    assert folder.problem.read_text("utf-8") == "no space for a model"
    assert "no space for a model" in capsys.readouterr().err
    assert not folder.job.exists()


def _fail(_model: Path) -> None:
    raise JobError("no space for a model")


def test_only_small_and_emulated_gpus_offer_a_demo(tmp_path: Path) -> None:
    settings, logs = Settings(home=tmp_path, demo_dir=tmp_path), LogFiles(tmp_path, 0)
    for declared, family in (("24gb", "sdxl"), ("24gb,40gb", "flux"), ("80gb", "flux")):
        gpus = declared_gpus(declared)
        assert _has_no_real_work(gpus)
        maker = _demo_maker(settings, gpus, logs)
        assert maker is not None
        assert maker.family == family
    assert _demo_maker(settings.model_copy(update={"console_port": 0}), gpus, logs) is None
    assert _demo_maker(settings.model_copy(update={"demo_dir": None}), gpus, logs) is None
