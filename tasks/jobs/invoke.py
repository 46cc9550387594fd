"""The engine ``invoke-training``: options it does not support, and patches of its bugs.

A job is refused at submit if it asks the library for something that it cannot do and that no patch
can add. The patches themselves are in ``worker/trainer/invoke``. The settings import this module,
so it does not import the job model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from routing.policy import TrainingType
from tasks.errors import Problem

if TYPE_CHECKING:
    from tasks.jobs.pipeline import PipelineConfig


@dataclass(frozen=True)
class UnsupportedOption:
    """Values of an option that the engine refuses.

    Attributes:
        option: The option's path below ``training``.
        values: The refused values, in words.
        reason: Why they are refused, and what to do.
        is_refused: Returns whether a config has such a value, given the option's value and the
            config.
    """

    option: str
    values: str
    reason: str
    is_refused: Callable[[Any, Any], bool]

    def refuses(self, config: "PipelineConfig") -> bool:
        """Return whether a config has the option, and a refused value of it."""
        value: Any = config
        for name in self.option.split("."):
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return self.is_refused(value, config)


@dataclass(frozen=True)
class Patch:
    """A patch of one bug.

    Attributes:
        types: The training types that have the bug.
        bug: What the library does without the patch.
    """

    types: frozenset[TrainingType]
    bug: str


def _is_set(value: Any, _config: Any) -> bool:
    return value is not None


_ONE_FILE = "it loads diffusers folders and Hub ids; convert the file, or leave the option out"
UNSUPPORTED_OPTIONS = (
    UnsupportedOption(
        "weight_dtype",
        "float16",
        "it does not scale the loss, and gradients vanish or become NaN; use bfloat16 or float32",
        lambda value, _: value == "float16",
    ),
    UnsupportedOption(
        "mixed_precision",
        "fp16",
        "the scale of its loss cannot be resumed; use bf16 or no",
        lambda value, _: value == "fp16",
    ),
    UnsupportedOption(
        "gradient_checkpointing",
        "auto and numbers",
        "it recomputes every block or none; use true or false",
        lambda value, _: not isinstance(value, bool),
    ),
    UnsupportedOption(
        "model",
        "a single .safetensors file",
        _ONE_FILE,
        lambda value, _: value.endswith(".safetensors"),
    ),
    UnsupportedOption("transformer_path", "any", _ONE_FILE, _is_set),
    UnsupportedOption("text_encoder_1_path", "any", _ONE_FILE, _is_set),
    UnsupportedOption("text_encoder_2_path", "any", _ONE_FILE, _is_set),
    UnsupportedOption(
        "vae_model",
        "a single .safetensors file; any for FLUX",
        "it loads SDXL's VAE from diffusers folders and Hub ids; leave the option out",
        lambda value, config: (
            value is not None and (value.endswith(".safetensors") or config.type == "FLUX_LORA")
        ),
    ),
    UnsupportedOption(
        "quantization",
        "any",
        "it does not quantize the base model; leave the option out",
        _is_set,
    ),
    UnsupportedOption(
        "compile",
        "true",
        "it does not compile models; leave the option false",
        lambda value, _: value,
    ),
    UnsupportedOption(
        "validate_at_start",
        "true",
        "it makes no validation images before the first update; leave the option false",
        lambda value, _: value,
    ),
    UnsupportedOption(
        "optimizer.optimizer_type",
        "Adafactor",
        "it has AdamW and Prodigy",
        lambda value, _: value == "Adafactor",
    ),
    UnsupportedOption(
        "optimizer.use_8bit",
        "true",
        "it is not tested with bitsandbytes; leave the option false",
        lambda value, _: value,
    ),
    UnsupportedOption(
        "timestep_sampler",
        "resolution_shift",
        "it has shift and uniform",
        lambda value, _: value == "resolution_shift",
    ),
    UnsupportedOption(
        "min_snr_gamma",
        "any, with prediction_type v_prediction",
        "it weights velocities by min(snr, gamma) / snr + 1, which raises what Min-SNR lowers; "
        "set the option to null",
        lambda value, config: value is not None and config.prediction_type == "v_prediction",
    ),
    UnsupportedOption(
        "initial_embedding_file",
        "any",
        "it does not support this for SDXL; use initial_phrase",
        _is_set,
    ),
    UnsupportedOption(
        "use_ema", "true", "it has no moving average of the weights", lambda value, _: value
    ),
    UnsupportedOption(
        "lora_checkpoint_format",
        "sd_scripts, diffusers_old",
        "it has kohya and invoke_peft",
        lambda value, _: value in ("sd_scripts", "diffusers_old"),
    ),
    UnsupportedOption(
        "save_checkpoint_format",
        "single_file",
        "it writes diffusers folders only",
        lambda value, _: value == "single_file",
    ),
)

_FLUX = frozenset({TrainingType.FLUX_LORA})
_LORAS = frozenset({TrainingType.FLUX_LORA, TrainingType.SDXL_LORA})
_SDXL = frozenset(TrainingType) - _FLUX
_ALL = frozenset(TrainingType)
PATCHES: dict[str, Patch] = {
    "cached_latents": Patch(_FLUX, "cached latents are not packed, and the transformer fails"),
    "cached_text": Patch(_FLUX, "cached text has no ids, and training fails at its first step"),
    "latent_shift": Patch(_FLUX, "the VAE's shift factor is never subtracted from latents"),
    "noise": Patch(
        _FLUX,
        "every sample of a batch gets the noise level of the first one, levels are rounded to "
        "weight_dtype, and a run cannot be repeated; patched, everything is drawn as engine "
        "diffusers draws it",
    ),
    "weighted_loss": Patch(_FLUX, "masks and min_snr_gamma change nothing"),
    "guidance": Patch(_FLUX, "transformers without a guidance input are given one, and fail"),
    "buckets": Patch(_FLUX, "aspect_ratio_buckets change nothing"),
    "lora_targets": Patch(
        _FLUX,
        "the feed-forward output layers get no LoRA, and the model's last layer gets one that no "
        "file format can hold",
    ),
    "lora_alpha": Patch(_LORAS, "alpha is 1, so that a LoRA's strength falls with its rank"),
    "lora_start": Patch(
        _LORAS,
        "the weights that a LoRA starts from depend on the library's version; patched, they are "
        "drawn as engine diffusers draws them",
    ),
    "lora_file": Patch(
        _LORAS,
        "FLUX's kohya file holds fused layers wrongly and has names for CLIP's that no program "
        "reads, and the invoke_peft form is a folder that diffusers does not load",
    ),
    "target_size": Patch(_SDXL, "with aspect_ratio_buckets SDXL gets a wrong target size"),
    "float32_weights": Patch(
        _ALL, "weights of type bfloat16 are trained in it, which rounds small updates to zero"
    ),
    "group_mean": Patch(
        _ALL, "samples of incomplete batches count more, those of incomplete groups less"
    ),
    "exact_save": Patch(
        frozenset({TrainingType.SDXL_FINETUNE}),
        "each checkpoint rounds the weights in training to save_dtype",
    ),
    "final_save": Patch(
        _ALL, "the end of a run is saved only if the interval divides its number of steps"
    ),
}
"""The patches by name. docs/guides/invoke-training.md lists them in the same words."""


def problems_of(config: "PipelineConfig") -> list[Problem]:
    """Return a problem for every option of a config that the engine refuses."""
    return [
        Problem(
            f"training.{unsupported.option}",
            f"engine invoke-training refuses this: {unsupported.reason}",
        )
        for unsupported in UNSUPPORTED_OPTIONS
        if unsupported.refuses(config)
    ]


def warnings_of(config: "PipelineConfig") -> list[str]:
    """Return what the engine does otherwise than a user may expect."""
    warnings = [
        "engine invoke-training repeats the steps before a checkpoint when it resumes, without "
        "computing them: some milliseconds each"
    ]
    if config.type == TrainingType.SDXL_TEXTUAL_INVERSION:
        warnings.append(
            "engine invoke-training keeps the whole embedding tables in each checkpoint's state, "
            "some 0.9 GB with SDXL's encoders, and pulls the new word's embeddings towards the "
            "others' spread at each step"
        )
    return warnings


def parse_patches(text: str) -> frozenset[str]:
    """Return the names of the patches to apply.

    Args:
        text: ``all``, ``none``, or the names to leave out, each after a minus.

    Raises:
        ValueError: The text is none of these; the message lists every unknown name.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts == ["none"]:
        return frozenset()
    if parts == ["all"]:
        return frozenset(PATCHES)
    unknown = [part for part in parts if not part.startswith("-") or part[1:] not in PATCHES]
    if unknown or not parts:
        wrong = ", ".join(unknown) or "nothing"
        raise ValueError(
            f"must be all, none, or names to leave out such as -noise,-buckets; got {wrong}; the "
            f"names are {', '.join(PATCHES)}"
        )
    return frozenset(PATCHES) - {part[1:] for part in parts}
