"""The header entries of published files that other programs read: ModelSpec's and sd-scripts'.

``modelspec.*`` follows Stability AI's ModelSpec 1.0.1, ``ss_*`` the names and values of kohya's
sd-scripts. They hold no clock's time, so that the same run writes the same bytes.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tasks.buckets import Size
from tasks.dataset import Dataset, Sample
from tasks.escaping import escaped, shortened
from tasks.jobs.data_loaders import DreamboothSDDataLoaderConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.trigger_word import with_trigger_word

MODEL_DIGESTS = {"modelspec.hash_sha256": "0x{}"}
"""The entry of every file that holds the SHA-256 of its data, and how it spells it."""

_KINDS = {"LORA": "A LoRA", "INVERSION": "An embedding", "FINETUNE": "A finetune"}
# Captions are users': a header must not grow with them.
_MAX_PHRASE = 500
_MAX_TAG_BYTES = 64 * 1024
_TAGS, _MAX_TAG = 10, 40


class Plan(Protocol):
    """What is counted of a run's ``BatchPlan``."""

    sizes: tuple[Size, ...]
    batches_per_epoch: int
    steps_per_epoch: int


class RunMetadata:
    """The entries that the files of all families have.

    Args:
        name: The title.
        config: The run's config.
        dataset: The samples.
        plan: The batches.
        total_steps: The run's length in weight updates.
    """

    def __init__(
        self,
        name: str,
        config: PipelineConfig,
        dataset: Dataset,
        plan: Plan,
        total_steps: int,
    ) -> None:
        self._name = name
        self._config = config
        self._dataset = dataset
        self._plan = plan
        self._total_steps = total_steps
        self._frequency = _tag_frequency(config, dataset)
        self._base = _file_name(getattr(config, "transformer_path", None) or config.model)
        vae: str | None = getattr(config, "vae_model", None)
        self._vae = vae and _file_name(vae)

    def at(self, step: int) -> dict[str, str]:
        """Return the entries of a file after this many weight updates."""
        values = {**self._model_spec(step), **self._counts(step), **self._options()}
        return {"format": "pt"} | {
            name: value if isinstance(value, str) else str(value)
            for name, value in values.items()
            if value is not None
        }

    def _model_spec(self, step: int) -> dict[str, object]:
        config, trigger = self._config, self._config.trigger_phrase
        images = len({sample.image for sample in self._dataset.samples if sample.part == 0})
        kind, base = _KINDS[config.type.rpartition("_")[2]], shortened(escaped(self._base))
        phrase = shortened(escaped(trigger), _MAX_PHRASE) if trigger else None
        return {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.title": self._name,
            "modelspec.description": f"{kind} for {base}, trained on {images} images for {step} "
            "steps",
            "modelspec.resolution": config.loader.target_size(),
            "modelspec.tags": ", ".join(_top_tags(self._frequency)) or None,
            "modelspec.trigger_phrase": phrase,
            "modelspec.usage_hint": phrase and f'Write "{phrase}" into the prompt',
        }

    def _counts(self, step: int) -> dict[str, object]:
        config, plan = self._config, self._plan
        parts = Counter(sample.part for sample in self._dataset.samples)
        batch = config.train_batch_size
        return {
            "ss_steps": step,
            "ss_epoch": -(-step // plan.steps_per_epoch),
            "ss_max_train_steps": self._total_steps,
            "ss_num_epochs": -(-self._total_steps // plan.steps_per_epoch),
            "ss_num_train_images": parts[0],
            "ss_num_reg_images": parts[1],
            "ss_num_batches_per_epoch": plan.batches_per_epoch,
            "ss_batch_size_per_device": batch,
            "ss_total_batch_size": batch * config.gradient_accumulation_steps,
            "ss_tag_frequency": json.dumps(self._frequency),
            "ss_bucket_info": _bucket_info(plan),
        }

    def _options(self) -> dict[str, object]:
        config, size = self._config, self._config.loader.target_size()
        rates = config.learning_rates()
        options = config.optimizer.model_dump(exclude={"optimizer_type", "learning_rate"})
        settings = ",".join(f"{name}={value}" for name, value in options.items())
        # Without gradient_checkpointing, which a resumed run may change: the file stays the same.
        return {
            "ss_output_name": self._name,
            "ss_sd_model_name": self._base,
            "ss_vae_name": self._vae,
            "ss_v2": False,
            "ss_seed": config.seed,
            "ss_resolution": f"({size.width}, {size.height})",
            "ss_enable_bucket": config.loader.aspect_ratio_buckets is not None,
            "ss_flip_aug": config.loader.random_flip,
            "ss_random_crop": not config.loader.center_crop,
            "ss_caption_dropout_rate": getattr(config.loader, "caption_dropout", 0.0),
            "ss_cache_latents": config.cache_vae_outputs,
            "ss_learning_rate": max(rates.values()),
            "ss_unet_lr": rates.get("unet", rates.get("transformer")),
            "ss_text_encoder_lr": rates.get("text_encoder"),
            "ss_optimizer": f"{config.optimizer.optimizer_type}({settings})",
            "ss_lr_scheduler": config.lr_scheduler,
            "ss_lr_warmup_steps": config.lr_warmup_steps,
            "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
            "ss_max_grad_norm": config.max_grad_norm,
            "ss_min_snr_gamma": getattr(config, "min_snr_gamma", None),
            "ss_mixed_precision": config.mixed_precision,
        }


def _file_name(model: str) -> str:
    """Return a model's name for others: a Hub id, or the last part of a path."""
    path = Path(model)
    is_hub_id = model.count("/") == 1 and not path.is_absolute() and not path.exists()
    return model if is_hub_id else path.absolute().name


def _tag_frequency(config: PipelineConfig, dataset: Dataset) -> dict[str, dict[str, int]]:
    """Return how many samples have each tag, by dataset, as far as it fits into a header.

    Tags are what commas separate in a caption, in lower case, as in sd-scripts, which names the
    datasets' folders; these are the names of the options.
    """
    names = [name for name in type(config.loader).model_fields if name.endswith("dataset")]
    counts = {name: Counter[str]() for name in names}
    for sample in dataset.samples:
        counts[names[sample.part]].update(_tags(config, sample))
    room = _MAX_TAG_BYTES
    kept: dict[str, dict[str, int]] = {}
    for name, found in counts.items():
        fitting = kept.setdefault(name, {})
        for tag, count in sorted(found.items(), key=lambda item: (-item[1], item[0])):
            size = len(json.dumps({tag: count}))
            if size <= room:
                fitting[tag] = count
                room -= size
    return {name: found for name, found in kept.items() if found}


def _tags(config: PipelineConfig, sample: Sample) -> Iterator[str]:
    loader, word, caption = config.loader, getattr(config, "trigger_word", None), sample.caption
    if isinstance(loader, DreamboothSDDataLoaderConfig):
        caption = (loader.instance_caption, loader.class_caption or "")[sample.part]
    elif not loader.reads_captions:
        return
    if not sample.part:
        caption = with_trigger_word(word, caption)
    yield from filter(None, (tag.strip().lower() for tag in caption.split(",")))


def _top_tags(frequency: dict[str, dict[str, int]]) -> list[str]:
    """Return the most frequent short tags of the first dataset."""
    first = next(iter(frequency.values()), {})
    return [tag for tag in first if len(tag) <= _MAX_TAG and tag.isprintable()][:_TAGS]


def _bucket_info(plan: Plan) -> str:
    counts = sorted(Counter(plan.sizes).items())
    buckets = {
        number: {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(counts)
    }
    return json.dumps({"buckets": buckets})
