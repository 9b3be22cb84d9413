"""What one side has and the other has not: a table made a buffer, a key bias, a constant."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 8
HEADS = 2
LENGTH = 4


class Attention(nn.Module):
    """As in Whisper: the key projection has no bias."""

    @nn.compact
    def __call__(self, x):
        q = nn.Dense(DIM, name="q_proj")(x)
        k = nn.Dense(DIM, name="k_proj", use_bias=False)(x)
        v = nn.Dense(DIM, name="v_proj")(x)
        return nn.Dense(DIM, name="out_proj")(attend(q, k, v))


def attend(q, k, v):
    heads = (*q.shape[:-1], HEADS, -1)
    y = nn.dot_product_attention(q.reshape(heads), k.reshape(heads), v.reshape(heads))
    return y.reshape(q.shape)


class AudioEncoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        table = nn.initializers.normal(0.02)
        x = x + self.param("embed_positions", table, (LENGTH, DIM))
        for i in range(2):
            x = x + Attention(name=f"layers_{i}")(nn.LayerNorm(name=f"norm_{i}")(x))
        return nn.LayerNorm(name="layer_norm")(x)


class Buffer(nnx.Variable):
    """Neither trained nor in any checkpoint of the old model."""


class SelfAttention(nnx.Module):
    def __init__(self, rngs):
        self.value = nnx.Linear(DIM, DIM, rngs=rngs)
        self.query = nnx.Linear(DIM, DIM, rngs=rngs)
        self.key = nnx.Linear(DIM, DIM, rngs=rngs)
        self.out = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.out(attend(self.query(x), self.key(x), self.value(x)))


class Encoder(nnx.Module):
    def __init__(self, rngs, *, bias=True):
        self.positions = Buffer(jnp.zeros((LENGTH, DIM)))
        self.scale = Buffer(jnp.asarray(1.0)) if bias else None
        self.attention = nnx.List([SelfAttention(rngs) for _ in range(2)])
        self.norms = nnx.List([nnx.LayerNorm(DIM, rngs=rngs) for _ in range(3)])
        if not bias:
            for layer in self.attention:
                layer.key = nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = x + self.positions[...] * (1.0 if self.scale is None else self.scale[...])
        for i, layer in enumerate(self.attention):
            x = x + layer(self.norms[i](x))
        return self.norms[2](x)


def truth(v):
    p = v["params"]
    places = {"positions": p["embed_positions"], "norms/2": p["layer_norm"]}
    for i in range(2):
        places[f"norms/{i}"] = p[f"norm_{i}"]
        for new, old in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
            places[f"attention/{i}/{new}"] = p[f"layers_{i}"][f"{old}_proj"]
    return slots(places)


RULES = """
[[init]]
slot = "attention/{i}/key/bias"
value = "zeros"

[[init]]
slot = "scale"
value = "ones"
"""
X = (sample(2, LENGTH, DIM),)
PAIRS = [
    Pair(
        "buffer", AudioEncoder, lambda: Encoder(nnx.Rngs(0), bias=False), X, truth, tolerance=1e-5
    ),
    Pair(
        "buffer-and-key-bias",
        AudioEncoder,
        lambda: Encoder(nnx.Rngs(0)),
        X,
        truth,
        unfed=(*((("attention", str(i), "key", "bias")) for i in range(2)), ("scale",)),
        tolerance=1e-5,
        needs="the key biases have no source, and neither has the constant",
        rules=RULES,
    ),
]
