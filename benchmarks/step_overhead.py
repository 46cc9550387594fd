"""Ratio of a training step's processor time to that of its bare forward, backward and optimizer.

    OMP_NUM_THREADS=1 python -P benchmarks/step_overhead.py [--compile] [--report FILE]

Both sides alternate in this process, on one FLUX with the same LoRA, of 20 and of 300 million
parameters. Our side reads cache entries, draws noise, computes the loss, checks it, clips nothing
and steps. The bare side has all its tensors in memory. Goal: 1.03 or less.

With --compile, the ratio of a bare step with compiled blocks to one without, which alternate too.
Goal under autocast: 0.9 or less.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch._inductor.utils import fresh_cache

from benchmarks.results import parser_of, report_result
from tasks.buckets import Size
from tasks.cache.packs import pack_id
from tasks.cache.plan import CacheIndex, SampleEntries, cache_settings
from tasks.dataset import Sample, dataset_of
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store
from worker.trainer.checkpoint import Checkpoints
from worker.trainer.compilation import CompiledBlocks
from worker.trainer.compute.determinism import Determinism
from worker.trainer.data.batches import Batch, BatchPlan, SampleReader, TrainingData
from worker.trainer.data.cache_entries import Latents, Text, pack_bytes
from worker.trainer.data.inputs import VaeScaling
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.flux.lora_recipe import FluxLora, lora_regex
from worker.trainer.flux.models import FluxModels
from worker.trainer.loop import new_state, train
from worker.trainer.lora import Lora
from worker.trainer.rng import StatelessRng

SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "20 M": (
        {
            "num_layers": 6,
            "num_single_layers": 5,
            "attention_head_dim": 32,
            "num_attention_heads": 8,
            "axes_dims_rope": (8, 12, 12),
        },
        40,
    ),
    "300 M": (
        {
            "num_layers": 4,
            "num_single_layers": 8,
            "attention_head_dim": 64,
            "num_attention_heads": 16,
            "axes_dims_rope": (16, 24, 24),
        },
        10,
    ),
}
"""FLUX-like transformers by their parameters, and the steps that are measured."""

WARM_UP = 3
SIDE = 256
TOKENS = 128
TEXT_WIDTH = 256
CPU = torch.device("cpu")


class TimedRecipe:
    """A recipe that times its steps, and makes a bare step before each.

    Turn about, so that whatever else the machine does falls on both sides alike.
    """

    def __init__(self, recipe: FluxLora, bare_step: Callable[[], None]) -> None:
        self._recipe = recipe
        self._bare_step = bare_step
        self.parameters = recipe.parameters
        self.precision = recipe.precision
        self.draws = recipe.draws
        self.ema_decay = recipe.ema_decay
        self.close = recipe.close
        self.write = write_nothing
        self.steps: list[float] = []
        self.bare: list[float] = []
        self._began: float | None = None

    def losses(self, batch: Batch) -> torch.Tensor:
        """Return the recipe's losses; the time until the next call is one whole step."""
        start = time.process_time()
        if self._began is not None:
            self.steps.append(start - self._began)
        self._bare_step()
        self._began = time.process_time()
        self.bare.append(self._began - start)
        return self._recipe.losses(batch)


def main() -> None:
    """Measure and print the ratio."""
    parser = parser_of(__doc__)
    parser.add_argument("--compile", action="store_true", help="measure compiled blocks")
    arguments = parser.parse_args()
    if arguments.compile:
        lines = [
            compiled_line_of(size, dtype)
            for size in SIZES
            for dtype in (torch.float32, torch.bfloat16)
        ]
        command = "OMP_NUM_THREADS=1 python -P benchmarks/step_overhead.py --compile"
        goal = "0.9 or less under autocast"
        report_result(arguments.report, "Compiled step", command, goal, lines)
        return
    lines = [line_of(size) for size in SIZES]
    command = "OMP_NUM_THREADS=1 python -P benchmarks/step_overhead.py"
    report_result(arguments.report, "Step overhead", command, "1.03 or less", lines)


def new_transformer(size: str) -> FluxTransformer2DModel:
    """Make a frozen transformer of random weights."""
    torch.manual_seed(0)
    widths = {"joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": TEXT_WIDTH}
    options: dict[str, Any] = {**SIZES[size][0], **widths}
    transformer: FluxTransformer2DModel = FluxTransformer2DModel(guidance_embeds=True, **options)
    transformer.requires_grad_(False)
    return transformer


def line_of(size: str) -> str:
    """Compare a step's processor time on both sides."""
    transformer, steps = new_transformer(size), SIZES[size][1]
    with tempfile.TemporaryDirectory() as folder:
        own, bare = measure(transformer, Path(folder), steps)
    # Each step is compared with the bare step before it, because the machine's load changes.
    ratio = statistics.median(step / plain for step, plain in zip(own, bare, strict=False))
    return (
        f"{size} parameters: step {statistics.median(own) * 1e3:.1f} ms, "
        f"bare {statistics.median(bare) * 1e3:.1f} ms, ratio {ratio:.3f}"
    )


def measure(
    transformer: FluxTransformer2DModel, folder: Path, steps: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of each step on both sides, without the first few."""
    config = config_of(steps)
    numbers = VaeScaling({"scaling_factor": 0.3611, "shift_factor": 0.1159})
    draws = StatelessRng(0)
    recipe = FluxLora(config, FluxModels(transformer, numbers, None, None), draws)
    timed = TimedRecipe(recipe, bare_step_of(transformer, list(recipe.parameters.values())))
    data, checkpoints = run_in(folder, config)
    state = new_state(recipe, config, CPU)
    nothing: Callable[[Any], None] = lambda _: None  # noqa: E731
    determinism, stop = Determinism(nothing), StopSwitch()
    train(timed, state, data, draws, config, checkpoints, nothing, determinism, nothing, stop)
    return timed.steps[WARM_UP:], timed.bare[WARM_UP:]


def compiled_line_of(size: str, dtype: torch.dtype) -> str:
    """Compare a bare step's processor time with compiled blocks and without."""
    transformer = new_transformer(size)
    Determinism(lambda _: None)
    layers = lora_regex(config_of(1))
    lora = Lora()
    lora.add(transformer, "transformer", layers, 16, 16, StatelessRng(0))
    bare_step = bare_step_of(transformer, list(lora.parameters.values()))

    def seconds() -> float:
        start = time.process_time()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            bare_step()
        return time.process_time() - start

    torch._dynamo.reset()
    start = time.process_time()
    with fresh_cache():
        CompiledBlocks(transformer).make_graphs(seconds)
    compiling = time.process_time() - start
    plain, compiled = [], []
    for _ in range(SIZES[size][1]):
        with torch.compiler.set_stance("force_eager"):
            plain.append(seconds())
        compiled.append(seconds())
    ratio = statistics.median(one / other for one, other in zip(compiled, plain, strict=True))
    return (
        f"{size} parameters, {str(dtype).removeprefix('torch.')}: compiled "
        f"{statistics.median(compiled):.2f} s, uncompiled {statistics.median(plain):.2f} s, ratio "
        f"{ratio:.2f}; compiling took {compiling:.0f} s beside the C++ compiler"
    )


def write_nothing(
    folder: Path, name: str, _metadata: Mapping[str, str], _weights: Mapping[str, torch.Tensor]
) -> list[Path]:
    """Write an empty result."""
    path = folder / f"{name}.safetensors"
    path.touch()
    return [path]


def bare_step_of(transformer: Any, parameters: list[torch.nn.Parameter]) -> Callable[[], None]:
    """Run forward, backward and optimizer on tensors in memory, changing no weight."""
    patches = SIDE // 16
    inputs = {
        "hidden_states": torch.randn(1, patches * patches, 64),
        "encoder_hidden_states": torch.randn(1, TOKENS, TEXT_WIDTH),
        "pooled_projections": torch.randn(1, TEXT_WIDTH),
        "timestep": torch.rand(1),
        "img_ids": torch.zeros(patches * patches, 3),
        "txt_ids": torch.zeros(TOKENS, 3),
        "guidance": torch.ones(1),
    }
    target = torch.randn(1, patches * patches, 64)
    optimizer = torch.optim.AdamW(parameters, lr=0.0)

    def step() -> None:
        predicted = transformer(**inputs, return_dict=False)[0]
        torch.autograd.backward((predicted - target).pow(2).mean())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def config_of(steps: int) -> FluxLoraConfig:
    """Return a run with cached encoder outputs."""
    return FluxLoraConfig.model_validate(
        {
            "seed": 0,
            "max_train_steps": steps,
            "save_every_n_steps": steps * 10,
            "weight_dtype": "float32",
            "cache_text_encoder_outputs": True,
            "cache_vae_outputs": True,
            "t5_tokenizer_max_length": TOKENS,
            "lora_rank_dim": 16,
            "data_loader": {
                "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "unused"},
                "resolution": SIDE,
            },
        }
    )


def run_in(folder: Path, config: FluxLoraConfig) -> tuple[TrainingData, Checkpoints]:
    """Return eight samples with random cache entries, and a folder for checkpoints."""
    store = Store(f"file://{folder}/store")
    side = SIDE // 8
    samples, entries = [], []
    packs: dict[str, str] = {}
    for number in range(8):
        latents = Latents(torch.randn(16, side, side), torch.full((16, side, side), -6.0))
        text = Text(torch.randn(TOKENS, TEXT_WIDTH), torch.randn(TEXT_WIDTH))
        names = {"text": f"text-{number}", "latents": f"latents-{number}"}
        for name, entry in ((names["text"], text), (names["latents"], latents)):
            packs[name] = pack_id([name])
            store.put(packs[name], pack_bytes({name: entry}))
        entries.append(SampleEntries(**names, flipped_latents=None))
        samples.append(
            Sample(image=str(number), width=SIDE, height=SIDE, caption="", source=str(number))
        )
    dataset = dataset_of(samples)
    index = CacheIndex(
        dataset=dataset.digest,
        settings=cache_settings(config),
        samples=tuple(entries),
        blank_text=None,
        packs=packs,
    )
    draws = StatelessRng(0)
    reader = SampleReader(store.url, dataset, config, index, draws)
    plan = BatchPlan([Size(SIDE, SIDE)] * len(samples), 1, 1, draws)
    request = TrainerRequest(
        stage="train",
        job_id="benchmark",
        start_id="1",
        name="lora",
        training=config,
        dataset_key="unused",
        store_url=store.url,
        scratch_dir=str(folder / "scratch"),
        device="cpu",
    )

    determinism = Determinism(lambda _: None)
    checkpoints = Checkpoints(
        request, store, {}, {}, determinism, write_nothing, lambda _: {}, lambda _: None
    )
    return TrainingData(reader, plan, dataset, 0, CPU), checkpoints


if __name__ == "__main__":
    main()
