"""Mistakes of users: each has a clear message and an exit code, and uses no GPU."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleets import Fleet, Ran
from tests.tasks.data.hostile import jpeg_of_scans
from tests.waiting import wait_until


def error_of(ran: Ran) -> str:
    """Return the message of a command that failed with ``--json``."""
    message: str = ran.documents[-1]["error"]["message"]
    return message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"type": "FLUX_LORAX"},
            r"training.type \(line \d+\): must .* did you mean 'FLUX_LORA'",
        ),
        ({"lora_ranks": 4}, r"training.lora_ranks \(line \d+\): is not an option"),
        ({"lora_rank_dim": 0}, r"training.lora_rank_dim \(line \d+\): must be above 0"),
        ({"type": "SDXL_LORA"}, r"training.t5_tokenizer_max_length \(line \d+\): is not an option"),
    ],
)
def test_an_invalid_job_is_refused_before_it_is_sent(
    fleet: Fleet, job: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    job["training"] |= change
    ran = fleet.submit(job)
    assert ran.code == 3, ran
    assert re.search(said, error_of(ran))


def test_an_invalid_resolution_names_the_nearest_valid_ones(
    fleet: Fleet, job: dict[str, Any]
) -> None:
    del job["training"]["data_loader"]["aspect_ratio_buckets"]
    job["training"]["data_loader"]["resolution"] = 570
    ran = fleet.submit(job)
    assert ran.code == 3, ran
    assert "570 is not divisible by 16; use 560 or 576" in error_of(ran)


def test_all_problems_of_a_dataset_are_reported_together(
    fleet: Fleet, job: dict[str, Any], images: Path
) -> None:
    (images / "01.txt").unlink()
    (images / "02.png").write_bytes(b"no image at all")
    whole = (images / "03.png").read_bytes()
    (images / "03.png").write_bytes(whole[: len(whole) // 2])
    for options in ((), ("--dry-run",)):
        ran = fleet.submit(job, "--watch", *options)
        assert ran.code == 4, ran
        for name in ("01.png", "02.png", "03.png"):
            assert name in error_of(ran)


@pytest.fixture
def slow_job(job: dict[str, Any], images: Path) -> dict[str, Any]:
    """A job with an image that takes a minute to decode, more than it may."""
    (images / "00.jpg").write_bytes(jpeg_of_scans(16384, 100))
    (images / "00.txt").write_text("a caption", "utf-8")
    return job


def decoding(fleet: Fleet, job: dict[str, Any]) -> str:
    """Submit a slow job, and return its id once its image is being decoded."""
    job_id: str = fleet.submit(job).documents[-1]["job_id"]
    wait_until(
        lambda: any(decoder.cpu_times().user > 1 for decoder in fleet.decoders()),
        timeout_s=60,
        description="the image is being decoded",
        detail=fleet.log,
    )
    return job_id


def test_a_killed_decoder_is_a_finding_and_ends_no_worker(
    fleet: Fleet, slow_job: dict[str, Any]
) -> None:
    workers = fleet.workers()
    job_id = decoding(fleet, slow_job)
    max(fleet.decoders(), key=lambda decoder: decoder.cpu_times().user).kill()
    ran = fleet.run("watch", job_id, "--json")
    assert ran.code == 4, ran
    assert "00.jpg: ended its decoder" in error_of(ran)
    assert fleet.workers() == workers
    assert fleet.decoders() == []


def test_a_cancel_ends_a_slow_decoder(fleet: Fleet, slow_job: dict[str, Any]) -> None:
    job_id = decoding(fleet, slow_job)
    assert fleet.run("cancel", job_id).code == 0
    wait_until(
        lambda: fleet.decoders() == [],
        timeout_s=2,
        description="the decoders ended",
        detail=fleet.log,
    )
    assert fleet.run("watch", job_id, "--json").code == 10


def test_no_text_of_a_job_controls_a_terminal_or_forges_a_log(
    fleet: Fleet, job: dict[str, Any], images: Path
) -> None:
    attack = "\x1b]0;title\x07\x1b[2J\x9b\u202e\n17:00:00 cpu INFO forged [red]x[@click=y]"
    (images / f"{attack}.png").write_bytes(b"no image")
    jsonl, path = images / "rows.jsonl", fleet.home / "attack.json"
    jsonl.write_text(json.dumps({"image": attack, "text": attack}), "utf-8")
    outputs = []
    for dataset in (
        {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(jsonl)},
        {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(images)},
    ):
        job["training"]["data_loader"]["dataset"] = dataset
        path.write_text(json.dumps(job), "utf-8")
        for options in (["--watch"], ["--watch", "--json"], ["--dry-run"]):
            ran = fleet.run("submit", str(path), *options)
            assert ran.code == 4, ran
            assert "forged" in ran.out + ran.err
            outputs += [ran.out, ran.err]
    records: Any = fleet.run("list", "--json").documents[0]
    for command in (["status", records[0]["id"]], ["list"], ["dead-letter", "list"]):
        outputs.append(fleet.run(*command).out)
    assert "forged" in fleet.log()
    for line in "\n".join([*outputs, fleet.log()]).split("\n"):
        assert line.isprintable()
        assert not line.startswith("17:00:00")


@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_or_empty_dataset_is_reported(
    fleet: Fleet, job: dict[str, Any], images: Path, missing: bool
) -> None:
    shutil.rmtree(images)
    if not missing:
        images.mkdir()
    ran = fleet.submit(job, "--watch")
    assert ran.code == 4, ran
    assert str(images) in error_of(ran)


def test_a_missing_model_is_reported(fleet: Fleet, job: dict[str, Any], tmp_path: Path) -> None:
    job["training"]["model"] = str(tmp_path / "nowhere")
    ran = fleet.submit(job, "--watch")
    assert ran.code == 5, ran
    assert "nowhere" in error_of(ran)


def test_a_tokenizer_without_vocabulary_is_reported(
    fleet: Fleet, job: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "no-vocabulary"
    shutil.copytree(tiny_model, model)
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "spiece.model"):
        (model / "tokenizer" / name).unlink(missing_ok=True)
    job["training"]["model"] = str(model)
    ran = fleet.submit(job, "--watch")
    assert ran.code == 5, ran
    assert "tokenizer" in error_of(ran)


def test_a_missing_broker_is_reported_with_a_remedy(tmp_path: Path, job: dict[str, Any]) -> None:
    fleet = Fleet(tmp_path / "absent", "40gb")
    fleet.home.mkdir()
    ran = fleet.submit(job)
    assert ran.code == 6, ran
    assert "training-worker up" in error_of(ran)


def test_an_unknown_job_is_reported(fleet: Fleet) -> None:
    ran = fleet.run("status", "unknown", "--json")
    assert ran.code == 11, ran


def test_a_malformed_job_file_is_reported(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("training: [", "utf-8")
    ran = fleet.run("submit", str(path), "--json")
    assert ran.code == 17, ran
    assert "it is not YAML" in error_of(ran)


def test_an_invalid_setting_is_reported(fleet: Fleet) -> None:
    broken = Fleet(fleet.home, "40gb", TRAINING_TRAINER_RESTARTS="-1")
    ran = broken.run("list")
    assert ran.code == 2, ran
    assert "TRAINING_TRAINER_RESTARTS" in ran.err
