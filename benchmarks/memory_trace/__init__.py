"""Peak memory of real-size models, traced on a CUDA device that is not there."""
