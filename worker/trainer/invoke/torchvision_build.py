"""Lets the library run with a torchvision whose build is not that of PyTorch.

A registry may give a PyTorch for the CPU and a torchvision for CUDA. The latter's compiled
operators then do not load, and its import fails where it describes them (torchvision 0.28,
``_meta_registrations.py``). The library uses only its transforms, which are in Python.
"""

import importlib
import re
import sys

_MISSING = re.compile(r"operator (torchvision::\w+) does not exist")
# It describes two today.
_MAX_OPERATORS = 20


def accept_any_torchvision_build() -> None:
    """Import torchvision, and declare the operators that a build for another PyTorch lacks.

    Raises:
        ImportError: It is not installed.
        RuntimeError: It fails for another reason.
    """
    for _ in range(_MAX_OPERATORS):
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None:
                raise
            # No code calls it: the signature does not matter.
            importlib.import_module("torch").library.define(missing[1], "() -> ()")
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
        else:
            return
