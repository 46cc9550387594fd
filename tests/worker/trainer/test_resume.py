import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.events import CheckpointSaved, Event, Note, Progress
from tasks.stages.trainer_protocol import TrainerExit
from tests.worker.trainer.runs import (
    BUCKETS,
    CACHED,
    Images,
    Trained,
    TrainerProcess,
    config_of,
    read_tensors,
    request_of,
    run_cache,
    run_train,
)
from worker.trainer.errors import DamagedFileError, ForeignStateError, InterruptedRun
from worker.trainer.event_pipe import StopSwitch

LOADER = {"aspect_ratio_buckets": BUCKETS, "random_flip": True}
# Five batches in groups of two are three updates an epoch: step 10 is the first of its epoch.
FULL: dict[str, Any] = {
    "max_train_steps": 20,
    "save_every_n_steps": 10,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 3,
    "max_grad_norm": 1.0,
}


def is_checkpoint(event: Event) -> bool:
    return isinstance(event, CheckpointSaved)


def after_step_three(event: Event) -> bool:
    return isinstance(event, Progress) and event.done >= 3


def assert_same_end(straight: Trained, last: CheckpointSaved) -> None:
    """Bit for bit: LoRA, optimizer, history and both files."""
    resumed_state = read_tensors(straight.path(last.state_key))[0]
    for name, tensor in straight.state.items():
        assert torch.equal(tensor, resumed_state[name]), name
    assert straight.state_bytes() == straight.data.store.get(last.state_key)
    assert straight.checkpoints[-1].weights.sha256 == last.weights.sha256


@pytest.mark.timeout(180)
def test_killed_run_ends_like_an_undisturbed_one(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux, loader=LOADER, **CACHED, **FULL)
    straight = run_train(data, config)
    request = request_of(
        data, "train", config, start_id="2", cache_index_key=run_cache(data, config).index_key
    )
    killed = TrainerProcess(request)
    saved = killed.signal_when(signal.SIGKILL, is_checkpoint).of(CheckpointSaved)[-1]
    assert killed.finish()[1] == -signal.SIGKILL
    assert saved.step == 10
    resumed = run_train(data, config, start_id="3", resume_state_key=saved.state_key)
    assert_same_end(straight, resumed.checkpoints[-1])
    assert resumed.done.final_loss == straight.done.final_loss


@pytest.mark.timeout(180)
def test_stopped_run_saves_and_resumes_exactly(tiny_flux: Path, data: Images) -> None:
    config = config_of(
        tiny_flux, loader={**LOADER, "center_crop": False}, train_batch_size=2, **FULL
    )
    straight = run_train(data, config)
    request = request_of(data, "train", config, start_id="2")
    stopped = TrainerProcess(request)
    stopped.signal_when(signal.SIGTERM, after_step_three)
    events, code, errors = stopped.finish()
    assert code == TrainerExit.INTERRUPTED, errors
    saved = events.of(CheckpointSaved)[-1]
    assert 3 <= saved.step < 20
    # Only the stop saved it, unless it came at an interval of the schedule.
    assert saved.scheduled == (saved.step == 10)
    resumed = run_train(data, config, start_id="3", resume_state_key=saved.state_key)
    assert_same_end(straight, resumed.checkpoints[-1])


@pytest.mark.parametrize("stop_at", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_dtype": "float16"},
        {"weight_dtype": "bfloat16", "gradient_checkpointing": True},
        {"max_train_steps": None, "max_train_epochs": 3, "gradient_accumulation_steps": 2},
    ],
    ids=["float16", "bfloat16", "epochs"],
)
def test_resume_is_exact_at_any_step(
    tiny_flux: Path, data: Images, stop_at: int, options: dict[str, Any]
) -> None:
    values = {"max_train_steps": 6, **CACHED, **options}
    config = config_of(tiny_flux, loader=LOADER, **values)
    straight = run_train(data, config)
    stop = StopSwitch()
    stop.waits_for_request = False
    seen: list[CheckpointSaved] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.done == stop_at - 1:
            stop()
        if isinstance(event, CheckpointSaved):
            seen.append(event)

    if stop_at == 1:
        config_to_stop = config.model_copy(update={"save_every_n_steps": 1})
        run_train(data, config_to_stop, on_event=on_event, start_id="2")
    else:
        # Fast steps are not all reported: save a checkpoint at each instead.
        slow = config.model_copy(update={"save_every_n_steps": 1})
        with pytest.raises(InterruptedRun):
            run_train(data, slow, stop=stop, on_event=on_event, start_id="2")
        assert seen[-1].step == stop_at
    resume_from = next(saved for saved in seen if saved.step == stop_at)
    resumed = run_train(data, config, start_id="3", resume_state_key=resume_from.state_key)
    assert_same_end(straight, resumed.checkpoints[-1])


def test_resuming_a_finished_run_only_reports_its_end(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux)
    straight = run_train(data, config)
    key = straight.checkpoints[-1].state_key
    again = run_train(data, config, start_id="2", resume_state_key=key)
    assert again.checkpoints == []
    assert again.done.steps == 4
    assert again.done.final_loss == straight.done.final_loss


def test_tensorboard_file_holds_steps_before_a_resume(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux, save_every_n_steps=2)
    straight = run_train(data, config)
    key = straight.checkpoints[0].state_key
    resumed = run_train(data, config, start_id="2", resume_state_key=key)
    metrics = [run.data.store.get(run.done.extras[0].key) for run in (straight, resumed)]
    assert hashlib.sha256(metrics[0]).hexdigest() == straight.done.extras[0].sha256
    assert metrics[0].count(b"train/loss") == 4
    assert metrics[1].count(b"train/loss") == 4
    assert "tfevents" in straight.done.extras[0].name


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"transformer_learning_rate": 1e-3}, "transformer_learning_rate"),
        ({"seed": 8}, "seed"),
        ({"cache_vae_outputs": True}, "cache_vae_outputs"),
        ({"lora_rank_dim": 8}, "lora_rank_dim"),
    ],
)
def test_state_of_another_config_is_refused_by_its_differences(
    tiny_flux: Path, data: Images, change: dict[str, Any], name: str
) -> None:
    key = run_train(data, config_of(tiny_flux, max_train_steps=1)).checkpoints[-1].state_key
    other = config_of(tiny_flux, max_train_steps=1, **change)
    with pytest.raises(ForeignStateError, match=name):
        run_train(data, other, resume_state_key=key)


def test_state_of_another_dataset_is_refused(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux, max_train_steps=1)
    key = run_train(data, config).checkpoints[-1].state_key
    with pytest.raises(ForeignStateError, match="dataset"):
        run_train(data.edited(caption=0), config, resume_state_key=key)


def test_options_that_change_no_number_may_differ(tiny_flux: Path, data: Images) -> None:
    key = run_train(data, config_of(tiny_flux, max_train_steps=1)).checkpoints[-1].state_key
    other = config_of(
        tiny_flux, max_train_steps=1, max_checkpoints=1, lora_checkpoint_format="invoke_peft"
    )
    assert run_train(data, other, resume_state_key=key).done.steps == 1


def test_a_state_without_a_newer_option_is_resumed(tiny_flux: Path, data: Images) -> None:
    key = run_train(data, config_of(tiny_flux, max_train_steps=1)).checkpoints[-1].state_key
    whole = data.store.get(key)
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    identity = json.loads(header["__metadata__"]["identity"])
    assert identity.pop("compile") is False
    assert identity["data_loader"].pop("center_crop") is True
    header["__metadata__"]["identity"] = json.dumps(identity)
    written = json.dumps(header).encode()
    data.store.put("older", len(written).to_bytes(8, "little") + written + whole[8 + size :])
    config = config_of(tiny_flux, max_train_steps=1)
    assert run_train(data, config, resume_state_key="older").done.steps == 1
    with pytest.raises(ForeignStateError, match="compile"):
        run_train(data, config.model_copy(update={"compile": True}), resume_state_key="older")


@pytest.mark.parametrize(
    "damage", ["truncated", "a bit", "garbage", "empty", "another kind of file"]
)
def test_damaged_state_is_a_clear_error(tiny_flux: Path, data: Images, damage: str) -> None:
    config = config_of(tiny_flux, max_train_steps=1)
    straight = run_train(data, config)
    whole = straight.state_bytes()
    broken = {
        "truncated": whole[: len(whole) // 2],
        "a bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "garbage": b"\x00\x01" * 5000,
        "empty": b"",
        "another kind of file": straight.weights.read_bytes(),
    }[damage]
    data.store.put("broken.safetensors", broken)
    with pytest.raises(DamagedFileError, match=r"training state broken\.safetensors is damaged"):
        run_train(data, config, resume_state_key="broken.safetensors")


def test_resume_with_other_versions_warns(
    tiny_flux: Path, data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_flux, save_every_n_steps=2)
    key = run_train(data, config).checkpoints[0].state_key
    monkeypatch.setattr("worker.trainer.train.version", lambda _: "0.0.1")
    notes = run_train(data, config, start_id="2", resume_state_key=key).events.of(Note)
    assert "torch" in notes[0].message
