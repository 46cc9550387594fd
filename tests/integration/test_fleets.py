import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.integration.fleets import PATIENCE_S
from tests.waiting import wait_until


def test_killed_run_leaves_no_fleet(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from tests.integration.fleets import Fleet\n"
        "with Fleet(pathlib.Path(sys.argv[1]), '40gb') as fleet:\n"
        "    print(*(member.pid for member in fleet.process_family()), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdin is not None
    with run.stdin, run.stdout:
        family = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        assert len(family) > 3
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        wait_until(
            lambda: not any(member.is_running() for member in family),
            timeout_s=PATIENCE_S,
            description="every process of the fleet ended",
        )
