"""Gives a CPU build of PyTorch a CUDA device whose tensors have shapes and no bytes.

Call ``load`` before torch is imported, in a process of its own. ``kernels.py`` has the kernels that
a CPU build lacks.
"""

import ctypes
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from shutil import which

COMPILER = "g++"


def can_load() -> bool:
    """Return whether this machine has the compiler."""
    return which(COMPILER) is not None


def load() -> None:
    """Compile ``fake_cuda.cpp``, 2 s, and load it into this process.

    Raises:
        RuntimeError: There is no compiler, or torch was imported before.
    """
    found = find_spec("torch")
    if not can_load() or "torch" in sys.modules or found is None or found.origin is None:
        raise RuntimeError(f"needs {COMPILER}, PyTorch, and a process that has not imported it")
    torch = Path(found.origin).parent
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fake_cuda.so"
        flags = ["-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}"]
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        command = [COMPILER, *flags, str(source), "-o", str(library), *libraries]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(torch / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
