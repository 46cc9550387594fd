"""The three SDXL configs: invoke-training's, every field acting or refused."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from routing.estimate import PUBLISHED, Estimate, MemoryModel, SdxlShape, estimate_sdxl
from tasks.jobs.datasets import (
    DreamboothSDDataLoaderConfig,
    ImageCaptionSDDataLoaderConfig,
    TextualInversionSDDataLoaderConfig,
)
from tasks.jobs.inert_options import Effect, Effects
from tasks.jobs.pipeline import (
    CLIP_TARGETS,
    PICKLE_ENDINGS,
    ClipTargets,
    LoraFormat,
    PipelineConfig,
    WeightDtype,
    known_names,
    not_cached_if_trained,
    one_prodigy_rate,
)
from tasks.strict_model import Decay, PositiveFloat, PositiveInt

# Every layer of SDXL's UNet that can take a LoRA, by the end of its name.
UNET_TARGETS = frozenset(
    {
        "attn1.to_q",
        "attn1.to_k",
        "attn1.to_v",
        "attn1.to_out.0",
        "attn2.to_q",
        "attn2.to_k",
        "attn2.to_v",
        "attn2.to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "proj_in",
        "proj_out",
        "conv1",
        "conv2",
        "conv_shortcut",
        "time_emb_proj",
        "downsamplers.0.conv",
        "upsamplers.0.conv",
    }
)
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
# A token of letters, digits and signs in one piece: what every reader can find in a prompt.
Token = Annotated[str, Field(pattern=r"^[^\s,]+$", max_length=100)]


class SdxlConfig(PipelineConfig):
    """An SDXL training run."""

    model: Annotated[str, Field(min_length=1)] = "stabilityai/stable-diffusion-xl-base-1.0"
    """The base model: a diffusers folder, as the workers see it, a Hub id, or one
    ``.safetensors`` file that holds the whole model."""

    hf_variant: str | None = "fp16"
    """The variant of a Hub repository's files to fetch (``fp16`` is half the download); weights
    without that variant are taken where there is none. For folders the same."""

    vae_model: Annotated[str, Field(min_length=1)] | None = None
    """A diffusers folder or Hub id of a VAE to use instead of the base model's. The published
    file does not hold it, but full_diffusers and single_file do."""

    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the UNet predicts: the noise, or the velocity (Salimans & Ho, 2022). Null: what the
    base model's scheduler says."""

    min_snr_gamma: PositiveFloat | None = 5.0
    """Weight each sample's loss by min(snr, gamma) / snr, and with v-prediction by
    min(snr, gamma) / (snr + 1): Min-SNR (Hang et al., 2023). Null: no weighting."""

    xformers: bool = False
    """PyTorch's own attention is as fast and exact to repeat: true is refused."""

    negative_validation_prompts: tuple[str, ...] | None = None
    """What each validation image should not show: one for each of validation_prompts."""

    @field_validator("xformers")
    @classmethod
    def _refuse_xformers(cls, value: bool) -> bool:
        if value:
            raise ValueError("PyTorch's own attention is as fast, and used; leave it false")
        return value

    @field_validator("vae_model")
    @classmethod
    def _no_single_file(cls, model: str | None) -> str | None:
        if model is not None and model.lower().endswith((".safetensors", *PICKLE_ENDINGS)):
            raise ValueError("must be a diffusers folder or a Hub id")
        return model

    @field_validator("negative_validation_prompts")
    @classmethod
    def _one_for_each(
        cls, prompts: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        wanted = info.data.get("validation_prompts")
        if prompts is not None and wanted is not None and len(prompts) != len(wanted):
            raise ValueError(f"are {len(prompts)} for {len(wanted)} validation_prompts")
        return prompts

    def effects(self) -> Effects:
        """Which options act here, of those that do not always."""
        dreambooth = self.loader.type == "DREAMBOOTH_SD_DATA_LOADER"
        return {
            **super().effects(),
            "hf_variant": Effect(
                not self.model.endswith(".safetensors") or self.vae_model is not None,
                "model is a single file",
            ),
            "data_loader.class_data_loss_weight": Effect(
                dreambooth and len(self.loader.sources()) > 1, "there is no class_dataset"
            ),
        }

    def _estimate(
        self,
        constants: MemoryModel,
        *,
        trained: float,
        resident_encoders: bool,
        copies: int = 0,
        trains_unet: bool = False,
    ) -> Estimate:
        return estimate_sdxl(
            SdxlShape(
                pixels=max(size.pixels for size in self.loader.sizes()),
                batch_size=self.train_batch_size,
                weight_dtype=self.weight_dtype,
                trained_parameters=trained,
                trains_unet=trains_unet,
                optimizer_bytes=self.optimizer.state_bytes,
                weight_copies=copies,
                gradient_checkpointing=self.gradient_checkpointing,
                text_encoders_resident=resident_encoders,
                vae_resident=not self.cache_vae_outputs,
            ),
            constants,
        )


class SdxlLoraConfig(SdxlConfig):
    """An SDXL LoRA training run."""

    type: Literal["SDXL_LORA"] = "SDXL_LORA"
    """Selects this training type."""

    base_embeddings: dict[Token, str] = Field(default={})
    """Token to textual-inversion file (``.safetensors`` with ``clip_l`` and ``clip_g``): embeddings
    that captions may use, and that are not trained."""

    lora_checkpoint_format: LoraFormat = "kohya"
    """How the LoRA is written. Both forms hold the same weights: ``kohya`` is what InvokeAI,
    ComfyUI and diffusers read, ``invoke_peft`` has diffusers' own names."""

    train_unet: bool = True
    """Put LoRA layers on the UNet."""

    train_text_encoder: bool = True
    """Put LoRA layers on both text encoders. Needs cache_text_encoder_outputs false."""

    text_encoder_learning_rate: PositiveFloat | None = None
    """The text encoders' learning rate. It overrides optimizer.learning_rate; null leaves that."""

    unet_learning_rate: PositiveFloat | None = None
    """The UNet's learning rate. It overrides optimizer.learning_rate; null leaves that."""

    lora_rank_dim: PositiveInt = 4
    """The rank of the LoRA matrices. Alpha equals it, so that a LoRA's strength does not fall with
    its rank; in invoke-training alpha is 1."""

    unet_lora_target_modules: tuple[str, ...] = _DEFAULT_TARGETS
    """The UNet's layers that get a LoRA, each by the end of its name."""

    text_encoder_lora_target_modules: ClipTargets = CLIP_TARGETS
    """The text encoders' layers that get a LoRA; it acts with train_text_encoder."""

    cache_text_encoder_outputs: bool = False
    """Encode captions once, ahead of training, and share the outputs with every later job. False
    keeps both text encoders on the GPU and encodes at each step."""

    data_loader: Annotated[
        ImageCaptionSDDataLoaderConfig | DreamboothSDDataLoaderConfig, Field(discriminator="type")
    ]
    """The dataset, and how it becomes samples."""

    @field_validator("base_embeddings")
    @classmethod
    def _embedding_files(cls, files: dict[str, str]) -> dict[str, str]:
        wrong = [path for path in files.values() if not path.endswith(".safetensors")]
        if wrong:
            raise ValueError(f"must be .safetensors files; pickles are refused: {', '.join(wrong)}")
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
        """Base learning rate by trained model."""
        rates = {}
        if self.train_unet:
            rates["unet"] = self.unet_learning_rate or self.optimizer.learning_rate
        if self.train_text_encoder:
            rate = self.text_encoder_learning_rate or self.optimizer.learning_rate
            rates |= {"text_encoder": rate, "text_encoder_2": rate}
        return rates

    def effects(self) -> Effects:
        """Which options act here, of those that do not always."""
        unet = Effect(self.train_unet, "train_unet is false")
        text_encoder = Effect(self.train_text_encoder, "train_text_encoder is false")
        return {
            **super().effects(),
            "unet_learning_rate": unet,
            "unet_lora_target_modules": unet,
            "text_encoder_learning_rate": text_encoder,
            "text_encoder_lora_target_modules": text_encoder,
        }

    def lora_alpha(self) -> float:
        """The LoRA's alpha: its rank."""
        return float(self.lora_rank_dim)

    def estimate(self, constants: MemoryModel = PUBLISHED) -> Estimate:
        """The GPU memory this run needs."""
        # Trained weights for each unit of rank, all default layers of the UNet and both encoders.
        per_rank = 2.9e6 * self.train_unet + 0.9e6 * self.train_text_encoder
        return self._estimate(
            constants,
            trained=per_rank * self.lora_rank_dim,
            resident_encoders=not self.cache_text_encoder_outputs,
        )


class SdxlTextualInversionConfig(SdxlConfig):
    """An SDXL textual-inversion run (Gal et al., 2022): new words for both text encoders."""

    type: Literal["SDXL_TEXTUAL_INVERSION"] = "SDXL_TEXTUAL_INVERSION"
    """Selects this training type."""

    num_vectors: PositiveInt = 1
    """Embedding vectors of the new word; it takes as many tokens of a prompt. With initial_phrase,
    the phrase decides: leave it 1."""

    placeholder_token: Token
    """The new word. The tokenizers must not have it yet."""

    initializer_token: Annotated[str, Field(min_length=1)] | None = None
    """A word whose embedding the vectors start from. Exactly one of this, initial_embedding_file
    and initial_phrase."""

    initial_embedding_file: str | None = None
    """A ``.safetensors`` file with ``clip_l`` and ``clip_g`` to go on from. Exactly one of this,
    initializer_token and initial_phrase."""

    initial_phrase: Annotated[str, Field(min_length=1)] | None = None
    """A phrase whose tokens' embeddings the vectors start from, one each. Exactly one of this,
    initializer_token and initial_embedding_file."""

    data_loader: TextualInversionSDDataLoaderConfig
    """The dataset, and how it becomes samples."""

    @field_validator("initializer_token")
    @classmethod
    def _another_word(cls, token: str | None, info: ValidationInfo) -> str | None:
        if token is not None and token == info.data.get("placeholder_token"):
            raise ValueError("is the new word itself; name one that the tokenizers have")
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
            return phrase  # it was refused by itself
        others = [info.data[name] for name in names]
        if sum(value is not None for value in (phrase, *others)) != 1:
            raise ValueError(
                "set exactly one of initializer_token, initial_embedding_file and initial_phrase"
            )
        if phrase is not None and info.data.get("num_vectors", 1) != 1:
            raise ValueError("decides how many vectors there are; leave num_vectors out")
        return phrase

    @property
    def loader(self) -> TextualInversionSDDataLoaderConfig:
        """The data loader."""
        return self.data_loader

    @property
    def caches_text(self) -> bool:
        """Never: the embeddings under the text encoders' outputs are trained."""
        return False

    def learning_rates(self) -> dict[str, float]:
        """Base learning rate by trained model."""
        rate = self.optimizer.learning_rate
        return {"text_encoder": rate, "text_encoder_2": rate}

    def effects(self) -> Effects:
        """Which options act here, of those that do not always."""
        loader = self.data_loader
        delimiter = loader.shuffle_caption_delimiter or ""
        return {
            **super().effects(),
            "data_loader.dataset.caption_column": Effect(
                loader.keep_original_captions, "keep_original_captions is false"
            ),
            "data_loader.shuffle_caption_delimiter": Effect(
                loader.keep_original_captions or any(delimiter in t for t in loader.templates()),
                "no template holds it",
            ),
        }

    def warnings(self) -> list[str]:
        """What runs as described and is likely not what its author wants."""
        found = super().warnings()
        if any(self.placeholder_token not in prompt for prompt in self.validation_prompts):
            found.append(
                f"validation_prompts without {self.placeholder_token} do not show the new word"
            )
        return found

    def estimate(self, constants: MemoryModel = PUBLISHED) -> Estimate:
        """The GPU memory this run needs."""
        vectors = self.num_vectors * (768 + 1280)
        return self._estimate(constants, trained=float(vectors), resident_encoders=True)


class SdxlFinetuneConfig(SdxlConfig):
    """An SDXL finetune: every weight of the UNet."""

    type: Literal["SDXL_FINETUNE"] = "SDXL_FINETUNE"
    """Selects this training type."""

    save_checkpoint_format: Literal["full_diffusers", "trained_only_diffusers", "single_file"] = (
        "trained_only_diffusers"
    )
    """What is published: the whole pipeline as a diffusers folder, the UNet's part of it alone, or
    the whole pipeline in one ``.safetensors`` file as InvokeAI and ComfyUI load it (not in
    invoke-training)."""

    save_dtype: WeightDtype = "float16"
    """The precision of the published weights."""

    use_ema: bool = False
    """Publish a moving average of the weights (EMA) instead of the last ones; its warmup is
    diffusers'. Takes 4 more bytes for each weight. invoke-training has none."""

    ema_decay: Decay = 0.9999
    """How much of the average is kept at each step, once it has warmed up; it acts with
    use_ema."""

    cache_text_encoder_outputs: bool = False
    """Encode captions once, ahead of training, and share the outputs with every later job. False
    keeps both text encoders on the GPU and encodes at each step."""

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

    def learning_rates(self) -> dict[str, float]:
        """Base learning rate by trained model."""
        return {"unet": self.optimizer.learning_rate}

    def effects(self) -> Effects:
        """Which options act here, of those that do not always."""
        return {
            **super().effects(),
            "ema_decay": Effect(self.use_ema, "use_ema is false"),
        }

    def estimate(self, constants: MemoryModel = PUBLISHED) -> Estimate:
        """The GPU memory this run needs."""
        return self._estimate(
            constants,
            trained=0,
            trains_unet=True,
            copies=int(self.use_ema),
            resident_encoders=not self.cache_text_encoder_outputs,
        )
