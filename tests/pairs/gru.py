"""GRU text classifier: NNX has no place for the bias of the hidden n gate."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, cat, slots, tokens

DIM = 6
VOCAB = 10


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(VOCAB, DIM)(ids)
        x = nn.RNN(nn.GRUCell(DIM))(x)
        x = nn.RNN(nn.GRUCell(DIM))(x)
        x = nn.relu(nn.Dense(DIM)(x[:, -1]))
        return nn.Dense(3)(x)


class TextModel(nnx.Module):
    def __init__(self, rngs):
        self.upper = nnx.RNN(nnx.GRUCell(DIM, DIM, rngs=rngs), rngs=rngs)
        self.lower = nnx.RNN(nnx.GRUCell(DIM, DIM, rngs=rngs), rngs=rngs)
        self.embed = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.labels = nnx.Linear(DIM, 3, rngs=rngs)
        self.penultimate = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, ids):
        x = self.upper(self.lower(self.embed(ids)))
        return self.labels(nnx.relu(self.penultimate(x[:, -1])))


class HandGRU(nnx.Module):
    """A cell written by hand keeps the bias."""

    def __init__(self, rngs):
        self.input_reset = nnx.Linear(DIM, DIM, rngs=rngs)
        self.input_update = nnx.Linear(DIM, DIM, rngs=rngs)
        self.input_new = nnx.Linear(DIM, DIM, rngs=rngs)
        self.hidden_reset = nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs)
        self.hidden_update = nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs)
        self.hidden_new = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, xs):
        h = jnp.zeros((xs.shape[0], DIM))
        for t in range(xs.shape[1]):
            x = xs[:, t]
            r = nnx.sigmoid(self.input_reset(x) + self.hidden_reset(h))
            z = nnx.sigmoid(self.input_update(x) + self.hidden_update(h))
            n = nnx.tanh(self.input_new(x) + r * self.hidden_new(h))
            h = (1 - z) * n + z * h
        return h


class OneLayer(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.RNN(nn.GRUCell(DIM), name="gru")(nn.Embed(VOCAB, DIM)(ids))
        return nn.Dense(DIM)(x[:, -1])


class NNXOneLayer(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.recurrent = HandGRU(rngs)
        self.classify = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, ids):
        return self.classify(self.recurrent(self.table(ids)))


def fused(cell):
    hidden = [{"kernel": cell[f"h{g}"]["kernel"]} for g in "rzn"]
    return {"dense_i": cat([cell[f"i{g}"] for g in "rzn"]), "dense_h": cat(hidden)}


def truth(v):
    p = v["params"]
    return slots(
        {
            "embed": p["Embed_0"],
            "lower/cell": fused(p["GRUCell_0"]),
            "upper/cell": fused(p["GRUCell_1"]),
            "penultimate": p["Dense_0"],
            "labels": p["Dense_1"],
        }
    )


def hand_truth(v):
    p = v["params"]
    cell = p["GRUCell_0"]
    long = {"r": "reset", "z": "update", "n": "new"}
    return slots(
        {
            "table": p["Embed_0"],
            "classify": p["Dense_0"],
            **{f"recurrent/input_{long[g]}": cell[f"i{g}"] for g in "rzn"},
            **{f"recurrent/hidden_{long[g]}": cell[f"h{g}"] for g in "rzn"},
        }
    )


LOST = tuple(("params", f"GRUCell_{i}", "hn", "bias") for i in (0, 1))
INPUTS = (tokens(2, 4, vocab=VOCAB),)
PAIRS = [
    Pair(
        "gru-zero-bias",
        Classifier,
        lambda: TextModel(nnx.Rngs(0)),
        INPUTS,
        truth,
        unused=LOST,
        zeros=LOST,
        tolerance=1e-5,
    ),
    Pair(
        "gru-bias",
        Classifier,
        lambda: TextModel(nnx.Rngs(0)),
        INPUTS,
        truth,
        unused=LOST,
        tolerance=10.0,
        needs="hn/bias is not zero, and nnx.GRUCell has no place for it",
    ),
    Pair(
        "gru-by-hand",
        OneLayer,
        lambda: NNXOneLayer(nnx.Rngs(0)),
        INPUTS,
        hand_truth,
        tolerance=1e-5,
    ),
]
