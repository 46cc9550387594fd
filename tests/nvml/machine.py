"""A simulated NVIDIA driver, built with the machine's C compiler, and the GPUs that it reports."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("fake_nvml.c")

A100 = "card GPU-a100 A100-80GB 81920 81000 8 0 1 0"
T4 = "card GPU-t4 Tesla-T4 15360 15100 7 5 1 0"
RTX_3090 = "card GPU-3090 RTX-3090 24268 23900 8 6 -1 0"
SPLIT_A100 = (
    "card GPU-split A100-40GB 40960 40000 8 0 1 1",
    "mig GPU-split MIG-one 20096 20000 1",
    "mig GPU-split MIG-two 9728 9700 2",
)


class Machine:
    """The machine that the driver reports to programs that are started with ``env``.

    Args:
        folder: The folder of the library and of the file that it reads.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            if os.environ.get("CI"):
                pytest.fail("the fake driver needs a C compiler")
            pytest.skip("no C compiler")
        library = folder / "libnvidia-ml.so.1"
        command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library)]
        subprocess.run([*command, str(_SOURCE)], check=True)
        self._file = folder / "machine"
        self.env = {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(self._file)}

    def has(self, *lines: str) -> None:
        """Let the driver report these GPUs and events; the C source documents the lines."""
        new = self._file.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        new.replace(self._file)
