"""The part of the GPU check that runs whole jobs, tried on an emulated GPU."""

from pathlib import Path

from benchmarks.gpu_parts import Check, jobs_on
from tests.integration.fleets import Fleet


def test_killed_and_warm_jobs_end_like_an_undisturbed_one(
    fleet: Fleet, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "flux").symlink_to(tiny_model)
    whole, killed, warm = jobs_on(fleet, Check(tmp_path, "cpu", "tiny"))
    assert killed["ok"]
    assert warm["ok"]
    assert whole["sha256"]
