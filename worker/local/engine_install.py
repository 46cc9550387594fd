"""Installation of engine ``invoke-training``: its own interpreter in ``TRAINING_HOME/engines``.

The library's pins exclude ours. Its environment is made in place and becomes visible to workers
once it is complete and the library can be imported: until then, it lacks the file ``installed``. An
interrupted installation resumes, since pip keeps what is installed.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import worker
from tasks.errors import ErrorCode, JobError, UsageError
from worker.local.pip_progress import run_pip
from worker.supervision.engines import engine_folder, engine_marker, engine_python, find_invoke

LIBRARY = "https://github.com/invoke-ai/invoke-training"
COMMIT = "99c673d0e453e1b5cfb2ed38959572867ed3ed22"
"""The version that the patches are for."""
_PINS = Path(worker.__file__).parents[1] / "deploy" / "invoke-training.txt"
# Of a checkout, which may be read-only, whatever the library's package does not need.
_NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "venv", "build", "output", "__pycache__")
_ADDRESSES = ("https://", "http://", "ssh://", "file://")


class EngineInstallError(JobError):
    """The engine cannot be installed."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, ErrorCode.INTERNAL)


def install_invoke(home: Path, source: str, report: Callable[[str], None]) -> Path:
    """Install the engine, unless it is, and return its interpreter.

    Args:
        home: ``TRAINING_HOME``.
        source: A checkout of the library, or the address of its git repository; ``@`` and a
            revision may follow an address.
        report: Called with what happens next.

    Raises:
        UsageError: The source is neither, or this is no checkout of this project.
        EngineInstallError: pip fails, the library cannot be imported, or another installation runs.
    """
    if not _PINS.is_file():
        raise UsageError(f"{_PINS} is missing: run this in a checkout of training-worker")
    requirement = _requirement(source)
    try:
        with _locked(engine_folder(home)):
            return _install(home, requirement, report)
    except OSError as error:
        raise EngineInstallError(f"cannot write {engine_folder(home)}: {error}") from error


def _install(home: Path, requirement: str, report: Callable[[str], None]) -> Path:
    folder, python, marker = engine_folder(home), engine_python(home), engine_marker(home)
    wanted = hashlib.sha256(f"{requirement} {_PINS.read_text('utf-8')}".encode()).hexdigest()
    is_checkout = requirement.startswith("/")  # which may have changed
    if not is_checkout and marker.exists() and marker.read_text("utf-8") == wanted:
        report(f"is installed already: {folder}")
        return python
    marker.unlink(missing_ok=True)
    report(f"creating an environment in {folder}")
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError as error:
        problem = f"{sys.executable} cannot put pip into {folder}: install its module ensurepip"
        raise EngineInstallError(f"{problem}, such as by Debian's python3-venv") from error
    report("installing PyTorch and the libraries, about 2 GB")
    _pip(folder, "install", "--requirement", str(_PINS))
    # Not the source, which may have a password.
    report("installing the library")
    _install_library(folder, requirement)
    report("importing it once")
    found = find_invoke(python)
    if found.problems:
        raise EngineInstallError("\n".join(found.problems))
    marker.write_text(wanted, "utf-8")
    return python


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other installations out of it.

    Raises:
        EngineInstallError: Another one runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "install.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            problem = f"another installation runs in {folder}; wait until it has ended"
            raise EngineInstallError(problem) from error
        yield


def _requirement(source: str) -> str:
    """Return what pip installs: the absolute path of a checkout, or a requirement of a revision.

    Raises:
        UsageError: The source is neither.
    """
    path = Path(source).expanduser().absolute()
    if (path / "pyproject.toml").is_file():
        return str(path)
    if (path / "objects").is_dir():  # a bare repository
        return f"git+{path.as_uri()}@{COMMIT}"
    if not source.startswith(_ADDRESSES):
        raise UsageError(
            f"--from {source}: is neither a checkout of invoke-training, which has a "
            f"pyproject.toml, nor an address such as {LIBRARY}"
        )
    has_revision = "@" in source.rpartition("/")[2]
    return f"git+{source}" if has_revision else f"git+{source}@{COMMIT}"


def _install_library(folder: Path, requirement: str) -> None:
    options = ("install", "--no-deps", "--force-reinstall")
    with ExitStack() as stack:
        if requirement.startswith("/"):
            # The build writes beside the sources.
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "invoke-training"
            shutil.copytree(requirement, copy, ignore=_NOT_COPIED)
            requirement = str(copy)
        _pip(folder, *options, requirement)


def _pip(folder: Path, *arguments: str) -> None:
    log = folder / "install.log"
    if code := run_pip(folder / "bin" / "python", arguments, log, sys.stderr):
        raise EngineInstallError(
            f"pip ended with {code}; its output is in {log}. The same command resumes"
        )
