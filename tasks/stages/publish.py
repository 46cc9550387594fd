"""The ``publish`` stage: copy the results to their final names, then write the manifest.

Beside a LoRA or an embedding are ``NAME.json`` and ``NAME.png``, which InvokeAI and AUTOMATIC1111's
web UI read: a description, the trigger phrase and a preview. The preview is in the file's header,
too. Both need what the trainer does not have when it writes the file: dates, and the images that it
makes after a checkpoint.
"""

import base64
import io
import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from tasks.archive import archive_record
from tasks.base_models.safetensors_header import MAX_HEADER_BYTES
from tasks.errors import ErrorCode
from tasks.eta.history import WorkDone
from tasks.events import Artifact, CheckpointSaved, JobEnded, StageFinished
from tasks.metrics import PUBLISHED_BYTES
from tasks.schemas.documents import Engine, GpuMemory, Manifest, Published
from tasks.stages.copies import copy_results
from tasks.stages.stage_context import StageContext, StageResult
from tasks.state.artifacts import JobArtifacts
from tasks.state.record import JobStatus
from tasks.store import MANIFEST, Store, output_prefix
from tasks.urls import redact_urls

# Some 15 kB in a header.
_PREVIEW_SIDE = 256


def publish(context: StageContext) -> StageResult:
    """Publish a trained job; safe to repeat.

    The manifest is written last and never replaced: if it exists, everything that it names exists,
    and the start that wrote it has published the job. Copies for ``publish_to`` follow: the results
    are there even if a destination fails.
    """
    job, store = context.record.job, context.worker.store
    prefix = output_prefix(context.job_id, job.training.base_output_dir)
    manifest_key = f"{prefix}/{MANIFEST}"
    if not store.exists(manifest_key):
        files = _published_files(context, prefix)
        written = _manifest(context, files)
        # The last chance to notice that another start has taken over.
        context.check_not_cancelled()
        store.put_if_absent(manifest_key, written.model_dump_json(indent=2).encode())
        context.telemetry.count(PUBLISHED_BYTES.one(by=sum(file.size for file in files)))
    manifest = json.loads(store.get(manifest_key))
    copies = copy_results(context, manifest_key, manifest)
    first = manifest["files"][0]
    published = Published(
        published=store.locate(first["key"]),
        manifest=store.locate(manifest_key),
        sha256=first["sha256"],
        files=tuple(file["key"] for file in manifest["files"]),
        copies=copies,
        gpu_use=context.record.gpu_use,
    )
    result = StageResult(
        f"{len(manifest['files'])} files",
        JobArtifacts(manifest=manifest_key, copies=copies),
        published.model_dump(mode="json", exclude=None if copies else {"copies"}),
        WorkDone(1),
    )
    _archive(context, result)
    return result


def _archive(context: StageContext, result: StageResult) -> None:
    """Archive the job's record as its end will leave it, before anyone reads that it has ended."""
    context.check_not_cancelled()
    state, job_id, token = context.worker.state, context.job_id, context.token
    requested = context.until_connected(lambda: state.requested_state(job_id, token))
    cancelled = requested == JobStatus.CANCELLING
    status: Literal["cancelled", "succeeded"] = "cancelled" if cancelled else "succeeded"
    seconds = round(time.monotonic() - context.started_s, 3)
    stage = context.record.stages[context.stage].model_copy(
        update={"seconds": seconds, "summary": result.summary}
    )
    finished = StageFinished(
        stage=context.stage,
        attempt=context.token.attempt,
        seconds=seconds,
        summary=result.summary,
    )
    ended = JobEnded(status=status, code=ErrorCode.CANCELLED if cancelled else None)
    changes = {
        **result.artifacts.hash_fields(),
        f"stage:{context.stage}": stage.model_dump_json(),
        "stage_state": "done",
        "status": status,
        "result": json.dumps(result.result),
    }
    context.until_connected(
        lambda: archive_record(context.worker.store, state, job_id, changes, [finished, ended])
    )


def _published_files(context: StageContext, prefix: str) -> list[Artifact]:
    """Copy the results to their final names, the newest weights first.

    Validation images go to a separate folder.
    """
    artifacts, name = context.record.artifacts, context.record.job.name
    stems = artifacts.published_checkpoints(name)
    outputs = _Outputs(context, prefix)
    for stem, saved in stems.items():
        for file in saved.files:
            outputs.copy(f"{stem}{file.name.removeprefix(name)}", file)
    for extra in artifacts.trained.extras if artifacts.trained else ():
        outputs.copy(extra.name, extra)
    for stem, saved in stems.items():
        is_one_file = saved.weights.name == f"{name}.safetensors"
        if context.record.job.training.trains_adapter and is_one_file:
            outputs.describe(stem, saved)
    for validation in artifacts.validations:
        for image in validation.images:
            outputs.copy(f"validation/{image.name}", image)
    return list(outputs.files.values())


class _Outputs:
    """Writes published files.

    A start that was superseded replaces no file of the one that took over.

    Args:
        context: The stage's start.
        prefix: The prefix of the files' keys.
    """

    def __init__(self, context: StageContext, prefix: str) -> None:
        self._context = context
        self._prefix = prefix
        self.files: dict[str, Artifact] = {}

    def copy(self, name: str, artifact: Artifact) -> None:
        """Publish an artifact under a name."""
        self._context.check_not_cancelled()
        key = f"{self._prefix}/{name}"
        self._context.worker.store.copy(artifact.key, key)
        self.files[name] = artifact.model_copy(update={"name": name, "key": key})

    def describe(self, stem: str, saved: CheckpointSaved) -> None:
        """Publish what describes a published file: JSON, and the preview of the images so far."""
        header = _header(self._context.worker.store, saved.weights.key)
        if f"{stem}.json" != MANIFEST:
            self._put(f"{stem}.json", _description(self._context, saved, header))
        made = [it for it in self._context.record.artifacts.validations if it.step <= saved.step]
        preview = next((image for it in reversed(made) for image in it.images), None)
        if preview is not None:
            self.copy(f"{stem}{Path(preview.name).suffix}", preview)
            self._add_preview(f"{stem}.safetensors", saved, header, preview)

    def _add_preview(
        self, name: str, saved: CheckpointSaved, header: dict[str, Any], preview: Artifact
    ) -> None:
        """Replace a published file by one with a preview in its header."""
        store, folder = self._context.worker.store, self._context.scratch_dir
        thumbnail = _thumbnail(store.get(preview.key))
        if not header or thumbnail is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        source, target = folder / "weights", folder / "weights-with-preview"
        store.download(saved.weights.key, source)
        entries = {**header.get("__metadata__", {}), "modelspec.thumbnail": thumbnail}
        _write_with_header(
            source, target, {**header, "__metadata__": dict(sorted(entries.items()))}
        )
        self._put(name, target)
        source.unlink()
        target.unlink()

    def _put(self, name: str, data: bytes | Path) -> None:
        folder = self._context.scratch_dir
        folder.mkdir(parents=True, exist_ok=True)
        path = data if isinstance(data, Path) else folder / "described"
        if isinstance(data, bytes):
            path.write_bytes(data)
        self._context.check_not_cancelled()
        artifact = self._context.worker.store.put_artifact(f"{self._prefix}/{name}", path)
        self.files[name] = artifact.model_copy(update={"name": name})


def _description(context: StageContext, saved: CheckpointSaved, header: dict[str, Any]) -> bytes:
    """Return the JSON that InvokeAI reads beside a file; it has the dates that no header has."""
    entries, record = header.get("__metadata__", {}), context.record
    train = record.stages.get("train")
    ended_s = train.started_at + (train.seconds or 0) if train else record.created_at.timestamp()
    date = datetime.fromtimestamp(ended_s, UTC).replace(microsecond=0).isoformat()
    document = {
        "description": entries.get("modelspec.description", record.job.name),
        "activation text": entries.get("modelspec.trigger_phrase", ""),
        "notes": f"Job {record.id}, step {saved.step}, trained on {date}",
        "date": date,
    }
    return json.dumps(document, indent=2).encode()


def _header(store: Store, key: str) -> dict[str, Any]:
    """Return the header of a safetensors file; empty for another file."""
    length = int.from_bytes(store.get_range(key, 0, 8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, store.size(key) - 8):
        return {}
    try:
        header: dict[str, Any] = json.loads(store.get_range(key, 8, 8 + length))
    except ValueError:
        return {}
    return header


def _write_with_header(source: Path, target: Path, header: dict[str, Any]) -> None:
    """Write a safetensors file's data after another header."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as read, target.open("wb") as written:
        read.seek(8 + int.from_bytes(read.read(8), "little"))
        written.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(read, written)


def _thumbnail(data: bytes) -> str | None:
    """Return a small image as a data URL; None if it is damaged."""
    small = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
            image.convert("RGB").save(small, "JPEG", quality=85)
    except (OSError, ValueError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode()}"


def _manifest(context: StageContext, files: list[Artifact]) -> Manifest:
    record = context.record
    trained = record.artifacts.trained
    engine = (
        trained.model_dump(include={"device", "versions", "patches", "nondeterminism", "kernels"})
        if trained
        else {}
    )
    return Manifest(
        job_id=record.id,
        job=redact_urls(record.job.model_dump(mode="json")),
        created_at=record.created_at,
        published_at=datetime.now(UTC),
        files=tuple(files),
        dataset=context.artifact("dataset"),
        steps=record.artifacts.checkpoints[-1].step,
        final_loss=trained.final_loss if trained else None,
        gpu_memory=GpuMemory(
            estimated_bytes=record.estimate.needed_bytes,
            peak_bytes=record.peak_memory_bytes,
            checkpointed_blocks=record.checkpointed_blocks,
        ),
        gpu_use=record.gpu_use,
        stages=record.stages,
        engine=Engine(name=record.job.engine, **engine),
    )
