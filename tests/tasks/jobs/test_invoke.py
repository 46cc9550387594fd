from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.errors import InvalidJobError
from tasks.jobs.invoke import PATCHES, UNSUPPORTED_OPTIONS, parse_patches
from tasks.jobs.job import TrainingJob, parse_job
from tasks.settings.settings import Settings
from tests.tasks.jobs.test_flux_lora import with_values
from tests.worker.trainer.runs_options import SDXL_OPTIONS

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "invoke-training.md"


def flux(**training: Any) -> dict[str, Any]:
    document = with_values(weight_dtype="bfloat16", gradient_checkpointing=True)
    document["training"] |= training
    return {"engine": "invoke-training", **document}


def sdxl(kind: str, **training: Any) -> dict[str, Any]:
    return {"engine": "invoke-training", "training": {**SDXL_OPTIONS[kind], **training}}


REFUSED: dict[str, dict[str, Any]] = {
    "weight_dtype": flux(weight_dtype="float16"),
    "mixed_precision": flux(mixed_precision="fp16"),
    "gradient_checkpointing": flux(gradient_checkpointing=1),
    "model": flux(model="flux.safetensors"),
    "transformer_path": flux(transformer_path="t.safetensors"),
    "text_encoder_1_path": flux(text_encoder_1_path="t.safetensors"),
    "text_encoder_2_path": flux(text_encoder_2_path="t.safetensors"),
    "vae_model": flux(vae_model="org/vae"),
    "quantization": flux(quantization="nf4"),
    "compile": flux(compile=True),
    "validate_at_start": flux(
        validate_at_start=True, validation_prompts=["a cat"], validate_every_n_steps=1
    ),
    "optimizer.optimizer_type": flux(optimizer={"optimizer_type": "Adafactor"}),
    "optimizer.use_8bit": flux(optimizer={"optimizer_type": "AdamW", "use_8bit": True}),
    "timestep_sampler": flux(timestep_sampler="resolution_shift"),
    "min_snr_gamma": sdxl("SDXL_LORA", prediction_type="v_prediction"),
    "initial_embedding_file": sdxl(
        "SDXL_TEXTUAL_INVERSION", initial_phrase=None, initial_embedding_file="e.safetensors"
    ),
    "use_ema": sdxl("SDXL_FINETUNE", use_ema=True),
    "lora_checkpoint_format": sdxl("SDXL_LORA", lora_checkpoint_format="sd_scripts"),
    "save_checkpoint_format": sdxl("SDXL_FINETUNE", save_checkpoint_format="single_file"),
}


@pytest.mark.parametrize("option", REFUSED)
def test_unsupported_options_are_refused_with_a_reason(option: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        parse_job(REFUSED[option])
    [problem] = refused.value.problems
    assert problem.location == f"training.{option}"
    [unsupported] = [it for it in UNSUPPORTED_OPTIONS if it.option == option]
    assert unsupported.reason in problem.message
    # The default engine accepts it.
    assert parse_job({**REFUSED[option], "engine": "diffusers"}).engine == "diffusers"


def test_all_unsupported_options_are_reported_at_once() -> None:
    document = flux(weight_dtype="float16", quantization="nf4", timestep_sampler="resolution_shift")
    with pytest.raises(InvalidJobError) as refused:
        parse_job(document)
    assert len(refused.value.problems) == 3
    assert {unsupported.option for unsupported in UNSUPPORTED_OPTIONS} == set(REFUSED)


def test_the_engine_has_its_own_queues_and_warnings() -> None:
    job = parse_job(flux())
    route = job.route()
    assert route.gpu_queue == "gpu.40gb.invoke-training"
    assert route.document()["engine"] == "invoke-training"
    assert "the engine invoke-training trains it" in route.reason
    assert any("resumes" in warning for warning in job.warnings())
    other = parse_job({**flux(), "engine": "diffusers"})
    assert other.route().gpu_queue == "gpu.40gb"
    assert other.warnings() == other.training.warnings()
    word = parse_job(sdxl("SDXL_TEXTUAL_INVERSION"))
    assert any("embedding tables" in warning for warning in word.warnings())


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(InvalidJobError, match="engine"):
        parse_job({**flux(), "engine": "kohya"})
    assert TrainingJob.model_fields["engine"].default == "diffusers"


def test_the_guide_lists_every_unsupported_option() -> None:
    guide = GUIDE.read_text("utf-8")
    for unsupported in UNSUPPORTED_OPTIONS:
        assert f"| `{unsupported.option}` |" in guide, unsupported.option


def test_patches_are_all_none_or_all_but_some() -> None:
    assert parse_patches("all") == set(PATCHES)
    assert parse_patches("none") == set()
    assert parse_patches("-noise, -buckets") == set(PATCHES) - {"noise", "buckets"}


@pytest.mark.parametrize("text", ["", "noise", "-noise,-nose", "none,-noise", "all,none"])
def test_unknown_patches_are_refused_with_the_known_names(text: str) -> None:
    with pytest.raises(ValueError, match="the names are cached_latents"):
        parse_patches(text)
    with pytest.raises(ValidationError, match="invoke_patches"):
        Settings(invoke_patches=text)


def test_the_guide_lists_every_patch() -> None:
    guide = GUIDE.read_text("utf-8")
    for name, patch in PATCHES.items():
        assert f"| `{name}` |" in guide, name
        assert " ".join(patch.bug.split()) in " ".join(guide.split()), name
