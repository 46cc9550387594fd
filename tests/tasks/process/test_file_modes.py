import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("umask", "private", "named"),
    [(0o022, 0o077, 0o022), (0o027, 0o027, 0o027)],
    ids=["the usual umask", "an umask for a group"],
)
def test_others_read_nothing_of_a_home(
    tmp_path: Path, umask: int, private: int, named: int
) -> None:
    home, contract = tmp_path / "new" / "home", tmp_path / "contract"
    program = f"import os; os.umask({umask}); from worker.__main__ import main; main()"
    for arguments in (["keys", "create", "mine", "--tenant", "acme"], ["contract", str(contract)]):
        subprocess.run(
            [sys.executable, "-P", "-c", program, *arguments],
            env={**os.environ, "TRAINING_HOME": str(home)},
            check=True,
            capture_output=True,
        )
    for file in (home, *home.rglob("*")):
        assert file.stat().st_mode & private == 0
    for file in (contract, *contract.rglob("*")):
        most = 0o777 if file.is_dir() else 0o666
        assert stat.S_IMODE(file.stat().st_mode) == most & ~named
