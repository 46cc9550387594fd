"""The ``caption`` request: a Florence-2 or BLIP describes images, greedily: always in one way.

Only classes of the transformers library itself run, with ``.safetensors`` weights. Captions are in
the store by the model, its settings and the image, so that none is written twice in a fleet.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tasks.base_models.files import (
    file_digest,
    json_object,
    transformers_folder,
    transformers_weights,
)
from tasks.base_models.safetensors_header import read_headers
from tasks.captions.requests import CaptionStyle
from tasks.data.decoding.images import open_image
from tasks.errors import BaseModelFilesError, ErrorCode, MissingObjectError
from tasks.events import CaptionDone, CaptionWritten
from tasks.stages.trainer_protocol import CaptionImage, CaptionRequest
from tasks.store import Store, caption_key
from worker.trainer.compute.determinism import Determinism
from worker.trainer.errors import RefusedError
from worker.trainer.event_pipe import Emit, StopSwitch, phase
from worker.trainer.model_cache import ModelCache, ModelSpec

CODE_VERSION = 1
"""The version of the code that writes captions. Raise it when the same model writes others."""
MAX_CAPTION = 2000
"""Characters of a caption, at most."""
_KINDS = ("florence2", "blip")
# Florence-2 was trained on these words; the processor puts the question of each in their place.
_TASKS: dict[CaptionStyle, str] = {"short": "<CAPTION>", "detailed": "<MORE_DETAILED_CAPTION>"}
# Activations of an image with its beams' caches, and CUDA's context: measured of neither model, and
# above what their sizes make likely.
_OVERHEAD_GIB = 2.0
# The files beside the weights that decide what a model writes.
_SETTINGS = ("*.json", "*.txt", "*.model")


class CaptionModelError(RefusedError):
    """The caption model cannot be used."""

    code = ErrorCode.INVALID_MODEL

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(model, problem)
        self.model, self.message = model, problem

    def __str__(self) -> str:
        """Name the model and the problem."""
        return f"the caption model {self.model} cannot be used: {self.message}"


class CaptionModelTooLargeError(CaptionModelError):
    """The caption model does not fit into the GPU memory of its class."""

    code = ErrorCode.DOES_NOT_FIT

    def __init__(self, model: str, needed_gib: float, limit_gib: float) -> None:
        super().__init__(
            model,
            f"it needs about {needed_gib:.1f} GiB of GPU memory, and its class has "
            f"{limit_gib:.1f}; set TRAINING_CAPTION_CLASS to a larger one",
        )


def run(request: CaptionRequest, emit: Emit, stop: StopSwitch, cache: ModelCache) -> None:
    """Carry out a ``caption`` request and report its end.

    Raises:
        RefusedError: The model cannot be used.
        InterruptedRun: The run was asked to stop; the captions written so far are in the store.
        StoreError: The store failed.
    """
    try:
        _write_all(request, emit, stop, cache)
    except BaseModelFilesError as error:
        raise CaptionModelError(error.path, error.problem) from error
    emit(CaptionDone())


def plain(text: str) -> str:
    """Return a model's words as one line of printable text, bounded."""
    line = " ".join(text.split())
    shown = "".join(each for each in line if each.isprintable() and each != "\ufffd")
    return " ".join(shown[:MAX_CAPTION].split())


def needed_gib(folder: Path, files: Sequence[Path]) -> float:
    """Return the GPU memory that a model needs, its weights in bfloat16.

    Raises:
        BaseModelFilesError: A file is damaged.
    """
    tensors = read_headers(folder, files).tensors.values()
    return 2 * sum(math.prod(tensor.shape) for tensor in tensors) / 2**30 + _OVERHEAD_GIB


class _Captioner:
    """Writes captions; the model is loaded for the first one."""

    def __init__(
        self, request: CaptionRequest, folder: Path, cache: ModelCache, emit: Emit
    ) -> None:
        self._request, self._folder, self._cache, self._emit = request, folder, cache, emit
        self._device = torch.device(request.device)
        self._dtype = torch.bfloat16 if request.device == "cuda" else torch.float32
        self._determinism = Determinism(emit, device=self._device)
        self._loaded: tuple[str, Any, Any] | None = None

    def write(self, image: CaptionImage) -> str:
        """Return an image's caption; empty if the model writes nothing that can be read."""
        pixels = open_image(Path(image.path).read_bytes())
        return self._determinism.run(partial(self._generated, pixels))

    @torch.no_grad()
    def _generated(self, image: Image.Image) -> str:
        kind, model, processor = self._model()
        text = {"text": _TASKS[self._request.style]} if kind == "florence2" else {}
        inputs = processor(images=image, return_tensors="pt", **text).to(self._device, self._dtype)
        limit = self._request.model.max_tokens
        ids = model.generate(**inputs, max_new_tokens=limit, num_beams=1, do_sample=False)
        return plain(processor.batch_decode(ids, skip_special_tokens=True)[0])

    def _model(self) -> tuple[str, Any, Any]:
        """Return the kind of the model, the model on the device, and its processor."""
        if self._loaded is None:
            kind = str(json_object(self._folder, "config.json").get("model_type"))
            if kind not in _KINDS:
                raise CaptionModelError(
                    self._request.model.model,
                    f"its type is {kind[:50]!r}; use one of {', '.join(_KINDS)}, in the form of "
                    "the transformers library itself",
                )
            self._check_memory()
            with phase(self._emit, "load"):
                spec = ModelSpec(("caption", str(self._folder), self._dtype), self._load(kind))
                model = self._cache.take(self._device, {"caption": spec})["caption"]
                self._loaded = kind, model, self._processor(kind)
        return self._loaded

    def _check_memory(self) -> None:
        files, limit = transformers_weights(self._folder), self._request.limit_gib
        needed = needed_gib(self._folder, files)
        if limit is not None and needed > limit:
            raise CaptionModelTooLargeError(self._request.model.model, needed, limit)

    def _load(self, kind: str) -> Any:
        from transformers import BlipForConditionalGeneration, Florence2ForConditionalGeneration

        classes = {"florence2": Florence2ForConditionalGeneration}
        model_class = classes.get(kind, BlipForConditionalGeneration)

        def load() -> Any:
            model: Any = model_class.from_pretrained(
                self._folder,
                dtype=self._dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
            return model.eval()

        return load

    def _processor(self, kind: str) -> Any:
        from transformers import BlipProcessor, Florence2Processor

        processor_class = {"florence2": Florence2Processor}.get(kind, BlipProcessor)
        return processor_class.from_pretrained(
            self._folder, local_files_only=True, trust_remote_code=False
        )


def _write_all(request: CaptionRequest, emit: Emit, stop: StopSwitch, cache: ModelCache) -> None:
    """Emit each image's caption: the one in the store, or the model's.

    Raises:
        BaseModelFilesError: The model's files are missing or damaged.
    """
    folder = transformers_folder(request.model.model, request.model.revision)
    settings = _settings_digest(request, folder)
    captioner = _Captioner(request, folder, cache, emit)
    store = Store(request.store_url)
    with phase(emit, "encode"):
        for image in request.images:
            stop.check()
            key = caption_key(settings, image.sha256)
            text = _stored(store, key)
            if text is None:
                text = captioner.write(image)
                store.put(key, text.encode())
            emit(CaptionWritten(name=image.name, text=text))


def _stored(store: Store, key: str) -> str | None:
    """Return the caption that was written before, if there is one."""
    try:
        return plain(store.get(key).decode(errors="replace"))
    except MissingObjectError:
        return None


def _settings_digest(request: CaptionRequest, folder: Path) -> str:
    """Return the digest of all that decides captions but the image."""
    files = sorted(file for pattern in _SETTINGS for file in folder.glob(pattern))
    files += transformers_weights(folder)
    digests = {file.name: file_digest(file) for file in files}
    parts = [CODE_VERSION, digests, request.style, request.model.max_tokens]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
