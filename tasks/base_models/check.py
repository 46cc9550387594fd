"""Checking a base model before any GPU is used. Reads small files and headers only, no weights."""

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
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlConfig
from tasks.transient import is_transient


@dataclass(frozen=True)
class _Family:
    """What a base model of a family holds.

    Attributes:
        pipeline: How the names of its pipelines begin.
        weights: Parts with weights: the option whose file stands in for the part's own weights.
        file_keys: What the names of tensors in a single file begin with, by what they are.
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
_LONGEST_HEADER = 100_000_000


def check_base_model(config: PipelineConfig, hub: HfApi | None = None) -> list[Problem]:
    """Everything that is wrong with a job's base model, as seen from this machine.

    Args:
        config: Names the model and the files that stand in for parts of it.
        hub: The Hub to ask; None is the public one, or the one that ``HF_ENDPOINT`` names.
    """
    hub = hub or HfApi()
    family = _SDXL if isinstance(config, SdxlConfig) else _FLUX
    problems = []
    for option in filter(None, family.weights.values()):
        path = getattr(config, option)
        if path is not None:
            problems += _check_weights_file(Path(path), f"training.{option}")
    for where, path in _embedding_files(config).items():
        problems += _check_embedding(Path(path), where)
    vae_model: str | None = getattr(config, "vae_model", None)
    if vae_model is not None:
        problems += _check_vae_model(vae_model, hub)
    if config.model.endswith(".safetensors"):
        return problems + _check_single_file(config, family, hub)
    if _is_folder(config.model):
        return problems + _check_folder(Path(config.model), config, family)
    return problems + _check_hub_id(config.model, "training.model", family.pipeline, hub)


def _embedding_files(config: PipelineConfig) -> dict[str, str]:
    """The textual-inversion files that a config reads, by its fields."""
    tokens: dict[str, str] = getattr(config, "base_embeddings", {})
    files = {f"training.base_embeddings.{token}": path for token, path in tokens.items()}
    initial: str | None = getattr(config, "initial_embedding_file", None)
    return files | ({"training.initial_embedding_file": initial} if initial else {})


def _check_embedding(path: Path, where: str) -> list[Problem]:
    problems = _check_weights_file(path, where)
    if problems:
        return problems
    shapes = {name: entry.get("shape") for name, entry in _header(path).items()}
    for name in ("clip_l", "clip_g"):
        shape = shapes.get(name)
        if not isinstance(shape, list) or len(shape) != 2:
            problem = f"{path} holds no {name}, rows of vectors; it is no SDXL textual inversion"
            problems.append(Problem(where, problem))
    return problems


def _check_vae_model(model: str, hub: HfApi) -> list[Problem]:
    where = "training.vae_model"
    if not _is_folder(model):
        return _check_hub_id(model, where, None, hub)
    folder = Path(model)
    return _check_part(folder / "vae" if (folder / "vae").is_dir() else folder, False)


def _check_single_file(config: PipelineConfig, family: _Family, hub: HfApi) -> list[Problem]:
    """A whole model in one file, and the configs and tokenizers that describe it."""
    path, where = Path(config.model), "training.model"
    problems = _check_weights_file(path, where)
    if not problems:
        names = list(_header(path))
        for what, starts in family.file_keys.items():
            if not any(name.startswith(starts) for name in names):
                problems.append(Problem(where, f"{path} holds {what}; it is no whole model"))
    described = config.single_file_config or type(config).model_fields["model"].default
    if _is_folder(described):
        return problems + _check_folder(Path(described), config, family, weights=False)
    return problems + _check_hub_id(described, "training.single_file_config", family.pipeline, hub)


def _check_folder(
    folder: Path, config: PipelineConfig, family: _Family, *, weights: bool = True
) -> list[Problem]:
    index = folder / "model_index.json"
    if not index.is_file():
        return [Problem(str(folder), "holds no model_index.json; it must be in diffusers' layout")]
    pipeline = str(_json(index).get("_class_name"))
    if not pipeline.startswith(family.pipeline):
        wanted = f"{config.type} needs a {family.pipeline}Pipeline"
        return [Problem(str(index), f"describes a {pipeline}; {wanted}")]
    problems = []
    for part, option in family.weights.items():
        replaced = option is not None and getattr(config, option) is not None
        replaced |= part == "vae" and getattr(config, "vae_model", None) is not None
        problems += _check_part(folder / part, replaced or not weights)
    for part, encoder in _TOKENIZERS.items():
        problems += _check_tokenizer(folder / part, folder / encoder)
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        problems.append(Problem(str(folder / "scheduler"), "holds no scheduler_config.json"))
    return problems


def _check_part(folder: Path, replaced: bool) -> list[Problem]:
    if not (folder / "config.json").is_file():
        return [Problem(str(folder), "holds no config.json")]
    if not _json(folder / "config.json"):
        return [Problem(str(folder / "config.json"), "is damaged; fetch it again")]
    if replaced:
        return []
    weights = sorted(folder.glob("*.safetensors"))
    shards = set()
    for index in folder.glob("*.safetensors.index.json"):
        names = _mapping(_json(index).get("weight_map")).values()
        if not names:
            return [Problem(str(index), "is damaged; fetch it again")]
        shards |= {folder / str(name) for name in names}
    if not weights and not shards:
        if any(file.suffix in _PICKLES for file in folder.iterdir()):
            problem = "holds only pickled weights, which are programs; only .safetensors is read"
            return [Problem(str(folder), problem)]
        return [Problem(str(folder), "holds no .safetensors weights")]
    return [f for file in sorted({*weights, *shards}) for f in _check_weights_file(file, str(file))]


def _check_weights_file(path: Path, where: str) -> list[Problem]:
    """Whether a safetensors file is there and whole, judged by its header."""
    if not _holds(path.is_file):
        return [Problem(where, f"there is no file {path} on this worker")]
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            return [Problem(where, f"{path} is no safetensors file, or is broken off")]
        try:
            header = json.loads(file.read(length))
            ends = [int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"]
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            return [Problem(where, f"{path} has a damaged safetensors header")]
    if 8 + length + max(ends, default=0) != size:
        return [Problem(where, f"{path} is broken off or damaged; fetch it again")]
    return []


def _header(path: Path) -> dict[str, Any]:
    """The tensors of a sound safetensors file by name."""
    with path.open("rb") as file:
        header = _mapping(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    return {name: _mapping(entry) for name, entry in header.items() if name != "__metadata__"}


def _check_tokenizer(folder: Path, encoder: Path) -> list[Problem]:
    """Whether a tokenizer knows the words its encoder was trained with.

    A tokenizer folder without a vocabulary loads without an error and knows two to four tokens.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        names = ", ".join(_VOCABULARIES)
        return [Problem(str(folder), f"holds no vocabulary ({names}); fetch the tokenizer again")]
    known = _vocabulary_size(folder)
    wanted = _json(encoder / "config.json").get("vocab_size")
    # Encoders pad their embedding tables a little; a vocabulary of under half is another one.
    if known is not None and isinstance(wanted, int) and known < wanted / 2:
        problem = f"knows {known} tokens, its encoder {wanted}; fetch the tokenizer again"
        return [Problem(str(folder), problem)]
    return []


def _vocabulary_size(folder: Path) -> int | None:
    """How many tokens a tokenizer knows; None where only loading it would tell."""
    if (folder / "tokenizer.json").is_file():
        values = _json(folder / "tokenizer.json")
        vocabulary = _mapping(values.get("model")).get("vocab")
        if not values or isinstance(vocabulary, dict | list):
            return len(vocabulary or ())
        return None
    if (folder / "vocab.json").is_file():
        return len(_json(folder / "vocab.json"))
    return None


def _check_hub_id(model: str, where: str, pipeline: str | None, hub: HfApi) -> list[Problem]:
    """Whether a repository is there, and one of the pipelines whose names begin so."""
    try:
        found = hub.model_info(model)
        described = _mapping(_mapping(found.config).get("diffusers")).get("_class_name")
        if pipeline and described and not str(described).startswith(pipeline):
            return [Problem(where, f"{model} is a {described}; a {pipeline}Pipeline is needed")]
    except HFValidationError:
        return [Problem(where, f"there is no folder {model} on this worker, and it is no Hub id")]
    except GatedRepoError:
        return [Problem(where, f"{model} is gated: accept its license and set HF_TOKEN on workers")]
    except RepositoryNotFoundError:
        return [Problem(where, f"{model} is no folder here and no repository HF_TOKEN can see")]
    # ValueError and KeyError: a proxy's page instead of the Hub's answer.
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError, KeyError) as error:
        if _is_in_local_cache(model):
            return []
        first_line = str(error).partition("\n")[0]
        problem = f"{model} is no folder here and the Hub cannot be asked: {first_line}"
        return [Problem(where, problem, retryable=is_transient(error))]
    return []


def _is_in_local_cache(model: str) -> bool:
    try:
        snapshot_download(model, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True


def _json(path: Path) -> dict[str, Any]:
    """A JSON object's values; none where the file is missing or is no object."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return _mapping(values)


def _mapping(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def _is_folder(path: str) -> bool:
    return _holds(Path(path).is_dir)


def _holds(is_there: Callable[[], bool]) -> bool:
    """Whether a path is there; one too long for any file is not."""
    try:
        return is_there()
    except OSError:
        return False
