"""The parts of the GPU check: each measures one thing and yields its rows.

A row is a line of the part's table. Its field ``ok`` says whether what it shows is right; a row
without it is a measurement only.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.memory_trace.shapes import traced_configs
from benchmarks.memory_trace.traces import recorded, traced_gib
from benchmarks.real_models import build_flux, build_sdxl
from routing.classes import GIB
from tasks.errors import ErrorCode, TrainerError
from tasks.events import CheckpointSaved, Event, Progress, StageStarted, TrainDone
from tasks.jobs.job import TrainingConfig
from tests.integration.fleets import Fleet
from tests.waiting import wait_until
from worker.miniature.dataset import draw_dataset
from worker.supervision.trainer_pool import TrainerPool, trainer_environment
from worker.supervision.trainer_process import Limits
from worker.trainer.calibration.measure import Bench
from worker.trainer.compute.memory import release_memory
from worker.trainer.tiny_models import build_tiny_flux, build_tiny_sdxl

Row = dict[str, str | int | float | bool | None]
# Of each job that is timed: options that change the time of a step; ``peaks`` times further ones.
# Without determinism Hopper takes cuDNN's attention; a job in float32 multiplies in TF32.
OPTIONS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "FLUX_LORA 512": ({"compile": True},),
    "FLUX_LORA 1024": (
        {"deterministic": False},
        {"gradient_checkpointing": False},
        {"compile": True},
    ),
    "SDXL_LORA 1024": (
        {"deterministic": False},
        {"gradient_checkpointing": False},
        {"train_batch_size": 4},
        {"weight_dtype": "float32"},
        {"compile": True},
    ),
}
PEAKS = (
    "FLUX_LORA 512",
    "FLUX_LORA 1024",
    "FLUX_LORA 512, no checkpointing",
    "FLUX_LORA 512, attention, no checkpointing",
    "FLUX_LORA 1024, 20 blocks",
    "SDXL_LORA 768, batch 4, text encoders trained",
    "SDXL_LORA 768, batch 4, no checkpointing",
    "SDXL_FINETUNE 1024, Adafactor, 4 blocks",
)
QUANTIZED = (
    "FLUX_LORA 1024, nf4",
    "FLUX_LORA 512, int8, no checkpointing",
    "FLUX_LORA 768, batch 2, fp8, 20 blocks",
)
_PATIENCE_S = 120


@dataclass(frozen=True)
class Check:
    """What all parts share.

    Attributes:
        folder: Holds the models and everything that a part writes.
        device: Where to compute.
        size: ``tiny`` trains tiny models, to try the check itself.
    """

    folder: Path
    device: Literal["cpu", "cuda"]
    size: Literal["tiny", "real"]

    def model(self, training_type: str) -> Path:
        """Return the folder of a type's base model."""
        return self.folder / ("flux" if training_type == "FLUX_LORA" else "sdxl")

    @property
    def text_tokens(self) -> int:
        """The tokens of a caption that T5 sees."""
        return 512 if self.size == "real" else 32

    def config(self, job: str, steps: int, **changes: Any) -> TrainingConfig:
        """Return the config of a traced job that saves at its end.

        Args:
            job: Its name in ``traced_configs``.
            steps: Its length in weight updates.
            changes: Values that replace those of the job.
        """
        config = traced_configs()[job]
        values = {"model": str(self.model(config.type)), "seed": 1}
        values |= {"max_train_steps": steps, "save_every_n_steps": steps}
        if self.size == "tiny":
            small = config.loader.model_copy(update={"resolution": 64})
            values |= {"data_loader": small, "t5_tokenizer_max_length": self.text_tokens}
        return config.model_copy(update=values | changes)

    def bench(self) -> Bench:
        """Return a bench, whose runs share their models."""
        return Bench(self.folder / "bench", self.device)


@dataclass(frozen=True)
class Trained:
    """A run of a bench.

    Attributes:
        events: Its events.
        step_s: Seconds of a step, without the first two.
        peak_gib: Its peak memory.
    """

    events: list[Event]
    step_s: float | None
    peak_gib: float

    @property
    def checkpoints(self) -> list[CheckpointSaved]:
        """The checkpoints, oldest first."""
        return [event for event in self.events if isinstance(event, CheckpointSaved)]

    @property
    def sha256(self) -> str:
        """The digest of the published weights."""
        return self.checkpoints[-1].weights.sha256

    @property
    def final_loss(self) -> float:
        """The loss of the last step."""
        [done] = [event for event in self.events if isinstance(event, TrainDone)]
        return done.final_loss


def trained(
    bench: Bench,
    config: TrainingConfig,
    emit: Callable[[Event], None] = lambda _event: None,
    **fields: Any,
) -> Trained:
    """Train a run on a bench.

    Args:
        bench: The bench.
        config: What to train.
        emit: Gets the run's events as they come.
        fields: More fields of the request.
    """
    steps: list[tuple[int, float]] = []

    def timed(event: Event) -> None:
        # The last step's report comes after its checkpoint.
        if isinstance(event, Progress) and event.unit == "steps" and 2 <= event.done < event.total:
            steps.append((event.done, time.perf_counter()))
        emit(event)

    events = bench.train(bench.request(config, **fields), timed)
    step_s = None
    if len(steps) > 1:
        (first, began), (last, ended) = steps[0], steps[-1]
        step_s = (ended - began) / (last - first)
    return Trained(events, step_s, bench.peak_of(events) / GIB)


def ceilings(check: Check) -> Iterator[Row]:
    """Measure what the card can do at most, and show the kernel that attention takes."""
    yield {"what": "PyTorch", "value": torch.__version__}
    size, copied = (8192, 2 * GIB) if check.size == "real" else (256, 2**20)
    if check.device == "cuda":
        yield {"what": "card", "value": torch.cuda.get_device_name()}
        yield {"what": "architectures", "value": " ".join(torch.cuda.get_arch_list())}
    matrix = torch.randn(size, size, device=check.device, dtype=torch.bfloat16)
    seconds = _seconds(check, lambda: matrix @ matrix)
    yield {"what": "matrix product, TFLOP/s", "value": round(2 * size**3 / seconds / 1e12, 3)}
    source = torch.zeros(copied, device=check.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = _seconds(check, lambda: target.copy_(source))
    yield {"what": "copy, read and written GB/s", "value": round(2 * copied / seconds / 1e9, 1)}
    for mode, wanted, warn_only in (
        ("any kernel", False, False),
        ("deterministic, warnings only", True, True),
        ("deterministic", True, False),
    ):
        torch.use_deterministic_algorithms(wanted, warn_only=warn_only)
        names = ", ".join(_attention_kernels(check))
        yield {"what": f"attention, {mode}", "value": names, "ok": bool(names)}
    torch.use_deterministic_algorithms(False)


def models(check: Check) -> Iterator[Row]:
    """Build the base models of the other parts."""
    for training_type, real, tiny in (
        ("FLUX_LORA", build_flux, build_tiny_flux),
        ("SDXL_LORA", build_sdxl, build_tiny_sdxl),
    ):
        began, folder = time.perf_counter(), check.model(training_type)
        if check.size == "real":
            real(folder, check.device)
        else:
            tiny(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        seconds = round(time.perf_counter() - began, 1)
        yield {"model": training_type, "GB": round(size / 1e9, 2), "s": seconds}


def peaks(check: Check) -> Iterator[Row]:
    """Measure the memory and the time of a step of eight shapes, beside the estimates."""
    bench = check.bench()
    for job in PEAKS:
        yield measured(check, bench, job)


def quantized(check: Check) -> Iterator[Row]:
    """Train on quantized bases, which must learn, and measure them."""
    bench = check.bench()
    for job in QUANTIZED:
        yield measured(check, bench, job)


def speed(check: Check) -> Iterator[Row]:
    """Measure the time of a step with each option that changes it, beside the step without."""
    bench = check.bench()
    for job, options in OPTIONS.items():
        usual = trained(bench, check.config(job, 10))
        yield _timed_row(job, {}, usual, usual)
        for option in options:
            other = trained(bench, check.config(job, 10, **option))
            yield _timed_row(job, option, other, usual)


def repeat(check: Check) -> Iterator[Row]:
    """Train a run twice and once with a resume in the middle, with and without determinism."""
    for deterministic in (True, False):
        bench = check.bench()
        changes = {"deterministic": deterministic, "save_every_n_steps": 3}
        config = check.config("FLUX_LORA 1024", 6, **changes)
        first, again = trained(bench, config), trained(bench, config)
        state = first.checkpoints[0].state_key
        resumed = trained(bench, config, resume_state_key=state)
        same = first.sha256 == again.sha256
        exact = first.sha256 == resumed.sha256
        row: Row = {"deterministic": deterministic, "same again": same, "same resumed": exact}
        yield {**row, **({"ok": same and exact} if deterministic else {})}


def kernels(check: Check) -> Iterator[Row]:
    """Profile three steps: how long the card is busy, and with what."""
    bench = check.bench()
    for job in OPTIONS:
        yield profiled(check, bench, job)


def out_of_memory(check: Check) -> Iterator[Row]:
    """Fill the card beside a trainer: it must report full memory; the next one must train."""
    if check.device == "cpu":
        yield {"what": "not run: it needs a GPU"}
        return
    request = Bench(check.folder / "bench", check.device).request(check.config("FLUX_LORA 512", 2))
    env = trainer_environment({}, None)
    pool = TrainerPool(env, restarts=0, limits=Limits(grace_s=20), max_requests=2)
    release_memory()
    free, _ = torch.cuda.mem_get_info()
    # Too little for FLUX, enough for CUDA's context.
    ballast = torch.empty(max(0, free - 8 * GIB), dtype=torch.uint8, device="cuda")
    code = None
    try:
        pool.run(request, on_event=lambda _event: None, stop_requested=lambda: False)
    except TrainerError as error:
        code = error.code
    yield {"what": "error code", "value": code, "ok": code == ErrorCode.OUT_OF_MEMORY}
    del ballast
    release_memory()
    answer = pool.run(request, on_event=lambda _event: None, stop_requested=lambda: False)
    pool.close()
    yield {"what": "next trainer", "value": answer.kind, "ok": isinstance(answer, TrainDone)}


def fleet(check: Check) -> Iterator[Row]:
    """Run whole jobs on a fleet: one undisturbed, one whose trainer is killed, one warm."""
    with Fleet(check.folder / "fleet", None if check.device == "cuda" else "40gb") as running:
        yield from jobs_on(running, check)


def jobs_on(running: Fleet, check: Check) -> Iterator[Row]:
    """Run the jobs of ``fleet`` on a running fleet."""
    draw_dataset(check.folder / "images")
    whole = _published(running, _submitted(running, check))
    yield {"job": "undisturbed", **whole}
    job_id = _submitted(running, check)
    wait_until(
        lambda: bool(running.record(job_id).artifacts.checkpoints),
        timeout_s=_PATIENCE_S,
        description="the job has a checkpoint",
        detail=running.log,
    )
    for trainer in running.trainers():
        trainer.kill()
    killed = _published(running, job_id)
    restarted = any("is restarted" in note for note in running.notes(job_id))
    yield {"job": "killed", **killed, "ok": restarted and killed["sha256"] == whole["sha256"]}
    warm = _published(running, _submitted(running, check))
    yield {"job": "warm", **warm, "ok": warm["sha256"] == whole["sha256"]}


def measured(check: Check, bench: Bench, job: str) -> Row:
    """Train a job; return its memory and the time of a step, beside estimate and trace."""
    config = check.config(job, 6)
    run = trained(bench, config)
    estimate = config.estimate().needed_gib
    row: Row = {
        "job": job,
        "estimate, GiB": round(estimate, 2),
        "trace, GiB": round(traced_gib(recorded()[job]), 2),
        "peak, GiB": round(run.peak_gib, 2),
        "s a step": run.step_s and round(run.step_s, 3),
        "final loss": round(run.final_loss, 4),
    }
    if check.size == "real":
        off = estimate / run.peak_gib - 1
        row |= {"estimate off by": f"{off:+.1%}", "ok": abs(off) <= 0.05}
    return row


def _timed_row(job: str, option: Mapping[str, Any], run: Trained, usual: Trained) -> Row:
    words = ", ".join(f"{name} {value}" for name, value in option.items())
    row: Row = {"job": job, "option": words}
    if run.step_s and usual.step_s:
        ratio = run.step_s / usual.step_s
        row |= {"s a step": round(run.step_s, 3), "ratio": round(ratio, 3)}
    return {**row, "peak, GiB": round(run.peak_gib, 2)}


def profiled(check: Check, bench: Bench, job: str) -> Row:
    """Profile three steps of a job; return how long the device is busy, and with what."""
    activities = [ProfilerActivity.CPU]
    if check.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiler, times = profile(activities=activities), [0.0, 0.0]

    def at_step(event: Event) -> None:
        if not isinstance(event, Progress) or event.unit != "steps":
            return
        if event.done == 3:
            profiler.start()
            times[0] = time.perf_counter()
        elif event.done == 6:
            times[1] = time.perf_counter()
            profiler.stop()

    # Each step is reported if each is saved.
    trained(bench, check.config(job, 6, save_every_n_steps=1), at_step)
    own = sorted(profiler.key_averages(), key=lambda row: -_device_us(check, row))
    busy_us, wall_us = sum(_device_us(check, row) for row in own), (times[1] - times[0]) * 1e6
    return {
        "job": job,
        "busy": f"{busy_us / wall_us:.0%}",
        "kernels a step": round(sum(row.count for row in own if _device_us(check, row)) / 3),
        "longest": ", ".join(
            f"{row.key[:60]} {_device_us(check, row) / wall_us:.0%}" for row in own[:4]
        ),
    }


def _device_us(check: Check, row: Any) -> float:
    """Return a kernel's own microseconds."""
    if check.device == "cpu":
        return float(row.self_cpu_time_total)
    # A row of the host has the time of its kernels, too.
    return float(row.self_device_time_total) if row.device_type.name == "CUDA" else 0.0


def _attention_kernels(check: Check) -> list[str]:
    """Return the kernels of the forward and backward pass of FLUX's attention, longest first."""
    tokens = 4608 if check.size == "real" else 64
    make: dict[str, Any] = {"device": check.device, "dtype": torch.bfloat16, "requires_grad": True}
    query, key, value = (torch.randn(1, 24, tokens, 128, **make) for _ in range(3))

    def attend() -> None:
        states = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        torch.autograd.backward(states.sum())

    attend()
    activities = [ProfilerActivity.CPU if check.device == "cpu" else ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        attend()
        _wait(check)
    rows = [row for row in profiler.key_averages() if _device_us(check, row)]
    rows.sort(key=lambda row: -_device_us(check, row))
    return [row.key.partition("<")[0][-60:] for row in rows[:2]]


def _seconds(check: Check, act: Callable[[], object], times: int = 10) -> float:
    """Return the seconds of a call, the mean of several after a first one."""
    act()
    _wait(check)
    began = time.perf_counter()
    for _ in range(times):
        act()
    _wait(check)
    return (time.perf_counter() - began) / times


def _wait(check: Check) -> None:
    if check.device == "cuda":
        torch.cuda.synchronize()


def _submitted(running: Fleet, check: Check) -> str:
    images = check.folder / "images"
    steps, pixels = (12, 512) if check.size == "real" else (80, 64)
    training = {
        "type": "FLUX_LORA",
        "model": str(check.model("FLUX_LORA")),
        "seed": 1,
        "weight_dtype": "bfloat16",
        "gradient_checkpointing": True,
        "cache_text_encoder_outputs": True,
        "cache_vae_outputs": True,
        "max_train_steps": steps,
        "save_every_n_steps": steps // 4,
        "t5_tokenizer_max_length": check.text_tokens,
        "validation_prompts": ["a red square"],
        "validate_every_n_steps": steps,
        "data_loader": {
            "type": "IMAGE_CAPTION_FLUX_DATA_LOADER",
            "resolution": pixels,
            "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(images)},
        },
    }
    ran = running.submit({"name": "shapes", "training": training})
    assert ran.code == 0, ran
    return str(ran.documents[0]["job_id"])


def _published(running: Fleet, job_id: str) -> Row:
    """Wait for a job's end; return its digest and the seconds from its training to a step."""
    ran = running.run("watch", job_id, "--json", timeout_s=_PATIENCE_S)
    assert ran.code == 0, f"{ran}\n{running.log()}"
    return {
        "sha256": ran.documents[-1]["sha256"][:16],
        "s to the first step": _seconds_to_first_step(running, job_id),
        "worker": running.record(job_id).stages["train"].worker,
    }


def _seconds_to_first_step(running: Fleet, job_id: str) -> float:
    """Return the seconds from the start of a job's training to its first reported step."""
    with_times = running.timed_events(job_id)
    began = next(
        at for at, event in with_times if isinstance(event, StageStarted) and event.stage == "train"
    )
    step = next(
        at for at, event in with_times if isinstance(event, Progress) and event.unit == "steps"
    )
    return round(step - began, 1)
