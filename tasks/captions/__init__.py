"""Captions that a model writes for the images of an upload."""
