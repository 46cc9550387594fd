"""The ``train`` stage: puts a FLUX LoRA run together, trains it, and tells what came of it."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from tasks.dataset import DataSet
from tasks.events import Note, TrainDone
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.requests import TrainerRequest
from tasks.store import Store, checkpoint_prefix
from worker.trainer.base_model import base_model_folder, part_config
from worker.trainer.batches import BatchPlan, SampleReader, TrainingData
from worker.trainer.cache_entries import CacheIndex, read_index
from worker.trainer.checkpoint import Checkpoints, History
from worker.trainer.draws import Draws
from worker.trainer.encoders import load_text_encoders, load_vae
from worker.trainer.errors import RefusedError
from worker.trainer.export import write_lora
from worker.trainer.flux import VaeNumbers
from worker.trainer.flux_lora import FluxLora
from worker.trainer.loop import new_state, train
from worker.trainer.metrics import write_metrics
from worker.trainer.pipe import Emit, StopSwitch
from worker.trainer.transformer import load_transformer

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")

# Options that change no number of the run, so that a state may be resumed under others.
_WITHOUT_EFFECT = (
    "base_output_dir",
    "max_checkpoints",
    "save_every_n_steps",
    "save_every_n_epochs",
    "validate_every_n_steps",
    "validate_every_n_epochs",
    "lora_checkpoint_format",
    "report_to",
)


def run(request: TrainerRequest, emit: Emit, stop: StopSwitch) -> None:
    """Carry out a ``train`` request and tell its end.

    Raises:
        RefusedError: It cannot be carried out.
        InterruptedRun: It was asked to stop; the last checkpoint is where to go on.
        StoreError: The store failed.
    """
    config = request.training
    if config.seed is None:
        raise RefusedError("the config has no seed; submit draws one")
    # For CUDA, where the fastest kernels add in an order that changes from run to run.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would overwrite every new tensor before use, only to make bugs visible.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    store = Store(request.store_url)
    device = torch.device(request.device)
    draws = Draws(config.seed)
    data_set = DataSet.model_validate_json(store.get(request.data_set_key))
    data = _data(request, store, data_set, draws, device)
    stop.check()
    recipe = _recipe(config, draws, device)
    state = new_state(recipe, config, device)
    versions = {library: version(library) for library in _LIBRARIES}
    guided = recipe.guided

    def write_weights(path: Path, step: int) -> None:
        write_lora(path, recipe.parameters, config, name=request.name, step=step, guided=guided)

    checkpoints = Checkpoints(
        request, store, run_identity(config, data_set), versions, write_weights, emit
    )
    if request.resume_state_key is not None:
        earlier = checkpoints.resume(state, request.resume_state_key)
        _note_other_versions(emit, earlier, versions)
    train(recipe, state, data, config, checkpoints, emit, stop)
    _tell_end(request, store, state.history, versions, device, emit)


def run_identity(config: FluxLoraConfig, data_set: DataSet) -> dict[str, object]:
    """What a training state must agree in to be resumed: every option that changes a number."""
    values: dict[str, object] = json.loads(config.model_dump_json(exclude=set(_WITHOUT_EFFECT)))
    loader = dict(config.data_loader.model_dump(mode="json"))
    # What is in the data set counts, not where it lay.
    for name in ("dataset", "dataloader_num_workers"):
        del loader[name]
    return {**values, "data_loader": loader, "data set": data_set.digest}


def _data(
    request: TrainerRequest, store: Store, data_set: DataSet, draws: Draws, device: torch.device
) -> TrainingData:
    config = request.training
    index: CacheIndex | None = None
    if config.cache_text_encoder_outputs or config.cache_vae_outputs:
        if request.cache_index_key is None:
            raise RefusedError("the config caches encoder outputs, and there is no cache index")
        index = read_index(store, request.cache_index_key, config, data_set.digest)
    reader = SampleReader(request.store_url, data_set, config, index, draws)
    plan = BatchPlan(
        reader.sizes, config.train_batch_size, config.gradient_accumulation_steps, draws
    )
    return TrainingData(reader, plan, data_set, config.data_loader.dataloader_num_workers, device)


def _recipe(config: FluxLoraConfig, draws: Draws, device: torch.device) -> FluxLora:
    folder = base_model_folder(config, ("vae",))
    return FluxLora(
        config,
        load_transformer(config, device),
        VaeNumbers(part_config(folder, "vae")),
        None if config.cache_vae_outputs else load_vae(config, device),
        None if config.cache_text_encoder_outputs else load_text_encoders(config, device),
        draws,
    )


def _note_other_versions(emit: Emit, earlier: dict[str, str], versions: dict[str, str]) -> None:
    changed = [
        f"{library} {earlier.get(library)} to {now}"
        for library, now in versions.items()
        if earlier.get(library) != now
    ]
    if changed:
        message = f"resumed under other versions, so not bit for bit: {', '.join(changed)}"
        emit(Note(level="warning", message=message))


def _tell_end(
    request: TrainerRequest,
    store: Store,
    history: History,
    versions: dict[str, str],
    device: torch.device,
    emit: Emit,
) -> None:
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
            device=name,
        )
    )
