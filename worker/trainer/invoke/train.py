"""The ``train`` stage of this engine: the library's own loop over our data and cache."""

import importlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.logging import get_logger
from invoke_training.config.pipeline_config import PipelineConfig as AnyLibraryConfig
from invoke_training.pipelines.callbacks import PipelineCallbacks
from pydantic import TypeAdapter, ValidationError

from tasks.base_models.files import vae_config
from tasks.dataset import Dataset
from tasks.jobs.pipeline import PipelineConfig
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store
from worker.trainer.checkpoint import Checkpoints, TrainingState
from worker.trainer.compute.determinism import Determinism
from worker.trainer.compute.memory import CudaMeter
from worker.trainer.data.batches import BatchPlan, SampleReader
from worker.trainer.data.inputs import VaeScaling
from worker.trainer.errors import RefusedError
from worker.trainer.event_pipe import Emit, StopSwitch
from worker.trainer.export.metadata import RunMetadata
from worker.trainer.invoke.config import library_config
from worker.trainer.invoke.data import library_loader
from worker.trainer.invoke.describe import COMPUTING, LIBRARY, describe
from worker.trainer.invoke.lora import PatchedPeft
from worker.trainer.invoke.pipelines import PIPELINES, Pipeline, replaced
from worker.trainer.invoke.run import Run
from worker.trainer.loop import schedule_of
from worker.trainer.model_cache import ModelCache
from worker.trainer.rng import StatelessRng
from worker.trainer.train import (
    index_of,
    note_other_versions,
    prepared,
    report_end,
    run_identity,
)


def run(request: TrainerRequest, emit: Emit, stop: StopSwitch, _cache: ModelCache) -> None:
    """Carry out a ``train`` request and report its end; see ``worker.trainer.train.run``."""
    config, rng = prepared(request)
    patches = frozenset(request.patches)
    store = Store(request.store_url)
    dataset = Dataset.model_validate_json(store.get(request.dataset_key))
    read_as = _without_buckets(config) if "buckets" not in patches else config
    index = index_of(request, store, dataset)
    reader = SampleReader(request.store_url, dataset, read_as, index, rng)
    plan = BatchPlan(reader.sizes, config.train_batch_size, config.gradient_accumulation_steps, rng)
    library = _checked(request, patches)
    versions = {name: version(name) for name in COMPUTING}
    versions[LIBRARY] = str(describe()["versions"][LIBRARY])  # type: ignore[index]
    identity = {**run_identity(config, dataset), "engine": LIBRARY, "patches": sorted(patches)}
    results = _Results(config, patches)
    # The library's loop cannot repeat a step that an operator refused.
    determinism = Determinism(emit, wanted=config.deterministic, strict=False)
    if request.device == "cuda" and determinism.problem is None:
        determinism.problem = "the engine does not check that every kernel is deterministic"
    schedule = schedule_of(config, plan)
    metadata = RunMetadata(request.name, config, dataset, plan, schedule.total_steps)
    checkpoints = Checkpoints(
        request, store, identity, versions, determinism, results.write, metadata.at, emit
    )

    def resume(state: TrainingState) -> None:
        assert request.resume_state_key is not None
        saved_versions = checkpoints.resume(state, request.resume_state_key)
        note_other_versions(emit, saved_versions, versions)

    key = request.resume_state_key
    first_step = checkpoints.step_of(key) if key else 0
    results.run = Run(
        request,
        library,
        schedule,
        plan,
        rng,
        dataset,
        checkpoints,
        resume,
        first_step,
        emit,
        stop,
    )
    on_gpu = request.device == "cuda"
    meter = CudaMeter() if on_gpu else None
    if meter is not None:
        meter.reset()
    first_batch, workers = plan.of_step(first_step)[0], config.loader.dataloader_num_workers
    loader = library_loader(reader, plan, first_batch, workers, on_gpu=on_gpu)
    with ExitStack() as replacements:
        _replace_functions(replacements, results.run, config, rng, loader)
        library_train = importlib.import_module("invoke_training.pipelines.invoke_train").train
        library_train(library, [_Callbacks(results.run)])
    peak = meter.peak_bytes() if meter is not None else None
    device, history = torch.device(request.device), results.run.history
    names = tuple(sorted(patches))
    report_end(request, store, history, versions, determinism, device, peak, emit, names)


def _checked(request: TrainerRequest, patches: frozenset[str]) -> Any:
    """Return the library's own config of a request.

    Raises:
        RefusedError: The library refuses the config, or would train the base model wrongly.
    """
    config, values = request.training, library_config(request, patches)
    values |= PIPELINES[config.type].values(config)
    adapter: TypeAdapter[Any] = TypeAdapter(AnyLibraryConfig)
    try:
        return adapter.validate_python(_with_tuples(values))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise RefusedError(f"invoke-training refuses the config: {problems}") from error


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Make a resolution of two sides a tuple, as the library's own code needs it."""
    loader = values["data_loader"]
    if isinstance(loader["resolution"], list):
        loader["resolution"] = tuple(loader["resolution"])
    return values


def _without_buckets(config: PipelineConfig) -> PipelineConfig:
    loader = config.loader.model_copy(update={"aspect_ratio_buckets": None})
    return config.model_copy(update={"data_loader": loader})


def _replace_functions(
    replacements: ExitStack, run: Run, config: PipelineConfig, rng: StatelessRng, loader: Any
) -> None:
    """Replace functions that the pipeline's module calls by ours.

    Args:
        replacements: Restores the functions when it is closed.
        run: The run.
        config: The job's config.
        rng: Makes the random draws.
        loader: The data loader.
    """
    pipeline = PIPELINES[config.type]
    module: Any = importlib.import_module(pipeline.module)
    scaling = VaeScaling(vae_config(config))
    forward = pipeline.forward(module, config, run.patches, rng, scaling)  # type: ignore[arg-type]
    names: dict[str, Any] = dict(forward.replacements)
    if pipeline.lora is not None:
        targets = pipeline.lora.targets(config)
        names["peft"] = PatchedPeft(module.peft, config, targets, run, rng)  # type: ignore[arg-type]
        if "lora_file" in run.patches:
            names |= dict.fromkeys(pipeline.lora.writers, _do_nothing)
    optimizer = _optimizer(module.initialize_optimizer, run, getattr(torch, config.weight_dtype))
    names |= {
        **dict.fromkeys(pipeline.encodes, _do_nothing),
        "tqdm": _quiet(module.tqdm),
        "initialize_logging": lambda name, _accelerator: get_logger(name),
        "train_forward": lambda **arguments: run.loss(forward.loss, arguments),
        "initialize_optimizer": optimizer,
        pipeline.load: _loading(getattr(module, pipeline.load), pipeline, run),
        pipeline.data_loader: lambda **_: loader,
        pipeline.save: partial(run.save, getattr(module, pipeline.save)),
        pipeline.validate: partial(run.validate, getattr(module, pipeline.validate)),
    }
    replacements.enter_context(replaced(module, **names))
    replacements.enter_context(replaced(accelerate.Accelerator, log=_logging(run)))
    # For a base model without safetensors, the libraries would load a pickle.
    replacements.enter_context(replaced(torch, load=_no_pickle))


def _do_nothing(*_positional: Any, **_named: Any) -> None:
    """Replaces a function whose work is done elsewhere."""


def _quiet(tqdm: Any) -> Any:
    """Disable the progress bar: it would hide an error at the end of the trainer's output."""
    return lambda *positional, **named: tqdm(*positional, **{**named, "disable": True})


def _no_pickle(*_positional: Any, **_named: Any) -> None:
    raise RefusedError("the base model has pickled weights, which are a program; use safetensors")


def _logging(run: Run) -> Any:
    def log(
        accelerator: Any, values: Mapping[str, Any], step: int | None = None, **_named: Any
    ) -> None:
        run.log(accelerator, values, step)

    return log


def _loading(load: Any, pipeline: Pipeline, run: Run) -> Any:
    def load_models(**arguments: Any) -> Any:
        models = load(**arguments)
        # Tokenizers, scheduler, text encoders, VAE and the denoiser, in this order.
        found = (models[-1], models[3], models[4])
        run.models = dict(zip(pipeline.roles, found, strict=False))
        return models

    return load_models


def _optimizer(initialize: Any, run: Run, dtype: torch.dtype) -> Any:
    def initialize_optimizer(settings: Any, groups: Any) -> torch.optim.Optimizer:
        groups = [
            {**group, "params": list(group["params"])} if isinstance(group, dict) else group
            for group in groups
        ]
        if "float32_weights" in run.patches:
            _train_in_float32(groups, run, dtype)
        return run.watch(initialize(settings, groups))

    return initialize_optimizer


def _train_in_float32(groups: Sequence[Any], run: Run, dtype: torch.dtype) -> None:
    """Keep trained weights in float32; a trained embedding still returns the model's precision."""
    trained = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [])]
    for parameter in trained:
        parameter.data = parameter.data.float()
    ids = {id(parameter) for parameter in trained}
    for model in run.models.values():
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and id(module.weight) in ids:
                module.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))


class _Results:
    """Writes the published files: LoRAs by our own writers, other results by the library.

    Args:
        config: The job's config.
        patches: The patches.
    """

    run: Run
    """The run, set once it exists."""

    def __init__(self, config: PipelineConfig, patches: frozenset[str]) -> None:
        self._config = config
        self._patches = patches

    def write(
        self,
        folder: Path,
        name: str,
        metadata: Mapping[str, str],
        weights: Mapping[str, torch.Tensor],
    ) -> list[Path]:
        """Write the files; see ``worker.trainer.checkpoint.WriteResults``."""
        path = folder / f"{name}.safetensors"
        lora = PIPELINES[self._config.type].lora
        if lora is not None and "lora_file" in self._patches:
            lora.write(path, weights, self._config, self.run, metadata)
            return [path]
        written = self.run.results
        assert written is not None
        if written.is_file():
            written.rename(path)
            return [path]
        shutil.move(written, folder / name)
        files = sorted(file for file in (folder / name).rglob("*") if file.is_file())
        # The trained weights first.
        return sorted(files, key=_file_rank)


def _file_rank(path: Path) -> tuple[bool, bool, str]:
    """Sort weights before configs, and trained weights before others."""
    is_weights = path.suffix == ".safetensors"
    others = ("text_encoder", "text_encoder_2", "vae")
    return not is_weights, path.parent.name in others, str(path)


class _Callbacks(PipelineCallbacks):  # type: ignore[misc] # the library has no types here
    """The library's callbacks; their names are fixed."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        """Remember the files of a checkpoint."""
        self._run.results = Path(checkpoint.models[0].file_path)

    def on_save_validation_images(self, images: Any) -> None:
        """Store validation images; each prompt's are in a folder with its number."""
        self._run.validated(
            [
                (_number(Path(image.file_path).parent), image.image_idx + 1, Path(image.file_path))
                for image in images.images
            ]
        )


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("_")[2]) + 1
