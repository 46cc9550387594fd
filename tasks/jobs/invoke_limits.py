"""What a job may not ask of the engine ``invoke-training``, with the reasons.

What the library cannot do, and cannot be made to do from outside, is refused at submit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.errors import Problem
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.optimizers import AdafactorOptimizerConfig, AdamOptimizerConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlConfig, SdxlFinetuneConfig, SdxlTextualInversionConfig


@dataclass(frozen=True)
class Limit:
    """Something that is refused.

    Attributes:
        option: Its path below ``training``.
        values: Which values, in words.
        reason: Why, and what to do.
    """

    option: str
    values: str
    reason: str


_ONE_FILE = "it loads diffusers folders and Hub ids; convert the file, or leave it out"
LIMITS = (
    Limit(
        "weight_dtype",
        "float16",
        "it does not scale the loss, and gradients vanish or become NaN; use bfloat16 or float32",
    ),
    Limit(
        "mixed_precision",
        "fp16",
        "the scale of its loss cannot be resumed; use bf16 or no",
    ),
    Limit("model", "a single .safetensors file", _ONE_FILE),
    Limit("transformer_path", "any", _ONE_FILE),
    Limit("text_encoder_1_path", "any", _ONE_FILE),
    Limit("text_encoder_2_path", "any", _ONE_FILE),
    Limit("quantization", "any", "it keeps no base model in fewer bits; leave it out"),
    Limit("optimizer.optimizer_type", "Adafactor", "it has AdamW and Prodigy"),
    Limit("optimizer.use_8bit", "true", "bitsandbytes is not among what it is tested with"),
    Limit("timestep_sampler", "resolution_shift", "it has shift and uniform"),
    Limit(
        "min_snr_gamma",
        "any, with prediction_type v_prediction",
        "it weights velocities by min(snr, gamma) / snr + 1, which raises what Min-SNR lowers; "
        "set it to null",
    ),
    Limit("initial_embedding_file", "any", "it is not built for SDXL there; use initial_phrase"),
    Limit("use_ema", "true", "it keeps no moving average"),
    Limit("save_checkpoint_format", "single_file", "it writes diffusers folders"),
)
_BY_OPTION = {limit.option: limit for limit in LIMITS}


def problems_of(config: PipelineConfig) -> list[Problem]:
    """Every option of a config that the engine refuses."""
    return [
        Problem(f"training.{option}", f"engine invoke-training refuses this: {_reason(option)}")
        for option in _refused(config)
    ]


def warnings_of(config: PipelineConfig) -> list[str]:
    """What the engine does otherwise than one would expect."""
    found = [
        "engine invoke-training goes through the steps before a checkpoint again, without "
        "computing them, when it resumes: some milliseconds each"
    ]
    if isinstance(config, SdxlTextualInversionConfig):
        found.append(
            "engine invoke-training keeps the whole embedding tables in each checkpoint's state, "
            "some 0.9 GB with SDXL's encoders, and pulls the new word's embeddings towards the "
            "others' spread at each step"
        )
    return found


def _reason(option: str) -> str:
    return _BY_OPTION[option].reason


def _refused(config: PipelineConfig) -> Iterator[str]:
    if config.weight_dtype == "float16":
        yield "weight_dtype"
    if config.mixed_precision == "fp16":
        yield "mixed_precision"
    if config.model.endswith(".safetensors"):
        yield "model"
    if isinstance(config.optimizer, AdafactorOptimizerConfig):
        yield "optimizer.optimizer_type"
    if isinstance(config.optimizer, AdamOptimizerConfig) and config.optimizer.use_8bit:
        yield "optimizer.use_8bit"
    match config:
        case FluxLoraConfig():
            yield from _refused_of_flux(config)
        case SdxlConfig():
            yield from _refused_of_sdxl(config)


def _refused_of_flux(config: FluxLoraConfig) -> Iterator[str]:
    for option in (
        "transformer_path",
        "text_encoder_1_path",
        "text_encoder_2_path",
        "quantization",
    ):
        if getattr(config, option) is not None:
            yield option
    if config.timestep_sampler == "resolution_shift":
        yield "timestep_sampler"


def _refused_of_sdxl(config: SdxlConfig) -> Iterator[str]:
    if config.prediction_type == "v_prediction" and config.min_snr_gamma is not None:
        yield "min_snr_gamma"
    if isinstance(config, SdxlTextualInversionConfig) and config.initial_embedding_file is not None:
        yield "initial_embedding_file"
    if isinstance(config, SdxlFinetuneConfig):
        if config.use_ema:
            yield "use_ema"
        if config.save_checkpoint_format == "single_file":
            yield "save_checkpoint_format"
