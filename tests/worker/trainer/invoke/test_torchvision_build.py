import subprocess
import sys
from pathlib import Path

# As torchvision does: it describes operators whose compiled code was not loaded.
TORCHVISION = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(): ...
@torch.library.register_fake("torchvision::qnms")
def qnms(): ...
loaded = True
"""
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from worker.trainer.invoke.torchvision_build import accept_any_torchvision_build
accept_any_torchvision_build()
import torchvision
print(torchvision.loaded)
"""


def run(folder: Path, module: str) -> subprocess.CompletedProcess[str]:
    (folder / "torchvision.py").write_text(module, "utf-8")
    command = [sys.executable, "-P", "-c", PROGRAM, str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_build_for_another_pytorch_is_imported(tmp_path: Path) -> None:
    done = run(tmp_path, TORCHVISION)
    assert done.stdout == "True\n", done.stderr


def test_other_failures_stay(tmp_path: Path) -> None:
    assert "out of luck" in run(tmp_path, "raise RuntimeError('out of luck')").stderr
