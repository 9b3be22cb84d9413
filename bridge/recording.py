"""Records what goes into and comes out of every submodule of a model that is run.

Linen has interceptors for it. NNX has none, so the methods of the classes of its submodules are
wrapped while the model runs, and put back whatever happens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import jax
import numpy as np
from flax import linen, nnx

__all__ = ["Event", "LinenModule", "linen_modules", "nnx_modules", "record_linen", "record_nnx"]

ModulePath = tuple[str, ...]

_SETTERS = frozenset({"set_view", "set_mode", "set_attributes"})
"""Methods of NNX layers that change how they are, and compute nothing."""


@dataclass(slots=True, eq=False)
class Event:
    """One call of a submodule.

    Attributes:
        path: of the submodule; empty for the model itself.
        kind: its class name.
        method: the method.
        nth: which call of this method of this submodule, from 0.
        inputs: arrays among the arguments.
        outputs: arrays of the result.
        above: the calls that it is made in, outermost first.
        begun: its place in the order in which calls begin.
    """

    path: ModulePath
    kind: str
    method: str
    nth: int
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...] = ()
    above: tuple[Event, ...] = ()
    begun: int = 0

    @property
    def concrete(self) -> bool:
        """Whether all its arrays have values: inside a scan they have none."""
        return not any(isinstance(x, jax.core.Tracer) for x in (*self.inputs, *self.outputs))


@dataclass(slots=True)
class _Log:
    """Events in the order in which calls end."""

    events: list[Event] = field(default_factory=list)
    stack: list[Event] = field(default_factory=list)
    counts: dict[tuple[ModulePath, str], int] = field(default_factory=dict)
    begun: int = 0

    def call(
        self, who: tuple[ModulePath, str, str], function: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        path, kind, method = who
        if self.stack and (self.stack[-1].path, self.stack[-1].method) == (path, method):
            return function(*args, **kwargs)  # super().__call__()
        n = self.counts.get((path, method), 0)
        self.counts[path, method] = n + 1
        event = Event(path, kind, method, n, _arrays((args, kwargs)), (), tuple(self.stack))
        event.begun = self.begun
        self.begun += 1
        self.stack.append(event)
        try:
            out = function(*args, **kwargs)
        finally:
            self.stack.pop()
        event.outputs = _arrays(out)
        self.events.append(event)
        return out


def _arrays(tree: Any) -> tuple[Any, ...]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Module | linen.Module))
    return tuple(x for x in leaves if isinstance(x, jax.Array | np.ndarray))


def record_linen(run: Callable[[], Any]) -> list[Event]:
    """Run a Linen model and give the calls of all its modules, in the order in which they end.

    >>> module = linen.Sequential([linen.Dense(2), linen.relu])
    >>> x = np.ones((1, 3), np.float32)
    >>> variables = module.init(jax.random.key(0), x)
    >>> [(e.path, e.kind) for e in record_linen(lambda: module.apply(variables, x))]
    [(('layers_0',), 'Dense'), ((), 'Sequential')]
    """
    log = _Log()

    def interceptor(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "setup":
            return function(*args, **kwargs)
        module = context.module
        who = (tuple(module.path), type(module).__name__, context.method_name)
        return log.call(who, function, args, kwargs)

    with linen.intercept_methods(interceptor):
        run()
    return log.events


def record_nnx(make: Callable[[], Any], run: Callable[[], Any]) -> list[Event]:
    """Run an NNX model and give the calls of all its modules, in the order in which they end.

    Args:
        make: makes such a model; it is only looked at.
        run: makes one and runs it.
    """
    log = _Log()
    shape = nnx.eval_shape(make)
    kind, size = type(shape), len(list(nnx.iter_modules(shape)))
    names: dict[int, ModulePath] = {}
    alive: list[Any] = []  # so that no id is given twice

    def paths(module: Any) -> None:
        found = list(nnx.iter_modules(module))
        if type(module) is kind and len(found) == size:
            names.clear()
            alive.append(module)
            names.update({id(m): tuple(map(str, path)) for path, m in found})

    def wrapped(function: Callable[..., Any], method: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not log.stack:
                paths(self)
            if id(self) not in names:  # a copy, inside a transform, or while models are made
                return function(self, *args, **kwargs)
            who = (names[id(self)], type(self).__name__, method)
            return log.call(who, functools.partial(function, self), args, kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for owner, method, function in _methods(shape):
            stack.enter_context(mock.patch.object(owner, method, wrapped(function, method)))
        run()
    return log.events


def _methods(model: Any) -> Iterator[tuple[type[Any], str, Callable[..., Any]]]:
    """Public methods of the classes of all submodules that ``nnx.Module`` does not have."""
    kinds = {c for _, m in nnx.iter_modules(model) for c in type(m).__mro__}
    own = {name for owner in nnx.Module.__mro__ for name in vars(owner)} | _SETTERS
    for owner in kinds - set(nnx.Module.__mro__):
        for name, value in list(vars(owner).items()):
            public = name == "__call__" or not name.startswith("_")
            if public and inspect.isfunction(value) and name not in own:
                yield owner, name, value


@dataclass(frozen=True, slots=True)
class LinenModule:
    """One bound Linen submodule.

    Attributes:
        kind: its class.
        fields: its constructor arguments by name.
        begun: its place in the order in which modules are first called.
    """

    kind: type[Any]
    fields: Mapping[str, Any]
    begun: int = 0


def linen_modules(run: Callable[[], Any]) -> dict[ModulePath, LinenModule]:
    """The submodules that a call uses, by path.

    Args:
        run: calls the model; it may be traced only.
    """
    found: dict[ModulePath, LinenModule] = {}

    def interceptor(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        path = tuple(module.path)
        if path not in found and context.method_name != "setup":
            names = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]
            fields = {n: getattr(module, n) for n in names if hasattr(module, n)}
            found[path] = LinenModule(type(module), fields, len(found))
        return function(*args, **kwargs)

    with linen.intercept_methods(interceptor):
        run()
    return found


def nnx_modules(model: Any) -> dict[ModulePath, Any]:
    """The submodules of an NNX model, by path; containers without a call are not among them.

    >>> sorted(nnx_modules(nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))))
    [(), ('layers', '0')]
    """
    return {tuple(map(str, p)): m for p, m in nnx.iter_modules(model) if callable(m)}
