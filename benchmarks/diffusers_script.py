"""Ratios of a training step's processor time to that of diffusers' LoRA scripts.

    OMP_NUM_THREADS=1 python -P benchmarks/diffusers_script.py PYTHON EXAMPLES [--report FILE]

EXAMPLES is the folder of that name of the diffusers project, and PYTHON an interpreter with the
dependencies of its scripts. Both sides train the same layers of one model on the same images, rank
4, batch 1: a tiny SDXL with nothing cached, a tiny FLUX and one of 300 million parameters
with cached latents. Goals: 1.0 or less; 0.9 with ``compile``, which the scripts do not have.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from benchmarks.filled_cache import with_filled_cache
from benchmarks.memory_trace.shapes import SCRIPTS
from benchmarks.results import parser_of, report_result
from benchmarks.step_overhead import SIZES
from benchmarks.steps_in_turn import SIDE, Ground, line_of
from worker.trainer.tiny_models import build_tiny_flux

_TEXT_TOKENS = 64
_CASES = (
    ("SDXL_LORA", "tiny", "float32", False, 100),
    ("FLUX_LORA", "tiny", "float32", False, 100),
    ("FLUX_LORA", "300 M", "float32", False, 20),
    ("FLUX_LORA", "300 M", "bfloat16", False, 20),
    ("FLUX_LORA", "300 M", "bfloat16", True, 20),
)
"""Training type, size, precision, whether ours is compiled, and steps."""
_MIXED_PRECISIONS = {"float32": "no", "bfloat16": "bf16"}
# Those of the scripts.
_SDXL_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
_FLUX_LAYERS = [f"attn.{name}" for name in (*_SDXL_LAYERS, "add_q_proj", "add_k_proj")]
_FLUX_LAYERS += ["attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2"]
_FLUX_LAYERS += ["ff_context.net.0.proj", "ff_context.net.2"]


def main() -> None:
    """Measure and print the ratios."""
    parser = parser_of(__doc__)
    parser.add_argument("python", type=Path)
    parser.add_argument("examples", type=Path)
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as name:
        ground = Ground(Path(name))
        for case in _CASES:
            with tempfile.TemporaryDirectory() as folder:
                program = [str(arguments.python), str(arguments.examples / SCRIPTS[case[0]])]
                lines.append(measured(ground, Path(folder), program, *case))
    command = "OMP_NUM_THREADS=1 python -P benchmarks/diffusers_script.py PYTHON EXAMPLES"
    goal = "1.0 or less, 0.9 or less with compile"
    report_result(arguments.report, "Against diffusers' script", command, goal, lines)


def measured(
    ground: Ground,
    folder: Path,
    program: list[str],
    kind: str,
    size: str,
    precision: str,
    compiles: bool,
    steps: int,
) -> str:
    """Compare a step's processor time on both sides."""
    training: dict[str, Any] = {
        "type": kind,
        "weight_dtype": precision,
        "max_train_steps": steps,
        "save_every_n_steps": steps,
    }
    loader: dict[str, Any] = {
        "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "unused"}
    }
    loader |= {"type": "IMAGE_CAPTION_SD_DATA_LOADER", "resolution": SIDE}
    model, images = ground.model, image_folder(ground.images, folder)
    if compiles:
        training["compile"] = True
    if kind == "SDXL_LORA":
        training |= {"train_text_encoder": False, "unet_lora_target_modules": _SDXL_LAYERS}
        theirs: dict[str, Any] = {
            "train_data_dir": images,
            "caption_column": "text",
            "cache_dir": folder / "data",
        }
    else:
        model = flux_of(size, folder / "flux")
        loader["type"] = "IMAGE_CAPTION_FLUX_DATA_LOADER"
        training |= {"model": str(model), "flux_lora_target_modules": _FLUX_LAYERS}
        training |= {"cache_text_encoder_outputs": True, "cache_vae_outputs": True}
        training["t5_tokenizer_max_length"] = _TEXT_TOKENS
        theirs = {"instance_data_dir": images, "instance_prompt": "a photo of a cat"}
        theirs["max_sequence_length"] = _TEXT_TOKENS
        (images / "metadata.jsonl").unlink()  # it reads every file as an image
    request = ground.request(ground.training(**training, data_loader=loader))
    if kind == "FLUX_LORA":
        request = with_filled_cache(request)
    theirs["mixed_precision"] = _MIXED_PRECISIONS[precision]
    options = options_of(model, folder / "theirs", steps, theirs)
    options.append("--center_crop" if kind == "SDXL_LORA" else "--cache_latents")
    line = line_of(request, "the script", [*program, *options])
    return f"{size}, {precision}{', compiled' * compiles}: {line}"


def flux_of(size: str, folder: Path) -> Path:
    """Build a diffusers folder of a FLUX of this size."""
    build_tiny_flux(folder)
    if size in SIZES:
        config = json.loads((folder / "transformer" / "config.json").read_text("utf-8"))
        shape, _ = SIZES[size]
        transformer = FluxTransformer2DModel.from_config(config | shape)
        transformer.save_pretrained(folder / "transformer")
    return folder


def image_folder(images: Path, folder: Path) -> Path:
    """Write the images with their captions in the script's format."""
    target = folder / "imagefolder"
    target.mkdir()
    rows = []
    for path in sorted(images.glob("*.png")):
        shutil.copy(path, target / path.name)
        rows.append({"file_name": path.name, "text": path.with_suffix(".txt").read_text("utf-8")})
    (target / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return target


def options_of(model: Path, output: Path, steps: int, others: dict[str, Any]) -> list[str]:
    """Return a script's command line for the same run."""
    values = {
        "pretrained_model_name_or_path": model,
        "resolution": SIDE,
        "train_batch_size": 1,
        "max_train_steps": steps + 1,
        "checkpointing_steps": 10 * steps,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "rank": 4,
        "seed": 0,
        "dataloader_num_workers": 0,
        "output_dir": output,
        "report_to": "tensorboard",
        **others,
    }
    pairs = ([f"--{name}", str(value)] for name, value in values.items())
    return [text for pair in pairs for text in pair]


if __name__ == "__main__":
    main()
