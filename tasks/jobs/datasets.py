"""Datasets and data loaders, with invoke-training's names and defaults."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from tasks.buckets import Size, bucket_sizes
from tasks.dataset import Sample
from tasks.strict_model import NonNegativeFloat, NonNegativeInt, PositiveInt, StrictModel

# As large as the images that are read. Buckets are stepped through one by one at submit, so an
# unbounded side would hold up the worker that checks the job.
MOST_SIDE = 16384
Side = Annotated[int, Field(gt=0, le=MOST_SIDE, strict=True)]
NonEmpty = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _without_credentials(place: str) -> str:
    """They would be kept with the job, and are of no use: none is sent."""
    _, _, rest = place.partition("://")
    if "@" in re.split(r"[/?#\\]", rest, maxsplit=1)[0]:
        raise ValueError(
            "has a user or a password in it, which is not used; let its query be signed, or the "
            "workers may read it by their own credentials"
        )
    return place


Place = Annotated[NonEmpty, AfterValidator(_without_credentials)]
# Where a template's placeholder token goes.
PLACE = "{}"


class DatasetConfig(StrictModel):
    """Where images come from."""

    has_captions: ClassVar[bool] = True
    has_masks: ClassVar[bool] = False


class ImageCaptionDirDatasetConfig(DatasetConfig):
    """A folder of images, each with a ``.txt`` caption of the same name."""

    type: Literal["IMAGE_CAPTION_DIR_DATASET"] = "IMAGE_CAPTION_DIR_DATASET"
    """Selects this kind of dataset."""

    dataset_dir: Place
    """The folder, as the workers see it, or ``s3://``, ``gs://`` or ``az://`` with bucket and
    prefix."""

    keep_in_memory: bool = False
    """Keep decoded images in memory through the run instead of decoding them at each use."""


class ImageDirDatasetConfig(DatasetConfig):
    """A folder of images without captions."""

    has_captions: ClassVar[bool] = False

    type: Literal["IMAGE_DIR_DATASET"] = "IMAGE_DIR_DATASET"
    """Selects this kind of dataset."""

    dataset_dir: Place
    """The folder, as the workers see it, or ``s3://``, ``gs://`` or ``az://`` with bucket and
    prefix."""

    keep_in_memory: bool = False
    """Keep decoded images in memory through the run instead of decoding them at each use."""


class ImageCaptionJsonlDatasetConfig(DatasetConfig):
    """A JSONL file: one object a line, naming an image and its caption."""

    has_masks: ClassVar[bool] = True

    type: Literal["IMAGE_CAPTION_JSONL_DATASET"] = "IMAGE_CAPTION_JSONL_DATASET"
    """Selects this kind of dataset."""

    jsonl_path: Place
    """The file, as the workers see it, or its ``https://``, ``s3://``, ``gs://`` or ``az://``
    address. Image paths are relative and stay below its folder."""

    image_column: NonEmpty = "image"
    """The key of the image's path."""

    caption_column: NonEmpty = "text"
    """The key of the caption."""

    mask_column: NonEmpty = "mask"
    """The key of the mask's path: a grey image of the image's size, white where the loss counts
    fully. Rows may lack it. Read with use_masks only; invoke-training has this name fixed."""

    keep_in_memory: bool = False
    """Keep decoded images in memory through the run instead of decoding them at each use."""


class HFHubImageCaptionDatasetConfig(DatasetConfig):
    """A dataset on the Hugging Face Hub, read from its parquet files; its code is never run."""

    type: Literal["HF_HUB_IMAGE_CAPTION_DATASET"] = "HF_HUB_IMAGE_CAPTION_DATASET"
    """Selects this kind of dataset."""

    dataset_name: NonEmpty
    """The dataset's repository."""

    dataset_config_name: str | None = None
    """Its configuration, where it has several."""

    hf_cache_dir: str | None = None
    """Where downloads are kept. Null: the Hub's own cache folder."""

    image_column: NonEmpty = "image"
    """The column of the images."""

    caption_column: NonEmpty = "text"
    """The column of the captions."""


class ArchiveDatasetConfig(DatasetConfig):
    """A zip, tar or tar.gz archive: of images with ``.txt`` captions, or with a JSONL file."""

    has_masks: ClassVar[bool] = True

    type: Literal["ARCHIVE"] = "ARCHIVE"
    """Selects this kind of dataset. invoke-training has none."""

    archive: Place
    """The file, as the workers see it, its ``https://``, ``s3://``, ``gs://`` or ``az://`` address,
    or an upload to the console: ``upload:`` and its id."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """The archive's SHA-256 in hex; one with another is refused. Null: not checked."""

    jsonl: NonEmpty | None = None
    """The JSONL file in it that names images and captions; image paths start at its folder. Null:
    each image has a ``.txt`` of the same name."""

    image_column: NonEmpty = "image"
    """The key of the image's path, with jsonl."""

    caption_column: NonEmpty = "text"
    """The key of the caption, with jsonl."""

    mask_column: NonEmpty = "mask"
    """The key of the mask's path, with jsonl; see IMAGE_CAPTION_JSONL_DATASET."""

    keep_in_memory: bool = False
    """Keep decoded images in memory through the run instead of decoding them at each use."""


ImageCaptionDatasetConfig = Annotated[
    ImageCaptionDirDatasetConfig
    | ImageCaptionJsonlDatasetConfig
    | HFHubImageCaptionDatasetConfig
    | ArchiveDatasetConfig,
    Field(discriminator="type"),
]
# Images whose captions, if there are any, are not used.
BareImagesConfig = Annotated[
    ImageDirDatasetConfig | ArchiveDatasetConfig, Field(discriminator="type")
]


def _folder_if_not_said(value: Any) -> Any:
    """As in invoke-training, where datasets of images alone have no discriminator."""
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
                f"end_dim ({end}) leaves no room for the other side: "
                f"at most {target**2 // divisible_by} for this target_resolution"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return divisible_by

    def sizes(self) -> tuple[Size, ...]:
        """Every bucket."""
        return bucket_sizes(self.target_resolution, self.start_dim, self.end_dim, self.divisible_by)


class FluxAspectRatioBucketConfig(AspectRatioBucketConfig):
    """The same for FLUX."""

    divisor: ClassVar[int] = 16


class DataLoaderConfig(StrictModel):
    """How images become training samples."""

    # SDXL's VAE halves three times; FLUX's transformer takes 2x2 patches of such latents too.
    divisor: ClassVar[int] = 8

    type: str
    """Selects the kind of data loader."""

    aspect_ratio_buckets: AspectRatioBucketConfig | None = None
    """Sort images into sizes near their own aspect ratio. Null: crop all to ``resolution``."""

    resolution: Side | tuple[Side, Side] = 512
    """The size of training images in pixels: a square's side, or (height, width). With buckets,
    their sizes hold; leave this out then, or make it equal to target_resolution."""

    center_crop: bool = True
    """Crop at the centre. False: at a place drawn for each sample and step."""

    random_flip: bool = False
    """Mirror half of the samples, drawn for each sample and step."""

    dataloader_num_workers: NonNegativeInt = 0
    """Processes that read and decode ahead of the GPU; 0 reads in the training process."""

    @abstractmethod
    def sources(self) -> Sequence[DatasetConfig]:
        """The datasets, in order."""

    @abstractmethod
    def caption(self, sample: Sample, chances: Sequence[float]) -> str:
        """A sample's caption.

        Args:
            sample: With its caption from the dataset.
            chances: As many draws in [0, 1) as ``caption_draws`` says.
        """

    @property
    def caption_draws(self) -> int:
        """How many draws a caption takes; 0 where it is always the same."""
        return 0

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
        # The default counts as not given: invoke-training's own samples leave it out.
        if buckets is not None and resolution not in (512, buckets.target_resolution):
            raise ValueError(
                f"differs from aspect_ratio_buckets.target_resolution "
                f"({buckets.target_resolution}); make them equal"
            )
        return resolution

    def target_size(self) -> Size:
        """The size that training aims at: the buckets' square, or that of every image."""
        if self.aspect_ratio_buckets is not None:
            side = self.aspect_ratio_buckets.target_resolution
            return Size(side, side)
        (size,) = self.sizes()
        return size

    def sizes(self) -> tuple[Size, ...]:
        """Every size a training image can have."""
        if self.aspect_ratio_buckets is not None:
            return self.aspect_ratio_buckets.sizes()
        if isinstance(self.resolution, int):
            return (Size(self.resolution, self.resolution),)
        height, width = self.resolution
        return (Size(width, height),)


class _ImageCaptionDataLoaderConfig(DataLoaderConfig):
    dataset: ImageCaptionDatasetConfig
    """Where the images and captions are."""

    caption_prefix: str | None = None
    """Put before every caption, with a space between."""

    caption_dropout: Share = 0.0
    """The share of samples trained under the blank caption, drawn for each sample and pass, so
    that the model keeps what classifier-free guidance needs. invoke-training has none."""

    @property
    def caption_draws(self) -> int:
        """One, where captions are dropped."""
        return 1 if self.caption_dropout else 0

    def sources(self) -> Sequence[DatasetConfig]:
        """The dataset."""
        return (self.dataset,)

    def caption(self, sample: Sample, chances: Sequence[float]) -> str:
        """The caption after the prefix, or none."""
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


class DreamboothSDDataLoaderConfig(DataLoaderConfig):
    """DreamBooth (Ruiz et al., 2022): images of one thing, and of its class to keep it apart."""

    type: Literal["DREAMBOOTH_SD_DATA_LOADER"] = "DREAMBOOTH_SD_DATA_LOADER"
    """Selects this kind of data loader."""

    instance_caption: NonEmpty
    """The caption of every image of instance_dataset."""

    class_caption: NonEmpty | None = None
    """The caption of every image of class_dataset; the two go together."""

    instance_dataset: Annotated[BareImagesConfig, BeforeValidator(_folder_if_not_said)]
    """Images of the thing."""

    class_dataset: Annotated[BareImagesConfig, BeforeValidator(_folder_if_not_said)] | None = None
    """Images of its class. Whichever set is smaller is repeated until there are as many of both: a
    pass sees all of both."""

    class_data_loss_weight: NonNegativeFloat = 1.0
    """The weight of their loss; that of the instance's images is 1."""

    @field_validator("class_dataset")
    @classmethod
    def _both_or_none(
        cls, value: BareImagesConfig | None, info: ValidationInfo
    ) -> BareImagesConfig | None:
        if "class_caption" in info.data and (value is None) != (info.data["class_caption"] is None):
            raise ValueError("set both class_dataset and class_caption, or neither")
        return value

    def sources(self) -> Sequence[DatasetConfig]:
        """The instance's, and that of the class where there is one."""
        return tuple(filter(None, (self.instance_dataset, self.class_dataset)))

    def caption(self, sample: Sample, chances: Sequence[float]) -> str:
        """The caption of the sample's dataset."""
        return self.instance_caption if sample.part == 0 else (self.class_caption or "")


class TextualInversionSDDataLoaderConfig(DataLoaderConfig):
    """How images become samples of a new word: templates with the word in them."""

    type: Literal["TEXTUAL_INVERSION_SD_DATA_LOADER"] = "TEXTUAL_INVERSION_SD_DATA_LOADER"
    """The only data loader that textual inversion takes."""

    dataset: Annotated[
        ImageDirDatasetConfig
        | ImageCaptionDirDatasetConfig
        | ImageCaptionJsonlDatasetConfig
        | HFHubImageCaptionDatasetConfig
        | ArchiveDatasetConfig,
        Field(discriminator="type"),
        BeforeValidator(_folder_if_not_said),
    ]
    """Where the images are, and captions with keep_original_captions."""

    caption_preset: Literal["style", "object"] | None = None
    """Built-in templates for a style or a thing. Exactly one of this and caption_templates."""

    caption_templates: tuple[str, ...] | None = None
    """Captions with ``{}`` where the placeholder token goes, such as ``a photo of {}``; one is
    drawn for each sample and pass. Exactly one of this and caption_preset."""

    keep_original_captions: bool = False
    """Put the template before the image's own caption instead of in its place."""

    shuffle_caption_delimiter: NonEmpty | None = None
    """Split captions at this, such as a comma, and put the parts in an order drawn for each
    sample and pass."""

    @property
    def caption_draws(self) -> int:
        """One for the template, and one for the order of parts."""
        return 2

    @field_validator("caption_templates")
    @classmethod
    def _hold_the_place(
        cls, templates: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        # A preset that is absent was refused by itself.
        known = "caption_preset" in info.data
        if known and (templates is None) == (info.data["caption_preset"] is None):
            raise ValueError("set exactly one of caption_templates and caption_preset")
        if templates is None:
            return None
        if not templates:
            raise ValueError("holds no template")
        bare = [template for template in templates if PLACE not in template]
        if bare:
            shown = ", ".join(repr(template) for template in bare[:5])
            raise ValueError(f"lack {PLACE}, where the placeholder token goes: {shown}")
        return templates

    @field_validator("shuffle_caption_delimiter")
    @classmethod
    def _keeps_the_place(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and delimiter in PLACE:
            raise ValueError(f"would split {PLACE}, where the placeholder token goes")
        return delimiter

    @field_validator("keep_original_captions")
    @classmethod
    def _there_are_captions(cls, value: bool, info: ValidationInfo) -> bool:
        dataset = info.data.get("dataset")
        if value and dataset is not None and not dataset.has_captions:
            raise ValueError("an IMAGE_DIR_DATASET has no captions to keep")
        return value

    def sources(self) -> Sequence[DatasetConfig]:
        """The dataset."""
        return (self.dataset,)

    def templates(self) -> tuple[str, ...]:
        """The templates that captions are drawn from."""
        if self.caption_templates is not None:
            return self.caption_templates
        return STYLE_TEMPLATES if self.caption_preset == "style" else OBJECT_TEMPLATES

    def caption(self, sample: Sample, chances: Sequence[float]) -> str:
        """A template, still with ``{}``, before the image's own caption where it is kept."""
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
    """The parts in an order that one draw in [0, 1) decides."""
    random = Random(chance)
    return random.sample(parts, len(parts))


# After the templates of Gal et al., 2022, in words of our own.
OBJECT_TEMPLATES = tuple(
    template.format(article=article, place=PLACE)
    for template in (
        "{article} photo of {place}",
        "{article} close photo of {place}",
        "{article} cropped photo of {place}",
        "{article} bright photo of {place}",
        "{article} dark photo of {place}",
        "{article} good photo of {place}",
        "{article} rendering of {place}",
        "{article} detailed picture of {place}",
        "{article} picture of one {place}",
        "{article} picture of the small {place}",
        "{article} picture of the large {place}",
    )
    for article in ("a", "the")
)
STYLE_TEMPLATES = tuple(
    f"{kind} in the style of {PLACE}"
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
