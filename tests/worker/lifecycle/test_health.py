import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from worker.errors import UnhealthyWorkerError
from worker.lifecycle.health import ReadyFile, check_health

MINUTE = timedelta(minutes=1)


def test_a_worker_is_well_for_as_long_as_it_touches_its_file(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    file = ReadyFile(path)
    file.touch()  # a round before it is ready
    with pytest.raises(UnhealthyWorkerError, match="not ready"):
        check_health(path, MINUTE)
    file.make()
    check_health(path, MINUTE)

    long_ago = time.time() - 91
    os.utime(path, (long_ago, long_ago))
    with pytest.raises(UnhealthyWorkerError, match="hangs"):
        check_health(path, MINUTE)
    file.touch()
    check_health(path, MINUTE)


def test_a_worker_is_not_ready_by_the_file_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    path.touch()
    ReadyFile(path)
    assert not path.exists()


def test_without_a_file_nothing_is_kept() -> None:
    file = ReadyFile(None)
    file.make()
    file.touch()
