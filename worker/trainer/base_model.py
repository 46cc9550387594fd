"""The files of a base model: where they lie, whether they are all there, and their digests.

Knows files only; ``encoders`` and ``transformer`` load them. Imports neither diffusers nor
transformers, so that a cache request with nothing to encode stays quick.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.errors import BaseModelFilesError

# Pickle files and the single-file copies at the top of a repository are never fetched.
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
_SHA256_NAME = re.compile(r"^[0-9a-f]{64}$")
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema|ema)[.-]")


def base_model_folder(config: FluxLoraConfig, parts: Sequence[str]) -> Path:
    """The diffusers folder that holds these parts of the base model, fetched if on the Hub.

    Args:
        config: Names the model.
        parts: Names of subfolders (``transformer``, ``tokenizer_2``).

    Raises:
        BaseModelFilesError: The model, or one of the parts, is not there.
    """
    folder = Path(config.model)
    if not folder.is_dir():
        folder = _from_hub(config.model, parts)
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise BaseModelFilesError(
            config.model, f"it has no folder {', '.join(missing)}; it must be in diffusers' layout"
        )
    return folder


def existing_file(path: str) -> Path:
    """The file of an override.

    Raises:
        BaseModelFilesError: It is not there.
    """
    if not Path(path).is_file():
        raise BaseModelFilesError(path, "there is no such file on this worker")
    return Path(path)


def weights_digest(folder: Path, parts: Sequence[str], overrides: Sequence[str | None]) -> str:
    """SHA-256 over all the files that decide what encoders put out.

    Args:
        folder: The base model's.
        parts: Its subfolders in question: encoders with their tokenizers.
        overrides: Single files, each of which replaces the weights of the part at its place.
    """
    digest = hashlib.sha256()
    for part, override in zip(parts, overrides, strict=True):
        files = [file for file in _files(folder / part) if not (override and _is_weights(file))]
        if override:
            files.append(existing_file(override))
        for file in files:
            # An override's own name says nothing about its contents.
            name = "override" if _is_weights(file) and override else file.name
            digest.update(f"{part}/{name} {file_digest(file)}\n".encode())
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """A file's SHA-256, in hex.

    The Hub's cache names large files by their SHA-256; those are not read again.
    """
    real = file.resolve()
    if real.parent.name == "blobs" and _SHA256_NAME.match(real.name):
        return real.name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def part_config(folder: Path, part: str) -> dict[str, object]:
    """The ``config.json`` of a part.

    Raises:
        BaseModelFilesError: It is missing or no JSON object.
    """
    path = folder / part / "config.json"
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BaseModelFilesError(str(folder), f"{part}/config.json: {reason}") from error
    if not isinstance(values, dict):
        raise BaseModelFilesError(str(folder), f"{part}/config.json is no JSON object")
    return values


def _files(part: Path) -> list[Path]:
    found = (file for pattern in _PATTERNS for file in part.glob(pattern))
    return sorted(file for file in found if not _VARIANT.search(file.name))


def _is_weights(file: Path) -> bool:
    return file.suffix == ".safetensors" or file.name.endswith(".safetensors.index.json")


def _from_hub(model: str, parts: Sequence[str]) -> Path:
    patterns = ["model_index.json", *(f"{part}/{end}" for part in parts for end in _PATTERNS)]
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns))
    except HFValidationError as error:
        raise BaseModelFilesError(
            model, "there is no such folder on this worker, and it is no Hub id"
        ) from error
    except GatedRepoError as error:
        raise BaseModelFilesError(
            model, "its license must be accepted on the Hub by the owner of HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelFilesError(
            model, "neither a folder on this worker nor a repository HF_TOKEN can see"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        first_line = str(error).partition("\n")[0]
        raise BaseModelFilesError(
            model, f"no folder on this worker, and the Hub says: {first_line}"
        ) from error
