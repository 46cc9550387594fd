import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tasks.data.opening import MovedError, open_resolved, scan_resolved
from tasks.data.read_policy import DeniedError, ReadPolicy
from tasks.data.sources import Sources
from tasks.jobs.datasets import (
    DatasetConfig,
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
)

READS, PATIENCE_S = 150, 30.0
SECRET = "only the worker may read this"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root in which others may write, with a secret beside it."""
    for folder, text in (("root/set", "a cat"), ("secret", SECRET)):
        place = tmp_path / folder
        place.mkdir(parents=True)
        (place / "cat.png").write_text(text)
        (place / "cat.txt").write_text(text)
        (place / "rows.jsonl").write_text(f'{{"image": "cat.png", "text": "{text}"}}\n')
        (place / f"{text}.png").write_text("")
        (place / f"{text}.txt").write_text(text)
    return tmp_path / "root"


CHANGES = """
import os, random, sys
real, path, target = sys.argv[1:]
while True:
    os.rename(real, path)
    for _ in range(random.randrange(20_000)): pass
    os.rename(path, real)
    os.symlink(target, path)
    for _ in range(random.randrange(2_000)): pass
    os.unlink(path)
"""


@contextmanager
def changing(real: Path, path: Path, target: Path) -> Iterator[None]:
    """Let a path be a real file or folder and a link elsewhere in turn, in another process."""
    command = [sys.executable, "-c", CHANGES, str(real), str(path), str(target)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("changed", "target", "file"),
    [("set", "secret", "set/cat.txt"), ("set/cat.txt", "secret/cat.txt", "set/cat.txt")],
    ids=["folder", "file"],
)
def test_a_file_outside_is_never_read_through_a_changing_path(
    root: Path, changed: str, target: str, file: str
) -> None:
    policy, path = ReadPolicy(roots=(str(root),)), root / changed
    path.rename(root / "real")
    texts: list[str] = []
    with changing(root / "real", path, root.parent / target):
        due_s = time.monotonic() + PATIENCE_S
        while len(texts) < READS and time.monotonic() < due_s:
            with suppress(DeniedError, OSError), open_resolved(policy.resolved(root / file)) as it:
                texts.append(it.read().decode())
    assert set(texts) == {"a cat"}


@pytest.mark.parametrize(
    "config",
    [
        lambda root: ImageCaptionDirDatasetConfig(dataset_dir=str(root / "set")),
        lambda root: ImageCaptionJsonlDatasetConfig(jsonl_path=str(root / "set/rows.jsonl")),
    ],
    ids=["folder", "jsonl"],
)
def test_a_listing_of_a_changing_folder_shows_nothing_outside(
    root: Path, config: Callable[[Path], DatasetConfig]
) -> None:
    sources = Sources(ReadPolicy(roots=(str(root),)), root.parent / "kept", root.parent / "scratch")
    (root / "set").rename(root / "real")
    captions: list[str] = []
    with changing(root / "real", root / "set", root.parent / "secret"):
        due_s = time.monotonic() + PATIENCE_S
        while len(captions) < READS and time.monotonic() < due_s:
            listing = sources.listing(config(root))
            assert SECRET not in repr(listing)
            captions += [item.caption for item in listing.items]
    assert set(captions) == {"a cat"}


def test_a_link_that_vanishes_while_it_is_resolved_is_a_problem(root: Path) -> None:
    class Policy(ReadPolicy):
        def resolved(self, path: Path) -> Path:
            if path.name == "set":
                raise FileNotFoundError("it was a link before")
            return super().resolved(path)

    sources = Sources(Policy(), root.parent / "kept", root.parent / "scratch")
    config = ImageCaptionJsonlDatasetConfig(jsonl_path=str(root / "set/rows.jsonl"))
    [problem] = sources.listing(config).problems
    assert "there is no such folder" in str(problem)


def test_a_folder_that_is_replaced_by_a_link_is_not_scanned(root: Path) -> None:
    resolved = (root / "set").resolve()
    with scan_resolved(resolved) as entries:
        assert "cat.png" in {entry.name for entry in entries}
    shutil.move(root / "set", root / "old")
    (root / "set").symlink_to(root.parent / "secret")
    with pytest.raises(OSError, match="Not a directory"), scan_resolved(resolved):
        pass
    with pytest.raises(MovedError, match="its path was changed meanwhile"):
        open_resolved(resolved / "cat.txt")


def test_a_pipe_or_a_folder_is_no_file(root: Path) -> None:
    os.mkfifo(root / "pipe")
    for name in ("pipe", "set"):
        with pytest.raises(IsADirectoryError):
            open_resolved(root / name)


@pytest.mark.parametrize("name", ["loop", "a\0b", "x" * 300])
def test_a_path_that_cannot_be_resolved_is_a_problem(root: Path, name: str) -> None:
    (root / "loop").symlink_to(root / "loop")
    sources = Sources(ReadPolicy(roots=(str(root),)), root.parent / "kept", root.parent / "scratch")
    config = ImageCaptionDirDatasetConfig(dataset_dir=f"{root}/{name}")
    [problem] = sources.listing(config).problems
    assert "there is no such folder" in str(problem) or "cannot be read" in str(problem)
