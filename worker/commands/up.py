"""``training-worker up``."""
