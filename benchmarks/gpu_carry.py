"""Collect the wheels that a machine with a GPU lacks for the GPU check, to carry them there.

    python -P benchmarks/gpu_carry.py FOLDER --has FREEZE [--python 3.12] [--cuda 130]

FREEZE is the output of ``python -m pip freeze`` on that machine, which has PyTorch and transformers
of its own. FOLDER gets the wheels of everything else in the versions of this environment, for that
version of Python; of bitsandbytes only the library of that version of CUDA. At most 64 MiB
together.
"""

import argparse
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_EXTRAS = ("worker", "train", "quantization", "embedded")
# Too large to carry, or bound to the machine's driver or to its other packages.
_ALWAYS_THEIRS = {"torch", "transformers", "huggingface-hub", "tokenizers", "triton"}
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 34, 31, 28, 27, 24, 17, 12, 5)]
_PLATFORMS += [f"manylinux{name}_x86_64" for name in (2014, 2010, 1)]
_LIMIT_MIB = 64


def main() -> int:
    """Collect the wheels.

    Returns:
        An exit code.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--has", type=Path, required=True, help="output of pip freeze there")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--cuda", default="130")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    wanted, theirs = requirements(), _frozen(arguments.has.read_text("utf-8"))
    target = ["--python-version", arguments.python, "--implementation", "cp"]
    target += [
        "--only-binary=:all:",
        *(word for name in _PLATFORMS for word in ("--platform", name)),
    ]
    lacks = missing(wanted, theirs, arguments.python)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*download, "--dest", str(folder), *target, *lacks], check=True)
    for wheel in folder.glob("bitsandbytes-*.whl"):
        _keep_one_library(wheel, arguments.cuda)
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl")) / 2**20
    print(f"{len(lacks)} wheels, {size:.1f} MiB. There, in the project's folder:")
    print(f"  python3 -m pip install --no-index --no-deps --target site {folder}/*.whl")
    print("  PYTHONPATH=site:. python3 -P -m benchmarks.gpu_check /dev/shm/check")
    return int(size > _LIMIT_MIB)


def requirements() -> list[Requirement]:
    """Return what the check needs, of the project's requirements."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))[
        "project"
    ]
    lines = [*project["dependencies"]]
    for extra in _EXTRAS:
        lines += project["optional-dependencies"][extra]
    # The fleet of the check comes from the tests.
    lines += [
        line for line in project["optional-dependencies"]["dev"] if line.startswith("pytest>")
    ]
    return [Requirement(line) for line in lines if not line.startswith(f"{project['name']}[")]


def _frozen(text: str) -> dict[str, str]:
    """Return the versions of a machine's packages by name."""
    pairs = re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pairs}


def missing(wanted: list[Requirement], theirs: dict[str, str], python: str) -> list[str]:
    """Return what the machine lacks of the requirements and of all that they need, pinned."""
    found: dict[str, str] = {}
    for requirement in (waiting := list(wanted)):
        name = canonicalize_name(requirement.name)
        if name in found or _is_there(requirement, theirs):
            continue
        here = distribution(name)
        found[name] = here.version
        for extra in ("", *requirement.extras):
            environment = {"extra": extra, "python_version": python}
            needed = map(Requirement, here.requires or [])
            waiting += [it for it in needed if not it.marker or it.marker.evaluate(environment)]
    return [f"{name}=={version}" for name, version in found.items()]


def _is_there(requirement: Requirement, theirs: dict[str, str]) -> bool:
    """Return whether the machine has a package, in a version that will do."""
    name = canonicalize_name(requirement.name)
    version = theirs.get(name)
    return name in _ALWAYS_THEIRS or (version is not None and version in requirement.specifier)


def _keep_one_library(wheel: Path, cuda: str) -> None:
    """Remove bitsandbytes' libraries for other versions of CUDA from its wheel."""
    smaller = wheel.with_suffix(".part")
    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as to,
    ):
        for name in source.namelist():
            library = re.search(r"/libbitsandbytes_(\w+)\.so$", name)
            if library is None or library[1] in ("cpu", f"cuda{cuda}"):
                to.writestr(name, source.read(name))
    smaller.replace(wheel)


if __name__ == "__main__":
    sys.exit(main())
