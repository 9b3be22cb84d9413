"""The Linen model that the runs of last year were trained with. Nobody uses it any more."""

from __future__ import annotations

import flax.linen as nn
import jax


class Block(nn.Module):
    """Two layers beside a residual."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


class Tagger(nn.Module):
    """Tags each token of a sentence."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(20, 8)(tokens)
        for n in range(2):
            x = Block(name=f"blocks_{n}")(x)
        return nn.Dense(5)(x)


def tagger() -> Tagger:
    """The module, as the runs had it."""
    return Tagger()
