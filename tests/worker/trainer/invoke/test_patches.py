"""Each patch: with it the library does as it should, without it it has the fault.

What it should do is what engine ``diffusers`` does, loss by loss, wherever the two do the same.
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

# Losses that agree so far come from the same numbers, summed in another order.
SAME = 1e-5
CLOSE = {"max_train_steps": 4, "train_batch_size": 2}


def without(*patches: str) -> tuple[str, ...]:
    assert set(patches) <= set(ALL)
    return tuple(sorted(set(ALL) - set(patches)))


def with_masks(data: Images) -> Images:
    """The same, the right half of each image masked out."""
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
def test_losses_are_those_of_engine_diffusers_with_a_patch_and_others_without(
    patch: str, options: dict[str, Any], tiny_flux: Path, data: Images, library: Library
) -> None:
    data = with_masks(data) if "use_masks" in options else data
    config = config_of(tiny_flux, **{**CLOSE, **options})
    expected = torch.tensor(run_train(data, config).losses)
    patched = torch.tensor(library.train(data, config).losses)
    assert (patched - expected).abs().max() < SAME
    faulty = torch.tensor(library.train(data, config, patches=without(patch)).losses)
    assert (faulty - expected).abs().max() > 20 * SAME


@pytest.mark.parametrize("patch", ["cached_latents", "cached_text"])
def test_cached_outputs_cannot_be_trained_on_without_a_patch(
    patch: str, tiny_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(tiny_flux, **CLOSE, **CACHED)
    assert len(library.train(data, config).losses) == 4
    assert not ended_well(library, data, config, without(patch))


def test_a_transformer_without_guidance_cannot_be_trained_without_a_patch(
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
        attempt=4999,
        engine="invoke-training",
        patches=patches,
        cache_index_key=key,
    )
    return any(isinstance(event, TrainDone) for event in library.run(request))


def test_the_feed_forward_outputs_are_trained_with_a_patch_and_the_last_layer_without(
    tiny_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(tiny_flux, **CLOSE, **CACHED)
    trained = trained_layers(library.train(data, config).state)
    assert trained == trained_layers(run_train(data, config).state)
    faulty = trained_layers(library.train(data, config, patches=without("lora_targets")).state)
    assert trained - faulty == {
        f"transformer.transformer_blocks.0.{ff}.net.2" for ff in ("ff", "ff_context")
    }
    assert faulty - trained == {"transformer.proj_out"}


def trained_layers(state: dict[str, torch.Tensor]) -> set[str]:
    names = {name.removeprefix("weights/") for name in state if name.startswith("weights/")}
    return {name.rpartition(".lora_")[0] for name in names}


def delta_w(path: Path) -> dict[str, torch.Tensor]:
    """What a kohya file adds to each layer; a KeyError or RuntimeError where it holds no LoRA."""
    tensors, _ = read_tensors(path)
    found = {}
    for name in {key.partition(".")[0] for key in tensors}:
        up, down = (tensors[f"{name}.lora_{it}.weight"] for it in ("up", "down"))
        found[name] = up @ down * (tensors[f"{name}.alpha"] / down.shape[0])
    return found


def test_its_kohya_file_and_ours_change_the_model_alike_with_a_patch_only(
    deep_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(deep_flux, **CLOSE, **CACHED)
    ours = delta_w(run_train(data, config).weights)
    theirs = delta_w(library.train(data, config).weights)
    assert set(theirs) == set(ours)
    for name, change in ours.items():
        torch.testing.assert_close(theirs[name], change, rtol=1e-3, atol=1e-6)
        assert change.abs().max() > 1e-4, name
    faulty = library.train(data, config, patches=without("lora_file")).weights
    with pytest.raises((KeyError, RuntimeError)):
        delta_w(faulty)


def test_the_end_of_a_run_is_saved_with_a_patch_whatever_the_interval(
    tiny_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(tiny_flux, **CACHED, max_train_steps=5, save_every_n_steps=3)
    patched = library.train(data, config)
    assert [it.step for it in patched.checkpoints] == [3, 5]
    faulty = library.train(data, config, patches=without("final_save"))
    assert [it.step for it in faulty.checkpoints] == [3]
    assert faulty.done.steps == 5


@pytest.mark.parametrize("kind", ["SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE"])
def test_bfloat16_weights_are_trained_in_float32_with_a_patch_only(
    kind: str, tiny_sdxl: Path, data: Images, library: Library
) -> None:
    config = sdxl_config_of(
        kind, tiny_sdxl, weight_dtype="bfloat16", max_train_steps=2, cache_vae_outputs=True
    )
    for patches, dtype in ((ALL, torch.float32), (without("float32_weights"), torch.bfloat16)):
        library.close()  # another mixed precision needs a process of its own
        state = library.train(data, config, patches=patches).state
        found = {it.dtype for name, it in state.items() if name.startswith("weights/")}
        assert found == {dtype}
    library.close()


def test_saving_changes_no_weight_with_a_patch_only(
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


def test_sdxl_is_told_the_size_of_a_bucket_with_a_patch_only(
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


def test_every_patch_is_tested_and_says_what_it_patches() -> None:
    tested = Path(__file__).read_text("utf-8")
    for name, patch in PATCHES.items():
        assert f'"{name}"' in tested, name
        assert patch.types <= set(TrainingType)
        assert patch.bug
