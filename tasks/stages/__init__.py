"""The four stages of a job, and how a worker runs one."""
