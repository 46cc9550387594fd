"""Whole runs of the real library: they save, resume and stop like our own."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tasks.errors import ErrorCode
from tasks.events import CheckpointSaved, Event, Progress, TrainDone, TrainFailed, ValidationImages
from tasks.stages.trainer_protocol import TrainerExit
from tests.worker.trainer.invoke.library import ALL, Library
from tests.worker.trainer.runs import (
    ALL_TARGETS,
    BUCKETS,
    CACHED,
    Images,
    Trained,
    config_of,
    images,
    read_tensors,
    request_of,
    run_cache,
    run_train,
    sdxl_config_of,
)

pytestmark = pytest.mark.timeout(240)

BUCKETED = {"loader": {"aspect_ratio_buckets": BUCKETS}}
# Five batches in groups of two are three updates a pass: step 4 is in the middle of one.
FULL: dict[str, Any] = {
    "max_train_steps": 8,
    "save_every_n_steps": 4,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 3,
    "max_grad_norm": 1.0,
}


def test_both_engines_have_equal_losses_for_twenty_steps(
    tiny_flux: Path, data: Images, library: Library
) -> None:
    options = {**FULL, "max_train_steps": 20, "train_batch_size": 2, **CACHED, **BUCKETED}
    config = config_of(tiny_flux, **options)
    ours, theirs = run_train(data, config), library.train(data, config)
    assert len(theirs.losses) == 20
    difference = torch.tensor(theirs.losses) - torch.tensor(ours.losses)
    assert difference.abs().max() < 1e-4
    assert theirs.rates == pytest.approx(ours.rates)


def of_type(kind: str, models: dict[str, Path]) -> Any:
    if kind == "FLUX_LORA":
        return config_of(models["flux"], **{**FULL, **CACHED, **BUCKETED})
    uncached = {"cache_vae_outputs": kind != "SDXL_LORA"}
    return sdxl_config_of(kind, models["sdxl"], **{**FULL, **uncached, **BUCKETED})


def assert_same_state(straight: Trained, resumed: Trained) -> None:
    """Assert equal weights, optimizer and history, bit for bit."""
    before, after = straight.state, resumed.state
    assert set(before) == set(after)
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []


KINDS = ["FLUX_LORA", "SDXL_LORA", "SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_type_resumes_bit_for_bit(
    kind: str, tiny_flux: Path, tiny_sdxl: Path, data: Images, library: Library
) -> None:
    config = of_type(kind, {"flux": tiny_flux, "sdxl": tiny_sdxl})
    straight = library.train(data, config)
    first, _ = straight.checkpoints
    assert first.step == 4
    resumed = library.train(data, config, resume_state_key=first.state_key)
    assert [it.step for it in resumed.checkpoints] == [8]
    assert_same_state(straight, resumed)
    last = [file.key for file in straight.checkpoints[-1].files if file.name.endswith("tensors")]
    for before, after in zip(last, resumed.checkpoints[-1].files, strict=False):
        a, b = (load_file(straight.path(key)) for key in (before, after.key))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_stopped_run_saves_and_resumes(tiny_flux: Path, data: Images, library: Library) -> None:
    config = config_of(tiny_flux, **CACHED, max_train_steps=3000)
    request = request_of(
        data,
        "train",
        config,
        start_id="7",
        engine="invoke-training",
        patches=ALL,
        cache_index_key=run_cache(data, config).index_key,
    )

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            library.signal(signal.SIGTERM)

    events = library.run(request, on_event=stop)
    assert library.exit_code == TrainerExit.INTERRUPTED
    assert isinstance(events[-1], CheckpointSaved)
    assert 0 < events[-1].step < 3000


def test_cached_run_uses_no_vae_and_no_encoder(
    tiny_flux: Path, tiny_sdxl: Path, tmp_path: Path, library: Library
) -> None:
    data = images(tmp_path)
    for name, model in (("flux", tiny_flux), ("sdxl", tiny_sdxl)):
        copy = tmp_path / name
        shutil.copytree(model, copy)
        options = {**CACHED, "max_train_steps": 2}
        config = (
            config_of(copy, **options)
            if name == "flux"
            else sdxl_config_of("SDXL_LORA", copy, **options, train_text_encoder=False)
        )
        index = run_cache(data, config).index_key
        expected = library.train(data, config, cache_index_key=index).losses
        for part in ("vae", "text_encoder", "text_encoder_2"):
            [path] = (copy / part).glob("*.safetensors")
            broken = {key: it * torch.nan for key, it in load_file(path).items()}
            save_file(broken, path, {"format": "pt"})
        assert library.train(data, config, cache_index_key=index).losses == expected


def test_state_of_the_other_engine_is_refused(
    tiny_flux: Path, data: Images, library: Library
) -> None:
    config = config_of(tiny_flux, **CACHED, max_train_steps=2)
    state = run_train(data, config).checkpoints[-1].state_key
    index = run_cache(data, config).index_key
    request = request_of(
        data,
        "train",
        config.model_copy(update={"max_train_steps": 4}),
        start_id="8",
        engine="invoke-training",
        patches=ALL,
        cache_index_key=index,
        resume_state_key=state,
    )
    last = library.run(request)[-1]
    assert isinstance(last, TrainFailed)
    assert "differs in engine" in last.message


def test_diverging_run_is_reported(tiny_flux: Path, data: Images, library: Library) -> None:
    config = config_of(tiny_flux, **CACHED, transformer_learning_rate=1e30)
    request = request_of(
        data,
        "train",
        config,
        start_id="9",
        engine="invoke-training",
        patches=ALL,
        cache_index_key=run_cache(data, config).index_key,
    )
    last = library.run(request)[-1]
    assert isinstance(last, TrainFailed)
    assert last.code == ErrorCode.DIVERGED
    assert "NaN or infinity" in last.message


def test_pickled_base_model_is_refused(
    tiny_flux: Path, data: Images, tmp_path: Path, library: Library
) -> None:
    copy = tmp_path / "flux"
    shutil.copytree(tiny_flux, copy)
    config = config_of(copy, **CACHED)
    index = run_cache(data, config).index_key
    [path] = (copy / "text_encoder").glob("*.safetensors")
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    request = request_of(
        data,
        "train",
        config,
        start_id="10",
        engine="invoke-training",
        patches=ALL,
        cache_index_key=index,
    )
    events = library.run(request)
    assert not any(isinstance(event, TrainDone) for event in events)


def test_text_encoder_is_trained(tiny_flux: Path, data: Images, library: Library) -> None:
    config = config_of(tiny_flux, train_text_encoder=True, max_train_steps=3)
    ours, theirs = run_train(data, config), library.train(data, config)
    assert theirs.losses == pytest.approx(ours.losses, abs=1e-4)
    assert set(theirs.state) == set(ours.state)
    assert set(load_file(theirs.weights)) == set(load_file(ours.weights))


def test_validation_repeats_after_a_resume(tiny_flux: Path, data: Images, library: Library) -> None:
    options = {
        "validation_prompts": ["a cat", "a dog"],
        "num_validation_images_per_prompt": 1,
        "validate_every_n_steps": 2,
        "save_every_n_steps": 2,
    }
    straight = library.train(data, config_of(tiny_flux, **CACHED, **options))
    made = straight.events.of(ValidationImages)
    assert [it.step for it in made] == [2, 4]
    assert [it.name for it in made[0].images] == [
        "validation-000002-1-1.jpg",
        "validation-000002-2-1.jpg",
    ]
    key = straight.checkpoints[0].state_key
    again = library.train(data, config_of(tiny_flux, **CACHED, **options), resume_state_key=key)
    assert [it.step for it in again.events.of(ValidationImages)] == [2, 4]
    assert torch.equal(again.state["history"], straight.state["history"])


def test_rectangular_resolution_is_trained_and_validated(
    tiny_flux: Path, data: Images, library: Library
) -> None:
    options = {
        "loader": {"resolution": [32, 96], "random_flip": True},
        "validation_prompts": ["a cat"],
        "num_validation_images_per_prompt": 1,
        "validate_every_n_steps": 4,
    }
    config = config_of(tiny_flux, **CACHED, **options)
    theirs = library.train(data, config)
    assert theirs.losses == pytest.approx(run_train(data, config).losses, abs=1e-5)
    [made] = theirs.events.of(ValidationImages)
    with Image.open(theirs.path(made.images[0].key)) as image:
        assert image.size == (96, 32)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prediction_type": "v_prediction"}, "min_snr_gamma"),
        (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            "another noise schedule",
        ),
    ],
)
def test_base_model_that_the_library_mistrains_is_refused(
    changes: dict[str, Any],
    expected: str,
    tiny_sdxl: Path,
    data: Images,
    tmp_path: Path,
    library: Library,
) -> None:
    copy = tmp_path / "sdxl"
    shutil.copytree(tiny_sdxl, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    config = sdxl_config_of("SDXL_FINETUNE", copy)
    request = request_of(
        data, "train", config, start_id="11", engine="invoke-training", patches=ALL
    )
    [failed] = library.run(request)
    assert isinstance(failed, TrainFailed)
    assert expected in failed.message


def test_epochs_decide_when_to_save_and_end(
    tiny_flux: Path, data: Images, library: Library
) -> None:
    options = {"max_train_epochs": 3, "save_every_n_epochs": 2, "train_batch_size": 2}
    trained = library.train(data, config_of(tiny_flux, **CACHED, **options))
    assert [it.step for it in trained.checkpoints] == [6, 9]
    assert trained.done.steps == 9


def test_sdxl_lora_file_has_the_weights_of_both_encoders(
    tiny_sdxl: Path, data: Images, library: Library
) -> None:
    options = {"max_train_steps": 2, "unet_lora_target_modules": list(ALL_TARGETS)}
    config = sdxl_config_of("SDXL_LORA", tiny_sdxl, **options)
    trained, ours = library.train(data, config), run_train(data, config)
    theirs, metadata = read_tensors(trained.weights)
    assert set(theirs) == set(read_tensors(ours.weights)[0])
    assert metadata["ss_network_alpha"] == str(float(config.lora_rank_dim))
    assert any(name.startswith("lora_te2_") for name in theirs)


def test_dreambooth_and_prodigy_run(tiny_sdxl: Path, data: Images, library: Library) -> None:
    loader = {"caption_dropout": 0.5, "random_flip": True}
    config = sdxl_config_of(
        "SDXL_LORA",
        tiny_sdxl,
        **CACHED,
        train_text_encoder=False,
        loader=loader,
        optimizer={"optimizer_type": "Prodigy"},
        max_train_steps=6,
        save_every_n_steps=3,
    )
    straight = library.train(data, config)
    key = straight.checkpoints[0].state_key
    resumed = library.train(data, config, resume_state_key=key)
    assert_same_state(straight, resumed)


def test_reported_versions_are_those_that_compute(
    tiny_flux: Path, data: Images, library: Library
) -> None:
    done = library.train(data, config_of(tiny_flux, **CACHED, max_train_steps=1)).done
    assert done.versions["transformers"].startswith("4.")
    assert done.patches
    assert json.loads(done.model_dump_json())["patches"] == list(done.patches)
