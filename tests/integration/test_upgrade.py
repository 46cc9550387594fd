"""Workers of two versions on one broker: real processes with empty stages."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pydantic import SecretStr

from tasks import events
from tasks.client import Client
from tasks.contract import STAGES, SUBMIT, SUBMIT_QUEUE
from tasks.settings.settings import Settings
from tasks.state.record import VERSION, JobStatus
from tests.integration.fleets import PATIENCE_S
from tests.waiting import wait_until
from worker.local.embedded_broker import EmbeddedBroker
from worker.supervision.process import spawn, stop

ROOT = Path(__file__).parents[2]
OLD_JOBS, NEW_JOBS, NEW_MESSAGES = 25, 20, 5
# What makes a version newer: its number, and fields that the version before refuses.
CHANGES = {
    "tasks/state/record.py": [
        (f"VERSION = {VERSION}\n", f"VERSION = {VERSION + 1}\n"),
        (
            "    summary: str | None = None\n",
            '    summary: str | None = None\n    host: str = "h"\n',
        ),
    ],
    "tasks/jobs/job.py": [
        ("schema_version: Literal[1] = 1", "schema_version: Literal[1, 2] = 2"),
        ("    training: TrainingConfig\n", '    note: str = "new"\n    training: TrainingConfig\n'),
    ],
}
SUBMIT_MANY = """
import json, sys
from tasks.client import Client
from tasks.settings.settings import Settings
settings = Settings()
client = Client(settings, settings.broker_url.get_secret_value())
print(json.dumps([client.submit(job) for job in json.load(sys.stdin)]))
"""


def job_of(tmp_path: Path) -> dict[str, Any]:
    """Return a job for a GPU of 40 GB; its files are never read."""
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(tmp_path)}
    training = {"data_loader": {"dataset": dataset}}
    return {"preset": "flux_lora_1x40gb", "training": training}


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the next version."""
    folder = tmp_path_factory.mktemp("newer")
    for name in ("routing", "tasks", "worker", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name, changes in CHANGES.items():
        text = (folder / name).read_text("utf-8")
        for old, new in changes:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        (folder / name).write_text(text, "utf-8")
    return folder


class Site:
    """A broker with processes of both versions."""

    def __init__(self, folder: Path, url: str, newer: Path) -> None:
        self.folder, self.url = folder, url
        self.sources = {"old": ROOT, "new": newer}
        self.settings = Settings(broker_url=SecretStr(url), home=folder / "home")
        self.client = Client(self.settings, url)

    def env(self, version: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
        return {
            **kept,
            "PYTHONPATH": str(self.sources[version]),
            "TRAINING_BROKER_URL": self.url,
            "TRAINING_HOME": str(self.folder / "home"),
            "TRAINING_VISIBILITY_TIMEOUT": "4",
            "TRAINING_RETRY_BACKOFF": "0.5",
        }

    @contextmanager
    def workers(self, version: str) -> Iterator[None]:
        """Run a CPU worker and a GPU worker of a version, and drain them."""
        with ExitStack() as stack:
            ready = []
            for kind, queues in (("cpu", "cpu"), ("gpu", "gpu.40gb,gpu.24gb,gpu.16gb,gpu.8gb")):
                name = f"{version}-{kind}"
                ready.append(self.folder / f"{name}-ready")
                worker = [
                    "-m",
                    "benchmarks.noop_worker",
                    "training-worker",
                    name,
                    queues,
                    str(ready[-1]),
                ]
                with self.log(name).open("wb") as log:
                    process = spawn(
                        [sys.executable, "-P", *worker],
                        env=self.env(version),
                        stdout=log,
                        stderr=log,
                    )
                stack.callback(stop, process, 20)
            wait_until(
                lambda: all(file.exists() for file in ready),
                timeout_s=PATIENCE_S,
                description=f"the {version} workers are ready",
                detail=self.logs,
            )
            yield

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def logs(self) -> str:
        return "\n".join(path.read_text("utf-8") for path in sorted(self.folder.glob("*.log")))

    def run(
        self, version: str, *arguments: str, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", *arguments],
            env=self.env(version),
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def wait_for(self, job_ids: list[str]) -> None:
        def all_ended() -> bool:
            heads = self.client.state.summaries(job_ids)
            return len(heads) == len(job_ids) and all(head.status.ended for head in heads)

        wait_until(
            all_ended,
            timeout_s=PATIENCE_S,
            description="all jobs have ended",
            detail=lambda: f"{self.client.state.summaries(job_ids)}\n{self.logs()}",
        )

    def events(self, job_id: str) -> list[events.Event]:
        return [event for _, event in self.client.state.events(job_id)]


@pytest.fixture
def site(tmp_path: Path, newer: Path) -> Iterator[Site]:
    with EmbeddedBroker(tmp_path / "broker") as broker:
        yield Site(tmp_path, broker.url, newer)


def assert_readable_to_users(site: Site, old_jobs: list[str], new_jobs: list[str]) -> None:
    listed = site.run("old", "-m", "worker", "list", "--limit", "99", "--json")
    assert {job["id"] for job in json.loads(listed.stdout)} == set(old_jobs)
    refusal = f"has version {VERSION + 1}, and this program reads {VERSION}"
    assert listed.stderr.count(refusal) == len(new_jobs)
    status = site.run("old", "-m", "worker", "status", new_jobs[0])
    assert (status.returncode, refusal in status.stderr) == (1, True)
    printed = site.run("new", "-m", "worker", "status", new_jobs[0]).stdout
    wanted = f"waits: prepare waits for a worker of version {VERSION + 1}; those of cpu have"
    assert wanted in printed


def assert_done_once(site: Site, job_id: str) -> None:
    job_events = site.events(job_id)
    started = Counter(event.stage for event in job_events if isinstance(event, events.StageStarted))
    assert started == dict.fromkeys(STAGES, 1), job_events
    finished = Counter(
        event.stage for event in job_events if isinstance(event, events.StageFinished)
    )
    assert finished == dict.fromkeys(STAGES, 1), job_events
    assert [event.status for event in job_events if isinstance(event, events.JobEnded)] == [
        "succeeded"
    ]
    head = site.client.state.summary(job_id)
    assert (head.status, head.retries) == (JobStatus.SUCCEEDED, 0)


def assert_left_to_newer_workers(site: Site, job_id: str) -> bool:
    """Check a job of the newer version; return whether an older worker got it."""
    job_events = site.events(job_id)
    workers = {event.worker for event in job_events if isinstance(event, events.StageStarted)}
    assert all(name.startswith("new-") for name in workers), workers
    notes = [event.message for event in job_events if isinstance(event, events.Note)]
    waits = [note for note in notes if f"waits for a worker of version {VERSION + 1}" in note]
    assert len(waits) <= 1, notes
    logged = [line for line in site.logs().splitlines() if f"job={job_id}" in line]
    assert sum("waits for a worker of a newer version" in line for line in logged) == len(waits)
    return bool(waits)


def test_an_upgrade_loses_and_repeats_no_job(site: Site) -> None:
    document = job_of(site.folder)
    newer_document = {**document, "schema_version": 2}
    backend = Celery(broker=site.url, backend=site.url)
    with ExitStack() as old:
        old.enter_context(site.workers("old"))
        sent = site.run("new", "-c", SUBMIT_MANY, given=json.dumps([document] * NEW_JOBS))
        assert sent.returncode == 0, sent.stderr
        new_jobs: list[str] = json.loads(sent.stdout)
        old_jobs = [site.client.submit(document) for _ in range(OLD_JOBS)]

        # No worker can run the newer jobs yet; the others finish.
        site.wait_for(old_jobs)
        waiting = site.client.state.summaries(new_jobs)
        assert [head.attempt for head in waiting] == [0] * NEW_JOBS
        assert not any(head.status.ended for head in waiting)
        assert_readable_to_users(site, old_jobs, new_jobs)
        # Without a newer worker, a document of a newer version is refused.
        result = backend.send_task(SUBMIT, (newer_document,), queue=SUBMIT_QUEUE)
        refused = result.get(timeout=PATIENCE_S, propagate=False)
        assert refused.args[1:3] == ("invalid_job", "submit")
        assert "schema_version: " in refused.args[0]

        with site.workers("new"):
            results = [
                backend.send_task(SUBMIT, (newer_document,), queue=SUBMIT_QUEUE)
                for _ in range(NEW_MESSAGES)
            ]
            new_jobs += [result.get(timeout=PATIENCE_S)["job_id"] for result in results]
            old_jobs.append(site.client.submit(document))
            site.wait_for([*new_jobs, *old_jobs])
            old.close()
            # The newer workers continue the jobs that the older ones held.
            old_jobs.append(site.client.submit(document))
            site.wait_for(old_jobs)

    for job_id in [*old_jobs, *new_jobs]:
        assert_done_once(site, job_id)
    passed_on = sum(assert_left_to_newer_workers(site, job_id) for job_id in new_jobs)
    assert passed_on >= NEW_JOBS, site.logs()
