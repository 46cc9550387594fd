import json
from pathlib import Path

from tests.worker.cli.conftest import Invoke


def test_each_setting_has_its_value_and_source(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "TRAINING_BROKER_URL").write_text("redis://user:hunter2@broker/0", "utf-8")
    settings = {
        "TRAINING_SECRETS_DIR": str(tmp_path),
        "TRAINING_JOB_TTL": "P2D",
        "TRAINING_STORE_URL": "s3://key:hunter2@bucket/prefix",
        "TRAINING_FLOWER_BASIC_AUTH": "operator:hunter2",
    }
    shown = invoke("config", "show", "--json", "-v", **settings)
    assert "hunter2" not in shown
    found = {it["name"]: (it["value"], it["source"]) for it in json.loads(shown.splitlines()[-1])}
    hidden = "**********"
    assert found["TRAINING_BROKER_URL"] == (hidden, f"file {tmp_path / 'TRAINING_BROKER_URL'}")
    assert found["TRAINING_FLOWER_BASIC_AUTH"] == (hidden, "environment")
    assert found["TRAINING_STORE_URL"] == (f"s3://{hidden}@bucket/prefix", "environment")
    assert found["TRAINING_JOB_TTL"] == ("2 d", "environment")
    assert found["TRAINING_LOG_LEVEL"] == ("debug", "command line")
    assert found["TRAINING_DATA_MAX_BYTES"] == ("50.0 GB", "default")
    assert found["TRAINING_GPU_PRICES"] == (None, "default")
    assert "hunter2" not in invoke("config", "show", **settings)


def test_a_misspelt_setting_is_named_with_the_right_one(invoke: Invoke) -> None:
    shown = invoke("config", "show", code=2, TRAINING_CONSOL_PORT="80", TRAINING_GPU="40gb")
    assert "TRAINING_CONSOL_PORT: no such setting; did you mean TRAINING_CONSOLE_PORT?" in shown
    assert "TRAINING_GPU: no such setting; did you mean TRAINING_GPUS?" in shown
