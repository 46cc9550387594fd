from copy import deepcopy
from typing import Any

import pytest

from tasks.errors import InvalidJobError
from tasks.jobs.data_loaders import (
    AspectRatioBucketConfig,
    ImageCaptionFluxDataLoaderConfig,
)
from tasks.jobs.datasets import (
    ArchiveDatasetConfig,
    HFHubImageCaptionDatasetConfig,
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
)
from tasks.jobs.flux_lora import FluxLoraConfig, flux_lora_targets
from tasks.jobs.job import TrainingJob, parse_job
from tasks.jobs.optimizers import AdamOptimizerConfig, ProdigyOptimizerConfig
from tasks.strict_model import StrictModel

# invoke-training's FluxLoraConfig: every field but the two required ones, and its default.
INVOKE_DEFAULTS: dict[str, Any] = {
    "type": "FLUX_LORA",
    "seed": None,
    "report_to": "tensorboard",
    "max_train_steps": None,
    "max_train_epochs": None,
    "save_every_n_epochs": None,
    "save_every_n_steps": None,
    "validate_every_n_epochs": None,
    "validate_every_n_steps": None,
    "model": "black-forest-labs/FLUX.1-dev",
    "transformer_path": None,
    "text_encoder_1_path": None,
    "text_encoder_2_path": None,
    "lora_checkpoint_format": "kohya",
    "train_transformer": True,
    "train_text_encoder": False,
    "text_encoder_learning_rate": 1e-4,
    "transformer_learning_rate": 4e-4,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 10,
    "min_snr_gamma": None,
    "lora_rank_dim": 4,
    "cache_text_encoder_outputs": False,
    "cache_vae_outputs": False,
    "enable_cpu_offload_during_validation": False,
    "gradient_accumulation_steps": 1,
    "weight_dtype": "float16",
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "max_checkpoints": None,
    "prediction_type": None,
    "max_grad_norm": None,
    "validation_prompts": (),
    "num_validation_images_per_prompt": 4,
    "train_batch_size": 1,
    "use_masks": False,
    "timestep_sampler": "shift",
    "discrete_flow_shift": 3.0,
    "sigmoid_scale": 1.0,
    "lora_scale": 1.0,
    "guidance_scale": 1.0,
    "clip_tokenizer_max_length": 77,
    "t5_tokenizer_max_length": 512,
}
# What this project adds, in the same way.
OWN_DEFAULTS: dict[str, Any] = {
    "trigger_word": None,
    "vae_model": None,
    "single_file_config": None,
    "quantization": None,
    "compile": False,
    "validate_at_start": False,
    "deterministic": True,
}
INVOKE_TARGETS = [
    *["attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"],
    *["attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0"],
    *["ff.net.0.proj", "ff.net.2.0", "ff_context.net.0.proj", "ff_context.net.2.0"],
    *["attn.to_k", "attn.to_q", "attn.to_v", "proj_mlp", "proj_out", "proj_in"],
]
GOOD: dict[str, Any] = {
    "training": {
        "type": "FLUX_LORA",
        "max_train_steps": 100,
        "save_every_n_steps": 50,
        "weight_dtype": "bfloat16",
        "data_loader": {
            "type": "IMAGE_CAPTION_FLUX_DATA_LOADER",
            "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"},
        },
    }
}


def with_values(**values: Any) -> dict[str, Any]:
    """The good job with fields set by their dotted names, double underscores for dots."""
    document = deepcopy(GOOD)
    for path, value in values.items():
        *folders, name = path.split("__")
        place = document["training"]
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return document


def problems(**values: Any) -> str:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(with_values(**values))
    return str(caught.value)


def parsed(**values: Any) -> FluxLoraConfig:
    training = parse_job(with_values(**values)).training
    assert isinstance(training, FluxLoraConfig)
    return training


def test_every_option_of_invoke_training_has_its_default() -> None:
    training = parse_job(GOOD).training
    fields = set(FluxLoraConfig.model_fields)
    rest = {"base_output_dir", "data_loader", "optimizer", "flux_lora_target_modules"}
    wanted = INVOKE_DEFAULTS | OWN_DEFAULTS
    assert fields == {*wanted, *rest, "text_encoder_lora_target_modules"}
    defaults = {name: FluxLoraConfig.model_fields[name].default for name in wanted}
    assert defaults == wanted
    assert isinstance(training, FluxLoraConfig)
    assert list(training.flux_lora_target_modules) == INVOKE_TARGETS
    assert training.optimizer.model_dump() == {
        "optimizer_type": "AdamW",
        "learning_rate": 1e-4,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.01,
        "epsilon": 1e-8,
        "use_8bit": False,
    }


def test_every_field_is_documented() -> None:
    for model in (FluxLoraConfig, TrainingJob):
        undocumented = [n for n, field in model.model_fields.items() if not field.description]
        assert undocumented == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"max_train_epochs": 2}, "max_train_epochs"),
        ({"max_train_steps": None}, "max_train_epochs"),
        ({"save_every_n_epochs": 2}, "save_every_n_steps"),
        ({"save_every_n_steps": None}, "save_every_n_steps"),
        ({"validate_every_n_epochs": 1, "validate_every_n_steps": 1}, "validate_every_n_steps"),
        ({"max_train_steps": 0}, "max_train_steps"),
        ({"save_every_n_steps": 0}, "save_every_n_steps"),
        ({"lora_rank_dim": 0}, "lora_rank_dim"),
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"lr_warmup_steps": -1}, "lr_warmup_steps"),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"transformer_learning_rate": float("nan")}, "transformer_learning_rate"),
        ({"transformer_learning_rate": float("inf")}, "transformer_learning_rate"),
        ({"optimizer__learning_rate": -1, "optimizer__optimizer_type": "AdamW"}, "learning_rate"),
        ({"optimizer__beta1": 1, "optimizer__optimizer_type": "AdamW"}, "optimizer.beta1"),
        ({"discrete_flow_shift": 0}, "discrete_flow_shift"),
        ({"clip_tokenizer_max_length": 78}, "clip_tokenizer_max_length"),
        ({"t5_tokenizer_max_length": 513}, "t5_tokenizer_max_length"),
        ({"data_loader__resolution": 570}, "use 560 or 576"),
        ({"data_loader__resolution": [512, 500]}, "500 is not divisible by 16"),
        ({"data_loader__resolution": 0}, "data_loader.resolution"),
        ({"cache_vae_outputs": True, "data_loader__center_crop": False}, "center_crop"),
        ({"base_output_dir": "/etc"}, "base_output_dir"),
        ({"base_output_dir": "a/../../b"}, "base_output_dir"),
        ({"transformer_path": "model.ckpt"}, "is a pickle checkpoint"),
        ({"transformer_path": "flux-Q8_0.GGUF"}, "is a GGUF file"),
        ({"text_encoder_2_path": "t5.gguf"}, "is a GGUF file"),
        ({"transformer_path": "model.sft"}, "rename it to .safetensors"),
        ({"transformer_path": "model"}, "must be a .safetensors file"),
        ({"flux_lora_target_modules": ["to_q", "nothing"]}, "match no layer of FLUX: nothing"),
        ({"flux_lora_target_modules": []}, "names no layer"),
        ({"prediction_type": "epsilon"}, "no prediction type"),
        ({"report_to": "comet_ml"}, "Comet is not supported"),
        ({"train_transformer": False}, "train_transformer"),
        (
            {"train_text_encoder": True, "cache_text_encoder_outputs": True},
            "cache_text_encoder_outputs: a trained text encoder's outputs change",
        ),
        ({"use_masks": True}, "use_masks needs an IMAGE_CAPTION_JSONL_DATASET"),
        ({"mixed_precision": "fp8"}, "computing in fp8 needs TransformerEngine"),
        (
            {"data_loader__dataset": {"type": "ARCHIVE", "archive": "a.zip", "sha256": "abc"}},
            "data_loader.dataset.sha256",
        ),
    ],
)
def test_an_unsupported_value_is_refused_by_its_field(values: dict[str, Any], named: str) -> None:
    assert named in problems(**values)


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        ((768, 384, 1536, 100), "must itself be a multiple of 16"),
        ((576, 288, 1152, 128), "target_resolution (576) is not a multiple of it"),
        ((512, 512, 256, 64), "must be at least start_dim (512)"),
        ((512, 256, 8192, 64), "leaves no pixels for the other side"),
    ],
)
def test_impossible_buckets_are_refused(buckets: tuple[int, ...], said: str) -> None:
    names = ("target_resolution", "start_dim", "end_dim", "divisible_by")
    values = dict(zip(names, buckets, strict=True))
    assert said in problems(data_loader__aspect_ratio_buckets=values)


def test_all_problems_are_reported_together() -> None:
    reported = problems(lora_rank_dim=0, bogus=1, max_train_epochs=2, data_loader__resolution=570)
    for name in ("lora_rank_dim", "bogus: is not an option", "max_train_epochs", "570"):
        assert name in reported


def test_a_field_of_two_types_is_reported_once() -> None:
    assert problems(data_loader__resolution=0).count("resolution") == 1
    assert problems(data_loader__resolution=[512, 0]).count("resolution") == 1


def test_target_names_match_the_end_of_layer_names() -> None:
    assert flux_lora_targets(("to_k",)) == (frozenset({"attn.to_k"}), ())
    assert flux_lora_targets(("ff.net.2.0",)) == (frozenset({"ff.net.2"}), ())
    assert flux_lora_targets(("proj_in",)) == (frozenset(), ())
    assert flux_lora_targets(("k",)) == (frozenset(), ("k",))


def test_a_loras_strength_does_not_depend_on_its_rank() -> None:
    for rank in (1, 4, 64):
        training = parsed(lora_rank_dim=rank, lora_scale=0.5)
        assert training.lora_alpha() / rank == 0.5


def test_likely_mistakes_are_warnings() -> None:
    reported = " ".join(parse_job(with_values(train_batch_size=4)).training.warnings())
    assert "768" in reported
    assert "train_batch_size above 2" in reported
    quiet = with_values(
        weight_dtype="bfloat16",
        data_loader__resolution=768,
        cache_vae_outputs=True,
        cache_text_encoder_outputs=True,
    )
    assert parse_job(quiet).training.warnings() == []


JSONL = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "/images.jsonl"}


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": {"optimizer_type": "Prodigy"}},
        {"optimizer": {"optimizer_type": "Adafactor"}},
        {"optimizer": {"optimizer_type": "AdamW", "use_8bit": True}},
        {"optimizer": {"use_8bit": True}},
        {"use_masks": True, "data_loader__dataset": JSONL},
        {"use_masks": True, "data_loader__dataset": {**JSONL, "mask_column": "m"}},
        {"validation_prompts": ["a lamp"], "validate_every_n_steps": 5},
        {"train_text_encoder": True},
        {"train_text_encoder": True, "train_transformer": False},
        {"quantization": "fp8"},
        {"quantization": "int8"},
        {"quantization": "nf4"},
        {"timestep_sampler": "resolution_shift", "sigmoid_scale": 2.0},
        {"data_loader__caption_dropout": 0.1},
        {"model": "flux.safetensors", "single_file_config": "black-forest-labs/FLUX.1-dev"},
        {"lora_checkpoint_format": "invoke_peft"},
    ],
)
def test_supported_values_have_no_warnings(values: dict[str, Any]) -> None:
    quiet = {
        "weight_dtype": "bfloat16",
        "data_loader__resolution": 768,
        "cache_vae_outputs": True,
        "cache_text_encoder_outputs": "train_text_encoder" not in values,
    }
    assert parsed(**quiet, **values).warnings() == []


@pytest.mark.parametrize(
    ("dtype", "computes_in", "warns"),
    [
        ("float16", "no", True),
        ("float16", "bf16", True),
        ("bfloat16", "fp16", True),
        ("bfloat16", "no", False),
        ("float32", "no", False),
    ],
)
def test_float16_is_a_warning(dtype: str, computes_in: str, warns: bool) -> None:
    reported = parsed(weight_dtype=dtype, mixed_precision=computes_in).warnings()
    assert any("range of float16" in warning for warning in reported) == warns


def test_a_relative_rate_holds_unless_one_is_given() -> None:
    prodigy = {"optimizer": {"optimizer_type": "Prodigy"}}
    assert parsed(**prodigy, train_text_encoder=True).learning_rates() == {
        "transformer": 1.0,
        "text_encoder": 1.0,
    }
    assert parsed(**prodigy, transformer_learning_rate=0.5).learning_rates() == {"transformer": 0.5}
    adafactor = parsed(optimizer={"optimizer_type": "Adafactor"})
    assert adafactor.learning_rates() == {"transformer": 1e-2}
    reported = parsed(**prodigy, transformer_learning_rate=4e-4).warnings()
    assert any("(0.0004) is far below what suits Prodigy" in warning for warning in reported)


def test_an_optimizer_without_a_type_is_adamw() -> None:
    optimizer = parsed(optimizer={"learning_rate": 1e-3}).optimizer
    assert optimizer == AdamOptimizerConfig(learning_rate=1e-3)


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"validate_every_n_steps": 5}, "validate_every_n_steps"),
        ({"validate_every_n_epochs": 5}, "validate_every_n_epochs"),
        ({"num_validation_images_per_prompt": 2}, "num_validation_images_per_prompt"),
        ({"enable_cpu_offload_during_validation": True}, "enable_cpu_offload_during_validation"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 5}, "lr_warmup_steps"),
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 0}, "lr_scheduler"),
        (
            {
                "optimizer": {"optimizer_type": "Prodigy", "safeguard_warmup": True},
                "lr_scheduler": "constant",
            },
            "optimizer.safeguard_warmup",
        ),
        ({"optimizer": {"learning_rate": 1e-3}}, "optimizer.learning_rate"),
        ({"text_encoder_learning_rate": 1e-3}, "text_encoder_learning_rate"),
        ({"text_encoder_lora_target_modules": ["fc1"]}, "text_encoder_lora_target_modules"),
        (
            {
                "train_transformer": False,
                "train_text_encoder": True,
                "transformer_learning_rate": 1.0,
            },
            "transformer_learning_rate",
        ),
        (
            {
                "train_transformer": False,
                "train_text_encoder": True,
                "flux_lora_target_modules": ["to_q"],
            },
            "flux_lora_target_modules",
        ),
        (
            {"timestep_sampler": "resolution_shift", "discrete_flow_shift": 2.0},
            "discrete_flow_shift",
        ),
        ({"timestep_sampler": "uniform", "sigmoid_scale": 2.0}, "sigmoid_scale"),
        (
            {"data_loader__dataset": {**JSONL, "mask_column": "m"}},
            "data_loader.dataset.mask_column",
        ),
        (
            {"data_loader__dataset__keep_in_memory": True, "cache_vae_outputs": True},
            "data_loader.dataset.keep_in_memory",
        ),
        (
            {
                "data_loader__resolution": 512,
                "data_loader__aspect_ratio_buckets": {
                    "target_resolution": 768,
                    "start_dim": 384,
                    "end_dim": 1536,
                    "divisible_by": 64,
                },
            },
            "data_loader.resolution",
        ),
    ],
)
def test_a_given_option_without_effect_is_a_warning(values: dict[str, Any], option: str) -> None:
    reported = [w for w in parsed(**values).warnings() if "has no effect" in w]
    assert [warning.partition(" has no effect: ")[0] for warning in reported] == [option]


def test_a_warmup_longer_than_the_run_is_a_warning() -> None:
    assert "never gets to its full value" in " ".join(parsed(lr_warmup_steps=100).warnings())
    assert "never gets" not in " ".join(parsed(lr_warmup_steps=99).warnings())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"validation_prompts": ["a lamp"]}, "training.validation_prompts: "),
        ({"optimizer": {"optimizer_type": "SGD"}}, "training.optimizer"),
        (
            {
                "optimizer": {"optimizer_type": "Prodigy"},
                "train_text_encoder": True,
                "transformer_learning_rate": 2.0,
            },
            "training.transformer_learning_rate: Prodigy takes one rate for all models",
        ),
        ({"quantization": "int4"}, "training.quantization: "),
        ({"timestep_sampler": "logit"}, "training.timestep_sampler: "),
        ({"data_loader__caption_dropout": 1.1}, "training.data_loader.caption_dropout: "),
        ({"model": "flux.ckpt"}, "training.model: is a pickle checkpoint"),
        ({"model": "flux.CKPT"}, "training.model: is a pickle checkpoint"),
        ({"model": "flux.gguf"}, "training.model: is a GGUF file"),
        ({"vae_model": "ae.pt"}, "training.vae_model: is a pickle checkpoint"),
        ({"single_file_config": "a/b"}, "training.single_file_config: acts only if model"),
        (
            {"model": "flux.safetensors", "single_file_config": "b.safetensors"},
            "training.single_file_config: must be a diffusers folder",
        ),
        (
            {
                "num_validation_images_per_prompt": 257,
                "validation_prompts": ["a lamp"],
                "validate_every_n_steps": 5,
            },
            "training.num_validation_images_per_prompt: 1 prompts of 257 images",
        ),
        ({"text_encoder_lora_target_modules": []}, "training.text_encoder_lora_target_modules: "),
        (
            {"text_encoder_lora_target_modules": ["fc1", "to_q"]},
            "training.text_encoder_lora_target_modules: match no layer of the text encoder: to_q",
        ),
        ({"xformers": False}, "training.xformers: is not an option"),
        ({"lr_scheduler": "sometimes"}, "training.lr_scheduler: "),
        ({"text_encoder_1_path": "clip.bin"}, "training.text_encoder_1_path: "),
        ({"text_encoder_2_path": "t5.pt"}, "training.text_encoder_2_path: "),
        ({"base_output_dir": ""}, "training.base_output_dir: "),
        ({"base_output_dir": "a\\b"}, "training.base_output_dir: "),
        ({"model": ""}, "training.model: "),
        ({"data_loader__resolution": [512]}, "training.data_loader.resolution"),
        ({"data_loader__center_crop": "perhaps"}, "training.data_loader.center_crop: "),
        ({"data_loader__bogus": 1}, "training.data_loader.bogus: is not an option"),
        (
            {"data_loader__dataset__bogus": 1},
            "training.data_loader.dataset.bogus: is not an option",
        ),
        ({"data_loader__dataset__dataset_dir": ""}, "dataset.dataset_dir: "),
        ({"data_loader__dataloader_num_workers": -1}, "dataloader_num_workers: "),
    ],
)
def test_an_invalid_value_is_refused_by_its_path(values: dict[str, Any], named: str) -> None:
    assert named in problems(**values)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), float("-inf"), "a lot", [1]])
@pytest.mark.parametrize(
    "name",
    [
        "transformer_learning_rate",
        "text_encoder_learning_rate",
        "min_snr_gamma",
        "max_grad_norm",
        "discrete_flow_shift",
        "sigmoid_scale",
        "lora_scale",
        "guidance_scale",
        "max_train_steps",
        "max_checkpoints",
        "num_validation_images_per_prompt",
    ],
)
def test_number_fields_take_positive_numbers_only(name: str, value: Any) -> None:
    assert f"training.{name}: " in problems(**{name: value})


def test_every_field_of_every_part_is_documented() -> None:
    parts: list[type[StrictModel]] = [
        AdamOptimizerConfig,
        ProdigyOptimizerConfig,
        ArchiveDatasetConfig,
        AspectRatioBucketConfig,
        HFHubImageCaptionDatasetConfig,
        ArchiveDatasetConfig,
        ImageCaptionDirDatasetConfig,
        ImageCaptionFluxDataLoaderConfig,
        ImageCaptionJsonlDatasetConfig,
    ]
    undocumented = [
        f"{part.__name__}.{name}"
        for part in parts
        for name, field in part.model_fields.items()
        if not field.description
    ]
    assert undocumented == []


def test_nested_options_have_invoke_trainings_defaults() -> None:
    loader = parse_job(GOOD).training.data_loader
    assert loader.model_dump(exclude={"dataset"}) == {
        "type": "IMAGE_CAPTION_FLUX_DATA_LOADER",
        "aspect_ratio_buckets": None,
        "resolution": 512,
        "center_crop": True,
        "random_flip": False,
        "caption_prefix": None,
        "caption_dropout": 0.0,
        "dataloader_num_workers": 0,
    }
    assert ImageCaptionJsonlDatasetConfig(jsonl_path="a").model_dump() == {
        "type": "IMAGE_CAPTION_JSONL_DATASET",
        "jsonl_path": "a",
        "image_column": "image",
        "caption_column": "text",
        "mask_column": "mask",
        "keep_in_memory": False,
    }
    prodigy = {name: field.default for name, field in ProdigyOptimizerConfig.model_fields.items()}
    assert prodigy == {
        "optimizer_type": "Prodigy",
        "learning_rate": 1.0,
        "weight_decay": 0.0,
        "use_bias_correction": False,
        "safeguard_warmup": False,
    }
