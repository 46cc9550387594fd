from typing import Any

import pytest

from tests.tasks.jobs.test_sdxl import (
    BUCKETS,
    CAPTIONS,
    CLASS,
    DREAMBOOTH,
    EVERY,
    FINETUNE,
    FOLDER,
    LORA,
    PRODIGY,
    TEXTUAL_INVERSION,
    problems,
)


@pytest.mark.parametrize("training", EVERY, ids=lambda training: str(training["type"]))
@pytest.mark.parametrize(
    ("values", "where", "said"),
    [
        ({"max_train_epochs": 2}, "max_train_epochs", "exactly one"),
        ({"max_train_steps": None}, "max_train_epochs", "exactly one"),
        ({"save_every_n_epochs": 2}, "save_every_n_steps", "exactly one"),
        ({"save_every_n_steps": None}, "save_every_n_steps", "exactly one"),
        (
            {"validate_every_n_epochs": 1, "validate_every_n_steps": 1},
            "validate_every_n_steps",
            "at most one",
        ),
        ({"validation_prompts": ["a"]}, "validation_prompts", "set one of"),
        (
            {
                "validation_prompts": ["a", "b"],
                "validate_every_n_steps": 1,
                "num_validation_images_per_prompt": 129,
            },
            "num_validation_images_per_prompt",
            "258 images",
        ),
        (
            {"validation_prompts": ["a"], "validate_every_n_steps": 1}
            | {"negative_validation_prompts": ["b", "c"]},
            "negative_validation_prompts",
            "are 2 for 1",
        ),
        (
            {"negative_validation_prompts": ["b"]},
            "negative_validation_prompts",
            "are 1 for 0",
        ),
        ({"xformers": True}, "xformers", "must be false"),
        ({"mixed_precision": "fp8"}, "mixed_precision", "TransformerEngine"),
        ({"report_to": "comet_ml"}, "report_to", "Comet is not supported"),
        ({"model": "sdxl.ckpt"}, "model", "pickle"),
        ({"model": "sdxl.PT"}, "model", "pickle"),
        ({"model": "sdxl.ckpt", "single_file_config": "a/b"}, "model", "pickle"),
        ({"single_file_config": "a/b"}, "single_file_config", "single .safetensors file"),
        ({"vae_model": "vae.pt"}, "vae_model", "pickle"),
        ({"vae_model": ""}, "vae_model", "must not be empty"),
        ({"base_output_dir": "../x"}, "base_output_dir", "relative folder"),
        ({"base_output_dir": "records"}, "base_output_dir", "'records', a folder of the fleet"),
        ({"base_output_dir": "./jobs/x"}, "base_output_dir", "'jobs', a folder of the fleet"),
        ({"prediction_type": "sample"}, "prediction_type", "epsilon"),
        ({"min_snr_gamma": 0}, "min_snr_gamma", "must be above 0"),
        ({"use_masks": True}, "data_loader", "use_masks needs"),
        (
            {"cache_vae_outputs": True, "data_loader__center_crop": False},
            "data_loader",
            "set center_crop true",
        ),
        ({"data_loader__resolution": 570}, "data_loader.resolution", "use 568 or 576"),
        ({"data_loader__resolution": 4}, "data_loader.resolution", "use 8"),
        ({"data_loader__resolution": [512, 500]}, "data_loader.resolution", "500 is not"),
        (
            {"data_loader__resolution": 768, "data_loader__aspect_ratio_buckets": BUCKETS},
            "data_loader.resolution",
            "make them equal",
        ),
        (
            {"data_loader__aspect_ratio_buckets": {**BUCKETS, "divisible_by": 4}},
            "data_loader.aspect_ratio_buckets.divisible_by",
            "multiple of 8",
        ),
        (
            {"data_loader__aspect_ratio_buckets": {**BUCKETS, "end_dim": 256}},
            "data_loader.aspect_ratio_buckets.end_dim",
            "at least start_dim",
        ),
        (
            {"data_loader__type": "IMAGE_CAPTION_FLUX_DATA_LOADER"},
            "data_loader.type",
            "IMAGE_CAPTION_FLUX_DATA_LOADER",
        ),
        ({"optimizer": {"optimizer_type": "Adam"}}, "optimizer.optimizer_type", "'AdamW'"),
        (
            {"optimizer": {"optimizer_type": "Adafactor", "beta2_decay": 0}},
            "optimizer.beta2_decay",
            "must be below 0",
        ),
        (
            {"optimizer": {"optimizer_type": "Adafactor", "clipping_threshold": 0.5}},
            "optimizer.clipping_threshold",
            "must be at least 1",
        ),
        ({"optimizer": {**PRODIGY, "beta1": 0.9}}, "optimizer.beta1", "is not an option"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate", "must be above 0"),
        ({"lora_scale": 1.0}, "lora_scale", "is not an option"),
    ],
)
def test_an_unsupported_value_of_all_types_is_refused(
    training: dict[str, Any], values: dict[str, Any], where: str, said: str
) -> None:
    reported = problems(training, **values)
    assert set(reported) == {where}
    assert said in reported[where]


@pytest.mark.parametrize(
    ("training", "values", "where", "said"),
    [
        (LORA, {"base_embeddings": {"<a>": "a.pt"}}, "base_embeddings", "pickles are refused"),
        (
            LORA,
            {"base_embeddings": {"a b": "a.safetensors"}},
            "base_embeddings.a b",
            "must be one word",
        ),
        (
            LORA,
            {"train_unet": False, "train_text_encoder": False},
            "train_text_encoder",
            "nothing to train",
        ),
        (
            LORA,
            {"cache_text_encoder_outputs": True},
            "cache_text_encoder_outputs",
            "set train_text_encoder false",
        ),
        (LORA, {"unet_lora_target_modules": []}, "unet_lora_target_modules", "names no layer"),
        (
            LORA,
            {"unet_lora_target_modules": ["to_q", "proj_mlp", "q"]},
            "unet_lora_target_modules",
            "match no layer of SDXL's UNet: proj_mlp, q;",
        ),
        (
            LORA,
            {"text_encoder_lora_target_modules": ["to_q"]},
            "text_encoder_lora_target_modules",
            "match no layer of the text encoder: to_q",
        ),
        (
            LORA,
            {"optimizer": PRODIGY, "unet_learning_rate": 2.0},
            "unet_learning_rate",
            "gets 2 here and 1 for the text encoder",
        ),
        (
            LORA,
            {"optimizer": PRODIGY, "text_encoder_learning_rate": 0.5},
            "unet_learning_rate",
            "gets 1 here and 0.5 for the text encoder",
        ),
        (
            LORA,
            {"data_loader": {**DREAMBOOTH, "class_caption": "a cat"}},
            "data_loader.class_dataset",
            "set both",
        ),
        (
            FINETUNE,
            {"data_loader": {**DREAMBOOTH, "class_dataset": FOLDER}},
            "data_loader.class_dataset",
            "set both",
        ),
        (
            LORA,
            {"data_loader": {**DREAMBOOTH, "instance_dataset": CAPTIONS}},
            "data_loader.instance_dataset.type",
            "IMAGE_DIR_DATASET",
        ),
        (
            LORA,
            {"data_loader": {**DREAMBOOTH, **CLASS, "class_data_loss_weight": -1}},
            "data_loader.class_data_loss_weight",
            "must be at least 0",
        ),
        (
            LORA,
            {"data_loader": DREAMBOOTH, "use_masks": True},
            "data_loader",
            "use_masks needs",
        ),
        (
            LORA,
            {"data_loader__dataset": FOLDER},
            "data_loader.dataset.type",
            "IMAGE_CAPTION_DIR_DATASET",
        ),
        (FINETUNE, {"ema_decay": 1}, "ema_decay", "must be below 1"),
        (FINETUNE, {"save_checkpoint_format": "ckpt"}, "save_checkpoint_format", "single_file"),
        (FINETUNE, {"lora_rank_dim": 4}, "lora_rank_dim", "is not an option"),
        (
            TEXTUAL_INVERSION,
            {"placeholder_token": "a lamp"},
            "placeholder_token",
            "must be one word",
        ),
        (
            TEXTUAL_INVERSION,
            {"placeholder_token": "lamp,"},
            "placeholder_token",
            "must be one word",
        ),
        (TEXTUAL_INVERSION, {"placeholder_token": ""}, "placeholder_token", "must be one word"),
        (TEXTUAL_INVERSION, {"initializer_token": "<lamp>"}, "initializer_token", "itself"),
        (TEXTUAL_INVERSION, {"initializer_token": ""}, "initializer_token", "must not be empty"),
        (TEXTUAL_INVERSION, {"initializer_token": None}, "initial_phrase", "exactly one"),
        (TEXTUAL_INVERSION, {"initial_phrase": "a lamp"}, "initial_phrase", "exactly one"),
        (
            TEXTUAL_INVERSION,
            {"initial_embedding_file": "a.safetensors"},
            "initial_phrase",
            "exactly one",
        ),
        (
            TEXTUAL_INVERSION,
            {"initializer_token": None, "initial_embedding_file": "a.pt"},
            "initial_embedding_file",
            "pickles are refused",
        ),
        (
            TEXTUAL_INVERSION,
            {"initializer_token": None, "initial_phrase": "a lamp", "num_vectors": 2},
            "initial_phrase",
            "leave num_vectors out",
        ),
        (TEXTUAL_INVERSION, {"num_vectors": 0}, "num_vectors", "must be above 0"),
        (
            TEXTUAL_INVERSION,
            {"data_loader__caption_templates": ["a {}"]},
            "data_loader.caption_templates",
            "exactly one",
        ),
        (
            TEXTUAL_INVERSION,
            {"data_loader__caption_preset": None},
            "data_loader.caption_templates",
            "exactly one",
        ),
        (
            TEXTUAL_INVERSION,
            {"data_loader__caption_preset": None, "data_loader__caption_templates": []},
            "data_loader.caption_templates",
            "has no template",
        ),
        (
            TEXTUAL_INVERSION,
            {"data_loader__caption_preset": None}
            | {"data_loader__caption_templates": ["a {}", "a lamp"]},
            "data_loader.caption_templates",
            "lack {}, where the placeholder token goes: 'a lamp'",
        ),
        (
            TEXTUAL_INVERSION,
            {"data_loader__keep_original_captions": True},
            "data_loader.keep_original_captions",
            "no captions to keep",
        ),
        *(
            (
                TEXTUAL_INVERSION,
                {"data_loader__shuffle_caption_delimiter": delimiter},
                "data_loader.shuffle_caption_delimiter",
                said,
            )
            for delimiter, said in (("{", "split {}"), ("}", "split {}"), ("", "must not be empty"))
        ),
        (
            TEXTUAL_INVERSION,
            {"cache_text_encoder_outputs": True},
            "cache_text_encoder_outputs",
            "is not an option",
        ),
    ],
)
def test_an_unsupported_value_of_one_type_is_refused(
    training: dict[str, Any], values: dict[str, Any], where: str, said: str
) -> None:
    reported = problems(training, **values)
    assert set(reported) == {where}
    assert said in reported[where]


def test_all_problems_are_reported_together() -> None:
    reported = problems(
        LORA,
        bogus=1,
        xformers=True,
        optimizer=PRODIGY,
        unet_learning_rate=2.0,
        max_train_epochs=3,
        base_embeddings={"a": "b.bin"},
        data_loader={**DREAMBOOTH, "class_caption": "a cat", "resolution": 570},
    )
    assert set(reported) == {
        "bogus",
        "xformers",
        "unet_learning_rate",
        "max_train_epochs",
        "base_embeddings",
        "data_loader.class_dataset",
        "data_loader.resolution",
    }
