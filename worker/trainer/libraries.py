"""The optional libraries that a config needs, looked for before anything is loaded or encoded."""

from importlib.util import find_spec

from tasks.jobs.optimizers import AdamOptimizerConfig, ProdigyOptimizerConfig
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.errors import MissingLibraryError

_BY_QUANTIZATION = {"fp8": "torchao", "int8": "torchao", "nf4": "bitsandbytes"}


def check_libraries(config: PipelineConfig) -> None:
    """Make sure that this worker can carry out a config.

    Raises:
        MissingLibraryError: It lacks a library.
    """
    needed = []
    quantization = getattr(config, "quantization", None)
    if quantization is not None:
        needed.append(_BY_QUANTIZATION[quantization])
    optimizer = config.optimizer
    if isinstance(optimizer, AdamOptimizerConfig) and optimizer.use_8bit:
        needed.append("bitsandbytes")
    if isinstance(optimizer, ProdigyOptimizerConfig):
        needed.append("prodigyopt")
    for library in needed:
        if find_spec(library) is None:
            raise MissingLibraryError(library)
