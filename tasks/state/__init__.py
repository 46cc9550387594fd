"""The state of jobs, workers and queues in Redis."""
