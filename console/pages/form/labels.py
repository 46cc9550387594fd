"""Labels of the job's options: the words that the form shows for them, in fields and messages."""

import re
from functools import cache

_BUCKETS = "data_loader.aspect_ratio_buckets"

LABELS = {
    "name": "Name",
    "preset": "Preset",
    "priority": "Priority",
    "labels": "Labels",
    "training": "Training options",
    "type": "Training type",
    # Model files
    "model": "Base model",
    "vae_model": "VAE",
    "single_file_config": "Description of a single file",
    "hf_variant": "Variant on the Hub",
    "transformer_path": "Transformer file",
    "text_encoder_1_path": "CLIP file",
    "text_encoder_2_path": "T5 file",
    "base_embeddings": "Trained embeddings",
    # Optimizer and learning rate
    "optimizer": "Optimizer settings",
    "optimizer.optimizer_type": "Optimizer",
    "optimizer.learning_rate": "Learning rate of the optimizer",
    "optimizer.beta1": "Beta 1",
    "optimizer.beta2": "Beta 2",
    "optimizer.weight_decay": "Weight decay",
    "optimizer.epsilon": "Epsilon",
    "optimizer.use_8bit": "8-bit optimizer state",
    "optimizer.use_bias_correction": "Bias correction",
    "optimizer.safeguard_warmup": "Safeguard the warmup",
    "optimizer.beta2_decay": "Decay of beta 2",
    "optimizer.clipping_threshold": "Clipping threshold",
    "transformer_learning_rate": "Learning rate of the transformer",
    "unet_learning_rate": "Learning rate of the UNet",
    "text_encoder_learning_rate": "Learning rate of the text encoder",
    "lr_scheduler": "Schedule of the learning rate",
    "lr_warmup_steps": "Warmup steps",
    "max_grad_norm": "Maximum norm of gradients",
    # Length and checkpoints
    "max_train_steps": "Steps",
    "max_train_epochs": "Epochs",
    "save_every_n_steps": "Checkpoint every (steps)",
    "save_every_n_epochs": "Checkpoint every (epochs)",
    "max_checkpoints": "Checkpoints to keep",
    "seed": "Seed",
    # Memory and speed
    "train_batch_size": "Batch size",
    "gradient_accumulation_steps": "Accumulated batches",
    "gradient_checkpointing": "Gradient checkpointing",
    "cache_text_encoder_outputs": "Cache text encoder outputs",
    "cache_vae_outputs": "Cache latents",
    "weight_dtype": "Precision of the weights",
    "mixed_precision": "Precision of the computation",
    "quantization": "Quantization of the base model",
    "xformers": "Use xFormers",
    "compile": "Compile the model",
    "deterministic": "Repeatable to the last bit",
    # What is trained
    "lora_rank_dim": "LoRA rank",
    "lora_scale": "LoRA strength",
    "train_transformer": "Train the transformer",
    "train_unet": "Train the UNet",
    "train_text_encoder": "Train the text encoder",
    "flux_lora_target_modules": "Layers of the transformer",
    "unet_lora_target_modules": "Layers of the UNet",
    "text_encoder_lora_target_modules": "Layers of the text encoder",
    "trigger_word": "Trigger word",
    "placeholder_token": "New word",
    "initializer_token": "Similar word",
    "initial_phrase": "Similar phrase",
    "initial_embedding_file": "Embedding to start from",
    "num_vectors": "Vectors of the new word",
    "use_ema": "Average the weights",
    "ema_decay": "Decay of the average",
    # Noise and loss
    "timestep_sampler": "Sampling of noise levels",
    "discrete_flow_shift": "Shift of noise levels",
    "sigmoid_scale": "Spread of noise levels",
    "guidance_scale": "Guidance",
    "min_snr_gamma": "Min-SNR gamma",
    "prediction_type": "Prediction type",
    # Images and captions
    "data_loader": "Image options",
    "data_loader.type": "Kind of dataset",
    "data_loader.resolution": "Resolution",
    _BUCKETS: "Keep aspect ratios",
    f"{_BUCKETS}.target_resolution": "Resolution of the sizes",
    f"{_BUCKETS}.start_dim": "Shortest side",
    f"{_BUCKETS}.end_dim": "Longest side",
    f"{_BUCKETS}.divisible_by": "Step between sides",
    "data_loader.center_crop": "Crop at the center",
    "data_loader.random_flip": "Mirror at random",
    "data_loader.dataloader_num_workers": "Loading processes",
    "data_loader.caption_prefix": "Prefix of captions",
    "data_loader.caption_dropout": "Share of captions to drop",
    "data_loader.caption_preset": "Subject of the images",
    "data_loader.caption_templates": "Caption templates",
    "data_loader.keep_original_captions": "Keep the captions",
    "data_loader.shuffle_caption_delimiter": "Shuffle captions at",
    "data_loader.instance_caption": "Caption of the subject",
    "data_loader.class_caption": "Caption of the class",
    "data_loader.class_data_loss_weight": "Weight of the class images",
    "data_loader.class_dataset": "Images of the class",
    "data_loader.dataset": "Images",
    "data_loader.instance_dataset": "Images",
    "use_masks": "Use masks",
    "clip_tokenizer_max_length": "Tokens that CLIP reads",
    "t5_tokenizer_max_length": "Tokens that T5 reads",
    # Sources of images
    **{
        f"data_loader.{folder}.{name}": label
        for folder in ("dataset", "instance_dataset")
        for name, label in (
            ("type", "Source"),
            ("dataset_dir", "Folder"),
            ("keep_in_memory", "Keep in memory"),
            ("jsonl_path", "JSONL file"),
            ("jsonl", "JSONL file in the archive"),
            ("image_column", "Column of images"),
            ("caption_column", "Column of captions"),
            ("mask_column", "Column of masks"),
            ("dataset_name", "Dataset on the Hub"),
            ("dataset_config_name", "Configuration on the Hub"),
            ("hf_cache_dir", "Folder for downloads"),
            ("archive", "Archive"),
            ("sha256", "SHA-256 of the archive"),
        )
    },
    # Samples
    "validation_prompts": "Sample prompts",
    "negative_validation_prompts": "Negative sample prompts",
    "validate_every_n_steps": "Samples every (steps)",
    "validate_every_n_epochs": "Samples every (epochs)",
    "validate_at_start": "Samples before training",
    "num_validation_images_per_prompt": "Images per sample prompt",
    "enable_cpu_offload_during_validation": "Free GPU memory for samples",
    # Output
    "base_output_dir": "Folder of the results",
    "report_to": "Tracker",
    "lora_checkpoint_format": "Format of the LoRA",
    "save_checkpoint_format": "Format of the model",
    "save_dtype": "Precision of the file",
}
"""Label of each option, by its path below ``training`` or in the job."""

# Names such as max_train_steps, and paths: not words of a sentence, as "type" or "model" are.
_NAME = re.compile(r"(?<![\w.])[a-z][a-z0-9]*(?:[_.][a-z0-9]+)+(?![\w.]?\w)")


def label_of(location: str) -> str:
    """Return the label of a problem's location; of an unknown one, the location itself."""
    path = location.removeprefix("training.")
    if path in LABELS:
        return LABELS[path]
    # A value inside an option, such as the third of its prompts.
    folder, _, last = path.rpartition(".")
    if last.isdigit() and folder in LABELS:
        return f"{LABELS[folder]}, {int(last) + 1}"
    return path


def in_labels(message: str) -> str:
    """Return a message that names options by their labels, as the form's fields do."""
    return _NAME.sub(_replaced, message)


def _replaced(found: re.Match[str]) -> str:
    path = found[0].removeprefix("training.")
    label = LABELS.get(path) or _by_last_part().get(path)
    return found[0] if label is None else f"“{label}”"


@cache
def _by_last_part() -> dict[str, str]:
    """Return the labels by the last part of their paths, where it is one option's."""
    labels: dict[str, set[str]] = {}
    for path, label in LABELS.items():
        labels.setdefault(path.rpartition(".")[2], set()).add(label)
    return {name: min(found) for name, found in labels.items() if len(found) == 1}
