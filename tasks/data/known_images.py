"""Results of a dataset's earlier check, so that images that have not changed are not decoded again.

They are in the store by the dataset's locations, and each belongs to the bytes of a file: a renamed
or another dataset's file may find it, a changed one never does.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.data import decoding, near_duplicates
from tasks.data.opening import open_resolved
from tasks.errors import MissingObjectError
from tasks.store import Store, known_images_key

# Of results, each some 400 bytes in memory.
_MAX_RESULTS = 100_000
# What results depend on beside the file: results of other versions are not used.
_LIBRARIES = ("pillow", "pi-heif")


class KnownImages:
    """Results of a dataset's earlier check.

    Args:
        store: The store, which keeps them; None if nothing is known and nothing is kept.
        locations: The dataset's locations.
    """

    def __init__(self, store: Store | None, locations: Sequence[str]) -> None:
        name = json.dumps([_decoding_digest(), *locations])
        self._store = store
        self._key = known_images_key(hashlib.sha256(name.encode()).hexdigest())
        # Results are JSON until they are needed, which takes a third of the memory.
        self._earlier, self._current = dict[str, str](), dict[str, str]()
        if store is not None:
            with suppress(MissingObjectError):
                lines = store.get(self._key).decode().splitlines()
                self._earlier |= dict(line.split(" ", 1) for line in lines)

    def find(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the earlier result for an image's bytes, if there is one.

        Args:
            request: The request to decode the image.
        """
        if not self._earlier or request["mask"] is not None:
            return None
        try:
            with open_resolved(Path(request["path"])) as file:
                line = self._earlier.get(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError:
            return None  # which its decoder reports
        return None if line is None else dict(json.loads(line))

    def add(self, result: dict[str, Any]) -> None:
        """Keep the result of an image without a mask."""
        if self._store and result["mask"] is None and len(self._current) < _MAX_RESULTS:
            self._current[result["sha256"]] = json.dumps(result)

    def save(self) -> None:
        """Store the results that were added, if there are new ones."""
        if self._store and self._current.keys() - self._earlier.keys():
            lines = (f"{sha256} {line}" for sha256, line in self._current.items())
            self._store.put(self._key, "\n".join(lines).encode())


def _decoding_digest() -> str:
    """Return what identifies the code that results come from."""
    digest = hashlib.sha256("".join(map(version, _LIBRARIES)).encode())
    sources = [
        *Path(decoding.__path__[0]).glob("*.py"),
        *map(Path, (near_duplicates.__file__, __file__)),
    ]
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()
