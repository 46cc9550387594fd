"""The trainer process of this engine: ``python -P -m worker.trainer.invoke --events-fd N``.

Its channels are those of ``worker.trainer``.
"""

import sys

from worker.trainer.__main__ import main

if __name__ == "__main__":
    sys.exit(main("worker.trainer.invoke"))
