"""Data loaders: how images and captions become training samples, with invoke-training's names."""

from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo, field_validator

from tasks.buckets import Size, bucket_sizes
from tasks.dataset import Sample
from tasks.escaping import listed, quoted
from tasks.jobs.datasets import (
    ArchiveDatasetConfig,
    BareImagesConfig,
    DatasetConfig,
    HFHubImageCaptionDatasetConfig,
    ImageCaptionDatasetConfig,
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
    ImageDirDatasetConfig,
)
from tasks.jobs.field_metadata import ActsIf, Affects, NonEmptyText, PlainText
from tasks.strict_model import (
    NO_BOOLEAN,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    StrictModel,
    exactly_one,
)

PLACEHOLDER = "{}"
"""Where the placeholder token goes in a caption template."""
# As large as the images that are read. The process that checks a job steps through the buckets one
# by one, so an unbounded side would block it.
MAX_SIDE = 16384
Side = Annotated[int, Field(gt=0, le=MAX_SIDE, strict=True)]


def _resolution(value: Any) -> Any:
    """Refuse what is neither a whole number nor two, with both right forms."""
    sides = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if any(type(side) is not int for side in sides):
        raise ValueError(
            "must be one whole number, such as 768 for a square of 768 pixels, or "
            f"[height, width], such as [768, 1024] (got {quoted(value)})"
        )
    return value


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_BOOLEAN]

# After the templates of Gal et al., 2022, in our own words.
OBJECT_TEMPLATES = tuple(
    template.format(article=article, thing=PLACEHOLDER)
    for template in (
        "{article} photo of {thing}",
        "{article} close photo of {thing}",
        "{article} cropped photo of {thing}",
        "{article} bright photo of {thing}",
        "{article} dark photo of {thing}",
        "{article} good photo of {thing}",
        "{article} rendering of {thing}",
        "{article} detailed picture of {thing}",
        "{article} picture of one {thing}",
        "{article} picture of the small {thing}",
        "{article} picture of the large {thing}",
    )
    for article in ("a", "the")
)
STYLE_TEMPLATES = tuple(
    f"{kind} in the style of {PLACEHOLDER}"
    for kind in (
        "a painting",
        "the painting",
        "a picture",
        "an image",
        "a photo",
        "a drawing",
        "a sketch",
        "a rendering",
        "a digital work",
        "a detailed painting",
        "a close painting",
        "a bright painting",
        "a dark painting",
        "a small painting",
        "a large painting",
        "a good painting",
    )
)


def _default_to_folder(value: Any) -> Any:
    """Take a dataset without a type for a folder of images, as invoke-training does."""
    if isinstance(value, dict) and "type" not in value:
        return {"type": "IMAGE_DIR_DATASET", **value}
    return value


class AspectRatioBucketConfig(StrictModel):
    """The set of image sizes a dataset is sorted into."""

    divisor: ClassVar[int] = 8

    target_resolution: Side
    """Each bucket's area comes close to this side's square, in pixels, and never above it."""

    start_dim: Side
    """The shortest side stepped through, in pixels."""

    end_dim: Side
    """The longest side stepped through, in pixels."""

    divisible_by: PositiveInt
    """Every side is a multiple of this many pixels."""

    @field_validator("end_dim")
    @classmethod
    def _ordered(cls, end_dim: int, info: ValidationInfo) -> int:
        start_dim = info.data.get("start_dim")
        if start_dim is not None and end_dim < start_dim:
            raise ValueError(f"must be at least start_dim ({start_dim})")
        return end_dim

    @field_validator("divisible_by")
    @classmethod
    def _divides(cls, divisible_by: int, info: ValidationInfo) -> int:
        problems = [
            f"{name} ({info.data[name]}) is not a multiple of it"
            for name in ("target_resolution", "start_dim", "end_dim")
            if info.data.get(name, 0) % divisible_by
        ]
        if divisible_by % cls.divisor:
            problems.append(f"must itself be a multiple of {cls.divisor}")
        target, end = info.data.get("target_resolution"), info.data.get("end_dim")
        if target and end and target**2 // end < divisible_by:
            problems.append(
                f"end_dim ({end}) leaves no pixels for the other side; the maximum for this "
                f"target_resolution is {target**2 // divisible_by}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return divisible_by

    def sizes(self) -> tuple[Size, ...]:
        """Return every bucket."""
        return bucket_sizes(self.target_resolution, self.start_dim, self.end_dim, self.divisible_by)


class FluxAspectRatioBucketConfig(AspectRatioBucketConfig):
    """The set of image sizes for FLUX."""

    divisor: ClassVar[int] = 16


class DataLoaderConfig(StrictModel):
    """How images become training samples."""

    # SDXL's VAE halves three times; FLUX's transformer takes 2x2 patches of such latents too.
    divisor: ClassVar[int] = 8

    type: str
    """Selects the kind of data loader."""

    aspect_ratio_buckets: AspectRatioBucketConfig | None = None
    """Sort images into sizes near their own aspect ratio. Null: crop all to ``resolution``."""

    resolution: Annotated[
        Side | tuple[Side, Side],
        BeforeValidator(_resolution),
        ActsIf(
            lambda config: config.loader.resolution_acts, "aspect_ratio_buckets decide the sizes"
        ),
    ] = 512
    """The size of training images in pixels: a square's side, or (height, width). With buckets,
    their sizes apply; leave this out then, or make it equal to target_resolution."""

    center_crop: StrictBool = True
    """Crop at the center. False: at a position drawn for each sample and step."""

    random_flip: Annotated[StrictBool, Affects.CACHE_ENTRIES] = False
    """Mirror half of the samples, drawn for each sample and step."""

    dataloader_num_workers: Annotated[NonNegativeInt, Field(le=256), Affects.NO_NUMBER] = 0
    """Processes that read and decode ahead of the GPU; 0 reads in the training process."""

    @abstractmethod
    def sources(self) -> Sequence[DatasetConfig]:
        """Return the datasets, in the order of ``Sample.part``."""

    def loss_weight(self, part: int) -> float:
        """Return the weight of the loss of samples from the dataset ``part`` of ``sources``."""
        return 1.0

    @abstractmethod
    def caption(self, sample: Sample, chances: Sequence[float]) -> str:
        """Return the caption that a sample is trained under.

        Args:
            sample: The sample, with its caption from the dataset.
            chances: ``caption_draws`` random numbers in [0, 1).
        """

    @property
    def trigger_phrase(self) -> str | None:
        """What every caption contains, and a prompt needs to show what was trained."""
        return None

    @property
    def caption_draws(self) -> int:
        """The number of random draws a caption takes; 0 if it is always the same."""
        return 0

    @property
    def reads_captions(self) -> bool:
        """Whether the dataset's captions are used."""
        return True

    @property
    def resolution_acts(self) -> bool:
        """Whether ``resolution`` decides the sizes, or agrees with the buckets that do."""
        buckets = self.aspect_ratio_buckets
        return buckets is None or self.resolution == buckets.target_resolution

    @field_validator("resolution")
    @classmethod
    def _divisible(
        cls, resolution: int | tuple[int, int], info: ValidationInfo
    ) -> int | tuple[int, int]:
        sides = (resolution,) if isinstance(resolution, int) else resolution
        for side in sides:
            if side % cls.divisor:
                below = side // cls.divisor * cls.divisor
                near = f"{below} or {below + cls.divisor}" if below else str(cls.divisor)
                raise ValueError(f"{side} is not divisible by {cls.divisor}; use {near}")
        buckets = info.data.get("aspect_ratio_buckets")
        # The default counts as absent: invoke-training's own samples leave it out.
        if buckets is not None and resolution not in (512, buckets.target_resolution):
            raise ValueError(
                f"differs from aspect_ratio_buckets.target_resolution "
                f"({buckets.target_resolution}); make them equal"
            )
        return resolution

    def target_size(self) -> Size:
        """Return the size that training aims at: the buckets' square, or that of every image."""
        if self.aspect_ratio_buckets is not None:
            side = self.aspect_ratio_buckets.target_resolution
            return Size(side, side)
        (size,) = self.sizes()
        return size

    def sizes(self) -> tuple[Size, ...]:
        """Return every size a training image can have."""
        if self.aspect_ratio_buckets is not None:
            return self.aspect_ratio_buckets.sizes()
        if isinstance(self.resolution, int):
            return (Size(self.resolution, self.resolution),)
        height, width = self.resolution
        return (Size(width, height),)


class _ImageCaptionDataLoaderConfig(DataLoaderConfig):
    """How images with captions become training samples."""

    dataset: Annotated[ImageCaptionDatasetConfig, Affects.NO_NUMBER]
    """The images and captions."""

    caption_prefix: Annotated[PlainText, Affects.CACHE_ENTRIES] | None = None
    """Text before every caption, with a space between."""

    caption_dropout: Share = 0.0
    """The share of samples trained under the blank caption, drawn for each sample and pass, so
    that the model keeps what classifier-free guidance needs. invoke-training has none."""

    @property
    def trigger_phrase(self) -> str | None:
        """The prefix of all captions."""
        return self.caption_prefix

    @property
    def caption_draws(self) -> int:
        """One, if captions are dropped."""
        return 1 if self.caption_dropout else 0

    def sources(self) -> Sequence[DatasetConfig]:
        """Return the dataset."""
        return (self.dataset,)

    def caption(self, sample: Sample, chances: Sequence[float]) -> str:
        """Return the caption after the prefix, or the blank one."""
        if chances and chances[0] < self.caption_dropout:
            return ""
        prefix = "" if self.caption_prefix is None else f"{self.caption_prefix} "
        return prefix + sample.caption


class ImageCaptionFluxDataLoaderConfig(_ImageCaptionDataLoaderConfig):
    """How images and captions become FLUX training samples."""

    divisor: ClassVar[int] = 16

    type: Literal["IMAGE_CAPTION_FLUX_DATA_LOADER"] = "IMAGE_CAPTION_FLUX_DATA_LOADER"
    """The only data loader that FLUX takes."""

    aspect_ratio_buckets: FluxAspectRatioBucketConfig | None = None
    """Sort images into sizes near their own aspect ratio. Null: crop all to ``resolution``."""


class ImageCaptionSDDataLoaderConfig(_ImageCaptionDataLoaderConfig):
    """How images and captions become SDXL training samples."""

    type: Literal["IMAGE_CAPTION_SD_DATA_LOADER"] = "IMAGE_CAPTION_SD_DATA_LOADER"
    """Selects this kind of data loader."""


BareImages = Annotated[BareImagesConfig, BeforeValidator(_default_to_folder)]


class DreamboothSDDataLoaderConfig(DataLoaderConfig):
    """DreamBooth (Ruiz et al., 2022): images of one thing, and of its class to keep it apart."""

    type: Literal["DREAMBOOTH_SD_DATA_LOADER"] = "DREAMBOOTH_SD_DATA_LOADER"
    """Selects this kind of data loader."""

    instance_caption: Annotated[NonEmptyText, Affects.CACHE_ENTRIES]
    """The caption of every image of instance_dataset."""

    class_caption: Annotated[NonEmptyText, Affects.CACHE_ENTRIES] | None = None
    """The caption of every image of class_dataset; the two go together."""

    instance_dataset: Annotated[BareImages, Affects.NO_NUMBER]
    """Images of the thing."""

    class_dataset: Annotated[BareImages | None, Affects.NO_NUMBER] = None
    """Images of its class. The smaller of the two datasets is repeated until both have the same
    number of images: a pass sees all of both."""

    class_data_loss_weight: Annotated[
        NonNegativeFloat,
        ActsIf(lambda config: config.loader.class_dataset is not None, "there is no class_dataset"),
    ] = 1.0
    """The weight of the loss on the class's images; that on the instance's images is 1."""

    @field_validator("class_dataset")
    @classmethod
    def _both_or_none(
        cls, value: BareImagesConfig | None, info: ValidationInfo
    ) -> BareImagesConfig | None:
        if "class_caption" in info.data and (value is None) != (info.data["class_caption"] is None):
            raise ValueError("set both class_dataset and class_caption, or neither")
        return value

    @property
    def trigger_phrase(self) -> str | None:
        """The caption of the thing."""
        return self.instance_caption

    def sources(self) -> Sequence[DatasetConfig]:
        """Return the instance's dataset, and the class's if there is one."""
        return tuple(filter(None, (self.instance_dataset, self.class_dataset)))

    def loss_weight(self, part: int) -> float:
        """Return 1 for the instance's images, ``class_data_loss_weight`` for the class's."""
        return self.class_data_loss_weight if part == 1 else 1.0

    def caption(self, sample: Sample, chances: Sequence[float]) -> str:
        """Return the caption of the sample's dataset."""
        return self.instance_caption if sample.part == 0 else (self.class_caption or "")


class TextualInversionSDDataLoaderConfig(DataLoaderConfig):
    """How images become samples of a new word: by caption templates with the word in them."""

    type: Literal["TEXTUAL_INVERSION_SD_DATA_LOADER"] = "TEXTUAL_INVERSION_SD_DATA_LOADER"
    """The only data loader that textual inversion takes."""

    dataset: Annotated[
        ImageDirDatasetConfig
        | ImageCaptionDirDatasetConfig
        | ImageCaptionJsonlDatasetConfig
        | HFHubImageCaptionDatasetConfig
        | ArchiveDatasetConfig,
        Field(discriminator="type"),
        BeforeValidator(_default_to_folder),
        Affects.NO_NUMBER,
    ]
    """The images, and their captions with keep_original_captions."""

    caption_preset: Literal["style", "object"] | None = None
    """Built-in templates for a style or a thing. Exactly one of this and caption_templates."""

    caption_templates: tuple[PlainText, ...] | None = None
    """Captions with ``{}`` where the placeholder token goes, such as ``a photo of {}``; one is
    drawn for each sample and pass. Exactly one of this and caption_preset."""

    keep_original_captions: StrictBool = False
    """Put the template before the image's own caption, instead of replacing the caption."""

    shuffle_caption_delimiter: Annotated[
        NonEmptyText | None,
        ActsIf(lambda config: config.loader.delimiter_acts, "no template contains it"),
    ] = None
    """Split captions at this, such as a comma, and put the parts in an order drawn for each
    sample and pass."""

    @property
    def caption_draws(self) -> int:
        """One for the template, and one for the order of parts."""
        return 2

    @field_validator("caption_templates")
    @classmethod
    def _contain_the_placeholder(
        cls, templates: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        # A preset that is absent here was refused itself.
        known = "caption_preset" in info.data
        if known and (templates is None) == (info.data["caption_preset"] is None):
            raise exactly_one("caption_templates", "caption_preset")
        if templates is None:
            return None
        if not templates:
            raise ValueError("has no template")
        bare = [template for template in templates if PLACEHOLDER not in template]
        if bare:
            examples = listed(list(map(repr, bare)))
            raise ValueError(f"lack {PLACEHOLDER}, where the placeholder token goes: {examples}")
        return templates

    @field_validator("shuffle_caption_delimiter")
    @classmethod
    def _keeps_the_placeholder(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and delimiter in PLACEHOLDER:
            raise ValueError(f"would split {PLACEHOLDER}, where the placeholder token goes")
        return delimiter

    @field_validator("keep_original_captions")
    @classmethod
    def _has_captions(cls, value: bool, info: ValidationInfo) -> bool:
        dataset = info.data.get("dataset")
        if value and dataset is not None and not dataset.has_captions:
            raise ValueError("an IMAGE_DIR_DATASET has no captions to keep")
        return value

    @property
    def reads_captions(self) -> bool:
        """Whether the dataset's captions are used."""
        return self.keep_original_captions

    @property
    def delimiter_acts(self) -> bool:
        """Whether ``shuffle_caption_delimiter`` may split a caption."""
        delimiter = self.shuffle_caption_delimiter or ""
        return self.keep_original_captions or any(
            delimiter in template for template in self.templates()
        )

    def sources(self) -> Sequence[DatasetConfig]:
        """Return the dataset."""
        return (self.dataset,)

    def templates(self) -> tuple[str, ...]:
        """Return the templates that captions are drawn from."""
        if self.caption_templates is not None:
            return self.caption_templates
        return STYLE_TEMPLATES if self.caption_preset == "style" else OBJECT_TEMPLATES

    def caption(self, sample: Sample, chances: Sequence[float]) -> str:
        """Return a template, still with ``{}``, and the image's own caption if it is kept."""
        template, order = chances
        templates = self.templates()
        caption = templates[int(template * len(templates))]
        if self.keep_original_captions:
            caption = f"{caption} {sample.caption}"
        if self.shuffle_caption_delimiter is None:
            return caption
        parts = caption.split(self.shuffle_caption_delimiter)
        return self.shuffle_caption_delimiter.join(_permuted(parts, order))


def _permuted(parts: list[str], chance: float) -> list[str]:
    """Return the parts in an order that one random number in [0, 1) decides."""
    random = Random(chance)
    return random.sample(parts, len(parts))
