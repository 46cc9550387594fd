"""A process that reports a job's run to an experiment tracker, by the tracker's own library."""
