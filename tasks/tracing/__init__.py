"""OpenTelemetry traces of jobs."""
