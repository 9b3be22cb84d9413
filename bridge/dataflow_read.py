"""Reads a jaxpr into a :class:`~bridge.dataflow_graph.Graph`.

Calls are inlined, what no output needs is not read, constants are computed, and what is only
another way to write the same (division by a number, ``square``, a scale before or after a
product) is brought into one form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend import core

from bridge.dataflow_axes import BROADCAST, Entry, Uneven, spread
from bridge.dataflow_graph import Graph, View

__all__ = ["LIMIT", "Handler", "Numbers", "Reader"]

Handler: TypeAlias = "Callable[[Reader, Any, list[View]], Sequence[View]]"

LIMIT = 1 << 16
"""Elements of a constant that is computed; larger ones are compared by how they are made."""

_INLINE = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "call", "remat", "remat2", "checkpoint",
     "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_dce_call",
     "custom_lin", "xla_call"}
)  # fmt: skip
_UNTOLD = frozenset(
    {"accuracy", "sharding", "out_sharding", "weak_type", "precision", "preferred_element_type",
     "name", "unique_indices", "indices_are_sorted", "out_aval"}
)  # fmt: skip
_DIGITS = 6
_MASKED = 1e8
"""What hides a score from a softmax; how much larger it is makes no difference."""
_NEAR = 1e-6


def canonical(value: Any) -> Hashable:
    """A parameter of a primitive as something that can be compared."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), canonical(v)) for k, v in value.items()))
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return tuple(canonical(v) for v in value)
    if isinstance(value, (int, np.integer, bool)):
        return int(value)
    return value if isinstance(value, (float, str, type(None))) else str(value)


def told(params: Mapping[str, Any]) -> Hashable:
    """The parameters of a primitive that tell what it computes."""
    return canonical({k: v for k, v in params.items() if k not in _UNTOLD and v is not None})


class Numbers:
    """Scalar constants, without the last bits, in which two spellings of one may differ.

    >>> numbers = Numbers()
    >>> numbers.of(0.35355338) == numbers.of(0.3535534), numbers.of(1e-6) == numbers.of(1e-5)
    (True, False)
    """

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def of(self, value: Any) -> Hashable:
        """The number that stands for all that differ from it by rounding."""
        value = np.asarray(value)
        if value.dtype.kind in "biu":
            return int(value)
        if value.dtype.kind == "c":
            return str(value)
        found = float(value)
        if math.isnan(found):
            return "nan"  # which is not equal to itself
        if abs(found) >= _MASKED:
            return found if math.isinf(found) else math.copysign(_MASKED, found)
        near = [f"{found * (1 + d):.{_DIGITS}g}" for d in (0, -_NEAR, _NEAR)]
        known = next((self._seen[n] for n in near if n in self._seen), float(near[0]))
        self._seen.setdefault(near[0], known)
        return known


class Reader:
    """Reads jaxprs into one graph.

    Attributes:
        graph: what has been read.
        unroll: whether every loop is unrolled, not only those over parameters.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], numbers: Numbers, *, unroll: bool = False
    ) -> None:
        self.graph = Graph()
        self._numbers = numbers
        self.handlers = handlers
        self.unroll = unroll
        self._values: dict[int, Any] = {}

    def call(self, closed: Any, args: Sequence[View], wanted: Sequence[bool]) -> list[Any]:
        """Read a closed jaxpr; outputs that are not wanted are None."""
        consts = [self.constant(c) for c in closed.consts]
        return self.inline(closed.jaxpr, args, wanted, consts)

    def inline(
        self, jaxpr: Any, args: Sequence[View], wanted: Sequence[bool], consts: Sequence[View] = ()
    ) -> list[Any]:
        """Read a jaxpr whose inputs are these."""
        needed = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and _is_var(v)}
        todo = []
        for eqn in reversed(jaxpr.eqns):
            if any(v in needed for v in eqn.outvars):
                todo.append(eqn)
                needed.update(v for v in eqn.invars if _is_var(v))
        env: dict[Any, View] = dict(zip(jaxpr.invars, args, strict=True))
        env.update(zip(jaxpr.constvars, consts, strict=True))
        for eqn in reversed(todo):
            # a later equation may have needed a variable that this one also makes
            views = [env[v] if _is_var(v) else self.constant(v.val) for v in eqn.invars]
            outs = self._equation(eqn, views, [v in needed for v in eqn.outvars])
            env.update((v, o) for v, o in zip(eqn.outvars, outs, strict=True) if o is not None)
        return [
            (env[v] if _is_var(v) else self.constant(v.val)) if w else None
            for v, w in zip(jaxpr.outvars, wanted, strict=True)
        ]

    def _equation(self, eqn: Any, views: list[View], wanted: list[bool]) -> Sequence[Any]:
        name = eqn.primitive.name
        if name in _INLINE:
            return self._inlined(eqn, views, wanted)
        known = self._computed(eqn, views)
        if known is not None:
            return known
        handler = self.handlers.get(name, opaque)
        try:
            return handler(self, eqn, views)
        except Uneven:
            return handler(self, eqn, [self.laid_out(v) for v in views])

    def _inlined(self, eqn: Any, views: list[View], wanted: list[bool]) -> Sequence[Any]:
        inner = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params)
        before = self.graph.label
        name = str(eqn.params.get("name", ""))
        if name and not name.startswith("_") and not before:
            self.graph.label = name
        try:
            if isinstance(inner, core.ClosedJaxpr):
                return self.call(inner, views, wanted)
            return self.inline(inner, views, wanted)
        finally:
            self.graph.label = before

    def constant(self, value: Any) -> View:
        """A constant array; where it repeats, it is a view of a smaller one."""
        if hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
            data = np.asarray(jax.random.key_data(value))
            return self.graph.leaf("key", data.tobytes(), value.shape)
        array = np.asarray(value)
        if array.ndim == 0:
            return self._keep(self.graph.scalar(self._numbers.of(array)), array)
        small = array
        if array.size:
            for axis, n in enumerate(array.shape):
                first = small.take([0], axis)
                if n > 1 and _equal(small, first):
                    small = first
        whole = [n != m for n, m in zip(array.shape, small.shape, strict=True)]
        if small.size == 1:
            base = self.graph.scalar(self._numbers.of(small.reshape(())))
            axes: tuple[tuple[Entry, ...], ...] = tuple(() for _ in array.shape)
        else:
            thin = small.squeeze()
            base = self.graph.leaf("const", (thin.shape, thin.dtype.kind, _bytes(thin)), thin.shape)
            given = iter(base.axes)
            axes = tuple(() if n == 1 else next(given) for n in small.shape)
            small = thin
        self._keep(base, small)
        wide = [spread(n) if w else a for n, w, a in zip(array.shape, whole, axes, strict=True)]
        return View(base.node, tuple(wide))

    def _keep(self, view: View, value: Any) -> View:
        self._values[view.node] = value
        return view

    def known(self, view: View) -> Any:
        """The value of a view of a constant; None if it is none or too large."""
        value = self._values.get(view.node)
        size = int(np.prod(view.shape, dtype=np.int64))
        if value is None or size > LIMIT:
            return None
        if not any(e.slot != BROADCAST for a in view.axes for e in a):
            return np.broadcast_to(np.asarray(value).reshape(()), view.shape)
        full = [k for k, n in enumerate(np.shape(value)) if n != 1]
        at = np.zeros(view.shape, np.int64)
        strides = np.cumprod([1, *np.shape(value)[::-1]])[::-1][1:]
        for axis, entries in enumerate(view.axes):
            inner = 1
            count = np.arange(view.shape[axis])
            for slot, _, stride, n in reversed(entries):
                if slot != BROADCAST:
                    digit = count // inner % n * stride * strides[full[slot]]
                    at += digit.reshape([-1 if k == axis else 1 for k in range(at.ndim)])
                inner *= n
        return np.asarray(value).reshape(-1)[at]

    def _computed(self, eqn: Any, views: list[View]) -> list[View] | None:
        """The outputs, if all operands are small constants."""
        if eqn.primitive.name in _LAYOUT or any(
            not hasattr(v.aval, "shape")
            or jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.extended)
            or v.aval.size > LIMIT
            for v in (*eqn.invars, *eqn.outvars)
        ):
            return None
        values = [self.known(v) for v in views]
        if any(v is None for v in values) or any(
            isinstance(p, (core.ClosedJaxpr, core.Jaxpr)) for p in eqn.params.values()
        ):
            return None
        typed = [
            jax.numpy.asarray(x, v.aval.dtype) for x, v in zip(values, eqn.invars, strict=True)
        ]
        out = eqn.primitive.bind(*typed, **eqn.params)
        return [self.constant(x) for x in (out if eqn.primitive.multiple_results else [out])]

    def laid_out(self, view: View) -> View:
        """The view as a node of its own, when no cut of its axes fits."""
        if all(len(a) <= 1 for a in view.axes):
            return view
        old, new = ([(x, k) for k in range(len(view.axes))] for x in ("in", "out"))
        fresh = {new[k]: n for k, n in enumerate(view.shape) if n != 1}
        roles = {x: x for x in (*old, *new)}
        return self.graph.make("layout", view.shape, [view], [old], new, roles=roles, fresh=fresh)


def opaque(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    """Any primitive: each axis of each operand and output has a meaning of its own."""
    labels = [[("in", n, k) for k in range(len(v.axes))] for n, v in enumerate(views)]
    return opaque_with(reader, eqn, views, labels)


def opaque_with(
    reader: Reader,
    eqn: Any,
    views: list[View],
    labels: Sequence[Sequence[Hashable]],
    outs: Sequence[Sequence[Hashable]] | None = None,
    params: Mapping[str, Any] | None = None,
) -> list[View]:
    """Any primitive, some of whose axes run along together: those with labels that are no tuple."""
    made = []
    seen = {x for row in labels for x in row}
    key = told(eqn.params if params is None else params)
    for n, var in enumerate(eqn.outvars):
        shape = getattr(var.aval, "shape", ())
        out = [("out", k) for k in range(len(shape))] if outs is None else outs[n]
        roles = {x: x for x in (*seen, *out) if isinstance(x, tuple)}
        fresh = {x: s for x, s in zip(out, shape, strict=True) if x not in seen and s != 1}
        made.append(
            reader.graph.make(
                eqn.primitive.name, (n, key), views, labels, out, roles=roles, fresh=fresh
            )
        )
    return made


def _equal(array: Any, first: Any) -> bool:
    """Whether an array repeats along an axis; what is not a number repeats, too."""
    same = array == first
    return (
        bool((same | (np.isnan(array) & np.isnan(first))).all())
        if _floats(array)
        else bool(same.all())
    )


def _floats(array: Any) -> bool:
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _bytes(array: Any) -> Hashable:
    if _floats(array):
        return np.asarray(array, np.float32).tobytes()
    return array.tobytes() if array.dtype.kind in "biuc" else str(array)


def _is_var(x: Any) -> bool:
    return not isinstance(x, core.Literal)


_LAYOUT = frozenset({"broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "copy"})
