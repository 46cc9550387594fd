"""Base models: their files and the checks that need no GPU."""
