"""Numbers, times and states as people say them."""

from datetime import UTC, datetime

TYPE_NAMES = {
    "FLUX_LORA": "FLUX LoRA",
    "SDXL_LORA": "SDXL LoRA",
    "SDXL_TEXTUAL_INVERSION": "SDXL textual inversion",
    "SDXL_FINETUNE": "SDXL finetune",
}
"""The training types."""

STAGE_NAMES = {
    "prepare": "Check images",
    "cache": "Encode",
    "train": "Train",
    "publish": "Publish",
}
"""The stages, by what they do."""

PART_NAMES = {
    "weights": "Base model",
    "text_encoders": "Text encoders",
    "adapters": "Trained weights, gradients",
    "optimizer": "Optimizer state",
    "activations": "Activations",
    "overhead": "CUDA overhead",
}
"""What takes GPU memory."""

REMEDIES = {
    "invalid_job": "Run it again with changes, and mend the options named above.",
    "invalid_dataset": "Mend the files named above, and run it again with the images anew.",
    "invalid_model": "Run it again with another base model, or mend the one named above.",
    "does_not_fit": "Run it again with a smaller preset, batch or resolution.",
    "out_of_memory": "Run it again with gradient checkpointing, cached text outputs, or a smaller "
    "batch or resolution.",
    "diverged": "Run it again with a lower learning rate, or with max_grad_norm 1.",
    "trainer_failed": "Run it again. If it fails the same way, an operator finds the trainer's "
    "last words above.",
    "store": "The store was out of reach. Run it again once it answers; an operator can replay "
    "the job where it stopped.",
    "cancelled": "Nothing went wrong. Run it again to start over.",
    "no_worker": "No worker takes this class of jobs. An operator starts one.",
}
"""What to do about an error, by its code."""

OTHER_REMEDY = "Run it again. If it fails the same way, ask an operator and name the job's id."


def span(seconds: float) -> str:
    """A span of time: ``2 h 5 min``."""
    if seconds < 0.1:
        return "<0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join([f"{n} {unit}" for n, unit in parts if n][:2])


def size(length: int) -> str:
    """A number of bytes: ``22.4 MB``."""
    value = float(length)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def ago(moment: datetime, now: datetime | None = None) -> str:
    """How long a moment is past: ``5 min ago``."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 45:
        return "just now"
    if seconds < 3600:
        return f"{max(1, round(seconds / 60))} min ago"
    if seconds < 86400:
        return f"{round(seconds / 3600)} h ago"
    return f"{moment:%Y-%m-%d}"


def count(number: int, noun: str) -> str:
    """A number of things: ``1 image``, ``2 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
