"""Storing a checked data set: its pictures by their digests, and the list of its samples."""

from tasks.checks import Report
from tasks.dataset import DataSet, data_set_of
from tasks.errors import DataSetError, Fault
from tasks.pictures import UnreadablePictureError, open_picture, picture_digest
from tasks.sources import Item
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
        key = image_key(sample.image)
        if store.exists(key):
            continue
        data = _bytes_of(item, sample.image)
        if data is None:
            changed.append(Fault(item.name, "changed while it was checked; submit again"))
            continue
        store.put_if_absent(key, data)
    if changed:
        raise DataSetError(changed, "prepare")
    data_set = data_set_of(report.samples)
    store.put_if_absent(data_set_key(data_set.digest), data_set.model_dump_json().encode())
    return data_set


def _bytes_of(item: Item, digest: str) -> bytes | None:
    """A picture's bytes, or None where they are not those of the checked picture any more."""
    try:
        data = item.path.read_bytes()
        return data if picture_digest(open_picture(data)) == digest else None
    except (OSError, UnreadablePictureError):
        return None
