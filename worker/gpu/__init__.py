"""The GPUs of this machine: inventory, statistics and health."""
