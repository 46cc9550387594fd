"""Hostile files that were met or made once, and mutated ones."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tasks.data.decoding.parquet import RowWriter, UnreadableParquetError, read_rows
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.validation import Report, check_dataset
from tasks.jobs.job import parse_job
from tests.tasks.data.fuzz import Mutator, fuzz_archives, fuzz_files
from tests.tasks.jobs.test_flux_lora import with_values

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
# Pillow warns of damaged fields that no decoder uses.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
# Far below what the bombs unpack to.
MOST = 4 * 2**20


def checked(path: Path) -> Report:
    """What is found where the file is a dataset, or the one image of a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "set" / path.name
        file.parent.mkdir()
        shutil.copy(path, file)
        dataset = {"type": "ARCHIVE", "archive": str(file)}
        if path.suffix == ".jsonl":
            dataset = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(file)}
        elif path.suffix in (".png", ".jpg", ".webp"):
            file.with_suffix(".txt").write_text("a caption", "utf-8")
            dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(file.parent)}
        config = parse_job(with_values(data_loader__dataset=dataset)).training
        sources = Sources(ReadPolicy(max_bytes=MOST), folder / "downloads", folder / "scratch")
        report = check_dataset(config, sources, limits=lambda _: [])
        outside = {it.name for it in folder.iterdir()} - {"set", "downloads", "scratch"}
        assert outside == set()
        assert sum(it.stat().st_size for it in folder.rglob("*") if it.is_file()) < 2 * MOST
        return report


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_every_hostile_file_is_refused_with_a_reason(path: Path, tmp_path: Path) -> None:
    if path.suffix == ".parquet":
        writer = RowWriter(tmp_path, ["image"], 0, max_rows=9, max_bytes=MOST, max_caption_bytes=9)
        with pytest.raises(UnreadableParquetError):
            read_rows(path, writer, lambda _: None, lambda _: None)
        return
    report = checked(path)
    # Odd, and an image all the same.
    assert bool(report.problems) == (path.name not in ("damaged-exif.jpg", "text-bomb.png"))
    assert all(problem.message for problem in report.problems)
    assert not Path("/etc/escaped.png").exists()


def test_mutated_datasets_give_findings(tmp_path: Path) -> None:
    mutator = Mutator(0)
    (tmp_path / "files").mkdir()
    fuzz_files(mutator, 100, tmp_path / "files")
    fuzz_archives(mutator, 6, tmp_path)
