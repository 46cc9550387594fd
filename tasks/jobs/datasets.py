"""Datasets: where a job's images and captions come from, with invoke-training's option names."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, StrictBool

from tasks.jobs.field_metadata import HUB_ID, ActsIf, Location, NonEmptyText, PlainText
from tasks.strict_model import NO_HOME, SHA256, StrictModel


def _without_credentials(source: str) -> str:
    """Refuse credentials in an address: they would be stored with the job, and are never sent."""
    _, _, rest = source.partition("://")
    if "@" in re.split(r"[/?#\\]", rest, maxsplit=1)[0]:
        raise ValueError(
            "has a user or a password in it, which is not used; use a presigned URL, or give the "
            "workers credentials of their own"
        )
    return source


def _hub_id(name: str) -> str:
    if not HUB_ID.fullmatch(name):
        raise ValueError(
            "is not a Hub id (owner/name); for a folder, use the type IMAGE_CAPTION_DIR_DATASET"
        )
    return name


NonEmpty = Annotated[str, Field(min_length=1), NO_HOME]
DatasetSource = Annotated[NonEmpty, AfterValidator(_without_credentials), Location.DATASET]
ArchiveSource = Annotated[NonEmpty, AfterValidator(_without_credentials), Location.ARCHIVE]
KeepInMemory = Annotated[
    StrictBool,
    ActsIf(
        lambda config: not config.cache_vae_outputs,
        "with cache_vae_outputs no image is decoded",
    ),
]
MaskColumn = Annotated[NonEmptyText, ActsIf(lambda config: config.use_masks, "use_masks is false")]
CaptionColumn = Annotated[
    NonEmptyText,
    ActsIf(lambda config: config.loader.reads_captions, "keep_original_captions is false"),
]


class DatasetConfig(StrictModel):
    """Where images come from."""

    has_captions: ClassVar[bool] = True
    has_masks: ClassVar[bool] = False


class ImageCaptionDirDatasetConfig(DatasetConfig):
    """A folder of images, each with a ``.txt`` caption of the same name."""

    type: Literal["IMAGE_CAPTION_DIR_DATASET"] = "IMAGE_CAPTION_DIR_DATASET"
    """Selects this kind of dataset."""

    dataset_dir: DatasetSource
    """The folder, as the workers see it, or ``s3://``, ``gs://`` or ``az://`` with bucket and
    prefix."""

    keep_in_memory: KeepInMemory = False
    """Keep decoded images in memory through the run instead of decoding them at each use."""


class ImageDirDatasetConfig(DatasetConfig):
    """A folder of images without captions."""

    has_captions: ClassVar[bool] = False

    type: Literal["IMAGE_DIR_DATASET"] = "IMAGE_DIR_DATASET"
    """Selects this kind of dataset."""

    dataset_dir: DatasetSource
    """The folder, as the workers see it, or ``s3://``, ``gs://`` or ``az://`` with bucket and
    prefix."""

    keep_in_memory: KeepInMemory = False
    """Keep decoded images in memory through the run instead of decoding them at each use."""


class ImageCaptionJsonlDatasetConfig(DatasetConfig):
    """A JSONL file: one object a line, naming an image and its caption."""

    has_masks: ClassVar[bool] = True

    type: Literal["IMAGE_CAPTION_JSONL_DATASET"] = "IMAGE_CAPTION_JSONL_DATASET"
    """Selects this kind of dataset."""

    jsonl_path: DatasetSource
    """The file, as the workers see it, or its ``https://``, ``s3://``, ``gs://`` or ``az://``
    address. Image paths are relative and stay below its folder."""

    image_column: NonEmptyText = "image"
    """The key of the image's path."""

    caption_column: CaptionColumn = "text"
    """The key of the caption."""

    mask_column: MaskColumn = "mask"
    """The key of the mask's path: an image of the image's size, white where the loss counts fully;
    an alpha channel that varies is the mask, opaque where the loss counts fully. Rows may lack it.
    Read with use_masks only; invoke-training has this name fixed."""

    keep_in_memory: KeepInMemory = False
    """Keep decoded images in memory through the run instead of decoding them at each use."""


class HFHubImageCaptionDatasetConfig(DatasetConfig):
    """A dataset on the Hugging Face Hub, read from its parquet files; its code is never run."""

    type: Literal["HF_HUB_IMAGE_CAPTION_DATASET"] = "HF_HUB_IMAGE_CAPTION_DATASET"
    """Selects this kind of dataset."""

    dataset_name: Annotated[str, AfterValidator(_hub_id), Location.HUB_DATASET]
    """The dataset's repository."""

    dataset_config_name: PlainText | None = None
    """The dataset's configuration, if it has several."""

    hf_cache_dir: Annotated[str, NO_HOME, Location.CACHE_FOLDER] | None = None
    """The folder that keeps downloads. Null: the Hub's own cache folder."""

    image_column: NonEmptyText = "image"
    """The column of the images."""

    caption_column: CaptionColumn = "text"
    """The column of the captions."""


class ArchiveDatasetConfig(DatasetConfig):
    """A zip, tar or tar.gz archive: of images with ``.txt`` captions, or with a JSONL file."""

    has_masks: ClassVar[bool] = True

    type: Literal["ARCHIVE"] = "ARCHIVE"
    """Selects this kind of dataset. invoke-training has none."""

    archive: ArchiveSource
    """The file, as the workers see it, its ``https://``, ``s3://``, ``gs://`` or ``az://`` address,
    an upload to the console (``upload:`` and its id), or a saved dataset (``dataset:`` and its id),
    whose present images the job then has for good."""

    sha256: Annotated[str, Field(pattern=SHA256), Location.NONE] | None = None
    """The archive's SHA-256 in hex; an archive with another one is refused. Null: not checked."""

    jsonl: NonEmptyText | None = None
    """The JSONL file in the archive that names images and captions; image paths start at its
    folder. Null: each image has a ``.txt`` of the same name."""

    image_column: NonEmptyText = "image"
    """The key of the image's path, with jsonl."""

    caption_column: CaptionColumn = "text"
    """The key of the caption, with jsonl."""

    mask_column: MaskColumn = "mask"
    """The key of the mask's path, with jsonl; see IMAGE_CAPTION_JSONL_DATASET."""

    keep_in_memory: KeepInMemory = False
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
