"""Random pairs of programs for the data flow: one spec, two spellings, and the truth between them.

Both spellings are plain functions of arrays. The second one has other names and another layout:
transposed, fused, reshaped or stacked parameters, a scan where the first has a Python loop. All
arrays are small and alike, so that shapes tell nothing.
"""

# ruff: noqa: ARG001, E731 - every kind of layer is made by the same call; formulas read best short

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from bridge.probe import Probe
from bridge.probes import Call, Called, Model

DIM = 4
ROWS = 3
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "none": lambda x: x,
}


@dataclass
class Pair:
    """Two models; ``truth`` makes the slots' values of the leaves'."""

    leaves: dict = field(default_factory=dict)
    slots: dict = field(default_factory=dict)
    truth: list = field(default_factory=list)
    names: list = field(default_factory=list)

    def leaf(self, layer, name, shape):
        path = ("params", layer, name)
        self.leaves[path] = shape
        return path

    def slot(self, shape, make):
        path = ("net", self.names.pop(), "w")
        self.slots[path] = shape
        self.truth.append((path, make))
        return path

    def filled(self, values):
        """Values of the slots by the truth."""
        return {path: make(values) for path, make in self.truth}


def layers(rng, depth=0):
    """A random spec: a list of layers, some of which hold lists of layers."""
    kinds = ["dense", "dense", "norm", "attention", "glu", "scale"]
    if depth < 2:
        kinds += ["residual", "parallel", "loop"]
    spec = []
    for _ in range(rng.integers(1, 4)):
        kind = rng.choice(kinds)
        layer = {"kind": str(kind), "style": int(rng.integers(3)), "bias": bool(rng.integers(4))}
        layer["act"] = str(rng.choice(list(ACTIVATIONS)))
        layer["eps"] = float(rng.choice([1e-6, 1e-5]))
        if kind == "residual":
            layer["inner"] = layers(rng, depth + 1)
        if kind == "parallel":
            layer["inner"] = layers(rng, depth + 1)
            layer["other"] = layers(rng, depth + 1)
        if kind == "loop":
            layer["count"] = int(rng.integers(2, 4))
            layer["inner"] = [
                {"kind": "dense", "style": 0, "bias": True, "act": "relu", "eps": 1e-6},
                {"kind": "norm", "style": 0, "bias": True, "act": "none", "eps": 1e-6},
            ]
        spec.append(layer)
    return spec


def pair_of(spec, rng, change=None):
    """Both models of a spec.

    Args:
        spec: from :func:`layers`.
        rng: for names.
        change: what the second model does otherwise: a function of a layer.
    """
    pair = Pair()
    pair.names = [f"{chr(97 + k % 26)}{k}" for k in rng.permutation(4000)]
    count = iter(range(10**6))
    changed = [change(dict(s)) if change else s for s in spec]
    old, new = _chain(pair, spec, changed, count, change)
    x = jax.ShapeDtypeStruct((2, ROWS, DIM), jnp.float32)
    return pair, _model("Linen", pair.leaves, old, x), _model("NNX", pair.slots, new, x)


def _model(name, shapes, run, x):
    specs = {p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in shapes.items()}
    call = Call(Probe((x,)), (x,), lambda values, inputs: Called((run(values, inputs[0]),), {}))
    return Model(name, specs, (call,))


def _chain(pair, spec, other, count, change):
    made = [_layer(pair, a, b, count, change) for a, b in zip(spec, other, strict=True)]

    def old(v, x):
        for f, _ in made:
            x = f(v, x)
        return x

    def new(v, x):
        for _, f in made:
            x = f(v, x)
        return x

    return old, new


def _layer(pair, old, new, count, change):
    make = {"residual": _residual, "parallel": _parallel, "loop": _loop, "dense": _dense}
    make |= {"norm": _norm, "attention": _attention, "glu": _glu, "scale": _scale}
    return make[old["kind"]](pair, old, new, f"layer_{next(count)}", count, change)


def _inner(pair, spec, count, change):
    other = [change(dict(s)) if change else s for s in spec]
    return _chain(pair, spec, other, count, change)


def _residual(pair, old, new, name, count, change):
    a, b = _inner(pair, old["inner"], count, change)
    return (lambda v, x: x + a(v, x)), (lambda v, x: b(v, x) + x)


def _parallel(pair, old, new, name, count, change):
    a, b = _inner(pair, old["inner"], count, change)
    c, d = _inner(pair, old["other"], count, change)
    return (lambda v, x: a(v, x) * 2 + c(v, x)), (lambda v, x: d(v, x) + b(v, x) * 2)


def _dense(pair, old, new, name, count, change):
    kernel = pair.leaf(name, "kernel", (DIM, DIM))
    style = old["style"]
    if style == 1:
        slot = pair.slot((DIM, DIM), lambda v: v[kernel].T)
        weight = lambda v: v[slot].T
    elif style == 2:
        slot = pair.slot((2, 2, DIM), lambda v: v[kernel].reshape(2, 2, DIM))
        weight = lambda v: v[slot].reshape(DIM, DIM)
    else:
        slot = pair.slot((DIM, DIM), lambda v: v[kernel])
        weight = lambda v: v[slot]
    acts = ACTIVATIONS[old["act"]], ACTIVATIONS[new["act"]]
    if not old["bias"]:
        return (lambda v, x: acts[0](x @ v[kernel])), (lambda v, x: acts[1](x @ weight(v)))
    bias = pair.leaf(name, "bias", (DIM,))
    if not new["bias"]:
        return (
            lambda v, x: acts[0](x @ v[kernel] + v[bias]),
            lambda v, x: acts[1](x @ weight(v)),
        )
    other = pair.slot((DIM,), lambda v: v[bias])
    return (
        lambda v, x: acts[0](x @ v[kernel] + v[bias]),
        lambda v, x: acts[1](x @ weight(v) + v[other]),
    )


def _norm(pair, old, new, name, count, change):
    scale, bias = (pair.leaf(name, n, (DIM,)) for n in ("scale", "bias"))
    s, b = (pair.slot((DIM,), lambda v, p=p: v[p]) for p in (scale, bias))

    def run(x, eps, by, plus):
        mean = x.mean(-1, keepdims=True)
        var = jnp.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0)
        return (x - mean) * (jax.lax.rsqrt(var + eps) * by) + plus

    return (
        lambda v, x: run(x, old["eps"], v[scale], v[bias]),
        lambda v, x: run(x, new["eps"], v[s], v[b]),
    )


def _scale(pair, old, new, name, count, change):
    scale = pair.leaf(name, "scale", (DIM,))
    slot = pair.slot((DIM,), lambda v: v[scale])
    return (lambda v, x: x * v[scale]), (lambda v, x: v[slot] * x)


def _attention(pair, old, new, name, count, change):
    kernels = [pair.leaf(name, n, (DIM, 2, 2)) for n in ("query", "key", "value")]
    out = pair.leaf(name, "out", (2, 2, DIM))

    def run(v, x):
        q, k, w = (jnp.einsum("bld,dhe->blhe", x, v[p]) for p in kernels)
        scores = jax.nn.softmax(jnp.einsum("bqhe,bkhe->bhqk", q / jnp.sqrt(2.0), k))
        return jnp.einsum("bqhe,hed->bqd", jnp.einsum("bhqk,bkhe->bqhe", scores, w), v[out])

    last = pair.slot((DIM, DIM), lambda v: v[out].reshape(DIM, DIM))
    if old["style"] == 0:
        names = [pair.slot((DIM, DIM), lambda v, p=p: v[p].reshape(DIM, DIM)) for p in kernels]
        cut = lambda v, x: [x @ v[p] for p in names]
    elif old["style"] == 1:
        order = [1, 0, 2]
        fused = pair.slot(
            (DIM, 3 * DIM),
            lambda v: np.concatenate([v[kernels[k]].reshape(DIM, DIM) for k in order], 1),
        )

        def cut(v, x):
            k, q, w = jnp.split(x @ v[fused], 3, -1)
            return q, k, w

    else:
        fused = pair.slot((DIM, 2, 3, 2), lambda v: np.stack([v[p] for p in kernels], 2))

        def cut(v, x):
            qkv = (x @ v[fused].reshape(DIM, -1)).reshape(*x.shape[:2], 2, 3, 2)
            return (qkv[..., n, :].reshape(x.shape) for n in range(3))

    def other(v, x):
        q, k, w = (t.reshape(*t.shape[:2], 2, 2) for t in cut(v, x))
        scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) * np.float32(1 / np.sqrt(2.0))
        weights = jax.nn.softmax(scores)
        return jnp.einsum("bhqk,bkhe->bqhe", weights, w).reshape(x.shape) @ v[last]

    return run, other


def _glu(pair, old, new, name, count, change):
    up, gate = (pair.leaf(name, n, (DIM, DIM)) for n in ("up", "gate"))
    act = ACTIVATIONS["silu"]
    run = lambda v, x: (x @ v[up]) * act(x @ v[gate])
    if old["style"] == 0:
        a, b = (pair.slot((DIM, DIM), lambda v, p=p: v[p]) for p in (up, gate))
        return run, lambda v, x: act(x @ v[b]) * (x @ v[a])
    both = pair.slot((DIM, 2 * DIM), lambda v: np.concatenate([v[gate], v[up]], 1))

    def other(v, x):
        g, u = jnp.split(x @ v[both], 2, -1)
        return act(g) * u

    return run, other


def _loop(pair, old, new, name, count, change):
    blocks = []
    for k in range(old["count"]):
        kernel = pair.leaf(f"{name}_{k}", "kernel", (DIM, DIM))
        bias, scale = (pair.leaf(f"{name}_{k}", n, (DIM,)) for n in ("bias", "scale"))
        blocks.append((kernel, bias, scale))

    def step(x, kernel, bias, scale):
        return x + jax.nn.relu(x @ kernel + bias) * scale

    def run(v, x):
        for paths in blocks:
            x = step(x, *(v[p] for p in paths))
        return x

    axis = old["style"] % 2
    stacks = []
    for n, shape in enumerate([(DIM, DIM), (DIM,), (DIM,)]):
        full = (*shape[:axis], old["count"], *shape[axis:])
        stacks.append(pair.slot(full, lambda v, n=n: np.stack([v[b[n]] for b in blocks], axis)))

    def other(v, x):
        moved = [jnp.moveaxis(v[p], axis, 0) for p in stacks]
        return jax.lax.scan(lambda c, w: (step(c, *w), None), x, moved)[0]

    return run, other
