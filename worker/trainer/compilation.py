"""Compiles the repeated blocks of a denoiser by torch.compile, to the same code in every process.

Inductor chooses kernels, and with them the order of sums, by the shapes that it first sees. So all
graphs are made before the first step, from batches of a fixed size, and what they do not cover,
such as validation, runs uncompiled: a run that resumes in another process, or in a warm trainer,
computes the same numbers.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch._inductor.config
import torch.fx.experimental._config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from tasks.extras import compiler_problem
from tasks.jobs.pipeline import PipelineConfig
from tasks.stages.trainer_protocol import TrainerRequest
from worker.trainer.compute.determinism import Determinism
from worker.trainer.compute.memory import find_gpu_error
from worker.trainer.data.batches import Batch, TrainingData
from worker.trainer.data.cache_entries import VAE_FACTOR
from worker.trainer.errors import CompileError
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.training_type import Recipe

# A model's code takes some 50 MB.
_MAX_FOLDER_BYTES = 4 * 2**30
# Height and width of the fixed size, in latents. The activations of 256 x 384 pixels take less
# memory than those of the images that are trained. UNets halve both twice.
_LATENTS = (32, 48)
# diffusers does not count SDXL's residual blocks among its UNet's repeated ones; they have 12 pairs
# of widths, each a graph.
_RESIDUAL_BLOCK, _MAX_GRAPHS = "ResnetBlock2D", 64

_ROWS = ("weights", "time_ids", "prompt_embeds", "pooled")
_IMAGES = ("masks", "pixels", "latent_mean", "latent_logvar")
_IMAGE_DIMENSIONS = 4  # (B, C, h, w)

# What the graphs that dynamo keeps in this process were made for.
_made_for: object = None


def prepare_compiler(request: TrainerRequest) -> None:
    """Check that this machine can compile, and keep the code in a private folder on its disk.

    Raises:
        CompileError: A compiler is missing, or the folder is not ours.
    """
    problem = compiler_problem(cuda=request.device == "cuda")
    if problem is not None:
        raise CompileError(problem)
    # Beside the folders of starts, which end with them.
    folder = Path(request.scratch_dir).parent / "compiled"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    # The process loads and runs what it finds there.
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise CompileError(
            f"{folder} holds compiled code, and other users can write to it or own it; remove it"
        )
    _remove_oldest(folder)
    # Not defaults: another folder could be shared, or in the store.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")


class CompiledBlocks:
    """The repeated blocks of a model, which run compiled until they are restored.

    Args:
        model: A diffusers model.
    """

    def __init__(self, model: Any) -> None:
        kinds = {*model._repeated_blocks, _RESIDUAL_BLOCK}
        self._blocks = [part for part in model.modules() if type(part).__name__ in kinds]
        for block in self._blocks:
            # Not Module.compile: all kinds of blocks would share the graphs of Module.__call__.
            block.forward = torch.compile(block.forward, fullgraph=True)

    def make_graphs(
        self, compute: Callable[[], object], check: Callable[[], None] = lambda: None
    ) -> None:
        """Make the graphs of all calls in ``compute``; from then on no more are made.

        Args:
            compute: Runs forward and backward pass.
            check: Called before each block, since compiling takes long.

        Raises:
            CompileError: Compiling failed.
        """

        def prepare(_block: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            check()
            _mark_dynamic((*args, *kwargs.values()))

        hooks = [it.register_forward_pre_hook(prepare, with_kwargs=True) for it in self._blocks]
        inductor: Any = torch._inductor.config
        dynamo: Any = torch._dynamo.config
        shapes: Any = torch.fx.experimental._config
        try:
            with (
                # No choice by measuring.
                inductor.patch(deterministic=True, max_autotune=False, fx_graph_remote_cache=False),
                # Only batch, height, width and tokens vary.
                dynamo.patch(automatic_dynamic_shapes=False, recompile_limit=_MAX_GRAPHS),
                # Dimensions that are equal here may differ later.
                shapes.patch(use_duck_shape=False),
                torch.compiler.set_stance("default"),
            ):
                compute()
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, RuntimeError) and find_gpu_error(cause) is not None:
                raise cause from error
            first_line = str(cause).partition("\n")[0]
            raise CompileError(f"{type(cause).__name__}: {first_line}") from error
        finally:
            for hook in hooks:
                hook.remove()
        torch.compiler.set_stance("eager_on_recompile")

    def restore(self) -> None:
        """Run the blocks uncompiled again; their graphs are kept for the next run."""
        for block in self._blocks:
            del block.forward


def compile_blocks(
    config: PipelineConfig,
    model: Any,
    recipe: Recipe,
    data: TrainingData,
    determinism: Determinism,
    stop: StopSwitch,
) -> CompiledBlocks:
    """Compile the blocks of a run's denoiser, before its first step.

    Args:
        config: The run's config.
        model: The denoiser, with its LoRA layers.
        recipe: Computes the losses.
        data: The run's batches.
        determinism: How the run computes.
        stop: Whether to stop.

    Raises:
        CompileError: Compiling failed.
        InterruptedRun: The run was asked to stop.
    """
    global _made_for
    shapes = [(name, tuple(weight.shape)) for name, weight in recipe.parameters.items()]
    precision = config.weight_dtype, config.mixed_precision, config.deterministic
    needed = config.type, *precision, config.text_tokens, shapes
    if needed != _made_for:
        torch._dynamo.reset()
        _made_for = needed
    blocks = CompiledBlocks(model)
    example = data.example(recipe.draws)
    # dynamo makes another graph of 1 sample than of several.
    sizes = sorted({min(len(samples), 2) for samples in data.plan.epoch(0)})

    def compute() -> None:
        for size in sizes:
            with recipe.precision.autocast():
                losses = recipe.losses(fixed_batch(example, size))  # (size,)
            torch.autograd.backward(losses.sum())

    blocks.make_graphs(lambda: determinism.run(compute), stop.check)
    for parameter in recipe.parameters.values():
        parameter.grad = None
    return blocks


def fixed_batch(example: Batch, size: int) -> Batch:
    """Return a batch of a fixed shape.

    Args:
        example: Any batch of the run.
        size: Its number of samples.
    """
    height, width = _LATENTS

    def zeros(name: str) -> torch.Tensor | None:
        tensor: torch.Tensor | None = getattr(example, name)
        if tensor is None:
            return None
        scale = VAE_FACTOR if name == "pixels" else 1
        return tensor.new_zeros(size, tensor.shape[1], height * scale, width * scale)

    def first(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[:1].repeat_interleave(size, dim=0)

    rows: dict[str, Any] = {name: first(getattr(example, name)) for name in _ROWS}
    rows |= {name: zeros(name) for name in _IMAGES}
    rows["draws"] = {
        purpose: first(draw) if draw.ndim == 1 else draw.new_zeros(size, draw.shape[1], *_LATENTS)
        for purpose, draw in example.draws.items()
    }
    samples, captions = example.samples[:1] * size, example.captions[:1] * size
    return replace(example, samples=samples, captions=captions, **rows)


def _mark_dynamic(inputs: tuple[Any, ...]) -> None:
    """Mark the dimensions of a block's inputs that vary: all but channels and widths."""
    for value in inputs:
        for tensor in value if isinstance(value, tuple) else (value,):
            if isinstance(tensor, torch.Tensor):
                # (B, C, h, w), (B, tokens, width), (B, width) or (tokens, width)
                channels = 1 if tensor.ndim == _IMAGE_DIMENSIONS else tensor.ndim - 1
                varying = [number for number in range(tensor.ndim) if number != channels]
                torch._dynamo.maybe_mark_dynamic(tensor, varying)


def _remove_oldest(folder: Path) -> None:
    """Remove the oldest files of a folder of compiled code that is too large."""
    files = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # another trainer removes them too
            if path.is_file():
                files.append((path.stat().st_mtime, path.stat().st_size, path))
    excess = sum(size for _, size, _ in files) - _MAX_FOLDER_BYTES
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        with suppress(OSError):
            path.unlink()
        excess -= size
