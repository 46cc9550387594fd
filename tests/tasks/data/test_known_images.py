from pathlib import Path

import pytest
from PIL import Image

from tasks.data import known_images
from tasks.data.decoding.decoder_pool import DecoderLimits
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.validation import Report, check_dataset
from tasks.jobs.job import parse_job
from tasks.store import Store
from tests.tasks.jobs.test_flux_lora import with_values

# Every decoder is late.
NO_TIME = DecoderLimits(time_s=1e-9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (512, 512), color).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(color, "utf-8")
    return tmp_path


def check(folder: Path, decoders: DecoderLimits | None = None) -> Report:
    config = parse_job(
        with_values(
            data_loader__dataset={"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)}
        )
    ).training
    sources = Sources(ReadPolicy(), folder / "downloads", folder / "scratch")
    store = Store((folder / ".store").as_uri())
    return check_dataset(config, sources, limits=lambda _: [], decoders=decoders, store=store)


def test_images_that_have_not_changed_are_not_decoded(folder: Path) -> None:
    first = check(folder)
    assert [sample.caption for sample in first.samples] == ["red", "blue"]
    (folder / "a.txt").write_text("scarlet", "utf-8")
    again = check(folder, NO_TIME)
    assert [sample.caption for sample in again.samples] == ["scarlet", "blue"]
    assert again.files == first.files
    assert again.problems == []


def test_a_changed_image_is_decoded_and_the_others_are_not(folder: Path) -> None:
    check(folder)
    Image.new("RGB", (512, 512), "green").save(folder / "a.png")
    report = check(folder, NO_TIME)
    assert [problem.location for problem in report.problems] == ["a.png"]
    assert [sample.source for sample in report.samples] == ["b.png"]


def test_results_of_another_decoder_are_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(folder)
    monkeypatch.setattr(known_images, "_LIBRARIES", ("redis",))
    assert len(check(folder, NO_TIME).problems) == 2
