"""Submission and preview of jobs."""

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from console.errors import BadRequestError
from console.services.images.dataset_checks import CheckedDataset, DatasetChecks
from console.services.jobs.jobs import ID_DIGITS, Jobs, tenant_job_id, without_quarantine_reasons
from console.services.jobs.tenant_policy import TenantPolicy
from console.services.threads import in_thread
from console.views import EstimateView, JobView, Preview, PriceView, RouteView
from routing.classes import GIB, GpuPrices, MemoryClass
from routing.policy import Route
from tasks.access.api_keys import Caller
from tasks.client import Client
from tasks.data.read_policy import ReadPolicy
from tasks.data.stored_datasets import with_uploads
from tasks.errors import InvalidJobError, Problem
from tasks.eta.estimate import Basis, Forecast, forecast
from tasks.jobs.job import TrainingJob, parse_job
from tasks.jobs.run_warnings import count_warnings
from tasks.settings.settings import Settings
from tasks.store import Store

_GPU_STAGES = ("cache", "train")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# A tenant's id grows by a hyphen and a digest, up to the 100 characters of a job id.
_MAX_TENANT_ID = 100 - ID_DIGITS - 1


class Submissions:
    """Submits and previews jobs; thread-safe.

    A tenant's key submits as its tenant, and ``TenantPolicy`` decides what its jobs may name.

    Args:
        client: The fleet's client.
        settings: What tenants may name, and prices of GPUs.
        jobs: The jobs service.
        checks: Checks datasets.
    """

    def __init__(
        self, client: Client, settings: Settings, jobs: Jobs, checks: DatasetChecks
    ) -> None:
        self._client, self._settings, self._jobs, self._checks = client, settings, jobs, checks
        self._roots = settings.listed_tenant_roots
        self._policy = TenantPolicy(self._roots, settings.data_access().hosts)

    @in_thread
    def submit(
        self, caller: Caller, document: Any, *, idempotency_key: str | None = None
    ) -> JobView:
        """Submit a job; submitting the same job again returns the first one.

        Args:
            caller: The caller.
            document: The job.
            idempotency_key: Names the job when it has no id: the same key is the same job.

        Raises:
            InvalidJobError: The job cannot run; lists every problem.
            DoesNotFitJobError: No GPU memory class holds the job.
            BadRequestError: The idempotency key is malformed.
        """
        job = _with_id(caller, self._parse(caller, document), idempotency_key)
        try:
            reads = None if caller.is_operator else self._roots
            job_id = self._client.submit_job(job, reads=reads)
        except InvalidJobError as error:
            if idempotency_key is None or [problem.location for problem in error.problems] != [
                "id"
            ]:
                raise
            problem = Problem("Idempotency-Key", "was used for another job", "use a new one")
            raise InvalidJobError([problem]) from error
        return self._jobs.view(self._client.state.get(job_id), caller)

    async def preview(
        self,
        caller: Caller,
        document: Any,
        *,
        check_dataset: bool = True,
        sizes: Collection[int] | None = None,
    ) -> Preview:
        """Return what would happen to a job, without submitting it.

        Args:
            caller: The caller.
            document: The job.
            check_dataset: Whether to read its dataset and base model from this machine.
            sizes: Images per training size, when known without a check.

        Raises:
            InvalidJobError: The job cannot run as described; lists every problem.
            DoesNotFitJobError: No GPU memory class holds the job.
            TooManyError: Too many datasets are being checked.
        """
        job = await in_thread(self._parse)(caller, document)
        dataset: CheckedDataset | None = None
        if check_dataset:
            present = await in_thread(self._with_uploads)(job)
            dataset = await self._checks.check(caller.account, present, self._read_policy(caller))
            sizes = dataset.sizes
        return await in_thread(self._preview)(caller, job, dataset, sizes)

    async def check_working_copy(
        self, caller: Caller, document: Any, folder: Path
    ) -> CheckedDataset:
        """Check the loose files of a job that is not submitted yet.

        Args:
            caller: The caller.
            document: The job, whose archive is ``WORKING_COPY``.
            folder: The folder of the files.

        Raises:
            InvalidJobError: The job cannot run as described; lists every problem.
            TooManyError: Too many datasets are being checked.
        """
        job = await in_thread(self._parse)(caller, document)
        policy = self._read_policy(caller)
        return await self._checks.check(caller.account, job, policy, folder)

    def _parse(self, caller: Caller, document: Any) -> TrainingJob:
        """Return the job, validated as far as its document allows.

        Raises:
            InvalidJobError: The job cannot run, or this caller may not submit it.
        """
        problems = []
        if isinstance(document, dict) and caller.tenant is not None:
            tenant = document.get("tenant", caller.tenant)
            if tenant != caller.tenant:
                problem = f"this key submits as {caller.tenant} only"
                problems.append(Problem("tenant", problem, "omit the tenant"))
        try:
            job = parse_job(_with_tenant(caller, document))
        except InvalidJobError as error:
            raise InvalidJobError([*problems, *error.problems], more=error.more) from error
        problems += self._client.state.webhook_problems(job)
        if not caller.is_operator:
            problems += self._policy.problems(job)
        if problems:
            raise InvalidJobError(problems)
        return job

    def _with_uploads(self, job: TrainingJob) -> TrainingJob:
        """Return the job with the present images of the saved datasets that it names.

        Raises:
            InvalidJobError: There is no such dataset.
        """
        return with_uploads(job, lambda: Store(self._settings.resolved_store_url))

    def _read_policy(self, caller: Caller) -> ReadPolicy:
        """Return what a caller's datasets may be read from."""
        policy = self._settings.data_access()
        return policy if caller.is_operator else policy.narrowed(self._roots)

    def _preview(
        self,
        caller: Caller,
        job: TrainingJob,
        dataset: CheckedDataset | None,
        sizes: Collection[int] | None,
    ) -> Preview:
        route = job.route(self._settings.constants)
        history = self._jobs.run_history()
        estimate = forecast(job.training, route.gpu_queue, history, sizes)
        emulated = route.memory_class in history.emulated
        waiting_reason = self._client.unserved_reason(route.gpu_queue)
        # A checked dataset's report has them.
        put_off = count_warnings(job.training, sizes) if sizes and dataset is None else []
        return Preview(
            job=job,
            route=RouteView.model_validate({**route.document(), "emulated": emulated}),
            warnings=(*job.warnings(), *put_off),
            waiting_reason=without_quarantine_reasons(waiting_reason, caller),
            estimate=EstimateView.model_validate(estimate.document()),
            price=_price(self._settings.prices(), route.memory_class, estimate),
            file_bytes=_file_bytes(job, route),
            dataset=None if dataset is None else dataset.report,
            error=None if dataset is None else dataset.error,
        )


def _with_tenant(caller: Caller, document: Any) -> Any:
    """Return the document with the caller's tenant."""
    if caller.tenant is None or not isinstance(document, dict):
        return document
    return {**document, "tenant": caller.tenant}


def _with_id(caller: Caller, job: TrainingJob, idempotency_key: str | None) -> TrainingJob:
    """Return the job with the id that it gets.

    Raises:
        BadRequestError: The idempotency key is malformed.
        InvalidJobError: The id is too long.
    """
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise BadRequestError(
            "an Idempotency-Key has 1 to 255 visible ASCII characters", "Idempotency-Key"
        )
    job_id = job.id
    if job_id is None and idempotency_key is not None:
        scope = json.dumps([caller.tenant, caller.name, idempotency_key])
        job_id = hashlib.sha256(scope.encode()).hexdigest()[:24]
    elif job_id is not None and caller.tenant is not None:
        if len(job_id) > _MAX_TENANT_ID:
            raise InvalidJobError([Problem("id", f"has more than {_MAX_TENANT_ID} characters")])
        job_id = tenant_job_id(caller.tenant, job_id)
    return job.model_copy(update={"id": job_id})


def _file_bytes(job: TrainingJob, route: Route) -> int | None:
    """Return the size of a LoRA's file: its weights are float32, as on the GPU."""
    if "lora_rank_dim" not in type(job.training).model_fields:
        return None
    return round(route.estimate.parts()["adapters"] * GIB)


def _price(prices: GpuPrices, memory_class: MemoryClass, estimate: Forecast) -> PriceView | None:
    per_hour = prices.per_hour.get(memory_class)
    if per_hour is None:
        return None
    # A published speed is another card's; a price is not made from it.
    seconds = [
        None if stage.basis is Basis.PUBLISHED else stage.seconds
        for stage in estimate.stages
        if stage.stage in _GPU_STAGES
    ]
    known = [second for second in seconds if second is not None]
    hours, is_complete = sum(known) / 3600, len(known) == len(seconds)
    return PriceView(
        amount=hours * per_hour if is_complete else None,
        min_amount=hours * per_hour,
        per_hour=per_hour,
        gpu_hours=hours if is_complete else None,
        currency=prices.currency,
    )
