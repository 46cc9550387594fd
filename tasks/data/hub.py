"""Hub datasets: images and captions out of parquet files. Runs no code of a repository."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
    XetDownloadError,
)
from huggingface_hub.hf_api import RepoFile

from tasks.data.images import SUFFIXES
from tasks.dataset import MAX_CAPTION_BYTES, MAX_ITEMS
from tasks.errors import Problem
from tasks.jobs.datasets import HFHubImageCaptionDatasetConfig
from tasks.transient import is_transient

# Where the Hub keeps what it made of a dataset: <config>/<split>/0000.parquet.
CONVERTED = "refs/convert/parquet"
MAX_ROW_PROBLEMS = 100
_WHERE = "training.data_loader.dataset"
_MAX_NAMES = 20
_TRAIN = re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE)
_PARTIAL = "partial-train"


@dataclass
class HubRows:
    """What a Hub dataset holds, and what is wrong with it.

    Attributes:
        files: Each image's name for messages, its file, and its caption where they are wanted.
        faults: What is wrong; with any, the files may be only some of those there are.
        warnings: What the user should know although it can be trained on.
    """

    files: list[tuple[str, Path, str | None]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


class _RefusedError(Exception):
    """A dataset of which no more is read."""

    def __init__(
        self, problem: str, option: str = "dataset_name", *, retryable: bool = False
    ) -> None:
        super().__init__(problem)
        self.problem = Problem(f"{_WHERE}.{option}", problem, retryable=retryable)


@dataclass(frozen=True)
class _Choice:
    """The parquet files to read.

    Attributes:
        sha: The commit they are of.
        files: In the order of their names.
        is_part: Whether the Hub converted the first part of the dataset only.
    """

    sha: str
    files: list[RepoFile]
    is_part: bool = False


def fetch_hub(
    config: HFHubImageCaptionDatasetConfig,
    folder: Path,
    *,
    captions: bool,
    max_bytes: int,
    hub: HfApi | None = None,
) -> HubRows:
    """Write a Hub dataset's training images into a folder.

    Rows are counted from 0, as the Hub's viewer counts them.

    Args:
        config: Names the dataset and its columns.
        folder: Where the images go; it is there.
        captions: Whether captions are wanted: every row must have one then.
        max_bytes: The most that may be downloaded, and the most that may be written.
        hub: The Hub to ask; None is the public one, or the one that ``HF_ENDPOINT`` names.
    """
    rows = HubRows()
    stop: list[Problem] = []
    bad = written = 0
    try:
        for number, values in enumerate(_rows(config, captions, max_bytes, hub or HfApi(), rows)):
            if number == MAX_ITEMS:
                problem = f"{config.dataset_name} holds more rows than {MAX_ITEMS:,}, the most"
                raise _RefusedError(problem)
            row = f"{config.dataset_name} row {number}"
            try:
                data, said = _image(values[0])
                caption = _caption(values[1], config.caption_column) if captions else None
            except ValueError as error:
                bad += 1
                if bad <= MAX_ROW_PROBLEMS:
                    rows.problems.append(Problem(row, str(error)))
                continue
            written += len(data)
            if written > max_bytes:
                problem = f"the images of {config.dataset_name} take over {max_bytes:,} bytes"
                raise _RefusedError(f"{problem}, the most")
            file = folder / f"{number:08}{_suffix(said)}"
            file.write_bytes(data)
            rows.files.append((f"{row} ({said})" if said else row, file, caption))
    except _RefusedError as refused:
        stop.append(refused.problem)
    if bad > MAX_ROW_PROBLEMS:
        rest = f"{bad - MAX_ROW_PROBLEMS:,} more rows have such faults"
        rows.problems.append(Problem(config.dataset_name, rest))
    rows.problems += stop
    if not rows.files and not rows.problems:
        rows.problems.append(_RefusedError(f"{config.dataset_name} holds no rows").problem)
    return rows


def _rows(
    config: HFHubImageCaptionDatasetConfig,
    captions: bool,
    max_bytes: int,
    hub: HfApi,
    told: HubRows,
) -> Iterator[tuple[Any, ...]]:
    """Each row's image and, where they are wanted, caption, as pyarrow's scalars."""
    name = config.dataset_name
    options = {"image_column": config.image_column}
    if captions:
        options["caption_column"] = config.caption_column
    choice = _choose(name, config.dataset_config_name, hub)
    if choice.is_part:
        problem = f"the Hub has only the first part of {name} as parquet; the rest is not used"
        told.warnings.append(Problem(f"{_WHERE}.dataset_name", problem))
    size = sum(file.size for file in choice.files)
    if size > max_bytes:
        raise _RefusedError(f"{name} takes {size:,} bytes; the most is {max_bytes:,}")
    for file in choice.files:
        # Fetched one by one: a column missing in the first is told before the others come.
        with _asked(name):
            path = hub.hf_hub_download(
                name,
                file.path,
                repo_type="dataset",
                revision=choice.sha,
                cache_dir=config.hf_cache_dir,
            )
        for batch in _batches(Path(path), f"{name}/{file.path}", options):
            yield from zip(*(batch.column(column) for column in options.values()), strict=True)


def _batches(path: Path, name: str, options: dict[str, str]) -> Iterator[Any]:
    """A parquet file's rows, some at a time.

    Args:
        path: The file.
        name: What it is called in messages.
        options: The columns to read, by the options that name them.
    """
    pyarrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    try:
        # Not buffered ahead: a row group of images can be gigabytes.
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            for option, column in options.items():
                if names.count(column) != 1:
                    problem = f"{name} has no column {column!r}; it has {_listed(names)}"
                    raise _RefusedError(problem, option)
            columns = list(dict.fromkeys(options.values()))
            yield from file.iter_batches(batch_size=32, columns=columns)
    # UnicodeDecodeError: a column's name.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"{name} is damaged or cannot be read: {_first_line(error)}"
        raise _RefusedError(problem) from error


def _image(scalar: Any) -> tuple[bytes, str]:
    """A row's image bytes, and what its file was called, where that is said and can be shown."""
    value = _python(scalar)
    data, path = value, None
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    if not isinstance(data, bytes) or not data:
        raise ValueError("holds no image bytes; paths and URLs are not followed")
    said = path.rpartition("/")[2] if isinstance(path, str) else ""
    return data, said[-100:] if said.isprintable() else ""


def _caption(scalar: Any, column: str) -> str:
    value = _python(scalar)
    if isinstance(value, list) and value:
        value = value[0]  # of several captions of an image, the first one
    if not isinstance(value, str):
        raise ValueError(f"has no text in the column {column!r}")
    # Told here already, so that no such ones are gathered in memory.
    if len(value) > MAX_CAPTION_BYTES:
        raise ValueError(f"has a caption of over {MAX_CAPTION_BYTES} bytes")
    return value


def _python(scalar: Any) -> object:
    """A scalar's value.

    Raises:
        ValueError: Python has no such value: text that is no UTF-8, a date of the year 20,000.
    """
    try:
        value: object = scalar.as_py()
    except (ValueError, ArithmeticError, LookupError) as error:
        raise ValueError(f"cannot be read: {_first_line(error)}") from error
    return value


def _suffix(said: str) -> str:
    """The suffix to write an image under; the text gives no more than one of those known."""
    suffix = PurePosixPath(said).suffix.lower()
    return suffix if suffix in SUFFIXES else ".png"


def _choose(name: str, wanted: str | None, hub: HfApi) -> _Choice:
    """The parquet files of the train split: the Hub's conversion, or else the repository's own.

    Raises:
        _RefusedError: There are none, or several configurations and none is named.
    """
    sha, files = _parquet_files(name, CONVERTED, hub)
    converted = _converted_configs(files)
    found = _picked(converted, wanted)
    is_part = found is not None and any(f"/{_PARTIAL}/" in file.path for file in found)
    if found is not None and not is_part:
        return _Choice(sha, found)
    if len(converted) > 1 and wanted is None:
        raise _RefusedError(_several(name, converted), "dataset_config_name")
    own_sha, files = _parquet_files(name, None, hub)
    if found is not None:
        # The Hub converts no more than some gigabytes; the repository may hold all of it.
        whole = _picked(_own_configs([f for f in files if _says_train(f)]), wanted)
        return _Choice(own_sha, whole) if whole else _Choice(sha, found, is_part=True)
    own = _own_configs([f for f in files if _says_train(f)] or files)
    chosen = _picked(own, wanted)
    if chosen is not None:
        return _Choice(own_sha, chosen)
    known = {**converted, **own}
    if not known:
        raise _RefusedError(
            f"{name} has no parquet files with a train split; scripts in it are never run"
        )
    if wanted is None:
        raise _RefusedError(_several(name, known), "dataset_config_name")
    problem = f"{name} has no configuration {wanted!r}; it has {_listed(known)}"
    raise _RefusedError(problem, "dataset_config_name")


def _several(name: str, configs: dict[str, list[RepoFile]]) -> str:
    return f"{name} has several configurations; name one of {_listed(configs)}"


def _picked(configs: dict[str, list[RepoFile]], wanted: str | None) -> list[RepoFile] | None:
    """The files of the wanted configuration, or else of the default or only one, if it is there."""
    if wanted is not None:
        return configs.get(wanted)
    if len(configs) == 1:
        return next(iter(configs.values()))
    return configs.get("default")


def _converted_configs(files: list[RepoFile]) -> dict[str, list[RepoFile]]:
    """The train split's files of the Hub's conversion by their configurations."""
    configs: dict[str, list[RepoFile]] = {}
    for file in files:
        match file.path.split("/"):
            case [config, "train" | "partial-train", _]:
                configs.setdefault(config, []).append(file)
    return configs


def _own_configs(files: list[RepoFile]) -> dict[str, list[RepoFile]]:
    """A repository's own files by their configurations: the first folder that may name one."""
    configs: dict[str, list[RepoFile]] = {}
    for file in files:
        folders = file.path.split("/")[:-1]
        named = [name for name in folders if name != "data" and not _TRAIN.search(name)]
        configs.setdefault(named[0] if named else "default", []).append(file)
    return configs


def _says_train(file: RepoFile) -> bool:
    return _TRAIN.search(file.path) is not None


def _parquet_files(name: str, revision: str | None, hub: HfApi) -> tuple[str, list[RepoFile]]:
    """The commit that a revision is now, and its parquet files; none where there is no such one."""
    with _asked(name):
        try:
            sha = hub.dataset_info(name, revision=revision).sha
        except RevisionNotFoundError:
            return "", []
        if not sha:
            raise ValueError("it names no commit")
        tree = hub.list_repo_tree(name, recursive=True, revision=sha, repo_type="dataset")
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
        parquet = [file for file in files if file.path.endswith(".parquet")]
        return sha, sorted(parquet, key=lambda file: file.path)


@contextmanager
def _asked(name: str) -> Iterator[None]:
    """Tells of what the Hub, or what stands between, answers instead of a dataset."""
    try:
        yield
    except HFValidationError as error:
        raise _RefusedError(f"{name} is no Hub id") from error
    except GatedRepoError as error:
        problem = f"{name} is gated: accept its license and set HF_TOKEN on workers"
        raise _RefusedError(problem) from error
    except RepositoryNotFoundError as error:
        raise _RefusedError(f"{name} is no dataset HF_TOKEN can see") from error
    # The second line: a proxy's page instead of the Hub's answer.
    except (
        *(httpx2.HTTPError, OSError, EntryNotFoundError, RevisionResolutionError, XetDownloadError),
        *(ValueError, LookupError, TypeError, AttributeError),
    ) as error:
        problem = f"the Hub cannot be asked for {name}: {_first_line(error)}"
        raise _RefusedError(problem, retryable=is_transient(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _listed(names: Any) -> str:
    """Names as a person reads them; of very many, the first."""
    shown = [str(name) for name in names]
    rest = [f"{len(shown) - _MAX_NAMES} more"] if len(shown) > _MAX_NAMES else []
    return ", ".join(shown[:_MAX_NAMES] + rest)
