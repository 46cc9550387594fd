"""Datasets: where they come from, what is checked, and how they lie in the store."""
