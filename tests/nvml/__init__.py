"""A machine with whatever GPUs a test wants, behind the real binding to NVML."""
