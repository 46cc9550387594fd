import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from console.services.images.folder_locks import FolderLocks

HOLD = """
import sys
from pathlib import Path
from console.services.images.folder_locks import FolderLocks

with FolderLocks(Path(sys.argv[1])).try_hold("a") as is_free:
    print(is_free, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-P", "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def is_free(locks: FolderLocks, name: str) -> bool:
    with locks.try_hold(name) as free:
        return free


def test_a_lock_is_held_once_in_a_process(tmp_path: Path) -> None:
    locks = FolderLocks(tmp_path / "folder" / "locks")
    with locks.try_hold("a") as first:
        assert first
        assert not is_free(locks, "a")
        assert is_free(locks, "b")
    with locks.hold("a"):
        assert not is_free(locks, "a")
    assert is_free(locks, "a")


def test_a_lock_holds_for_other_processes_until_its_owner_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    locks = FolderLocks(path)
    with another_process(path) as (process, reply):
        assert reply == "True"
        assert not is_free(locks, "a")
        assert is_free(locks, "b")
        process.kill()
        process.wait()
        assert is_free(locks, "a")
    with locks.hold("a"), another_process(path) as (_, reply):
        assert reply == "False"


def test_a_name_is_free_after_the_file_could_not_be_locked(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.touch()
    locks = FolderLocks(folder / "locks")
    with pytest.raises(OSError, match="exists"), locks.hold("a"):
        pass
    folder.unlink()
    assert is_free(locks, "a")
