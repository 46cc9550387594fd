"""Traces of jobs, recorded in ``traces.json``, and the estimates beside them."""

import gc
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.memory_trace import fake_cuda
from benchmarks.memory_trace.shapes import COMPARED, traced_configs
from routing.classes import GIB
from routing.policy import TrainingType, route
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.job import TrainingConfig
from tasks.jobs.sdxl import SdxlLoraConfig

Traces = dict[str, dict[str, Any]]
"""Resident bytes, peaks of the phases and work, by the name of the job."""

SHALLOW = ("FLUX_LORA 512",)
"""Jobs that are traced with few blocks too, in 3 s: a test repeats these traces."""

SHALLOW_SUFFIX = ", few blocks"
HEADER = "| job | estimate, GiB | trace, GiB | off by | class | TFLOP | kernels | waits |"

WORK_HEADER = "| job | trainer | TFLOP | GB | kernels | copies | waits |"

_FILE = Path(__file__).with_name("traces.json")
_OTHERS = Path(__file__).with_name("compared.json")
_SCRIPT = "diffusers' script"
# CUDA's context, cuBLAS's and cuDNN's workspaces and fragmentation, which a trace does not see.
_CONTEXT_GIB = 0.7


def recorded() -> Traces:
    """Return the recorded traces."""
    found: Traces = json.loads(_FILE.read_text("utf-8"))
    return found


def record(names: Iterable[str]) -> None:
    """Trace jobs one after the other, and record each."""
    for name, trace in traced(names):
        _FILE.write_text(json.dumps(recorded() | {name: trace}, indent=1) + "\n", "utf-8")


def traced(names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Trace jobs, in a process that has not imported torch.

    Args:
        names: Names of jobs; those with ``SHALLOW_SUFFIX`` are traced with few blocks.

    Yields:
        The name and trace of each.
    """
    fake_cuda.load()
    # Imported now: they import torch.
    from benchmarks.memory_trace import kernels
    from benchmarks.memory_trace.run import SHALLOW_DEPTHS, trace_job, trace_training

    kernels.install()
    configs = traced_configs()
    gc.freeze()  # a trace collects garbage, among all that was imported
    for name in names:
        config = configs[name.removesuffix(SHALLOW_SUFFIX)]
        if name.endswith(SHALLOW_SUFFIX):
            yield name, vars(trace_training(config, SHALLOW_DEPTHS[0]))
        else:
            yield name, vars(trace_job(config))


def record_scripts(examples: Path) -> None:
    """Trace the scripts of diffusers for the jobs that are compared, and record their work.

    Args:
        examples: The folder of this name of diffusers' repository.
    """
    fake_cuda.load()
    # Imported now: they import torch.
    from benchmarks.memory_trace import kernels
    from benchmarks.memory_trace.script import trace_script

    kernels.install()
    configs = traced_configs()
    for name in COMPARED:
        config = configs[name]
        if isinstance(config, FluxLoraConfig | SdxlLoraConfig):
            work = trace_script(config, examples).work
            found = json.loads(_OTHERS.read_text("utf-8"))
            found.setdefault(_SCRIPT, {})[name] = work
            _OTHERS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def work_rows() -> Iterator[str]:
    """Yield a row of Markdown for each job that is compared, and each trainer."""
    trainers = json.loads(_OTHERS.read_text("utf-8"))
    trainers["training-worker"] = {name: trace["work"] for name, trace in recorded().items()}
    for name in COMPARED:
        for trainer, works in trainers.items():
            if work := works.get(name):
                copies = work["copies to the device"] + work["copies from the device"]
                sums = f"{work['flop'] / 1e12:.1f} | {work['bytes'] / 1e9:.0f} | {work['kernels']}"
                yield f"| {name} | {trainer} | {sums} | {copies} | {work['waits']} |"


def traced_gib(trace: dict[str, Any]) -> float:
    """Return the GiB of a trace's peak, with CUDA's context."""
    return float(max(trace["peaks"].values()) / GIB + _CONTEXT_GIB)


def rows() -> Iterator[str]:
    """Yield a row of Markdown for each job, without those that are not recorded."""
    traces = recorded()
    for name, config in traced_configs().items():
        if name in traces:
            yield _row(name, config, traces[name])


def _row(name: str, config: TrainingConfig, trace: dict[str, Any]) -> str:
    estimate, found, work = config.estimate(), traced_gib(trace), trace["work"]
    off = estimate.needed_gib / found - 1
    memory_class = route(TrainingType(config.type), estimate).memory_class
    sizes = f"{estimate.needed_gib:.2f} | {found:.2f} | {off:+.1%} | {memory_class}"
    return f"| {name} | {sizes} | {work['flop'] / 1e12:.0f} | {work['kernels']} | {work['waits']} |"
