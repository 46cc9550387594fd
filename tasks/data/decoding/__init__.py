"""Decoding of untrusted files: images, archives and parquet, in processes under limits."""
