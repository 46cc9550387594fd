import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis

from tests.worker.cli.conftest import Invoke


@pytest.fixture
def job_file(tmp_path: Path, job_document: dict[str, Any]) -> Path:
    path = tmp_path / "job.yaml"
    document = {**job_document, "tenant": "acme", "labels": {"customer": "17"}}
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


@pytest.mark.usefixtures("redis_client")
def test_quotas_are_set_shown_and_unset(invoke: Invoke, broker_url: str, job_file: Path) -> None:
    def run(*words: str, **options: Any) -> str:
        return invoke(*words, TRAINING_BROKER_URL=broker_url, **options)

    shown = run("tenants", "set", "acme", "--gpu-hours", "100", "--max-waiting", "1", "--hold")
    assert shown == "acme: 100 GPU hours, 1 waiting; then hold\n"
    shown = run("tenants", "set", "acme", "--gpu-hours", "none", "--json")
    assert json.loads(shown)["quotas"] == {
        "gpu_hours": None,
        "money": None,
        "max_waiting": 1,
        "hold": True,
    }
    for number in ("1.5", "1e15"):
        run("tenants", "set", "acme", "--max-waiting", number, code=2)
    run("submit", str(job_file))
    assert "acme has 1 waiting jobs, its maximum" in run("submit", str(job_file), code=21)
    [row] = json.loads(run("tenants", "--json"))
    assert (row["tenant"], row["usage"]["submitted"], row["waiting"]) == ("acme", 1, {"cpu": 1})
    assert "1 waiting; then hold" in run("tenants")
    assert json.loads(run("tenants", "--month", "2020-01", "--json"))[0]["usage"]["submitted"] == 0
    assert run("tenants", "unset", "acme") == "acme: no quotas\n"
    for wrong in (["set", "acme"], ["set", "a b", "--money", "1"], ["set", "a", "--money", "-1"]):
        run("tenants", *wrong, code=2)
    run("tenants", "--month", "November", code=2)


def test_lists_and_priorities_of_waiting_jobs(
    invoke: Invoke, broker_url: str, job_file: Path, redis_client: Redis
) -> None:
    def run(*words: str, **options: Any) -> str:
        return invoke(*words, TRAINING_BROKER_URL=broker_url, **options)

    first, last = (json.loads(run("submit", str(job_file), "--json"))["job_id"] for _ in range(2))
    assert run("prioritize", last, "--front") == f"job {last} is in front\n"
    assert json.loads(run("prioritize", first, "7", "--json"))["waits"]
    assert redis_client.zrange("training:tenant_queues:cpu:acme", 0, -1) == [last, first]
    run("prioritize", first, code=2)
    run("prioritize", first, "7", "--front", code=2)
    filters = ["--label", "customer=17", "--tenant", "acme", "--since", "1h", "--queue", "cpu"]
    listed = json.loads(run("list", *filters, "--status", "queued", "--json"))
    assert [it["id"] for it in listed] == [last, first]
    assert listed[1]["priority"] == 7
    assert listed[0]["waiting_reason"]
    assert json.loads(run("list", "--label", "customer=18", "--json")) == []
    assert json.loads(run("list", "--type", "SDXL_LORA", "--json")) == []
    assert "no live worker serves cpu" in run("list")
    for wrong in (["--status", "odd"], ["--label", "=x"], ["--since", "soon"]):
        run("list", *wrong, code=2)
