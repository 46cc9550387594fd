"""Runs a LoRA training script of diffusers on the fake device, and counts a step's work.

The script's own code runs: its model with LoRA layers, optimizer, accelerate and loop. Models are
built instead of loaded. The encodings of images and captions are given, as from a cache, though the
scripts encode captions (and SDXL's images) again in each step.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from accelerate import PartialState
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from peft import LoraConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.memory_trace.kernels import CUDA
from benchmarks.memory_trace.models import FULL, Depth
from benchmarks.memory_trace.run import SHALLOW_DEPTHS, make_optimizer_state
from benchmarks.memory_trace.shapes import SCRIPTS
from benchmarks.memory_trace.tracer import Trace, Tracer
from benchmarks.real_models import flux_transformer, sdxl_unet
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.sdxl import SdxlLoraConfig
from worker.trainer.flux.lora_recipe import lora_regex


def trace_script(config: FluxLoraConfig | SdxlLoraConfig, examples: Path) -> Trace:
    """Trace a step of the script with the layers, rank and shapes of a job."""
    if not isinstance(config, FluxLoraConfig):
        return _trace(config, examples, FULL)
    base, double, single = (_trace(config, examples, depth) for depth in SHALLOW_DEPTHS)
    found = base.plus(FULL.double - SHALLOW_DEPTHS[0].double, double, base)
    return found.plus(FULL.single - SHALLOW_DEPTHS[0].single, single, base)


class _Counted(Exception):  # noqa: N818 # ends the script
    pass


def _trace(config: FluxLoraConfig | SdxlLoraConfig, examples: Path, depth: Depth) -> Trace:
    path = examples / SCRIPTS[config.type]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tracer = Tracer()

    def on_step(optimizer: torch.optim.Optimizer) -> None:
        if tracer.phase == "forward":
            raise _Counted
        make_optimizer_state(optimizer)
        tracer.begin("forward")

    _replace(script, config, depth, on_step)
    PartialState().device = CUDA
    with FakeTensorMode(allow_non_fake_inputs=True), tracer, suppress(_Counted):
        script.main(script.parse_args(_options(config)))
    assert tracer.phase == "forward"
    return tracer.trace


def _options(config: FluxLoraConfig | SdxlLoraConfig) -> list[str]:
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": "built",
        "resolution": _side(config),
        "train_batch_size": config.train_batch_size,
        "rank": config.lora_rank_dim,
        "mixed_precision": "bf16",
        "max_train_steps": 10,
    }
    flags = ["--gradient_checkpointing"] if config.checkpointed_blocks else []
    if isinstance(config, FluxLoraConfig):
        values |= {"instance_data_dir": "given", "instance_prompt": "a cat"}
        flags.append("--cache_latents")
    else:
        values["train_data_dir"] = "given"
    return [*(text for pair in values.items() for text in (f"--{pair[0]}", str(pair[1]))), *flags]


def _replace(
    script: Any,
    config: FluxLoraConfig | SdxlLoraConfig,
    depth: Depth,
    on_step: Callable[[Any], None],
) -> None:
    """Replace what loads models and data in the module of a script."""
    count, side = config.train_batch_size, _side(config)
    targets: str | list[str]
    if is_flux := isinstance(config, FluxLoraConfig):
        targets = lora_regex(config)
    else:
        targets = list(config.unet_lora_target_modules)

    def accelerator(**values: Any) -> Any:
        made = new_accelerator(**values | {"log_with": None})
        accumulate = made.accumulate

        def accumulate_from(*models: Any) -> Any:
            on_step(made._optimizers[0])
            return accumulate(*models)

        made.accumulate = accumulate_from
        return made

    def encode(_pixels: torch.Tensor) -> Any:
        channels = 32 if is_flux else 8
        moments = torch.empty(count, channels, side // 8, side // 8, device=CUDA)
        moments = moments.to(torch.bfloat16 if is_flux else torch.float32)
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(moments))

    def encode_prompt(*_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        shapes = ((512, 4096), (768,)) if is_flux else ((77, 2048), (1280,))
        make: dict[str, Any] = {"dtype": torch.bfloat16, "device": CUDA}
        text = tuple(torch.empty(count, *shape, **make) for shape in shapes)
        return (*text, torch.empty(512, 3, **make)) if is_flux else text

    new_accelerator = script.Accelerator
    vae = MagicMock()
    vae.encode = encode
    vae.config = SimpleNamespace(
        scaling_factor=1.0, shift_factor=0.0, block_out_channels=(128, 256, 512, 512)
    )
    replaced: dict[str, Any] = {
        "Accelerator": accelerator,
        "AutoencoderKL": _loads(lambda: vae),
        "torch": _Torch(_Batches(config)),
        "LoraConfig": lambda **values: LoraConfig(**values | {"target_modules": targets}),
        "encode_prompt": encode_prompt,
        "import_model_class_from_model_name_or_path": MagicMock(),
    }
    if is_flux:
        replaced |= {
            "CLIPTokenizer": MagicMock(),
            "T5TokenizerFast": MagicMock(),
            "load_text_encoders": lambda *_: (MagicMock(), MagicMock()),
            "FlowMatchEulerDiscreteScheduler": _loads(FlowMatchEulerDiscreteScheduler),
            "FluxTransformer2DModel": _loads(lambda: flux_transformer(depth.double, depth.single)),
            "DreamBoothDataset": lambda **_: MagicMock(custom_instance_prompts=False),
        }
    else:
        replaced |= {
            "AutoTokenizer": MagicMock(),
            "DDPMScheduler": _loads(DDPMScheduler),
            "UNet2DConditionModel": _loads(sdxl_unet),
            "load_dataset": lambda *_, **__: {"train": MagicMock(column_names=["image", "text"])},
        }
    for name, value in replaced.items():
        assert hasattr(script, name)
        setattr(script, name, value)


def _loads(make: Callable[[], Any]) -> SimpleNamespace:
    """Return a class whose models are made, not loaded."""
    return SimpleNamespace(from_pretrained=lambda *_, **__: make())


def _side(config: FluxLoraConfig | SdxlLoraConfig) -> int:
    assert isinstance(config.loader.resolution, int)
    return config.loader.resolution


class _Batches:
    """Ten batches, which accelerate's loader would copy to the device."""

    def __init__(self, config: FluxLoraConfig | SdxlLoraConfig) -> None:
        self._count, self._side = config.train_batch_size, _side(config)

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count, side = self._count, self._side
        for _ in range(len(self)):
            tensors = {"pixel_values": torch.empty(count, 3, side, side)}
            for name in ("input_ids_one", "input_ids_two"):
                tensors[name] = torch.empty(count, 77, dtype=torch.int64)
            batch = {name: tensor.to(CUDA) for name, tensor in tensors.items()}
            sizes = {"original_sizes": [(side, side)] * count, "crop_top_lefts": [(0, 0)] * count}
            yield batch | sizes | {"prompts": ["a cat"] * count}


class _Torch(ModuleType):
    """PyTorch, with a loader of given batches."""

    def __init__(self, batches: _Batches) -> None:
        super().__init__("torch")
        data = SimpleNamespace(DataLoader=lambda *_, **__: batches)
        self.utils = SimpleNamespace(data=data)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)
