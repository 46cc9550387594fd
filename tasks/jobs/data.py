"""Data sets and data loaders, with invoke-training's names and defaults."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from tasks.buckets import Size, bucket_sizes
from tasks.jobs.base import NonNegativeInt, PositiveInt, StrictModel

# FLUX's VAE halves three times and its transformer takes 2x2 patches of the latents.
FLUX_DIVISOR = 16
# As large as the pictures that are read. Buckets are stepped through one by one at submit, so an
# unbounded side would hold up the worker that checks the job.
MOST_SIDE = 16384
Side = Annotated[int, Field(gt=0, le=MOST_SIDE, strict=True)]
NonEmpty = Annotated[str, Field(min_length=1)]


class ImageCaptionDirDatasetConfig(StrictModel):
    """A folder of images, each with a ``.txt`` caption of the same name."""

    type: Literal["IMAGE_CAPTION_DIR_DATASET"] = "IMAGE_CAPTION_DIR_DATASET"
    """Selects this kind of data set."""

    dataset_dir: NonEmpty
    """The folder, as the workers see it."""

    keep_in_memory: bool = False
    """Keep decoded images in memory through the run instead of decoding them at each use."""


class ImageCaptionJsonlDatasetConfig(StrictModel):
    """A JSONL file: one object a line, naming an image and its caption."""

    type: Literal["IMAGE_CAPTION_JSONL_DATASET"] = "IMAGE_CAPTION_JSONL_DATASET"
    """Selects this kind of data set."""

    jsonl_path: NonEmpty
    """The file, as the workers see it. Relative image paths start at its folder."""

    image_column: NonEmpty = "image"
    """The key of the image's path."""

    caption_column: NonEmpty = "text"
    """The key of the caption."""

    keep_in_memory: bool = False
    """Keep decoded images in memory through the run instead of decoding them at each use."""


class HFHubImageCaptionDatasetConfig(StrictModel):
    """A data set on the Hugging Face Hub. Not built yet: refused."""

    type: Literal["HF_HUB_IMAGE_CAPTION_DATASET"] = "HF_HUB_IMAGE_CAPTION_DATASET"
    """Selects this kind of data set."""

    dataset_name: NonEmpty
    """The data set's repository."""

    dataset_config_name: str | None = None
    """Its configuration, where it has several."""

    hf_cache_dir: str | None = None
    """Where downloads are kept."""

    image_column: NonEmpty = "image"
    """The column of the images."""

    caption_column: NonEmpty = "text"
    """The column of the captions."""

    @field_validator("type")
    @classmethod
    def _refuse(cls, value: str) -> str:
        raise ValueError(
            "Hub data sets are not built yet; "
            "use IMAGE_CAPTION_DIR_DATASET or IMAGE_CAPTION_JSONL_DATASET"
        )


ImageCaptionDatasetConfig = Annotated[
    ImageCaptionDirDatasetConfig | ImageCaptionJsonlDatasetConfig | HFHubImageCaptionDatasetConfig,
    Field(discriminator="type"),
]


class AspectRatioBucketConfig(StrictModel):
    """The set of image sizes a data set is sorted into."""

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
        if divisible_by % FLUX_DIVISOR:
            problems.append(f"must itself be a multiple of {FLUX_DIVISOR}")
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


class ImageCaptionFluxDataLoaderConfig(StrictModel):
    """How images and captions become FLUX training samples."""

    type: Literal["IMAGE_CAPTION_FLUX_DATA_LOADER"] = "IMAGE_CAPTION_FLUX_DATA_LOADER"
    """The only data loader that FLUX takes."""

    dataset: ImageCaptionDatasetConfig
    """Where the images and captions are."""

    aspect_ratio_buckets: AspectRatioBucketConfig | None = None
    """Sort images into sizes near their own aspect ratio. Null: crop all to ``resolution``."""

    resolution: Side | tuple[Side, Side] = 512
    """The size of training images in pixels: a square's side, or (height, width). With buckets,
    their sizes hold; leave this out then, or make it equal to target_resolution."""

    center_crop: bool = True
    """Crop at the centre. False: at a place drawn for each sample and step."""

    random_flip: bool = False
    """Mirror half of the samples, drawn for each sample and step."""

    caption_prefix: str | None = None
    """Put before every caption, with a space between."""

    dataloader_num_workers: NonNegativeInt = 0
    """Processes that read and decode ahead of the GPU; 0 reads in the training process."""

    @field_validator("resolution")
    @classmethod
    def _divisible(
        cls, resolution: int | tuple[int, int], info: ValidationInfo
    ) -> int | tuple[int, int]:
        sides = (resolution,) if isinstance(resolution, int) else resolution
        for side in sides:
            if side % FLUX_DIVISOR:
                below = side // FLUX_DIVISOR * FLUX_DIVISOR
                near = f"{below} or {below + FLUX_DIVISOR}" if below else str(FLUX_DIVISOR)
                raise ValueError(f"{side} is not divisible by {FLUX_DIVISOR}; use {near}")
        buckets = info.data.get("aspect_ratio_buckets")
        # The default counts as not given: invoke-training's own samples leave it out.
        if buckets is not None and resolution not in (512, buckets.target_resolution):
            raise ValueError(
                f"differs from aspect_ratio_buckets.target_resolution "
                f"({buckets.target_resolution}); make them equal"
            )
        return resolution

    def sizes(self) -> tuple[Size, ...]:
        """Every size a training image can have."""
        if self.aspect_ratio_buckets is not None:
            return self.aspect_ratio_buckets.sizes()
        if isinstance(self.resolution, int):
            return (Size(self.resolution, self.resolution),)
        height, width = self.resolution
        return (Size(width, height),)
