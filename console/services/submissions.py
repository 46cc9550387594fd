"""Submitting a job, or only looking at what would become of it."""

from collections.abc import Collection
from typing import Any

from console.services.dataset_checks import Checked
from console.services.job_ids import with_id
from console.services.jobs import JobViews, for_tenants
from console.services.tenant_policy import TenantPolicy
from console.views import JobView, Preview, PriceView
from routing.classes import MemoryClass
from tasks.api_keys import Caller
from tasks.client import Client
from tasks.data.read_policy import ReadPolicy
from tasks.errors import InvalidJobError, Problem
from tasks.eta.estimate import Forecast, forecast
from tasks.jobs.job import TrainingJob, parse_job
from tasks.settings.settings import Settings

_GPU_STAGES = ("cache", "train")


class Submissions:
    """Takes jobs; safe to use by several threads.

    Args:
        client: The fleet.
        settings: Say what tenants may name, and what GPUs cost.
        jobs: Makes what is shown.
    """

    def __init__(self, client: Client, settings: Settings, jobs: JobViews) -> None:
        self._client, self._settings, self._jobs = client, settings, jobs
        self._roots = settings.listed_tenant_roots
        self._permission = TenantPolicy(self._roots, settings.data_access().hosts)

    def submit(self, account: Caller, document: Any, idempotency_key: str | None) -> JobView:
        """Submit a job; see ``Service.submit``."""
        self.checked(account, document)
        theirs = with_id(account, _as_theirs(account, document), idempotency_key)
        try:
            reads = None if account.tenant is None else self._roots
            job_id = self._client.submit(theirs, reads=reads)
        except InvalidJobError as error:
            if idempotency_key is None or [it.location for it in error.problems] != ["id"]:
                raise
            problem = Problem("Idempotency-Key", "was used for another job; use a new one")
            raise InvalidJobError([problem]) from error
        return self._jobs.view(self._client.state.get(job_id), account)

    def checked(self, account: Caller, document: Any) -> TrainingJob:
        """The job, as far as it can be judged by its description.

        Raises:
            InvalidJobError: It cannot run, or this account may not submit it; with every fault.
        """
        problems = []
        if isinstance(document, dict) and account.tenant is not None:
            given = document.get("tenant", account.tenant)
            if given != account.tenant:
                problem = f"this key submits as {account.tenant} and as nobody else; leave it out"
                problems.append(Problem("tenant", problem))
        try:
            job = parse_job(_as_theirs(account, document))
        except InvalidJobError as error:
            raise InvalidJobError([*problems, *error.problems]) from error
        if account.tenant is not None:
            problems += self._permission.problems(job)
        if problems:
            raise InvalidJobError(problems)
        return job

    def access(self, account: Caller) -> ReadPolicy:
        """What an account's datasets may be."""
        access = self._settings.data_access()
        return access if account.tenant is None else access.narrowed(self._roots)

    def preview(
        self,
        account: Caller,
        job: TrainingJob,
        found: Checked | None,
        sizes: Collection[int] | None = None,
    ) -> Preview:
        """What would become of a job.

        Args:
            account: Who asks.
            job: The job.
            found: What its dataset is like; None where nobody has looked.
            sizes: How many images are of each training size, where that is known without.

        Raises:
            DoesNotFitJobError: No GPU memory class holds it.
        """
        route = job.route(self._settings.constants)
        sizes = sizes if found is None else found.sizes
        expected = forecast(job.training, route.gpu_queue, self._jobs.learned(), sizes)
        return Preview(
            job=job,
            route=route.document(),
            warnings=tuple(job.training.warnings()),
            waits=for_tenants(self._client.why_waiting(route.gpu_queue), account),
            expected=expected.document(),
            price=_price(self._settings.prices(), route.memory_class, expected),
            dataset=None if found is None else found.report,
            error=None if found is None else found.error,
        )


def _as_theirs(account: Caller, document: Any) -> Any:
    """The document with the account's tenant."""
    if account.tenant is None or not isinstance(document, dict):
        return document
    return {**document, "tenant": account.tenant}


def _price(
    prices: dict[MemoryClass, float], memory_class: MemoryClass, expected: Forecast
) -> PriceView | None:
    per_hour = prices.get(memory_class)
    if per_hour is None:
        return None
    seconds = [it.seconds for it in expected.stages if it.stage in _GPU_STAGES]
    known = [it for it in seconds if it is not None]
    hours, is_all = sum(known) / 3600, len(known) == len(seconds)
    return PriceView(
        amount=hours * per_hour if is_all else None,
        at_least=hours * per_hour,
        per_hour=per_hour,
        gpu_hours=hours if is_all else None,
    )
