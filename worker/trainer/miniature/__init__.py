"""The scripts that trained the miniature models from nothing, on a CPU."""
