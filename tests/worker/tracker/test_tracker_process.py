"""Runs in the trackers' own files, by their real libraries, and trackers that fail."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

from tasks.extras import is_installed
from tasks.tracking import MlflowSecret, TrackerRequest, WandbSecret
from tests.waiting import wait_until
from worker.supervision import tracker_process
from worker.supervision.tracker_process import TrackerProcess
from worker.tracker.mlflow_run import _is_on_server

KEY = "a1b2c3d4e5" * 4
# A process that stays is killed after the time to give up.
pytestmark = pytest.mark.usefixtures("hurried")
needs_wandb = pytest.mark.skipif(not is_installed("wandb"), reason="wandb is not installed")
needs_mlflow = pytest.mark.skipif(not is_installed("mlflow"), reason="MLflow is not installed")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "mlflow" not in request.node.name and "wandb" not in request.node.name:
        monkeypatch.setattr(tracker_process, "_GIVE_UP_S", 0.1)


def request_of(secret: WandbSecret | MlflowSecret, folder: Path) -> TrackerRequest:
    config = {"max_train_steps": 20, "optimizer": {"learning_rate": 1e-4}}
    return TrackerRequest(
        secret=secret,
        job_id="job-1",
        name="lamp",
        config=config,
        scratch_dir=str(folder / "scratch"),
    )


def wandb_request(folder: Path) -> TrackerRequest:
    return request_of(WandbSecret(api_key=SecretStr(KEY)), folder)


def started(request: TrackerRequest, **env: str) -> TrackerProcess:
    Path(request.scratch_dir).mkdir(exist_ok=True)
    return TrackerProcess(request, {**os.environ, **env})


def image_in(folder: Path) -> Callable[[], str]:
    def make() -> str:
        path = folder / "validation-000003-1-1.png"
        Image.new("RGB", (8, 8)).save(path)
        return str(path)

    return make


def report(tracker: TrackerProcess, steps: range, folder: Path, end: str = "succeeded") -> None:
    def has_run() -> bool:
        assert tracker.warning() is None
        return tracker._has_run

    wait_until(has_run, timeout_s=50, description="the tracker has a run")
    for step in steps:
        tracker.send({"step": step, "values": {"train/loss": 1 / step}})
    tracker.send_image(steps[-1], "1-1", image_in(folder))
    tracker.close(end)
    assert tracker.warning() is None


@needs_wandb
def test_wandb_gets_steps_images_and_options(tmp_path: Path) -> None:
    tracker = started(wandb_request(tmp_path), WANDB_MODE="offline")
    report(tracker, range(1, 4), tmp_path)
    (written,) = (tmp_path / "scratch").rglob("run-job-1.wandb")
    data = written.read_bytes()
    for text in (b"train/loss", b"validation/1-1", b"max_train_steps", b"lamp"):
        assert text in data
    assert list((tmp_path / "scratch").rglob("media/images/**/*.png"))
    # The key is in no file.
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in files)


@needs_mlflow
def test_mlflow_continues_a_run_without_doubled_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = (tmp_path / "runs").as_uri()
    request = request_of(MlflowSecret(address=address, password=SecretStr("hidden")), tmp_path)
    command = ("env", "MLFLOW_ALLOW_FILE_STORE=true", sys.executable, "-P", "-m", "worker.tracker")
    for steps, end in ((range(1, 7), "interrupted"), (range(5, 11), "succeeded")):
        Path(request.scratch_dir).mkdir(exist_ok=True)
        report(TrackerProcess(request, os.environ, command), steps, tmp_path, end)
    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("training-worker")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("lamp", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, 11))
    assert run.data.params["optimizer.learning_rate"] == "0.0001"
    images = client.list_artifacts(run.info.run_id, "validation/000006")
    assert len(images) == 1


def failing(folder: Path, program: str) -> TrackerProcess:
    request = wandb_request(folder)
    Path(request.scratch_dir).mkdir()
    return TrackerProcess(request, os.environ, (sys.executable, "-c", program))


def test_a_tracker_that_reads_nothing_delays_nothing(tmp_path: Path) -> None:
    tracker = failing(tmp_path, "import time; time.sleep(600)")
    text = "x" * 1000
    for step in range(5000):
        tracker.send({"step": step, "values": {text: 1.0}})
    warning = tracker.warning()
    assert warning is not None
    assert "more slowly" in warning
    assert tracker.warning() is None
    tracker.close("succeeded")


def test_a_tracker_that_ends_is_one_warning(tmp_path: Path) -> None:
    tracker = failing(tmp_path, "import sys; sys.stdin.readline()")
    warnings: list[str] = []

    def has_warned() -> bool:
        found = tracker.warning()
        warnings.extend([found] if found else [])
        return bool(warnings)

    wait_until(has_warned, timeout_s=50, description="the tracker's end is noticed")
    tracker.send({"step": 1, "values": {}})
    assert tracker.warning() is None
    assert warnings == ["the run is no longer reported to Weights & Biases: its process ended"]
    tracker.close("succeeded")


@needs_mlflow
def test_an_unreachable_server_is_a_warning_without_the_secret(tmp_path: Path) -> None:
    secret = MlflowSecret(address="http://127.0.0.1:1", username="me", password=SecretStr("hidden"))
    tracker = started(request_of(secret, tmp_path))
    found: list[Any] = []

    def has_warned() -> bool:
        found.append(tracker.warning())
        return found[-1] is not None

    wait_until(has_warned, timeout_s=50, description="the server is reported")
    assert "MLflow" in found[-1]
    assert "hidden" not in found[-1]
    tracker.close("succeeded")


@needs_mlflow
def test_no_redirect_of_an_mlflow_server_is_followed(tmp_path: Path) -> None:
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/of-this-machine-only")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        secret = MlflowSecret(address=f"http://127.0.0.1:{server.server_port}")
        tracker = started(request_of(secret, tmp_path))
        wait_until(lambda: tracker.warning() is not None, timeout_s=50, description="a warning")
        tracker.close("succeeded")
        server.shutdown()
    assert paths
    assert "/of-this-machine-only" not in paths


@needs_mlflow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the limit")
def test_an_endless_answer_of_an_mlflow_server_is_bounded(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**20))

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    less = "import worker.tracker.__main__ as it; it._MAX_BYTES = 2**29; it.main()"
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        secret = MlflowSecret(address=f"http://127.0.0.1:{server.server_port}")
        request = request_of(secret, tmp_path)
        Path(request.scratch_dir).mkdir()
        tracker = TrackerProcess(request, os.environ, (sys.executable, "-P", "-c", less))
        found: list[str | None] = []

        def has_warned() -> bool:
            found.append(tracker.warning())
            return found[-1] is not None

        wait_until(has_warned, timeout_s=50, description="a warning")
        tracker.close("succeeded")
        server.shutdown()
    assert "get-by-name failed" in str(found[-1])


@pytest.mark.parametrize(
    ("uri", "is_on_server"),
    [
        ("mlflow-artifacts:/1/run/artifacts", True),
        ("https://runs.example/api/2.0/mlflow-artifacts/artifacts/1", True),
        ("mlflow-artifacts://10.0.0.1/1", False),
        ("https://10.0.0.1/1", False),
        ("file:///srv/models", False),
        ("/srv/models", False),
        ("s3://bucket-of-the-operator/1", False),
    ],
)
def test_images_go_to_the_server_only(uri: str, is_on_server: bool) -> None:
    assert _is_on_server(uri, "https://runs.example") == is_on_server


def test_the_secret_is_in_no_command_line_or_environment(tmp_path: Path) -> None:
    import psutil

    tracker = failing(tmp_path, "import time; time.sleep(600)")
    process = psutil.Process(tracker._popen.pid)
    seen = json.dumps([process.cmdline(), process.environ()])
    tracker.close("failed")
    assert KEY not in seen
    assert "HF_TOKEN" not in seen
