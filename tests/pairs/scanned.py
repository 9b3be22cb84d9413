"""Stacks: nn.scan to a list of blocks and to a stacked block, and a Python loop to a stack."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, at, attention_2d, slots, stacked, tokens

DIM = 8
HEADS = 2
DEPTH = 4
LOOP = 11
VOCAB = 9


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(h, h)
        h = nn.LayerNorm()(x)
        x = x + nn.Dense(DIM, name="wo")(nn.relu(nn.Dense(DIM, name="wi")(h)))
        return x, None


class Scanned(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(VOCAB, DIM)(ids)
        stack = nn.scan(
            nn.remat(Block),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=DEPTH,
        )
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(VOCAB)(nn.LayerNorm()(x))


class Looped(nn.Module):
    """Eleven blocks, so that block 10 sorts before block 2."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(VOCAB, DIM)(ids)
        for i in range(LOOP):
            x, _ = Block(name=f"encoderblock_{i}")(x)
        return nn.Dense(VOCAB)(nn.LayerNorm()(x))


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.v = nnx.Linear(DIM, DIM, rngs=rngs)
        self.k = nnx.Linear(DIM, DIM, rngs=rngs)
        self.q = nnx.Linear(DIM, DIM, rngs=rngs)
        self.o = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        heads = (*x.shape[:-1], HEADS, -1)
        q, k, v = (f(x).reshape(heads) for f in (self.q, self.k, self.v))
        return self.o(nnx.dot_product_attention(q, k, v).reshape(x.shape))


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.mixer = Attention(rngs)
        self.pre_norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.mid_norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.gate = nnx.Linear(DIM, DIM, rngs=rngs)
        self.back = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        x = x + self.mixer(self.pre_norm(x))
        return x + self.back(nnx.relu(self.gate(self.mid_norm(x))))


class Ends(nnx.Module):
    """What surrounds the blocks."""

    def __init__(self, rngs):
        self.tokens = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.final = nnx.LayerNorm(DIM, rngs=rngs)
        self.decode = nnx.Linear(DIM, VOCAB, rngs=rngs)


class ListModel(Ends):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.stack = nnx.List([Layer(rngs) for _ in range(DEPTH)])

    def __call__(self, ids):
        x = self.tokens(ids)
        for layer in self.stack:
            x = layer(x)
        return self.decode(self.final(x))


class StackedModel(Ends):
    def __init__(self, rngs, depth=DEPTH):
        super().__init__(rngs)

        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def create(rngs):
            return Layer(rngs)

        self.trunk = create(rngs)

    def __call__(self, ids):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return layer(x)

        return self.decode(self.final(forward(self.tokens(ids), self.trunk)))


def layer(old):
    return {
        "mixer": attention_2d(old["attention"]),
        "pre_norm": old["LayerNorm_0"],
        "mid_norm": old["LayerNorm_1"],
        "gate": old["wi"],
        "back": old["wo"],
    }


def ends(p):
    return {"tokens": p["Embed_0"], "final": p["LayerNorm_0"], "decode": p["Dense_0"]}


def list_truth(axis):
    def truth(v):
        p = v["params"]
        blocks = {str(i): layer(at(p["layers"], i, axis)) for i in range(DEPTH)}
        return slots({**ends(p), "stack": blocks})

    return truth


def stack_truth(v):
    p = v["params"]
    blocks = [layer(at(p["layers"], i)) for i in range(DEPTH)]
    return slots({**ends(p), "trunk": stacked(blocks)})


def loop_truth(v):
    p = v["params"]
    blocks = [layer(p[f"encoderblock_{i}"]) for i in range(LOOP)]
    return slots({**ends(p), "trunk": stacked(blocks)})


INPUTS = (jnp.asarray(tokens(2, 5, vocab=VOCAB)),)
PAIRS = [
    Pair(
        "scan-to-list",
        Scanned,
        lambda: ListModel(nnx.Rngs(0)),
        INPUTS,
        list_truth(0),
        tolerance=1e-4,
    ),
    Pair(
        "scan-axis-1-to-list",
        lambda: Scanned(1),
        lambda: ListModel(nnx.Rngs(0)),
        INPUTS,
        list_truth(1),
        tolerance=1e-4,
    ),
    Pair(
        "scan-to-stack",
        Scanned,
        lambda: StackedModel(nnx.Rngs(0)),
        INPUTS,
        stack_truth,
        tolerance=1e-4,
    ),
    Pair(
        "loop-to-stack",
        Looped,
        lambda: StackedModel(nnx.Rngs(0), LOOP),
        INPUTS,
        loop_truth,
        tolerance=1e-4,
    ),
]
