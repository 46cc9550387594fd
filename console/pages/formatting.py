"""Names, remedies, and formats of numbers and times, as pages show them."""

from collections.abc import Collection
from datetime import UTC, datetime

from console.views import JobView
from tasks.state.record import JobStatus

TYPE_NAMES = {
    "FLUX_LORA": "FLUX LoRA",
    "SDXL_LORA": "SDXL LoRA",
    "SDXL_TEXTUAL_INVERSION": "SDXL textual inversion",
    "SDXL_FINETUNE": "SDXL finetune",
}
"""Names of the training types."""

STAGE_NAMES = {
    "prepare": "Check images",
    "cache": "Encode",
    "train": "Train",
    "publish": "Publish",
}
"""Names of the stages."""

PART_NAMES = {
    "weights": "Base model",
    "text_encoders": "Text encoders",
    "adapters": "Trained weights",
    "optimizer": "Optimizer state",
    "activations": "Activations, gradients",
    "overhead": "CUDA overhead",
}
"""Names of the parts of GPU memory."""

REMEDIES = {
    "invalid_job": "Correct the options named above, then run the job again.",
    "invalid_dataset": "Fix the files named above, upload them again, and run the job again.",
    "invalid_model": "Fix the base model named above or choose another one, and run the job again.",
    "does_not_fit": "Run the job again with a smaller preset, batch size or resolution.",
    "out_of_memory": "Run the job again with gradient checkpointing, cached text encoder "
    "outputs, or a smaller batch size or resolution.",
    "diverged": "Run the job again with a lower learning rate, or with max_grad_norm 1.",
    "trainer_failed": "Run the job again. If it fails in the same way, an operator finds the "
    "trainer's last output above.",
    "gpu_failed": "Run the job again. If it fails in the same way, the job itself makes the GPUs "
    "fail: change its batch size, resolution or quantization.",
    "store": "The store was unavailable. Run the job again later; an operator can replay it from "
    "where it stopped.",
    "cancelled": "The job was cancelled. Run it again to start over.",
    "no_worker": "No worker serves this memory class. An operator can start one.",
}
"""What to do about an error, by its code."""

OTHER_REMEDY = "Run the job again. If it fails in the same way, give its id to an operator."


def class_text(memory_class: str, *, emulated: bool) -> str:
    """Format a GPU memory class: ``40 GB class``; one of emulated GPUs says so."""
    text = f"{memory_class.removesuffix('gb')} GB class"
    return f"{text}, emulated on the CPU" if emulated else text


def span(seconds: float) -> str:
    """Format a duration: ``2 h 5 min``."""
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
    """Format a number of bytes: ``22.4 MB``."""
    value = float(length)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def ago(moment: datetime, now: datetime | None = None) -> str:
    """Format a past moment: ``5 min ago``."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 45:
        return "just now"
    if seconds < 3600:
        return f"{max(1, round(seconds / 60))} min ago"
    if seconds < 86400:
        return f"{round(seconds / 3600)} h ago"
    return f"{moment:%Y-%m-%d}"


def count(number: int, noun: str) -> str:
    """Format a number of things: ``1 image``, ``2 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """Return a message as a sentence; an option's name at its start stays in lower case."""
    first_word = text.split(" ", 1)[0]
    return f"{text}." if "_" in first_word else f"{text[:1].upper()}{text[1:]}."


def status_of(view: JobView) -> str:
    """Return the status of a job as people mean it: one that runs and waits for a worker waits."""
    is_active = view.status in (JobStatus.QUEUED, JobStatus.RUNNING)
    return "waiting" if is_active and view.waiting_reason is not None else view.status


def queue_name(queue: str, emulated: Collection[str]) -> str:
    """Return a queue's name, and whether its GPUs are emulated."""
    return f"{queue} (emulated)" if queue in emulated else queue
