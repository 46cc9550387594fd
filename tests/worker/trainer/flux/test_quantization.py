from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from tests.worker.trainer.runs import CACHED, Images, config_of, run_train
from worker.trainer.errors import MissingLibraryError
from worker.trainer.flux.models import load_transformer
from worker.trainer.model_cache import ModelCache
from worker.trainer.tiny_models import build_tiny_flux

CPU = torch.device("cpu")
KINDS = ("fp8", "int8", "nf4")
# Bytes of each weight, which takes two in bfloat16, and the relative error of an output.
EXPECTED = {"fp8": (1.3, 0.1), "int8": (1.3, 0.05), "nf4": (0.9, 0.25)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_flux(tmp_path_factory.mktemp("flux"), double_blocks=1, single_blocks=1)


def linear_of(model: Path, kind: str | None) -> Any:
    config = config_of(model, quantization=kind, weight_dtype="bfloat16")
    transformer: Any = load_transformer(config, CPU)
    return transformer.transformer_blocks[0].ff.net[2]


def size_of(weight: Any) -> float:
    """Return the bytes of a weight, its scales included."""
    if hasattr(weight, "quant_state"):
        state = weight.quant_state
        return float(weight.numel() * weight.element_size() + state.absmax.numel() * 4)
    if hasattr(weight, "qdata"):
        parts = (weight.qdata, weight.scale)
        return float(sum(part.numel() * part.element_size() for part in parts))
    return float(weight.numel() * weight.element_size())


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_layer_is_smaller_and_nearly_equal(model: Path, kind: str) -> None:
    full, small = linear_of(model, None), linear_of(model, kind)
    x = torch.randn(64, full.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        expected, found = full(x).float(), small(x).float()
    bytes_each, error = EXPECTED[kind]
    assert size_of(full.weight) == 2 * full.weight.numel()
    assert size_of(small.weight) <= bytes_each * full.weight.numel()
    assert (found - expected).norm() < error * expected.norm()
    with torch.no_grad():
        assert torch.equal(linear_of(model, kind)(x).float(), found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_of_the_blocks_is_quantized(model: Path, kind: str) -> None:
    config = config_of(model, quantization=kind, weight_dtype="bfloat16")
    plain = load_transformer(config_of(model, weight_dtype="bfloat16"), CPU)
    transformer = load_transformer(config, CPU)
    assert not any(parameter.requires_grad for parameter in transformer.parameters())
    changed = {
        path
        for path, module in transformer.named_modules()
        if hasattr(module, "weight")
        and type(module.weight) is not type(plain.get_submodule(path).weight)
    }
    linear = {path for path, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    # The modulations (norm1.linear) too, which are a quarter of FLUX's weights.
    assert changed == {path for path in linear if "transformer_blocks." in path}


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("autocast", [False, True])
def test_8_bits_train_as_torchao_and_keep_no_16_bit_weight(
    model: Path, kind: str, autocast: bool
) -> None:
    layer = linear_of(model, kind)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 32, layer.in_features, generator=generator).bfloat16()
    grads = torch.randn(2, 32, layer.out_features, generator=generator).bfloat16()

    def run(compute: Any) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        x, kept = inputs.clone().requires_grad_(), []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = compute(x)
        y.backward(grads)
        assert x.grad is not None
        return y, x.grad, kept

    torchaos = run(lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias))
    ours = run(layer)
    assert torch.equal(ours[0], torchaos[0])
    assert torch.equal(ours[1], torchaos[1])
    assert max(torchaos[2]) >= 2 * layer.weight.numel()
    assert ours[2] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_result_after_a_norm_has_the_computations_dtype(
    model: Path, kind: str, dtype: torch.dtype
) -> None:
    layer = linear_of(model, kind)
    x = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype):
        assert layer(x).dtype == dtype
        assert torch.equal(layer(x), layer(x.to(dtype)))
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantized_transformer_stays_on_the_gpu(
    model: Path, data: Images, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    moved: list[Any] = []
    monkeypatch.setattr(FluxTransformer2DModel, "to", lambda _, device: moved.append(device))
    options: dict[str, Any] = {
        "max_train_steps": 1,
        "validate_every_n_steps": 1,
        "validation_prompts": ["a cat"],
        "num_validation_images_per_prompt": 1,
        "enable_cpu_offload_during_validation": True,
    }
    config = config_of(model, quantization=kind, weight_dtype="bfloat16", **options)
    assert "leaves the quantized transformer on the GPU" in " ".join(config.warnings())
    cache = ModelCache()
    for _ in range(2):
        run_train(data, config, models=cache)
    assert moved == []


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_lora_on_a_quantized_base_resumes_exactly(model: Path, data: Images, kind: str) -> None:
    options: dict[str, Any] = {**CACHED, "weight_dtype": "bfloat16", "save_every_n_steps": 2}
    full = run_train(data, config_of(model, **options))
    config = config_of(model, quantization=kind, **options)
    run = run_train(data, config)
    assert run.losses == pytest.approx(full.losses, rel=0.05)
    assert run.losses != full.losses
    moved = [t for name, t in run.state.items() if name.startswith("weights/") and "lora_B" in name]
    assert len(moved) == 17
    assert all(tensor.abs().sum() > 0 for tensor in moved)
    resumed = run_train(data, config, resume_state_key=run.checkpoints[0].state_key)
    assert resumed.state_bytes() == run.state_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"quantization": "fp8"},
        {"quantization": "int8"},
        {"quantization": "nf4"},
        {"optimizer": {"optimizer_type": "AdamW", "use_8bit": True}},
    ],
    ids=str,
)
def test_missing_library_is_reported_before_encoding(
    model: Path, data: Images, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr("worker.trainer.environment.find_spec", lambda _: None)
    with pytest.raises(MissingLibraryError, match=r"training-worker\[train,quantization\]"):
        run_train(data, config_of(model, **CACHED, **options))
    assert data.store.keys("cache") == []
    with pytest.raises(MissingLibraryError):
        run_train(data, config_of(model, **options))
