"""Reports what an interpreter has of the engine: ``python -P -m worker.trainer.invoke.describe``.

It needs the standard library only, so that it answers in interpreters that lack everything else. If
nothing is missing it imports the library: versions that do not work together fail only there.
"""

import contextlib
import importlib
import json
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from worker.trainer.invoke.torchvision_build import accept_any_torchvision_build

LIBRARY = "invoke-training"
# The libraries that compute; with the rest of NEEDED, those that this engine imports.
COMPUTING = ("torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "numpy")
NEEDED = (LIBRARY, *COMPUTING, "safetensors", "prodigyopt", "pydantic", "obstore", "tensorboardX")
# With version 5, textual inversion fails, and the keys of text-encoder LoRAs change silently.
_TRANSFORMERS = "4"
# With the loops of all training types, and through them everything that a job imports.
_IMPORTED = ("invoke_training.config.pipeline_config", "invoke_training.pipelines.invoke_train")
_MAX_CAUSE = 300


def describe() -> dict[str, object]:
    """Return the installed versions, and an error for each missing or unusable library."""
    versions: dict[str, str] = {}
    problems = []
    for name in NEEDED:
        try:
            versions[name] = _version(distribution(name))
        except PackageNotFoundError:
            problems.append(f"{name} is not installed")
    transformers = versions.get("transformers", _TRANSFORMERS)
    if transformers.partition(".")[0] != _TRANSFORMERS:
        problems.append(f"transformers is {transformers}; the library needs {_TRANSFORMERS}")
    return {"versions": versions, "errors": problems or _import_problems()}


def _import_problems() -> list[str]:
    """Return why the modules that this engine uses cannot be imported."""
    name = "torchvision"
    try:
        # What they print is no part of the answer.
        with contextlib.redirect_stdout(sys.stderr):
            accept_any_torchvision_build()
            for name in _IMPORTED:
                importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - whatever a library raises, it is unusable
        cause = " ".join(str(error).split())[:_MAX_CAUSE]
        return [f"importing {name} fails: {type(error).__name__}: {cause}"]
    return []


def _version(found: Distribution) -> str:
    """Return the version, with the commit if it was installed from one."""
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    return f"{found.version} ({commit[:7]})" if commit else found.version


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe()))
