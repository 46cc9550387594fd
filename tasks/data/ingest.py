"""Storing a checked data set: its pictures by their digests, and the list of its samples."""

from collections.abc import Callable
from pathlib import Path

from tasks.data.checks import Report
from tasks.data.dataset import DataSet, balanced, data_set_of
from tasks.data.pictures import (
    UnreadablePictureError,
    mask_digest,
    open_mask,
    open_picture,
    picture_digest,
)
from tasks.errors import DataSetError, Fault
from tasks.store import Store, data_set_key, image_key


def ingest(report: Report, store: Store) -> DataSet:
    """Put a report's pictures and samples into the store.

    Pictures keep the bytes they came in; one that is in the store already is not read again.

    Raises:
        DataSetError: A picture is no longer what was checked.
        StoreError: The store cannot be written.
    """
    changed = []
    for item, sample in zip(report.items, report.samples, strict=True):
        wanted = [(sample.image, item.path, _picture_digest)]
        if sample.mask is not None and item.mask is not None:
            wanted.append((sample.mask, item.mask, _mask_digest))
        for digest, path, digest_of in wanted:
            key = image_key(digest)
            if store.exists(key):
                continue
            data = _bytes_of(path, digest, digest_of)
            if data is None:
                changed.append(Fault(item.name, "changed while it was checked; submit again"))
                break
            store.put_if_absent(key, data)
    if changed:
        raise DataSetError(changed, "prepare")
    data_set = data_set_of(balanced(report.samples))
    store.put_if_absent(data_set_key(data_set.digest), data_set.model_dump_json().encode())
    return data_set


def _bytes_of(path: Path, digest: str, digest_of: Callable[[bytes], str]) -> bytes | None:
    """A file's bytes, or None where they are not those of the checked picture any more."""
    try:
        data = path.read_bytes()
        return data if digest_of(data) == digest else None
    except (OSError, UnreadablePictureError):
        return None


def _picture_digest(data: bytes) -> str:
    return picture_digest(open_picture(data))


def _mask_digest(data: bytes) -> str:
    return mask_digest(open_mask(data))
