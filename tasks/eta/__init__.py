"""Run history, and the estimates made from it."""
