"""Memory and speed measured on a GPU."""
