"""What a pair is: two models that compute the same, and where each weight really goes.

The truth is a plain numpy function written by hand for each pair, from how the two models were
written and from nothing that the bridge knows. ``test_pairs`` proves it by running both models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import linen as nn
from flax import nnx

Path = tuple[str, ...]
Values = dict[Path, Any]
"""Arrays by slot path."""


@dataclass(frozen=True)
class Pair:
    """A Linen model, its rewrite in NNX, and the truth.

    Attributes:
        name: of the pair.
        linen: makes the Linen module.
        nnx: makes the NNX model; takes no arguments.
        inputs: positional arguments of both calls.
        truth: Linen variables to slot values; see :func:`slots`.
        linen_kwargs: further arguments of the Linen call.
        nnx_kwargs: further arguments of the NNX call.
        unfed: slots that have no source, below which nothing is filled.
        unused: variable paths of leaves that have no slot.
        symmetries: functions on Linen variables under which the model computes the same; the
            truth after any of them is right, too.
        mu: as ``truth``, for first moments, where they go another way than the parameters.
        nu: as ``mu``, for second moments.
        zeros: variable paths whose leaves, and their moments, are zero instead of random.
        tolerance: how far the two outputs may be apart; 0 means equal in every bit.
        needs: why it cannot be planned even with the Linen module and no rules; empty if it can.
        rules: rules that make it work where ``needs`` says why.
        method: the method to call, if it is not ``__call__``.
        same_paths: the two models use one path for different things, which nothing but running
            them can tell.
        init_kwargs: arguments of Linen's ``init`` instead of ``linen_kwargs``.
        init_method: the method that ``init`` runs.
        more: further arguments of ``plan`` when the Linen module is given.
        hard: why it may be refused with the Linen module, too; it must not be wrong.
    """

    name: str
    linen: Callable[[], nn.Module]
    nnx: Callable[[], nnx.Module]
    inputs: tuple[Any, ...]
    truth: Callable[[dict[str, Any]], Values]
    linen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    nnx_kwargs: Mapping[str, Any] = field(default_factory=dict)
    unfed: tuple[Path, ...] = ()
    unused: tuple[Path, ...] = ()
    symmetries: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = ()
    mu: Callable[[dict[str, Any]], Values] | None = None
    nu: Callable[[dict[str, Any]], Values] | None = None
    zeros: tuple[Path, ...] = ()
    tolerance: float = 0.0
    needs: str = ""
    rules: str = ""
    method: str | None = None
    same_paths: bool = False
    hard: str = ""
    init_kwargs: Mapping[str, Any] | None = None
    init_method: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def probes(self) -> Any:
        """What a user gives as ``sample_input=``."""
        if not (self.linen_kwargs or self.nnx_kwargs or self.method):
            return self.inputs
        from bridge.probe import Probe

        return Probe(self.inputs, self.linen_kwargs, None, self.nnx_kwargs, self.method)


def slots(places: Mapping[str | Path, Any]) -> Values:
    """Slot values from subtrees of Linen variables.

    Args:
        places: by slot path (``"blocks/0/mlp"`` or a tuple): an array, a tree of them whose leaf
            names stay, or a tuple of such trees that are laid over each other.

    >>> slots({"head": {"kernel": 1, "bias": 2}})
    {('head', 'kernel'): 1, ('head', 'bias'): 2}
    """
    found: Values = {}
    for place, tree in places.items():
        path = tuple(place.split("/")) if isinstance(place, str) else place
        for part in tree if isinstance(tree, tuple) else (tree,):
            for end, value in _leaves(part):
                assert (*path, *end) not in found, (*path, *end)
                found[*path, *end] = value
    return found


def _leaves(tree):
    if not isinstance(tree, Mapping):
        return [((), tree)]
    return [((key, *path), leaf) for key, sub in tree.items() for path, leaf in _leaves(sub)]


def flat(tree) -> Values:
    """All leaves of a tree of mappings by path."""
    return dict(_leaves(tree))


def cat(trees, keys=("kernel", "bias")):
    """Several layers fused to one along the last axis."""
    return {
        k: np.concatenate([t[k] for t in trees], -1) for k in keys if all(k in t for t in trees)
    }


def attention_2d(tree, names=("q", "k", "v", "o")):
    """The kernels of Linen's attention as the matrices of four Linear layers."""
    query, key, value, out = names
    found = {}
    for new, old in ((query, "query"), (key, "key"), (value, "value")):
        kernel = tree[old]["kernel"]
        found[new] = {"kernel": kernel.reshape(kernel.shape[0], -1)}
        if "bias" in tree[old]:
            found[new]["bias"] = tree[old]["bias"].reshape(-1)
    kernel = tree["out"]["kernel"]
    found[out] = {**tree["out"], "kernel": kernel.reshape(-1, kernel.shape[-1])}
    return found


def stacked(trees):
    """Trees of one form as one, with a new first axis."""
    first = trees[0]
    if isinstance(first, Mapping):
        return {k: stacked([t[k] for t in trees]) for k in first}
    return np.stack(trees)


def at(tree, index, axis=0):
    """One layer of a stack."""
    if isinstance(tree, Mapping):
        return {k: at(v, index, axis) for k, v in tree.items()}
    return np.take(tree, index, axis)


def sample(*shape, seed=0):
    """An input of this shape."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens(*shape, vocab, seed=0):
    """Token numbers."""
    return np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32)
