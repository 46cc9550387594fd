"""The batches of a run as a data loader that the library iterates, epoch by epoch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from worker.trainer.data.batches import Batch, BatchPlan, SampleReader, ignore_stop_signal


class NumberedBatches(Dataset[dict[str, Any]]):
    """Batches by their number in the run; None before ``first``, without reading anything.

    Args:
        reader: Reads the samples.
        plan: The plan of the batches.
        first: The number of the first batch that is computed.
    """

    def __init__(self, reader: SampleReader, plan: BatchPlan, first: int) -> None:
        self._reader = reader
        self._plan = plan
        self._first = first

    def __len__(self) -> int:
        return self._plan.batches_per_epoch

    def __getitem__(self, number: int) -> dict[str, Any]:
        batch: Batch | None = None
        if number >= self._first:
            batch = self._reader.read(*self._plan.batch(number))
        return {"number": number, "batch": batch}


class EpochByEpoch(Sampler[list[int]]):
    """The numbers of an epoch's batches; each iteration is the next epoch.

    Args:
        batches: Batches of an epoch.
    """

    # accelerate reads these attributes of batch samplers.
    batch_size = 1
    drop_last = False

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._begun = 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        start = self._begun * self._batches
        self._begun += 1
        return iter([[number] for number in range(start, start + self._batches)])


def library_loader(
    reader: SampleReader, plan: BatchPlan, first: int, workers: int, *, on_gpu: bool
) -> DataLoader[dict[str, Any]]:
    """Make the loader; see ``worker.trainer.data.batches.TrainingData`` for its settings.

    Args:
        reader: Reads the samples.
        plan: The plan of the batches.
        first: The number of the first batch that is computed.
        workers: Processes that read ahead.
        on_gpu: Whether a GPU computes.
    """
    return DataLoader(
        NumberedBatches(reader, plan, first),
        batch_sampler=EpochByEpoch(plan.batches_per_epoch),
        collate_fn=_the_only,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=ignore_stop_signal,
        pin_memory=on_gpu,
        generator=torch.Generator(),
    )


def _the_only(batches: list[dict[str, Any]]) -> dict[str, Any]:
    [batch] = batches
    return batch
