"""Host memory of an SDXL finetune's checkpoint and of loading FLUX, above that of the process.

    OMP_NUM_THREADS=1 python -P benchmarks/checkpoint_memory.py [--parameters N] [--report FILE]

Saves and resumes the state of N parameters of SDXL's UNet with AdamW and a moving average,
and writes the single-file checkpoint around CLIPs of SDXL's size. The peak is Linux's VmHWM, which
counts mapped files too. Blocks of FLUX's size are loaded from a file of zeros, onto a
device that keeps nothing. Goal: under 3 GB, for any number of parameters.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.real_models import flux_transformer, sdxl_unet
from benchmarks.results import parser_of, report_result
from tasks.base_models.layouts import Source
from tasks.base_models.parts import StoredTensor
from tasks.base_models.safetensors_header import TensorEntry
from tasks.events import CheckpointSaved, Event
from tasks.jobs.job import parse_job
from tasks.jobs.sdxl import SdxlFinetuneConfig
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store
from worker.trainer.checkpoint import Checkpoints, LossHistory, TrainingState
from worker.trainer.compute.determinism import Determinism
from worker.trainer.compute.memory import HostMeter
from worker.trainer.optimizer import WeightAverage
from worker.trainer.sdxl.export import write_checkpoint
from worker.trainer.tiny_models import build_tiny_sdxl
from worker.trainer.weights import load_weights

GB = 1e9
_CLIPS = {
    "text_encoder": (CLIPTextModel, {"hidden_size": 768, "intermediate_size": 3072}, 12),
    "text_encoder_2": (
        CLIPTextModelWithProjection,
        {"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280},
        32,
    ),
}


def main() -> None:
    """Measure and print the peaks."""
    parser = parser_of(__doc__)
    parser.add_argument("--parameters", type=float, default=0.2e9)
    arguments = parser.parse_args()
    lines = [_state_line(arguments.parameters * share) for share in (0.25, 1.0)]
    lines += [_export_line(), _loading_line()]
    command = "OMP_NUM_THREADS=1 python -P benchmarks/checkpoint_memory.py"
    report_result(
        arguments.report, "Checkpoint memory", command, "under 3 GB above the process", lines
    )


def _state_line(parameters: float) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saved: list[Event] = []
        checkpoints = _checkpoints(folder, saved.append)
        state = _state(parameters)
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.tensors().values())
        save = peak_above(lambda: checkpoints.save(state, epoch=None, scheduled=True))
        [key] = [event.state_key for event in saved if isinstance(event, CheckpointSaved)]
        resume = peak_above(lambda: checkpoints.resume(state, key))
    return f"a state of {size / GB:.1f} GB: saved with {save:.2f} GB, resumed with {resume:.2f} GB"


def _state(parameters: float) -> TrainingState:
    named: dict[str, torch.nn.Parameter] = {}
    for name, shape in _unet_shapes().items():
        if sum(parameter.numel() for parameter in named.values()) >= parameters:
            break
        named[f"unet.{name}"] = torch.nn.Parameter(torch.randn(shape))
    optimizer = torch.optim.AdamW(named.values(), fused=True)
    for parameter in named.values():
        moments = {"exp_avg": torch.rand_like(parameter), "exp_avg_sq": torch.rand_like(parameter)}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    history = LossHistory([1.0], [1e-5])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainingState(named, optimizer, scaler, history, WeightAverage(named.values()))


def _unet_shapes() -> dict[str, torch.Size]:
    """Return the shapes of SDXL's UNet by name."""
    with torch.device("meta"):
        unet = sdxl_unet()
    # The largest first: they decide the peak.
    shapes = {name: parameter.shape for name, parameter in unet.named_parameters()}
    return dict(sorted(shapes.items(), key=lambda item: -item[1].numel()))


def _checkpoints(folder: Path, emit: Callable[[Event], None]) -> Checkpoints:
    fields: dict[str, Any] = {"job_id": "job", "start_id": "1", "name": "model"}
    request = TrainerRequest.model_construct(**fields, scratch_dir=str(folder / "scratch"))

    def no_results(
        _folder: Path,
        _name: str,
        _metadata: Mapping[str, str],
        _weights: Mapping[str, torch.Tensor],
    ) -> list[Path]:
        path = _folder / "empty"
        path.touch()
        return [path]

    store, determinism = Store(f"file://{folder}/store"), Determinism(emit)
    return Checkpoints(request, store, {}, {}, determinism, no_results, lambda _: {}, emit)


def _export_line() -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _with_real_clips(build_tiny_sdxl(folder / "model"))
        config = parse_job(_document(model)).training
        assert isinstance(config, SdxlFinetuneConfig)
        unet = UNet2DConditionModel.from_pretrained(model / "unet")
        weights = dict(unet.named_parameters())
        (folder / "results").mkdir()
        peak = peak_above(
            lambda: write_checkpoint(folder / "results", "model", config, unet, weights, {})
        )
    return f"the published file around CLIPs of SDXL's size: written with {peak:.2f} GB"


def _loading_line() -> str:
    nowhere = torch.device("meta")
    with nowhere:
        model = flux_transformer(2, 4)
    with tempfile.TemporaryDirectory() as name:
        size, weights = _weights_in(Path(name) / "transformer", model)
        peak = peak_above(lambda: load_weights(model, weights, torch.bfloat16, nowhere))
    return f"6 blocks of FLUX of {size / GB:.1f} GB: loaded with {peak:.2f} GB"


def _weights_in(file: Path, model: torch.nn.Module) -> tuple[int, dict[str, StoredTensor]]:
    """Make a file of zeros for a model's weights, in bfloat16; return its size and their places."""
    weights, end = {}, 0
    for name, parameter in model.named_parameters():
        shape, start = tuple(parameter.shape), end
        end += 2 * parameter.numel()
        entry = TensorEntry(file, "BF16", shape, start, end)
        weights[name] = StoredTensor(entry, None, Source(name), shape)
    with file.open("wb") as opened:
        opened.truncate(end)
    return end, weights


def _with_real_clips(model: Path) -> Path:
    for part, (kind, sizes, layers) in _CLIPS.items():
        config = CLIPTextConfig.from_pretrained(model / part)
        config.update({**sizes, "num_hidden_layers": layers, "num_attention_heads": 12})
        if part == "text_encoder_2":
            config.num_attention_heads = 20
        for path in (model / part).iterdir():
            path.unlink()
        encoder: Any = kind(config)
        encoder.half().save_pretrained(model / part)
    return model


def _document(model: Path) -> dict[str, object]:
    return {
        "name": "model",
        "training": {
            "type": "SDXL_FINETUNE",
            "model": str(model),
            "save_checkpoint_format": "single_file",
            "max_train_steps": 1,
            "save_every_n_steps": 1,
            "data_loader": {
                "type": "IMAGE_CAPTION_SD_DATA_LOADER",
                "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(model)},
            },
        },
    }


def peak_above(act: Callable[[], object]) -> float:
    """Return the most memory, in GB, that the process gained during a call."""
    meter = HostMeter()
    meter.reset()
    before = meter.peak_bytes()
    act()
    return (meter.peak_bytes() - before) / GB


if __name__ == "__main__":
    main()
