import json
import os
import subprocess
import sys

import pytest

from benchmarks.memory_trace import fake_cuda
from benchmarks.memory_trace.shapes import traced_configs
from benchmarks.memory_trace.traces import SHALLOW, SHALLOW_SUFFIX, recorded, traced_gib
from routing.policy import TrainingType, route
from tests.docs.reference import ROOT

CONFIGS = traced_configs()
REPEAT = """
import json, sys
from benchmarks.memory_trace.traces import traced
print(json.dumps(dict(traced(sys.argv[1:]))))
"""


def test_every_job_is_recorded() -> None:
    shallow = {f"{name}{SHALLOW_SUFFIX}" for name in SHALLOW}
    assert recorded().keys() == CONFIGS.keys() | shallow


@pytest.mark.parametrize("name", CONFIGS)
def test_an_estimate_is_its_trace(name: str) -> None:
    config, traced = CONFIGS[name], traced_gib(recorded()[name])
    estimate = config.estimate()
    assert estimate.needed_gib == pytest.approx(traced, rel=0.05)
    found = route(TrainingType(config.type), estimate)
    assert traced < found.memory_class.floor_gib


@pytest.mark.timeout(300)
@pytest.mark.skipif(not fake_cuda.can_load(), reason="tracing needs g++, which was not found")
def test_a_trace_repeats() -> None:
    names = [f"{name}{SHALLOW_SUFFIX}" for name in SHALLOW]
    process = subprocess.run(
        [sys.executable, "-P", "-c", REPEAT, *names],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    again, before = json.loads(process.stdout.splitlines()[-1]), recorded()
    for name in names:
        assert again[name]["peaks"] == pytest.approx(before[name]["peaks"], rel=0.01)
