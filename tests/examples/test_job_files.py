from pathlib import Path

import pytest

from routing.policy import TrainingType
from tests.docs.reference import ROOT
from worker.cli.job_file import load_job

EXAMPLES = ROOT / "examples"
QUEUES = {
    "flux_lora.yaml": "gpu.40gb",
    "sdxl_finetune.yaml": "gpu.80gb",
    "sdxl_lora.yaml": "gpu.24gb",
    "sdxl_textual_inversion.yaml": "gpu.16gb",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_job_file_is_routed_without_a_warning(path: Path) -> None:
    job = load_job(path)
    assert job.training.type.lower() == path.stem
    assert job.warnings() == []
    assert job.route().gpu_queue == QUEUES[path.name]


def test_each_training_type_has_a_job_file() -> None:
    assert {path.stem.upper() for path in EXAMPLES.glob("*.yaml")} == set(TrainingType)


def test_readme_lists_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text("utf-8")
    for path in EXAMPLES.iterdir():
        assert f"`{path.name}`" in page or path.name == "README.md"
