"""Fused and flattened attention in the layouts that real code has, beside that of the textbook.

All have the shapes of the usual one; q, k and v lie in other places.
"""

from __future__ import annotations

import numpy as np
from flax import linen as nn
from flax import nnx

from .pair import Pair, attention_2d, sample, slots

DIM = 12
HEADS = 2
EACH = DIM // HEADS


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attn")(x, x)
        return nn.Dense(DIM, name="mlp")(nn.relu(x))


class Fused(nnx.Module):
    """`layout` says how the features of the fused projection are cut."""

    def __init__(self, layout, rngs):
        self.layout = layout
        self.qkv = nnx.Linear(DIM, 3 * DIM, rngs=rngs)
        self.proj = nnx.Linear(DIM, DIM, rngs=rngs)
        self.fc = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        y = self.qkv(x)
        if self.layout == "heads-first":  # GPT-NeoX: (h k d)
            parts = y.reshape(*y.shape[:2], HEADS, 3, EACH)
            q, k, v = (parts[..., i, :] for i in range(3))
        elif self.layout == "features-first":  # (d k h)
            parts = y.reshape(*y.shape[:2], EACH, 3, HEADS)
            q, k, v = (parts[..., i, :].swapaxes(-1, -2) for i in range(3))
        else:  # kqv
            parts = y.reshape(*y.shape[:2], 3, HEADS, EACH)
            k, q, v = (parts[..., i, :, :] for i in range(3))
        y = nnx.dot_product_attention(q, k, v).reshape(x.shape)
        return self.fc(nnx.relu(x + self.proj(y)))


class HeadsLast(nnx.Module):
    """Separate projections, whose features are (d h)."""

    def __init__(self, rngs):
        self.q = nnx.Linear(DIM, DIM, rngs=rngs)
        self.k = nnx.Linear(DIM, DIM, rngs=rngs)
        self.v = nnx.Linear(DIM, DIM, rngs=rngs)
        self.out = nnx.Linear(DIM, DIM, rngs=rngs)
        self.fc = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        def cut(y):
            return y.reshape(*y.shape[:2], EACH, HEADS).swapaxes(-1, -2)

        y = nnx.dot_product_attention(cut(self.q(x)), cut(self.k(x)), cut(self.v(x)))
        return self.fc(nnx.relu(x + self.out(y.swapaxes(-1, -2).reshape(x.shape))))


def truth(layout):
    def convert(v):
        old = v["params"]["attn"]
        found = {}
        for leaf in ("kernel", "bias"):
            q, k, v_ = (old[n][leaf] for n in ("query", "key", "value"))  # (..., h, d)
            if layout == "heads-first":
                parts = np.stack((q, k, v_), -2)
            elif layout == "features-first":
                parts = np.stack([a.swapaxes(-1, -2) for a in (q, k, v_)], -2)
            else:
                parts = np.stack((k, q, v_), -3)
            lead = parts.shape[:-3]
            found[leaf] = parts.reshape(*lead, 3 * DIM)
        out = attention_2d(old)["o"]
        return slots({"qkv": found, "proj": out, "fc": v["params"]["mlp"]})

    return convert


def heads_last(v):
    old = v["params"]["attn"]
    found = {"fc": v["params"]["mlp"]}
    for new, name in (("q", "query"), ("k", "key"), ("v", "value")):
        turned = {leaf: a.swapaxes(-1, -2) for leaf, a in old[name].items()}
        found[new] = {leaf: a.reshape(*a.shape[:-2], DIM) for leaf, a in turned.items()}
    kernel = old["out"]["kernel"].swapaxes(0, 1)
    found["out"] = {"kernel": kernel.reshape(DIM, DIM), "bias": old["out"]["bias"]}
    return slots(found)


X = (sample(2, 3, DIM),)
HARD = "the elements of a leaf change places"
PAIRS = [
    *(
        Pair(
            f"qkv-{layout}",
            Attention,
            lambda layout=layout: Fused(layout, nnx.Rngs(0)),
            X,
            truth(layout),
            tolerance=1e-5,
            hard=HARD,
        )
        for layout in ("heads-first", "features-first")
    ),
    Pair(
        "qkv-as-kqv",
        Attention,
        lambda: Fused("kqv", nnx.Rngs(0)),
        X,
        truth("kqv"),
        tolerance=1e-5,
    ),
    Pair(
        "heads-last",
        Attention,
        lambda: HeadsLast(nnx.Rngs(0)),
        X,
        heads_last,
        tolerance=1e-5,
        hard=HARD,
    ),
]
