"""The command line ``training-worker``, one module per group of commands."""
