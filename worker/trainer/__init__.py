"""The trainer subprocess: the only place that imports torch."""
