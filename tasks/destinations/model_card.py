"""The model card: the page of a repository on the Hub, and what programs read of it."""

import json
import re
from typing import Any
from urllib.parse import quote

import yaml

from routing.policy import TrainingType
from tasks.destinations.results import Results, Sample
from tasks.escaping import escaped, shortened
from tasks.jobs.destinations import HubDestination
from tasks.jobs.field_metadata import HUB_ID, public_options
from tasks.urls import redact_urls

SAMPLES_FOLDER = "samples"
_MAX_TEXT = 1000
_NON_COMMERCIAL = {
    "license": "other",
    "license_name": "flux-1-dev-non-commercial-license",
    "license_link": "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
}
# What is derived from a model has the model's license.
_LICENSES = (
    (re.compile(r"black-forest-labs/FLUX\.1-schnell"), {"license": "apache-2.0"}),
    (re.compile(r"black-forest-labs/FLUX\.1-[\w-]*dev"), _NON_COMMERCIAL),
    (re.compile(r"stabilityai/stable-diffusion-xl-.*"), {"license": "openrail++"}),
)
_TAGS = {
    TrainingType.FLUX_LORA: ("flux", "lora", "template:sd-lora"),
    TrainingType.SDXL_LORA: ("stable-diffusion-xl", "lora", "template:sd-lora"),
    TrainingType.SDXL_TEXTUAL_INVERSION: ("stable-diffusion-xl", "textual_inversion"),
    TrainingType.SDXL_FINETUNE: ("stable-diffusion-xl",),
}


def model_card(results: Results, destination: HubDestination) -> str:
    """Return README.md: YAML for the Hub, then a page for people.

    It depends on the results alone, so that a repeated copy has the same bytes.
    """
    header = yaml.safe_dump(
        _metadata(results, destination), sort_keys=False, allow_unicode=True, width=100
    )
    return f"---\n{header}---\n\n{_page(results)}"


def settings_file(results: Results) -> bytes:
    """Return the training options as JSON, without what names places of the fleet."""
    job = results.job
    document = {
        "name": job.name,
        "engine": job.engine,
        "training": redact_urls(public_options(job.training)),
    }
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def sample_path(sample: Sample) -> str:
    """Return the path of a sample in the repository."""
    return f"{SAMPLES_FOLDER}/{sample.file.name.rpartition('/')[2]}"


def base_model_of(results: Results) -> str | None:
    """Return the base model's id on the Hub; None for a local one, whose path is private."""
    model = results.job.training.model
    return model if HUB_ID.fullmatch(model) and "/" in model else None


def _metadata(results: Results, destination: HubDestination) -> dict[str, Any]:
    training, base_model = results.job.training, base_model_of(results)
    metadata: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    metadata |= _license(destination, base_model)
    if base_model is not None:
        relation = "adapter" if training.trains_adapter else "finetune"
        metadata |= {"base_model": base_model, "base_model_relation": relation}
    tags = _TAGS.get(TrainingType(training.type), ())
    metadata["tags"] = ["text-to-image", "diffusers", *tags]
    if training.trigger_phrase:
        metadata["instance_prompt"] = _plain(training.trigger_phrase)
    widget = [
        {"text": _plain(sample.prompt), "output": {"url": sample_path(sample)}}
        for sample in results.samples()
    ]
    return metadata | ({"widget": widget} if widget else {})


def _license(destination: HubDestination, base_model: str | None) -> dict[str, str]:
    if destination.license is not None:
        return {"license": destination.license}
    known = (terms for name, terms in _LICENSES if name.fullmatch(base_model or ""))
    return next(known, {})


def _page(results: Results) -> str:
    training = results.job.training
    lines = [f"# {_markdown(results.job.name)}"]
    if results.samples():
        lines.append("<Gallery />")
    if training.trigger_phrase:
        phrase = _markdown(training.trigger_phrase)
        lines += ["## Trigger word", f"Write **{phrase}** in the prompt."]
    lines.append("## Files")
    lines.append(
        "\n".join(
            f"- [{_markdown(file.name)}]({quote(file.name)}), {file.size / 1e6:,.1f} MB"
            for file in results.final_files()
        )
    )
    base_model = base_model_of(results)
    base = f" of {_markdown(base_model)}" if base_model else ""
    kind = _markdown(training.type)
    lines += ["## Training", f"{kind}{base}; the options are in [training.json](training.json)."]
    return "\n\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return a user's text on one line, bounded."""
    return shortened(escaped(text), _MAX_TEXT)


def _markdown(text: str) -> str:
    """Return a user's text that Markdown shows as it is: no markup, link, mention or HTML."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", _plain(text))
