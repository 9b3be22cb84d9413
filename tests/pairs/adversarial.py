"""Rewrites whose names mislead, none of them far-fetched: words that moved on, lists turned round.

Without the Linen module none of these can be known. They must be refused, however good the names
look.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 6
DEPTH = 3


def linear(rngs):
    return nnx.Linear(DIM, DIM, rngs=rngs)


class Denoiser(nn.Module):
    """`in` and `out` belong to the data."""

    @nn.compact
    def __call__(self, x, t):
        t = nn.swish(nn.Dense(DIM)(t))
        t = nn.Dense(DIM)(t)
        x = nn.Dense(DIM, name="in")(x)
        return nn.Dense(DIM, name="out")(nn.swish(x + t))


class TimeNamed(nnx.Module):
    """`time_in` and `time_out` belong to the time."""

    def __init__(self, rngs):
        self.time_in, self.time_out = linear(rngs), linear(rngs)
        self.first, self.last = linear(rngs), linear(rngs)

    def __call__(self, x, t):
        t = self.time_out(nnx.swish(self.time_in(t)))
        return self.last(nnx.swish(self.first(x) + t))


def time_named(v):
    p = v["params"]
    return slots(
        {"time_in": p["Dense_0"], "time_out": p["Dense_1"], "first": p["in"], "last": p["out"]}
    )


class FlatBlock(nn.Module):
    """`out` is the attention's."""

    @nn.compact
    def __call__(self, x):
        q = nn.Dense(DIM, name="query")(x)
        k = nn.Dense(DIM, name="key")(x)
        v = nn.Dense(DIM, name="value")(x)
        x = x + nn.Dense(DIM, name="out")(nn.softmax(q * k) * v)
        return x + nn.Dense(DIM, name="fc2")(nn.relu(nn.Dense(DIM, name="fc1")(x)))


class FlatNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(DEPTH):
            x = FlatBlock(name=f"block_{i}")(x)
        return nn.Dense(DIM, name="head")(x)


class Flat(nnx.Module):
    """`out` is the MLP's."""

    def __init__(self, rngs):
        self.q, self.k, self.v, self.o = (linear(rngs) for _ in range(4))
        self.hidden, self.out = linear(rngs), linear(rngs)

    def __call__(self, x):
        x = x + self.o(nnx.softmax(self.q(x) * self.k(x)) * self.v(x))
        return x + self.out(nnx.relu(self.hidden(x)))


class NNXFlatNet(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Flat(rngs) for _ in range(DEPTH)])
        self.head = linear(rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def flat(v):
    p = v["params"]
    new = {"q": "query", "k": "key", "v": "value", "o": "out", "hidden": "fc1", "out": "fc2"}
    places = {"head": p["head"]}
    for i in range(DEPTH):
        for name, old in new.items():
            places[f"blocks/{i}/{name}"] = p[f"block_{i}"][old]
    return slots(places)


class Decoder(nn.Module):
    """Numbered by level: the last one is called first."""

    @nn.compact
    def __call__(self, x):
        skips = [x * (i + 1) for i in range(DEPTH)]
        for i in reversed(range(DEPTH)):
            x = nn.relu(nn.Dense(DIM, name=f"up_block_{i}")(x + skips[i]))
        return nn.Dense(DIM, name="out")(x)


class Ups(nnx.Module):
    """Numbered in the order of calls."""

    def __init__(self, rngs):
        self.up_blocks = nnx.List([linear(rngs) for _ in range(DEPTH)])
        self.final = linear(rngs)

    def __call__(self, x):
        skips = [x * (i + 1) for i in range(DEPTH)]
        for block in self.up_blocks:
            x = nnx.relu(block(x + skips.pop()))
        return self.final(x)


def ups(v):
    p = v["params"]
    places = {f"up_blocks/{DEPTH - 1 - i}": p[f"up_block_{i}"] for i in range(DEPTH)}
    return slots({"final": p["out"], **places})


class Layers(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(DEPTH):
            x = x + nn.relu(nn.Dense(DIM, name=f"layer_{i}")(x))
        return nn.Dense(DIM, name="top")(x)


class FromTheEnd(nnx.Module):
    """Numbered from the output, as generators of flows are."""

    def __init__(self, rngs):
        self.head = linear(rngs)
        self.layers = nnx.List([linear(rngs) for _ in range(DEPTH)])

    def __call__(self, x):
        for layer in self.layers[::-1]:
            x = x + nnx.relu(layer(x))
        return self.head(x)


def from_the_end(v):
    p = v["params"]
    places = {f"layers/{DEPTH - 1 - i}": p[f"layer_{i}"] for i in range(DEPTH)}
    return slots({"head": p["top"], **places})


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            ScanBody, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH
        )
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(DIM, name="top")(x)


class ScanBody(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(DIM, name="fc")(x)), None


def scanned_from_the_end(v):
    p = v["params"]
    places = {
        f"layers/{DEPTH - 1 - i}": {k: a[i] for k, a in p["layers"]["fc"].items()}
        for i in range(DEPTH)
    }
    return slots({"head": p["top"], **places})


class Stemmed(nn.Module):
    def setup(self):
        self.stem = nn.Dense(DIM)
        self.layers = [nn.Dense(DIM) for _ in range(DEPTH)]

    def __call__(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(nn.relu(x))
        return x


class Headed(nnx.Module):
    """The same list, but it starts with the stem, and its last layer is the head."""

    def __init__(self, rngs):
        self.layers = nnx.List([linear(rngs) for _ in range(DEPTH)])
        self.head = linear(rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


def shifted(v):
    p = v["params"]
    places = {f"layers/{i + 1}": p[f"layers_{i}"] for i in range(DEPTH - 1)}
    return slots({"layers/0": p["stem"], **places, "head": p[f"layers_{DEPTH - 1}"]})


class TwoStreams(nn.Module):
    """Auto names, one for each stream in turn."""

    @nn.compact
    def __call__(self, x, y):
        for _ in range(DEPTH):
            x, y = nn.relu(nn.Dense(DIM)(x)), nn.relu(nn.Dense(DIM)(y))
        return x - y


class Streams(nnx.Module):
    """All of one stream, then all of the other; attributes have Linen's auto names."""

    def __init__(self, rngs):
        for i in range(2 * DEPTH):
            setattr(self, f"dense_{i}", linear(rngs))

    def __call__(self, x, y):
        for i in range(DEPTH):
            x = nnx.relu(getattr(self, f"dense_{i}")(x))
            y = nnx.relu(getattr(self, f"dense_{DEPTH + i}")(y))
        return x - y


def streams(v):
    p = v["params"]
    places = {}
    for i in range(DEPTH):
        places[f"dense_{i}"] = p[f"Dense_{2 * i}"]
        places[f"dense_{DEPTH + i}"] = p[f"Dense_{2 * i + 1}"]
    return slots(places)


class PreNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = x + nn.Dense(DIM, name=f"mix_{i}")(nn.LayerNorm(name=f"norm_{i}")(x))
        return nn.LayerNorm(name="norm_2")(x)


class NormsInList(nnx.Module):
    """The list has the last norm first."""

    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(DIM, rngs=rngs) for _ in range(3)])
        self.mixers = nnx.List([linear(rngs) for _ in range(2)])

    def __call__(self, x):
        for norm, mixer in zip(self.norms[1:], self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.norms[0](x)


def norms_in_list(v):
    p = v["params"]
    places = {f"norms/{(i + 1) % 3}": p[f"norm_{i}"] for i in range(3)}
    return slots({**places, **{f"mixers/{i}": p[f"mix_{i}"] for i in range(2)}})


class GeneratorPair(nn.Module):
    """Each is named for what it makes."""

    @nn.compact
    def __call__(self, a, b):
        return nn.Dense(DIM, name="generator_b")(a), nn.Dense(DIM, name="generator_a")(jnp.tanh(b))


class Translators(nnx.Module):
    """Each is named for what it reads."""

    def __init__(self, rngs):
        self.from_a, self.from_b = linear(rngs), linear(rngs)

    def __call__(self, a, b):
        return self.from_a(a), self.from_b(jnp.tanh(b))


def translators(v):
    p = v["params"]
    return slots({"from_a": p["generator_b"], "from_b": p["generator_a"]})


X, Y = sample(4, DIM), sample(4, DIM, seed=1)
PAIRS = [
    Pair("words-moved", Denoiser, lambda: TimeNamed(nnx.Rngs(0)), (X, Y), time_named),
    Pair("out-moved", FlatNet, lambda: NNXFlatNet(nnx.Rngs(0)), (X,), flat, tolerance=1e-5),
    Pair("levels-turned", Decoder, lambda: Ups(nnx.Rngs(0)), (X,), ups),
    Pair("layers-turned", Layers, lambda: FromTheEnd(nnx.Rngs(0)), (X,), from_the_end),
    Pair(
        "scan-turned",
        Scanned,
        lambda: FromTheEnd(nnx.Rngs(0)),
        (X,),
        scanned_from_the_end,
        tolerance=1e-5,
    ),
    Pair("list-shifted", Stemmed, lambda: Headed(nnx.Rngs(0)), (X,), shifted),
    Pair("streams", TwoStreams, lambda: Streams(nnx.Rngs(0)), (X, Y), streams),
    Pair("norms-turned", PreNorm, lambda: NormsInList(nnx.Rngs(0)), (X,), norms_in_list),
    Pair("ends-named", GeneratorPair, lambda: Translators(nnx.Rngs(0)), (X, Y), translators),
]
