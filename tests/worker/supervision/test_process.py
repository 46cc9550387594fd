import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until
from worker.supervision.process import spawn, stop

# A child that starts a grandchild and prints both ids.
FAMILY = (
    "import subprocess, sys, time;"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print(p.pid, flush=True); time.sleep(600)"
)
DEAF = (
    "import signal, time;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('deaf', flush=True); time.sleep(600)"
)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_child_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            "import sys, time, worker.supervision.process as p;"
            "child = p.spawn([sys.executable, '-c', 'import time; time.sleep(600)']);"
            "print(child.pid, flush=True); time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        child = int(output.readline())
    assert not ended(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: ended(child), timeout_s=10, description="the child ended")


def test_a_child_of_a_dead_parent_does_not_start(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    dead_parent = subprocess.Popen([sys.executable, "-c", ""])
    dead_parent.wait()
    launcher = [sys.executable, "-P", "-m", "worker.supervision.process", str(dead_parent.pid)]
    assert subprocess.run([*launcher, "touch", str(marker)], check=False).returncode == 1
    assert not marker.exists()


@pytest.mark.parametrize("code", [0, 3, 77])
def test_a_childs_exit_code_is_its_own(code: int) -> None:
    assert spawn([sys.executable, "-c", f"raise SystemExit({code})"]).wait(20) == code


def test_a_child_inherits_the_given_descriptors() -> None:
    read_fd, write_fd = os.pipe()
    child = spawn(
        [sys.executable, "-c", f"import os; os.write({write_fd}, b'hello')"], pass_fds=(write_fd,)
    )
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        assert pipe.read() == b"hello"
    child.wait(20)


def test_stopping_a_child_ends_its_children() -> None:
    child = spawn([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout as output:
        grandchild = int(output.readline())
    stop(child, grace_s=20)
    assert child.returncode == -signal.SIGTERM
    wait_until(lambda: ended(grandchild), timeout_s=10, description="the grandchild ended")


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    child = spawn([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout as output:
        output.readline()
        stop(child, grace_s=0.2)
    assert child.returncode == -signal.SIGKILL
