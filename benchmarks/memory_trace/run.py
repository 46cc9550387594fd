"""Runs the GPU stages of a job on the fake device, by the trainer's own code.

Real are the recipe, the loop, the optimizer, the sampler and the encoders; the models have their
real size, and batches the largest one that the config allows.
"""

from collections.abc import Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.memory_trace.kernels import CUDA
from benchmarks.memory_trace.models import FULL, Depth, models_of, text_of, vae_of
from benchmarks.memory_trace.tracer import Trace, Tracer
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer import cache, validation
from worker.trainer.compute.determinism import Determinism
from worker.trainer.data.batches import Batch, BatchPlan, Draw
from worker.trainer.data.cache_entries import VAE_FACTOR, Text
from worker.trainer.data.inputs import encode_pixels
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.families import training_type
from worker.trainer.flux import sampler as flux_sampler
from worker.trainer.loop import new_state, train
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl import sampler as sdxl_sampler

# Of the cache stage, by what decides them.
_known_peaks: dict[tuple[object, ...], int] = {}
SHALLOW_DEPTHS = (Depth(2, 2, 1), Depth(3, 2, 1), Depth(2, 3, 1))
"""Few blocks of each kind, and one more of each of FLUX's."""


def trace_job(config: PipelineConfig) -> Trace:
    """Trace one weight update of a job, its validation and its cache stage."""
    is_uniform = config.checkpointed_blocks in (0, config.blocks)
    if isinstance(config, FluxLoraConfig) and is_uniform:
        base, double, single = (trace_training(config, depth) for depth in SHALLOW_DEPTHS)
        found = base.plus(FULL.double - SHALLOW_DEPTHS[0].double, double, base)
        found = found.plus(FULL.single - SHALLOW_DEPTHS[0].single, single, base)
    else:
        found = trace_training(config)
    if config.caches_text or config.cache_vae_outputs:
        found.peaks["cache"] = _cache_stage_peak(config)
    return found


def trace_training(config: PipelineConfig, depth: Depth = FULL) -> Trace:
    """Trace one weight update and, if the config asks for it, a validation image."""
    tracer, rng, kind = Tracer(), StatelessRng(1), training_type(config)
    with FakeTensorMode(allow_non_fake_inputs=True), tracer:
        models = models_of(config, depth)
        tracer.note_resident("models")
        recipe = kind.new_recipe(config, models, rng)
        state = new_state(recipe, config, CUDA)
        tracer.note_resident("trained")
        make_optimizer_state(state.optimizer)
        tracer.note_resident("optimizer")
        if config.gradient_accumulation_steps > 1:
            _make_gradients(state.optimizer)
        state.optimizer.register_step_pre_hook(lambda *_: tracer.begin("update"))
        state.optimizer.register_step_post_hook(lambda *_: tracer.begin("forward"))
        tracer.begin("forward")
        changes = {"max_train_steps": 1, "max_train_epochs": None, "validation_prompts": ()}
        data: Any = _Data(config, rng)
        nothing: Any = SimpleNamespace(save=lambda *_, **__: None)
        train(
            recipe,
            state,
            data,
            rng,
            config.model_copy(update=changes),
            nothing,
            lambda step: None,
            Determinism(lambda event: None),
            lambda event: None,
            StopSwitch(),
        )
        if config.validation_prompts:
            tracer.begin("validate")
            _validate(config, models, recipe.precision, rng, tracer)
    return tracer.trace


def _make_gradients(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)


def make_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Make a first update: the second one holds the optimizer's state beside the activations."""
    _make_gradients(optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _Data:
    """Batches of the largest size, in place of ``TrainingData``."""

    dataset = None

    def __init__(self, config: PipelineConfig, rng: StatelessRng) -> None:
        self._config, self._rng = config, rng
        self._size = max(config.loader.sizes(), key=lambda size: size.pixels)
        batch_size = config.train_batch_size
        self.plan = BatchPlan([self._size] * batch_size, batch_size, 1, rng)

    def batches(self, start: int, end: int, draws: Sequence[Draw]) -> Generator[Batch, None, None]:
        """Yield the batches of the steps."""
        for number in range(start, end):
            yield self._batch(*self.plan.batch(number), draws).to(CUDA)

    def _batch(self, epoch: int, samples: tuple[int, ...], draws: Sequence[Draw]) -> Batch:
        config, count = self._config, len(samples)
        latent = (self._size.height // VAE_FACTOR, self._size.width // VAE_FACTOR)
        channels = 16 if isinstance(config, FluxLoraConfig) else 4
        tensors = {"weights": torch.empty(count), "time_ids": torch.empty(count, 6)}
        if config.cache_vae_outputs:
            names = ("latent_mean", "latent_logvar")
            tensors |= {name: torch.empty(count, channels, *latent) for name in names}
        else:
            tensors["pixels"] = torch.empty(count, 3, self._size.height, self._size.width)
        if config.caches_text:
            tensors |= vars(_text(config, count))
        if config.use_masks:
            tensors["masks"] = torch.empty(count, 1, *latent)
        values = {d.purpose: d.make(self._rng, epoch, samples, self._size) for d in draws}
        return Batch(epoch, samples, ("a cat",) * count, draws=values, **tensors)


def _text(config: PipelineConfig, count: int, device: torch.device | str = "cpu") -> Text:
    """Return the encodings of captions, (B, tokens, width) and (B, width)."""
    is_flux = isinstance(config, FluxLoraConfig)
    width, pooled = (4096, 768) if is_flux else (2048, 1280)
    values: dict[str, Any] = {"dtype": getattr(torch, config.weight_dtype), "device": device}
    return Text(
        torch.empty(count, config.text_tokens, width, **values),
        torch.empty(count, pooled, **values),
    )


def _validate(
    config: PipelineConfig, models: Any, precision: Any, rng: StatelessRng, tracer: Tracer
) -> None:
    """Make one validation image, in two steps of denoising."""
    schedulers: Any = {flux_sampler: FlowMatchEulerDiscreteScheduler}
    schedulers[sdxl_sampler] = DDIMScheduler
    for module, scheduler in schedulers.items():
        module.load_scheduler = lambda config, scheduler=scheduler, **_: scheduler()
        module.STEPS = 2
    schedules: Any = sdxl_sampler
    schedules.noise_schedule = lambda config: SimpleNamespace(scheduler_values={})
    patched: Any = validation
    patched.load_vae = lambda config, device: vae_of(config)
    request: Any = SimpleNamespace(training=config, job_id="job", start_id="1", scratch_dir=".")
    request.training = config.model_copy(update={"num_validation_images_per_prompt": 1})
    sampler = training_type(config).new_sampler(config, models)
    store: Any = None  # nothing is written
    made: Any = validation.Validation(
        request, store, models, sampler, None, precision, rng, lambda event: None, StopSwitch()
    )
    if config.caches_text:
        made._texts = lambda: ([_text(config, 1)], [None])
    # An image with NaN or infinity is left out: there are no bytes to write.
    tracer.finite = False
    made.make(1)


def _cache_stage_peak(config: PipelineConfig) -> int:
    """Trace the cache stage: the encoders are on the device one after the other."""
    size = max(config.loader.sizes(), key=lambda size: size.pixels)
    stages: list[tuple[tuple[object, ...], Callable[[], object]]] = []
    if config.caches_text:
        options = (config.type, config.weight_dtype, config.text_tokens)
        stages.append((options, lambda: text_of(config).encode(["a cat"] * cache.CAPTIONS)))
    if config.cache_vae_outputs:
        shape = (cache.batch_size(size), 3, size.height, size.width)
        stages.append(
            (shape, lambda: encode_pixels(vae_of(config), torch.empty(shape, device=CUDA)))
        )
    for key, encode in stages:
        if key in _known_peaks:
            continue
        tracer = Tracer()
        with FakeTensorMode(allow_non_fake_inputs=True), tracer, torch.no_grad():
            tracer.begin("cache")
            encode()
        _known_peaks[key] = tracer.trace.peak
    return max(_known_peaks[key] for key, _ in stages)
