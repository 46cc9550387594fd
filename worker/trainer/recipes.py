"""Which recipe trains a config."""

from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlFinetuneConfig, SdxlLoraConfig, SdxlTextualInversionConfig
from worker.trainer.flux.lora_recipe import FluxLora
from worker.trainer.models import FluxModels, SdxlModels
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.finetune_recipe import SdxlFinetune
from worker.trainer.sdxl.lora_recipe import SdxlLora
from worker.trainer.sdxl.textual_inversion_recipe import SdxlTextualInversion

AnyRecipe = FluxLora | SdxlLora | SdxlTextualInversion | SdxlFinetune


def new_recipe(
    config: PipelineConfig, models: FluxModels | SdxlModels, draws: StatelessRng
) -> AnyRecipe:
    """The recipe of a config, over its models.

    Raises:
        RefusedError: The models cannot be trained so.
    """
    match config, models:
        case FluxLoraConfig(), FluxModels():
            return FluxLora(config, models, draws)
        case SdxlLoraConfig(), SdxlModels():
            return SdxlLora(config, models, draws)
        case SdxlTextualInversionConfig(), SdxlModels():
            return SdxlTextualInversion(config, models, draws)
        case SdxlFinetuneConfig(), SdxlModels():
            return SdxlFinetune(config, models, draws)
    raise TypeError(f"no recipe for {config.type}")
