"""Datasets: where they come from, what is checked, and how the store keeps them."""
