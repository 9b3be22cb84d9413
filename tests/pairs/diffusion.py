"""Diffusion MLP with a time embedding: scale and shift come from one layer or from two."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 8
DEPTH = 3


def sinusoid(t):
    frequencies = jnp.exp(-jnp.arange(DIM // 2) * 0.7)
    angles = t[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class ResidualBlock(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        h = nn.Dense(DIM)(nn.swish(nn.LayerNorm()(x)))
        shift = nn.Dense(DIM, name="time_shift")(t)
        scale = nn.Dense(DIM, name="time_scale")(t)
        h = nn.LayerNorm()(h) * (1 + scale) + shift
        return x + nn.Dense(DIM, name="out")(nn.swish(h))


class Denoiser(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        t = nn.Dense(DIM)(nn.swish(nn.Dense(DIM)(sinusoid(t))))
        x = nn.Dense(DIM, name="in")(x)
        for i in range(DEPTH):
            x = ResidualBlock(name=f"res{i}")(x, t)
        return nn.Dense(DIM, name="out")(x)


class FiLM(nnx.Module):
    def __init__(self, rngs):
        self.gain = nnx.Linear(DIM, DIM, rngs=rngs)
        self.offset = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, h, t):
        offset, gain = self.offset(t), self.gain(t)
        return h * (1 + gain) + offset


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conditioning = FiLM(rngs)
        self.linears = nnx.List([nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(2)])
        self.norms = nnx.List([nnx.LayerNorm(DIM, rngs=rngs) for _ in range(2)])

    def __call__(self, x, t):
        h = self.linears[0](nnx.swish(self.norms[0](x)))
        h = self.conditioning(self.norms[1](h), t)
        return x + self.linears[1](nnx.swish(h))


class ScoreNet(nnx.Module):
    def __init__(self, rngs):
        self.time_b = nnx.Linear(DIM, DIM, rngs=rngs)
        self.time_a = nnx.Linear(DIM, DIM, rngs=rngs)
        self.first = nnx.Linear(DIM, DIM, rngs=rngs)
        self.last = nnx.Linear(DIM, DIM, rngs=rngs)
        self.body = nnx.List([Block(rngs) for _ in range(DEPTH)])

    def __call__(self, x, t):
        t = self.time_a(nnx.swish(self.time_b(sinusoid(t))))
        x = self.first(x)
        for block in self.body:
            x = block(x, t)
        return self.last(x)


def truth(v):
    p = v["params"]
    places = {
        "time_b": p["Dense_1"],
        "time_a": p["Dense_0"],
        "first": p["in"],
        "last": p["out"],
    }
    for i in range(DEPTH):
        old, new = p[f"res{i}"], f"body/{i}"
        places[f"{new}/linears"] = {"0": old["Dense_0"], "1": old["out"]}
        places[f"{new}/norms"] = {"0": old["LayerNorm_0"], "1": old["LayerNorm_1"]}
        places[f"{new}/conditioning/gain"] = old["time_scale"]
        places[f"{new}/conditioning/offset"] = old["time_shift"]
    return slots(places)


PAIRS = [
    Pair(
        "diffusion-mlp",
        Denoiser,
        lambda: ScoreNet(nnx.Rngs(0)),
        (sample(3, DIM), np.array([1.0, 5.0, 9.0], np.float32)),
        truth,
        tolerance=1e-5,
    )
]
