"""Hub datasets: read images and captions from parquet files. Runs no code of a repository."""

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

CONVERTED = "refs/convert/parquet"
"""The revision of the Hub's own conversion of a dataset: <config>/<split>/0000.parquet."""
MAX_ROW_PROBLEMS = 100
_LOCATION = "training.data_loader.dataset"
_MAX_NAMES = 20
_TRAIN = re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE)
_PARTIAL = "partial-train"


@dataclass
class HubRows:
    """The images of a Hub dataset, and the problems found.

    Attributes:
        files: Each image's name in messages, its file, and its caption if captions are used.
        problems: What ends the job; with any, the files may be incomplete.
        warnings: What does not.
    """

    files: list[tuple[str, Path, str | None]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


class _RefusedError(Exception):
    """The rest of a dataset is not read."""

    def __init__(
        self, message: str, option: str = "dataset_name", *, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.problem = Problem(f"{_LOCATION}.{option}", message, retryable=retryable)


@dataclass(frozen=True)
class _Choice:
    """The parquet files to read.

    Attributes:
        sha: Their commit.
        files: The files, in the order of their names.
        is_part: Whether the Hub converted only the first part of the dataset.
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
    """Write the training images of a Hub dataset into a folder.

    Rows are counted from 0, as in the Hub's viewer.

    Args:
        config: Names the dataset and its columns.
        folder: An existing folder for the images.
        captions: Whether captions are used, which every row must then have.
        max_bytes: The maximum that is downloaded, and the maximum that is written.
        hub: The Hub; None is the public one, or the one that ``HF_ENDPOINT`` names.
    """
    rows = HubRows()
    refusals: list[Problem] = []
    invalid = written = 0
    try:
        for number, values in enumerate(_rows(config, captions, max_bytes, hub or HfApi(), rows)):
            if number == MAX_ITEMS:
                message = f"{config.dataset_name} has over {MAX_ITEMS:,} rows, the maximum"
                raise _RefusedError(message)
            row = f"{config.dataset_name} row {number}"
            try:
                data, file_name = _image(values[0])
                caption = _caption(values[1], config.caption_column) if captions else None
            except ValueError as error:
                invalid += 1
                if invalid <= MAX_ROW_PROBLEMS:
                    rows.problems.append(Problem(row, str(error)))
                continue
            written += len(data)
            if written > max_bytes:
                message = f"the images of {config.dataset_name} have over {max_bytes:,} bytes"
                raise _RefusedError(f"{message}, the maximum")
            file = folder / f"{number:08}{_suffix(file_name)}"
            file.write_bytes(data)
            rows.files.append((f"{row} ({file_name})" if file_name else row, file, caption))
    except _RefusedError as refused:
        refusals.append(refused.problem)
    if invalid > MAX_ROW_PROBLEMS:
        message = f"{invalid - MAX_ROW_PROBLEMS:,} more rows have such problems"
        rows.problems.append(Problem(config.dataset_name, message))
    rows.problems += refusals
    if not rows.files and not rows.problems:
        rows.problems.append(_RefusedError(f"{config.dataset_name} has no rows").problem)
    return rows


def _rows(
    config: HFHubImageCaptionDatasetConfig,
    captions: bool,
    max_bytes: int,
    hub: HfApi,
    found: HubRows,
) -> Iterator[tuple[Any, ...]]:
    """Yield each row's image and, if captions are used, its caption, as pyarrow scalars."""
    name = config.dataset_name
    options = {"image_column": config.image_column}
    if captions:
        options["caption_column"] = config.caption_column
    choice = _choose(name, config.dataset_config_name, hub)
    if choice.is_part:
        message = f"the Hub has only the first part of {name} as parquet; the rest is not used"
        found.warnings.append(Problem(f"{_LOCATION}.dataset_name", message))
    size = sum(file.size for file in choice.files)
    if size > max_bytes:
        raise _RefusedError(f"{name} has {size:,} bytes; the maximum is {max_bytes:,}")
    for file in choice.files:
        # One by one: a column missing in the first file is reported before the rest is downloaded.
        with _hub_errors(name):
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
    """Yield a parquet file's rows in batches.

    Args:
        path: The file.
        name: The file's name in messages.
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
                    message = f"{name} has no column {column!r}; it has {_listed(names)}"
                    raise _RefusedError(message, option)
            columns = list(dict.fromkeys(options.values()))
            yield from file.iter_batches(batch_size=32, columns=columns)
    # UnicodeDecodeError: a column's name.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"{name} is damaged or cannot be read: {_first_line(error)}"
        raise _RefusedError(message) from error


def _image(scalar: Any) -> tuple[bytes, str]:
    """Return a row's image bytes, and the name of its file; empty if absent or not printable."""
    value = _python(scalar)
    data, path = value, None
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    if not isinstance(data, bytes) or not data:
        raise ValueError("has no image bytes; paths and URLs are not followed")
    file_name = path.rpartition("/")[2] if isinstance(path, str) else ""
    return data, file_name[-100:] if file_name.isprintable() else ""


def _caption(scalar: Any, column: str) -> str:
    value = _python(scalar)
    if isinstance(value, list) and value:
        value = value[0]  # an image with several captions gets the first one
    if not isinstance(value, str):
        raise ValueError(f"has no text in the column {column!r}")
    # Checked here, too, so that such captions are not collected in memory.
    if len(value) > MAX_CAPTION_BYTES:
        raise ValueError(f"has a caption of over {MAX_CAPTION_BYTES} bytes")
    return value


def _python(scalar: Any) -> object:
    """Return a scalar's value.

    Raises:
        ValueError: Python cannot hold the value: text that is not UTF-8, a date in the year 20,000.
    """
    try:
        value: object = scalar.as_py()
    except (ValueError, ArithmeticError, LookupError) as error:
        raise ValueError(f"cannot be read: {_first_line(error)}") from error
    return value


def _suffix(file_name: str) -> str:
    """Return a file name's suffix if it is an image's, else ``.png``."""
    suffix = PurePosixPath(file_name).suffix.lower()
    return suffix if suffix in SUFFIXES else ".png"


def _choose(name: str, wanted: str | None, hub: HfApi) -> _Choice:
    """Return the parquet files of the train split: the Hub's conversion, or the repository's own.

    Raises:
        _RefusedError: There are no such files, or several configurations and none is named.
    """
    sha, files = _parquet_files(name, CONVERTED, hub)
    converted = _converted_configs(files)
    picked = _pick(converted, wanted)
    is_part = picked is not None and any(f"/{_PARTIAL}/" in file.path for file in picked)
    if picked is not None and not is_part:
        return _Choice(sha, picked)
    if len(converted) > 1 and wanted is None:
        raise _RefusedError(_several(name, converted), "dataset_config_name")
    own_sha, files = _parquet_files(name, None, hub)
    if picked is not None:
        # The Hub converts only some gigabytes of a dataset; the repository may have all of it.
        whole = _pick(_own_configs([f for f in files if _is_train(f)]), wanted)
        return _Choice(own_sha, whole) if whole else _Choice(sha, picked, is_part=True)
    own = _own_configs([f for f in files if _is_train(f)] or files)
    own_picked = _pick(own, wanted)
    if own_picked is not None:
        return _Choice(own_sha, own_picked)
    known = {**converted, **own}
    if not known:
        raise _RefusedError(
            f"{name} has no parquet files with a train split; its scripts are never run"
        )
    if wanted is None:
        raise _RefusedError(_several(name, known), "dataset_config_name")
    message = f"{name} has no configuration {wanted!r}; it has {_listed(known)}"
    raise _RefusedError(message, "dataset_config_name")


def _several(name: str, configs: dict[str, list[RepoFile]]) -> str:
    return f"{name} has several configurations; name one of {_listed(configs)}"


def _pick(configs: dict[str, list[RepoFile]], wanted: str | None) -> list[RepoFile] | None:
    """Return the files of the wanted configuration, else of the only or default one; else None."""
    if wanted is not None:
        return configs.get(wanted)
    if len(configs) == 1:
        return next(iter(configs.values()))
    return configs.get("default")


def _converted_configs(files: list[RepoFile]) -> dict[str, list[RepoFile]]:
    """Return the train split's files of the Hub's conversion by configuration."""
    configs: dict[str, list[RepoFile]] = {}
    for file in files:
        match file.path.split("/"):
            case [config, "train" | "partial-train", _]:
                configs.setdefault(config, []).append(file)
    return configs


def _own_configs(files: list[RepoFile]) -> dict[str, list[RepoFile]]:
    """Return a repository's own files by configuration: the first folder that may name one."""
    configs: dict[str, list[RepoFile]] = {}
    for file in files:
        folders = file.path.split("/")[:-1]
        named = [name for name in folders if name != "data" and not _TRAIN.search(name)]
        configs.setdefault(named[0] if named else "default", []).append(file)
    return configs


def _is_train(file: RepoFile) -> bool:
    return _TRAIN.search(file.path) is not None


def _parquet_files(name: str, revision: str | None, hub: HfApi) -> tuple[str, list[RepoFile]]:
    """Return a revision's commit and its parquet files; none if the revision is missing."""
    with _hub_errors(name):
        try:
            sha = hub.dataset_info(name, revision=revision).sha
        except RevisionNotFoundError:
            return "", []
        if not sha:
            raise ValueError("the answer has no commit")
        tree = hub.list_repo_tree(name, recursive=True, revision=sha, repo_type="dataset")
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
        parquet = [file for file in files if file.path.endswith(".parquet")]
        return sha, sorted(parquet, key=lambda file: file.path)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn the errors of the Hub, or of a proxy before it, into problems of the dataset."""
    try:
        yield
    except HFValidationError as error:
        raise _RefusedError(f"{name} is not a Hub id") from error
    except GatedRepoError as error:
        message = f"{name} is gated: accept its license and set HF_TOKEN on the workers"
        raise _RefusedError(message) from error
    except RepositoryNotFoundError as error:
        raise _RefusedError(f"{name} is not a dataset that HF_TOKEN can read") from error
    # The second line is for a proxy's page instead of the Hub's answer.
    except (
        *(httpx2.HTTPError, OSError, EntryNotFoundError, RevisionResolutionError, XetDownloadError),
        *(ValueError, LookupError, TypeError, AttributeError),
    ) as error:
        message = f"the Hub request for {name} failed: {_first_line(error)}"
        raise _RefusedError(message, retryable=is_transient(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _listed(names: Any) -> str:
    """Return names as a list in words, shortened if they are many."""
    words = [str(name) for name in names]
    rest = [f"{len(words) - _MAX_NAMES} more"] if len(words) > _MAX_NAMES else []
    return ", ".join(words[:_MAX_NAMES] + rest)
