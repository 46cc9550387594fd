import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file

from tasks.base_models.noise_schedule import NoiseSchedule, noise_schedule
from tasks.jobs.sdxl import UNET_TARGETS
from tests.worker.trainer.runs import (
    ALL_TARGETS,
    SDXL_TYPES,
    Images,
    read_tensors,
    run_train,
    sdxl_config_of,
)
from worker.trainer.export.lora_file import clip_path
from worker.trainer.export.safetensors_file import write_safetensors
from worker.trainer.lora import Lora
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.export import write_sdxl_lora
from worker.trainer.sdxl.single_file import single_file_tensors
from worker.trainer.tiny_models import build_tiny_sdxl

# diffusers' Euler scheduler converts tensors to arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RANK, ALPHA = 3, 1.5
FORMS = ("kohya", "invoke_peft", "diffusers_old", "sd_scripts")
MODELS = ("unet", "text_encoder", "text_encoder_2")


def pipeline_of(folder: Path) -> Any:
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_of(pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images: torch.Tensor = pipeline(
        "a photo of a cat",
        height=64,
        width=64,
        num_inference_steps=2,
        generator=generator,
        output_type="pt",
    ).images
    return images


def random_lora(folder: Path) -> dict[str, torch.nn.Parameter]:
    """Return LoRA layers for every possible layer, with random A and B."""
    pipeline, rng = pipeline_of(folder), StatelessRng(1)
    clip = ("fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj")
    lora = Lora()
    for name in MODELS:
        targets = sorted(UNET_TARGETS) if name == "unet" else clip
        lora.add(getattr(pipeline, name), name, targets, RANK, ALPHA, rng)
    for name, weight in lora.parameters.items():
        weight.data = rng.normal(tuple(weight.shape), name) * 0.05
    return lora.parameters


def layer_weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{clip_path(path) if name != 'unet' else path}": parameter.detach().clone()
        for name in MODELS
        for path, parameter in getattr(pipeline, name).named_parameters()
    }


@pytest.mark.parametrize("form", FORMS)
def test_diffusers_reads_every_layer_of_a_lora(
    tiny_sdxl: Path, tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = random_lora(tiny_sdxl)
    path, pipeline = tmp_path / "lora.safetensors", pipeline_of(tiny_sdxl)
    config = sdxl_config_of("SDXL_LORA", tiny_sdxl, lora_checkpoint_format=form)
    write_sdxl_lora(path, weights, config, ALPHA, {"ss_v2": "False"}, pipeline.unet)
    header = read_tensors(path)[1]
    assert ("lora_adapter_metadata" in header) != any(name.startswith("ss") for name in header)
    before = layer_weights(pipeline)
    image = image_of(pipeline)
    pipeline.load_lora_weights(str(path))
    pipeline.fuse_lora(components=list(MODELS))
    pipeline.unload_lora_weights()
    assert "unexpected" not in caplog.text.lower()
    after = layer_weights(pipeline)
    layers = {name.rpartition(".lora_")[0] for name in weights}
    # The UNet's resnets, samplers and attention, and both encoders.
    assert len(layers) > 150
    for name, weight in after.items():
        layer = name.removesuffix(".weight")
        expected = before[name]
        if layer in layers and name.endswith(".weight"):
            down, up = weights[f"{layer}.lora_A"], weights[f"{layer}.lora_B"]
            delta = (up.flatten(1) @ down.flatten(1)).reshape(expected.shape)
            expected = expected + delta.detach() * (ALPHA / RANK)
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(image_of(pipeline), image)


def test_single_file_model_reads_back_bit_for_bit(tiny_sdxl: Path, tmp_path: Path) -> None:
    parts = {
        part: load_file(next((tiny_sdxl / part).glob("*.safetensors"))) for part in (*MODELS, "vae")
    }
    path = tmp_path / "whole.safetensors"
    write_safetensors(path, single_file_tensors(**parts))
    loaded: Any = StableDiffusionXLPipeline.from_single_file(
        str(path), config=str(tiny_sdxl), local_files_only=True, add_watermarker=False
    )
    original = pipeline_of(tiny_sdxl)
    for part in parts:
        expected = getattr(original, part).state_dict()
        found = getattr(loaded, part).state_dict()
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), f"{part} {name}"


@pytest.mark.parametrize("form", FORMS)
def test_trained_lora_changes_the_image(tiny_sdxl: Path, data: Images, form: str) -> None:
    options = {"lora_checkpoint_format": form, "unet_lora_target_modules": ALL_TARGETS}
    config = sdxl_config_of("SDXL_LORA", tiny_sdxl, **options)
    path = run_train(data, config).weights
    pipeline = pipeline_of(tiny_sdxl)
    before = image_of(pipeline)
    pipeline.load_lora_weights(str(path))
    assert not torch.equal(image_of(pipeline), before)
    metadata = read_tensors(path)[1]
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


def test_trained_word_is_read_by_both_encoders(tiny_sdxl: Path, data: Images) -> None:
    run = run_train(data, sdxl_config_of("SDXL_TEXTUAL_INVERSION", tiny_sdxl))
    tensors, metadata = read_tensors(run.weights)
    assert metadata["modelspec.trigger_phrase"] == "<thing>"
    assert len(tensors["clip_l"]) == len(tensors["clip_g"]) == 2
    pipeline = pipeline_of(tiny_sdxl)
    pairs = (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    )
    for key, encoder, tokenizer in pairs:
        pipeline.load_textual_inversion(
            tensors[key], token="<thing>", text_encoder=encoder, tokenizer=tokenizer
        )
    embeds = pipeline.encode_prompt("a photo of <thing>", do_classifier_free_guidance=False)[0]
    other = pipeline.encode_prompt("a photo of red cat", do_classifier_free_guidance=False)[0]
    assert not torch.equal(embeds, other)


@pytest.mark.parametrize("form", ["trained_only_diffusers", "full_diffusers", "single_file"])
def test_diffusers_loads_every_form_of_a_finetune(tiny_sdxl: Path, data: Images, form: str) -> None:
    options: dict[str, Any] = {"save_checkpoint_format": form, "save_dtype": "float32"}
    run = run_train(data, sdxl_config_of("SDXL_FINETUNE", tiny_sdxl, **options))
    files = {file.name: run.path(file.key) for file in run.checkpoints[-1].files}
    trained = {
        name.removeprefix("weights/unet."): tensor
        for name, tensor in run.state.items()
        if name.startswith("weights/")
    }
    if form == "single_file":
        assert list(files) == ["lora.safetensors"]
        pipeline: Any = StableDiffusionXLPipeline.from_single_file(
            str(run.weights), config=str(tiny_sdxl), local_files_only=True, add_watermarker=False
        )
        unet = pipeline.unet
    else:
        assert next(iter(files)) == "lora/unet/diffusion_pytorch_model.safetensors"
        folder = files["lora/unet/config.json"].parent
        unet = pipeline_of(tiny_sdxl).unet.from_pretrained(folder)
        if form == "full_diffusers":
            for name in ("tokenizer/vocab.json", "tokenizer_2/merges.txt"):
                assert files[f"lora/{name}"].read_bytes() == (tiny_sdxl / name).read_bytes()
            pipeline = pipeline_of(folder.parent)
            assert image_of(pipeline).isfinite().all()
            assert not torch.equal(image_of(pipeline), image_of(pipeline_of(tiny_sdxl)))
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, trained[name]), name


@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_finetune_says_what_its_unet_predicts(
    tiny_sdxl: Path, tmp_path: Path, data: Images, zero_snr: bool
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_sdxl, base)
    scheduler_file = base / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(scheduler_file.read_text())
    scheduler_file.write_text(json.dumps(scheduler | {"rescale_betas_zero_snr": zero_snr}))
    predicts = {"prediction_type": "v_prediction", "max_train_steps": 1}
    kept = {}
    for form in ("full_diffusers", "single_file"):
        options = {"save_checkpoint_format": form, **predicts}
        run = run_train(data, sdxl_config_of("SDXL_FINETUNE", base, **options))
        kept[form] = {file.name: run.path(file.key) for file in run.checkpoints[-1].files}
    written = json.loads(kept["full_diffusers"]["lora/scheduler/scheduler_config.json"].read_text())
    assert written["prediction_type"] == "v_prediction"
    assert written["rescale_betas_zero_snr"] == zero_snr
    assert (written.get("timestep_spacing") == "trailing") == zero_snr
    single = kept["single_file"]["lora.safetensors"]
    tensors, metadata = read_tensors(single)
    markers = {name for name in ("v_pred", "ztsnr") if name in tensors}
    assert markers == ({"v_pred", "ztsnr"} if zero_snr else {"v_pred"})
    assert all(tensors[name].numel() == 0 for name in markers)
    assert metadata["modelspec.prediction_type"] == "v"
    # As a base model, it trains as it was trained.
    described = {"single_file_config": str(tiny_sdxl)}
    found = noise_schedule(sdxl_config_of("SDXL_LORA", single, **described))
    assert found == NoiseSchedule("v_prediction", zero_snr)


def test_a_finetune_of_noise_has_no_marker(tiny_sdxl: Path, data: Images) -> None:
    options = {"save_checkpoint_format": "single_file", "max_train_steps": 1}
    path = run_train(data, sdxl_config_of("SDXL_FINETUNE", tiny_sdxl, **options)).weights
    assert not {"v_pred", "ztsnr"} & set(read_tensors(path)[0])


def test_finetune_is_saved_in_save_dtype(tiny_sdxl: Path, data: Images) -> None:
    options = {"max_train_steps": 1, "save_checkpoint_format": "full_diffusers"}
    run = run_train(data, sdxl_config_of("SDXL_FINETUNE", tiny_sdxl, **options))
    files = {file.name: run.path(file.key) for file in run.checkpoints[-1].files}
    weights = [path for name, path in files.items() if name.endswith(".safetensors")]
    assert len(weights) == 4
    for path in weights:
        assert {t.dtype for t in read_tensors(path)[0].values()} == {torch.float16}
    config = json.loads(files["lora/text_encoder/config.json"].read_text())
    assert config["dtype"] == "float16"


def test_single_file_model_trains_like_its_folder(
    tiny_sdxl: Path, tmp_path: Path, data: Images
) -> None:
    parts = {
        part: load_file(next((tiny_sdxl / part).glob("*.safetensors"))) for part in (*MODELS, "vae")
    }
    path = tmp_path / "whole.safetensors"
    write_safetensors(path, single_file_tensors(**parts))
    described = {"single_file_config": str(tiny_sdxl)}
    for kind in SDXL_TYPES:
        folder = run_train(data, sdxl_config_of(kind, tiny_sdxl, max_train_steps=1))
        file = run_train(data, sdxl_config_of(kind, path, max_train_steps=1, **described))
        assert file.losses == folder.losses
    cached = {"cache_vae_outputs": True, "max_train_steps": 1}
    losses = [
        run_train(data, sdxl_config_of("SDXL_FINETUNE", model, **cached, **options)).losses
        for model, options in ((path, described), (tiny_sdxl, {}))
    ]
    assert losses[0] == losses[1]


def test_variant_is_used_if_present(tiny_sdxl: Path, tmp_path: Path, data: Images) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_sdxl, model)
    plain = run_train(data, sdxl_config_of("SDXL_FINETUNE", model, max_train_steps=1))
    unet = model / "unet" / "diffusion_pytorch_model.safetensors"
    changed = {name: tensor * 1.1 for name, tensor in load_file(unet).items()}
    write_safetensors(unet.with_name("diffusion_pytorch_model.fp16.safetensors"), changed)
    same = run_train(data, sdxl_config_of("SDXL_FINETUNE", model, max_train_steps=1))
    other = {"hf_variant": "fp16", "max_train_steps": 1}
    taken = run_train(data, sdxl_config_of("SDXL_FINETUNE", model, **other))
    assert same.losses == plain.losses != taken.losses


def test_vae_model_replaces_the_base_models_vae(
    tiny_sdxl: Path, tmp_path: Path, data: Images
) -> None:
    other = build_tiny_sdxl(tmp_path / "other", seed=5)
    for cached in (False, True):
        options = {"max_train_steps": 1, "cache_vae_outputs": cached}
        plain = run_train(data, sdxl_config_of("SDXL_FINETUNE", tiny_sdxl, **options))
        for vae in (other, other / "vae"):
            config = sdxl_config_of("SDXL_FINETUNE", tiny_sdxl, vae_model=str(vae), **options)
            assert run_train(data, config).losses != plain.losses


def test_captions_may_use_words_of_textual_inversions(
    tiny_sdxl: Path, tmp_path: Path, data: Images
) -> None:
    word = run_train(data, sdxl_config_of("SDXL_TEXTUAL_INVERSION", tiny_sdxl)).weights
    loader = {"caption_prefix": "<word>"}
    plain = sdxl_config_of("SDXL_LORA", tiny_sdxl, loader=loader, max_train_steps=1)
    words = {"base_embeddings": {"<word>": str(word)}}
    known = sdxl_config_of("SDXL_LORA", tiny_sdxl, loader=loader, max_train_steps=1, **words)
    assert run_train(data, known).losses != run_train(data, plain).losses
    # A word continues from its saved embedding.
    again = sdxl_config_of(
        "SDXL_TEXTUAL_INVERSION",
        tiny_sdxl,
        initial_phrase=None,
        initial_embedding_file=str(word),
        max_train_steps=1,
        optimizer={"optimizer_type": "AdamW", "learning_rate": 1e-12},
    )
    saved, before = (read_tensors(path)[0] for path in (run_train(data, again).weights, word))
    for key in ("clip_l", "clip_g"):
        torch.testing.assert_close(saved[key], before[key])
