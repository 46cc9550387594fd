"""The trainer process of this engine: ``python -P -m worker.trainer.invoke --events-fd N``.

Its channels are those of ``worker.trainer``.
"""

import sys
from contextlib import suppress

from worker.trainer.__main__ import main
from worker.trainer.invoke.torchvision_build import accept_any_torchvision_build

if __name__ == "__main__":
    # The stage imports the library, and reports what is wrong with it.
    with suppress(ImportError, RuntimeError):
        accept_any_torchvision_build()
    sys.exit(main("worker.trainer.invoke"))
