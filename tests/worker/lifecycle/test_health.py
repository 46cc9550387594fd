import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.waiting import wait_until
from worker.errors import UnhealthyWorkerError
from worker.lifecycle.health import HealthFile, check_health
from worker.periodic import ThreadWatch

MINUTE = timedelta(minutes=1)


@pytest.fixture
def health_file(tmp_path: Path) -> Callable[[], HealthFile]:
    return lambda: HealthFile(tmp_path / "ready", timedelta(seconds=0.05), ThreadWatch())


def age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def test_a_worker_is_healthy_while_its_loop_turns(
    tmp_path: Path, health_file: Callable[[], HealthFile]
) -> None:
    path, file = tmp_path / "ready", health_file()
    file.report_alive()  # a round before it is ready
    with pytest.raises(UnhealthyWorkerError, match="not ready"):
        check_health(path, MINUTE)
    file.on_ready()
    wait_until(path.exists, timeout_s=5, description="the file exists")
    check_health(path, MINUTE)

    long_ago = time.time() - 91
    os.utime(path, (long_ago, long_ago))
    with pytest.raises(UnhealthyWorkerError, match="hangs"):
        check_health(path, MINUTE)
    file.report_alive()
    wait_until(lambda: age_s(path) < 60, timeout_s=5, description="the file is touched")
    check_health(path, MINUTE)


def test_a_file_that_is_gone_returns(tmp_path: Path) -> None:
    """As when the disk was read-only for a while, or an operator cleared the folder."""
    path = tmp_path / "gone" / "ready"
    path.parent.mkdir()
    file = HealthFile(path, timedelta(seconds=0.05), ThreadWatch())
    path.parent.rmdir()
    file.on_ready()
    path.parent.mkdir()

    def is_back() -> bool:
        file.report_alive()
        return path.exists()

    wait_until(is_back, timeout_s=5, description="the file is back")


def test_a_file_of_an_earlier_worker_is_removed(
    tmp_path: Path, health_file: Callable[[], HealthFile]
) -> None:
    path = tmp_path / "ready"
    path.touch()
    health_file()
    assert not path.exists()


def test_no_file_is_made_without_a_path() -> None:
    file = HealthFile(None, MINUTE, ThreadWatch())
    file.on_ready()
    file.report_alive()
