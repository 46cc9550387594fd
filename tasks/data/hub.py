"""Hub datasets: read images and captions from parquet files. Runs no code of a repository."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
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

from tasks.data.decoding.decoder_pool import DecodeError, decode_file
from tasks.data.download.background import call_in_background
from tasks.data.download.pace import MIN_BYTES_PER_S, WINDOW_S
from tasks.data.jsonl import column_remedy
from tasks.dataset import MAX_CAPTION_BYTES, MAX_ITEMS
from tasks.errors import Problem
from tasks.escaping import listed
from tasks.jobs.datasets import HFHubImageCaptionDatasetConfig
from tasks.transient import is_transient

CONVERTED = "refs/convert/parquet"
"""The revision of the Hub's own conversion of a dataset: <config>/<split>/0000.parquet."""
MAX_ROW_PROBLEMS = 100
_LOCATION = "training.data_loader.dataset"
# Some ten requests, and a page for each thousand files.
_LIST_TIMEOUT_S = 300.0
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
        self,
        message: str,
        option: str = "dataset_name",
        *,
        remedy: str = "",
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.problem = Problem(f"{_LOCATION}.{option}", message, remedy, retryable)


@dataclass(frozen=True)
class _Choice:
    """The parquet files to read.

    Attributes:
        sha: Their commit.
        files: The files, in the order of their names.
        others: The paths of the commit's other parquet files.
        is_part: Whether the Hub converted only the first part of the dataset.
    """

    sha: str
    files: list[RepoFile]
    others: list[str]
    is_part: bool = False


def fetch_hub(
    config: HFHubImageCaptionDatasetConfig,
    folder: Path,
    *,
    captions: bool,
    max_bytes: int,
    check_stop: Callable[[], object] = lambda: None,
    hub: HfApi | None = None,
) -> HubRows:
    """Write the training images of a Hub dataset into a folder.

    Rows are counted from 0, as in the Hub's viewer.

    Args:
        config: Names the dataset and its columns.
        folder: An existing folder for the images.
        captions: Whether captions are used, which every row must then have.
        max_bytes: The maximum that is downloaded, and the maximum that is written.
        check_stop: Called a few times a second while files are read. An exception that it raises
            ends the reading.
        hub: The Hub; None is the public one, or the one that ``HF_ENDPOINT`` names.
    """
    reader = _Reader(config, folder, captions, max_bytes, check_stop)
    refusals: list[Problem] = []
    try:
        reader.read(hub or HfApi())
    except _RefusedError as refused:
        refusals.append(refused.problem)
    rows = reader.rows
    if reader.invalid > MAX_ROW_PROBLEMS:
        message = f"{reader.invalid - MAX_ROW_PROBLEMS:,} more rows have such problems"
        rows.problems.append(Problem(config.dataset_name, message))
    rows.problems += refusals
    if not rows.files and not rows.problems:
        rows.problems.append(_RefusedError(f"{config.dataset_name} has no rows").problem)
    return rows


class _Reader:
    """Downloads the parquet files of a Hub dataset, and lets decoders read them.

    Attributes:
        rows: The rows so far.
        invalid: The number of rows with a problem.
    """

    def __init__(
        self,
        config: HFHubImageCaptionDatasetConfig,
        folder: Path,
        captions: bool,
        max_bytes: int,
        check_stop: Callable[[], object],
    ) -> None:
        self._config, self._folder, self._max_bytes = config, folder, max_bytes
        self._check_stop = check_stop
        self._options = {"image_column": config.image_column}
        if captions:
            self._options["caption_column"] = config.caption_column
        self._number, self._bytes_left = 0, max_bytes
        self.rows, self.invalid = HubRows(), 0

    def read(self, hub: HfApi) -> None:
        """Read all files.

        Raises:
            _RefusedError: The rest of the dataset is not read.
        """
        name = self._config.dataset_name
        with _hub_errors(name):
            choice = call_in_background(
                lambda: _choose(name, self._config.dataset_config_name, hub),
                self._check_stop,
                _LIST_TIMEOUT_S,
            )
        if choice.is_part:
            message = f"the Hub has only the first part of {name} as parquet; the rest is not used"
            self.rows.warnings.append(Problem(f"{_LOCATION}.dataset_name", message))
        if choice.others:
            message = f"only the train split is read, and not {len(choice.others):,} other files of"
            listing = f"{message} {name}: {listed(choice.others)}"
            self.rows.warnings.append(Problem(f"{_LOCATION}.dataset_name", listing))
        size = sum(file.size for file in choice.files)
        if size > self._max_bytes:
            raise _RefusedError(f"{name} has {size:,} bytes; the maximum is {self._max_bytes:,}")
        for file in choice.files:
            # One by one: a column missing in the first file is reported before the rest is
            # downloaded.
            with _hub_errors(name):
                download = partial(
                    hub.hf_hub_download,
                    name,
                    file.path,
                    repo_type="dataset",
                    revision=choice.sha,
                    cache_dir=self._config.hf_cache_dir,
                )
                timeout_s = WINDOW_S + file.size / MIN_BYTES_PER_S
                path = call_in_background(download, self._check_stop, timeout_s)
            self._read_file(path, f"{name}/{file.path}")

    def _read_file(self, path: str, name: str) -> None:
        request = {
            "kind": "parquet",
            "path": path,
            "folder": str(self._folder),
            "columns": list(self._options.values()),
            "number": self._number,
            "max_rows": MAX_ITEMS,
            "max_bytes": self._bytes_left,
            "max_caption_bytes": MAX_CAPTION_BYTES,
        }
        try:
            result = decode_file(request, check_stop=self._check_stop, on_items=self._add)
        except DecodeError as error:
            raise _RefusedError(f"{name} {error}") from error
        match result:
            case {"columns": names}:
                option = next(
                    it for it, column in self._options.items() if names.count(column) != 1
                )
                column = self._options[option]
                if column in names:
                    message = f"{name} has the column {column!r} more than once"
                    raise _RefusedError(message, option)
                message = f"{name} has no column {column!r}; it has {listed(names)}"
                free = [it for it in names if it not in self._options.values()]
                raise _RefusedError(message, option, remedy=column_remedy(option, column, free))
            case {"exceeded": "rows"}:
                message = f"{self._config.dataset_name} has over {MAX_ITEMS:,} rows, the maximum"
                raise _RefusedError(message)
            case {"exceeded": _}:
                message = f"the images of {self._config.dataset_name} have over"
                raise _RefusedError(f"{message} {self._max_bytes:,} bytes, the maximum")
        self._bytes_left = result["bytes_left"]

    def _add(self, rows: list[dict[str, Any]]) -> None:
        """Add rows that a decoder has written."""
        for row in rows:
            location = f"{self._config.dataset_name} row {self._number}"
            self._number += 1
            if "problem" in row:
                self.invalid += 1
                if self.invalid <= MAX_ROW_PROBLEMS:
                    self.rows.problems.append(Problem(location, row["problem"]))
                continue
            name = f"{location} ({row['name']})" if row["name"] else location
            self.rows.files.append((name, Path(row["file"]), row["caption"]))


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
        return _Choice(sha, picked, _others(files, picked))
    if len(converted) > 1 and wanted is None:
        raise _RefusedError(_several(name, converted), "dataset_config_name")
    own_sha, own_files = _parquet_files(name, None, hub)
    train = [file for file in own_files if _is_train(file)]
    if picked is not None:
        # The Hub converts only some gigabytes of a dataset; the repository may have all of it.
        whole = _pick(_own_configs(train), wanted)
        if whole:
            return _Choice(own_sha, whole, _others(own_files, whole))
        return _Choice(sha, picked, _others(files, picked), is_part=True)
    own = _own_configs(train or own_files)
    own_picked = _pick(own, wanted)
    if own_picked is not None:
        return _Choice(own_sha, own_picked, _others(own_files, own_picked))
    known = {**converted, **own}
    if not known:
        raise _RefusedError(
            f"{name} has no parquet files with a train split; its scripts are never run"
        )
    if wanted is None:
        raise _RefusedError(_several(name, known), "dataset_config_name")
    message = f"{name} has no configuration {wanted!r}; it has {listed([*known])}"
    raise _RefusedError(message, "dataset_config_name")


def _others(files: list[RepoFile], picked: list[RepoFile]) -> list[str]:
    paths = {file.path for file in picked}
    return [file.path for file in files if file.path not in paths]


def _several(name: str, configs: dict[str, list[RepoFile]]) -> str:
    return f"{name} has several configurations; name one of {listed([*configs])}"


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
        *(ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    ) as error:
        message = f"the Hub request for {name} failed: {_first_line(error)}"
        # RuntimeError: another call, which a cancelled job may have left, closed the client of all.
        retryable = is_transient(error) or isinstance(error, RuntimeError)
        raise _RefusedError(message, retryable=retryable) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
