"""Runs of MLflow."""

import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.tracking import MlflowSecret, TrackerRequest
from worker.tracker.run import RunEnd

_TAG = "training_worker.job_id"
_LOSS = "train/loss"
_FLUSH_EVERY_S = 5.0
# MLflow's own limits of a request.
_MAX_METRICS, _MAX_PARAMS, _MAX_PARAM_CHARACTERS = 1000, 100, 500


class MlflowRun:
    """The run that has the job's id as a tag; made if there is none.

    Args:
        request: The job.
        secret: Its tenant's secret.
    """

    def __init__(self, request: TrackerRequest, secret: MlflowSecret) -> None:
        credentials = {
            "USERNAME": secret.username,
            "PASSWORD": secret.password and secret.password.get_secret_value(),
            "TOKEN": secret.token and secret.token.get_secret_value(),
        }
        os.environ |= {f"MLFLOW_TRACKING_{k}": value for k, value in credentials.items() if value}
        # A redirect could lead to what only this machine may reach.
        os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
        os.environ["MLFLOW_ALLOW_HTTP_REDIRECTS"] = "false"
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=secret.address)
        experiment = self._client.get_experiment_by_name(secret.experiment)
        experiment_id = (
            self._client.create_experiment(secret.experiment)
            if experiment is None
            else experiment.experiment_id
        )
        query = f"tags.`{_TAG}` = '{request.job_id}'"
        found = self._client.search_runs([experiment_id], query, max_results=1)
        if found:
            run = found[0]
            self._id = run.info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {_TAG: request.job_id}
            run = self._client.create_run(experiment_id, tags=tags, run_name=request.name)
            self._id = run.info.run_id
            params = [Param(k, v) for k, v in _flat(request.config).items()][:_MAX_PARAMS]
            self._client.log_batch(self._id, params=params)
        uri = str(run.info.artifact_uri)
        self._artifacts: Any = None
        if _is_on_server(uri, secret.address):
            self._artifacts = get_artifact_repository(uri, secret.address)
        # MLflow keeps two values of one step.
        history = self._client.get_metric_history(self._id, _LOSS) if found else []
        self._last_step = max((metric.step for metric in history), default=0)
        self._pending: list[Any] = []
        self._flushed_s = time.monotonic()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step."""
        if step <= self._last_step:
            return
        self._last_step = step
        now_ms = int(time.time() * 1000)
        self._pending += [self._metric(name, it, now_ms, step) for name, it in values.items()]
        is_full = len(self._pending) >= _MAX_METRICS - len(values)
        if is_full or time.monotonic() - self._flushed_s > _FLUSH_EVERY_S:
            self._flush()

    def log_image(self, step: int, path: Path, caption: str) -> None:
        """Log a validation image, if the server takes it itself."""
        self._flush()
        if self._artifacts is not None:
            self._artifacts.log_artifact(str(path), f"validation/{step:06d}")

    def finish(self, end: RunEnd) -> None:
        """Send what is left, and end the run."""
        self._flush()
        if end != "interrupted":
            self._client.set_terminated(self._id, "FINISHED" if end == "succeeded" else "FAILED")

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        self._flushed_s = time.monotonic()
        if pending:
            self._client.log_batch(self._id, metrics=pending)


def _is_on_server(artifact_uri: str, address: str) -> bool:
    """Return whether a server keeps a run's files itself.

    It may name any place: a folder of this machine, a host that only this machine reaches, or a
    bucket that this machine's own credentials open.
    """
    place, server = urlsplit(artifact_uri), urlsplit(address)
    return place.scheme in ("mlflow-artifacts", server.scheme) and (
        place.netloc in ("", server.netloc)
    )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return options by their dotted paths, as texts of the length that MLflow takes."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)[:_MAX_PARAM_CHARACTERS]
    return found
