"""Copies of a job's published results: on the Hub and in tenants' buckets."""
