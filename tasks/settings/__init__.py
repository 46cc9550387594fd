"""The settings of a process, from ``TRAINING_*`` environment variables."""
