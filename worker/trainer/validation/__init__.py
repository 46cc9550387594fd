"""Validation images."""
