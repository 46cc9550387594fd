"""The ``train`` stage of this engine: the library's own loop over the fleet's data and cache."""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.logging import get_logger
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from invoke_training.config.pipeline_config import PipelineConfig as AnyLibraryConfig
from invoke_training.pipelines.callbacks import PipelineCallbacks
from pydantic import TypeAdapter, ValidationError

from tasks.base_models.files import vae_config
from tasks.dataset import Dataset
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlConfig, SdxlLoraConfig
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store
from worker.trainer.checkpoint import Checkpoints, TrainingState
from worker.trainer.data.batches import BatchPlan, SampleReader
from worker.trainer.data.inputs import VaeNumbers
from worker.trainer.errors import RefusedError
from worker.trainer.event_pipe import Emit, StopSwitch
from worker.trainer.invoke.config import library_config
from worker.trainer.invoke.data import library_loader
from worker.trainer.invoke.describe import COMPUTING, LIBRARY, describe
from worker.trainer.invoke.flux import FluxForward
from worker.trainer.invoke.lora import PatchedPeft
from worker.trainer.invoke.pipelines import PIPELINES, Pipeline, replaced
from worker.trainer.invoke.results import Results
from worker.trainer.invoke.run import Run
from worker.trainer.invoke.sdxl import SdxlForward
from worker.trainer.libraries import check_libraries
from worker.trainer.loop import schedule_of
from worker.trainer.memory import CudaMeter
from worker.trainer.model_cache import ModelCache
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.models import load_noise_scheduler
from worker.trainer.train import index_of, note_other_versions, run_identity, tell_end

# The library's, whatever the base model says.
_SCHEDULE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def run(request: TrainerRequest, emit: Emit, stop: StopSwitch, _kept: ModelCache) -> None:
    """Carry out a ``train`` request and tell its end; see ``worker.trainer.train.run``."""
    config = request.training
    if config.seed is None:
        raise RefusedError("the config has no seed; submit draws one")
    check_libraries(config)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    store = Store(request.store_url)
    dataset = Dataset.model_validate_json(store.get(request.dataset_key))
    draws, patches = StatelessRng(config.seed), frozenset(request.patches)
    read_as = _without_buckets(config) if "buckets" not in patches else config
    index = index_of(request, store, dataset)
    reader = SampleReader(request.store_url, dataset, read_as, index, draws)
    accumulation = config.gradient_accumulation_steps
    plan = BatchPlan(reader.sizes, config.train_batch_size, accumulation, draws)
    library = _checked(request, patches)
    versions = {name: version(name) for name in COMPUTING}
    versions[LIBRARY] = str(describe()["versions"][LIBRARY])  # type: ignore[index]
    identity = {
        **run_identity(config, dataset),
        "engine": LIBRARY,
        "patches": sorted(patches),
    }
    results = Results(config, patches)
    checkpoints = Checkpoints(request, store, identity, versions, results.write, emit)

    def resume(state: TrainingState) -> None:
        assert request.resume_state_key is not None
        earlier = checkpoints.resume(state, request.resume_state_key)
        note_other_versions(emit, earlier, versions)

    key = request.resume_state_key
    first_step = checkpoints.step_of(key) if key else 0
    it = Run(
        request,
        library,
        schedule_of(config, plan),
        plan,
        draws,
        dataset,
        checkpoints,
        resume,
        first_step,
        emit,
        stop,
    )
    results.run = it
    on_gpu = request.device == "cuda"
    meter = CudaMeter() if on_gpu else None
    if meter is not None:
        meter.reset()
    loader = library_loader(
        reader,
        plan,
        plan.of_step(first_step)[0],
        config.loader.dataloader_num_workers,
        on_gpu=on_gpu,
    )
    with ExitStack() as seams:
        _enter_seams(seams, it, config, draws, loader)
        library_train = importlib.import_module("invoke_training.pipelines.invoke_train").train
        library_train(library, [_Callbacks(it)])
    peak = meter.peak_bytes() if meter is not None else None
    device = torch.device(request.device)
    tell_end(request, store, it.history, versions, device, peak, emit, tuple(sorted(patches)))


def _checked(request: TrainerRequest, patches: frozenset[str]) -> Any:
    """The library's own config of a request."""
    config, values = request.training, library_config(request, patches)
    if isinstance(config, SdxlConfig):
        scheduler = load_noise_scheduler(config)
        if not torch.allclose(scheduler.alphas_cumprod, _SCHEDULE.alphas_cumprod, atol=1e-6):
            raise RefusedError(
                "the base model has a noise schedule of its own, and engine invoke-training trains "
                "every model with that of SDXL"
            )
        # It also takes every model for one that predicts noise, unless it is told.
        prediction = scheduler.config["prediction_type"]
        values["prediction_type"] = prediction
        if prediction == "v_prediction" and config.min_snr_gamma is not None:
            raise RefusedError(
                "the base model predicts velocities, and engine invoke-training weights these "
                "wrongly with min_snr_gamma; set it to null"
            )
    adapter: TypeAdapter[Any] = TypeAdapter(AnyLibraryConfig)
    try:
        return adapter.validate_python(_tuples(values))
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise RefusedError(f"invoke-training refuses the config: {told}") from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """A resolution of two sides as the library's own code takes it."""
    loader = values["data_loader"]
    if isinstance(loader["resolution"], list):
        loader["resolution"] = tuple(loader["resolution"])
    return values


def _without_buckets(config: PipelineConfig) -> PipelineConfig:
    loader = config.loader.model_copy(update={"aspect_ratio_buckets": None})
    return config.model_copy(update={"data_loader": loader})


def _enter_seams(
    seams: ExitStack, run: Run, config: PipelineConfig, draws: StatelessRng, loader: Any
) -> None:
    """Put ours in the place of what the pipeline's module calls."""
    pipeline = PIPELINES[config.type]
    module: Any = importlib.import_module(pipeline.module)
    numbers = VaeNumbers(vae_config(config))
    forward: FluxForward | SdxlForward
    names: dict[str, Any] = {}
    if isinstance(config, FluxLoraConfig):
        forward = FluxForward(module, config, run.patches, draws, numbers)
        names |= {
            "encode_prompt": forward.encode_prompt,
            "get_noisy_latents": forward.get_noisy_latents,
        }
    else:
        assert isinstance(config, SdxlConfig)
        forward = SdxlForward(module, config, run.patches, draws, numbers)
    if isinstance(config, FluxLoraConfig | SdxlLoraConfig):
        names["peft"] = PatchedPeft(module.peft, config, run, draws)
        if "lora_file" in run.patches:
            names |= dict.fromkeys(pipeline.writers, _nothing)
    optimizer = _optimizer(module.initialize_optimizer, run, getattr(torch, config.weight_dtype))
    names |= {
        **dict.fromkeys(pipeline.encodes, _nothing),
        "tqdm": _quiet(module.tqdm),
        "initialize_logging": lambda name, _accelerator: get_logger(name),
        "train_forward": lambda **arguments: run.loss(forward.loss, arguments),
        "initialize_optimizer": optimizer,
        pipeline.load: _loading(getattr(module, pipeline.load), pipeline, run),
        pipeline.data_loader: lambda **_: loader,
        pipeline.save: partial(run.save, getattr(module, pipeline.save)),
        pipeline.validate: partial(run.validate, getattr(module, pipeline.validate)),
    }
    seams.enter_context(replaced(module, **names))
    seams.enter_context(replaced(accelerate.Accelerator, log=_logging(run)))
    # Where a base model has no safetensors, the libraries would take a pickle.
    seams.enter_context(replaced(torch, load=_no_pickle))


def _nothing(*_positional: Any, **_named: Any) -> None:
    """In the place of what is done elsewhere."""


def _quiet(tqdm: Any) -> Any:
    """Its bar would be in the trainer's last words, where an error should be."""
    return lambda *positional, **named: tqdm(*positional, **{**named, "disable": True})


def _no_pickle(*_positional: Any, **_named: Any) -> None:
    raise RefusedError("the base model has weights as a pickle, which is a program")


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
    """Keep trained weights in float32; a trained embedding still gives what the model takes."""
    trained = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [])]
    for parameter in trained:
        parameter.data = parameter.data.float()
    ids = {id(parameter) for parameter in trained}
    for model in run.models.values():
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and id(module.weight) in ids:
                module.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))


class _Callbacks(PipelineCallbacks):  # type: ignore[misc] # the library has no types here
    """What the library calls; its names are fixed."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        """A checkpoint was saved."""
        self._run.results = Path(checkpoint.models[0].file_path)

    def on_save_validation_images(self, images: Any) -> None:
        """Validation images were made; each prompt's in a folder of its number."""
        self._run.validated(
            [
                (_number(Path(image.file_path).parent), image.image_idx + 1, Path(image.file_path))
                for image in images.images
            ]
        )


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("_")[2]) + 1
