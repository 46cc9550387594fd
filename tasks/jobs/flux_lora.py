"""The FLUX LoRA config: invoke-training's ``FluxLoraConfig``, every field acting or refused."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from tasks.jobs.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StrictModel,
)
from tasks.jobs.data import ImageCaptionFluxDataLoaderConfig
from tasks.jobs.optimizers import AdamOptimizerConfig, ProdigyOptimizerConfig

# The linear layers of FluxTransformer2DModel's two kinds of blocks, by the end of their names.
ATTENTION_TARGETS = frozenset(
    {
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    }
)
DOUBLE_BLOCK_TARGETS = ATTENTION_TARGETS | {
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
}
SINGLE_BLOCK_TARGETS = frozenset({"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"})
BLOCK_TARGETS = DOUBLE_BLOCK_TARGETS | SINGLE_BLOCK_TARGETS
# Names in invoke-training's default list that match no layer: two are misspelt, one does not exist.
_MISSPELT_TARGETS = {"ff.net.2.0": "ff.net.2", "ff_context.net.2.0": "ff_context.net.2"}
_ABSENT_TARGETS = frozenset({"proj_in"})

_DEFAULT_TARGETS = (
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "ff.net.0.proj",
    "ff.net.2.0",
    "ff_context.net.0.proj",
    "ff_context.net.2.0",
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "proj_mlp",
    "proj_out",
    "proj_in",
)


def flux_lora_targets(names: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """The block layers that target names stand for, and the names that stand for none.

    A name stands for every layer whose name ends with it at a dot, as in peft; ``to_k`` stands
    for ``attn.to_k``.

    Returns:
        Members of ``BLOCK_TARGETS``; the names without a match.
    """
    found: set[str] = set()
    unmatched = []
    for name in names:
        wanted = _MISSPELT_TARGETS.get(name, name)
        hits = {t for t in BLOCK_TARGETS if t == wanted or t.endswith("." + wanted)}
        found |= hits
        if not hits and name not in _ABSENT_TARGETS:
            unmatched.append(name)
    return frozenset(found), tuple(unmatched)


class FluxLoraConfig(StrictModel):
    """A FLUX.1 LoRA training run."""

    type: Literal["FLUX_LORA"] = "FLUX_LORA"
    """Selects this training type."""

    seed: NonNegativeInt | None = None
    """Decides every random draw of the run. Null: one is drawn at submit and recorded."""

    base_output_dir: str | None = None
    """A folder inside the store under which the results are published. Null: ``outputs``."""

    report_to: Literal["all", "tensorboard", "wandb", "comet_ml"] = "tensorboard"
    """Where metrics go beside the job's events: a TensorBoard file among the results. The other
    values would need secrets on the workers: refused."""

    max_train_steps: PositiveInt | None = None
    """Weight updates to make. Exactly one of this and max_train_epochs."""

    max_train_epochs: PositiveInt | None = None
    """Passes over the data set to make. Exactly one of this and max_train_steps."""

    save_every_n_epochs: PositiveInt | None = None
    """Keep a checkpoint after every n passes. Exactly one of this and save_every_n_steps."""

    save_every_n_steps: PositiveInt | None = None
    """Keep a checkpoint after every n updates. Exactly one of this and save_every_n_epochs."""

    validate_every_n_epochs: PositiveInt | None = None
    """Make validation images after every n passes. At most one of this and
    validate_every_n_steps; without validation_prompts there is nothing to make."""

    validate_every_n_steps: PositiveInt | None = None
    """Make validation images after every n updates. At most one of this and
    validate_every_n_epochs; without validation_prompts there is nothing to make."""

    model: Annotated[str, Field(min_length=1)] = "black-forest-labs/FLUX.1-dev"
    """The base model: a diffusers folder, as the workers see it, or a Hub id."""

    transformer_path: str | None = None
    """A ``.safetensors`` file whose transformer replaces the base model's."""

    text_encoder_1_path: str | None = None
    """A ``.safetensors`` file whose CLIP text encoder replaces the base model's."""

    text_encoder_2_path: str | None = None
    """A ``.safetensors`` file whose T5 text encoder replaces the base model's."""

    lora_checkpoint_format: Literal["invoke_peft", "kohya"] = "kohya"
    """How the LoRA is written. Both forms hold the same weights; InvokeAI, ComfyUI and diffusers
    read both."""

    train_transformer: bool = True
    """Put LoRA layers on the transformer. It is all there is to train yet: false is refused."""

    train_text_encoder: bool = False
    """Put LoRA layers on the CLIP text encoder. Not built yet: true is refused."""

    optimizer: Annotated[
        AdamOptimizerConfig | ProdigyOptimizerConfig, Field(discriminator="optimizer_type")
    ] = AdamOptimizerConfig()
    """The optimizer and its settings."""

    text_encoder_learning_rate: PositiveFloat | None = 1e-4
    """The text encoder's learning rate; it acts with train_text_encoder."""

    transformer_learning_rate: PositiveFloat | None = 4e-4
    """The transformer's learning rate. It overrides optimizer.learning_rate; null leaves that."""

    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "constant_with_warmup"
    """How the learning rate moves over the run."""

    lr_warmup_steps: NonNegativeInt = 10
    """Updates over which the rate rises from 0; every scheduler but ``constant`` takes it."""

    min_snr_gamma: PositiveFloat | None = None
    """Weight each sample's loss by min(snr, gamma) / (snr + 1), snr = ((1 - sigma) / sigma)^2:
    Min-SNR (Hang et al., 2023) in its v-prediction form, the one whose target is a velocity as
    flow matching's is. Null: no weighting."""

    lora_rank_dim: PositiveInt = 4
    """The rank of the LoRA matrices."""

    flux_lora_target_modules: tuple[str, ...] = _DEFAULT_TARGETS
    """The block layers that get a LoRA, each by the end of its name. invoke-training's own list
    holds three names that match nothing in FLUX: ``ff.net.2.0`` and ``ff_context.net.2.0`` are
    read as ``ff.net.2`` and ``ff_context.net.2``, ``proj_in`` is passed over. The model's last
    layer, also called ``proj_out``, never gets one."""

    text_encoder_lora_target_modules: tuple[str, ...] = (
        "fc1",
        "fc2",
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
    )
    """The text encoder's layers that get a LoRA; it acts with train_text_encoder."""

    cache_text_encoder_outputs: bool = False
    """Encode captions once, ahead of training, and share the outputs with every later job. False
    keeps both text encoders on the GPU and encodes at each step."""

    cache_vae_outputs: bool = False
    """Encode images once, ahead of training, and share the latents with every later job. False
    keeps the VAE on the GPU and encodes at each step. Needs center_crop."""

    enable_cpu_offload_during_validation: bool = False
    """Bring models to the GPU one by one while making validation images; it acts with
    validation_prompts."""

    gradient_accumulation_steps: PositiveInt = 1
    """Batches whose gradients make one weight update."""

    weight_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """The precision of the frozen weights. LoRA weights and their optimizer state are always
    float32; float16 trains with a dynamic loss scale, so that gradients do not vanish."""

    mixed_precision: Literal["no", "fp16", "bf16", "fp8"] = "no"
    """The precision of the computation; ``no`` takes weight_dtype's. ``fp8`` is not built yet."""

    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: far less memory, about 20 % slower."""

    max_checkpoints: PositiveInt | None = None
    """How many checkpoints to keep, newest last. Null keeps all."""

    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """FLUX predicts the flow's velocity and nothing else: only null is accepted."""

    max_grad_norm: PositiveFloat | None = None
    """Clip the gradients' norm to this. Null: no clipping."""

    validation_prompts: tuple[str, ...] = ()
    """Prompts to make images from through the run. Not built yet: refused."""

    num_validation_images_per_prompt: PositiveInt = 4
    """Images for each of validation_prompts."""

    train_batch_size: PositiveInt = 1
    """Samples of one forward pass."""

    use_masks: bool = False
    """Weight the loss by the data set's masks. Not built yet: true is refused."""

    data_loader: ImageCaptionFluxDataLoaderConfig
    """The data set, and how it becomes samples."""

    timestep_sampler: Literal["shift", "uniform"] = "shift"
    """How noise levels are drawn: ``shift`` draws sigmoid(sigmoid_scale * N(0, 1)) and shifts it
    towards noise, ``uniform`` draws evenly."""

    discrete_flow_shift: PositiveFloat = 3.0
    """``shift`` maps t to shift * t / (1 + (shift - 1) * t); 1 leaves it."""

    sigmoid_scale: PositiveFloat = 1.0
    """The spread of the normal draw before the sigmoid."""

    lora_scale: PositiveFloat | None = 1.0
    """The strength of the LoRA, alpha / rank, while training and in the file. Null: 1."""

    guidance_scale: NonNegativeFloat = 1.0
    """The guidance that a guidance-distilled transformer (FLUX.1-dev) is trained under; others
    have no such input."""

    clip_tokenizer_max_length: Annotated[int, Field(ge=2, le=77, strict=True)] = 77
    """Tokens of a caption that CLIP sees; its position table ends at 77."""

    t5_tokenizer_max_length: Annotated[int, Field(ge=1, le=512, strict=True)] = 512
    """Tokens of a caption that T5 sees; FLUX was trained with 512."""

    @field_validator("base_output_dir")
    @classmethod
    def _inside_the_store(cls, folder: str | None) -> str | None:
        if folder is None:
            return None
        path = PurePosixPath(folder)
        if path.is_absolute() or ".." in path.parts or "\\" in folder or not path.parts:
            raise ValueError("must be a relative folder inside the store, without '..'")
        return str(path)

    @field_validator("report_to")
    @classmethod
    def _only_tensorboard(cls, value: str) -> str:
        if value != "tensorboard":
            raise ValueError("only 'tensorboard' is built; the others need secrets on the workers")
        return value

    @field_validator("max_train_epochs", "save_every_n_steps")
    @classmethod
    def _exactly_one(cls, value: int | None, info: ValidationInfo) -> int | None:
        other = _PARTNER[str(info.field_name)]
        if other in info.data and (value is None) == (info.data[other] is None):
            raise ValueError(f"set exactly one of {info.field_name} and {other}")
        return value

    @field_validator("validate_every_n_steps")
    @classmethod
    def _at_most_one(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("validate_every_n_epochs") is not None:
            raise ValueError("set at most one of validate_every_n_steps and _epochs")
        return value

    @field_validator("transformer_path", "text_encoder_1_path", "text_encoder_2_path")
    @classmethod
    def _safetensors_only(cls, path: str | None) -> str | None:
        if path is not None and not path.endswith(".safetensors"):
            raise ValueError("must be a .safetensors file; pickle checkpoints are refused")
        return path

    @field_validator("train_transformer", "train_text_encoder", "use_masks")
    @classmethod
    def _refuse_unbuilt(cls, value: bool, info: ValidationInfo) -> bool:
        if info.field_name == "train_transformer":
            if not value:
                raise ValueError("false leaves nothing to train: text encoders are not built yet")
        elif value:
            raise ValueError("not built yet; leave it false")
        return value

    @field_validator("mixed_precision")
    @classmethod
    def _refuse_fp8(cls, value: str) -> str:
        if value == "fp8":
            raise ValueError("fp8 is not built yet; use no, fp16 or bf16")
        return value

    @field_validator("prediction_type")
    @classmethod
    def _refuse_prediction_type(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("FLUX is trained by flow matching and has no prediction type")
        return value

    @field_validator("validation_prompts")
    @classmethod
    def _refuse_validation(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            raise ValueError("validation images are not built yet; leave it empty")
        return value

    @field_validator("flux_lora_target_modules")
    @classmethod
    def _known_targets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        found, unmatched = flux_lora_targets(names)
        if unmatched:
            known = ", ".join(sorted(BLOCK_TARGETS))
            raise ValueError(f"match no layer of FLUX: {', '.join(unmatched)}; known are {known}")
        if not found:
            raise ValueError("names no layer; there would be nothing to train")
        return names

    @field_validator("data_loader")
    @classmethod
    def _cacheable(
        cls, loader: ImageCaptionFluxDataLoaderConfig, info: ValidationInfo
    ) -> ImageCaptionFluxDataLoaderConfig:
        if info.data.get("cache_vae_outputs") and not loader.center_crop:
            raise ValueError(
                "center_crop false draws another crop at each step, which no cache can hold; "
                "set center_crop true or cache_vae_outputs false"
            )
        return loader

    def learning_rate(self) -> float:
        """The transformer's learning rate."""
        return self.transformer_learning_rate or self.optimizer.learning_rate

    def lora_alpha(self) -> float:
        """The LoRA's alpha: lora_scale times rank, so that strength does not fall with rank."""
        return (self.lora_scale or 1.0) * self.lora_rank_dim

    def warnings(self) -> list[str]:
        """What runs as described and is likely not what its author wants."""
        found = []
        smallest = min(size.pixels for size in self.data_loader.sizes())
        if smallest < 768 * 768 * 0.8:
            found.append("FLUX works best from 768 px up; data_loader.resolution is below that")
        if self.train_batch_size > 2:
            found.append("train_batch_size above 2 needs a lot of memory with FLUX")
        if not (self.cache_text_encoder_outputs and self.cache_vae_outputs):
            found.append("uncached encoder outputs are computed at every step; caching is faster")
        if self.validate_every_n_epochs or self.validate_every_n_steps:
            found.append("no validation images are made without validation_prompts")
        return found


_PARTNER = {"max_train_epochs": "max_train_steps", "save_every_n_steps": "save_every_n_epochs"}
