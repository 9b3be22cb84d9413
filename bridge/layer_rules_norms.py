"""Spectral and weight normalisation: wrappers that Linen writes beside what they wrap.

Linen keeps the wrapped layer under its own name, and the wrapper's leaves under one key with
slashes: ``SpectralNorm_0/"Dense_0/kernel/u"``. In NNX the layer is inside, ``layer_instance``,
and the key is a tuple: ``batch_stats[('kernel', 'u')]``.
"""

from __future__ import annotations

import ast

from bridge.views import Leaf, Sides, Swaps, show
from legacy import LeafPath

__all__ = ["norm_wrapper"]

_INSIDE = "layer_instance"
_FIELDS = {"SpectralNorm": "batch_stats", "WeightNorm": "scales"}
_CODES = {"batch_stats": "spectral-norm", "scales": "weight-norm"}


def norm_wrapper(sides: Sides) -> Sides:
    """Both sides are seen with the layer and the wrapper's leaves below the wrapper."""
    if not any(_INSIDE in leaf.normal for leaf in sides.right):
        return sides
    return Sides(_sources(sides.left), _slots(sides.right))


def _slots(leaves: tuple[Leaf, ...]) -> tuple[Leaf, ...]:
    swaps = Swaps(leaves)
    for leaf in leaves:
        field, key = leaf.path[-2:] if len(leaf.path) > 1 else ("", "")
        names = _tuple(key)
        if field in _CODES and names:
            path = (*leaf.normal[:-2], field, *names)
            view = show([leaf], path, leaf.shape, _CODES[field])
            swaps.swap([leaf], [view] if view else [leaf])
    return swaps.leaves


def _tuple(text: str) -> LeafPath:
    """The tuple that a key was, such as ``('kernel', 'u')``; empty for any other text."""
    if not text.startswith("("):
        return ()
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return ()
    named = isinstance(found, tuple) and all(isinstance(p, str) for p in found)
    return found if named else ()


def _sources(leaves: tuple[Leaf, ...]) -> tuple[Leaf, ...]:
    """Move each wrapped layer and the wrapper's own leaves together."""
    wrappers: dict[LeafPath, tuple[LeafPath, str]] = {}
    swaps = Swaps(leaves)
    for leaf in leaves:
        wrapper = leaf.plain[-2] if len(leaf.plain) > 1 else ""
        field = _FIELDS.get(wrapper.rpartition("_")[0])
        layer, _, rest = leaf.name.partition("/")
        if field is None or not rest:
            continue
        parent, at = leaf.plain[:-2], (*leaf.plain[:-2], wrapper)
        wrappers[*parent, layer] = (at, _CODES[field])
        # a scale is named by what it scales; of a layer's vectors each has its own name
        named = rest.removesuffix("/scale") if field == "scales" else rest
        view = show([leaf], (*at, field, *named.split("/")), leaf.shape, _CODES[field])
        swaps.swap([leaf], [view] if view else [leaf])
    for leaf in swaps.leaves:
        found = wrappers.get(leaf.plain[:-1])
        if found is not None:
            at, code = found
            view = show([leaf], (*at, _INSIDE, leaf.name), leaf.shape, code)
            swaps.swap([leaf], [view] if view else [leaf])
    return swaps.leaves
