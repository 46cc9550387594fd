"""The SDXL model family."""
