"""The three SDXL configs: invoke-training's; every option acts or is refused."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, ValidationInfo, field_validator

from routing.estimate import (
    PUBLISHED,
    UNET_BLOCKS,
    UNET_LAYERS,
    Estimate,
    MemoryModel,
    SdxlShape,
    estimate_sdxl,
)
from tasks.escaping import listed
from tasks.jobs.data_loaders import (
    DreamboothSDDataLoaderConfig,
    ImageCaptionSDDataLoaderConfig,
    TextualInversionSDDataLoaderConfig,
)
from tasks.jobs.field_metadata import ActsIf, Affects, Location, NonEmptyText, PlainText
from tasks.jobs.pipeline import (
    CLIP_TARGETS,
    IF_TEXT_ENCODER_TRAINED,
    CacheText,
    ClipTargets,
    GradientCheckpointing,
    LoraRank,
    ModelSource,
    PipelineConfig,
    Prompts,
    WeightDtype,
    known_names,
    layers_of,
    not_cached_if_trained,
    one_prodigy_rate,
)
from tasks.jobs.run_warnings import Trained
from tasks.jobs.trigger_word import TriggerWord
from tasks.strict_model import (
    NO_HOME,
    WORD,
    Decay,
    PositiveFloat,
    PositiveInt,
    exactly_one,
)

# Every layer of SDXL's UNet that can take a LoRA, by the end of its name.
UNET_TARGETS = frozenset(UNET_LAYERS)
_DEFAULT_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "proj",
    "proj_in",
    "proj_out",
    "conv",
    "conv1",
    "conv2",
    "conv_shortcut",
    "to_out.0",
    "time_emb_proj",
    "ff.net.2",
)
SdxlLoraFormat = Annotated[
    Literal["invoke_peft", "kohya", "sd_scripts", "diffusers_old"], Affects.NO_NUMBER
]
# One word without spaces and commas, which InvokeAI, ComfyUI and diffusers can find in a prompt.
Token = Annotated[str, Field(pattern=WORD, max_length=100)]
EmbeddingFile = Annotated[str, NO_HOME, Location.FILE]
IF_UNET_TRAINED = ActsIf(lambda config: config.train_unet, "train_unet is false")


class SdxlConfig(PipelineConfig):
    """An SDXL training run."""

    blocks = UNET_BLOCKS

    model: ModelSource = "stabilityai/stable-diffusion-xl-base-1.0"
    """The base model: a diffusers folder, as the workers see it, a Hub id, or one
    ``.safetensors`` file with the whole model."""

    hf_variant: Annotated[
        PlainText | None,
        Affects.CACHE_ENTRIES,
        ActsIf(
            lambda config: (
                not config.model.endswith(".safetensors")
                or not (config.vae_model or ".safetensors").endswith(".safetensors")
            ),
            "model is a single file",
        ),
    ] = "fp16"
    """The variant of a Hub repository's weights to fetch (``fp16`` is half the download), or of a
    folder's to load; weights without a variant if there are none."""

    gradient_checkpointing: GradientCheckpointing[
        Annotated[int, Field(ge=0, le=UNET_BLOCKS, strict=True)]
    ] = False
    """Recompute blocks of the UNet in the backward pass instead of keeping their activations:
    less memory, the same weights bit for bit. True recomputes all 7 blocks (3 down, the middle, 3
    up), which is up to 45 % more computation, and a number the first ones. ``auto`` is routed like
    true; submit then chooses the fewest blocks that fit the memory class. invoke-training has true
    and false only."""

    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """The UNet's target: the noise, or the velocity (Salimans & Ho, 2022). Null: what a single
    file says by its tensors ``v_pred`` and ``ztsnr`` or its header, else the base model's scheduler
    config. A velocity is trained with zero terminal SNR (Lin et al., 2023) where these say so."""

    min_snr_gamma: PositiveFloat | None = 5.0
    """Weight each sample's loss by min(snr, gamma) / snr, and with v-prediction by
    min(snr, gamma) / (snr + 1): Min-SNR (Hang et al., 2023). Null: no weighting."""

    xformers: StrictBool = False
    """PyTorch's attention is as fast and repeats exactly: true is refused."""

    negative_validation_prompts: Prompts | None = None
    """What the validation images should not show: one for each of validation_prompts."""

    @property
    def text_tokens(self) -> int:
        """Tokens of a caption that the text encoders see."""
        return 77

    @field_validator("xformers")
    @classmethod
    def _refuse_xformers(cls, value: bool) -> bool:
        if value:
            raise ValueError("must be false; PyTorch's attention is as fast, and is used")
        return value

    @field_validator("negative_validation_prompts")
    @classmethod
    def _one_for_each(
        cls, prompts: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        wanted = info.data.get("validation_prompts")
        if prompts is not None and wanted is not None and len(prompts) != len(wanted):
            raise ValueError(f"are {len(prompts)} for {len(wanted)} validation_prompts")
        return prompts


class SdxlLoraConfig(SdxlConfig):
    """An SDXL LoRA training run."""

    type: Literal["SDXL_LORA"] = "SDXL_LORA"
    """Selects this training type."""

    base_embeddings: Annotated[dict[Token, EmbeddingFile], Affects.CACHE_ENTRIES] = Field(
        default={}
    )
    """Token to textual-inversion file (``.safetensors`` with ``clip_l`` and ``clip_g``): embeddings
    that captions may use, and that are not trained."""

    lora_checkpoint_format: SdxlLoraFormat = "kohya"
    """The names of layers in the LoRA's file; the weights are the same. InvokeAI, ComfyUI and
    diffusers read ``kohya`` and ``sd_scripts``; sd-scripts reads the latter only. ``invoke_peft``
    has diffusers' names, ``diffusers_old`` those before peft, which ComfyUI reads too; InvokeAI
    reads neither. invoke-training has ``kohya`` and ``invoke_peft`` only."""

    train_unet: StrictBool = True
    """Put LoRA layers on the UNet."""

    train_text_encoder: StrictBool = True
    """Put LoRA layers on both text encoders. Needs cache_text_encoder_outputs false."""

    text_encoder_learning_rate: Annotated[PositiveFloat | None, IF_TEXT_ENCODER_TRAINED] = None
    """The text encoders' learning rate. It overrides optimizer.learning_rate; null leaves that."""

    unet_learning_rate: Annotated[PositiveFloat | None, IF_UNET_TRAINED] = None
    """The UNet's learning rate. It overrides optimizer.learning_rate; null leaves that."""

    lora_rank_dim: LoraRank = 4
    """The rank of the LoRA matrices. Alpha equals it, so that a LoRA's strength does not fall with
    its rank; in invoke-training alpha is 1."""

    unet_lora_target_modules: Annotated[tuple[PlainText, ...], IF_UNET_TRAINED] = _DEFAULT_TARGETS
    """The UNet's layers that get a LoRA, each by the end of its name."""

    text_encoder_lora_target_modules: Annotated[ClipTargets, IF_TEXT_ENCODER_TRAINED] = CLIP_TARGETS
    """The text encoders' layers that get a LoRA; it acts with train_text_encoder."""

    cache_text_encoder_outputs: CacheText = False
    """Encode captions once, ahead of training, and share the outputs with every later job. False
    keeps both text encoders on the GPU and encodes at each step."""

    trigger_word: TriggerWord | None = None
    """A word, or a few, that call up what was trained. Put before captions and validation_prompts
    that lack it, in any case and not inside of another word: ``WORD, caption``. It comes before
    caption_prefix or DreamBooth's instance_caption, never before a class_caption or a caption that
    caption_dropout blanks. Every image still needs a caption. The file's header names it.
    invoke-training does not have this option."""

    data_loader: Annotated[
        ImageCaptionSDDataLoaderConfig | DreamboothSDDataLoaderConfig, Field(discriminator="type")
    ]
    """The dataset, and how it becomes samples."""

    @field_validator("base_embeddings")
    @classmethod
    def _embedding_files(cls, files: dict[str, str]) -> dict[str, str]:
        wrong = [path for path in files.values() if not path.endswith(".safetensors")]
        if wrong:
            raise ValueError(f"must be .safetensors files; pickles are refused: {listed(wrong)}")
        return files

    @field_validator("train_text_encoder")
    @classmethod
    def _trains_something(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and info.data.get("train_unet") is False:
            raise ValueError("with train_unet false too, there is nothing to train")
        return value

    @field_validator("unet_lora_target_modules")
    @classmethod
    def _known_targets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_names(names, UNET_TARGETS, "SDXL's UNet")

    @field_validator("cache_text_encoder_outputs")
    @classmethod
    def _trained_is_not_cached(cls, value: bool, info: ValidationInfo) -> bool:
        return not_cached_if_trained(value, info)

    @field_validator("unet_learning_rate")
    @classmethod
    def _one_prodigy_rate(cls, rate: float | None, info: ValidationInfo) -> float | None:
        return one_prodigy_rate(rate, info, trains="train_unet")

    @property
    def loader(self) -> ImageCaptionSDDataLoaderConfig | DreamboothSDDataLoaderConfig:
        """The data loader."""
        return self.data_loader

    @property
    def caches_text(self) -> bool:
        """Whether text-encoder outputs are cached."""
        return self.cache_text_encoder_outputs

    def learning_rates(self) -> dict[str, float]:
        """Return the base learning rate of each trained model."""
        rates = {}
        if self.train_unet:
            rates["unet"] = self.unet_learning_rate or self.optimizer.learning_rate
        if self.train_text_encoder:
            rate = self.text_encoder_learning_rate or self.optimizer.learning_rate
            rates |= {"text_encoder": rate, "text_encoder_2": rate}
        return rates

    def reader_warnings(self) -> list[str]:
        """Return a sentence for each program that cannot read the file, or not all of it."""
        form, found = self.lora_checkpoint_format, []
        targets = {
            known
            for known in UNET_TARGETS
            for name in self.unet_lora_target_modules
            if self.train_unet and f".{known}".endswith(f".{name}")
        }
        known_by = ("attn", "ff.", *(["time_emb_proj"] if form == "kohya" else []))
        if form in ("invoke_peft", "diffusers_old"):
            found.append(
                f"InvokeAI does not read {form} files of SDXL; set lora_checkpoint_format kohya"
            )
        elif not any(name.startswith(known_by) for name in targets):
            found.append(
                "InvokeAI does not find out that this LoRA is for SDXL, and cannot install it: it "
                "needs layers of the UNet's transformer blocks, or time_emb_proj in a kohya file"
            )
        if form == "invoke_peft" and any(name.startswith("attn") for name in targets):
            found.append(
                "ComfyUI leaves out the attention layers of invoke_peft files of SDXL, and applies "
                "the rest; set lora_checkpoint_format kohya or diffusers_old"
            )
        return found

    def lora_alpha(self) -> float:
        """Return the LoRA's alpha: its rank."""
        return float(self.lora_rank_dim)

    def estimate(self, constants: MemoryModel = PUBLISHED) -> Estimate:
        """Return the GPU memory this job needs."""
        clip_layers = self.text_encoder_lora_target_modules if self.train_text_encoder else ()
        shape = SdxlShape(
            **self.run_shape(),
            rank=self.lora_rank_dim,
            layers=layers_of(self.unet_lora_target_modules * self.train_unet, UNET_TARGETS),
            clip_layers=frozenset(clip_layers),
        )
        return estimate_sdxl(shape, constants)


class SdxlTextualInversionConfig(SdxlConfig):
    """An SDXL textual-inversion run (Gal et al., 2022): new words for both text encoders."""

    trained: ClassVar[Trained] = Trained.EMBEDDINGS
    absent_options: ClassVar[dict[str, str]] = {
        "trigger_word": "is not an option here: the new word, placeholder_token, is the trigger "
        "word of a textual inversion"
    }

    type: Literal["SDXL_TEXTUAL_INVERSION"] = "SDXL_TEXTUAL_INVERSION"
    """Selects this training type."""

    num_vectors: Annotated[PositiveInt, Field(le=75)] = 1
    """Embedding vectors of the new word; a prompt spends one of its 75 tokens on each. With
    initial_phrase, the phrase decides the number: leave this 1."""

    placeholder_token: Annotated[Token, Location.NONE]
    """The new word. The tokenizers must not have it yet."""

    initializer_token: NonEmptyText | None = None
    """A word whose embedding the vectors start from. Exactly one of this, initial_embedding_file
    and initial_phrase."""

    initial_embedding_file: EmbeddingFile | None = None
    """A ``.safetensors`` file with the ``clip_l`` and ``clip_g`` that the vectors start from.
    Exactly one of this, initializer_token and initial_phrase."""

    initial_phrase: NonEmptyText | None = None
    """A phrase whose tokens' embeddings the vectors start from, one each. Exactly one of this,
    initializer_token and initial_embedding_file."""

    data_loader: TextualInversionSDDataLoaderConfig
    """The dataset, and how it becomes samples."""

    @field_validator("initializer_token")
    @classmethod
    def _another_word(cls, token: str | None, info: ValidationInfo) -> str | None:
        if token is not None and token == info.data.get("placeholder_token"):
            raise ValueError("is the new word itself; use a word that the tokenizers have")
        return token

    @field_validator("initial_embedding_file")
    @classmethod
    def _safetensors_only(cls, path: str | None) -> str | None:
        if path is not None and not path.endswith(".safetensors"):
            raise ValueError("must be a .safetensors file; pickles are refused")
        return path

    @field_validator("initial_phrase")
    @classmethod
    def _exactly_one_start(cls, phrase: str | None, info: ValidationInfo) -> str | None:
        names = ("initializer_token", "initial_embedding_file")
        if any(name not in info.data for name in names):
            return phrase  # the absent one was refused itself
        others = [info.data[name] for name in names]
        if sum(value is not None for value in (phrase, *others)) != 1:
            raise exactly_one(*names, "initial_phrase")
        if phrase is not None and info.data.get("num_vectors", 1) != 1:
            raise ValueError("decides the number of vectors; leave num_vectors out")
        return phrase

    @property
    def loader(self) -> TextualInversionSDDataLoaderConfig:
        """The data loader."""
        return self.data_loader

    @property
    def caches_text(self) -> bool:
        """Never: the embeddings under the text encoders' outputs are trained."""
        return False

    @property
    def trigger_phrase(self) -> str | None:
        """The new word."""
        return self.placeholder_token

    def learning_rates(self) -> dict[str, float]:
        """Return the base learning rate of each trained model."""
        rate = self.optimizer.learning_rate
        return {"text_encoder": rate, "text_encoder_2": rate}

    def warnings(self) -> list[str]:
        """Return a sentence for each option that is valid and likely not what its author wants."""
        found = super().warnings()
        if any(self.placeholder_token not in prompt for prompt in self.validation_prompts):
            found.append(
                f"validation_prompts without {self.placeholder_token} do not show the new word"
            )
        return found

    def estimate(self, constants: MemoryModel = PUBLISHED) -> Estimate:
        """Return the GPU memory this job needs."""
        return estimate_sdxl(SdxlShape(**self.run_shape(), trains_embeddings=True), constants)


class SdxlFinetuneConfig(SdxlConfig):
    """An SDXL finetune: every weight of the UNet."""

    trained: ClassVar[Trained] = Trained.WEIGHTS

    type: Literal["SDXL_FINETUNE"] = "SDXL_FINETUNE"
    """Selects this training type."""

    save_checkpoint_format: Annotated[
        Literal["full_diffusers", "trained_only_diffusers", "single_file"], Affects.NO_NUMBER
    ] = "trained_only_diffusers"
    """The format of the published model: the whole pipeline as a diffusers folder, which InvokeAI
    and diffusers read; the UNet's part of it alone, which only diffusers reads; or the whole
    pipeline in one ``.safetensors`` file, which InvokeAI, ComfyUI and diffusers read (not in
    invoke-training)."""

    save_dtype: Annotated[WeightDtype, Affects.NO_NUMBER] = "float16"
    """The precision of the published weights."""

    use_ema: StrictBool = False
    """Publish a moving average of the weights (EMA) instead of the last ones; its warmup is
    diffusers'. Takes 4 more bytes for each weight. invoke-training does not have this option."""

    ema_decay: Annotated[Decay, ActsIf(lambda config: config.use_ema, "use_ema is false")] = 0.9999
    """The share of the average that each step keeps, after the warmup; it acts with use_ema."""

    cache_text_encoder_outputs: CacheText = False
    """Encode captions once, ahead of training, and share the outputs with every later job. False
    keeps both text encoders on the GPU and encodes at each step."""

    trigger_word: TriggerWord | None = None
    """A word, or a few, that call up what was trained. Put before captions and validation_prompts
    that lack it, in any case and not inside of another word: ``WORD, caption``. It comes before
    caption_prefix or DreamBooth's instance_caption, never before a class_caption or a caption that
    caption_dropout blanks. Every image still needs a caption. The file's header names it.
    invoke-training does not have this option."""

    data_loader: Annotated[
        ImageCaptionSDDataLoaderConfig | DreamboothSDDataLoaderConfig, Field(discriminator="type")
    ]
    """The dataset, and how it becomes samples."""

    @property
    def loader(self) -> ImageCaptionSDDataLoaderConfig | DreamboothSDDataLoaderConfig:
        """The data loader."""
        return self.data_loader

    @property
    def caches_text(self) -> bool:
        """Whether text-encoder outputs are cached."""
        return self.cache_text_encoder_outputs

    def reader_warnings(self) -> list[str]:
        """Return a sentence if common programs cannot read the result, or read it wrongly."""
        if self.save_checkpoint_format == "trained_only_diffusers":
            return [
                "InvokeAI and ComfyUI do not read trained_only_diffusers, a UNet alone; set "
                "save_checkpoint_format single_file, or full_diffusers for InvokeAI"
            ]
        if self.save_checkpoint_format == "single_file" and self.prediction_type == "v_prediction":
            return [
                "InvokeAI takes a single file for a model that predicts noise, whatever the file "
                "says; set save_checkpoint_format full_diffusers, or change its setting there"
            ]
        return []

    @property
    def trains_adapter(self) -> bool:
        """No: the result is a model of its own."""
        return False

    def learning_rates(self) -> dict[str, float]:
        """Return the base learning rate of each trained model."""
        return {"unet": self.optimizer.learning_rate}

    def estimate(self, constants: MemoryModel = PUBLISHED) -> Estimate:
        """Return the GPU memory this job needs."""
        shape = SdxlShape(**self.run_shape(), trains_unet=True, weight_copies=int(self.use_ema))
        return estimate_sdxl(shape, constants)
