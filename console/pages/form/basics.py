"""What the form asks of everybody, in the words of people who train for the first time."""

from console.pages.field import Choice
from console.pages.form.draft import Draft
from console.views import PresetView

ORDER = ("FLUX_LORA", "SDXL_LORA", "SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE")
"""The training types, as they are offered."""

TYPE_NOTES = {
    "FLUX_LORA": "A small file that teaches FLUX.1 a subject or a style. Needs 40 GB or more.",
    "SDXL_LORA": "The same for Stable Diffusion XL, on smaller GPUs.",
    "SDXL_TEXTUAL_INVERSION": "A new word for SDXL's text encoders; the model stays as it is.",
    "SDXL_FINETUNE": "SDXL's UNet itself. The largest result, and the most memory.",
}
"""A sentence on each."""

RESOLUTION = "data_loader.resolution"

# Option, label, a sentence, unit; those that a type does not have are left out.
BASICS = (
    (RESOLUTION, "Resolution", "The side of training images; their shapes are kept.", "px"),
    ("train_batch_size", "Batch size", "Samples of one pass. More takes more memory.", ""),
    ("max_train_steps", "Steps", "How often the weights are updated.", "steps"),
    ("{rate}", "Learning rate", "How far a step goes.", ""),
    ("lora_rank_dim", "LoRA rank", "Higher holds more, and makes a larger file.", ""),
    ("placeholder_token", "New word", "What prompts will say, such as <my-cat>.", ""),
    ("initializer_token", "Starts from", "A word that comes near it, such as cat.", ""),
    ("data_loader.caption_preset", "Captions speak of", "A thing, or a style.", ""),
)


def rate_path(draft: Draft) -> str:
    """The option that people mean by the learning rate."""
    return "transformer_learning_rate" if "FLUX" in draft.training_type else (
        "optimizer.learning_rate"
    )  # fmt: skip


def preset_choice(view: PresetView) -> Choice:
    """A preset as something to choose."""
    tags = [f"{view.memory_class.removesuffix('gb')} GB class"]
    if view.recommended:
        tags.append("recommended")
    elif not view.served:
        tags.append("no such GPU here")
    note = f"{view.summary}. About {view.needed_gib:.0f} GiB."
    return Choice(view.name, view.name, note, tuple(tags))
