import logging
import zipfile
from pathlib import Path

import pytest

from tasks.jobs.document import read_document
from tasks.jobs.job import parse_job
from tasks.settings.demo_folder import DemoFolder
from tasks.settings.settings import Settings
from worker.gpu.inventory import declared_gpus
from worker.local.demo import Family, prepare_demo
from worker.local.local_fleet import _child_environment, _has_no_real_work, _prepared_demo


@pytest.mark.parametrize(("family", "queue"), [("flux", "gpu.40gb"), ("sdxl", "gpu.8gb")])
def test_a_demo_is_the_same_each_time(tmp_path: Path, family: Family, queue: str) -> None:
    folder = DemoFolder(tmp_path / "demo")
    document = prepare_demo(folder.path, family)
    assert read_document(folder.job.read_bytes()).values == document
    job = parse_job(document)
    assert job.route(Settings().constants).gpu_queue == queue
    with zipfile.ZipFile(folder.archive) as archive:
        assert len(archive.namelist()) == 56
    assert prepare_demo(folder.path, family) == document
    assert not list(folder.path.glob("*.part"))


def test_only_small_and_emulated_gpus_offer_a_demo(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, demo_dir=tmp_path)
    for declared, kind in (
        ("24gb", "SDXL_LORA"),
        ("24gb,40gb", "FLUX_LORA"),
        ("80gb", "FLUX_LORA"),
    ):
        gpus = declared_gpus(declared)
        assert _has_no_real_work(gpus)
        assert _prepared_demo(settings, gpus) == tmp_path
        document = read_document(DemoFolder(tmp_path).job.read_bytes()).values
        assert document["training"]["type"] == kind
    assert _prepared_demo(settings.model_copy(update={"console_port": 0}), gpus) is None
    assert _prepared_demo(settings.model_copy(update={"demo_dir": None}), gpus) is None


def test_a_demo_that_cannot_be_written_is_not_offered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    settings = Settings(home=tmp_path, demo_dir=tmp_path / "file" / "demo")
    with caplog.at_level(logging.WARNING):
        assert _prepared_demo(settings, declared_gpus("40gb")) is None
    assert f"the console offers no demo: cannot write {tmp_path}/file/demo" in caplog.text
    monkeypatch.setenv("TRAINING_DEMO_DIR", str(settings.demo_dir))
    without = Settings(home=tmp_path, demo_dir=None, broker_url="redis://127.0.0.1:6379/0")
    assert "TRAINING_DEMO_DIR" not in _child_environment(without)
