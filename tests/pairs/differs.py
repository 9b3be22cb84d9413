"""Rewrites that do not compute the same: the weights have their places, the outputs differ.

With the Linen module they may be refused or mapped with a warning; wrong they must not be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 6


@dataclass(frozen=True)
class Way:
    """What the two sides do differently."""

    activation: Callable[[Any], Any] = jax.nn.relu
    epsilon: float = 1e-6
    pool: Callable[..., Any] = jnp.mean
    scale: float = 1.0


class Block(nn.Module):
    way: Way

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(epsilon=self.way.epsilon)(x)
        h = nn.Dense(DIM)(self.way.activation(nn.Dense(DIM)(h)))
        return x + h * self.way.scale


class Net(nn.Module):
    way: Way

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(DIM, name="embed")(x)
        for _ in range(3):
            x = Block(self.way)(x)
        x = self.way.pool(x, axis=1)
        return nn.Dense(DIM, name="mean")(x), nn.Dense(DIM, name="logvar")(x)


class Layer(nnx.Module):
    def __init__(self, way, rngs):
        self.way = way
        self.b = nnx.Linear(DIM, DIM, rngs=rngs)
        self.a = nnx.Linear(DIM, DIM, rngs=rngs)
        self.n = nnx.LayerNorm(DIM, epsilon=way.epsilon, rngs=rngs)

    def __call__(self, x):
        return x + self.b(self.way.activation(self.a(self.n(x)))) * self.way.scale


class NNXNet(nnx.Module):
    def __init__(self, way, rngs):
        self.way = way
        self.first_head, self.second_head = (nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(2))
        self.body = nnx.List([Layer(way, rngs) for _ in range(3)])
        self.stem = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for layer in self.body:
            x = layer(x)
        x = self.way.pool(x, axis=1)
        return self.second_head(x), self.first_head(x)


def truth(v):
    p = v["params"]
    places = {"stem": p["embed"], "second_head": p["mean"], "first_head": p["logvar"]}
    for i in range(3):
        old = p[f"Block_{i}"]  # the outer layer is made first
        places[f"body/{i}"] = {"n": old["LayerNorm_0"], "b": old["Dense_0"], "a": old["Dense_1"]}
    return slots(places)


class Gated(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            gate = nn.sigmoid(nn.Dense(DIM, name=f"gate_{i}")(x))
            x = gate * nn.tanh(nn.Dense(DIM, name=f"value_{i}")(x))
        return x


class HardGates(nnx.Module):
    """Cheap activations, and the factors the other way round."""

    def __init__(self, rngs):
        self.a, self.b = (
            nnx.List([nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(2)]) for _ in range(2)
        )

    def __call__(self, x):
        for a, b in zip(self.a, self.b, strict=True):
            x = nnx.hard_tanh(a(x)) * nnx.hard_sigmoid(b(x))
        return x


def gated(v):
    p = v["params"]
    return slots(
        {f"{n}/{i}": p[f"{old}_{i}"] for n, old in (("b", "gate"), ("a", "value")) for i in (0, 1)}
    )


class Inception(nn.Module):
    @nn.compact
    def __call__(self, x):
        wide = nn.relu(nn.Dense(DIM, name="wide")(x))
        deep = nn.softplus(nn.Dense(DIM, name="deep")(x))
        return nn.Dense(DIM, name="top")(wide - deep)


class NNXInception(nnx.Module):
    """Other activations, the other sign, and the branches in the other order."""

    def __init__(self, rngs):
        self.one, self.two, self.head = (nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(3))

    def __call__(self, x):
        return self.head(nnx.elu(self.one(x)) - nnx.leaky_relu(self.two(x)))


def inception(v):
    p = v["params"]
    return slots({"one": p["deep"], "two": p["wide"], "head": p["top"]})


def differing(name, old, new):
    return Pair(
        f"differs-{name}",
        partial(Net, old),
        lambda: NNXNet(new, nnx.Rngs(0)),
        (sample(2, 4, DIM),),
        truth,
        tolerance=100.0,
        hard="the two models compute different things",
    )


gelu = partial(jax.nn.gelu, approximate=False)
PAIRS = [
    differing("gelu", Way(activation=gelu), Way(activation=jax.nn.gelu)),
    differing("activation", Way(), Way(activation=jax.nn.swish)),
    differing("epsilon", Way(), Way(epsilon=1e-5)),
    differing("pool", Way(), Way(pool=jnp.max)),
    differing("scale", Way(), Way(scale=0.5)),
    *(
        Pair(
            f"differs-{name}",
            old,
            lambda new=new: new(nnx.Rngs(0)),
            (sample(3, DIM),),
            function,
            tolerance=100.0,
            hard="the two models compute different things",
        )
        for name, old, new, function in (
            ("gates", Gated, HardGates, gated),
            ("branches", Inception, NNXInception, inception),
        )
    ),
]
