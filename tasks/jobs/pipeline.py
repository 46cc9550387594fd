"""The options that all training types share, with invoke-training's names, and their checks."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    StrictBool,
    ValidationInfo,
    field_validator,
    model_validator,
)

from routing.estimate import PUBLISHED, Estimate, MemoryModel
from tasks.dataset import Sample
from tasks.escaping import listed, quoted
from tasks.jobs.data_loaders import DataLoaderConfig
from tasks.jobs.field_metadata import (
    ActsIf,
    Affects,
    Location,
    PlainText,
    inert_options,
)
from tasks.jobs.optimizers import (
    IF_WARMING_UP,
    AdafactorOptimizerConfig,
    AdamOptimizerConfig,
    OptimizerConfig,
    ProdigyOptimizerConfig,
)
from tasks.jobs.run_warnings import Trained, rate_warnings, schedule_warnings
from tasks.jobs.trigger_word import with_trigger_word
from tasks.strict_model import (
    NO_HOME,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StrictModel,
    exactly_one,
)

WeightDtype = Literal["float32", "float16", "bfloat16"]
FrozenDtype = Annotated[WeightDtype, Affects.CACHED_TEXT, Affects.CACHE_ENTRIES]
LoraFormat = Annotated[Literal["invoke_peft", "kohya"], Affects.NO_NUMBER]
ModelSource = Annotated[
    str,
    Field(min_length=1),
    NO_HOME,
    Location.BASE_MODEL,
    Affects.CACHE_ENTRIES,
]
CacheText = Annotated[StrictBool, Affects.CACHE_ENTRIES]
LrScheduler = Annotated[
    Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ],
    ActsIf(
        lambda config: config.lr_scheduler != "constant_with_warmup" or config.lr_warmup_steps > 0,
        "without lr_warmup_steps, 'constant_with_warmup' is 'constant'",
    ),
]
LrWarmupSteps = Annotated[NonNegativeInt, IF_WARMING_UP]
# Layers have up to 3072 inputs; a rank near a layer's size trains as much as a finetune of it.
LoraRank = Annotated[int, Field(gt=0, le=1024, strict=True)]
# Far above what any card holds, or any dataset has: a larger number is a slip.
BatchSize = Annotated[int, Field(gt=0, le=1024, strict=True)]
AccumulationSteps = Annotated[int, Field(gt=0, le=10_000, strict=True)]
# The share of the needed memory above which the rank is what makes a LoRA too large.
_LARGE_ADAPTER_SHARE = 0.25
BlocksT = TypeVar("BlocksT", bound=int)
GradientCheckpointing = Annotated[bool | Literal["auto"] | BlocksT, Affects.NO_NUMBER]
Prompts = Annotated[tuple[PlainText, ...], Affects.NO_NUMBER, Affects.CACHE_ENTRIES]
IF_TEXT_ENCODER_TRAINED = ActsIf(
    lambda config: config.train_text_encoder, "train_text_encoder is false"
)
IF_VALIDATING = ActsIf(
    lambda config: bool(config.validation_prompts), "there are no validation_prompts"
)
# The linear layers of a CLIP text encoder's blocks.
CLIP_TARGETS = ("fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj")
PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
FLEET_FOLDERS = frozenset(
    {
        "audit",
        "cache",
        "captions",
        "datasets",
        "images",
        "jobs",
        "known_images",
        "records",
        "saved_datasets",
        "uploads",
    }
)
"""The folders of the store that hold what the fleet reads back: no job publishes there."""
# One event lists all images of a step in some 350 bytes each; a worker takes lines of 256 KiB.
MAX_VALIDATION_IMAGES = 256
_PARTNER = {"max_train_epochs": "max_train_steps", "save_every_n_steps": "save_every_n_epochs"}


def layers_of(names: Collection[str], known: Collection[str]) -> frozenset[str]:
    """Return the known layers whose names end with one of these names at a dot."""
    return frozenset(k for k in known if any(f".{k}".endswith(f".{name}") for name in names))


def known_names(names: tuple[str, ...], known: Collection[str], model: str) -> tuple[str, ...]:
    """Return the names, each of which ends a known layer name at a dot.

    Raises:
        ValueError: A name matches no layer, or there is no name.
    """
    parts = [name.split(".") for name in known]
    endings = {".".join(each[start:]) for each in parts for start in range(len(each))}
    unmatched = [name for name in names if name not in endings]
    if unmatched:
        raise ValueError(
            f"match no layer of {model}: {listed(unmatched)}; known are {', '.join(sorted(known))}"
        )
    if not names:
        raise ValueError("names no layer; there would be nothing to train")
    return names


def safe_weights_file(path: str | None) -> str | None:
    """Return a path that names no file of weights but a ``.safetensors`` one.

    Raises:
        ValueError: It does.
    """
    end = (path or "").lower()
    if end.endswith(".gguf"):
        raise ValueError(
            "is a GGUF file, whose weights are quantized in ways that are not read; use the "
            "model's fp16, bf16 or fp8 .safetensors file (the option quantization saves memory)"
        )
    if end.endswith(".sft"):
        raise ValueError("is a safetensors file by another ending; rename it to .safetensors")
    if end.endswith(PICKLE_ENDINGS):
        raise ValueError("is a pickle checkpoint, which can run code; use a .safetensors file")
    return path


ClipTargets = Annotated[
    tuple[PlainText, ...],
    AfterValidator(lambda names: known_names(names, CLIP_TARGETS, "the text encoder")),
]


class PipelineConfig(StrictModel):
    """A training run of any type."""

    trained: ClassVar[Trained] = Trained.LORA
    absent_options: ClassVar[dict[str, str]] = {}
    """Options of other types that this one has by another name: what to report of each."""

    type: PlainText
    """Selects the training type."""

    seed: NonNegativeInt | None = None
    """Decides every random draw of the run. Null: one is drawn at submit and recorded."""

    base_output_dir: Annotated[str | None, Location.STORE_FOLDER, Affects.NO_NUMBER] = None
    """The folder in the store under which the results are published. Null: ``outputs``."""

    report_to: Annotated[
        Literal["all", "tensorboard", "wandb", "mlflow", "comet_ml"], Affects.NO_NUMBER
    ] = "tensorboard"
    """The tracker of the run beside the job's events: ``wandb`` or ``mlflow``, with the tenant's
    secret of this name; ``all`` is each one that the tenant has a secret for. The results have a
    TensorBoard file with every value. ``comet_ml`` is refused."""

    max_train_steps: PositiveInt | None = None
    """Weight updates to make. Exactly one of this and max_train_epochs."""

    max_train_epochs: PositiveInt | None = None
    """Passes over the dataset to make. Exactly one of this and max_train_steps."""

    save_every_n_epochs: Annotated[PositiveInt | None, Affects.NO_NUMBER] = None
    """Keep a checkpoint after every n passes. Exactly one of this and save_every_n_steps."""

    save_every_n_steps: Annotated[PositiveInt | None, Affects.NO_NUMBER] = None
    """Keep a checkpoint after every n updates. Exactly one of this and save_every_n_epochs."""

    validate_every_n_epochs: Annotated[PositiveInt | None, Affects.NO_NUMBER, IF_VALIDATING] = None
    """Make validation images after every n passes. With validation_prompts, exactly one of this
    and validate_every_n_steps; without prompts at most one, which has no effect."""

    validate_every_n_steps: Annotated[PositiveInt | None, Affects.NO_NUMBER, IF_VALIDATING] = None
    """Make validation images after every n updates. With validation_prompts, exactly one of this
    and validate_every_n_epochs; without prompts at most one, which has no effect."""

    validate_at_start: Annotated[StrictBool, Affects.NO_NUMBER, IF_VALIDATING] = False
    """Make validation images before the first update, too, with the base model as it is: what they
    show is not trained. invoke-training does not have this option."""

    model: ModelSource
    """The base model: a diffusers folder, as the workers see it, a Hub id, or one
    ``.safetensors`` file with the whole model."""

    single_file_config: ModelSource | None = None
    """The diffusers folder or Hub id whose configs and tokenizers describe ``model``, if that is a
    single file. Null: the type's default model."""

    vae_model: ModelSource | None = None
    """A VAE to use instead of the base model's: a diffusers folder, a Hub id, or one
    ``.safetensors`` file, such as FLUX's ``ae.safetensors``, by diffusers' or the original names. A
    LoRA's or embedding's file does not contain it, but full_diffusers and single_file do."""

    optimizer: OptimizerConfig = AdamOptimizerConfig()
    """The optimizer and its settings."""

    lr_scheduler: LrScheduler = "constant"
    """How the learning rate moves over the run."""

    lr_warmup_steps: LrWarmupSteps = 0
    """Updates over which the rate rises from 0; every scheduler but ``constant`` uses it."""

    cache_vae_outputs: Annotated[StrictBool, Affects.CACHE_ENTRIES] = False
    """Encode images once, ahead of training, and share the latents with every later job. False
    keeps the VAE on the GPU and encodes at each step. Needs center_crop."""

    enable_cpu_offload_during_validation: Annotated[
        StrictBool, Affects.NO_NUMBER, IF_VALIDATING
    ] = False
    """Keep on the GPU only the model in use while making validation images. Slower, and takes
    less memory; it acts with validation_prompts. A quantized transformer stays on the GPU."""

    gradient_accumulation_steps: AccumulationSteps = 1
    """Batches whose gradients make one weight update."""

    weight_dtype: FrozenDtype = "bfloat16"
    """The precision of the frozen weights. Trained weights and their optimizer state are always
    float32; float16 trains with a dynamic loss scale, so that gradients do not vanish."""

    mixed_precision: Literal["no", "fp16", "bf16", "fp8"] = "no"
    """The precision of the computation; ``no`` takes weight_dtype's. Matrix products in float32 are
    rounded to TF32 on cards that have it (RTX 30xx, A100 and newer), which are then some ten times
    faster. ``fp8`` would need TransformerEngine: refused."""

    gradient_checkpointing: GradientCheckpointing[NonNegativeInt] = False
    """Recompute blocks of the denoiser in the backward pass instead of keeping their activations:
    less memory, up to 45 % more computation, the same weights bit for bit."""

    deterministic: StrictBool = True
    """Use deterministic kernels only: a repeated or resumed run ends with the same weights, bit for
    bit on the same hardware. False lets CUDA add in any order, with cuDNN's attention on Hopper
    (H100). A step then takes less time, by a tenth or so for FLUX (an estimate, not measured), and
    a resumed run differs in its last bits."""

    compile: StrictBool = False
    """Compile the denoiser's repeated blocks before the first step, which takes a minute or more:
    fused kernels make a step shorter where it does not wait for matrix products. The weights differ
    in their last bits from uncompiled ones, and repeat and resume exactly. Validation images are
    made by uncompiled blocks. invoke-training does not have this option."""

    max_checkpoints: Annotated[PositiveInt | None, Affects.NO_NUMBER] = None
    """The number of newest checkpoints to keep, at most 1000. Null keeps all of them up to that
    number. An old one is removed only after the new one is recorded."""

    max_grad_norm: PositiveFloat | None = None
    """Clip the gradients' norm to this. Null: no clipping."""

    validation_prompts: Prompts = ()
    """Prompts to make images from during the run: with trigger_word, without caption_prefix. The
    images have the training resolution and are published in ``validation/``."""

    num_validation_images_per_prompt: Annotated[PositiveInt, Affects.NO_NUMBER, IF_VALIDATING] = 4
    """Images for each of validation_prompts. The noise they start from is decided by seed, prompt
    and number, so that the images of different steps compare."""

    train_batch_size: BatchSize = 4
    """Samples of one forward pass."""

    use_masks: StrictBool = False
    """Weight the loss by the dataset's masks, in latent space: white counts fully, black not at
    all. Images without a mask count fully. Only JSONL datasets have masks."""

    blocks: ClassVar[int]
    """The blocks of the denoiser that gradient checkpointing can recompute."""

    @property
    def checkpointed_blocks(self) -> int:
        """The number of recomputed blocks; every block with ``auto`` until submit decides."""
        chosen = self.gradient_checkpointing
        if chosen is True or chosen == "auto":
            return self.blocks
        return int(chosen)

    def fitted(self, limit_gib: float, constants: MemoryModel = PUBLISHED) -> Self:
        """Return the config with ``auto`` replaced by the fewest blocks to recompute.

        Args:
            limit_gib: The GPU memory that the run may need; if recomputing all blocks needs more,
                all are recomputed.
            constants: The constants of the estimate.
        """
        if self.gradient_checkpointing != "auto":
            return self
        choices = [
            self.model_copy(update={"gradient_checkpointing": blocks})
            for blocks in range(self.blocks + 1)
        ]
        fitting = (it for it in choices if it.estimate(constants).needed_gib <= limit_gib)
        return next(fitting, choices[-1])

    def savings(self) -> list[str]:
        """Return the options that save GPU memory and are not set yet."""
        trains_text = getattr(self, "train_text_encoder", False)
        can_cache = "cache_text_encoder_outputs" in type(self).model_fields and not trains_text
        estimate = self.estimate()
        adapter_gib = sum(estimate.parts()[name] for name in ("adapters", "optimizer"))
        has_large_rank = adapter_gib > _LARGE_ADAPTER_SHARE * estimate.needed_gib
        saves = {
            "a smaller lora_rank_dim": "lora_rank_dim" in type(self).model_fields
            and has_large_rank,
            "gradient_checkpointing true": self.checkpointed_blocks < self.blocks,
            "cache_text_encoder_outputs true": can_cache and not self.caches_text,
            "a smaller train_batch_size": self.train_batch_size > 1,
            "a smaller resolution": True,
        }
        return [option for option, applies in saves.items() if applies]

    @property
    @abstractmethod
    def loader(self) -> DataLoaderConfig:
        """The data loader."""

    @property
    @abstractmethod
    def caches_text(self) -> bool:
        """Whether text-encoder outputs are cached."""

    @property
    @abstractmethod
    def text_tokens(self) -> int:
        """Tokens of a caption that the text encoders see."""

    @property
    def trains_adapter(self) -> bool:
        """Whether the result is added to a base model, as a LoRA or an embedding is."""
        return True

    @property
    def trigger_phrase(self) -> str | None:
        """What a prompt needs to show what was trained."""
        return self._trigger_word or self.loader.trigger_phrase

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """What the validation images are made from: validation_prompts with the trigger word."""
        return tuple(with_trigger_word(self._trigger_word, it) for it in self.validation_prompts)

    def caption(self, sample: Sample, chances: Sequence[float]) -> str:
        """Return the caption that a sample is trained under, with the trigger word.

        A caption that was dropped stays blank, and images of a class never get the word.

        Args:
            sample: The sample, with its caption from the dataset.
            chances: See ``DataLoaderConfig.caption``.
        """
        caption = self.loader.caption(sample, chances)
        if sample.part or not caption:
            return caption
        return with_trigger_word(self._trigger_word, caption)

    @property
    def _trigger_word(self) -> str | None:
        word: str | None = getattr(self, "trigger_word", None)
        return word

    @abstractmethod
    def learning_rates(self) -> dict[str, float]:
        """Return the base learning rate of each trained model, such as ``unet``."""

    @abstractmethod
    def estimate(self, constants: MemoryModel = PUBLISHED) -> Estimate:
        """Return the GPU memory this run needs."""

    def reader_warnings(self) -> list[str]:
        """Return a sentence for each program that cannot read the result, or reads it wrongly.

        docs/guides/files.md has the table of what each program reads.
        """
        return []

    def batches_per_epoch(self, sizes: Collection[int]) -> int:
        """Return the batches of an epoch; no batch has images of two sizes.

        Args:
            sizes: The number of images of each training size.
        """
        return sum(-(-count // self.train_batch_size) for count in sizes)

    def steps_per_epoch(self, sizes: Collection[int]) -> int:
        """Return the weight updates of an epoch, given the number of images of each size."""
        return -(-self.batches_per_epoch(sizes) // self.gradient_accumulation_steps)

    def run_shape(self) -> dict[str, Any]:
        """Return the fields of ``RunShape`` that all types have."""
        dtypes = {"no": self.weight_dtype, "fp16": "float16", "bf16": "bfloat16"}
        return {
            "pixels": max(size.pixels for size in self.loader.sizes()),
            "batch_size": self.train_batch_size,
            "weight_dtype": self.weight_dtype,
            "compute_dtype": dtypes[self.mixed_precision],
            "checkpointed_blocks": self.checkpointed_blocks,
            "text_encoders_resident": not self.caches_text,
            "vae_resident": not self.cache_vae_outputs,
            "accumulates": self.gradient_accumulation_steps > 1,
            "optimizer_bytes": self.optimizer.state_bytes,
            "validation_pixels": self.loader.target_size().pixels if self.validation_prompts else 0,
        }

    def warnings(self) -> list[str]:
        """Return a sentence for each option that is valid and likely not what its author wants."""
        found = [*inert_options(self), *self.reader_warnings()]
        return [*found, *schedule_warnings(self), *rate_warnings(self)]

    @field_validator("base_output_dir")
    @classmethod
    def _inside_the_store(cls, folder: str | None) -> str | None:
        if folder is None:
            return None
        path = PurePosixPath(folder)
        if path.is_absolute() or ".." in path.parts or "\\" in folder or not path.parts:
            raise ValueError("must be a relative folder inside the store, without '..'")
        if path.parts[0] in FLEET_FOLDERS:
            raise ValueError(f"must not be in {path.parts[0]!r}, a folder of the fleet itself")
        return str(path)

    @field_validator("report_to")
    @classmethod
    def _known_tracker(cls, value: str) -> str:
        if value == "comet_ml":
            raise ValueError("must be tensorboard, wandb, mlflow or all; Comet is not supported")
        return value

    @field_validator("max_train_epochs", "save_every_n_steps")
    @classmethod
    def _exactly_one(cls, value: int | None, info: ValidationInfo) -> int | None:
        other = _PARTNER[str(info.field_name)]
        if other in info.data and (value is None) == (info.data[other] is None):
            raise exactly_one(str(info.field_name), other)
        return value

    @field_validator("validate_every_n_steps")
    @classmethod
    def _at_most_one(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("validate_every_n_epochs") is not None:
            raise ValueError("set at most one of validate_every_n_steps and _epochs")
        return value

    @field_validator("model", "vae_model")
    @classmethod
    def _no_other_file(cls, model: str | None) -> str | None:
        return safe_weights_file(model)

    @field_validator("single_file_config")
    @classmethod
    def _describes_a_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        # A model that is absent here was refused itself.
        model = info.data.get("model")
        if value is not None and model is not None and not model.endswith(".safetensors"):
            raise ValueError("acts only if model is a single .safetensors file; leave it out")
        if value is not None and value.lower().endswith((".safetensors", *PICKLE_ENDINGS)):
            raise ValueError("must be a diffusers folder or a Hub id")
        return value

    @field_validator("optimizer", mode="before")
    @classmethod
    def _default_to_adamw(cls, value: Any) -> Any:
        # As in invoke-training, whose union has no discriminator.
        if isinstance(value, dict) and "optimizer_type" not in value:
            return {"optimizer_type": "AdamW", **value}
        return value

    @field_validator("mixed_precision")
    @classmethod
    def _refuse_fp8(cls, value: str) -> str:
        if value == "fp8":
            raise ValueError("computing in fp8 needs TransformerEngine; use no, fp16 or bf16")
        return value

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _known_blocks(cls, value: Any) -> Any:
        is_number = type(value) is int and 0 <= value <= cls.blocks
        if isinstance(value, bool) or value == "auto" or is_number:
            return value
        raise ValueError(
            f"must be true, false, 'auto' or the number of blocks to recompute, 0 to {cls.blocks} "
            f"(got {quoted(value)})"
        )

    @field_validator("validation_prompts")
    @classmethod
    def _with_an_interval(cls, prompts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        intervals = ("validate_every_n_steps", "validate_every_n_epochs")
        # An interval that is absent here was refused itself.
        if prompts and all(info.data.get(name, 0) is None for name in intervals):
            raise ValueError("set one of validate_every_n_steps and validate_every_n_epochs too")
        return prompts

    @field_validator("num_validation_images_per_prompt")
    @classmethod
    def _not_too_many(cls, number: int, info: ValidationInfo) -> int:
        prompts = len(info.data.get("validation_prompts", ()))
        if prompts * number > MAX_VALIDATION_IMAGES:
            raise ValueError(
                f"{prompts} prompts of {number} images each are {prompts * number} images at a "
                f"time; the maximum is {MAX_VALIDATION_IMAGES}"
            )
        return number

    @field_validator("data_loader", check_fields=False)
    @classmethod
    def _fits_the_options(cls, loader: DataLoaderConfig, info: ValidationInfo) -> DataLoaderConfig:
        problems = []
        if info.data.get("cache_vae_outputs") and not loader.center_crop:
            problems.append(
                "center_crop false draws another crop at each step, which cannot be cached; "
                "set center_crop true or cache_vae_outputs false"
            )
        if info.data.get("use_masks") and not any(source.has_masks for source in loader.sources()):
            problems.append("use_masks needs an IMAGE_CAPTION_JSONL_DATASET, which can have masks")
        if problems:
            raise ValueError("; ".join(problems))
        return loader

    @model_validator(mode="before")
    @classmethod
    def _keep_relative_rates(cls, values: Any) -> Any:
        """With Prodigy or Adafactor, make each model's learning rate null unless it is given.

        The models' default rates are meant for AdamW; these two optimizers' rates are relative.
        """
        if not isinstance(values, dict):
            return values
        given = values.get("optimizer")
        kind = given.get("optimizer_type") if isinstance(given, dict) else type(given)
        relative = ("Prodigy", ProdigyOptimizerConfig, "Adafactor", AdafactorOptimizerConfig)
        if kind not in relative:
            return values
        rates = [name for name in cls.model_fields if name.endswith("_learning_rate")]
        return {**dict.fromkeys(rates), **values}


def not_cached_if_trained(cached: bool, info: ValidationInfo) -> bool:
    """Return cache_text_encoder_outputs, which must be false if the text encoder is trained."""
    if cached and info.data.get("train_text_encoder"):
        raise ValueError("a trained text encoder's outputs change; set train_text_encoder false")
    return cached


def one_prodigy_rate(rate: float | None, info: ValidationInfo, *, trains: str) -> float | None:
    """Return a model's rate, which must equal the text encoder's with Prodigy.

    Prodigy finds one step size for all models.

    Args:
        rate: The model's own rate, checked after the text encoder's.
        info: The fields before it.
        trains: The name of the field that decides whether the model is trained.

    Raises:
        ValueError: Both models are trained by Prodigy, with different rates.
    """
    optimizer = info.data.get("optimizer")
    both = info.data.get(trains) and info.data.get("train_text_encoder")
    if not isinstance(optimizer, ProdigyOptimizerConfig) or not both:
        return rate
    other = info.data.get("text_encoder_learning_rate", rate)
    own, other = (r or optimizer.learning_rate for r in (rate, other))
    if own != other:
        raise ValueError(
            f"Prodigy takes one rate for all models, and gets {own:g} here and {other:g} for the "
            "text encoder; make them equal"
        )
    return rate
