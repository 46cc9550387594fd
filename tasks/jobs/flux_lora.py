"""The FLUX LoRA config: invoke-training's ``FluxLoraConfig``; every option acts or is refused."""

from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, StrictBool, ValidationInfo, field_validator

from routing.estimate import (
    FLUX_BLOCKS,
    FLUX_DOUBLE_LAYERS,
    FLUX_SINGLE_LAYERS,
    PUBLISHED,
    Estimate,
    FluxShape,
    MemoryModel,
    estimate_flux_lora,
)
from tasks.escaping import listed
from tasks.jobs.data_loaders import ImageCaptionFluxDataLoaderConfig
from tasks.jobs.field_metadata import ActsIf, Affects, Location, PlainText
from tasks.jobs.pipeline import (
    CLIP_TARGETS,
    IF_TEXT_ENCODER_TRAINED,
    BatchSize,
    CacheText,
    ClipTargets,
    FrozenDtype,
    GradientCheckpointing,
    LoraFormat,
    LoraRank,
    LrScheduler,
    LrWarmupSteps,
    ModelSource,
    PipelineConfig,
    not_cached_if_trained,
    one_prodigy_rate,
    safe_weights_file,
)
from tasks.jobs.trigger_word import TriggerWord
from tasks.strict_model import NO_HOME, NonNegativeFloat, PositiveFloat

# The linear layers of FluxTransformer2DModel's two kinds of blocks, by the end of their names.
DOUBLE_BLOCK_TARGETS = frozenset(FLUX_DOUBLE_LAYERS)
SINGLE_BLOCK_TARGETS = frozenset(FLUX_SINGLE_LAYERS)
BLOCK_TARGETS = DOUBLE_BLOCK_TARGETS | SINGLE_BLOCK_TARGETS
# InvokeAI knows FLUX by these, and takes q, k and v of a block only together.
_INVOKEAI_PEFT_TARGETS = frozenset(
    f"attn.{layer}" for layer in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
)
ATTENTION_TARGETS = frozenset(name for name in DOUBLE_BLOCK_TARGETS if name.startswith("attn."))
# Names in invoke-training's default list that match no layer: two misspelled, one of no layer.
_MISSPELLED_TARGETS = {"ff.net.2.0": "ff.net.2", "ff_context.net.2.0": "ff_context.net.2"}
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


@lru_cache(maxsize=64)
def flux_lora_targets(names: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the block layers that target names match, and the names that match none.

    A name matches every layer whose name ends with it at a dot, as in peft: ``to_k`` matches
    ``attn.to_k``.

    Returns:
        Members of ``BLOCK_TARGETS``; the names without a match.
    """
    found: set[str] = set()
    unmatched = []
    for name in names:
        wanted = _MISSPELLED_TARGETS.get(name, name)
        hits = {t for t in BLOCK_TARGETS if t == wanted or t.endswith("." + wanted)}
        found |= hits
        if not hits and name not in _ABSENT_TARGETS:
            unmatched.append(name)
    return frozenset(found), tuple(unmatched)


TransformerPart = Annotated[str, NO_HOME, Location.FILE]
EncoderPart = Annotated[str, NO_HOME, Location.FILE, Affects.CACHE_ENTRIES]
IF_TRANSFORMER_TRAINED = ActsIf(
    lambda config: config.train_transformer, "train_transformer is false"
)
_OTHER_SAMPLER = "timestep_sampler is {config.timestep_sampler!r}"


class FluxLoraConfig(PipelineConfig):
    """A FLUX.1 LoRA training run."""

    blocks = FLUX_BLOCKS

    type: Literal["FLUX_LORA"] = "FLUX_LORA"
    """Selects this training type."""

    model: ModelSource = "black-forest-labs/FLUX.1-dev"
    """The base model: a diffusers folder, as the workers see it, a Hub id, or one
    ``.safetensors`` file with the whole model."""

    transformer_path: TransformerPart | None = None
    """A ``.safetensors`` file whose transformer replaces the base model's."""

    text_encoder_1_path: EncoderPart | None = None
    """A ``.safetensors`` file whose CLIP text encoder replaces the base model's."""

    text_encoder_2_path: EncoderPart | None = None
    """A ``.safetensors`` file whose T5 text encoder replaces the base model's."""

    quantization: Literal["fp8", "int8", "nf4"] | None = None
    """Keep the frozen transformer's linear layers in 8 bits (``fp8``, ``int8``, by torchao) or 4
    (``nf4``, by bitsandbytes) and compute in weight_dtype's precision: half or a quarter of its
    memory. Null: unchanged. invoke-training does not have this option."""

    lora_checkpoint_format: LoraFormat = "kohya"
    """The names of layers in the LoRA's file; the weights are the same. InvokeAI, ComfyUI,
    diffusers and sd-scripts read ``kohya``. ComfyUI and diffusers read ``invoke_peft``, which has
    diffusers' names; InvokeAI reads it only if all attention inputs of both kinds of blocks have a
    LoRA, and the text encoder has none."""

    train_transformer: StrictBool = True
    """Put LoRA layers on the transformer."""

    train_text_encoder: StrictBool = False
    """Put LoRA layers on the CLIP text encoder; T5 is never trained. Needs
    cache_text_encoder_outputs false."""

    text_encoder_learning_rate: Annotated[PositiveFloat | None, IF_TEXT_ENCODER_TRAINED] = 1e-4
    """The text encoder's learning rate; it acts with train_text_encoder. It overrides
    optimizer.learning_rate; null leaves that, and so does leaving it out with Prodigy or
    Adafactor."""

    transformer_learning_rate: Annotated[PositiveFloat | None, IF_TRANSFORMER_TRAINED] = 4e-4
    """The transformer's learning rate. It overrides optimizer.learning_rate; null leaves that.
    Left out with Prodigy or Adafactor it is null, not 4e-4: their rates are relative, and
    invoke-training, where the default overrides Prodigy's, trains 2500 times too slowly. A value
    that is given overrides theirs, too."""

    lr_scheduler: LrScheduler = "constant_with_warmup"
    """How the learning rate moves over the run."""

    lr_warmup_steps: LrWarmupSteps = 10
    """Updates over which the rate rises from 0; every scheduler but ``constant`` uses it."""

    min_snr_gamma: PositiveFloat | None = None
    """Weight each sample's loss by min(snr, gamma) / (snr + 1), snr = ((1 - sigma) / sigma)^2:
    Min-SNR (Hang et al., 2023) in its v-prediction form, the one whose target is a velocity as
    flow matching's is. Null: no weighting."""

    lora_rank_dim: LoraRank = 4
    """The rank of the LoRA matrices."""

    flux_lora_target_modules: Annotated[tuple[PlainText, ...], IF_TRANSFORMER_TRAINED] = (
        _DEFAULT_TARGETS
    )
    """The block layers that get a LoRA, each by the end of its name. invoke-training's own list
    has three names that match no layer of FLUX: ``ff.net.2.0`` and ``ff_context.net.2.0`` are
    read as ``ff.net.2`` and ``ff_context.net.2``, ``proj_in`` is ignored. The model's last layer,
    also called ``proj_out``, never gets one."""

    text_encoder_lora_target_modules: Annotated[ClipTargets, IF_TEXT_ENCODER_TRAINED] = CLIP_TARGETS
    """The text encoder's layers that get a LoRA; it acts with train_text_encoder."""

    cache_text_encoder_outputs: CacheText = False
    """Encode captions once, ahead of training, and share the outputs with every later job. False
    keeps both text encoders on the GPU and encodes at each step."""

    weight_dtype: FrozenDtype = "float16"
    """The precision of the frozen weights. float16 is invoke-training's default, and FLUX leaves
    its range: use bfloat16, as the presets and forms do. LoRA weights and their optimizer state are
    always float32; float16 trains with a dynamic loss scale, so that gradients do not vanish."""

    gradient_checkpointing: GradientCheckpointing[
        Annotated[int, Field(ge=0, le=FLUX_BLOCKS, strict=True)]
    ] = False
    """Recompute blocks of the transformer in the backward pass instead of keeping their
    activations: less memory, the same weights bit for bit. True recomputes all 57 blocks (19
    double, then 38 single), which is 45 % more computation, and a number the first ones. ``auto``
    is routed like true; submit then chooses the fewest blocks that fit the memory class.
    invoke-training has true and false only."""

    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """FLUX always predicts the flow's velocity: only null is accepted."""

    train_batch_size: BatchSize = 1
    """Samples of one forward pass."""

    trigger_word: TriggerWord | None = None
    """A word, or a few, that call up what was trained. Put before captions and validation_prompts
    that lack it, in any case and not inside of another word: ``WORD, caption``. It comes before
    caption_prefix, and not into a caption that caption_dropout blanks. Every image still needs a
    caption. The file's header names it. invoke-training does not have this option."""

    data_loader: ImageCaptionFluxDataLoaderConfig
    """The dataset, and how it becomes samples."""

    timestep_sampler: Literal["shift", "uniform", "resolution_shift"] = "shift"
    """The distribution of noise levels: ``shift`` draws sigmoid(sigmoid_scale * N(0, 1)) and shifts
    it towards noise by discrete_flow_shift, ``uniform`` draws evenly, ``resolution_shift`` (not in
    invoke-training) shifts by what FLUX samples this size with: exp(0.5) at 256 patches (256 x 256
    pixels) to exp(1.15) at 4096 (1024 x 1024), the exponent linear in the patches."""

    discrete_flow_shift: Annotated[
        PositiveFloat, ActsIf(lambda config: config.timestep_sampler == "shift", _OTHER_SAMPLER)
    ] = 3.0
    """``shift`` maps t to shift * t / (1 + (shift - 1) * t); 1 changes nothing."""

    sigmoid_scale: Annotated[
        PositiveFloat, ActsIf(lambda config: config.timestep_sampler != "uniform", _OTHER_SAMPLER)
    ] = 1.0
    """The spread of the normal draw before the sigmoid."""

    lora_scale: PositiveFloat | None = 1.0
    """The strength of the LoRA, alpha / rank, while training and in the file. Null: 1."""

    guidance_scale: NonNegativeFloat = 1.0
    """The guidance that a guidance-distilled transformer (FLUX.1-dev) is trained under; other
    transformers do not have this input."""

    clip_tokenizer_max_length: Annotated[
        int, Field(ge=2, le=77, strict=True), Affects.CACHED_TEXT, Affects.CACHE_ENTRIES
    ] = 77
    """Tokens of a caption that CLIP reads; its position table ends at 77."""

    t5_tokenizer_max_length: Annotated[
        int, Field(ge=1, le=512, strict=True), Affects.CACHED_TEXT, Affects.CACHE_ENTRIES
    ] = 512
    """Tokens of a caption that T5 reads; FLUX was trained with 512."""

    @field_validator("transformer_path", "text_encoder_1_path", "text_encoder_2_path")
    @classmethod
    def _safetensors_only(cls, path: str | None) -> str | None:
        if safe_weights_file(path) is not None and not str(path).endswith(".safetensors"):
            raise ValueError("must be a .safetensors file")
        return path

    @field_validator("train_text_encoder")
    @classmethod
    def _trains_something(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and info.data.get("train_transformer") is False:
            raise ValueError("with train_transformer false too, there is nothing to train")
        return value

    @field_validator("cache_text_encoder_outputs")
    @classmethod
    def _trained_is_not_cached(cls, value: bool, info: ValidationInfo) -> bool:
        return not_cached_if_trained(value, info)

    @field_validator("prediction_type")
    @classmethod
    def _refuse_prediction_type(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("FLUX is trained by flow matching and has no prediction type")
        return value

    @field_validator("flux_lora_target_modules")
    @classmethod
    def _known_targets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        found, unmatched = flux_lora_targets(names)
        if unmatched:
            known = ", ".join(sorted(BLOCK_TARGETS))
            raise ValueError(f"match no layer of FLUX: {listed(unmatched)}; known are {known}")
        if not found:
            raise ValueError("names no layer; there would be nothing to train")
        return names

    @field_validator("transformer_learning_rate")
    @classmethod
    def _one_prodigy_rate(cls, rate: float | None, info: ValidationInfo) -> float | None:
        return one_prodigy_rate(rate, info, trains="train_transformer")

    @property
    def loader(self) -> ImageCaptionFluxDataLoaderConfig:
        """The data loader."""
        return self.data_loader

    @property
    def caches_text(self) -> bool:
        """Whether text-encoder outputs are cached."""
        return self.cache_text_encoder_outputs

    @property
    def text_tokens(self) -> int:
        """Tokens of a caption that the text encoders see."""
        return self.t5_tokenizer_max_length

    def learning_rates(self) -> dict[str, float]:
        """Return the base learning rate of each trained model."""
        rates = {}
        if self.train_transformer:
            rates["transformer"] = self.transformer_learning_rate or self.optimizer.learning_rate
        if self.train_text_encoder:
            rates["text_encoder"] = self.text_encoder_learning_rate or self.optimizer.learning_rate
        return rates

    def lora_alpha(self) -> float:
        """Return the LoRA's alpha: lora_scale times rank, so that only the scale decides."""
        return (self.lora_scale or 1.0) * self.lora_rank_dim

    def estimate(self, constants: MemoryModel = PUBLISHED) -> Estimate:
        """Return the GPU memory this job needs."""
        layers, _ = flux_lora_targets(self.flux_lora_target_modules)
        clip_layers = self.text_encoder_lora_target_modules if self.train_text_encoder else ()
        shape = FluxShape(
            **self.run_shape(),
            rank=self.lora_rank_dim,
            layers=layers if self.train_transformer else frozenset(),
            clip_layers=frozenset(clip_layers),
            quantization=self.quantization,
            text_tokens=self.t5_tokenizer_max_length,
        )
        return estimate_flux_lora(shape, constants)

    def reader_warnings(self) -> list[str]:
        """Return a sentence if InvokeAI cannot read the file."""
        targets, _ = flux_lora_targets(self.flux_lora_target_modules)
        is_read = self.train_transformer and targets >= _INVOKEAI_PEFT_TARGETS
        if self.lora_checkpoint_format == "kohya" or (is_read and not self.train_text_encoder):
            return []
        needed = ", ".join(sorted(_INVOKEAI_PEFT_TARGETS))
        return [
            "InvokeAI does not read this LoRA: of the form invoke_peft it reads only files with "
            f"all of {needed}, and without the text encoder; set lora_checkpoint_format kohya"
        ]

    def warnings(self) -> list[str]:
        """Return a sentence for each option that is valid and likely not what its author wants."""
        found = []
        smallest = min(size.pixels for size in self.data_loader.sizes())
        if smallest < 768 * 768 * 0.8:
            found.append("FLUX works best from 768 px up; data_loader.resolution is below that")
        if self.weight_dtype == "float16" or self.mixed_precision == "fp16":
            found.append(
                "FLUX leaves the range of float16, and its first steps are skipped; "
                "set weight_dtype bfloat16 and mixed_precision no"
            )
        if self.train_batch_size > 2:
            found.append("train_batch_size above 2 needs much memory with FLUX")
        offloads = self.validation_prompts and self.enable_cpu_offload_during_validation
        if self.quantization is not None and offloads:
            found.append(
                "enable_cpu_offload_during_validation leaves the quantized transformer on the GPU"
            )
        text_done = self.cache_text_encoder_outputs or self.train_text_encoder
        latents_done = self.cache_vae_outputs or not self.data_loader.center_crop
        if not (text_done and latents_done):
            found.append("uncached encoder outputs are computed at every step; caching is faster")
        return [*found, *super().warnings()]
