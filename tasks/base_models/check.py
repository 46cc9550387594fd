"""Base model validation before a job uses a GPU. Reads small files and headers, no weights."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from tasks.base_models.files import described_by, json_object, weights_files
from tasks.base_models.layouts import Config
from tasks.base_models.noise_schedule import noise_schedule
from tasks.base_models.parts import (
    Family,
    family_of,
    holds_part,
    part_weights,
    refuse_config,
    refuse_other_models,
    replacing_file,
    what_instead,
)
from tasks.base_models.safetensors_header import Header, read_header, read_headers
from tasks.errors import BaseModelFilesError, Problem
from tasks.escaping import listed, shortened
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlConfig
from tasks.transient import is_transient

_TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
_SAFETENSORS = ".safetensors"


def check_base_model(config: PipelineConfig, hub: HfApi | None = None) -> list[Problem]:
    """Return every problem of a job's base model that this machine can see.

    Args:
        config: Names the model and the files that replace parts of it.
        hub: The Hub; None is the public one, or the one that ``HF_ENDPOINT`` names.
    """
    hub, family = hub or HfApi(), family_of(config)
    problems = _check_vae_model(config, family, hub)
    described = _described_parts(config, family, hub)
    for name, part in family.parts.items():
        if (path := replacing_file(config, part)) is not None:
            location = f"training.{part.option}"
            problems += _check_weights(
                lambda: read_header(path), location, family, name, described.get(name)
            )
    for location, file in _embedding_files(config).items():
        problems += _check_embedding(Path(file), location)
    if config.model.endswith(_SAFETENSORS):
        return problems + _check_single_file(config, family, described, hub)
    if _is_folder(config.model):
        return problems + _check_folder(Path(config.model), config, family)
    needed = _own_parts(config, family)
    found = _check_hub_id(config.model, "training.model", hub, family, needed)
    if not found:
        described = _described_parts(config, family, hub, needed)
        found = _check_hub_configs(config.model, family, described, needed)
    return problems + found


def _embedding_files(config: PipelineConfig) -> dict[str, str]:
    """Return the textual-inversion files that a config reads, by option."""
    tokens: dict[str, str] = getattr(config, "base_embeddings", {})
    files = {f"training.base_embeddings.{token}": path for token, path in tokens.items()}
    initial: str | None = getattr(config, "initial_embedding_file", None)
    return files | ({"training.initial_embedding_file": initial} if initial else {})


def _check_embedding(path: Path, location: str) -> list[Problem]:
    try:
        tensors = read_header(path).tensors
    except BaseModelFilesError as error:
        return [_problem(location, error)]
    return [
        Problem(location, f"{path} has no matrix {name}; it is not an SDXL textual inversion")
        for name in ("clip_l", "clip_g")
        if name not in tensors or len(tensors[name].shape) != 2
    ]


def _check_vae_model(config: PipelineConfig, family: Family, hub: HfApi) -> list[Problem]:
    model = config.vae_model
    if model is None or model.endswith(_SAFETENSORS):
        return []
    if not _is_folder(model):
        return _check_hub_id(model, "training.vae_model", hub)
    folder = Path(model)
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    return _check_part(folder, "vae", config, family)


def _check_single_file(
    config: PipelineConfig, family: Family, described: Mapping[str, Config], hub: HfApi
) -> list[Problem]:
    """Check a whole model in one file, and the configs and tokenizers that describe it."""
    path, location = Path(config.model), "training.model"
    try:
        header = read_header(path)
        refuse_other_models(header)
        needed = _own_parts(config, family)
        absent = [
            name
            for name in needed
            if not holds_part(header, family.parts[name], described.get(name, {}))
        ]
    except BaseModelFilesError as error:
        return [_problem(location, error)]
    problems = []
    if absent:
        problems.append(Problem(location, f"{path} {_not_whole(header, family, absent)}"))
    for name in needed:
        if name not in absent:
            problems += _check_weights(lambda: header, location, family, name, described.get(name))
    # What belongs to no part is a problem of each.
    problems = list(dict.fromkeys(problems))
    source = described_by(config)
    if _is_folder(source):
        return problems + _check_folder(Path(source), config, family, weights=False)
    option = "training.single_file_config"
    return problems + _check_hub_id(source, option, hub, family)


def _own_parts(config: PipelineConfig, family: Family) -> list[str]:
    """Return the parts that no option replaces."""
    return [
        name
        for name, part in family.parts.items()
        if getattr(config, part.option or "", None) is None
    ]


def _not_whole(header: Header, family: Family, absent: Sequence[str]) -> str:
    """Return what a single file lacks, and what to do."""
    parts = [family.parts[name] for name in absent]
    message = f"has no {', no '.join(part.noun for part in parts)}; it is not a whole model"
    held = [part for part in family.parts.values() if holds_part(header, part, {})]
    if len(held) == 1 and held[0].option:
        return (
            f"{message}; it holds a {held[0].noun} only: give it as {held[0].option}, and as "
            "model a whole model"
        )
    options = [part.option for part in parts if part.option]
    if held and len(options) == len(parts):
        return f"{message}; give the rest by {', '.join(options)}"
    return message + what_instead(header)


def _check_weights(
    read: Callable[[], Header],
    location: str | None,
    family: Family,
    name: str,
    described: Config | None,
) -> list[Problem]:
    """Check by their headers that files hold a part, and nothing that is not read.

    Args:
        read: Reads the header.
        location: The option that names the file; None for those of a folder.
        family: The family of the base model.
        name: The part.
        described: The part's ``config.json``; None if this machine cannot read it.
    """
    try:
        header = read()
        if described is None:
            refuse_other_models(header)
        else:
            part_weights(header, family, name, described)
    except BaseModelFilesError as error:
        return [_problem(location, error)]
    return []


def _problem(location: str | None, error: BaseModelFilesError) -> Problem:
    if location is None:
        return Problem(error.path, error.problem)
    return Problem(location, f"{shortened(error.path)}: {error.problem}")


def _check_hub_configs(
    model: str, family: Family, described: Mapping[str, Config], needed: Sequence[str]
) -> list[Problem]:
    problems = []
    for name in needed:
        try:
            if name in described:
                refuse_config(described[name], Path(model) / name, family, family.parts[name])
        except BaseModelFilesError as error:
            problems.append(_problem("training.model", error))
    return problems


def _described_parts(
    config: PipelineConfig, family: Family, hub: HfApi, needed: Sequence[str] = ()
) -> dict[str, Config]:
    """Return the ``config.json`` of each part that this machine can read, if any is needed."""
    model = described_by(config)
    if _is_folder(model):
        found = {name: _json(Path(model) / name / "config.json") for name in family.parts}
        return {name: values for name, values in found.items() if values}
    is_needed = needed or any(replacing_file(config, part) for part in family.parts.values())
    if not is_needed and not config.model.endswith(_SAFETENSORS):
        return {}
    try:
        paths = {name: hub.hf_hub_download(model, f"{name}/config.json") for name in family.parts}
    except (HFValidationError, httpx2.HTTPError, OSError, ValueError, KeyError):
        return {}  # the check of the Hub's id reports it
    return {name: _json(Path(path)) for name, path in paths.items()}


def _check_folder(
    folder: Path, config: PipelineConfig, family: Family, *, weights: bool = True
) -> list[Problem]:
    index = folder / "model_index.json"
    if not index.is_file():
        names = [str(path.relative_to(folder)) for path in sorted(folder.iterdir())]
        return [Problem(str(folder), _lacks(names, ()))]
    pipeline = str(_json(index).get("_class_name"))
    if pipeline not in family.pipelines:
        needed = f"{config.type} needs a {family.pipelines[0]}"
        return [Problem(str(index), f"describes a {pipeline}; {needed}")]
    problems = []
    for name, part in family.parts.items():
        is_replaced = getattr(config, part.option or "", None) is not None
        problems += _check_part(folder / name, name, config, family, weights and not is_replaced)
    for name, encoder in _TOKENIZERS.items():
        problems += _check_tokenizer(folder / name, folder / encoder)
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        problems.append(Problem(str(folder / "scheduler"), "has no scheduler_config.json"))
    elif isinstance(config, SdxlConfig):
        try:
            noise_schedule(config)
        except BaseModelFilesError as error:
            problems.append(_problem(None, error))
    return problems


def _check_part(
    folder: Path, name: str, config: PipelineConfig, family: Family, weights: bool = True
) -> list[Problem]:
    if not (folder / "config.json").is_file():
        return [Problem(str(folder), "has no config.json")]
    described = _json(folder / "config.json")
    if not described:
        return [Problem(str(folder / "config.json"), "is damaged; download it again")]
    try:
        refuse_config(described, folder, family, family.parts[name])
        files = weights_files(config, folder) if weights else []
    except BaseModelFilesError as error:
        return [_problem(None, error)]
    if not weights:
        return []
    return _check_weights(lambda: read_headers(folder, files), None, family, name, described)


def _check_tokenizer(folder: Path, encoder: Path) -> list[Problem]:
    """Check that a tokenizer has the vocabulary that its encoder was trained with.

    A tokenizer folder without a vocabulary loads without an error, with two to four tokens.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        names = ", ".join(_VOCABULARIES)
        return [Problem(str(folder), f"has no vocabulary ({names}); download the tokenizer again")]
    size = _vocabulary_size(folder)
    expected = _json(encoder / "config.json").get("vocab_size")
    # Encoders pad their embedding tables a little; under half of it is another vocabulary.
    if size is not None and isinstance(expected, int) and size < expected / 2:
        message = f"has {size} tokens, its encoder {expected}; download the tokenizer again"
        return [Problem(str(folder), message)]
    return []


def _vocabulary_size(folder: Path) -> int | None:
    """Return the size of a tokenizer's vocabulary; None if only loading it would show that."""
    if (folder / "tokenizer.json").is_file():
        values = _json(folder / "tokenizer.json")
        vocabulary = _mapping(values.get("model")).get("vocab")
        if not values or isinstance(vocabulary, dict | list):
            return len(vocabulary or ())
        return None
    if (folder / "vocab.json").is_file():
        return len(_json(folder / "vocab.json"))
    return None


def _check_hub_id(
    model: str,
    location: str,
    hub: HfApi,
    family: Family | None = None,
    parts: Sequence[str] = (),
) -> list[Problem]:
    """Check that a repository exists, and has what a job needs of it.

    Args:
        model: Its id.
        location: The option that names it.
        hub: The Hub.
        family: The family that its pipeline must be of; None for a part's own repository.
        parts: The parts whose weights it must have.
    """
    try:
        info = hub.model_info(model)
        described = _mapping(_mapping(info.config).get("diffusers")).get("_class_name")
        if family and described and str(described) not in family.pipelines:
            needed = family.pipelines[0]
            return [Problem(location, f"{model} is a {described}; a {needed} is needed")]
        names = [file.rfilename for file in info.siblings or ()]
        if family and names and (lacks := _lacks(names, parts)):
            return [Problem(location, f"{model} {lacks}")]
    except HFValidationError:
        name = shortened(model)
        message = f"{name} is neither a folder on this worker nor a Hub id (owner/name)"
        return [Problem(location, message)]
    except GatedRepoError:
        message = f"{model} is gated: accept its license and set HF_TOKEN on the workers"
        return [Problem(location, message)]
    except RepositoryNotFoundError:
        message = f"{model} is neither a folder here nor a repository that HF_TOKEN can read"
        return [Problem(location, message)]
    # ValueError and KeyError: a proxy's page instead of the Hub's answer.
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError, KeyError) as error:
        if _is_in_local_cache(model):
            return []
        first_line = str(error).partition("\n")[0]
        message = f"{model} is not a folder here, and the Hub request failed: {first_line}"
        return [Problem(location, message, retryable=is_transient(error))]
    return []


def _lacks(names: Sequence[str], parts: Sequence[str]) -> str:
    """Return what a repository or folder of these files lacks; an empty text for nothing."""
    if "model_index.json" not in names:
        held = [name for name in names if name.endswith((".gguf", _SAFETENSORS))]
        files = f" (it has {listed(held)})" if held else ""
        return f"has no model_index.json; it must be in diffusers' layout{files}"
    lacking = [
        part
        for part in parts
        if not any(name.startswith(f"{part}/") and name.endswith(_SAFETENSORS) for name in names)
    ]
    return f"has no .safetensors weights in {', '.join(lacking)}" if lacking else ""


def _is_in_local_cache(model: str) -> bool:
    try:
        snapshot_download(model, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True


def _json(path: Path) -> dict[str, object]:
    """Return a file's JSON object; an empty one if it is missing or something else."""
    try:
        return json_object(path.parent, path.name)
    except BaseModelFilesError:
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # too long to exist
        return False
