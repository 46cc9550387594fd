"""Packs of random bytes, for tests that need no tensors."""

import json
import os
from collections.abc import Sequence

from tasks.cache.packs import CHECKSUMS, TensorPlace, checksum, pack_id
from tasks.cache.plan import Kind
from tasks.events import PackStored
from tasks.store import Store, pack_key


def put_pack(store: Store, kind: Kind, digests: Sequence[str], size: int = 64) -> PackStored:
    """Store a pack whose entries have one tensor each."""
    entries = {digest: os.urandom(size) for digest in sorted(digests)}
    place = {"mean": TensorPlace("U8", (size,), 0, size)}
    sums = {digest: checksum(place, data) for digest, data in entries.items()}
    header: dict[str, object] = {"__metadata__": {CHECKSUMS: json.dumps(sums)}}
    for number, digest in enumerate(entries):
        offsets = [number * size, (number + 1) * size]
        header[f"{digest}/mean"] = {"dtype": "U8", "shape": [size], "data_offsets": offsets}
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + b"".join(entries.values())
    key = pack_key(kind, pack_id(digests))
    store.put(key, data)
    return PackStored(key=key, size=len(data), entries=tuple(digests))
