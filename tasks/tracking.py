"""Experiment trackers that a job reports to: Weights & Biases and MLflow, with tenants' secrets.

The tracker's library runs in a process of its own (``worker/tracker``): one that is slow or
unavailable costs a training neither time nor its end.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_serializer

from tasks.access.tenant_secrets import HeaderSecret, SecretError, TenantSecrets
from tasks.errors import Problem
from tasks.extras import is_installed, not_installed
from tasks.jobs.field_metadata import public_options
from tasks.jobs.job import TrainingJob
from tasks.strict_model import StrictModel
from tasks.urls import redact_urls

TrackerName = Literal["wandb", "mlflow"]
_BY_OPTION: dict[str, tuple[TrackerName, ...]] = {
    "tensorboard": (),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "all": ("wandb", "mlflow"),
}
_PROJECT = "training-worker"
_LOCATION = "training.report_to"
_Word = Annotated[str, Field(min_length=1, max_length=200)]
_Address = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[\x21-\x7e]+$")]


class WandbSecret(StrictModel):
    """The secret ``wandb``: as JSON, or an API key alone."""

    tracker: Literal["wandb"] = "wandb"

    api_key: HeaderSecret

    address: _Address = "https://api.wandb.ai"
    """The server."""

    entity: _Word | None = None
    """The team or user; null for the key's own."""

    project: _Word = _PROJECT

    @field_serializer("api_key", when_used="json")
    def _reveal(self, secret: SecretStr) -> str:
        return secret.get_secret_value()


class MlflowSecret(StrictModel):
    """The secret ``mlflow``, as JSON."""

    tracker: Literal["mlflow"] = "mlflow"

    address: _Address
    """The tracking server."""

    username: _Word | None = None

    password: SecretStr | None = None

    token: HeaderSecret | None = None

    experiment: _Word = _PROJECT

    @field_serializer("password", "token", when_used="json-unless-none")
    def _reveal(self, secret: SecretStr) -> str:
        return secret.get_secret_value()


TrackerSecret = Annotated[WandbSecret | MlflowSecret, Field(discriminator="tracker")]


class TrackerRequest(StrictModel):
    """What a tracker's process gets on its input, before the job's events. Never in a log."""

    secret: TrackerSecret

    job_id: str
    """The run's id: a job that resumes continues its run."""

    name: str

    config: dict[str, Any]
    """The training options, without places of the fleet."""

    scratch_dir: str
    """A folder for the library's own files."""


def tracker_requests(
    job: TrainingJob, job_id: str, secrets: TenantSecrets, scratch_dir: str
) -> Iterator[TrackerRequest | Problem]:
    """Yield the request of each tracker of a job, or what is wrong with its secret.

    ``all`` means those trackers that the tenant has a secret for.

    Raises:
        NotInstalledError: This worker lacks a tracker's library.
    """
    wanted = _BY_OPTION[job.training.report_to]
    for tracker in wanted:
        try:
            secret = _parsed(tracker, secrets.read(job.tenant, tracker))
        except SecretError as error:
            if len(wanted) == 1:
                yield Problem(_LOCATION, str(error))
            continue
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False, include_context=False)
            fields = ", ".join(sorted({".".join(map(str, it["loc"])) or "JSON" for it in details}))
            yield Problem(_LOCATION, f"the secret {tracker} is malformed: {fields}")
            continue
        yield TrackerRequest(
            secret=secret,
            job_id=job_id,
            name=job.name,
            config=redact_urls(public_options(job.training)),
            scratch_dir=scratch_dir,
        )


def require_tracker(request: TrackerRequest) -> None:
    """Check that a tracker's library is installed.

    Raises:
        NotInstalledError: It is not.
    """
    if not is_installed(request.secret.tracker):
        raise not_installed(request.secret.tracker)


def _parsed(tracker: TrackerName, text: str) -> WandbSecret | MlflowSecret:
    if tracker == "mlflow":
        return MlflowSecret.model_validate_json(text)
    if not text.startswith("{"):
        return WandbSecret(api_key=SecretStr(text))
    return WandbSecret.model_validate_json(text)
