from collections.abc import Callable

import pytest
import torch
from torch.nn import Conv2d, Linear, Module
from torch.utils.checkpoint import checkpoint

from worker.trainer.lora import Lora
from worker.trainer.rng import StatelessRng

TARGETS = ("up", "conv")


class Model(Module):
    """A frozen model of a convolution and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
        self.up, self.down = Linear(8, 16), Linear(16, 8)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, pixels, 8) for x (B, 3, h, w)."""
        tokens = self.conv(x).flatten(2).mT
        found: torch.Tensor = self.down(torch.nn.functional.gelu(self.up(tokens)))
        return found


@pytest.fixture
def model() -> Model:
    torch.manual_seed(5)
    return Model()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(6))


def lora_of(model: Module, alpha: float = 4.0) -> Lora:
    """Add a LoRA whose change is not zero."""
    lora, rng = Lora(), StatelessRng(1)
    lora.add(model, "unet", TARGETS, 4, alpha, rng)
    for name, weight in lora.parameters.items():
        weight.data = rng.normal(tuple(weight.shape), name)
    return lora


def gradients(lora: Lora, compute: Callable[[], torch.Tensor], *, cast: bool) -> torch.Tensor:
    """Return all gradients of a batch in bfloat16, those of the weights in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        if cast:
            lora.cast()
        loss = compute().float().square().sum()
    weights = list(lora.parameters.values())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


def test_a_lora_changes_its_layers_by_scale_times_b_a(model: Model, x: torch.Tensor) -> None:
    frozen = {name: weight.clone() for name, weight in model.state_dict().items()}
    lora = lora_of(model, alpha=2.0)
    changed = model(x)
    lora.remove()
    assert all(torch.equal(model.state_dict()[name], frozen[name]) for name in frozen)
    for layer in TARGETS:
        a, b = (lora.parameters[f"unet.{layer}.lora_{part}"].detach() for part in "AB")
        change = b.flatten(1) @ a.flatten(1)
        weight = model.get_parameter(f"{layer}.weight")
        weight.data += 0.5 * change.view_as(weight)
    torch.testing.assert_close(changed, model(x))


@pytest.mark.parametrize("recomputes", [False, True])
def test_weights_cast_once_have_the_gradients_of_autocast(
    model: Model, x: torch.Tensor, recomputes: bool
) -> None:
    lora = lora_of(model)

    def compute() -> torch.Tensor:
        found = checkpoint(model, x, use_reentrant=False) if recomputes else model(x)
        assert isinstance(found, torch.Tensor)
        return found

    ours = gradients(lora, compute, cast=True)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, gradients(lora, lambda: model(x), cast=False))


def test_weights_that_a_batch_does_not_use_have_no_gradient(model: Model, x: torch.Tensor) -> None:
    lora = lora_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        lora.cast()
        model.conv(x).float().sum().backward()
    used = {name for name, weight in lora.parameters.items() if weight.grad is not None}
    assert used == {"unet.conv.lora_A", "unet.conv.lora_B"}


def test_validation_has_the_weights_after_the_update(model: Model, x: torch.Tensor) -> None:
    lora = lora_of(model)
    gradients(lora, lambda: model(x), cast=True)
    with torch.no_grad():
        before = model(x)
        for weight in lora.parameters.values():
            weight.zero_()
        after = model(x)
    lora.remove()
    assert torch.equal(after, model(x))
    assert not torch.equal(after, before)
