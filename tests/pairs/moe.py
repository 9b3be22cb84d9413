"""Mixture of experts, alike in everything but their place in the router's output."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots, stacked

DIM = 6
EXPERTS = 4


class Expert(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(DIM, name="w1")(x) * nn.silu(nn.Dense(DIM, name="w3")(x))
        return nn.Dense(DIM, name="w2")(h)


class MoE(nn.Module):
    @nn.compact
    def __call__(self, x):
        weights = nn.softmax(nn.Dense(EXPERTS, use_bias=False, name="router")(x))
        outs = jnp.stack([Expert(name=f"expert_{i}")(x) for i in range(EXPERTS)], -1)
        return jnp.einsum("bde,be->bd", outs, weights)


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = x + MoE()(nn.RMSNorm()(x))
        return nn.Dense(DIM)(x)


class GLU(nnx.Module):
    def __init__(self, rngs):
        self.activated = nnx.Linear(DIM, DIM, rngs=rngs)
        self.linear = nnx.Linear(DIM, DIM, rngs=rngs)
        self.out = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.out(self.linear(x) * nnx.silu(self.activated(x)))


class SparseLayer(nnx.Module):
    """Experts are kept from the last to the first."""

    def __init__(self, rngs):
        self.ffn = nnx.List([GLU(rngs) for _ in range(EXPERTS)])
        self.choose = nnx.Linear(DIM, EXPERTS, use_bias=False, rngs=rngs)

    def __call__(self, x):
        weights = nnx.softmax(self.choose(x))
        outs = jnp.stack([ffn(x) for ffn in reversed(self.ffn)], -1)
        return jnp.einsum("bde,be->bd", outs, weights)


class StackedLayer(nnx.Module):
    """Experts as three arrays of one more axis, as fast code has them."""

    def __init__(self, rngs):
        self.choose = nnx.Linear(DIM, EXPERTS, use_bias=False, rngs=rngs)

        def weights(*shape):
            return nnx.Param(nnx.initializers.normal()(rngs.params(), (EXPERTS, *shape)))

        self.w_out, self.b_out = weights(DIM, DIM), weights(DIM)
        self.w_lin, self.b_lin = weights(DIM, DIM), weights(DIM)
        self.w_act, self.b_act = weights(DIM, DIM), weights(DIM)

    def __call__(self, x):
        lin = jnp.einsum("bi,eij->ebj", x, self.w_lin[...]) + self.b_lin[...][:, None]
        act = jnp.einsum("bi,eij->ebj", x, self.w_act[...]) + self.b_act[...][:, None]
        h = lin * nnx.silu(act)
        out = jnp.einsum("ebi,eij->ebj", h, self.w_out[...]) + self.b_out[...][:, None]
        return jnp.einsum("ebd,be->bd", out, nnx.softmax(self.choose(x)))


class Net(nnx.Module):
    def __init__(self, layer, rngs):
        self.sparse = nnx.List([layer(rngs) for _ in range(2)])
        self.pre = nnx.List([nnx.RMSNorm(DIM, rngs=rngs) for _ in range(2)])
        self.last = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        for norm, layer in zip(self.pre, self.sparse, strict=True):
            x = x + layer(norm(x))
        return self.last(x)


def outer(v, layer):
    p = v["params"]
    places = {"last": p["Dense_0"]}
    for i in range(2):
        places[f"pre/{i}"] = p[f"RMSNorm_{i}"]
        places[f"sparse/{i}"] = {"choose": p[f"MoE_{i}"]["router"], **layer(p[f"MoE_{i}"])}
    return slots(places)


def listed(old):
    return {
        "ffn": {
            str(EXPERTS - 1 - i): {
                "linear": old[f"expert_{i}"]["w1"],
                "activated": old[f"expert_{i}"]["w3"],
                "out": old[f"expert_{i}"]["w2"],
            }
            for i in range(EXPERTS)
        }
    }


def as_arrays(old):
    all_of = stacked([old[f"expert_{i}"] for i in range(EXPERTS)])
    found = {}
    for new, name in (("lin", "w1"), ("act", "w3"), ("out", "w2")):
        found[f"w_{new}"] = all_of[name]["kernel"]
        found[f"b_{new}"] = all_of[name]["bias"]
    return found


X = (sample(5, DIM),)
PAIRS = [
    Pair(
        "moe-reversed",
        TwoLayers,
        lambda: Net(SparseLayer, nnx.Rngs(0)),
        X,
        lambda v: outer(v, listed),
        tolerance=1e-5,
    ),
    Pair(
        "moe-stacked",
        TwoLayers,
        lambda: Net(StackedLayer, nnx.Rngs(0)),
        X,
        lambda v: outer(v, as_arrays),
        tolerance=1e-5,
    ),
]
