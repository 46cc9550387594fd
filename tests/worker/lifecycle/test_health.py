import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from worker.errors import UnhealthyWorkerError
from worker.lifecycle.health import HealthFile, check_health

MINUTE = timedelta(minutes=1)


def test_a_worker_is_healthy_while_it_touches_its_file(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    file = HealthFile(path)
    file.touch()  # a round before it is ready
    with pytest.raises(UnhealthyWorkerError, match="not ready"):
        check_health(path, MINUTE)
    file.on_ready()
    check_health(path, MINUTE)

    long_ago = time.time() - 91
    os.utime(path, (long_ago, long_ago))
    with pytest.raises(UnhealthyWorkerError, match="hangs"):
        check_health(path, MINUTE)
    file.touch()
    check_health(path, MINUTE)


def test_a_file_of_an_earlier_worker_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    path.touch()
    HealthFile(path)
    assert not path.exists()


def test_no_file_is_made_without_a_path() -> None:
    file = HealthFile(None)
    file.on_ready()
    file.touch()
