"""The trainer process of this engine: ``python -P -m worker.trainer.invoke --events-fd N``.

The same channels as ``worker.trainer``'s; one request, since the library trains once a process.
"""

import sys

from worker.trainer.__main__ import main

if __name__ == "__main__":
    sys.exit(main("worker.trainer.invoke"))
