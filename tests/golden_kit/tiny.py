"""Models of a few numbers, and what goes wrong with models."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import optax
from flax import nnx


class LinenTiny(nn.Module):
    sizes: tuple[int, ...] = (3, 4, 2)

    @nn.compact
    def __call__(self, x):
        for n, size in enumerate(self.sizes[1:]):
            x = nn.tanh(nn.Dense(size, name=f"layer_{n}")(x))
        return x


class Tiny(nnx.Module):
    def __init__(self, sizes=(3, 4, 2), activation=jnp.tanh):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(sizes[0], sizes[1], rngs=rngs)
        self.second = nnx.Linear(sizes[1], sizes[2], rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        return self.activation(self.second(self.activation(self.first(x))))


class Renamed(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.inner = nnx.Linear(3, 4, rngs=rngs)
        self.second = nnx.Linear(4, 2, rngs=rngs)


def model():
    return Tiny()


def other_model():
    return Tiny(activation=jnp.sin)


def large():
    return Tiny((48, 64, 40))


def deeper():
    class Deeper(nnx.Module):
        def __init__(self):
            self.only = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

    return Deeper()


def renamed():
    return Renamed()


def optimizer():
    return optax.adam(1e-3)
