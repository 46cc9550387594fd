"""Jobs side by side: their curves, their samples, and the options in which they differ."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from console.services.jobs.job_files import JobFiles
from console.services.jobs.jobs import Jobs
from console.services.threads import in_thread
from console.views import JobView, SampleView
from tasks.access.api_keys import Caller
from tasks.client import Client
from tasks.escaping import shortened
from tasks.events import Progress
from tasks.state.record import JobRecord
from tasks.urls import redact_urls

MAX_JOBS = 4
"""The most jobs that are compared: more curves cannot be read."""
_MAX_VALUE = 300


class ComparedJob(NamedTuple):
    """One of the jobs.

    Attributes:
        view: The job.
        losses: Step and loss of each report of progress.
        samples: Its validation images; none if the caller may not read files.
    """

    view: JobView
    losses: tuple[tuple[int, float], ...]
    samples: tuple[SampleView, ...]


class Difference(NamedTuple):
    """An option in which the jobs differ.

    Attributes:
        option: The option's path, such as ``data_loader.resolution``.
        values: The value of each job as text; empty for a job without the option.
    """

    option: str
    values: tuple[str, ...]


class Comparison(NamedTuple):
    """Jobs side by side."""

    jobs: tuple[ComparedJob, ...]
    differences: tuple[Difference, ...]


class Comparisons:
    """Compares jobs that a caller sees.

    Args:
        client: The fleet's client.
        jobs: The jobs service.
        files: The jobs' files.
    """

    def __init__(self, client: Client, jobs: Jobs, files: JobFiles) -> None:
        self._client, self._jobs, self._files = client, jobs, files

    async def compare(
        self, caller: Caller, job_ids: Sequence[str], *, with_samples: bool
    ) -> Comparison:
        """Compare up to ``MAX_JOBS`` jobs, as they are now.

        Raises:
            UnknownJobError: The caller does not see one of them.
        """
        unique = list(dict.fromkeys(job_ids))[:MAX_JOBS]
        records = [await in_thread(self._jobs.record)(caller, job_id) for job_id in unique]
        compared = []
        for record in records:
            samples = await self._files.samples(caller, record.id) if with_samples else ()
            view = await in_thread(self._jobs.view)(record, caller)
            losses = await in_thread(self._losses)(record)
            compared.append(ComparedJob(view, losses, samples))
        return Comparison(tuple(compared), tuple(differences(records)))

    def _losses(self, record: JobRecord) -> tuple[tuple[int, float], ...]:
        return tuple(
            (event.done, event.loss)
            for _, event in self._client.state.events(record.id)
            if isinstance(event, Progress) and event.loss is not None
        )


def differences(records: Sequence[JobRecord]) -> Iterator[Difference]:
    """Yield the options in which jobs differ, in the order of the options."""
    options = [dict(_flat(_document(record))) for record in records]
    for option in dict.fromkeys(name for each in options for name in each):
        values = tuple(each.get(option, "") for each in options)
        if len(set(values)) > 1:
            yield Difference(option, values)


def _document(record: JobRecord) -> dict[str, Any]:
    training = record.job.training.model_dump(mode="json")
    return {"preset": record.job.preset, "engine": record.job.engine, **redact_urls(training)}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each option below a value with its path and its value as text."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _flat(each, f"{path}.{name}" if path else name)
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    yield path, shortened(text, _MAX_VALUE)
