"""The miniature FLUX: the model's files, the images that it draws, and how they are read."""
