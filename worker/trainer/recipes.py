"""Which recipe trains a config."""

from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlFinetuneConfig, SdxlLoraConfig, SdxlTextualInversionConfig
from worker.trainer.draws import Draws
from worker.trainer.flux_lora import FluxLora
from worker.trainer.models import FluxModels, SdxlModels
from worker.trainer.sdxl_finetune import SdxlFinetune
from worker.trainer.sdxl_lora import SdxlLora
from worker.trainer.sdxl_textual_inversion import SdxlTextualInversion

AnyRecipe = FluxLora | SdxlLora | SdxlTextualInversion | SdxlFinetune


def new_recipe(config: PipelineConfig, models: FluxModels | SdxlModels, draws: Draws) -> AnyRecipe:
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
