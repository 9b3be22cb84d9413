"""Runs a model for fingerprints: outputs, updates and gradients for any values, traced once."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bridge.fingerprint_lift import Unliftable, evaluate, is_float, narrow, used
from bridge.probes import Call, Model

__all__ = ["Path", "Ran", "Runner", "Unrunnable", "Values", "inputs_of"]

Path: TypeAlias = tuple[str, ...]
Values: TypeAlias = dict[Path, np.ndarray[Any, Any]]

_ONE_AT_A_TIME = threading.Lock()
"""Calling a model replaces functions of ``jax.random`` for a while, in all threads."""
_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""One run is milliseconds; what costs is compiling a deep model."""


class Unrunnable(Exception):
    """A model that cannot be differentiated or compiled."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What one run gave.

    Attributes:
        outputs: the floating outputs of all calls, in order.
        updates: for each call, new values of variables.
        grads: the gradient of the weighted sum of the outputs, by path.
    """

    outputs: tuple[np.ndarray[Any, Any], ...]
    updates: tuple[Values, ...]
    grads: Values


@dataclass
class Runner:
    """One model, compiled once.

    Args:
        model: the model.
        inputs: the arrays of each call.
        constant: paths that are not varied: the model's own values are used.
        wide: trace in float64, too, if the code allows it: its constants are not rounded then.

    Attributes:
        exact: whether it is evaluated in float64 throughout.
        narrow: whether its constants are rounded to less than float64.
        work: floating point operations of one forward pass, roughly.
    """

    model: Model
    inputs: Sequence[Sequence[Any]]
    constant: frozenset[Path] = frozenset()
    wide: bool = True
    exact: bool = field(init=False, default=True)
    narrow: bool = field(init=False, default=False)
    work: float = field(init=False, default=0.0)
    floats: tuple[Path, ...] = field(init=False)
    others: tuple[Path, ...] = field(init=False)

    def __post_init__(self) -> None:
        specs = {p: s for p, s in self.model.specs.items() if p not in self.constant}
        self.floats = tuple(p for p, s in specs.items() if is_float(s.dtype))
        self.others = tuple(p for p, s in specs.items() if _whole(s.dtype))
        self._keys = {p: s for p, s in specs.items() if not is_float(s.dtype)
                      and not _whole(s.dtype)}  # fmt: skip
        self._step: Any = None
        self._trace()

    def _trace(self) -> None:
        if self.wide:
            try:
                with jax.enable_x64(True):
                    self._jaxpr, self._shape = self._traced(np.float64, np.complex128)
            except Exception:  # noqa: BLE001 - code that fixes some types fails with others
                self.wide = False
        if not self.wide:
            self._jaxpr, self._shape = self._traced(None, None)
        self.narrow = narrow(self._jaxpr.jaxpr)
        self.work = _flops(self._jaxpr.jaxpr)

    def _traced(self, real: Any, cplx: Any) -> Any:
        def typed(s: Any) -> Any:
            if real is None or not is_float(s.dtype):
                return jax.ShapeDtypeStruct(s.shape, jax.dtypes.canonicalize_dtype(s.dtype))
            kind = cplx if jnp.issubdtype(s.dtype, jnp.complexfloating) else real
            return jax.ShapeDtypeStruct(s.shape, kind)

        specs = self.model.specs
        return jax.make_jaxpr(self._plain, return_shape=True)(
            [typed(specs[p]) for p in self.floats],
            [typed(specs[p]) for p in self.others],
            [[typed(x) for x in arrays] for arrays in self.inputs],
        )

    def _plain(self, floats: Any, others: Any, inputs: Any) -> Any:
        values: dict[Path, Any] = dict(zip(self.floats, floats, strict=True))
        values |= dict(zip(self.others, others, strict=True))
        if self.model.name == "Linen":
            values |= {p: _key(s) for p, s in self._keys.items()}
        with _ONE_AT_A_TIME:
            results = [c.run(values, x) for c, x in zip(self.model.calls, inputs, strict=True)]
        outputs = [o for r in results for o in r.outputs if is_float(jnp.asarray(o).dtype)]
        known = {*self.floats, *self.others}
        updates = [{"\0".join(p): u for p, u in r.updates.items() if p in known} for r in results]
        return outputs, updates

    def _forward(self, floats: Any, others: Any, inputs: Any) -> Any:
        if self.exact:
            flat = [
                x if not _whole(x.dtype) else x.astype(v.aval.dtype)
                for x, v in zip(
                    jax.tree.leaves((floats, others, inputs)), self._jaxpr.jaxpr.invars, strict=True
                )
            ]
            out = evaluate(self._jaxpr.jaxpr, self._jaxpr.consts, flat)
            outputs, updates = jax.tree.structure(self._shape).unflatten(out)
        else:
            specs = self.model.specs
            floats = [x.astype(specs[p].dtype) for p, x in zip(self.floats, floats, strict=True)]
            outputs, updates = self._plain(floats, others, inputs)
        return [_real(o) for o in outputs], updates

    def _made(self, floats: Any, others: Any, inputs: Any, weights: Any) -> Any:
        def step(floats: Any, others: Any, inputs: Any, weights: Any) -> Any:
            outputs, back, updates = jax.vjp(
                lambda f: self._forward(f, others, inputs), floats, has_aux=True
            )
            grads = back([w.astype(o.dtype) for w, o in zip(weights, outputs, strict=True)])[0]
            return outputs, updates, grads

        lowered = jax.jit(step).lower(floats, others, inputs, weights)
        try:
            return lowered.compile(compiler_options=_FAST)
        except Exception:  # noqa: BLE001 - a backend without these options
            return lowered.compile()

    def weights(self, rng: Any) -> list[np.ndarray[Any, Any]]:
        """Random weights of the outputs, the same on both sides for outputs of the same shapes."""
        shapes = [(2, *o.shape) if jnp.issubdtype(o.dtype, jnp.complexfloating) else o.shape
                  for o in self._shape[0]]  # fmt: skip
        return [rng(f"output {n} {math.prod(s)}", math.prod(s)).reshape(s)
                for n, s in enumerate(shapes)]  # fmt: skip

    def compile(self, values: Values, weights: Sequence[Any]) -> None:
        """Compile for arrays like these; without it the first run does.

        Raises:
            Unrunnable: it has no gradient, or no form that runs here.
        """
        if self._step is not None:
            return
        with jax.enable_x64(True):
            try:
                self._step = self._compiled(values, weights)
            except Exception as error:
                text = f"{self.model.name}: {type(error).__name__}: {error}"
                raise Unrunnable(text) from error

    def _compiled(self, values: Values, weights: Sequence[Any]) -> Any:
        try:
            return self._made(*self._arguments(values, weights))
        except Unliftable:
            self.exact = False
        return self._made(*self._arguments(values, weights))

    def _arguments(self, values: Values, weights: Sequence[Any]) -> Any:
        floats = [jnp.asarray(values[p]) for p in self.floats]
        others = [jnp.asarray(values[p], self.model.specs[p].dtype) for p in self.others]
        inputs = [[_input(x, exact=self.exact) for x in arrays] for arrays in self.inputs]
        return floats, others, inputs, [jnp.asarray(w) for w in weights]

    def run(self, values: Values, weights: Sequence[Any]) -> Ran:
        """One run.

        Args:
            values: an array for each path that is varied.
            weights: of the outputs, for the gradient.
        """
        self.compile(values, weights)
        with jax.enable_x64(True):
            outputs, updates, grads = self._step(*self._arguments(values, weights))
        return Ran(
            tuple(map(np.asarray, outputs)),
            tuple({tuple(k.split("\0")): np.asarray(u) for k, u in one.items()} for one in updates),
            {p: np.asarray(g) for p, g in zip(self.floats, grads, strict=True)},
        )


def _whole(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))


def _key(spec: Any) -> Any:
    return jnp.broadcast_to(jax.random.key(0), spec.shape)


def _real(x: Any) -> Any:
    return jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else jnp.asarray(x)


def _input(x: Any, *, exact: bool) -> Any:
    if exact and is_float(x.dtype):
        return jnp.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)
    return jnp.asarray(x)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for eqn in used(jaxpr):
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            lhs, out = eqn.invars[0].aval, eqn.outvars[0].aval
            (contracted, _), _ = params["dimension_numbers"]
            total += 2.0 * math.prod(out.shape) * math.prod(lhs.shape[a] for a in contracted)
        elif name == "conv_general_dilated":
            rhs, out = eqn.invars[1].aval, eqn.outvars[0].aval
            features = rhs.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(out.shape) * math.prod(rhs.shape) / max(features, 1)
        inner = [_flops(j) for j in _jaxprs(params)]
        total += (max if name == "cond" else sum)(inner or [0.0]) * params.get("length", 1)
    return total


def _jaxprs(params: Mapping[str, Any]) -> list[Any]:
    flat = [v for x in params.values() for v in (x if isinstance(x, (tuple, list)) else (x,))]
    return [v.jaxpr if isinstance(v, core.ClosedJaxpr) else v for v in flat
            if isinstance(v, (core.ClosedJaxpr, core.Jaxpr))]  # fmt: skip


def inputs_of(call: Call, other: Call, rng: Any) -> list[Any]:
    """The arrays that a call is made with.

    Arrays without variety (zeros, ones) hide what a model does, so those are replaced by random
    ones; the user's own numbers are kept, for only they are known to make sense.

    Args:
        call: the call.
        other: the same call of the other model.
        rng: ``rng(name, size)`` gives the same random numbers for the same name.
    """
    alike = [(x.shape, str(x.dtype)) for x in call.inputs] == [
        (x.shape, str(x.dtype)) for x in other.inputs
    ]
    return [_varied(x, f"input {n if alike else 0}", rng) for n, x in enumerate(call.inputs)]


def _varied(x: Any, name: str, rng: Any) -> Any:
    abstract = isinstance(x, jax.ShapeDtypeStruct)
    if not (is_float(x.dtype) or _whole(x.dtype)):
        return jnp.broadcast_to(jax.random.key(0), x.shape) if abstract else x
    given = np.zeros(x.shape, x.dtype) if abstract else np.asarray(x)
    if given.size == 0 or (not abstract and given.min() != given.max()):
        return given
    noise = rng(f"{name} {given.shape}", given.size).reshape(given.shape)
    if is_float(x.dtype):
        if given.size == 1 and not abstract:
            return given
        return (0.5 + 0.45 * np.tanh(noise)).astype(given.dtype)
    low = given.size > 1 and given.ravel()[0] in (0, 1) and given.dtype != np.bool_
    return (noise > 0).astype(given.dtype) if low else given
