"""Clients that others generate from the committed description, against a served console."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.console.conftest import Console, job
from tests.node_tools import NodeFolder

CONTRACT = Path(__file__).parents[3] / "deploy" / "contract"
GENERATOR = "openapi-python-client==0.29.1"
USE_PYTHON = """
import io
import sys
from http import HTTPStatus

from api import AuthenticatedClient
from api.api.catalog import list_presets
from api.api.files import inspect_file
from api.api.jobs import cancel_job, get_job, list_jobs, submit_job
from api.api.uploads import append_to_upload, create_upload, get_upload, upload_file
from api.models import (
    AppendToUploadTusResumable, CreateUploadTusResumable, JobPage, JobView, PresetJob,
    ProblemDocument, UploadForm, UploadView,
)
from api.types import File

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key)

job = PresetJob.from_dict(JOB)
submitted = submit_job.sync(client=client, body=job, idempotency_key="one")
assert isinstance(submitted, JobView), submitted
page = list_jobs.sync(client=client, limit=5)
assert isinstance(page, JobPage)
assert [it.id for it in page.jobs] == [submitted.id]
cancelled = cancel_job.sync(submitted.id, client=client)
assert isinstance(cancelled, JobView) and cancelled.status == "cancelled"

refused = submit_job.sync_detailed(client=client, body=PresetJob.from_dict({**JOB, "priority": 10}))
assert refused.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
assert isinstance(refused.parsed, ProblemDocument)
assert refused.parsed.retryable is False
[problem] = refused.parsed.errors
assert (problem.location, problem.code, bool(problem.remedy)) == ("priority", "out_of_range", True)
missing = get_job.sync(client=client, job_id="none")
assert isinstance(missing, ProblemDocument) and missing.code == "unknown_job"
assert inspect_file.sync_detailed("none", "a", client=client).status_code == 404

presets = list_presets.sync(client=client)
assert isinstance(presets, list) and presets[0].training.type_

created = create_upload.sync_detailed(
    client=client, tus_resumable=CreateUploadTusResumable.VALUE_0, upload_length=5
)
upload_id = created.headers["location"].rpartition("/")[2]
sent = append_to_upload.sync_detailed(
    upload_id,
    client=client,
    body=File(payload=io.BytesIO(b"bytes")),
    tus_resumable=AppendToUploadTusResumable.VALUE_0,
    upload_offset=0,
)
assert sent.status_code == HTTPStatus.NO_CONTENT, sent.content
upload = get_upload.sync(upload_id, client=client)
assert isinstance(upload, UploadView) and upload.offset == 5
form = UploadForm(file=File(payload=io.BytesIO(b"bytes"), file_name="a.zip"))
upload = upload_file.sync(client=client, body=form)
assert isinstance(upload, UploadView) and upload.name == "a.zip"
"""
USE_TYPESCRIPT = """
import createClient from "openapi-fetch";
import { type Job, type Preview, type Problem, type PublishedFile } from "./client.ts";
import type { components, paths } from "./api.ts";

const [baseUrl, key] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });

function check(isTrue: boolean, what: unknown): asserts isTrue {
  if (!isTrue) throw new Error(JSON.stringify(what));
}

// What the client of the contract declares is what the API describes.
export function same(schemas: components["schemas"]): [Job, Preview, Problem, PublishedFile] {
  return [schemas.JobView, schemas.Preview, schemas.ProblemView, schemas.FileView];
}

const body = {
  preset: "flux_lora_1x40gb",
  training: {
    data_loader: { dataset: { type: "ARCHIVE", archive: "https://example.org/images.zip" } },
  },
} as const;
const submitted = await client.POST("/jobs", { body });
check(submitted.data?.status === "queued", submitted);
const page = await client.GET("/jobs", { params: { query: { limit: 5 } } });
check(page.data?.jobs[0]?.id === submitted.data.id, page);
const params = { path: { job_id: submitted.data.id } };
const cancelled = await client.POST("/jobs/{job_id}:cancel", { params });
check(cancelled.data?.status === "cancelled", cancelled);

const refused = await client.POST("/jobs", { body: { ...body, priority: 10 } });
check(refused.error !== undefined, refused);
const { code, retryable, errors } = refused.error;
check(code === "invalid_job" && !retryable && errors[0].location === "priority", refused.error);
// @ts-expect-error there is no such preset
const wrong: components["schemas"]["JobRequest"] = { preset: "flux_lora_1x41gb" };
check(wrong.preset !== undefined, wrong);
"""


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(path or cwd),
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    """The generator: its own version of typer is older than ours, which it runs with, too."""
    folder = tmp_path / "generator"
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    done = subprocess.run(
        [*pip, "--retries", "1", "--no-deps", "--target", str(folder), GENERATOR],
        capture_output=True,
        text=True,
        check=False,
    )
    if "connection" in done.stderr.lower():
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.timeout(240)
def test_the_client_of_openapi_python_client_calls(
    console: Console, acme: httpx2.Client, generator: Path, tmp_path: Path
) -> None:
    run(
        *("-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"),
        *("--path", str(CONTRACT / "openapi.json"), "--output-path", str(tmp_path / "api")),
        *("--config", str(CONTRACT / "openapi-python-client.yaml")),
        cwd=tmp_path,
        path=generator,
    )
    text = USE_PYTHON.replace("JOB)", f"{job()!r})").replace("**JOB", f"**{job()!r}")
    (tmp_path / "use.py").write_text(text)
    # The generator's own file is not strict.
    run("-m", "mypy", "--strict", "--follow-imports=silent", "use.py", cwd=tmp_path)
    run("-m", "compileall", "-q", "api", cwd=tmp_path)
    run("use.py", f"{console.url}/v1", console.keys["acme"], cwd=tmp_path)
    assert len(acme.get("/uploads").json()) == 2


@pytest.mark.timeout(240)
def test_the_types_of_openapi_typescript_call(console: Console, node: NodeFolder) -> None:
    node.run("openapi-typescript", str(CONTRACT / "openapi.json"), "-o", "api.ts")
    for name in ("client.ts", "training-worker.ts"):
        (node.path / name).write_text((CONTRACT / name).read_text("utf-8"))
    (node.path / "use.ts").write_text(USE_TYPESCRIPT)
    node.compile("use.ts")
    node.run("node", "use.js", f"{console.url}/v1", console.keys["acme"])
