"""Each patch: with it the library equals engine ``diffusers``, without it the library has the bug.

Wherever the two engines do the same, their losses are compared.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from routing.policy import TrainingType
from tasks.events import TrainDone
from tasks.jobs.invoke import PATCHES
from tasks.store import image_key
from tests.worker.trainer.invoke.library import ALL, Library
from tests.worker.trainer.runs import (
    BUCKETS,
    CACHED,
    Images,
    config_of,
    images,
    put_dataset,
    read_tensors,
    request_of,
    run_cache,
    run_train,
    sdxl_config_of,
)

pytestmark = pytest.mark.timeout(240)

# Losses that agree this far come from the same numbers, summed in another order.
SAME = 1e-5
CLOSE = {"max_train_steps": 4, "train_batch_size": 2}


def without(*patches: str) -> tuple[str, ...]:
    assert set(patches) <= set(ALL)
    return tuple(sorted(set(ALL) - set(patches)))


def with_masks(data: Images) -> Images:
    """Return the images with the right half of each masked out."""
    samples = []
    for sample in data.dataset.samples:
        mask = Image.new("L", sample.size, 0)
        mask.paste(255, (0, 0, sample.width // 2, sample.height))
        path = data.folder / "mask.png"
        mask.save(path)
        key = f"mask-{sample.width}x{sample.height}"
        data.store.put(image_key(key), path)
        samples.append(sample.model_copy(update={"mask": key}))
    return Images(data.folder, data.store, put_dataset(data.store, samples))


MASKED = {"dataset": {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "/unused"}}
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("latent_shift", CACHED),
    ("latent_shift", {"cache_text_encoder_outputs": True}),
    ("noise", CACHED),
    ("noise", {**CACHED, "timestep_sampler": "uniform"}),
    ("weighted_loss", {**CACHED, "min_snr_gamma": 0.5}),
    ("weighted_loss", {**CACHED, "use_masks": True, "loader": MASKED}),
    ("buckets", {"cache_text_encoder_outputs": True, "loader": {"aspect_ratio_buckets": BUCKETS}}),
    ("lora_alpha", CACHED),
    ("lora_start", CACHED),
    ("group_mean", {**CACHED, "gradient_accumulation_steps": 2}),
]


@pytest.mark.parametrize(("patch", "options"), LOSSES)
def test_only_a_patch_makes_losses_equal_engine_diffusers(
    patch: str, options: dict[str, Any], tiny_flux: Path, data: Images, library: Library
) -> None:
    data = with_masks(data) if "use_masks" in options else data
    config = config_of(tiny_flux, **{**CLOSE, **options})
    expected = torch.tensor(run_train(data, config).losses)
    patched = torch.tensor(library.train(data, config).losses)
    assert (patched - expected).abs().max() < SAME
    unpatched = torch.tensor(library.train(data, config, patches=without(patch)).losses)
    assert (unpatched - expected).abs().max() > 20 * SAME


@pytest.mark.parametrize("patch", ["cached_latents", "cached_text"])
def test_only_a_patch_trains_on_cached_outputs(
    patch: str, tiny_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(tiny_flux, **CLOSE, **CACHED)
    assert len(library.train(data, config).losses) == 4
    assert not ended_well(library, data, config, without(patch))


def test_only_a_patch_trains_an_unguided_transformer(
    unguided_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(unguided_flux, **CLOSE, **CACHED)
    expected = torch.tensor(run_train(data, config).losses)
    assert (torch.tensor(library.train(data, config).losses) - expected).abs().max() < SAME
    assert not ended_well(library, data, config, without("guidance"))


def ended_well(library: Library, data: Images, config: Any, patches: tuple[str, ...]) -> bool:
    key = run_cache(data, config).index_key
    request = request_of(
        data,
        "train",
        config,
        start_id="4999",
        engine="invoke-training",
        patches=patches,
        cache_index_key=key,
    )
    return any(isinstance(event, TrainDone) for event in library.run(request))


def test_only_a_patch_trains_the_right_layers(
    tiny_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(tiny_flux, **CLOSE, **CACHED)
    trained = trained_layers(library.train(data, config).state)
    assert trained == trained_layers(run_train(data, config).state)
    unpatched = trained_layers(library.train(data, config, patches=without("lora_targets")).state)
    assert trained - unpatched == {
        f"transformer.transformer_blocks.0.{ff}.net.2" for ff in ("ff", "ff_context")
    }
    assert unpatched - trained == {"transformer.proj_out"}


def trained_layers(state: dict[str, torch.Tensor]) -> set[str]:
    names = {name.removeprefix("weights/") for name in state if name.startswith("weights/")}
    return {name.rpartition(".lora_")[0] for name in names}


def delta_w(path: Path) -> dict[str, torch.Tensor]:
    """Return what a kohya file adds to each layer; KeyError or RuntimeError if it holds no LoRA."""
    tensors, _ = read_tensors(path)
    found = {}
    for name in {key.partition(".")[0] for key in tensors}:
        up, down = (tensors[f"{name}.lora_{it}.weight"] for it in ("up", "down"))
        found[name] = up @ down * (tensors[f"{name}.alpha"] / down.shape[0])
    return found


def test_only_a_patch_makes_both_kohya_files_equal(
    deep_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(deep_flux, **CLOSE, **CACHED)
    ours = delta_w(run_train(data, config).weights)
    theirs = delta_w(library.train(data, config).weights)
    assert set(theirs) == set(ours)
    for name, change in ours.items():
        torch.testing.assert_close(theirs[name], change, rtol=1e-3, atol=1e-6)
        assert change.abs().max() > 1e-4, name
    unpatched = library.train(data, config, patches=without("lora_file")).weights
    with pytest.raises((KeyError, RuntimeError)):
        delta_w(unpatched)


def test_only_a_patch_always_saves_the_last_step(
    tiny_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(tiny_flux, **CACHED, max_train_steps=5, save_every_n_steps=3)
    patched = library.train(data, config)
    assert [it.step for it in patched.checkpoints] == [3, 5]
    unpatched = library.train(data, config, patches=without("final_save"))
    assert [it.step for it in unpatched.checkpoints] == [3]
    assert unpatched.done.steps == 5


@pytest.mark.parametrize("kind", ["SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE"])
def test_only_a_patch_trains_bfloat16_weights_in_float32(
    kind: str, tiny_sdxl: Path, data: Images, library: Library
) -> None:
    config = sdxl_config_of(
        kind, tiny_sdxl, weight_dtype="bfloat16", max_train_steps=2, cache_vae_outputs=True
    )
    for patches, dtype in ((ALL, torch.float32), (without("float32_weights"), torch.bfloat16)):
        library.close()  # another mixed precision needs another process
        state = library.train(data, config, patches=patches).state
        found = {it.dtype for name, it in state.items() if name.startswith("weights/")}
        assert found == {dtype}
    library.close()


def test_only_a_patch_saves_without_changing_weights(
    tiny_sdxl: Path, data: Images, library: Library
) -> None:
    options = {"max_train_steps": 4, "save_dtype": "float16", "cache_vae_outputs": True}
    for patches, alike in ((ALL, True), (without("exact_save"), False)):
        often, seldom = (
            library.train(
                data,
                sdxl_config_of("SDXL_FINETUNE", tiny_sdxl, save_every_n_steps=every, **options),
                patches=patches,
            ).losses
            for every in (1, 4)
        )
        assert (often == seldom) == alike


def test_only_a_patch_gives_sdxl_the_size_of_a_bucket(
    tiny_sdxl: Path, tmp_path: Path, library: Library
) -> None:
    buckets = {"aspect_ratio_buckets": BUCKETS}
    options = {"max_train_steps": 1, "cache_vae_outputs": True, "loader": buckets}
    config = sdxl_config_of("SDXL_LORA", tiny_sdxl, **options)
    square = images(tmp_path / "square", [(64, 64)] * 2)
    wide = images(tmp_path / "wide", [(96, 48)] * 2)
    alike, differing = (
        [library.train(data, config, patches=it).losses for it in (ALL, without("target_size"))]
        for data in (square, wide)
    )
    assert alike[0] == alike[1]
    assert differing[0] != differing[1]


def test_every_patch_is_tested_and_described() -> None:
    tested = Path(__file__).read_text("utf-8")
    for name, patch in PATCHES.items():
        assert f'"{name}"' in tested, name
        assert patch.types <= set(TrainingType)
        assert patch.bug
