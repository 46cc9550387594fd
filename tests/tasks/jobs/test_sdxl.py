from copy import deepcopy
from typing import Any

import pytest

from tasks.errors import InvalidJobError
from tasks.jobs.data_loaders import (
    OBJECT_TEMPLATES,
    STYLE_TEMPLATES,
    AspectRatioBucketConfig,
    DreamboothSDDataLoaderConfig,
    ImageCaptionSDDataLoaderConfig,
    TextualInversionSDDataLoaderConfig,
)
from tasks.jobs.datasets import ImageDirDatasetConfig
from tasks.jobs.job import TrainingJob, parse_job
from tasks.jobs.optimizers import (
    AdafactorOptimizerConfig,
    AdamOptimizerConfig,
    ProdigyOptimizerConfig,
)
from tasks.jobs.sdxl import (
    SdxlConfig,
    SdxlFinetuneConfig,
    SdxlLoraConfig,
    SdxlTextualInversionConfig,
)
from tasks.strict_model import StrictModel

# invoke-training's three SDXL configs: every field but the required ones, and its default.
INVOKE_COMMON: dict[str, Any] = {
    "seed": None,
    "report_to": "tensorboard",
    "max_train_steps": None,
    "max_train_epochs": None,
    "save_every_n_epochs": None,
    "save_every_n_steps": None,
    "validate_every_n_epochs": None,
    "validate_every_n_steps": None,
    "model": "stabilityai/stable-diffusion-xl-base-1.0",
    "hf_variant": "fp16",
    "vae_model": None,
    "optimizer": AdamOptimizerConfig(
        learning_rate=1e-4,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.01,
        epsilon=1e-8,
        use_8bit=False,
    ),
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "min_snr_gamma": 5.0,
    "cache_vae_outputs": False,
    "enable_cpu_offload_during_validation": False,
    "gradient_accumulation_steps": 1,
    "weight_dtype": "bfloat16",
    "mixed_precision": "no",
    "xformers": False,
    "gradient_checkpointing": False,
    "max_checkpoints": None,
    "prediction_type": None,
    "max_grad_norm": None,
    "validation_prompts": (),
    "negative_validation_prompts": None,
    "num_validation_images_per_prompt": 4,
    "train_batch_size": 4,
    "use_masks": False,
}
INVOKE_LORA: dict[str, Any] = {
    "type": "SDXL_LORA",
    "base_embeddings": {},
    "lora_checkpoint_format": "kohya",
    "train_unet": True,
    "train_text_encoder": True,
    "text_encoder_learning_rate": None,
    "unet_learning_rate": None,
    "lora_rank_dim": 4,
    "unet_lora_target_modules": (
        *("to_q", "to_k", "to_v", "proj", "proj_in", "proj_out", "conv", "conv1", "conv2"),
        *("conv_shortcut", "to_out.0", "time_emb_proj", "ff.net.2"),
    ),
    "text_encoder_lora_target_modules": ("fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj"),
    "cache_text_encoder_outputs": False,
}
INVOKE_TEXTUAL_INVERSION: dict[str, Any] = {
    "type": "SDXL_TEXTUAL_INVERSION",
    "num_vectors": 1,
    "initializer_token": None,
    "initial_embedding_file": None,
    "initial_phrase": None,
}
INVOKE_FINETUNE: dict[str, Any] = {
    "type": "SDXL_FINETUNE",
    "save_checkpoint_format": "trained_only_diffusers",
    "save_dtype": "float16",
    "cache_text_encoder_outputs": False,
}
# Of a data loader.
INVOKE_LOADER: dict[str, Any] = {
    "aspect_ratio_buckets": None,
    "resolution": 512,
    "center_crop": True,
    "random_flip": False,
    "dataloader_num_workers": 0,
}

FOLDER = {"type": "IMAGE_DIR_DATASET", "dataset_dir": "/images"}
CAPTIONS = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}
JSONL = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "/images.jsonl"}
IMAGE_CAPTION = {"type": "IMAGE_CAPTION_SD_DATA_LOADER", "dataset": CAPTIONS}
DREAMBOOTH = {
    "type": "DREAMBOOTH_SD_DATA_LOADER",
    "instance_caption": "a photo of xyz cat",
    "instance_dataset": FOLDER,
}
CLASS = {"class_caption": "a photo of a cat", "class_dataset": FOLDER}
LENGTH = {"max_train_steps": 100, "save_every_n_steps": 50}
LORA = {**LENGTH, "type": "SDXL_LORA", "data_loader": IMAGE_CAPTION}
FINETUNE = {
    **LENGTH,
    "type": "SDXL_FINETUNE",
    "save_checkpoint_format": "full_diffusers",
    "data_loader": IMAGE_CAPTION,
}
TEXTUAL_INVERSION = {
    **LENGTH,
    "type": "SDXL_TEXTUAL_INVERSION",
    "placeholder_token": "<lamp>",
    "initializer_token": "lamp",
    "data_loader": {
        "type": "TEXTUAL_INVERSION_SD_DATA_LOADER",
        "dataset": FOLDER,
        "caption_preset": "object",
    },
}
EVERY = [LORA, TEXTUAL_INVERSION, FINETUNE]
BUCKETS = {"target_resolution": 1024, "start_dim": 512, "end_dim": 2048, "divisible_by": 64}
PRODIGY = {"optimizer_type": "Prodigy"}


def document(training: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A job with fields set by their dotted names, double underscores for dots."""
    training = deepcopy(training)
    for path, value in values.items():
        *folders, name = path.split("__")
        place = training
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return {"training": training}


def parsed(training: dict[str, Any], **values: Any) -> SdxlConfig:
    config = parse_job(document(training, **values)).training
    assert isinstance(config, SdxlConfig)
    return config


def problems(training: dict[str, Any], **values: Any) -> dict[str, str]:
    """The reported problems, by the field's full path below ``training``."""
    with pytest.raises(InvalidJobError) as caught:
        parse_job(document(training, **values))
    return {
        problem.location.removeprefix("training."): problem.message
        for problem in caught.value.problems
    }


@pytest.mark.parametrize(
    ("config", "own", "required", "added"),
    [
        (SdxlLoraConfig, INVOKE_LORA, set(), {"trigger_word": None}),
        (SdxlTextualInversionConfig, INVOKE_TEXTUAL_INVERSION, {"placeholder_token"}, {}),
        (
            SdxlFinetuneConfig,
            INVOKE_FINETUNE,
            set(),
            {"trigger_word": None, "use_ema": False, "ema_decay": 0.9999},
        ),
    ],
)
def test_every_option_of_invoke_training_has_its_default(
    config: type[SdxlConfig], own: dict[str, Any], required: set[str], added: dict[str, Any]
) -> None:
    defaults = {
        name: field.default
        for name, field in config.model_fields.items()
        if not field.is_required()
    }
    # Required there; here a job has a place in the store by itself.
    ours = {
        "base_output_dir": None,
        "single_file_config": None,
        "compile": False,
        "validate_at_start": False,
        "deterministic": True,
        **added,
    }
    assert defaults == {**INVOKE_COMMON, **own, **ours}
    needed = {name for name, field in config.model_fields.items() if field.is_required()}
    assert needed == {"data_loader", *required}


@pytest.mark.parametrize(
    ("loader", "own", "required"),
    [
        (
            ImageCaptionSDDataLoaderConfig,
            {
                "type": "IMAGE_CAPTION_SD_DATA_LOADER",
                "caption_prefix": None,
                "caption_dropout": 0.0,  # not in invoke-training
            },
            {"dataset"},
        ),
        (
            DreamboothSDDataLoaderConfig,
            {
                "type": "DREAMBOOTH_SD_DATA_LOADER",
                "class_caption": None,
                "class_dataset": None,
                "class_data_loss_weight": 1.0,
            },
            {"instance_caption", "instance_dataset"},
        ),
        (
            TextualInversionSDDataLoaderConfig,
            {
                "type": "TEXTUAL_INVERSION_SD_DATA_LOADER",
                "caption_preset": None,
                "caption_templates": None,
                "keep_original_captions": False,
                "shuffle_caption_delimiter": None,
            },
            {"dataset"},
        ),
        (ImageDirDatasetConfig, {"type": "IMAGE_DIR_DATASET"}, {"dataset_dir"}),
    ],
)
def test_data_loaders_have_invoke_trainings_defaults(
    loader: type[StrictModel], own: dict[str, Any], required: set[str]
) -> None:
    common = {"keep_in_memory": False} if loader is ImageDirDatasetConfig else INVOKE_LOADER
    defaults = {
        name: field.default
        for name, field in loader.model_fields.items()
        if not field.is_required()
    }
    assert defaults == {**common, **own}
    assert {n for n, field in loader.model_fields.items() if field.is_required()} == required


def test_every_field_is_documented() -> None:
    parts: list[type[StrictModel]] = [
        *(SdxlLoraConfig, SdxlTextualInversionConfig, SdxlFinetuneConfig),
        *(AdafactorOptimizerConfig, AdamOptimizerConfig, ProdigyOptimizerConfig),
        *(ImageCaptionSDDataLoaderConfig, DreamboothSDDataLoaderConfig),
        *(TextualInversionSDDataLoaderConfig, AspectRatioBucketConfig, ImageDirDatasetConfig),
    ]
    assert [
        f"{part.__name__}.{name}"
        for part in parts
        for name, field in part.model_fields.items()
        if not field.description
    ] == []


@pytest.mark.parametrize("training", EVERY, ids=lambda training: str(training["type"]))
def test_the_order_of_fields_does_not_matter(training: dict[str, Any]) -> None:
    loader = dict(reversed(training["data_loader"].items()))
    turned = {**dict(reversed(training.items())), "data_loader": loader}
    assert parsed(turned) == parsed(training)
    values = {"max_train_epochs": 2, "negative_validation_prompts": ["a"], "use_masks": True}
    assert problems({**values, **turned}) == problems({**training, **values})


@pytest.mark.parametrize("training", EVERY, ids=lambda training: str(training["type"]))
def test_a_job_round_trips_and_has_a_route(training: dict[str, Any]) -> None:
    job = parse_job(document(training, gradient_checkpointing=True, optimizer=PRODIGY))
    assert TrainingJob.model_validate_json(job.model_dump_json()) == job
    assert job.route().gpu_queue.startswith("gpu.")
    assert job.training.warnings() == []


@pytest.mark.parametrize(
    ("training", "values"),
    [
        (LORA, {"train_text_encoder": False, "cache_text_encoder_outputs": True}),
        (LORA, {"optimizer": PRODIGY, "text_encoder_learning_rate": 1.0}),
        (LORA, {"optimizer": PRODIGY, "unet_learning_rate": 0.5} | {"train_text_encoder": False}),
        (LORA, {"optimizer": PRODIGY, "unet_learning_rate": 1.0}),
        (LORA, {"data_loader": {**DREAMBOOTH, **CLASS, "class_data_loss_weight": 0.5}}),
        (LORA, {"base_embeddings": {"<a>": "a.safetensors"}}),
        (LORA, {"data_loader__aspect_ratio_buckets": {**BUCKETS, "divisible_by": 8}}),
        (LORA, {"model": "a.safetensors", "single_file_config": "a/b"}),
        (FINETUNE, {"use_ema": True, "ema_decay": 0.99}),
        (FINETUNE, {"use_masks": True, "data_loader__dataset": {**JSONL, "mask_column": "m"}}),
        (FINETUNE, {"save_checkpoint_format": "single_file", "cache_text_encoder_outputs": True}),
        (TEXTUAL_INVERSION, {"data_loader__dataset": {"dataset_dir": "/images"}}),
        (TEXTUAL_INVERSION, {"initializer_token": None, "initial_phrase": "a red lamp"}),
        (
            TEXTUAL_INVERSION,
            {"data_loader__dataset": CAPTIONS, "data_loader__keep_original_captions": True}
            | {"data_loader__shuffle_caption_delimiter": ","},
        ),
        (
            TEXTUAL_INVERSION,
            {"validation_prompts": ["a <lamp>"], "negative_validation_prompts": ["a cat"]}
            | {"validate_every_n_epochs": 1},
        ),
    ],
)
def test_supported_values_have_no_warnings(
    training: dict[str, Any], values: dict[str, Any]
) -> None:
    assert parsed(training, **values).warnings() == []


@pytest.mark.parametrize(
    ("training", "values", "option"),
    [
        (LORA, {"lr_warmup_steps": 5}, "lr_warmup_steps"),
        (
            LORA,
            {"enable_cpu_offload_during_validation": True},
            "enable_cpu_offload_during_validation",
        ),
        (LORA, {"train_unet": False, "unet_learning_rate": 1e-4}, "unet_learning_rate"),
        (
            LORA,
            {"train_unet": False, "unet_lora_target_modules": ["to_q"]},
            "unet_lora_target_modules",
        ),
        (
            LORA,
            {"train_text_encoder": False, "text_encoder_learning_rate": 0.0001},
            "text_encoder_learning_rate",
        ),
        (LORA, {"model": "a.safetensors", "hf_variant": "fp16"}, "hf_variant"),
        (
            LORA,
            {"optimizer": {"learning_rate": 1e-3}, "unet_learning_rate": 1e-4}
            | {"text_encoder_learning_rate": 1e-5},
            "optimizer.learning_rate",
        ),
        (
            LORA,
            {"data_loader": {**DREAMBOOTH, "class_data_loss_weight": 0.5}},
            "data_loader.class_data_loss_weight",
        ),
        (
            LORA,
            {"data_loader": {**DREAMBOOTH, "instance_dataset": {**FOLDER, "keep_in_memory": True}}}
            | {"cache_vae_outputs": True},
            "data_loader.instance_dataset.keep_in_memory",
        ),
        (FINETUNE, {"ema_decay": 0.99}, "ema_decay"),
        (
            TEXTUAL_INVERSION,
            {"data_loader__shuffle_caption_delimiter": ","},
            "data_loader.shuffle_caption_delimiter",
        ),
        (
            TEXTUAL_INVERSION,
            {"data_loader__dataset": {**JSONL, "caption_column": "c"}},
            "data_loader.dataset.caption_column",
        ),
    ],
)
def test_a_given_option_without_effect_is_a_warning(
    training: dict[str, Any], values: dict[str, Any], option: str
) -> None:
    reported = [
        warning.partition(" has no effect: ")[0]
        for warning in parsed(training, **values).warnings()
        if "has no effect" in warning
    ]
    assert reported == [option]


def test_prompts_without_the_new_word_are_a_warning() -> None:
    prompts = {"validation_prompts": ["a <lamp>", "a cat"], "validate_every_n_steps": 10}
    [reported] = parsed(TEXTUAL_INVERSION, **prompts).warnings()
    assert "without <lamp>" in reported


def test_every_trained_model_has_its_rate() -> None:
    assert parsed(LORA, unet_learning_rate=1e-3).learning_rates() == {
        "unet": 1e-3,
        "text_encoder": 1e-4,
        "text_encoder_2": 1e-4,
    }
    assert parsed(LORA, train_text_encoder=False).learning_rates() == {"unet": 1e-4}
    assert parsed(FINETUNE).learning_rates() == {"unet": 1e-4}
    rates = parsed(TEXTUAL_INVERSION).learning_rates()
    assert rates == {"text_encoder": 1e-4, "text_encoder_2": 1e-4}


@pytest.mark.parametrize("templates", [OBJECT_TEMPLATES, STYLE_TEMPLATES])
def test_built_in_templates_are_unique(
    templates: tuple[str, ...],
) -> None:
    assert all(template.count("{}") == 1 for template in templates)
    assert len(set(templates)) == len(templates)


def test_memory_depends_on_trained_and_resident_models() -> None:
    def needed(training: dict[str, Any], **values: Any) -> float:
        return parsed(training, **values).estimate().needed_gib

    assert needed(TEXTUAL_INVERSION) < needed(LORA) < needed(FINETUNE)
    assert needed(LORA, train_text_encoder=False) < needed(LORA)
    assert needed(LORA, cache_vae_outputs=True) < needed(LORA)
    assert needed(FINETUNE, cache_text_encoder_outputs=True) < needed(FINETUNE)
    assert needed(FINETUNE, optimizer={"optimizer_type": "Adafactor"}) < needed(FINETUNE)
    assert needed(FINETUNE, optimizer={"use_8bit": True}) < needed(FINETUNE)
    assert needed(FINETUNE, optimizer=PRODIGY) > needed(FINETUNE)
    assert needed(FINETUNE, use_ema=True) > needed(FINETUNE)
