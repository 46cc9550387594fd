"""What a job needs of the cache: the key of each entry, and the index that its training reads.

An entry's digest is the SHA-256 of everything the entry depends on. An edited image, another
encoder or another length gives another one, so that no entry is ever stale and all jobs of a fleet
can share them. Knows neither torch nor Redis: any machine that sees the base model's files can
tell what is missing.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic_core import to_jsonable_python

from tasks.base_models.files import text_digest, vae_digest
from tasks.buckets import Size
from tasks.dataset import Dataset
from tasks.events import EncoderDigests
from tasks.jobs.field_metadata import Affects, affects, options_of
from tasks.jobs.pipeline import PipelineConfig
from tasks.strict_model import StrictModel

# Raise it when the code that makes entries changes what is in them.
CODE_VERSION = 2

Kind = Literal["text", "latents"]
KINDS: tuple[Kind, ...] = ("text", "latents")


class SampleEntries(StrictModel):
    """The digests of one sample's entries; null where its kind is not cached."""

    text: str | None
    latents: str | None
    flipped_latents: str | None
    """Where the config mirrors samples."""


class CacheIndex(StrictModel):
    """Which cache entries belong to which samples of a job, and where they are."""

    dataset: str
    """The dataset's digest."""
    settings: dict[str, object]
    """The options that entries depend on."""
    samples: tuple[SampleEntries, ...]
    """In the dataset's order."""
    blank_text: str | None
    """The blank caption's entry."""
    prompt_texts: tuple[str, ...] = ()
    """The entries of validation_prompts, in their order; none where text is not cached."""
    negative_texts: tuple[str, ...] = ()
    """Those of negative_validation_prompts."""
    packs: dict[str, str]
    """The store key of each entry's pack."""


@dataclass(frozen=True)
class ImageVariant:
    """One image as the VAE is to see it; ``sample`` is one of those that show it."""

    image: str
    sample: int
    size: Size
    flipped: bool


def encoder_digests(config: PipelineConfig) -> EncoderDigests:
    """The digests of the encoders whose outputs a job caches, as this machine sees their files.

    Raises:
        BaseModelFilesError: A file is missing.
    """
    return EncoderDigests(
        text=text_digest(config) if config.caches_text else None,
        vae=vae_digest(config) if config.cache_vae_outputs else None,
    )


class CachePlan:
    """The entries that a job needs.

    Args:
        config: The job's training.
        dataset: Its dataset.
        encoders: Of its base model.

    Attributes:
        texts: Each caption and prompt by its entry's digest.
        latents: Each image and mirroring by its entry's digest.
    """

    def __init__(self, config: PipelineConfig, dataset: Dataset, encoders: EncoderDigests) -> None:
        self._config = config
        self._text_settings = _values(config, Affects.CACHED_TEXT)
        self._dataset = dataset
        self._sizes = dataset.sizes_in(config.loader.sizes())
        # A cached caption is always the same one: only drops are drawn, and their entry is blank.
        self._captions = [
            config.loader.caption(sample, ()) if encoders.text else "" for sample in dataset.samples
        ]
        negative = getattr(config, "negative_validation_prompts", None)
        self._prompts = (config.validation_prompts, tuple(negative or ()))
        self._text_of = {it: self._text_digest(it, encoders) for it in self._all_captions(encoders)}
        self.texts = {digest: caption for caption, digest in self._text_of.items()}
        self._latents_of = {it: _latents_digest(it, encoders) for it in self._images(encoders)}
        self.latents = {digest: image for image, digest in self._latents_of.items()}

    def kind(self, digest: str) -> Kind:
        """What an entry is of."""
        return "text" if digest in self.texts else "latents"

    @property
    def digests(self) -> list[str]:
        """All entries: text first, then latents size by size, as encoders work best."""
        by_size = sorted(self.latents, key=lambda digest: (self.latents[digest].size, digest))
        return [*sorted(self.texts), *by_size]

    def index(self, packs: Mapping[str, str]) -> CacheIndex:
        """The index of the job.

        Args:
            packs: The store key of each entry's pack.
        """
        by_image = {(it.image, it.size, it.flipped): key for it, key in self._latents_of.items()}
        rows = zip(self._dataset.samples, self._captions, self._sizes, strict=True)
        return CacheIndex(
            dataset=self._dataset.digest,
            settings=cache_settings(self._config),
            samples=tuple(
                SampleEntries(
                    text=self._text_of.get(caption),
                    latents=by_image.get((sample.image, size, False)),
                    flipped_latents=by_image.get((sample.image, size, True)),
                )
                for sample, caption, size in rows
            ),
            blank_text=self._text_of.get(""),
            prompt_texts=tuple(self._text_of[it] for it in self._prompts[0] if self._text_of),
            negative_texts=tuple(self._text_of[it] for it in self._prompts[1] if self._text_of),
            packs={digest: packs[digest] for digest in self.digests},
        )

    def _all_captions(self, encoders: EncoderDigests) -> list[str]:
        if not encoders.text:
            return []
        # The blank caption stands for a dropped one; prompts are encoded as captions are.
        return sorted({"", *self._captions, *self._prompts[0], *self._prompts[1]})

    def _images(self, encoders: EncoderDigests) -> Iterator[ImageVariant]:
        if not encoders.vae:
            return
        seen = set()
        flips = (False, True) if self._config.loader.random_flip else (False,)
        for number, sample in enumerate(self._dataset.samples):
            size = self._sizes[number]
            if (sample.image, size) not in seen:
                seen.add((sample.image, size))
                yield from (ImageVariant(sample.image, number, size, flipped) for flipped in flips)

    def _text_digest(self, caption: str, encoders: EncoderDigests) -> str:
        return _digest("text", caption, self._text_settings, encoders.text)


def cache_settings(config: PipelineConfig) -> dict[str, object]:
    """Return the options that cache entries depend on, by path, as plain JSON."""
    return {
        "type": config.type,
        **_values(config, Affects.CACHE_ENTRIES),
        "sizes": [list(size) for size in config.loader.sizes()],
        "code_version": CODE_VERSION,
    }


def _values(config: PipelineConfig, effect: Affects) -> dict[str, object]:
    return {
        option.path: to_jsonable_python(option.value)
        for option in options_of(config)
        if affects(option.field, effect)
    }


def _latents_digest(image: ImageVariant, encoders: EncoderDigests) -> str:
    place = (list(image.size), "centre", image.flipped)
    return _digest("latents", image.image, *place, encoders.vae, "float32")


def _digest(*parts: object) -> str:
    text = json.dumps([CODE_VERSION, *parts], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
