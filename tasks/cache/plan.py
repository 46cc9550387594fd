"""The cache entries that a job needs, and the index that its training reads.

An entry's digest is the SHA-256 of everything that the entry depends on: an edited image, another
encoder or another token limit has another digest, so that no entry is ever stale and all jobs of a
fleet share them. Imports neither torch nor Redis: any machine with the base model's files can
compute which entries are missing.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic_core import to_jsonable_python

from tasks.base_models.files import text_digest, vae_digest
from tasks.buckets import Size
from tasks.dataset import Dataset
from tasks.events import EncoderDigests
from tasks.jobs.field_metadata import Affects, affects, options_of
from tasks.jobs.pipeline import PipelineConfig
from tasks.strict_model import StrictModel

CODE_VERSION = 2
"""The version of the code that computes entries. Raise it when the contents of entries change."""

Kind = Literal["text", "latents"]
KINDS: tuple[Kind, ...] = ("text", "latents")


# No model, which takes ten times the memory: a dataset may have a million samples.
@dataclass(frozen=True, slots=True)
class SampleEntries:
    """The digests of one sample's entries; null for kinds that are not cached.

    Attributes:
        flipped_latents: The entry of the mirrored image, if the config mirrors samples.
    """

    text: str | None
    latents: str | None
    flipped_latents: str | None


class CacheIndex(StrictModel):
    """The cache entries of each sample of a job, and their packs."""

    dataset: str
    """The dataset's digest."""
    settings: dict[str, object]
    """The options that entries depend on."""
    samples: tuple[SampleEntries, ...]
    """The entries of each sample, in the dataset's order."""
    blank_text: str | None
    """The blank caption's entry."""
    prompt_texts: tuple[str, ...] = ()
    """The entries of the sample prompts, in order; empty if text is not cached."""
    negative_texts: tuple[str, ...] = ()
    """The entries of negative_validation_prompts, in order."""
    packs: dict[str, str]
    """The store key of each entry's pack."""


@dataclass(frozen=True, slots=True)
class ImageVariant:
    """One image as the VAE encodes it.

    Attributes:
        image: The image's digest.
        sample: The number of a sample that shows it.
    """

    image: str
    sample: int
    size: Size
    flipped: bool


def encoder_digests(config: PipelineConfig) -> EncoderDigests:
    """Return the digests of the encoders whose outputs a job caches, from this machine's files.

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
        config: The job's training config.
        dataset: The job's dataset.
        encoders: The digests of the base model's encoders.

    Attributes:
        texts: The captions and prompts by the digest of their entry.
        latents: The images and their mirrored variants by the digest of their entry.
    """

    def __init__(self, config: PipelineConfig, dataset: Dataset, encoders: EncoderDigests) -> None:
        self._config = config
        self._text_settings = _values(config, Affects.CACHED_TEXT)
        self._dataset = dataset
        self._sizes = dataset.sizes_in(config.loader.sizes())
        # A cached caption never changes: captions are only dropped at random, for the blank entry.
        self._captions = [
            config.caption(sample, ()) if encoders.text else "" for sample in dataset.samples
        ]
        negative = getattr(config, "negative_validation_prompts", None)
        self._prompts = (config.sample_prompts, tuple(negative or ()))
        self.texts = {
            self._text_digest(caption, encoders): caption
            for caption in self._all_captions(encoders)
        }
        self.latents = {
            _latents_digest(variant, encoders): variant for variant in self._images(encoders)
        }

    def kind(self, digest: str) -> Kind:
        """Return the kind of an entry."""
        return "text" if digest in self.texts else "latents"

    @cached_property
    def digests(self) -> list[str]:
        """All entries: text first, then latents by size, so that batches have one shape."""
        by_size = sorted(self.latents, key=lambda digest: (self.latents[digest].size, digest))
        return [*sorted(self.texts), *by_size]

    def index(self, packs: Mapping[str, str]) -> CacheIndex:
        """Return the job's index.

        Args:
            packs: The store key of each entry's pack.
        """
        text_of = {caption: digest for digest, caption in self.texts.items()}
        by_image = {
            (variant.image, variant.size, variant.flipped): digest
            for digest, variant in self.latents.items()
        }
        rows = zip(self._dataset.samples, self._captions, self._sizes, strict=True)
        return CacheIndex(
            dataset=self._dataset.digest,
            settings=cache_settings(self._config),
            samples=tuple(
                SampleEntries(
                    text=text_of.get(caption),
                    latents=by_image.get((sample.image, size, False)),
                    flipped_latents=by_image.get((sample.image, size, True)),
                )
                for sample, caption, size in rows
            ),
            blank_text=text_of.get(""),
            prompt_texts=tuple(text_of[prompt] for prompt in self._prompts[0] if text_of),
            negative_texts=tuple(text_of[prompt] for prompt in self._prompts[1] if text_of),
            packs={digest: packs[digest] for digest in self.digests},
        )

    def _all_captions(self, encoders: EncoderDigests) -> list[str]:
        if not encoders.text:
            return []
        # The blank caption replaces a dropped one; prompts are encoded as captions are.
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
