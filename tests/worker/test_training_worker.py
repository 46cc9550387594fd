from typing import Any

import pytest

from worker import training_worker
from worker.training_worker import (
    RESOURCE_REQUIREMENTS,
    SUPPORTED_TRAINING_TYPES,
    get_flux_lora_config,
    get_sdxl_finetune_config,
    get_sdxl_lora_config,
    get_sdxl_ti_config,
    process_training_job,
)


def test_registry_of_the_plan_is_ours() -> None:
    assert {
        "SDXL_LORA": get_sdxl_lora_config,
        "SDXL_TEXTUAL_INVERSION": get_sdxl_ti_config,
        "SDXL_FINETUNE": get_sdxl_finetune_config,
        "FLUX_LORA": get_flux_lora_config,
    } == SUPPORTED_TRAINING_TYPES
    assert RESOURCE_REQUIREMENTS["FLUX_LORA"] == {"gpu_memory": "40GB", "system_memory": "64GB"}


def test_unsupported_types_are_refused_before_any_connection() -> None:
    for config in ({}, {"type": "SD_1_5"}, {"type": None}, {"type": ["FLUX_LORA"]}):
        with pytest.raises(ValueError, match="Unsupported training type"):
            process_training_job(config)


@pytest.mark.parametrize("training_type", list(SUPPORTED_TRAINING_TYPES))
def test_a_config_goes_to_its_function(training_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def note(which: str) -> Any:
        return lambda config, **_: called.append(f"{which} {config['type']}")

    monkeypatch.setattr(training_worker, "process_flux_lora_job", note("flux"))
    monkeypatch.setattr(training_worker, "process_sdxl_job", note("sdxl"))
    process_training_job({"type": training_type})
    assert called == [f"{training_type.partition('_')[0].lower()} {training_type}"]
