"""Ratios of a training step's processor time to invoke-training's on the same job.

    OMP_NUM_THREADS=1 python -P benchmarks/invoke_training.py PYTHON [--report FILE]

PYTHON is an interpreter with invoke-training. Both train one tiny SDXL on the same images with the
same options: batch 1, float32, nothing cached. Only SDXL's types are compared, because the library
trains other layers of FLUX. Goal: 1.0 or less.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import parser_of, report_result
from benchmarks.steps_in_turn import SIDE, Ground, line_of

# Options by type, including the data loader's.
_TYPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SDXL_LORA": ({"lora_rank_dim": 4}, {"type": "IMAGE_CAPTION_SD_DATA_LOADER"}),
    "SDXL_TEXTUAL_INVERSION": (
        {"placeholder_token": "thing", "initializer_token": "square", "num_vectors": 2},
        {"type": "TEXTUAL_INVERSION_SD_DATA_LOADER", "caption_preset": "object"},
    ),
    "SDXL_FINETUNE": ({}, {"type": "IMAGE_CAPTION_SD_DATA_LOADER"}),
}


def main() -> None:
    """Measure and print the ratios."""
    parser = parser_of(__doc__)
    parser.add_argument("python", type=Path)
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as name:
        ground, job = Ground(Path(name)), Path(name) / "theirs.json"
        dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(ground.images)}
        for kind, (options, loader) in _TYPES.items():
            loader = {**loader, "resolution": SIDE, "dataset": dataset}
            training = ground.training(type=kind, data_loader=loader, **options)
            # The library reads YAML, which includes JSON.
            job.write_text(json.dumps({**training, "base_output_dir": name}), "utf-8")
            program = [str(arguments.python), "invoke_training.scripts.invoke_train"]
            request = ground.request(training)
            lines.append(line_of(request, "invoke-training", [*program, "--cfg-file", str(job)]))
    command = "OMP_NUM_THREADS=1 python -P benchmarks/invoke_training.py PYTHON"
    report_result(arguments.report, "Against invoke-training", command, "1.0 or less", lines)


if __name__ == "__main__":
    main()
