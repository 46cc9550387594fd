"""The files of a base model: their locations, downloads from the Hub, and digests.

The trainer loads the files. This module imports neither diffusers nor transformers, so that a cache
request with nothing to encode stays quick.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from tasks.errors import BaseModelFilesError
from tasks.escaping import listed
from tasks.jobs.field_metadata import Affects, Location, affects, marker_of, options_of
from tasks.jobs.pipeline import PICKLE_ENDINGS, PipelineConfig

# Pickle files and the single-file copies at the top of a repository are never downloaded.
_SETTINGS = ("*.json", "*.txt", "*.model")
_WEIGHTS = "*.safetensors"
_SHA256_NAME = re.compile(r"^[0-9a-f]{64}$")
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema|ema)[.-]")
_VARIANTS = ("*.fp16*", "*.bf16*", "*.non_ema*", "*.ema*")
_TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def single_file(config: PipelineConfig) -> Path | None:
    """Return the single file of a whole base model; None if it is a folder or a Hub id.

    Raises:
        BaseModelFilesError: The file is missing.
    """
    return existing_file(config.model) if config.model.endswith(_WEIGHTS[1:]) else None


def base_model_folder(config: PipelineConfig, parts: Sequence[str]) -> Path:
    """Return the diffusers folder with these parts of the base model, downloaded if on the Hub.

    For a single-file model, it is the folder with the configs and tokenizers.

    Args:
        config: Names the model.
        parts: Names of subfolders (``transformer``, ``tokenizer_2``).

    Raises:
        BaseModelFilesError: The model, or one of the parts, is missing.
    """
    if single_file(config) is None:
        return _folder(config.model, parts, getattr(config, "hf_variant", None))
    return _folder(described_by(config), parts, None, weights=False)


def described_by(config: PipelineConfig) -> str:
    """Return the folder or Hub id with the configs and tokenizers of a base model."""
    if not config.model.endswith(_WEIGHTS[1:]):
        return config.model
    default: str = type(config).model_fields["model"].default
    return config.single_file_config or default


def weights_files(config: PipelineConfig, part: Path) -> list[Path]:
    """Return the files with a part's weights in a folder, as diffusers chooses them.

    Raises:
        BaseModelFilesError: There are none, or the list of its shards is damaged.
    """
    variant = _variant(config, part)
    end = f".{variant}" if variant else ""
    for name in ("diffusion_pytorch_model", "model"):
        index = f"{name}.safetensors.index{end}.json"
        if (part / index).is_file():
            try:
                shards = set(_shards(json_object(part, index)))
            except (BaseModelFilesError, AttributeError, TypeError) as error:
                problem = "is damaged; download it again"
                raise BaseModelFilesError(str(part / index), problem) from error
            return sorted(part / Path(shard).name for shard in shards)
        if (file := part / f"{name}{end}{_WEIGHTS[1:]}").is_file():
            return [file]
    raise BaseModelFilesError(str(part), _no_weights(part))


def weights_file(config: PipelineConfig, option: str | None) -> Path | None:
    """Return the single file that holds a part's weights; None if a folder does.

    Args:
        config: Names the model.
        option: The option that replaces the part's weights, if there is one.

    Raises:
        BaseModelFilesError: The file is missing.
    """
    path: str | None = getattr(config, option, None) if option else None
    if path is None:
        return single_file(config)
    return existing_file(path) if path.endswith(_WEIGHTS[1:]) else None


def vae_folder(config: PipelineConfig) -> Path:
    """Return the folder of the VAE's files: ``vae_model``'s if that is one.

    If a single file holds the VAE, the folder has its config.
    """
    other = config.vae_model
    if other is None or other.endswith(_WEIGHTS[1:]):
        return base_model_folder(config, ("vae",)) / "vae"
    folder = Path(other)
    if not folder.is_dir():
        folder = _from_hub(other, (".", "vae"), None)
    return folder / "vae" if (folder / "vae").is_dir() else folder


def vae_config(config: PipelineConfig) -> dict[str, object]:
    """Return the VAE's ``config.json``."""
    return json_object(vae_folder(config), "config.json")


def text_digest(config: PipelineConfig) -> str:
    """Return the SHA-256 of all files that decide the text encoders' outputs, in hex."""
    folder = base_model_folder(config, _TEXT_PARTS)
    first, second = (weights_file(config, f"text_encoder_{number}_path") for number in (1, 2))
    embeddings = getattr(config, "base_embeddings", {})
    digest = _digest(config, folder, _TEXT_PARTS, (first, None, second, None))
    for token, path in sorted(embeddings.items()):
        digest.update(f"{token} {file_digest(existing_file(path))}\n".encode())
    return digest.hexdigest()


def vae_digest(config: PipelineConfig) -> str:
    """Return the SHA-256 of all files that decide the VAE's outputs, in hex."""
    folder = vae_folder(config)
    overrides = (weights_file(config, "vae_model"),)
    return _digest(config, folder.parent, (folder.name,), overrides).hexdigest()


def encoders_identity(config: PipelineConfig) -> str:
    """Return a text that identifies the encoders on any machine, without reading weights.

    It consists of the commits of Hub repositories, and of the paths, sizes and modification times
    of local files.

    Raises:
        BaseModelFilesError: A file or repository is missing.
    """
    locations = {
        option.path: option.value
        for option in options_of(config)
        if option.value
        and affects(option.field, Affects.CACHE_ENTRIES)
        and marker_of(option.field, Location) in (Location.BASE_MODEL, Location.FILE)
    }
    if config.model.endswith(_WEIGHTS[1:]):
        locations["single_file_config"] = described_by(config)
    settings = (getattr(config, "hf_variant", None), config.caches_text, config.cache_vae_outputs)
    return json.dumps([settings, {path: _stamps(value) for path, value in locations.items()}])


def fingerprint(config: PipelineConfig, parts: Sequence[str], others: Sequence[str]) -> str:
    """Return a text that identifies the files of these parts, and some others, in this process.

    It consists of names, sizes and modification times, and is quicker than a digest.
    """
    folder = base_model_folder(config, parts)
    own = single_file(config)
    files = [file for part in parts for file in _files(folder / part, config)]
    files += [Path(path) for path in others] + ([own] if own else [])
    stats = ((str(file), file.stat()) for file in files)
    return str([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def existing_file(path: str) -> Path:
    """Return the file that an option names.

    Raises:
        BaseModelFilesError: The file is missing.
    """
    if not Path(path).is_file():
        raise BaseModelFilesError(path, "there is no such file on this worker")
    return Path(path)


def file_digest(file: Path) -> str:
    """Return a file's SHA-256, in hex.

    The Hub's cache names large files by their SHA-256; these are not read.
    """
    real = file.resolve()
    if real.parent.name == "blobs" and _SHA256_NAME.match(real.name):
        return real.name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def part_config(folder: Path, part: str) -> dict[str, object]:
    """Return the ``config.json`` of a part.

    Raises:
        BaseModelFilesError: The file is missing or not a JSON object.
    """
    return json_object(folder, f"{part}/config.json")


def json_object(folder: Path, name: str) -> dict[str, object]:
    """Return the object in a JSON file of a base model.

    Raises:
        BaseModelFilesError: The file is missing or not a JSON object.
    """
    try:
        values = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BaseModelFilesError(str(folder), f"{name}: {reason}") from error
    if not isinstance(values, dict):
        raise BaseModelFilesError(str(folder), f"{name} is not a JSON object")
    return values


def transformers_folder(model: str, revision: str | None) -> Path:
    """Return the folder of a transformers model, downloaded if it is on the Hub.

    Raises:
        BaseModelFilesError: It is missing.
    """
    if Path(model).is_dir():
        return Path(model)
    return _download(model, (*_SETTINGS, f"model{_WEIGHTS}"), (), revision)


def transformers_weights(folder: Path) -> list[Path]:
    """Return the files with a transformers model's weights.

    Raises:
        BaseModelFilesError: There are none, or the list of its shards is damaged.
    """
    index = "model.safetensors.index.json"
    if (folder / index).is_file():
        try:
            shards = set(_shards(json_object(folder, index)))
        except (AttributeError, TypeError) as error:
            problem = f"{index} is damaged; download it again"
            raise BaseModelFilesError(str(folder), problem) from error
        return sorted(folder / Path(shard).name for shard in shards)
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise BaseModelFilesError(str(folder), _no_weights(folder))


def _no_weights(part: Path) -> str:
    """Return what a folder has instead of weights."""
    names = sorted(file.name for file in part.iterdir()) if part.is_dir() else []
    if others := [name for name in names if name.endswith(_WEIGHTS[1:])]:
        return (
            f"has weights of other names or variants only ({listed(others)}); set hf_variant to "
            "the variant (of SDXL models), or take it out of the names"
        )
    if any(name.endswith(PICKLE_ENDINGS) for name in names):
        return "has only pickled weights, which can run code; use .safetensors weights"
    return "has no .safetensors weights"


def _variant(config: PipelineConfig, part: Path) -> str | None:
    """Return the variant of a part's weights to load: hf_variant, if the part has such files."""
    wanted: str | None = getattr(config, "hf_variant", None)
    return wanted if wanted and any(part.glob(f"*.{wanted}[.-]*{_WEIGHTS[2:]}")) else None


def _shards(index: dict[str, Any]) -> Iterator[str]:
    names = index["weight_map"].values() if index.get("weight_map") else ()
    if not names:
        raise TypeError(index)
    yield from names


def _stamps(value: str | dict[str, str]) -> object:
    """Return the stamp of a location, or of each one of a mapping."""
    if isinstance(value, dict):
        return {key: _stamps(each) for key, each in sorted(value.items())}
    return [value, _stamp(value)]


def _stamp(location: str) -> object:
    """Return what changes when a file, the files of a folder or a Hub repository change."""
    path = Path(location)
    if path.is_file() or path.is_dir():
        files = (
            sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        )
        stats = [(str(file), file.stat()) for file in files]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return _download(location, ("model_index.json", "config.json"), ()).name


def _digest(
    config: PipelineConfig, folder: Path, parts: Sequence[str], overrides: Sequence[Path | None]
) -> "hashlib._Hash":
    """Return the digest of the files of parts.

    Args:
        config: The training config.
        folder: The folder of the parts.
        parts: Names of subfolders.
        overrides: For each part, a single file that replaces its weights, or None.
    """
    digest = hashlib.sha256()
    for part, override in zip(parts, overrides, strict=True):
        files = _files(folder / part, config)
        if override:
            files = [file for file in files if not _is_weights(file)]
            files.append(override)
        for file in files:
            # Independent of an override's name, which says nothing about its contents.
            name = "override" if _is_weights(file) and override else file.name
            digest.update(f"{part}/{name} {file_digest(file)}\n".encode())
    return digest


def _files(part: Path, config: PipelineConfig) -> list[Path]:
    """Return the files of a part: its settings, and the weights of the variant that is loaded."""
    settings = [file for pattern in _SETTINGS for file in part.glob(pattern)]
    wanted = _variant(config, part)
    weights = [
        file
        for file in [*part.glob(_WEIGHTS), *part.glob("*.safetensors.index*.json")]
        if (
            re.search(rf"\.{re.escape(wanted)}[.-]", file.name)
            if wanted
            else not _VARIANT.search(file.name)
        )
    ]
    others = [file for file in settings if ".safetensors.index" not in file.name]
    return sorted({*weights, *others})


def _is_weights(file: Path) -> bool:
    return file.suffix == ".safetensors" or ".safetensors.index" in file.name


def _folder(model: str, parts: Sequence[str], wanted: str | None, *, weights: bool = True) -> Path:
    folder = Path(model)
    if not folder.is_dir():
        folder = _from_hub(model, parts, wanted, weights=weights)
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise BaseModelFilesError(
            model, f"it has no folder {', '.join(missing)}; it must be in diffusers' layout"
        )
    return folder


def _from_hub(
    model: str, parts: Sequence[str], wanted: str | None, *, weights: bool = True
) -> Path:
    """Return the snapshot of a Hub repository with these parts, each in one variant."""
    settings = ["model_index.json", *(f"{part}/{end}" for part in parts for end in _SETTINGS)]
    settings = [pattern.removeprefix("./") for pattern in settings]
    folder = _download(model, settings, ())
    if not weights:
        return folder
    if wanted:
        _download(model, [f"{part}/*.{wanted}*.safetensors" for part in parts], ())
    rest = [
        p for p in parts if not (wanted and any((folder / p).glob(f"*.{wanted}*{_WEIGHTS[1:]}")))
    ]
    plain = [f"{part}/{_WEIGHTS}".removeprefix("./") for part in rest]
    return _download(model, plain, _VARIANTS) if plain else folder


def _download(
    model: str, patterns: Sequence[str], ignored: Sequence[str], revision: str | None = None
) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
            )
        )
    except HFValidationError as error:
        raise BaseModelFilesError(
            model, "there is no such folder on this worker, and it is not a Hub id"
        ) from error
    except GatedRepoError as error:
        raise BaseModelFilesError(
            model, "it is gated: the owner of HF_TOKEN must accept its license on the Hub"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelFilesError(
            model, "it is neither a folder on this worker nor a repository that HF_TOKEN can read"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        first_line = str(error).partition("\n")[0]
        raise BaseModelFilesError(
            model, f"it is not a folder on this worker, and the Hub request failed: {first_line}"
        ) from error
