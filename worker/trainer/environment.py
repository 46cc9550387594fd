"""A trainer process's environment: quiet libraries, deterministic kernels, optional libraries."""

import logging
import os
import warnings
from importlib.util import find_spec

from tasks.jobs.optimizers import AdamOptimizerConfig
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.errors import MissingLibraryError

# The libraries read these when they are imported, which the stages do.
_QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
# cuBLAS adds in a fixed order only with this set before CUDA starts.
_DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
_BY_QUANTIZATION = {"fp8": "torchao", "int8": "torchao", "nf4": "bitsandbytes"}


def set_up() -> None:
    """Silence the libraries; call it before they are imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.update(_DETERMINISTIC)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # On import by diffusers they log about kernels for other machines.
    for chatty in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)


def check_libraries(config: PipelineConfig) -> None:
    """Check that this worker has the optional libraries of a config, before anything is loaded.

    Raises:
        MissingLibraryError: A library is not installed.
    """
    needed = []
    quantization = getattr(config, "quantization", None)
    if quantization is not None:
        needed.append(_BY_QUANTIZATION[quantization])
    optimizer = config.optimizer
    if isinstance(optimizer, AdamOptimizerConfig) and optimizer.use_8bit:
        needed.append("bitsandbytes")
    for library in needed:
        if find_spec(library) is None:
            raise MissingLibraryError(library)
