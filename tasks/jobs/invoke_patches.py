"""The faults of invoke-training that are repaired from outside, one name each.

The table is all that is known of them here; what a repair does is in ``worker/trainer/invoke``.
"""

from dataclasses import dataclass

from routing.requirements import TrainingType

_FLUX = frozenset({TrainingType.FLUX_LORA})
_LORAS = frozenset({TrainingType.FLUX_LORA, TrainingType.SDXL_LORA})
_SDXL = frozenset(TrainingType) - _FLUX
_ALL = frozenset(TrainingType)


@dataclass(frozen=True)
class Patch:
    """A repair.

    Attributes:
        types: The training types that have the fault.
        fault: What the library does without it.
    """

    types: frozenset[TrainingType]
    problem: str


REPAIRS: dict[str, Patch] = {
    "cached_latents": Patch(_FLUX, "cached latents are not packed, and the transformer fails"),
    "cached_text": Patch(_FLUX, "cached text has no ids, and training fails at its first step"),
    "latent_shift": Patch(_FLUX, "the VAE's shift factor is never subtracted from latents"),
    "noise": Patch(
        _FLUX,
        "every sample of a batch gets the noise level of the first one, levels are rounded to "
        "weight_dtype, and a run cannot be repeated; repaired, all is drawn as engine diffusers "
        "draws it",
    ),
    "weighted_loss": Patch(_FLUX, "masks and min_snr_gamma change nothing"),
    "guidance": Patch(_FLUX, "transformers that take no guidance are given one, and fail"),
    "buckets": Patch(_FLUX, "aspect_ratio_buckets change nothing"),
    "lora_targets": Patch(
        _FLUX,
        "the feed-forward output layers get no LoRA, and the model's last layer gets one that no "
        "file can hold",
    ),
    "lora_alpha": Patch(_LORAS, "alpha is 1, so that a LoRA's strength falls with its rank"),
    "lora_start": Patch(
        _LORAS,
        "the weights that a LoRA starts from depend on the library's version; repaired, they are "
        "drawn as engine diffusers draws them",
    ),
    "lora_file": Patch(
        _LORAS,
        "FLUX's kohya file holds fused layers wrongly and names CLIP's as nobody reads them, and "
        "the invoke_peft form is a folder that diffusers does not load",
    ),
    "target_size": Patch(_SDXL, "with aspect_ratio_buckets SDXL is told a wrong target size"),
    "float32_weights": Patch(
        _ALL, "weights of type bfloat16 are trained in it, which swallows small updates"
    ),
    "group_mean": Patch(
        _ALL, "samples of incomplete batches count more, those of incomplete groups less"
    ),
    "exact_save": Patch(
        frozenset({TrainingType.SDXL_FINETUNE}),
        "each checkpoint rounds the weights in training to save_dtype",
    ),
    "final_save": Patch(
        _ALL, "the end of a run is saved only where the interval divides its steps"
    ),
}


def parse_repairs(text: str) -> frozenset[str]:
    """The repairs that are made.

    Args:
        text: ``all``, ``none``, or the names to leave out, each after a minus.

    Raises:
        ValueError: With all that is wrong with it.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts == ["none"]:
        return frozenset()
    if parts == ["all"]:
        return frozenset(REPAIRS)
    unknown = [part for part in parts if not part.startswith("-") or part[1:] not in REPAIRS]
    if unknown or not parts:
        wrong = ", ".join(unknown) or "nothing"
        raise ValueError(
            f"is all, none, or names to leave out such as -noise,-buckets; not {wrong}; the names "
            f"are {', '.join(REPAIRS)}"
        )
    return frozenset(REPAIRS) - {part[1:] for part in parts}
