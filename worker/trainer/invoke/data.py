"""The batches of a run as a data loader that the library walks through, pass by pass."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from worker.trainer.data.batches import Batch, BatchPlan, SampleReader, ignore_stop_signal


class NumberedBatches(Dataset[dict[str, Any]]):
    """Batches by their number in the run; those before ``first`` are not read, but None.

    Args:
        reader: Reads them.
        plan: Says what is in them.
        first: The number of the first one that is computed.
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


class PassByPass(Sampler[list[int]]):
    """The numbers of a pass's batches; each time the next pass's.

    Args:
        batches: Of a pass.
    """

    # What accelerate asks batch samplers for.
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
    """The loader; see ``worker.trainer.data.batches.TrainingData`` for its settings."""
    return DataLoader(
        NumberedBatches(reader, plan, first),
        batch_sampler=PassByPass(plan.batches_per_epoch),
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
