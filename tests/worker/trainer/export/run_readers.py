"""Write LoRAs of real models' layers, and let InvokeAI and ComfyUI themselves read them.

    python -P -m tests.worker.trainer.export.run_readers write FOLDER
    PYTHON -P tests/worker/trainer/export/run_readers.py invokeai FOLDER
    PYTHON -P tests/worker/trainer/export/run_readers.py comfyui FOLDER COMFYUI_SOURCE

PYTHON is an interpreter with the reader's requirements, which may lack this project's. Each line of
output is a file, what the reader takes it for, how many of its layers the reader applies, and how
far the change of a weight, of every 37th layer, is from the right one relative to its largest.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RANK, ALPHA = 2, 3.0
_DELTAS = ".deltas.safetensors"
# The published models' settings, by ComfyUI's names.
_COMFYUI: dict[str, dict[str, Any]] = {
    "flux": {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": 768,
        "context_in_dim": 4096,
        "hidden_size": 3072,
        "mlp_ratio": 4.0,
        "num_heads": 24,
        "depth": 19,
        "depth_single_blocks": 38,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": True,
    },
    "sdxl": {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "use_linear_in_transformer": True,
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "context_dim": 2048,
        "num_head_channels": 64,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
        "legacy": False,
    },
}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_INPUTS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
# Name: form, targets (all without any), whether CLIP is trained.
_FLUX: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "flux-kohya": ("kohya", (), True),
    "flux-kohya-attention": ("kohya", _ATTENTION, False),
    "flux-peft": ("invoke_peft", (), False),
    "flux-peft-inputs": ("invoke_peft", _INPUTS, False),
    "flux-peft-attention": ("invoke_peft", _ATTENTION, False),
    "flux-peft-clip": ("invoke_peft", (), True),
}
_SDXL: dict[str, tuple[str, tuple[str, ...], bool]] = {
    f"sdxl-{form}{name}": (form, targets, clip)
    for form in ("kohya", "sd_scripts", "invoke_peft", "diffusers_old")
    for name, targets, clip in (
        ("", (), True),
        ("-attention", _ATTENTION, False),
        ("-convolutions", ("conv1", "conv2"), False),
        ("-encoders", ("none",), True),
    )
}
Changes = Iterator[tuple[str, Callable[[torch.Size], torch.Tensor]]]
Read = Callable[[Path], tuple[str, Changes]]
# The names of all layers are compared, and the numbers of some.
_EVERY = 37


def main() -> None:
    """Write the files, or read them."""
    action, folder, *rest = sys.argv[1:]
    if action == "write":
        _write(Path(folder))
        return
    files = sorted(it for it in Path(folder).glob("*.safetensors") if not it.match(f"*{_DELTAS}"))
    read = _comfyui(Path(rest[0]), Path(folder)) if action == "comfyui" else _invokeai()
    for path in files:
        print(f"{path.stem:28} {_compared(path, read)}", flush=True)  # noqa: T201


def _compared(path: Path, read: Read) -> str:
    """Return what a reader makes of a file."""
    factors = load_file(path.with_suffix(_DELTAS))
    wanted = {name.rpartition(".")[0] for name in factors}
    try:
        taken_for, changes = read(path)
        found, worst = 0, 0.0
        for found, (layer, change) in enumerate(changes, start=1):  # counted
            up, down = factors[f"{layer}.up"], factors[f"{layer}.down"]
            if found % _EVERY == 1:
                right = (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
                off = (change(right.shape) - right).abs().max() / right.abs().max()
                worst = max(worst, float(off))
    except Exception as error:  # noqa: BLE001 # whatever a reader raises is its answer
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:90]}"
    return f"{taken_for}, {found} of {len(wanted)} layers, off by {worst:.0e}"


def _write(folder: Path) -> None:
    """Write the files, and beside each the factors of every layer's change by flattened names.

    The names are the original FLUX's, diffusers' of SDXL's UNet, and CLIP's.
    """
    from tasks.jobs.flux_lora import BLOCK_TARGETS
    from tasks.jobs.sdxl import UNET_TARGETS
    from tests.worker.trainer.export import test_readers as real
    from worker.trainer.flux.export import write_lora
    from worker.trainer.sdxl.export import write_sdxl_lora

    folder.mkdir(parents=True, exist_ok=True)
    unet = real.named_unet()
    names = {path: original for path, (original, _) in real.SDXL_UNET.items()}
    (folder / "sdxl.json").write_text(json.dumps(names))
    for name, (form, targets, clip) in {**_FLUX, **_SDXL}.items():
        known, layers = (BLOCK_TARGETS, real.FLUX) if name in _FLUX else (UNET_TARGETS, real.SDXL)
        weights = _random(real.lora_of(layers, targets or tuple(known), clip=clip))
        options = {"lora_checkpoint_format": form, "lora_rank_dim": RANK}
        path = folder / f"{name}.safetensors"
        if name in _FLUX:
            config = real.job("FLUX_LORA", lora_scale=ALPHA / RANK, **options)
            write_lora(path, weights, config, {}, guided=True)
            factors = _fused(weights)
        else:
            write_sdxl_lora(path, weights, real.job("SDXL_LORA", **options), ALPHA, {}, unet)
            factors = {_factor(key): weight for key, weight in weights.items()}
        scaled = {k: it * (ALPHA / RANK if k.endswith(".up") else 1) for k, it in factors.items()}
        save_file(scaled, path.with_suffix(_DELTAS))


def _random(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(it.shape, generator=generator) for name, it in weights.items()}


def _factor(key: str) -> str:
    """Return the flattened name of a LoRA weight's layer, with ``.down`` or ``.up``."""
    layer, _, matrix = key.rpartition(".lora_")
    return f"{layer.replace('.', '_')}.{'down' if matrix == 'A' else 'up'}"


def _fused(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the factors of layers of the original FLUX; a part without a LoRA changes nothing."""
    from tests.worker.trainer.export import readers

    factors = {_factor(k): it for k, it in weights.items() if k.startswith("text_encoder")}
    shapes = readers.flux_layers()
    for layer, parts in readers.flux_parts().items():
        if not any(f"transformer.{part}.lora_A" in weights for part in parts):
            continue
        ups, downs = [], []
        for part in parts:
            out, fan_in = shapes[part]
            ups.append(weights.get(f"transformer.{part}.lora_B", torch.zeros(out, RANK)))
            downs.append(weights.get(f"transformer.{part}.lora_A", torch.zeros(RANK, fan_in)))
        factors[f"transformer_{layer}.up"] = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
        factors[f"transformer_{layer}.down"] = torch.cat(downs)
    return factors


_PREFIXES = {
    "lora_transformer-": "transformer_",
    "lora_clip-": "text_encoder_",
    "lora_unet_": "unet_",
    "lora_te1_": "text_encoder_",
    "lora_te2_": "text_encoder_2_",
}


def _flattened(key: str) -> str:
    prefix = next(prefix for prefix in _PREFIXES if key.startswith(prefix))
    return _PREFIXES[prefix] + key.removeprefix(prefix).replace(".", "_")


def _invokeai() -> Read:
    """Return a function that identifies and loads a file as InvokeAI does."""
    manager = "invokeai.backend.model_manager"
    factory = import_module(f"{manager}.configs.factory").ModelConfigFactory
    loader_type = import_module(f"{manager}.load.model_loaders.lora").LoRALoader

    def read(path: Path) -> tuple[str, Changes]:
        config = factory.from_model_on_disk(path).config
        name = type(config).__name__
        if config is None or not hasattr(config, "base") or "LoRA" not in name:
            raise ValueError(f"it is taken for {name}")
        config.path = str(path)
        loader = loader_type.__new__(loader_type)
        loader._model_base, loader._torch_dtype = config.base, torch.float32
        layers = loader._load_model(config).layers
        return name, ((_flattened(key), partial(_change, layer)) for key, layer in layers.items())

    return read


def _change(layer: Any, shape: torch.Size) -> torch.Tensor:
    """Return what one of InvokeAI's layers adds to a weight."""
    found: torch.Tensor = layer.get_parameters({"weight": torch.zeros(shape)}, 1.0)["weight"]
    return found


def _comfyui(source: Path, folder: Path) -> Read:
    """Return a function that loads a file as ComfyUI does, onto models without weights."""
    sys.path.insert(0, str(source))
    sys.argv = [sys.argv[0], "--cpu"]
    import_module("comfy.options").enable_args_parsing()
    lora = import_module("comfy.lora")
    convert_lora = import_module("comfy.lora_convert").convert_lora
    supported_models = import_module("comfy.supported_models")

    paths = {it: path for path, it in json.loads((folder / "sdxl.json").read_text()).items()}
    models: dict[str, Any] = {}
    clips = {"flux": ("clip_l",), "sdxl": ("clip_l", "clip_g")}
    for name, kind in (("flux", "Flux"), ("sdxl", "SDXL")):
        described = getattr(supported_models, kind)({**_COMFYUI[name], "dtype": torch.float32})
        models[name] = described.get_model({}, device=torch.device("meta"))

    def read(path: Path) -> tuple[str, Changes]:
        name = path.name.partition("-")[0]
        shapes = {key: it.shape for key, it in models[name].state_dict().items()}
        shapes |= {k: it for clip in clips[name] for k, it in _clip_shapes(clip).items()}
        encoders = SimpleNamespace(state_dict=lambda: shapes)
        names = lora.model_lora_keys_unet(models[name], {})
        names = lora.model_lora_keys_clip(encoders, names)
        tensors = convert_lora(load_file(path))
        loaded = lora.load_lora(tensors, names, log_missing=False)
        patches: dict[str, list[tuple[object, ...]]] = {}
        for place, patch in loaded.items():
            key, offset = place[:2] if isinstance(place, tuple) else (place, None)
            patches.setdefault(key, []).append((1.0, patch, 1.0, offset, None))
        return f"{len(loaded)} patches", (
            (
                _comfyui_name(key, name, paths),
                partial(_patched, lora.calculate_weight, found, key),
            )
            for key, found in patches.items()
        )

    return read


def _patched(
    calculate: Callable[..., torch.Tensor], patches: Any, key: str, shape: torch.Size
) -> torch.Tensor:
    """Return what ComfyUI's patches add to a weight."""
    return calculate(patches, torch.zeros(shape), key)


def _comfyui_name(key: str, name: str, paths: Mapping[str, str]) -> str:
    """Return the flattened name of a layer from ComfyUI's name of its weight."""
    layer = key.removesuffix(".weight")
    for prefix, model in (("clip_l.", "text_encoder"), ("clip_g.", "text_encoder_2")):
        if layer.startswith(prefix):
            return f"{model}.{layer.removeprefix(prefix + 'transformer.')}".replace(".", "_")
    layer = layer.removeprefix("diffusion_model.")
    path = f"transformer.{layer}" if name == "flux" else f"unet.{paths[layer]}"
    return path.replace(".", "_")


def _clip_shapes(clip: str) -> dict[str, tuple[int, ...]]:
    depth, width = (12, 768) if clip == "clip_l" else (32, 1280)
    shapes = {f"self_attn.{it}_proj": (width, width) for it in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    block = f"{clip}.transformer.text_model.encoder.layers"
    return {f"{block}.{n}.{it}.weight": s for n in range(depth) for it, s in shapes.items()}


if __name__ == "__main__":
    main()
