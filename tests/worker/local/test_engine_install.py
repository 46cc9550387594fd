import io
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import UsageError
from tasks.settings.settings import Settings
from worker.local import engine_install, pip_progress
from worker.local.engine_install import (
    COMMIT,
    LIBRARY,
    EngineInstallError,
    _requirement,
    install_invoke,
)
from worker.local.pip_progress import Progress, run_pip
from worker.supervision.engines import Installed, engine_marker, engine_python, invoke_python

# Its own backend, which makes a wheel without any library and network.
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import pathlib, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "invoke_training-0.0.1-py3-none-any.whl"
    pathlib.Path("build").mkdir()
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("invoke_training/__init__.py", "")
        info = "invoke_training-0.0.1.dist-info"
        metadata = "Metadata-Version: 2.1\\nName: invoke-training\\nVersion: 0.0.1\\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT, "utf-8")
    (folder / "backend.py").write_text(BACKEND, "utf-8")
    pins = tmp_path / "pins.txt"
    pins.touch()
    monkeypatch.setattr(engine_install, "_PINS", pins)
    return folder


def test_an_engine_is_found_once_it_is_complete(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, steps = Settings(home=tmp_path / "home"), list[str]()
    with pytest.raises(EngineInstallError, match="torch is not installed"):
        install_invoke(settings.home_dir, str(checkout), steps.append)
    assert not engine_marker(settings.home_dir).exists()
    assert invoke_python(settings) is None
    assert len(steps) == 4

    # What is there is kept; the build has written nothing into the checkout.
    monkeypatch.setattr(engine_install, "find_invoke", lambda _: Installed())
    python = install_invoke(settings.home_dir, str(checkout), steps.append)
    assert invoke_python(settings) == python == engine_python(settings.home_dir)
    assert {path.name for path in checkout.iterdir()} == {"pyproject.toml", "backend.py"}

    # A failed upgrade is not found either.
    (checkout / "backend.py").write_text("", "utf-8")
    with pytest.raises(EngineInstallError, match="resumes"):
        install_invoke(settings.home_dir, str(checkout), steps.append)
    assert invoke_python(settings) is None


def test_one_installation_runs_at_a_time(tmp_path: Path, checkout: Path) -> None:
    def install_again(_: str) -> None:
        install_invoke(tmp_path, str(checkout), lambda _: None)

    with pytest.raises(EngineInstallError, match="another installation runs"):
        install_invoke(tmp_path, str(checkout), install_again)


def test_no_step_shows_the_password_of_an_address(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, steps = list[tuple[str, ...]](), list[str]()
    monkeypatch.setattr(engine_install, "_pip", lambda _, *arguments: asked.append(arguments))
    monkeypatch.setattr(engine_install, "find_invoke", lambda _: Installed())
    monkeypatch.setattr("venv.create", lambda folder, **_: folder.mkdir(exist_ok=True))
    install_invoke(tmp_path, "https://me:s3cret@host/mirror.git", steps.append)
    assert "s3cret" in asked[-1][-1]
    assert "s3cret" not in "".join(steps)


def test_a_python_without_ensurepip_is_named(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, ["ensurepip"])

    monkeypatch.setattr("venv.create", create)
    with pytest.raises(EngineInstallError, match="install its module ensurepip"):
        install_invoke(tmp_path, str(checkout), lambda _: None)


@pytest.mark.parametrize(
    ("source", "requirement"),
    [
        (LIBRARY, f"git+{LIBRARY}@{COMMIT}"),
        (f"{LIBRARY}@main", f"git+{LIBRARY}@main"),
        ("ssh://git@host/mirror.git", f"git+ssh://git@host/mirror.git@{COMMIT}"),
    ],
)
def test_addresses_name_a_revision(source: str, requirement: str) -> None:
    assert _requirement(source) == requirement


@pytest.mark.parametrize("source", ["", "nowhere", "invoke-training==2.0", "--index-url=x"])
def test_other_sources_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a checkout"):
        _requirement(source or str(tmp_path / "absent"))


def test_progress_names_what_pip_does() -> None:
    progress = Progress()
    for line, text in (
        ("Collecting torch==2.13.0 (from -r x)\n", "1 packages found, looking for torch==2.13.0"),
        ("  Downloading https://x/torch-2.13.0-cp311.whl (858.1 MB)\n", "torch (858.1 MB)"),
        ("Collecting numpy\n", "2 packages found"),
        ("noise\n", "looking for numpy"),
        ("Installing collected packages: a, b, c\n", "unpacking 3 packages"),
    ):
        progress.read(line)
        assert text in progress.text()


def test_a_failure_of_pip_shows_its_end(tmp_path: Path) -> None:
    python, out, log = tmp_path / "python", io.StringIO(), tmp_path / "log"
    python.write_text("#!/bin/sh\nseq 1 40\necho no such package\nexit 3\n", "utf-8")
    python.chmod(0o700)
    assert run_pip(python, ("install", "x"), log, out) == 3
    assert "no such package\npip failed (3)" in out.getvalue()
    assert "20\n" not in out.getvalue()
    assert "package index" not in out.getvalue()
    assert log.read_text("utf-8").startswith("1\n2\n")


def test_an_unreachable_index_is_named(tmp_path: Path) -> None:
    out, index = io.StringIO(), "--index-url=http://127.0.0.1:9"
    arguments = ("download", index, "--no-deps", "--retries=1", "absent-package")
    assert run_pip(Path(sys.executable), arguments, tmp_path / "log", out) == 1
    assert "cannot reach the package index: check the network, the proxy" in out.getvalue()


def test_progress_fits_on_a_line_of_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(pip_progress, "_REDRAW_EVERY_S", 0.01)
    python, out = tmp_path / "python", Screen()
    name = "long-name-" * 9
    python.write_text(f"#!/bin/sh\nprintf 'Collecting \\033]0;{name}\\n'\nsleep 0.3\n", "utf-8")
    python.chmod(0o700)
    assert run_pip(python, (), tmp_path / "log", out) == 0
    lines = [line.removeprefix("\x1b[K") for line in out.getvalue().split("\r")]
    assert any("1 packages found" in line for line in lines)
    assert all(len(line) < 40 and line.isprintable() for line in lines)
