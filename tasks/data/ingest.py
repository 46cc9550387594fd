"""Ingestion: put a checked dataset into the store, its images by digest and its samples."""

import hashlib
import os
from collections.abc import Callable
from functools import partial

from tasks.data.decoding.image_check import MAX_FILE_BYTES
from tasks.data.memory_budget import MemoryBudget, map_in_threads
from tasks.data.opening import read_resolved
from tasks.data.validation import CheckedFile, Report
from tasks.dataset import Dataset, balanced, dataset_of
from tasks.errors import DatasetError, Problem
from tasks.store import Store, dataset_key, image_key


def ingest(
    report: Report, store: Store, *, check_stop: Callable[[], object] = lambda: None
) -> Dataset:
    """Put the images and samples of a report into the store.

    Image files are stored unchanged. A file whose image is in the store already is not read.

    Args:
        report: The report.
        store: The store.
        check_stop: Called a few times a second. An exception that it raises ends the ingestion.

    Raises:
        DatasetError: An image changed after it was checked.
        StoreError: The store cannot be written.
    """
    put = partial(_put, store=store, memory=MemoryBudget(MAX_FILE_BYTES))
    threads = min(32, os.cpu_count() or 1)
    puts = map_in_threads(put, report.files, threads, check_stop=check_stop)
    stored = zip(report.files, puts, strict=True)
    # Each name once: an image and its mask may both have changed.
    changed = dict.fromkeys(file.name for file, is_stored in stored if not is_stored)
    if changed:
        message = "changed after it was checked; submit again"
        raise DatasetError([Problem(name, message) for name in changed], "prepare")
    dataset = dataset_of(balanced(report.samples))
    store.put_if_absent(dataset_key(dataset.digest), dataset.model_dump_json().encode())
    return dataset


def _put(file: CheckedFile, store: Store, memory: MemoryBudget) -> bool:
    """Put a file into the store, and return whether it is unchanged since the check."""
    key = image_key(file.image)
    if store.exists(key):
        return True
    try:
        with memory.reserve(file.path.stat().st_size):
            data = read_resolved(file.path)
            if hashlib.sha256(data).hexdigest() != file.sha256:
                return False
            store.put_if_absent(key, data)
            return True
    except OSError:
        return False
