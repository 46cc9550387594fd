"""Checking a base model before any GPU is used. Reads small files and headers only, no weights."""

import json
from collections.abc import Callable
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

from tasks.errors import Fault
from tasks.jobs.pipeline import PipelineConfig

# Parts with weights: the option whose file stands in for the part's own weights.
_WEIGHTS = {
    "transformer": "transformer_path",
    "text_encoder": "text_encoder_1_path",
    "text_encoder_2": "text_encoder_2_path",
    "vae": None,
}
_TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# safetensors itself refuses longer headers.
_LONGEST_HEADER = 100_000_000


def check_base_model(config: PipelineConfig, hub: HfApi | None = None) -> list[Fault]:
    """Everything that is wrong with a job's base model, as seen from this machine.

    Args:
        config: Names the model and the files that stand in for parts of it.
        hub: The Hub to ask; None is the public one, or the one that ``HF_ENDPOINT`` names.
    """
    faults = []
    for option in filter(None, _WEIGHTS.values()):
        path = getattr(config, option)
        if path is not None:
            faults += _check_weights_file(Path(path), f"training.{option}")
    folder = Path(config.model)
    if _holds(folder.is_dir):
        return faults + _check_folder(folder, config)
    return faults + _check_hub_id(config.model, hub or HfApi())


def _check_folder(folder: Path, config: PipelineConfig) -> list[Fault]:
    index = folder / "model_index.json"
    if not index.is_file():
        return [Fault(str(folder), "holds no model_index.json; it must be in diffusers' layout")]
    pipeline = str(_json(index).get("_class_name"))
    if not pipeline.startswith("Flux"):
        return [Fault(str(index), f"describes a {pipeline}; FLUX_LORA needs a FluxPipeline")]
    faults = []
    for part, option in _WEIGHTS.items():
        replaced = option is not None and getattr(config, option) is not None
        faults += _check_part(folder / part, replaced)
    for part, encoder in _TOKENIZERS.items():
        faults += _check_tokenizer(folder / part, folder / encoder)
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        faults.append(Fault(str(folder / "scheduler"), "holds no scheduler_config.json"))
    return faults


def _check_part(folder: Path, replaced: bool) -> list[Fault]:
    if not (folder / "config.json").is_file():
        return [Fault(str(folder), "holds no config.json")]
    if not _json(folder / "config.json"):
        return [Fault(str(folder / "config.json"), "is damaged; fetch it again")]
    if replaced:
        return []
    weights = sorted(folder.glob("*.safetensors"))
    shards = set()
    for index in folder.glob("*.safetensors.index.json"):
        names = _mapping(_json(index).get("weight_map")).values()
        if not names:
            return [Fault(str(index), "is damaged; fetch it again")]
        shards |= {folder / str(name) for name in names}
    if not weights and not shards:
        if any(file.suffix in _PICKLES for file in folder.iterdir()):
            problem = "holds only pickled weights, which are programs; only .safetensors is read"
            return [Fault(str(folder), problem)]
        return [Fault(str(folder), "holds no .safetensors weights")]
    return [f for file in sorted({*weights, *shards}) for f in _check_weights_file(file, str(file))]


def _check_weights_file(path: Path, where: str) -> list[Fault]:
    """Whether a safetensors file is there and whole, judged by its header."""
    if not _holds(path.is_file):
        return [Fault(where, f"there is no file {path} on this worker")]
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            return [Fault(where, f"{path} is no safetensors file, or is broken off")]
        try:
            header = json.loads(file.read(length))
            ends = [int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"]
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            return [Fault(where, f"{path} has a damaged safetensors header")]
    if 8 + length + max(ends, default=0) != size:
        return [Fault(where, f"{path} is broken off or damaged; fetch it again")]
    return []


def _check_tokenizer(folder: Path, encoder: Path) -> list[Fault]:
    """Whether a tokenizer knows the words its encoder was trained with.

    A tokenizer folder without a vocabulary loads without an error and knows two to four tokens.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        names = ", ".join(_VOCABULARIES)
        return [Fault(str(folder), f"holds no vocabulary ({names}); fetch the tokenizer again")]
    known = _vocabulary_size(folder)
    wanted = _json(encoder / "config.json").get("vocab_size")
    # Encoders pad their embedding tables a little; a vocabulary of under half is another one.
    if known is not None and isinstance(wanted, int) and known < wanted / 2:
        problem = f"knows {known} tokens, its encoder {wanted}; fetch the tokenizer again"
        return [Fault(str(folder), problem)]
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


def _check_hub_id(model: str, hub: HfApi) -> list[Fault]:
    where = "training.model"
    try:
        hub.model_info(model)
    except HFValidationError:
        return [Fault(where, f"there is no folder {model} on this worker, and it is no Hub id")]
    except GatedRepoError:
        return [Fault(where, f"{model} is gated: accept its license and set HF_TOKEN on workers")]
    except RepositoryNotFoundError:
        return [Fault(where, f"{model} is no folder here and no repository HF_TOKEN can see")]
    # ValueError and KeyError: a proxy's page instead of the Hub's answer.
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError, KeyError) as error:
        if _is_in_local_cache(model):
            return []
        first_line = str(error).partition("\n")[0]
        return [
            Fault(where, f"{model} is no folder here and the Hub cannot be asked: {first_line}")
        ]
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


def _holds(is_there: Callable[[], bool]) -> bool:
    """Whether a path is there; one too long for any file is not."""
    try:
        return is_there()
    except OSError:
        return False
