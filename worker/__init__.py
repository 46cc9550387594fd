"""Worker processes: GPUs, pools, the trainer's supervision and the command line."""
