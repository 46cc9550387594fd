from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tasks.data.ingest import ingest
from tasks.data.validation import Report
from tasks.errors import DatasetError, ErrorCode
from tasks.jobs.job import parse_job
from tasks.store import Store, image_key
from tests.tasks.data.reading import check_local
from tests.tasks.jobs.test_flux_lora import with_values


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        add(folder, name, color, f"a {color} field")
    return folder


def add(folder: Path, name: str, color: str, caption: str) -> None:
    Image.new("RGB", (512, 512), color).save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption, "utf-8")


def checked(folder: Path) -> Report:
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)}
    report = check_local(parse_job(with_values(data_loader__dataset=dataset)).training)
    assert report.problems == []
    return report


def test_the_same_dataset_twice_is_stored_once(folder: Path, store: Store) -> None:
    first = ingest(checked(folder), store)
    keys = store.keys("")
    assert ingest(checked(folder), store) == first
    assert store.keys("") == keys
    assert len(keys) == 3


def test_an_image_with_two_captions_is_stored_once(folder: Path, store: Store) -> None:
    add(folder, "c.bmp", "red", "another red field")
    dataset = ingest(checked(folder), store)
    assert len(dataset.samples) == 3
    assert len(store.keys("images")) == 2


def test_a_file_is_read_by_its_bytes_not_its_name(folder: Path, store: Store) -> None:
    before = ingest(checked(folder), store)
    (folder / "a.png").rename(folder / "a.jpg")
    assert ingest(checked(folder), store).digest == before.digest


def test_changed_and_missing_images_are_reported(folder: Path, store: Store) -> None:
    report = checked(folder)
    Image.new("RGB", (512, 512), "green").save(folder / "a.png")
    (folder / "b.png").unlink()
    with pytest.raises(DatasetError) as caught:
        ingest(report, store)
    assert [problem.location for problem in caught.value.problems] == ["a.png", "b.png"]
    assert (caught.value.code, caught.value.stage) == (ErrorCode.INVALID_DATASET, "prepare")
    assert store.keys("") == []


def test_a_rewritten_file_is_reported(folder: Path, store: Store) -> None:
    report = checked(folder)
    Image.open(folder / "a.png").save(folder / "a.png", compress_level=0)
    with pytest.raises(DatasetError, match=r"a\.png: changed after it was checked"):
        ingest(report, store)


def test_an_image_and_its_mask_are_reported_once(folder: Path, store: Store) -> None:
    report = checked(folder)
    report.files.append(replace(report.files[0], path=folder / "b.png"))
    (folder / "a.png").unlink()
    with pytest.raises(DatasetError) as caught:
        ingest(report, store)
    assert [problem.location for problem in caught.value.problems] == ["a.png"]


def test_a_stored_image_is_not_read_again(folder: Path, store: Store) -> None:
    report = checked(folder)
    first = ingest(report, store)
    (folder / "a.png").unlink()
    assert ingest(report, store) == first
    assert all(store.exists(image_key(sample.image)) for sample in first.samples)
