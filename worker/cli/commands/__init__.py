"""The commands of ``training-worker``, by what they are about."""
