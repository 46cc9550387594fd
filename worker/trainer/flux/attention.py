"""FLUX's attention, with fewer passes over its tokens than that of diffusers.

A rotary embedding (Su et al., 2021) is one product of complex numbers, in place of five operations
on float32 and their gradients; and the output keeps the precision of attention, where diffusers
casts it to float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel


def replace_attention(transformer: FluxTransformer2DModel) -> Callable[[], None]:
    """Compute attention by this module.

    Args:
        transformer: FLUX's, uncompiled: Inductor does not fuse operations on complex numbers.

    Returns:
        Restores diffusers' attention.
    """
    model: Any = transformer  # its types know only diffusers' own attention
    processors = dict(model.attn_processors)
    hook = model.pos_embed.register_forward_hook(_complex_rotation)
    model.set_attn_processor(_Attention())

    def restore() -> None:
        hook.remove()
        model.set_attn_processor(processors)

    return restore


def _complex_rotation(
    _module: object, _inputs: object, cos_sin: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Return a complex number for each pair of channels, (tokens, 1, D / 2)."""
    cos, sin = (table[:, ::2] for table in cos_sin)  # each number is there twice
    return torch.complex(cos, sin)[:, None]


class _Attention:
    """A processor of diffusers' attention layer: ``attn`` is the layer."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        image_rotary_emb: torch.Tensor,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend.

        Args:
            attn: The layer.
            hidden_states: The tokens, (B, tokens, width), of the image, or of text and image.
            encoder_hidden_states: The tokens of the text in a double block.
            attention_mask: Which tokens attend to which; None for all.
            image_rotary_emb: The rotation of each token of text and image, (tokens, 1, D / 2).

        Returns:
            The outputs for image and text in a double block; else for all tokens, not projected.
        """
        q, k, v = _projected(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if encoder_hidden_states is not None:
            layers = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
            text_q, text_k, text_v = _projected(attn, encoder_hidden_states, layers)
            q = torch.cat([attn.norm_added_q(text_q), q], dim=1)
            k = torch.cat([attn.norm_added_k(text_k), k], dim=1)
            v = torch.cat([text_v, v], dim=1)
        q, k = _rotated(q, image_rotary_emb), _rotated(k, image_rotary_emb)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, tokens, D)
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, attention_mask)
        tokens = found.transpose(1, 2).flatten(2)  # (B, tokens, width)
        if encoder_hidden_states is None:
            return tokens
        text, image = tokens.tensor_split([encoder_hidden_states.shape[1]], dim=1)
        return attn.to_out[0](image.contiguous()), attn.to_add_out(text.contiguous())


def _projected(
    attn: Any, x: torch.Tensor, layers: tuple[torch.nn.Module, ...]
) -> tuple[torch.Tensor, ...]:
    """Return q, k and v of the tokens, (B, tokens, heads, D)."""
    return tuple(layer(x).unflatten(-1, (-1, attn.head_dim)) for layer in layers)


def _rotated(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of channels, (B, tokens, heads, D)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
