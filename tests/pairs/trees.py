"""Random models: one spec makes a Linen module, its rewrite in NNX, and the truth between them.

The rewrite has other names (or, for some, the same), other attribute orders, lists for numbered
modules and the reverse, levels that were added or dissolved, and lists built from the end. No
name of one side ever stands for something else on the other: nothing but running the models could
tell, and ``nested.py`` has a pair for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from .pair import Path, Values

DIM = 4
"""Of everything: features, tokens and positions, so that most leaves share a shape."""

LAYERS = {
    "dense": ("Dense", {"kernel": (DIM, DIM), "bias": (DIM,)}),
    "plain": ("Dense", {"kernel": (DIM, DIM)}),
    "conv": ("Conv", {"kernel": (3, DIM, DIM), "bias": (DIM,)}),
    "norm": ("LayerNorm", {"scale": (DIM,), "bias": (DIM,)}),
    "rms": ("RMSNorm", {"scale": (DIM,)}),
    "position": ("Embed", {"embedding": (DIM, DIM)}),
}
OLD = ("enc", "dec", "body", "left", "right", "mix", "in", "out")
NEW = ("fc", "proj", "stage", "unit", "alpha", "beta", "gamma", "omega")


@dataclass(frozen=True)
class Child:
    """A submodule, or a list of equal ones.

    Attributes:
        kind: a layer, or ``block``.
        old: its name in Linen; a list adds ``_0``, ``_1``, ...
        auto: whether Linen numbers it; then ``old`` is what comes of that.
        new: its attribute in NNX.
        style: ``plain``, ``wrapped`` (a module around it), ``dissolved`` (a block whose children
            lie in its parent), and for lists ``list``, ``numbered`` or ``reversed``.
        count: how many, for lists; 0 for one that is no list.
        block: what a block consists of.
    """

    kind: str
    old: str
    auto: bool
    new: str
    style: str
    count: int = 0
    block: Block | None = None

    def old_names(self) -> tuple[str, ...]:
        """Names of its modules in Linen."""
        if not self.count:
            return (self.old,)
        base, _, first = self.old.rpartition("_") if self.auto else (self.old, "", "0")
        return tuple(f"{base}_{int(first) + i}" for i in range(self.count))

    def new_paths(self) -> tuple[Path, ...]:
        """Paths of its modules in NNX, in the order of ``old_names``."""
        if self.style == "wrapped":
            return ((self.new, "inner"),)
        if self.style == "numbered":
            return tuple((f"{self.new}{i + 1}",) for i in range(self.count))
        if self.count:
            found = tuple((self.new, str(i)) for i in range(self.count))
            return found[::-1] if self.style == "reversed" else found
        return ((self.new,),)


@dataclass(frozen=True)
class Block:
    """A module: its children, in which order Linen makes them, and how they are called.

    Attributes:
        children: in order of creation, of which Linen's numbers come.
        calls: indices of children; one that occurs twice is shared.
        combine: ``chain``, ``sum``, or ``weighted`` (a sum in which places differ).
    """

    children: tuple[Child, ...]
    calls: tuple[int, ...]
    combine: str

    @property
    def symmetric(self) -> bool:
        """Whether equal children might change places."""
        inner = any(c.block is not None and c.block.symmetric for c in self.children)
        return inner or (self.combine == "sum" and len(self.calls) > 1)


class OldBlock(nn.Module):
    """The Linen side."""

    block: Block

    @nn.compact
    def __call__(self, x):
        parts = [
            [_old_layer(child, None if child.auto else name) for name in child.old_names()]
            for child in self.block.children
        ]
        return _combined(self.block, lambda i, k, x: _called(self.block, i, parts[i][k], x), x)


def _old_layer(child, name):
    if child.kind == "block":
        return OldBlock(child.block, name=name)
    return {
        "dense": lambda: nn.Dense(DIM, name=name),
        "plain": lambda: nn.Dense(DIM, use_bias=False, name=name),
        "conv": lambda: nn.Conv(DIM, (3,), name=name),
        "norm": lambda: nn.LayerNorm(name=name),
        "rms": lambda: nn.RMSNorm(name=name),
        "position": lambda: nn.Embed(DIM, DIM, name=name),
    }[child.kind]()


def _called(block, i, module, x):
    if block.children[i].kind == "position":
        return x + module(jnp.arange(DIM))
    return module(x)


def _combined(block, call, x):
    total = x
    for place, i in enumerate(block.calls):
        here = x
        for k in range(max(block.children[i].count, 1)):
            here = jnp.tanh(call(i, k, here))
        if block.combine == "chain":
            x = here
        else:
            total = total + here * (1 + 0.5 * place if block.combine == "weighted" else 1)
    return x if block.combine == "chain" else total


class Holder(nnx.Module):
    """A level of the NNX side."""


class NewModel(nnx.Module):
    """The NNX side: a tree of holders and lists with layers at the ends."""

    def __init__(self, block: Block, seed: int):
        rngs = nnx.Rngs(0)
        layers = [(new, kind) for _, new, kind in _layers(block)]
        layers = [layers[i] for i in np.random.default_rng(seed).permutation(len(layers))]
        tree: dict = {}
        for path, kind in layers:
            node = tree
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = _new_layer(kind, rngs)
        for name, node in tree.items():
            setattr(self, name, _held(node))
        self.block = nnx.static(block)

    def __call__(self, x):
        return self.run(self.block, (), "", x)

    def run(self, block, path, prefix, x):
        def call(i, k, x):
            child = block.children[i]
            at, dissolved = _below(path, prefix, child, k)
            if child.kind == "block":
                return self.run(child.block, at, dissolved, x)
            return _called(block, i, self.find(at), x)

        return _combined(block, call, x)

    def find(self, path):
        node = self
        for part in path:
            node = node[int(part)] if isinstance(node, nnx.List) else getattr(node, part)
        return node


def _held(node):
    if not isinstance(node, dict):
        return node
    if set(node) == {str(i) for i in range(len(node))}:
        return nnx.List([_held(node[str(i)]) for i in range(len(node))])
    holder = Holder()
    for name, below in node.items():
        setattr(holder, name, _held(below))
    return holder


def _new_layer(kind, rngs):
    return {
        "dense": lambda: nnx.Linear(DIM, DIM, rngs=rngs),
        "plain": lambda: nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs),
        "conv": lambda: nnx.Conv(DIM, DIM, (3,), rngs=rngs),
        "norm": lambda: nnx.LayerNorm(DIM, rngs=rngs),
        "rms": lambda: nnx.RMSNorm(DIM, rngs=rngs),
        "position": lambda: nnx.Embed(DIM, DIM, rngs=rngs),
    }[kind]()


def _below(path, prefix, child, k) -> tuple[Path, str]:
    """Where a child lies in NNX, and what the names of its children begin with there."""
    first, *rest = child.new_paths()[k]
    if child.style == "dissolved":
        return path, f"{prefix}{first}_"
    return (*path, prefix + first, *rest), ""


def _layers(block, old=(), new=(), prefix="") -> Iterator[tuple[Path, Path, str]]:
    for child in block.children:
        for k, name in enumerate(child.old_names()):
            at, dissolved = _below(new, prefix, child, k)
            if child.kind == "block":
                yield from _layers(child.block, (*old, name), at, dissolved)
            else:
                yield (*old, name), at, child.kind


def rows(block: Block) -> list[tuple[Path, Path, tuple[int, ...]]]:
    """All leaves: path in Linen's params, path in the NNX model, shape."""
    return [
        ((*old, leaf), (*new, leaf), shape)
        for old, new, kind in _layers(block)
        for leaf, shape in LAYERS[kind][1].items()
    ]


def nested(values: Values) -> dict:
    """A tree of dicts from values by path."""
    tree: dict = {}
    for path, value in values.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


@st.composite
def blocks(draw, depth=2, *, symmetric=True):
    """A block with children, some of them blocks or lists."""
    kinds = [*LAYERS, *(["block"] * 3 if depth else [])]
    size = draw(st.integers(2, 4) if depth else st.integers(1, 3))
    old = draw(st.permutations(OLD))
    new = draw(st.permutations(NEW))
    numbers: Counter = Counter()
    children = []
    for i in range(size):
        kind = draw(st.sampled_from(kinds))
        inner = draw(blocks(depth=depth - 1, symmetric=symmetric)) if kind == "block" else None
        count = draw(st.sampled_from([0, 0, 0, 2, 3]))
        auto = draw(st.booleans())
        keep = draw(st.integers(0, 3)) == 0
        name = old[i]
        if auto:
            cls = "OldBlock" if inner else LAYERS[kind][0]
            name = f"{cls}_{numbers[cls]}"
            numbers[cls] += count or 1
        styles = ["list", "numbered", "reversed"] if count else ["plain", "wrapped"]
        if inner and not count:
            styles.append("dissolved")
        style = "plain" if keep and not count else draw(st.sampled_from(styles))
        # a kept name of a list keeps its order and its numbers, too; else it would be a decoy
        if keep and count:
            style, keep = "list", not auto
        attribute = {"in": "in_"}.get(name, name) if keep else new[i]
        children.append(Child(kind, name, auto, attribute, style, count, inner))
    once = draw(st.permutations(range(size)))
    again = draw(st.lists(st.integers(0, size - 1), max_size=1))
    combine = draw(st.sampled_from(["chain", "chain", "weighted", *(["sum"] * symmetric)]))
    return Block(tuple(children), (*once, *again), combine)
