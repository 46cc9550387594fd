"""The FLUX model family."""
