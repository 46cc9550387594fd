"""What a trainer's process sets before it imports the libraries."""

import logging
import os
import warnings

# Read by the libraries when they are imported, which the stages do.
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


def set_up() -> None:
    """Let the libraries be quiet, and CUDA deterministic."""
    for name, value in {**_QUIET, **_DETERMINISTIC}.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # They speak of kernels for other machines whenever diffusers or peft is imported.
    for chatty in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
