"""The miniature models: their files, the images that they draw, and how they are read."""
