from typing import Any

import prodigyopt
import pytest
import torch
from diffusers.training_utils import EMAModel
from pydantic import TypeAdapter

from tasks.jobs.optimizers import OptimizerConfig
from worker.trainer.optimizer import (
    WeightAverage,
    model_of,
    new_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_rates,
)

RATES = {"unet": 1e-2, "text_encoder": 1e-3}
KINDS: list[dict[str, Any]] = [
    {"optimizer_type": "AdamW"},
    {"optimizer_type": "AdamW", "use_8bit": True},
    {"optimizer_type": "Prodigy"},
    {"optimizer_type": "Prodigy", "use_bias_correction": True, "safeguard_warmup": True},
    {"optimizer_type": "Adafactor"},
]


def settings_of(values: dict[str, Any]) -> OptimizerConfig:
    adapter: TypeAdapter[OptimizerConfig] = TypeAdapter(OptimizerConfig)
    return adapter.validate_python(values)


def weights() -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    # More and fewer than bitsandbytes' minimum of 4096 numbers.
    shapes = {"unet.a": (80, 80), "unet.b": (8,), "text_encoder.c": (70, 70)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }


def steps(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], rates: Any, n: int
) -> None:
    for number in range(n):
        set_rates(optimizer, 1.0 / (1 + number % 2), rates)
        loss = sum((p - 1).pow(2).sum() for p in parameters.values())
        assert isinstance(loss, torch.Tensor)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("values", KINDS, ids=str)
def test_restored_optimizer_continues_bit_for_bit(values: dict[str, Any]) -> None:
    settings = settings_of(values)
    rates = dict.fromkeys(RATES, 1.0) if settings.optimizer_type == "Prodigy" else RATES
    straight = weights()
    steps(optimizer := new_optimizer(straight, settings, rates), straight, rates, 4)
    saved = {name: p.detach().clone() for name, p in straight.items()}
    tensors = {k: v.detach().clone() for k, v in optimizer_tensors(optimizer, straight).items()}
    steps(optimizer, straight, rates, 4)

    resumed = weights()
    for name, parameter in resumed.items():
        parameter.data.copy_(saved[name])
    restore_optimizer(other := new_optimizer(resumed, settings, rates), resumed, tensors)
    steps(other, resumed, rates, 4)
    for name, parameter in straight.items():
        assert torch.equal(parameter, resumed[name]), name


def test_each_model_has_its_learning_rate() -> None:
    optimizer = new_optimizer(weights(), settings_of(KINDS[0]), RATES)
    assert set_rates(optimizer, 0.5, RATES) == 5e-3
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 5e-4]
    assert model_of("text_encoder_2.text_model.a") == "text_encoder_2"


def test_8_bit_state_is_a_quarter_of_the_size() -> None:
    parameters = weights()
    optimizer = new_optimizer(parameters, settings_of(KINDS[1]), RATES)
    steps(optimizer, parameters, RATES, 1)
    assert optimizer.state[parameters["unet.a"]]["state1"].dtype == torch.uint8


def test_prodigys_reported_rate_includes_its_step_size() -> None:
    rates = dict.fromkeys(RATES, 1.0)
    parameters = weights()
    optimizer = new_optimizer(parameters, settings_of(KINDS[2]), rates)
    before = set_rates(optimizer, 1.0, rates)
    steps(optimizer, parameters, rates, 5)
    assert set_rates(optimizer, 1.0, rates) > before


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer_type": "AdamW", "beta1": 0.5},
        {"optimizer_type": "AdamW", "beta2": 0.5},
        {"optimizer_type": "AdamW", "epsilon": 1.0},
        {"optimizer_type": "AdamW", "weight_decay": 1.0},
        {"optimizer_type": "AdamW", "use_8bit": True},
        {"optimizer_type": "Prodigy", "weight_decay": 1e5},
        {"optimizer_type": "Prodigy", "use_bias_correction": True},
        {"optimizer_type": "Prodigy", "safeguard_warmup": True},
        {"optimizer_type": "Adafactor", "beta2_decay": -0.1},
        {"optimizer_type": "Adafactor", "clipping_threshold": 50.0},
        {"optimizer_type": "Adafactor", "weight_decay": 1.0},
    ],
    ids=str,
)
def test_every_setting_changes_the_update(values: dict[str, Any]) -> None:
    rates = dict.fromkeys(RATES, 0.5)
    ends = []
    for given in ({"optimizer_type": values["optimizer_type"]}, values):
        parameters = weights()
        steps(new_optimizer(parameters, settings_of(given), rates), parameters, rates, 6)
        ends.append(torch.cat([p.detach().flatten() for p in parameters.values()]))
    assert not torch.equal(*ends)


def test_the_count_of_adamw_is_restored_to_its_weights_device() -> None:
    parameters = {"unet.a": torch.nn.Parameter(torch.empty(2, device="meta"))}
    optimizer = new_optimizer(parameters, settings_of(KINDS[0]), {"unet": 1e-2})
    restore_optimizer(optimizer, parameters, {"optimizer/step/unet.a": torch.tensor(3.0)})
    assert optimizer.state[parameters["unet.a"]]["step"].device.type == "meta"


@pytest.mark.parametrize("values", KINDS, ids=str)
def test_an_overflow_changes_no_weight_and_no_state(values: dict[str, Any]) -> None:
    parameters, rates = weights(), dict.fromkeys(RATES, 1.0)
    optimizer = new_optimizer(parameters, settings_of(values), rates)
    steps(optimizer, parameters, rates, 2)
    before = {
        k: v.clone() for k, v in (optimizer_tensors(optimizer, parameters) | parameters).items()
    }
    scaler = torch.amp.GradScaler("cpu")
    loss = sum((p * torch.inf).sum() for p in parameters.values())
    assert isinstance(loss, torch.Tensor)
    torch.autograd.backward(scaler.scale(loss))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    for name, tensor in (optimizer_tensors(optimizer, parameters) | parameters).items():
        assert torch.equal(tensor, before[name]), name


def test_the_average_is_that_of_diffusers() -> None:
    [parameter] = parameters = [torch.nn.Parameter(torch.randn(3, 5))]
    ours, theirs = (kind(parameters, decay=0.9) for kind in (WeightAverage, EMAModel))
    for _ in range(100):
        torch.nn.init.normal_(parameter)
        ours.step(parameters)
        theirs.step(parameters)
        torch.testing.assert_close(ours.shadow_params, theirs.shadow_params)


LIBRARIES: list[tuple[dict[str, Any], Any, dict[str, Any]]] = [
    ({"optimizer_type": "AdamW"}, torch.optim.AdamW, {}),
    ({"optimizer_type": "Adafactor"}, torch.optim.Adafactor, {}),
    (
        {"optimizer_type": "Adafactor", "clipping_threshold": 2.0, "weight_decay": 0.1},
        torch.optim.Adafactor,
        {"d": 2.0, "weight_decay": 0.1},
    ),
    ({"optimizer_type": "Prodigy"}, prodigyopt.Prodigy, {}),
    (
        {"optimizer_type": "Prodigy", "use_bias_correction": True, "safeguard_warmup": True},
        prodigyopt.Prodigy,
        {"use_bias_correction": True, "safeguard_warmup": True},
    ),
    (
        {"optimizer_type": "Prodigy", "weight_decay": 0.01},
        prodigyopt.Prodigy,
        {"weight_decay": 0.01},
    ),
]


@pytest.mark.parametrize(("values", "library", "options"), LIBRARIES, ids=str)
def test_updates_are_the_librarys_and_continue_its_state(
    values: dict[str, Any], library: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.trainer.optimizer._AT_ONCE", 50)
    generator, rates = torch.Generator().manual_seed(0), {"unet": 1e-2}
    shapes = [(3, 5), (5, 3), (3, 5), (3, 5), (3, 5), (2, 3, 3, 3), (7,), (7,), (1, 4)]

    # In float64: rounding grows, since each of Prodigy's updates depends on all earlier ones.
    def noise(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    theirs = {f"unet.{i}": torch.nn.Parameter(noise(shape)) for i, shape in enumerate(shapes)}
    torch.nn.init.zeros_(theirs["unet.2"])
    ours = {name: torch.nn.Parameter(p.detach().clone()) for name, p in theirs.items()}
    reference = library(theirs.values(), lr=1e-2, **options)
    optimizer = new_optimizer(ours, settings_of(values), rates)
    for step in range(50):
        if step == 25:
            optimizer = new_optimizer(ours, settings_of(values), rates)
            saved = optimizer_tensors(reference, theirs)
            restore_optimizer(optimizer, ours, {k: v.clone() for k, v in saved.items()})
        for number, (own, other) in enumerate(zip(ours.values(), theirs.values(), strict=True)):
            gradient = (other.detach() - 1 + noise(other.shape)) * 10.0 ** -(2 * number)
            own.grad = gradient if step % 4 or number != 3 else None
            other.grad = own.grad
        for update in (optimizer, reference):
            set_rates(update, step % 5 / 4, rates)  # each fifth one is 0
            update.step()
        for name, own in ours.items():
            torch.testing.assert_close(own, theirs[name], rtol=1e-6, atol=1e-9)
