"""A worker's lifecycle: health file, idle shutdown, preemption."""
