"""What other programs look for in the header of an SDXL file.

It holds no dates: the same run gives the same file.
"""

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from tasks.jobs.sdxl import SdxlConfig


def sdxl_metadata(
    config: SdxlConfig, scheduler: DDPMScheduler, name: str, steps: int, kind: str | None
) -> dict[str, str]:
    """The ``modelspec.*`` and ``ss_*`` entries.

    Args:
        config: The run's.
        scheduler: Of the base model.
        name: The title.
        steps: Weight updates made.
        kind: ``lora`` or ``textual-inversion``; None for a whole model.
    """
    size = max(config.loader.sizes(), key=lambda size: size.pixels)
    velocity = scheduler.config["prediction_type"] == "v_prediction"
    architecture = "stable-diffusion-xl-v1-base"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.resolution": str(size),
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_sd_model_name": config.model,
        "ss_output_name": name,
        "ss_steps": str(steps),
        "ss_seed": str(config.seed),
        "ss_learning_rate": str(max(config.learning_rates().values())),
        "ss_resolution": f"({size.width}, {size.height})",
    }
