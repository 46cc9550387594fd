"""How the trainer computes: kernels, precision, determinism, recomputation and memory."""
