import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_garbage_is_collected() -> Iterator[None]:
    """Let these tests parse sources: before 3.11.8, Python fails if another thread of the process
    parses some, too, while a collection interrupts the first one (python/cpython#106905).
    """
    gc.disable()
    yield
    gc.enable()
