"""Search among all jobs by what their summaries say, newest first and page by page.

The index is by time and tenant, and everything else is read from the jobs: a search looks at a
bounded number of them, and returns where the next one begins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from tasks.state.job_reader import JobReader
from tasks.state.record import JobSummary

_MIN_BATCH, _MAX_BATCH = 50, 500


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to find; empty values find all.

    Attributes:
        text: A text in the id, name, title or notes, in any case.
        status: A ``JobStatus``.
        queue: The queue that the job waits in, or the one of its GPU stages.
        type: A training type.
        labels: Labels that the job has; None is any value.
        created_after: Jobs that were submitted at this time or later.
        created_before: Jobs that were submitted before this time.
    """

    text: str = ""
    status: str | None = None
    tenant: str | None = None
    queue: str | None = None
    type: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None

    def matches(self, job: JobSummary) -> bool:
        """Return whether a job is meant, but for its tenant and time, which indexes decide."""
        text = self.text.lower()
        texts = (job.id, job.name, job.title or "", job.notes or "")
        return (
            any(text in it.lower() for it in texts)
            and self.status in (None, job.status)
            and self.queue in (None, job.gpu_queue, job.pending_queue)
            and self.type in (None, job.type)
            and all(
                name in job.labels and value in (None, job.labels[name])
                for name, value in self.labels.items()
            )
        )


class FoundJobs(NamedTuple):
    """A page of jobs.

    Attributes:
        ids: Their ids, newest first.
        last: Where the next page begins; None if there are no more jobs.
    """

    ids: list[str]
    last: tuple[float, str] | None


def parse_labels(texts: Iterable[str]) -> dict[str, str | None]:
    """Parse labels to search for: ``name=value``, or ``name`` for any value.

    Raises:
        ValueError: A text has no name.
    """
    labels: dict[str, str | None] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name:
            raise ValueError("a label is name=value, or a name alone")
        labels[name] = value if separator else None
    return labels


def find_jobs(
    jobs: JobReader,
    wanted: JobFilter,
    limit: int,
    *,
    after: tuple[float, str] | None = None,
    max_searched: int | None = None,
) -> FoundJobs:
    """Return the newest jobs that match.

    Args:
        jobs: Reads jobs.
        wanted: Which jobs.
        limit: The maximum number of jobs.
        after: ``last`` of the page before.
        max_searched: How many jobs to look at; None looks at all.
    """
    if after is None and wanted.created_before is not None:
        # Any id sorts after the empty one: jobs of exactly that time are left out.
        after = (wanted.created_before.timestamp(), "")
    oldest = wanted.created_after.timestamp() if wanted.created_after else 0.0
    batch = min(max(limit + 1, _MIN_BATCH), _MAX_BATCH)
    found: list[tuple[float, str]] = []
    searched, last = 0, after
    # One more than the page holds shows whether there are more.
    while len(found) <= limit and (max_searched is None or searched < max_searched):
        entries = jobs.submitted(wanted.tenant, last, batch)
        recent = [entry for entry in entries if entry[0] >= oldest]
        matching = {job.id for job in jobs.summaries([i for _, i in recent]) if wanted.matches(job)}
        found += [entry for entry in recent if entry[1] in matching]
        searched += len(entries)
        last = entries[-1] if entries and len(recent) == len(entries) else None
        if last is None:
            break
    page = found[:limit]
    if len(found) > limit:
        last = page[-1]
    return FoundJobs([job_id for _, job_id in page], last)
