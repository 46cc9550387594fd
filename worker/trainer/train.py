"""The ``train`` stage: assembles a run, trains it and reports its end."""

import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from tensorboardX import SummaryWriter

from tasks.cache.plan import CacheIndex
from tasks.dataset import Dataset
from tasks.events import Note, TrainDone
from tasks.jobs.field_metadata import Affects, fields_with
from tasks.jobs.pipeline import PipelineConfig
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, checkpoint_prefix
from worker.trainer.checkpoint import Checkpoints, LossHistory
from worker.trainer.compilation import CompiledBlocks, compile_blocks, prepare_compiler
from worker.trainer.compute.determinism import Determinism
from worker.trainer.compute.memory import CudaMeter, MemoryMeter
from worker.trainer.data.batches import BatchPlan, SampleReader, TrainingData
from worker.trainer.data.cache_entries import read_index
from worker.trainer.environment import check_libraries
from worker.trainer.errors import RefusedError
from worker.trainer.event_pipe import Emit, StopSwitch, phase
from worker.trainer.export.metadata import RunMetadata
from worker.trainer.families import training_type
from worker.trainer.loop import new_state, schedule_of, train
from worker.trainer.model_cache import ModelCache
from worker.trainer.rng import StatelessRng
from worker.trainer.training_type import Precision
from worker.trainer.validation import Validation

_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow")


def run(
    request: TrainerRequest,
    emit: Emit,
    stop: StopSwitch,
    cache: ModelCache,
    meter: MemoryMeter | None = None,
) -> None:
    """Carry out a ``train`` request and report its end.

    Args:
        request: What to train.
        emit: Takes the events.
        stop: Whether to stop.
        cache: Models from earlier requests.
        meter: Measures the run's memory; None measures the GPU's, and on the CPU nothing.

    Raises:
        RefusedError: The request cannot be carried out.
        InterruptedRun: The run was asked to stop; it resumes from the last checkpoint.
        StoreError: The store failed.
    """
    config, rng = prepared(request)
    kind = training_type(config)
    device = torch.device(request.device)
    is_float32 = Precision(config, device).dtype == torch.float32
    determinism = Determinism(
        emit, wanted=config.deterministic, device=device, is_float32=is_float32
    )
    store = Store(request.store_url)
    dataset = Dataset.model_validate_json(store.get(request.dataset_key))
    index = index_of(request, store, dataset)
    data = _data(request, dataset, index, rng, device)
    stop.check()
    with phase(emit, "load"):
        models = kind.take_models(config, device, cache)
    if meter is None and device.type == "cuda":
        meter = CudaMeter()
    if meter is not None:
        meter.reset()
    recipe = kind.new_recipe(config, models, rng)
    state = new_state(recipe, config, device)
    versions = {library: version(library) for library in ("training-worker", *_LIBRARIES)}
    identity = run_identity(config, dataset)
    total = schedule_of(config, data.plan).total_steps
    metadata = RunMetadata(request.name, config, dataset, data.plan, total)
    checkpoints = Checkpoints(
        request, store, identity, versions, determinism, recipe.write, metadata.at, emit
    )
    if request.resume_state_key is not None:
        saved_versions = checkpoints.resume(state, request.resume_state_key)
        note_other_versions(emit, saved_versions, versions)
    compiled: CompiledBlocks | None = None
    if config.compile:
        with phase(emit, "compile"):
            compiled = compile_blocks(config, models.denoiser, recipe, data, determinism, stop)
    validate: Callable[[int], None] = _never
    if config.validation_prompts:
        sampler = kind.new_sampler(config, models)
        validation = Validation(
            request, store, models, sampler, index, recipe.precision, rng, emit, stop
        )

        def make_images(step: int) -> None:
            determinism.run(partial(validation.make, step))

        validate = make_images
    train(recipe, state, data, rng, config, checkpoints, validate, determinism, emit, stop)
    peak = meter.peak_bytes() if meter is not None else None
    if compiled is not None:
        compiled.restore()
    recipe.close()
    for part in kind.changed_parts:
        cache.drop(part)
    report_end(request, store, state.history, versions, determinism, device, peak, emit)


def prepared(request: TrainerRequest) -> tuple[PipelineConfig, StatelessRng]:
    """Check a request's config.

    Returns:
        The config, and the draws of its seed.

    Raises:
        RefusedError: The config has no seed, or needs what is not installed.
    """
    config = request.training
    if config.seed is None:
        raise RefusedError("the config has no seed; submit draws one")
    check_libraries(config)
    if config.compile:
        prepare_compiler(request)
    return config, StatelessRng(config.seed)


def run_identity(config: PipelineConfig, dataset: Dataset) -> dict[str, object]:
    """Return what a resumed state must agree in: every option that changes a trained number."""
    # The contents of the dataset count, not its location.
    options = config.model_dump(mode="json", exclude=fields_with(config, Affects.NO_NUMBER))
    return {**options, "dataset": dataset.digest}


def index_of(request: TrainerRequest, store: Store, dataset: Dataset) -> CacheIndex | None:
    """Read the cache index; None if nothing is cached.

    Raises:
        RefusedError: The index is missing, damaged or of another config.
    """
    config = request.training
    if not (config.caches_text or config.cache_vae_outputs):
        return None
    if request.cache_index_key is None:
        raise RefusedError("the config caches encoder outputs, but the request has no cache index")
    return read_index(store, request.cache_index_key, config, dataset.digest)


def _data(
    request: TrainerRequest,
    dataset: Dataset,
    index: CacheIndex | None,
    rng: StatelessRng,
    device: torch.device,
) -> TrainingData:
    config = request.training
    reader = SampleReader(request.store_url, dataset, config, index, rng)
    plan = BatchPlan(reader.sizes, config.train_batch_size, config.gradient_accumulation_steps, rng)
    return TrainingData(reader, plan, dataset, config.loader.dataloader_num_workers, device)


def note_other_versions(emit: Emit, saved: dict[str, str], versions: dict[str, str]) -> None:
    """Warn if a state was saved with other versions of the libraries."""
    changed = [
        f"{library} {saved.get(library)} to {now}"
        for library, now in versions.items()
        if saved.get(library) != now
    ]
    if changed:
        message = f"resumed with other versions, so not bit for bit: {', '.join(changed)}"
        emit(Note(level="warning", message=message))


def report_end(
    request: TrainerRequest,
    store: Store,
    history: LossHistory,
    versions: dict[str, str],
    determinism: Determinism,
    device: torch.device,
    peak: int | None,
    emit: Emit,
    patches: tuple[str, ...] | None = None,
) -> None:
    """Store the TensorBoard file and emit the end of training.

    Args:
        request: The request.
        store: Keeps the file.
        history: The steps of the run.
        versions: The versions of the libraries that computed.
        determinism: How they computed.
        device: The device that computed.
        peak: The run's peak memory in bytes, if measured.
        emit: Takes the event.
        patches: The patches of the engine invoke-training, if it trained.
    """
    folder = Path(request.scratch_dir) / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    path = _write_tensorboard(folder, history)
    prefix = checkpoint_prefix(request.job_id, history.steps, request.start_id)
    metrics = store.put_artifact(f"{prefix}/{path.name}", path)
    shutil.rmtree(folder)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    emit(
        TrainDone(
            steps=history.steps,
            final_loss=history.losses[-1],
            extras=(metrics,),
            versions=versions,
            nondeterminism=determinism.problem,
            kernels=determinism.kernels,
            patches=patches,
            device=name,
            peak_memory_bytes=peak,
        )
    )


def _write_tensorboard(folder: Path, history: LossHistory) -> Path:
    """Write a TensorBoard file of the loss and learning rate of every step.

    Args:
        folder: A new folder for the file.
        history: The steps.

    Returns:
        The file. TensorBoard finds it by the ``tfevents`` in its name.
    """
    writer = SummaryWriter(logdir=str(folder))
    rows = zip(history.losses, history.learning_rates, strict=True)
    for step, (loss, learning_rate) in enumerate(rows, start=1):
        # The step is also the time: a resumed run's clock would start at the resume.
        writer.add_scalar("train/loss", loss, step, walltime=step)
        writer.add_scalar("train/learning_rate", learning_rate, step, walltime=step)
    writer.close()
    (written,) = folder.glob("*tfevents*")
    return written.rename(folder / "events.out.tfevents.train")


def _never(_step: int) -> None:
    raise AssertionError("validation is not due without prompts")
