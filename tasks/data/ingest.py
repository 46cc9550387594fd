"""Storing a checked dataset: its images by their digests, and the list of its samples."""

import hashlib
from functools import partial

from tasks.data.memory_budget import MemoryBudget, in_threads
from tasks.data.validation import MAX_FILE_BYTES, CheckedFile, Report
from tasks.dataset import Dataset, balanced, dataset_of
from tasks.errors import DatasetError, Problem
from tasks.store import Store, dataset_key, image_key


def ingest(report: Report, store: Store) -> Dataset:
    """Put a report's images and samples into the store.

    Images keep the bytes they came in; one that is in the store already is not read again.

    Raises:
        DatasetError: An image is no longer what was checked.
        StoreError: The store cannot be written.
    """
    put = partial(_put, store=store, memory=MemoryBudget(MAX_FILE_BYTES))
    stored = zip(report.files, in_threads(put, report.files), strict=True)
    # Once each, though an image's mask may have changed too.
    changed = dict.fromkeys(file.name for file, is_stored in stored if not is_stored)
    if changed:
        problem = "changed while it was checked; submit again"
        raise DatasetError([Problem(name, problem) for name in changed], "prepare")
    dataset = dataset_of(balanced(report.samples))
    store.put_if_absent(dataset_key(dataset.digest), dataset.model_dump_json().encode())
    return dataset


def _put(file: CheckedFile, store: Store, memory: MemoryBudget) -> bool:
    """Whether a file is what was checked; then it is in the store."""
    key = image_key(file.image)
    if store.exists(key):
        return True
    try:
        with memory.taken(file.path.stat().st_size):
            data = file.path.read_bytes()
            if hashlib.sha256(data).digest() != file.sha256:
                return False
            store.put_if_absent(key, data)
            return True
    except OSError:
        return False
