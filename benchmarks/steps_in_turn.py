"""Steps of our recipes alternating with another trainer's, for benchmarks that compare them.

Both train one small model on the same images. While one makes a step, the other waits, so that
other programs disturb both alike. A step's processor time is measured, which other programs change
least.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.warm_trainer import request_in
from tasks.events import Event, Progress
from tasks.jobs.job import parse_job
from tasks.stages.trainer_protocol import TrainerRequest
from worker.trainer import train
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.model_cache import ModelCache
from worker.trainer.tiny_models import build_tiny_sdxl

STEPS = 100
SIDE = 128

# Runs a program (a path or a module) that trains with accelerate. After its first step, and after
# it has printed the time of a step, it waits for a line.
_IN_TURNS = """
import os, runpy, sys, time
from accelerate import Accelerator

log, began = Accelerator.log, []
said = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

def log_in_turn(self, values, *args, **options):
    log(self, values, *args, **options)
    if "train_loss" in values or "loss" in values:
        if began:
            print(time.process_time() - began.pop(), file=said)
        sys.stdin.readline()
        began.append(time.process_time())

Accelerator.log = log_in_turn
del sys.argv[0]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
run(sys.argv[0], run_name="__main__")
"""


class Ground:
    """Model and images that both sides train on, in a folder.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._base = request_in(folder)
        self.model = build_tiny_sdxl(folder / "sdxl")
        _write_vocabularies(self.model)
        self.images = folder / "images"

    def training(self, **options: Any) -> dict[str, Any]:
        """Return a job's ``training``: batches of 1 in float32, nothing cached."""
        return {
            "seed": 0,
            "model": str(self.model),
            "max_train_steps": STEPS,
            "save_every_n_steps": STEPS,
            "validate_every_n_steps": STEPS,
            "train_batch_size": 1,
            "min_snr_gamma": None,
            "max_grad_norm": 1.0,
            "weight_dtype": "float32",
            **options,
        }

    def request(self, training: dict[str, Any]) -> TrainerRequest:
        """Return a request to our trainer."""
        values = {"training": parse_job({"training": training}).training, "cache_index_key": None}
        return self._base.model_copy(update=values)


def line_of(request: TrainerRequest, peer: str, command: list[str]) -> str:
    """Compare a step's processor time on both sides.

    Args:
        request: To our trainer.
        peer: The other side's name.
        command: Its interpreter, its program, a path or a module, and the program's options.
    """
    own, peers = _step_times(request, command)
    # The last step is reported after its result is saved.
    warm = slice(len(own) // 10, -1)
    own_s, peer_s = median(own[warm]), median(peers[warm])
    return (
        f"{request.training.type}, processor time of a step: training-worker {own_s * 1e3:.1f} ms, "
        f"{peer} {peer_s * 1e3:.1f} ms, ratio {own_s / peer_s:.3f}"
    )


def _step_times(request: TrainerRequest, command: list[str]) -> tuple[list[float], list[float]]:
    """Yield the mean seconds of a step on both sides, at each report of our trainer."""
    own: list[float] = []
    peers: list[float] = []
    done, began = 0, 0.0
    with _started(command) as peer_step:

        def on_event(event: Event) -> None:
            nonlocal done, began
            if not isinstance(event, Progress):
                return
            steps = event.done - done
            # The first step of each side is not counted.
            if done:
                own.append((time.process_time() - began) / steps)
                peers.append(fmean(peer_step() for _ in range(steps)))
            done, began = event.done, time.process_time()

        train.run(request, on_event, StopSwitch(), ModelCache())
    return own, peers


@contextmanager
def _started(command: list[str]) -> Iterator[Callable[[], float]]:
    """Another trainer's program; a call makes it train one step, and returns the seconds."""
    python, *program = command
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [python, "-c", _IN_TURNS, *program],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            bufsize=1,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        turn, said = process.stdin, process.stdout

        def step() -> float:
            turn.write("\n")
            seconds = said.readline()
            if not seconds:
                errors.seek(0)
                sys.exit(f"{program[0]} failed:\n{errors.read()[-3000:]}")
            return float(seconds)

        try:
            yield step
        finally:
            process.kill()


def _write_vocabularies(model: Path) -> None:
    """Write the tokenizers in the older form too, the only one that transformers 4 reads."""
    for path in model.glob("*/tokenizer.json"):
        tokenizer = json.loads(path.read_text("utf-8"))["model"]
        merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer["merges"])]
        path.with_name("vocab.json").write_text(json.dumps(tokenizer["vocab"]), "utf-8")
        path.with_name("merges.txt").write_text("\n".join(merges) + "\n", "utf-8")
