"""The NNX model: other names, other modules, the same function."""

from __future__ import annotations

import jax
import optax
from flax import nnx


class Block(nnx.Module):
    """Two layers beside a residual."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.w1 = nnx.Linear(8, 16, rngs=rngs)
        self.w2 = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.w2(nnx.gelu(self.w1(self.norm(x))))


class Tagger(nnx.Module):
    """Tags each token of a sentence."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.words = nnx.Embed(20, 8, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.tags = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        return self.tags(x)


def tagger() -> Tagger:
    """A model to fill."""
    return Tagger(nnx.Rngs(0))


def optimizer() -> optax.GradientTransformation:
    """As in the runs."""
    return optax.adamw(1e-3)
