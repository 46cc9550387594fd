"""Batches of a run: cached entries, images and masks as tensors."""
