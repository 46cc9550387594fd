"""The settings of the model that writes captions."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from routing.classes import MemoryClass
from routing.queues import CPU_QUEUE, gpu_queue
from tasks.captions.requests import CaptionModel, CaptionRequestDocument, CaptionStyle
from tasks.settings.base import SettingsGroup

ClassName = Literal["cpu", "8gb", "16gb", "24gb", "40gb", "80gb"]


class CaptionSettings(SettingsGroup):
    """Captions written by a model."""

    caption_model: Annotated[str, Field(min_length=1)] | None = None
    """The model that writes captions on request: a Hub id such as
    `florence-community/Florence-2-base`, or a folder as the workers see it; a Florence-2 or BLIP in
    the transformers library's own form, with `.safetensors` weights. It counts where captions are
    requested: on the consoles. Unset: the console and the API offer none."""

    caption_revision: str | None = None
    """The commit, branch or tag of that repository. Unset: its newest commit."""

    caption_class: ClassName = "8gb"
    """The memory class of the GPUs that write captions, or `cpu` for the CPU workers, which then
    need the extra `train` and do nothing else meanwhile."""

    caption_max_tokens: int = Field(default=128, ge=8, le=512)
    """The maximum number of tokens of a caption."""

    @field_validator("caption_revision")
    @classmethod
    def _of_a_model(cls, revision: str | None, info: ValidationInfo) -> str | None:
        if revision is not None and info.data.get("caption_model") is None:
            raise ValueError("acts only with TRAINING_CAPTION_MODEL; set that too")
        return revision

    @property
    def caption_queue(self) -> str:
        """The queue of the workers that write captions."""
        if self.caption_class == CPU_QUEUE:
            return CPU_QUEUE
        return gpu_queue(next(it for it in MemoryClass if str(it) == self.caption_class))

    def caption_request(
        self, tenant: str, upload: str, files: Collection[str] | None, style: CaptionStyle
    ) -> CaptionRequestDocument | None:
        """Return the request for captions of an upload's images; None without a model.

        Args:
            tenant: The upload's tenant.
            upload: The upload's id.
            files: The names of the images in it; None for all.
            style: How much a caption says.
        """
        if self.caption_model is None:
            return None
        return CaptionRequestDocument(
            tenant=tenant,
            upload=upload,
            files=None if files is None else tuple(sorted(set(files))),
            style=style,
            queue=self.caption_queue,
            model=CaptionModel(
                model=self.caption_model,
                revision=self.caption_revision,
                max_tokens=self.caption_max_tokens,
            ),
        )
