"""The published LoRA changes the image that diffusers generates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from tests.integration.fleets import Fleet


def generated_image(model: Path, lora: Path | None) -> np.ndarray[Any, Any]:
    """Return an image (H, W, 3) of the base model, with or without the LoRA."""
    pipeline: Any = FluxPipeline.from_pretrained(str(model))
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    made = pipeline(
        "a red square",
        height=64,
        width=64,
        num_inference_steps=4,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    image: np.ndarray[Any, Any] = made.images[0]
    return image


@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, while they load
def test_both_forms_of_a_lora_change_the_image_alike(
    fleet: Fleet, job: dict[str, Any], tiny_model: Path
) -> None:
    made: list[np.ndarray[Any, Any]] = []
    for form in ("kohya", "invoke_peft"):
        job["training"] |= {"lora_checkpoint_format": form, "transformer_learning_rate": 0.01}
        ran = fleet.submit(job, "--watch")
        assert ran.code == 0, f"{ran}\n{fleet.log()}"
        made.append(generated_image(tiny_model, Path(ran.documents[-1]["published"])))
    base = generated_image(tiny_model, None)
    assert np.array_equal(made[0], made[1])
    assert np.abs(made[0] - base).max() > 1 / 255
