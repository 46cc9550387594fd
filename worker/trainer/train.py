"""The ``train`` stage: puts a run together, trains it, and tells what came of it."""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from tasks.cache.plan import CacheIndex
from tasks.dataset import Dataset
from tasks.events import Note, TrainDone
from tasks.jobs.field_metadata import Affects, fields_with
from tasks.jobs.pipeline import PipelineConfig
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, checkpoint_prefix
from worker.trainer.checkpoint import Checkpoints, LossHistory
from worker.trainer.data.batches import BatchPlan, SampleReader, TrainingData
from worker.trainer.data.cache_entries import read_index
from worker.trainer.errors import RefusedError
from worker.trainer.event_pipe import Emit, StopSwitch, phase
from worker.trainer.export.tensorboard import write_metrics
from worker.trainer.libraries import check_libraries
from worker.trainer.loop import new_state, train
from worker.trainer.memory import CudaMeter, MemoryMeter
from worker.trainer.model_cache import ModelCache
from worker.trainer.models import forget_changed, take_models
from worker.trainer.recipes import new_recipe
from worker.trainer.rng import StatelessRng
from worker.trainer.validation.validation_images import Validation

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")

# Options that change no number of the run, so that a state may be resumed under others.


def run(
    request: TrainerRequest,
    emit: Emit,
    stop: StopSwitch,
    kept: ModelCache,
    meter: MemoryMeter | None = None,
) -> None:
    """Carry out a ``train`` request and tell its end.

    Args:
        request: What to do.
        emit: Takes the events.
        stop: Whether to stop.
        kept: Models from earlier requests.
        meter: Measures the run's memory; None measures the GPU's, and on the CPU nothing.

    Raises:
        RefusedError: It cannot be carried out.
        InterruptedRun: It was asked to stop; the last checkpoint is where to go on.
        StoreError: The store failed.
    """
    config = request.training
    if config.seed is None:
        raise RefusedError("the config has no seed; submit draws one")
    check_libraries(config)
    # For CUDA, where the fastest kernels add in an order that changes from run to run.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would overwrite every new tensor before use, only to make bugs visible.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    store = Store(request.store_url)
    device = torch.device(request.device)
    draws = StatelessRng(config.seed)
    dataset = Dataset.model_validate_json(store.get(request.dataset_key))
    index = index_of(request, store, dataset)
    data = _data(request, dataset, index, draws, device)
    stop.check()
    with phase(emit, "load"):
        models = take_models(config, device, kept)
    if meter is None and device.type == "cuda":
        meter = CudaMeter()
    if meter is not None:
        meter.reset()
    recipe = new_recipe(config, models, draws)
    ema_decay = getattr(config, "ema_decay", None) if getattr(config, "use_ema", False) else None
    state = new_state(recipe, config, device, ema_decay)
    versions = {library: version(library) for library in _LIBRARIES}
    checkpoints = Checkpoints(
        request, store, run_identity(config, dataset), versions, recipe.write, emit
    )
    if request.resume_state_key is not None:
        earlier = checkpoints.resume(state, request.resume_state_key)
        note_other_versions(emit, earlier, versions)
    validate: Callable[[int], None] = _never
    if config.validation_prompts:
        validate = Validation(
            request, store, models, index, recipe.autocast, draws, emit, stop
        ).make
    train(recipe, state, data, draws, config, checkpoints, validate, emit, stop)
    peak = meter.peak_bytes() if meter is not None else None
    recipe.close()
    forget_changed(config, kept)
    tell_end(request, store, state.history, versions, device, peak, emit)


def run_identity(config: PipelineConfig, dataset: Dataset) -> dict[str, object]:
    """Return what a resumed state must agree in: every option that changes a trained number."""
    # The contents of the dataset count, not its location.
    options = config.model_dump(mode="json", exclude=fields_with(config, Affects.NO_NUMBER))
    return {**options, "dataset": dataset.digest}


def _never(_step: int) -> None:
    raise AssertionError("without prompts no validation is due")


def index_of(request: TrainerRequest, store: Store, dataset: Dataset) -> CacheIndex | None:
    """The cache index; None where nothing is cached."""
    config = request.training
    if not (config.caches_text or config.cache_vae_outputs):
        return None
    if request.cache_index_key is None:
        raise RefusedError("the config caches encoder outputs, and there is no cache index")
    return read_index(store, request.cache_index_key, config, dataset.digest)


def _data(
    request: TrainerRequest,
    dataset: Dataset,
    index: CacheIndex | None,
    draws: StatelessRng,
    device: torch.device,
) -> TrainingData:
    config = request.training
    reader = SampleReader(request.store_url, dataset, config, index, draws)
    plan = BatchPlan(
        reader.sizes, config.train_batch_size, config.gradient_accumulation_steps, draws
    )
    return TrainingData(reader, plan, dataset, config.loader.dataloader_num_workers, device)


def note_other_versions(emit: Emit, earlier: dict[str, str], versions: dict[str, str]) -> None:
    """Say where a state was made under other versions of the libraries."""
    changed = [
        f"{library} {earlier.get(library)} to {now}"
        for library, now in versions.items()
        if earlier.get(library) != now
    ]
    if changed:
        message = f"resumed under other versions, so not bit for bit: {', '.join(changed)}"
        emit(Note(level="warning", message=message))


def tell_end(
    request: TrainerRequest,
    store: Store,
    history: LossHistory,
    versions: dict[str, str],
    device: torch.device,
    peak: int | None,
    emit: Emit,
    patches: tuple[str, ...] | None = None,
) -> None:
    """Store the metrics and tell how training ended."""
    folder = Path(request.scratch_dir) / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    path = write_metrics(folder, history)
    prefix = checkpoint_prefix(request.job_id, history.steps, request.attempt)
    metrics = store.put_artifact(f"{prefix}/{path.name}", path)
    shutil.rmtree(folder)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    emit(
        TrainDone(
            steps=history.steps,
            final_loss=history.losses[-1],
            extras=(metrics,),
            versions=versions,
            patches=patches,
            device=name,
            peak_memory_bytes=peak,
        )
    )
