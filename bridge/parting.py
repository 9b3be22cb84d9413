"""Where two models that should compute the same first give other numbers.

Both are run once, eagerly, and every call of a submodule is recorded. With a map of their
parameters the submodules are paired by it; without one (all parameters of a class tied to the same
values) by what comes out of them. The first pair whose inputs agree and whose outputs do not is the
culprit; where inputs differ already, it is what lies before them: an activation, a pooling layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.paired import Pairs, module_pairs
from bridge.precision import doubled, doubles
from bridge.probe import Probe
from bridge.probes import linen_model, nnx_model
from bridge.recording import Event, nnx_modules, record_linen, record_nnx
from bridge.target import SlotPath
from bridge.twins import concrete
from legacy import LeafPath, format_path

__all__ = ["part"]

_CLOSE = 2e-5
_CLOSE_DOUBLE = 1e-10
_HALF = 2
_CLOSE_HALF = 3e-2


def part(
    linen: Any,
    make: Callable[[], Any],
    probe: Probe,
    linen_values: Mapping[LeafPath, Any],
    nnx_values: Mapping[SlotPath, Any],
    *,
    pairs: Pairs | None = None,
    slots: Sequence[SlotPath] | None = None,
    double: bool = False,
) -> str:
    """Say where two models part.

    Args:
        linen: the Linen module.
        make: makes a live NNX module.
        probe: how both are called.
        linen_values: an array for each variable path (collection first).
        nnx_values: an array for each slot path.
        pairs: what is mapped to what; None when it is not known, and leaves that may be each
            other have the same values.
        slots: slots that are given; default: all of ``nnx_values``.
        double: compute in float64.

    Returns:
        A sentence that begins in lower case and ends without a full stop; empty when no call of a
        submodule shows a difference.
    """
    leaves = {p: (tuple(x.shape), np.dtype(x.dtype).name) for p, x in linen_values.items()}
    (ours,) = linen_model(linen, [probe], leaves).calls
    (theirs,) = nnx_model(make, [probe], slots or list(nnx_values)).calls
    with doubles() if double else contextlib.nullcontext():
        change = doubled if double else jnp.asarray
        values = [{p: change(x) for p, x in v.items()} for v in (linen_values, nnx_values)]
        inputs = [[change(x) for x in concrete(c.inputs)] for c in (ours, theirs)]
        left = record_linen(lambda: ours.run(values[0], inputs[0]))
        right = record_nnx(make, lambda: theirs.run(values[1], inputs[1]))
        close = _Close(_CLOSE_DOUBLE if double else _CLOSE)
        if pairs is None:
            return _by_value(left, right, close)
        kinds = {tuple(map(str, p)): type(m).__name__ for p, m in _modules(make).items()}
        found = module_pairs(pairs, {e.path: e.kind for e in left}, kinds)
        return _by_map(left, right, found, close, probe)


def _modules(make: Callable[[], Any]) -> dict[tuple[str, ...], Any]:
    from flax import nnx  # noqa: PLC0415 - only here

    return nnx_modules(nnx.eval_shape(make))


@dataclass(frozen=True, slots=True)
class _Close:
    """Whether arrays agree."""

    limit: float

    def apart(self, a: Any, b: Any) -> float:
        """The largest difference in relation to the largest value; infinite for other shapes."""
        if a.size != b.size:
            return float("inf")
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            return 0.0
        x, y = (np.asarray(v).astype(np.complex128).ravel() for v in (a, b))
        if not x.size:
            return 0.0
        with np.errstate(invalid="ignore"):
            gap = np.where(x == y, 0, np.abs(x - y))  # infinities of one sign agree
        gap = np.where(np.isnan(x) & np.isnan(y), 0, gap)
        scale = float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) or 1.0
        return float("inf") if np.isnan(gap).any() else float(gap.max()) / scale

    def same(self, a: Any, b: Any) -> bool:
        half = any(jnp.issubdtype(v.dtype, jnp.floating) and v.dtype.itemsize <= _HALF
                   for v in (a, b))  # fmt: skip
        return self.apart(a, b) <= (_CLOSE_HALF if half else self.limit)

    def all(self, ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
        """Whether all agree; of unequal numbers (a mask, a key twice) the first decides."""
        if len(ours) != len(theirs):
            ours, theirs = ours[:1], theirs[:1]
        return all(self.same(a, b) for a, b in zip(ours, theirs, strict=False))


# -- with a map ---------------------------------------------------------------------------------


def _by_map(
    left: Sequence[Event],
    right: Sequence[Event],
    modules: Sequence[tuple[tuple[str, ...], tuple[str, ...]]],
    close: _Close,
    probe: Probe,
) -> str:
    theirs = {(e.path, e.method, e.nth): e for e in right}
    partner = dict(modules)
    start = probe.method if isinstance(probe.method, str) else "__call__"
    pairs: dict[int, tuple[Event, Event]] = {}
    alone = ""
    for event in left:
        if event.path not in partner:
            continue
        path = partner[event.path]
        method = probe.nnx_name() if not event.path and event.method == start else event.method
        twin = theirs.get((path, method, event.nth))
        if twin is None:  # its code may be written out in its parent, which proves nothing
            where = format_path(path) if path else "the model"
            alone = alone or f"{_linen(event)} is called, and NNX {where} is not in its place"
        elif event.concrete and twin.concrete:
            pairs[id(event)] = event, twin
    agreed: list[tuple[Event, Event]] = []
    fine = {id(e) for e, t in pairs.values() if close.all(e.outputs, t.outputs)}
    for event in left:
        if id(event) not in pairs:
            continue
        both = pairs[id(event)]
        if id(event) in fine:
            agreed.append(both)
        elif not any(id(above) in fine for above in event.above):
            return _said(both, agreed, close)
    return alone


def _said(both: tuple[Event, Event], agreed: Sequence[tuple[Event, Event]], close: _Close) -> str:
    """The sentence for the first pair whose outputs differ."""
    ours, theirs = both
    here = f"{_linen(ours)} / {_nnx(theirs)}"
    before = [(a, b) for a, b in agreed if a.begun < ours.begun or ours in a.above]
    inside = [(a, b) for a, b in before if ours in a.above]
    last = f"{_linen(before[-1][0])} / {_nnx(before[-1][1])}" if before else ""
    if close.all(ours.inputs, theirs.inputs):
        if inside:
            return (
                f"they part in {here} itself, after {last}, whose outputs agree: its inputs agree "
                f"and its outputs {_apart(ours.outputs, theirs.outputs, close)}"
            )
        return (
            f"they part in {here}: its inputs agree and its outputs "
            f"{_apart(ours.outputs, theirs.outputs, close)}"
        )
    what = _apart(ours.inputs, theirs.inputs, close)
    if not last:
        return f"they part before {here}, whose inputs {what}"
    return (
        f"they part between {last}, whose outputs agree, and {here}, whose inputs {what}: what "
        "lies between has no parameters of its own (an activation, a pooling layer, a reshape)"
    )


def _apart(ours: Sequence[Any], theirs: Sequence[Any], close: _Close) -> str:
    for a, b in zip(ours, theirs, strict=False):
        if a.size != b.size:
            return f"have shape {list(a.shape)} in Linen and {list(b.shape)} in NNX"
        if not close.same(a, b):
            x, y = (np.asarray(v).astype(np.complex128).ravel() for v in (a, b))
            with np.errstate(invalid="ignore"):
                gap = np.abs(x - y)
            return f"differ by {float(np.nanmax(gap)):.2g}"
    return f"are {len(ours)} arrays in Linen and {len(theirs)} in NNX"


def _linen(event: Event) -> str:
    return f"Linen {_named(event)}"


def _nnx(event: Event) -> str:
    return f"NNX {_named(event)}"


def _named(event: Event) -> str:
    path = format_path(event.path) if event.path else "the model"
    method = "" if event.method == "__call__" else f".{event.method}"
    return f"{path}{method} ({event.kind})" + (f", call {event.nth + 1}" if event.nth else "")


# -- without a map ------------------------------------------------------------------------------


def _by_value(left: Sequence[Event], right: Sequence[Event], close: _Close) -> str:
    """The first calls of both sides whose outputs nothing on the other side gives."""
    ours = _lonely(left, right, close)
    theirs = _lonely(right, left, close)
    if ours is None and theirs is None:
        return ""
    if ours is None or theirs is None:
        side = _linen(ours) if ours is not None else _nnx(theirs)  # type: ignore[arg-type]
        return f"they part at {side}: nothing in the other model gives its outputs"
    here = f"{_linen(ours)} / {_nnx(theirs)}"
    agreed = [e for e in left if e.begun < ours.begun and _twin(e, right, close) is not None]
    last = f", after {_linen(agreed[-1])}, whose outputs agree" if agreed else ""
    if close.all(ours.inputs[:1], theirs.inputs[:1]):
        what = _apart(ours.outputs, theirs.outputs, close)
        return f"they part in {here}{last}: its inputs agree and its outputs {what}"
    what = _apart(ours.inputs, theirs.inputs, close)
    return f"they part before {here}{last}: its inputs {what}"


def _lonely(mine: Sequence[Event], others: Sequence[Event], close: _Close) -> Event | None:
    known = {id(e) for e in mine if not e.concrete or _twin(e, others, close) is not None}
    for event in mine:
        if id(event) not in known and not any(id(a) in known for a in event.above if a.concrete):
            return event
    return None


def _twin(event: Event, others: Sequence[Event], close: _Close) -> Event | None:
    if not event.outputs:
        return event
    for other in others:
        same = len(other.outputs) == len(event.outputs)
        if same and other.concrete and close.all(event.outputs, other.outputs):
            return other
    return None
