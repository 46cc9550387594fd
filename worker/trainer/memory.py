"""GPU memory, given back."""

import gc

import torch


def release_memory() -> None:
    """Give the memory of what was just deleted or moved away back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
