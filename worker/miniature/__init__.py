"""The miniature FLUX: the model's files, the pictures that it draws, and how they are read."""
