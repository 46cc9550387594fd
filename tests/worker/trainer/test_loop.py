import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.buckets import Size
from tasks.cache.packs import pack_id
from tasks.cache.plan import CacheIndex
from tasks.events import CheckpointSaved, Event, Note, Progress
from tests.worker.trainer.runs import (
    BUCKETS,
    CACHED,
    Images,
    Trained,
    config_of,
    run_cache,
    run_train,
)
from worker.trainer.checkpoint import all_finite
from worker.trainer.data.batches import BatchPlan
from worker.trainer.data.cache_entries import Latents, pack_bytes
from worker.trainer.errors import DivergedError
from worker.trainer.loop import rate_factors
from worker.trainer.rng import StatelessRng


def trained(data: Images, model: Path, **options: Any) -> Trained:
    return run_train(data, config_of(model, **options))


def weights(run: Trained) -> dict[str, torch.Tensor]:
    return {name: t for name, t in run.state.items() if name.startswith("weights/")}


def distance(one: Trained, other: Trained) -> float:
    pairs = [(tensor, weights(other)[name]) for name, tensor in weights(one).items()]
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))


def test_training_lowers_the_loss(double_flux: Path, data: Images) -> None:
    run = trained(data, double_flux, max_train_steps=60, train_batch_size=5, **CACHED)
    assert sum(run.losses[-10:]) < 0.9 * sum(run.losses[:10])


@pytest.mark.parametrize("loader", [{}, {"aspect_ratio_buckets": BUCKETS}], ids=["one", "buckets"])
def test_two_accumulated_batches_equal_one_of_two(
    tiny_flux: Path, data: Images, loader: dict[str, Any]
) -> None:
    if loader:
        # With several buckets the groups differ, but each sample has the same weight.
        epoch = {"max_train_steps": None, "max_train_epochs": 1}
        whole = trained(data, tiny_flux, loader=loader, gradient_accumulation_steps=5, **epoch)
        split = trained(
            data,
            tiny_flux,
            loader=loader,
            train_batch_size=3,
            gradient_accumulation_steps=9,
            **epoch,
        )
    else:
        # With Adam's usual epsilon, the sign of a gradient near zero decides the update.
        options: dict[str, Any] = {
            "max_train_steps": 6,
            "optimizer": {"optimizer_type": "AdamW", "epsilon": 1e-4},
        }
        whole = trained(data, tiny_flux, train_batch_size=2, **options)
        split = trained(data, tiny_flux, gradient_accumulation_steps=2, **options)
    assert split.losses == pytest.approx(whole.losses, rel=1e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], tensor, rtol=1e-3, atol=1e-6)


def test_file_depends_on_the_seed_only(tiny_flux: Path, data: Images) -> None:
    hashes = [
        trained(data, tiny_flux, seed=seed).checkpoints[-1].weights.sha256 for seed in (7, 7, 8)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


# torch warns once a process of normalization layers with float32 weights and bfloat16 inputs.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 4.0},
        {"timestep_sampler": "uniform"},
        {"discrete_flow_shift": 1.0},
        {"sigmoid_scale": 3.0},
        {"min_snr_gamma": 1.0},
        {"loader": {"caption_prefix": "a drawing of"}},
        {"loader": {"random_flip": True}},
        {"loader": {"center_crop": False}},
        {"weight_dtype": "bfloat16"},
        {"mixed_precision": "bf16"},
        {"mixed_precision": "fp16"},
    ],
    ids=str,
)
def test_loss_option_changes_the_first_loss(
    tiny_flux: Path, data: Images, options: dict[str, Any]
) -> None:
    plain = trained(data, tiny_flux, max_train_steps=2)
    changed = trained(data, tiny_flux, max_train_steps=2, **options)
    assert changed.losses[:2] != plain.losses[:2]
    assert all(math.isfinite(loss) for loss in changed.losses)


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 1e-6, "optimizer": {"optimizer_type": "AdamW", "epsilon": 1e-3}},
        {"optimizer": {"optimizer_type": "AdamW", "weight_decay": 5.0}},
        {"optimizer": {"optimizer_type": "AdamW", "beta1": 0.0}},
        {"optimizer": {"optimizer_type": "AdamW", "beta2": 0.5}},
        {"transformer_learning_rate": 1e-3},
        {"transformer_learning_rate": None},
        {"lr_warmup_steps": 2},
        {"lora_scale": 0.5},
    ],
    ids=str,
)
def test_update_option_changes_weights_but_not_the_first_loss(
    tiny_flux: Path, data: Images, options: dict[str, Any]
) -> None:
    plain = trained(data, tiny_flux)
    changed = trained(data, tiny_flux, **options)
    assert changed.losses[0] == plain.losses[0]
    assert distance(changed, plain) > 1e-4


def test_lora_scale_is_alpha_over_rank(tiny_flux: Path, data: Images) -> None:
    one = trained(data, tiny_flux, max_train_steps=2, lora_scale=None)
    same = trained(data, tiny_flux, max_train_steps=2, lora_scale=1.0)
    assert distance(one, same) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("cached", [{}, CACHED], ids=["live", "cached"])
def test_half_precision_trains_finite_float32_weights(
    tiny_flux: Path, data: Images, dtype: str, cached: dict[str, Any]
) -> None:
    run = trained(data, tiny_flux, max_train_steps=10, weight_dtype=dtype, **cached)
    exact = trained(data, tiny_flux, max_train_steps=10)
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    assert run.losses == pytest.approx(exact.losses, rel=0.05)
    # In float16 a loss scale that is too large skips a step, but not every step.
    assert any(name.startswith("optimizer/exp_avg/") for name in run.state)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("constant_with_warmup", [0.0, 0.5, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.5]),
        ("cosine", [0.0, 0.5, 1.0, 0.5]),
        ("polynomial", [0.0, 0.5, 1.0, 0.5]),
        ("cosine_with_restarts", [0.0, 0.5, 1.0, 0.5]),
    ],
)
def test_schedulers_move_the_learning_rate(name: str, expected: list[float]) -> None:
    config = config_of("unused", lr_scheduler=name, lr_warmup_steps=2)
    factor_of = rate_factors(config, 4)
    assert [factor_of(step) for step in range(4)] == pytest.approx(expected, abs=1e-4)


def test_rates_are_the_schedulers(tiny_flux: Path, data: Images) -> None:
    run = trained(data, tiny_flux, lr_scheduler="linear", lr_warmup_steps=1)
    factor_of = rate_factors(config_of("unused", lr_scheduler="linear", lr_warmup_steps=1), 4)
    assert run.rates == [1e-2 * factor_of(step) for step in range(4)]


def test_epochs_count_batches_of_all_buckets_in_groups(tiny_flux: Path, data: Images) -> None:
    run = trained(
        data,
        tiny_flux,
        loader={"aspect_ratio_buckets": BUCKETS},
        max_train_epochs=2,
        save_every_n_epochs=1,
        gradient_accumulation_steps=2,
    )
    # Five batches of one, in groups of two: three updates an epoch.
    assert [(saved.step, saved.epoch) for saved in run.checkpoints] == [(3, 1), (6, 2)]
    assert run.done.steps == 6


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3, 4]), (9, [4])]
)
def test_checkpoints_are_saved_when_due_and_at_the_end(
    tiny_flux: Path, data: Images, every: int, expected: list[int]
) -> None:
    run = trained(data, tiny_flux, save_every_n_steps=every, max_checkpoints=1)
    assert [saved.step for saved in run.checkpoints] == expected
    assert all(saved.scheduled and saved.epoch is None for saved in run.checkpoints)
    # The stage removes old checkpoints, after it has recorded the new one.
    assert all(data.store.exists(saved.state_key) for saved in run.checkpoints)
    assert all(saved.weights.name == "lora.safetensors" for saved in run.checkpoints)


def test_last_progress_follows_the_last_checkpoint(tiny_flux: Path, data: Images) -> None:
    run = trained(data, tiny_flux, save_every_n_steps=2)
    kinds = [e for e in run.events if isinstance(e, Progress | CheckpointSaved | Note)]
    last = run.events.of(Progress)[-1]
    assert (last.done, last.total) == (4, 4)
    assert last.loss == run.losses[-1] == run.done.final_loss
    assert {event.done for event in run.events.of(Progress)} >= {2, 4}
    assert all(event.loss == run.losses[event.done - 1] for event in run.events.of(Progress))
    assert isinstance(kinds[-2], CheckpointSaved)


def test_diverged_error_names_step_files_and_remedy(tiny_flux: Path, data: Images) -> None:
    with pytest.raises(DivergedError) as caught:
        trained(data, tiny_flux, transformer_learning_rate=1e30, max_train_steps=5)
    message = str(caught.value)
    assert "image-" in message or "a weight after the update" in message
    assert "of step" in message
    assert "lower the learning rate" in message


@pytest.mark.parametrize("save_every", [1, 1000], ids=["saved", "late"])
def test_nan_names_its_step_and_image_and_is_not_saved(
    tiny_flux: Path, data: Images, save_every: int
) -> None:
    options = {"max_train_steps": 6, "save_every_n_steps": save_every, "cache_vae_outputs": True}
    config = config_of(tiny_flux, **options)
    key = run_cache(data, config).index_key
    index = CacheIndex.model_validate_json(data.store.get(key))
    latents, bad = torch.full((16, 8, 8), math.nan), index.samples[3].latents
    assert bad is not None
    pack = pack_id([bad])
    data.store.put(pack, pack_bytes({bad: Latents(latents, latents)}))
    index = index.model_copy(update={"packs": {**index.packs, bad: pack}})
    data.store.put(key, index.model_dump_json().encode())
    plan = BatchPlan([Size(64, 64)] * 5, 1, 1, StatelessRng(7))
    [step] = [step for step in range(5) if plan.samples_of_step(step) == [(3,)]]
    events: list[Event] = []
    with pytest.raises(DivergedError) as caught:
        run_train(data, config, cache_index_key=key, on_event=events.append)
    assert caught.value.step == step + 1
    assert caught.value.sources == (data.dataset.samples[3].source,)
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert saved == [*range(1, step + 1)] * (save_every == 1)


def test_weights_with_nan_are_never_saved() -> None:
    good = torch.nn.Parameter(torch.ones(3))
    bad = torch.nn.Parameter(torch.tensor([1.0, math.inf]))
    assert all_finite({"good": good})
    assert not all_finite({"good": good, "bad": bad})
