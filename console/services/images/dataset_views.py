"""Saved datasets as pages and the API show them."""

from datetime import datetime

from console.views import DatasetView, ImageView, View
from tasks.data.stored_datasets import StoredDataset


class SavedDatasetView(View):
    """A saved dataset."""

    id: str
    name: str
    tenant: str
    images: int
    """Number of images."""
    size: int
    """Size of the images in bytes."""
    upload: str
    """Id of the upload with the present images. It is kept as long as it is the current one."""
    revision: int
    """Grows with each change of the images or captions."""
    created_at: datetime
    updated_at: datetime

    @property
    def source(self) -> str:
        """Name of the dataset in a job's ``archive`` option."""
        return f"dataset:{self.id}"


class SavedDatasetDetails(SavedDatasetView):
    """A saved dataset with its report and images."""

    report: DatasetView | None
    """What a check of the images found, for training at 768 px; null if they were not checked."""
    contents: tuple[ImageView, ...]
    """The images with their captions, up to 500 of them."""


class ChangedDatasetView(SavedDatasetView):
    """A saved dataset after files were added."""

    notes: tuple[str, ...]
    """Why files were not added, or under which name."""


def view_of(dataset: StoredDataset) -> SavedDatasetView:
    """Return a stored dataset as a caller sees it."""
    return SavedDatasetView(
        id=dataset.id,
        name=dataset.name,
        tenant=dataset.tenant,
        images=dataset.images,
        size=dataset.size,
        upload=dataset.upload,
        revision=dataset.revision,
        created_at=dataset.created,
        updated_at=dataset.updated,
    )
