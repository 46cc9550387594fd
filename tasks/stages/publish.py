"""The ``publish`` stage: copy the results to their final names, then write the manifest."""

import json
from datetime import UTC, datetime

from tasks.eta.history import WorkDone
from tasks.events import Artifact, CheckpointSaved
from tasks.metrics import PUBLISHED_BYTES
from tasks.schemas.documents import Engine, GpuMemory, Manifest, Published
from tasks.stages.stage_context import StageContext, StageResult
from tasks.state.artifacts import JobArtifacts
from tasks.store import output_prefix
from tasks.urls import redact_urls


def publish(context: StageContext) -> StageResult:
    """Publish a trained job; safe to repeat.

    The manifest is written last and never replaced: if it exists, everything that it names exists,
    and the start that wrote it has published the job.
    """
    job, store = context.record.job, context.worker.store
    prefix = output_prefix(context.job_id, job.training.base_output_dir)
    manifest_key = f"{prefix}/manifest.json"
    if not store.exists(manifest_key):
        files = _published_files(context, prefix)
        written = _manifest(context, files)
        # The last chance to notice that another start has taken over.
        context.check_not_cancelled()
        store.put_if_absent(manifest_key, written.model_dump_json(indent=2).encode())
        context.telemetry.count(PUBLISHED_BYTES.one(by=sum(file.size for file in files)))
    manifest = json.loads(store.get(manifest_key))
    first = manifest["files"][0]
    published = Published(
        published=store.locate(first["key"]),
        manifest=store.locate(manifest_key),
        sha256=first["sha256"],
        files=tuple(file["key"] for file in manifest["files"]),
    )
    return StageResult(
        f"{len(manifest['files'])} files",
        JobArtifacts(manifest=manifest_key),
        published.model_dump(mode="json"),
        WorkDone(1),
    )


def _published_files(context: StageContext, prefix: str) -> list[Artifact]:
    """Copy the results to their final names, the newest weights first.

    Validation images go to a separate folder.
    """
    artifacts, name = context.record.artifacts, context.record.job.name
    *earlier, last = artifacts.checkpoints
    names = {file.name: file for file in last.files}
    for saved in earlier:
        if saved.scheduled:
            rest = {file.name.removeprefix(name): file for file in saved.files}
            names |= {f"{name}-{_place(saved)}{end}": file for end, file in rest.items()}
    if artifacts.trained is not None:
        names |= {extra.name: extra for extra in artifacts.trained.extras}
    for validation in artifacts.validations:
        names |= {f"validation/{image.name}": image for image in validation.images}
    files = []
    for file_name, artifact in names.items():
        key = f"{prefix}/{file_name}"
        # A start that was superseded replaces no file of the one that took over.
        context.check_not_cancelled()
        context.worker.store.copy(artifact.key, key)
        files.append(artifact.model_copy(update={"name": file_name, "key": key}))
    return files


def _place(saved: CheckpointSaved) -> str:
    """Return what the names of a checkpoint's files end with, as sd-scripts spells it."""
    return f"step{saved.step:08d}" if saved.epoch is None else f"{saved.epoch:06d}"


def _manifest(context: StageContext, files: list[Artifact]) -> Manifest:
    record = context.record
    trained = record.artifacts.trained
    engine = (
        trained.model_dump(include={"device", "versions", "patches", "nondeterminism"})
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
        stages=record.stages,
        engine=Engine(name=record.job.engine, **engine),
    )
