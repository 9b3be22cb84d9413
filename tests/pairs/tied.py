"""Tied embeddings: one table is used at both ends, and two copies become one."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, slots, tokens

DIM = 8
VOCAB = 8


class TiedLM(nn.Module):
    def setup(self):
        self.embed = nn.Embed(VOCAB, DIM)
        self.positions = nn.Embed(VOCAB, DIM)
        self.blocks = [nn.Dense(DIM) for _ in range(3)]
        self.norm = nn.LayerNorm(use_bias=False)

    def __call__(self, ids):
        x = self.embed(ids) + self.positions(jnp.arange(ids.shape[1]))
        for block in self.blocks:
            x = x + nn.tanh(block(x))
        return self.embed.attend(self.norm(x))


class LM(nnx.Module):
    def __init__(self, rngs):
        self.wpe = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.wte = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.h = nnx.List([nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(3)])
        self.ln = nnx.LayerNorm(DIM, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        x = self.wte(ids) + self.wpe(jnp.arange(ids.shape[1]))
        for layer in self.h:
            x = x + nnx.tanh(layer(x))
        return self.wte.attend(self.ln(x))


def truth(v):
    p = v["params"]
    return slots(
        {
            "wte": p["embed"],
            "wpe": p["positions"],
            "ln": p["norm"],
            "h": {str(i): p[f"blocks_{i}"] for i in range(3)},
        }
    )


class Siamese(nn.Module):
    """One encoder, applied to both inputs, as it is shared in setup."""

    def setup(self):
        self.project = nn.Dense(DIM)
        self.encoder = nn.Sequential([nn.Dense(DIM), nn.relu, self.project])
        self.judge = nn.Dense(DIM)

    def __call__(self, a, b):
        return self.judge(self.encoder(a) * self.encoder(b)) + self.project(a)


class NNXSiamese(nnx.Module):
    """The projection lies in two places; nnx stores it under the first attribute."""

    def __init__(self, rngs):
        shared = nnx.Linear(DIM, DIM, rngs=rngs)
        self.tower = nnx.Sequential(nnx.Linear(DIM, DIM, rngs=rngs), nnx.relu, shared)
        self.compare = nnx.Linear(DIM, DIM, rngs=rngs)
        self.zz_projection = shared

    def __call__(self, a, b):
        return self.compare(self.tower(a) * self.tower(b)) + self.zz_projection(a)


def siamese_truth(v):
    p = v["params"]
    return slots(
        {
            "tower/layers/0": p["encoder"]["layers_0"],
            "tower/layers/2": p["project"],
            "compare": p["judge"],
        }
    )


class Untied(nn.Module):
    """Two tables where the NNX model has one: only right when they are equal, so refused."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(VOCAB, DIM, name="input")(ids)
        x = nn.tanh(nn.Dense(DIM)(x))
        return nn.Embed(VOCAB, DIM, name="output").attend(x)


def untied_truth(v):
    p = v["params"]
    return slots({"wte": p["input"], "hidden": p["Dense_0"], "unembed": p["output"]})


class NNXUntied(nnx.Module):
    def __init__(self, rngs):
        self.unembed = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.hidden = nnx.Linear(DIM, DIM, rngs=rngs)
        self.wte = nnx.Embed(VOCAB, DIM, rngs=rngs)

    def __call__(self, ids):
        return self.unembed.attend(nnx.tanh(self.hidden(self.wte(ids))))


IDS = (tokens(2, 5, vocab=VOCAB),)
PAIRS = [
    Pair("tied-embedding", TiedLM, lambda: LM(nnx.Rngs(0)), IDS, truth, tolerance=1e-5),
    Pair(
        "shared-layer",
        Siamese,
        lambda: NNXSiamese(nnx.Rngs(0)),
        (jnp.ones((2, DIM)), jnp.linspace(0, 1, 2 * DIM).reshape(2, DIM)),
        siamese_truth,
    ),
    Pair("untied-embeddings", Untied, lambda: NNXUntied(nnx.Rngs(0)), IDS, untied_truth),
]
