"""Base model validation before a job uses a GPU. Reads small files and headers, no weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass
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

from tasks.errors import Problem
from tasks.escaping import shortened
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlConfig
from tasks.transient import is_transient


@dataclass(frozen=True)
class _Family:
    """The parts of a family's base models.

    Attributes:
        pipeline: The start of the names of its diffusers pipelines.
        weights: Each part with weights, and the option whose file replaces the weights.
        file_keys: What a single file lacks if no tensor's name has one of these starts.
    """

    pipeline: str
    weights: dict[str, str | None]
    file_keys: dict[str, tuple[str, ...]]


_FLUX = _Family(
    "Flux",
    {
        "transformer": "transformer_path",
        "text_encoder": "text_encoder_1_path",
        "text_encoder_2": "text_encoder_2_path",
        "vae": None,
    },
    {
        "no transformer": ("model.diffusion_model.double_blocks.", "double_blocks."),
        "no CLIP text encoder": ("text_encoders.clip_l.",),
        "no T5 text encoder": ("text_encoders.t5xxl.",),
        "no VAE": ("vae.", "first_stage_model."),
    },
)
_SDXL = _Family(
    "StableDiffusionXL",
    {"unet": None, "text_encoder": None, "text_encoder_2": None, "vae": None},
    {
        "no UNet": ("model.diffusion_model.input_blocks.",),
        "no first text encoder": ("conditioner.embedders.0.transformer.",),
        "no second text encoder": ("conditioner.embedders.1.model.",),
        "no VAE": ("first_stage_model.",),
    },
)
_TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# safetensors itself refuses longer headers.
_MAX_HEADER_BYTES = 100_000_000


def check_base_model(config: PipelineConfig, hub: HfApi | None = None) -> list[Problem]:
    """Return every problem of a job's base model that this machine can see.

    Args:
        config: Names the model and the files that replace parts of it.
        hub: The Hub; None is the public one, or the one that ``HF_ENDPOINT`` names.
    """
    hub = hub or HfApi()
    family = _SDXL if isinstance(config, SdxlConfig) else _FLUX
    problems = []
    for option in filter(None, family.weights.values()):
        path = getattr(config, option)
        if path is not None:
            problems += _check_weights_file(Path(path), f"training.{option}")
    for location, path in _embedding_files(config).items():
        problems += _check_embedding(Path(path), location)
    vae_model: str | None = getattr(config, "vae_model", None)
    if vae_model is not None:
        problems += _check_vae_model(vae_model, hub)
    if config.model.endswith(".safetensors"):
        return problems + _check_single_file(config, family, hub)
    if _is_folder(config.model):
        return problems + _check_folder(Path(config.model), config, family)
    return problems + _check_hub_id(config.model, "training.model", family.pipeline, hub)


def _embedding_files(config: PipelineConfig) -> dict[str, str]:
    """Return the textual-inversion files that a config reads, by option."""
    tokens: dict[str, str] = getattr(config, "base_embeddings", {})
    files = {f"training.base_embeddings.{token}": path for token, path in tokens.items()}
    initial: str | None = getattr(config, "initial_embedding_file", None)
    return files | ({"training.initial_embedding_file": initial} if initial else {})


def _check_embedding(path: Path, location: str) -> list[Problem]:
    problems = _check_weights_file(path, location)
    if problems:
        return problems
    shapes = {name: entry.get("shape") for name, entry in _header(path).items()}
    for name in ("clip_l", "clip_g"):
        shape = shapes.get(name)
        if not isinstance(shape, list) or len(shape) != 2:
            message = f"{path} has no matrix {name}; it is not an SDXL textual inversion"
            problems.append(Problem(location, message))
    return problems


def _check_vae_model(model: str, hub: HfApi) -> list[Problem]:
    location = "training.vae_model"
    if not _is_folder(model):
        return _check_hub_id(model, location, None, hub)
    folder = Path(model)
    return _check_part(folder / "vae" if (folder / "vae").is_dir() else folder, False)


def _check_single_file(config: PipelineConfig, family: _Family, hub: HfApi) -> list[Problem]:
    """Check a whole model in one file, and the configs and tokenizers that describe it."""
    path, location = Path(config.model), "training.model"
    problems = _check_weights_file(path, location)
    if not problems:
        names = list(_header(path))
        for missing, starts in family.file_keys.items():
            if not any(name.startswith(starts) for name in names):
                problems.append(Problem(location, f"{path} has {missing}; it is not a whole model"))
    described = config.single_file_config or type(config).model_fields["model"].default
    if _is_folder(described):
        return problems + _check_folder(Path(described), config, family, weights=False)
    return problems + _check_hub_id(described, "training.single_file_config", family.pipeline, hub)


def _check_folder(
    folder: Path, config: PipelineConfig, family: _Family, *, weights: bool = True
) -> list[Problem]:
    index = folder / "model_index.json"
    if not index.is_file():
        return [Problem(str(folder), "has no model_index.json; it must be in diffusers' layout")]
    pipeline = str(_json(index).get("_class_name"))
    if not pipeline.startswith(family.pipeline):
        needed = f"{config.type} needs a {family.pipeline}Pipeline"
        return [Problem(str(index), f"describes a {pipeline}; {needed}")]
    problems = []
    for part, option in family.weights.items():
        replaced = option is not None and getattr(config, option) is not None
        replaced |= part == "vae" and getattr(config, "vae_model", None) is not None
        problems += _check_part(folder / part, replaced or not weights)
    for part, encoder in _TOKENIZERS.items():
        problems += _check_tokenizer(folder / part, folder / encoder)
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        problems.append(Problem(str(folder / "scheduler"), "has no scheduler_config.json"))
    return problems


def _check_part(folder: Path, replaced: bool) -> list[Problem]:
    if not (folder / "config.json").is_file():
        return [Problem(str(folder), "has no config.json")]
    if not _json(folder / "config.json"):
        return [Problem(str(folder / "config.json"), "is damaged; download it again")]
    if replaced:
        return []
    weights = sorted(folder.glob("*.safetensors"))
    shards = set()
    for index in folder.glob("*.safetensors.index.json"):
        names = _mapping(_json(index).get("weight_map")).values()
        if not names:
            return [Problem(str(index), "is damaged; download it again")]
        shards |= {folder / str(name) for name in names}
    if not weights and not shards:
        if any(file.suffix in _PICKLES for file in folder.iterdir()):
            message = "has only pickled weights, which can run code; use .safetensors weights"
            return [Problem(str(folder), message)]
        return [Problem(str(folder), "has no .safetensors weights")]
    return [
        problem
        for file in sorted({*weights, *shards})
        for problem in _check_weights_file(file, str(file))
    ]


def _check_weights_file(path: Path, location: str) -> list[Problem]:
    """Check by its header that a safetensors file exists and is complete."""
    if not _exists(path.is_file):
        return [Problem(location, f"there is no file {shortened(str(path))} on this worker")]
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            return [Problem(location, f"{path} is not a safetensors file, or is truncated")]
        try:
            header = json.loads(file.read(length))
            ends = [
                int(entry["data_offsets"][1])
                for name, entry in header.items()
                if name != "__metadata__"
            ]
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            return [Problem(location, f"{path} has a damaged safetensors header")]
    if 8 + length + max(ends, default=0) != size:
        return [Problem(location, f"{path} is truncated or damaged; download it again")]
    return []


def _header(path: Path) -> dict[str, Any]:
    """Return the tensors' entries of a valid safetensors file, by name."""
    with path.open("rb") as file:
        header = _mapping(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    return {name: _mapping(entry) for name, entry in header.items() if name != "__metadata__"}


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


def _check_hub_id(model: str, location: str, pipeline: str | None, hub: HfApi) -> list[Problem]:
    """Check that a repository exists, and is a pipeline whose name starts so."""
    try:
        info = hub.model_info(model)
        described = _mapping(_mapping(info.config).get("diffusers")).get("_class_name")
        if pipeline and described and not str(described).startswith(pipeline):
            return [Problem(location, f"{model} is a {described}; a {pipeline}Pipeline is needed")]
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


def _is_in_local_cache(model: str) -> bool:
    try:
        snapshot_download(model, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True


def _json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; an empty one if it is missing or something else."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return _mapping(values)


def _mapping(value: Any) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def _is_folder(path: str) -> bool:
    return _exists(Path(path).is_dir)


def _exists(check: Callable[[], bool]) -> bool:
    """Return the result of a path's check; False for a path that is too long to exist."""
    try:
        return check()
    except OSError:
        return False
