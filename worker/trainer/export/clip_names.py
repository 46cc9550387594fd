"""The names of CLIP's weights in files."""

# What transformers 5 has at the top of a CLIPTextModel, where everything before it, and every file
# that others read, has it in a ``text_model``.
_FLATTENED = ("embeddings.", "encoder.", "final_layer_norm.")


def clip_path(path: str) -> str:
    """A weight's path as files have it: ``text_model.encoder.layers.0.mlp.fc1.weight``."""
    return f"text_model.{path}" if path.startswith(_FLATTENED) else path
