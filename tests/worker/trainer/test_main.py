import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.cache.plan import CachePlan
from tasks.errors import ErrorCode, StoreError
from tasks.events import CacheDone, EncoderDigests, Event, TrainDone, TrainFailed
from tasks.stages.trainer_protocol import TrainerExit
from tests.worker.trainer.runs import (
    CACHED,
    Images,
    TrainerProcess,
    config_of,
    request_of,
    run_cache,
)
from worker.trainer.__main__ import _serve
from worker.trainer.compute.memory import find_gpu_error
from worker.trainer.errors import DamagedFileError
from worker.trainer.event_pipe import EventPipe, StopSwitch
from worker.trainer.model_cache import ModelCache


class RecordingPipe(EventPipe):
    """A pipe that keeps its events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


def serve(line: str) -> tuple[TrainerExit, TrainFailed]:
    pipe = RecordingPipe()
    code = _serve("worker.trainer", line, pipe, StopSwitch(), ModelCache())
    last = pipe.events[-1]
    assert isinstance(last, TrainFailed)
    return code, last


@pytest.mark.timeout(180)
def test_process_serves_requests_until_its_input_ends(tiny_flux: Path, data: Images) -> None:
    # Data workers read ahead; they must not use the trainer's channels.
    loader = {"dataloader_num_workers": 1}
    config = config_of(tiny_flux, loader=loader, max_train_steps=1, **CACHED)
    cache = request_of(data, "cache", config)
    train = request_of(data, "train", config, cache_index_key=run_cache(data, config).index_key)
    process = TrainerProcess(cache, train)
    events, code, errors = process.finish()
    assert code == TrainerExit.DONE
    assert errors == ""
    assert len(events.of(CacheDone)) == 1
    assert len(events.of(TrainDone)) == 1


@pytest.mark.timeout(60)
def test_stop_of_an_idle_trainer_ends_it_at_once(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux, **CACHED)
    process = TrainerProcess(request_of(data, "cache", config))
    process.signal_when(signal.SIGTERM, lambda event: isinstance(event, CacheDone))
    # Its input stays open. The signal comes just before or after it starts to wait.
    code = process.process.wait(timeout=30)
    assert code in (TrainerExit.INTERRUPTED, TrainerExit.DONE)
    process.finish()


@pytest.mark.timeout(60)
def test_unexpected_error_prints_its_traceback(
    tiny_flux: Path, tmp_path: Path, data: Images
) -> None:
    # The scratch folder is a file.
    (tmp_path / "scratch").write_text("")
    process = TrainerProcess(request_of(data, "train", config_of(tiny_flux, max_train_steps=1)))
    _, code, errors = process.finish()
    assert code == TrainerExit.CRASHED
    assert "Traceback" in errors
    assert "FileExistsError" in errors


def test_invalid_request_is_refused() -> None:
    code, failed = serve('{"stage": "dance"}')
    assert code == TrainerExit.REFUSED
    assert failed.code == ErrorCode.INTERNAL


def broken_model(tiny_flux: Path, folder: Path, remove: str) -> Path:
    model = folder / "model"
    shutil.copytree(tiny_flux, model)
    for path in model.glob(remove):
        path.unlink()
    return model


@pytest.mark.parametrize(
    ("remove", "stage", "expected"),
    [
        # The vocabulary in both its forms; the config stays.
        ("tokenizer/*[!g].*", "cache", "tokenizer"),
        ("tokenizer_2/tokenizer.json", "cache", "tokenizer_2"),
        (
            "text_encoder_2/*.safetensors",
            "cache",
            "text_encoder_2 cannot be used: has no .safetensors",
        ),
        ("vae/config.json", "cache", "vae"),
        ("transformer/*.safetensors", "train", "transformer cannot be used: has no .safetensors"),
        ("transformer/*", "train", "config.json"),
    ],
)
def test_missing_base_model_file_is_named(
    tiny_flux: Path, tmp_path: Path, data: Images, remove: str, stage: str, expected: str
) -> None:
    cached = CACHED if stage == "cache" else {}
    config = config_of(broken_model(tiny_flux, tmp_path, remove), **cached)
    encoders = EncoderDigests(text="0" * 64, vae="0" * 64)
    wanted = CachePlan(config, data.dataset, encoders).digests if cached else []
    if remove.startswith("vae"):
        wanted = wanted[-1:]
    request = request_of(data, stage, config, encoders=encoders, cache_entries=tuple(wanted))
    code, failed = serve(request.model_dump_json())
    assert (code, failed.code) == (TrainerExit.REFUSED, ErrorCode.INVALID_MODEL)
    assert expected in failed.message


def test_missing_folder_is_refused(tmp_path: Path, data: Images) -> None:
    config = config_of(tmp_path / "nothing")
    code, failed = serve(request_of(data, "train", config).model_dump_json())
    assert (code, failed.code) == (TrainerExit.REFUSED, ErrorCode.INVALID_MODEL)
    assert "no such folder" in failed.message


def test_loss_that_is_nan_is_reported_as_diverged(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux, transformer_learning_rate=1e30)
    code, failed = serve(request_of(data, "train", config).model_dump_json())
    assert (code, failed.code) == (TrainerExit.REFUSED, ErrorCode.DIVERGED)


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA: 5 GiB"), ErrorCode.OUT_OF_MEMORY, TrainerExit.REFUSED),
        *(
            (RuntimeError(text), ErrorCode.OUT_OF_MEMORY, TrainerExit.REFUSED)
            for text in (
                "CUDA error: out of memory",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp",
            )
        ),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            ErrorCode.GPU_FAILED,
            TrainerExit.CRASHED,
        ),
        (StoreError("bucket away"), ErrorCode.STORE, TrainerExit.CRASHED),
        (StoreError("no access", retryable=False), ErrorCode.STORE, TrainerExit.REFUSED),
    ],
)
def test_store_and_memory_errors_have_their_codes(
    tiny_flux: Path,
    data: Images,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: ErrorCode,
    expected: TrainerExit,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("worker.trainer.train.run", fail)
    line = request_of(data, "train", config_of(tiny_flux)).model_dump_json()
    assert (serve(line)[0], serve(line)[1].code) == (expected, code)


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "shape mismatch"])
def test_error_that_costs_the_process_its_gpu_is_noticed_without_its_text(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def synchronize() -> None:
        raise RuntimeError("CUDA error: of another kind")

    before = find_gpu_error(RuntimeError(text))
    assert before is None or before[0] == ErrorCode.OUT_OF_MEMORY
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", synchronize)
    assert find_gpu_error(RuntimeError(text)) == (ErrorCode.GPU_FAILED, text)


def test_damaged_file_is_reported_by_its_key(
    tiny_flux: Path, data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DamagedFileError("the cache pack", "cache/text/k", "no header", "encode it again")

    monkeypatch.setattr("worker.trainer.train.run", fail)
    code, failed = serve(request_of(data, "train", config_of(tiny_flux)).model_dump_json())
    assert (code, failed.code) == (TrainerExit.REFUSED, ErrorCode.UNREADABLE_FILE)
    assert failed.file_key == "cache/text/k"


def test_events_are_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with path.open("wb") as file:
        pipe = EventPipe(os.dup(file.fileno()))
        pipe.emit(TrainFailed(code=ErrorCode.INTERNAL, message="a\nb"))
        pipe.close()
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["message"] == "a\nb"
