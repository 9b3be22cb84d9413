"""A Linen module as pure functions of its variables.

The module is traced abstractly to learn which variables it has; what a checkpoint holds under
another spelling (a box's ``value``) gets the module's own name when it is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from flax import linen

from bridge.calls import (
    Arguments,
    Call,
    Called,
    Model,
    Name,
    in_mode,
    key_text,
    mode_of,
    outputs_of,
    quiet,
    shapes_text,
    taken,
    tied,
    trains,
)
from bridge.errors import BridgeError, TargetError
from bridge.probe import Probe
from bridge.spec import resolve
from legacy import LeafPath, LeafTable, format_path

__all__ = ["leaf_specs", "linen_model", "linen_of", "linen_variables", "settled", "takes"]

_SEEN = 4
"""Names that fit into one line of an error."""


def linen_of(given: Any) -> Any:
    """The Linen module that a user means: a module, a class or function that makes one, a name.

    Raises:
        TargetError: it is none of these.

    >>> linen_of(lambda: linen.Dense(3)).features
    3
    """
    found = resolve(given) if isinstance(given, str) else given
    if not isinstance(found, linen.Module) and callable(found):
        try:
            found = found()
        except TypeError as error:
            raise TargetError(f"linen: the module could not be made: {error}") from error
    if not isinstance(found, linen.Module):
        raise TargetError(
            f"linen is of type {type(found).__name__}; give the Linen module whose parameters the "
            "checkpoint holds, or a function without arguments that makes it."
        )
    return found


def takes(module: Any, probe: Probe) -> bool:
    """Whether the Linen method takes the names of a probe's keyword arguments.

    >>> takes(linen.Dense(3), Probe(kwargs={"inputs": 1}))
    True
    >>> takes(linen.Dense(3), Probe(kwargs={"image": 1}))
    False
    """
    function = _method(type(linen_of(module)), probe.method)
    return len(taken(function, probe.kwargs)) == len(probe.kwargs)


def settled(module: Any, probe: Probe) -> Probe:
    """A probe as it was meant: a batch that is a dict is one argument, ``train=True`` a mode.

    Args:
        module: the Linen module.
        probe: as the user gave it.
    """
    if probe.kwargs and not probe.args and not takes(module, probe):
        probe = replace(probe, args=(dict(probe.kwargs),), kwargs={})
    function = _bound(linen_of(module), probe.method)
    return replace(probe, train=probe.train or trains(function, *probe.linen_arguments()))


def _bound(module: Any, method: Any) -> Any:
    found = _method(type(module), method)
    if inspect.ismethod(found) or not hasattr(found, "__get__"):
        return found
    return found.__get__(module)


def _method(kind: type[Any], method: Any) -> Any:
    if method is None:
        return kind.__call__
    if isinstance(method, str) and not callable(getattr(kind, method, None)):
        own = (n for n, v in vars(kind).items() if inspect.isfunction(v) and not n.startswith("_"))
        raise BridgeError(
            f"the Linen module {kind.__name__} has no method {method!r}; it has "
            f"{', '.join(own) or '__call__ only'}."
        )
    return getattr(kind, method) if isinstance(method, str) else method


def leaf_specs(
    table: LeafTable, full: Mapping[LeafPath, LeafPath]
) -> dict[LeafPath, tuple[tuple[int, ...], str]]:
    """Shape and dtype name by variable path, of the leaves that hold arrays.

    Args:
        table: the leaves of a checkpoint.
        full: the path in it of each variable path.
    """
    return {
        path: (leaf.shape, leaf.dtype.name)
        for path, place in full.items()
        if (leaf := table[place]).dtype is not None and leaf.kind != "unreadable"
    }


def linen_model(
    module: Any, probes: Iterable[Probe], leaves: Mapping[LeafPath, tuple[tuple[int, ...], str]]
) -> Model:
    """The Linen side.

    Args:
        module: the ``flax.linen`` module; it is traced abstractly to learn its variables.
        probes: how it is called.
        leaves: see :func:`leaf_specs`.

    Returns:
        The model; ``specs`` has the checkpoint's spelling of each path.

    Raises:
        BridgeError: the module fails, or its variables are not those of the checkpoint.
    """
    module = linen_of(module)
    calls = [_LinenCall(module, p) for p in probes]
    wanted: dict[LeafPath, jax.ShapeDtypeStruct] = {}
    for call in calls:
        wanted |= call.variables()
    ours = _spelled(leaves, wanted)
    specs = {ours[p]: jax.ShapeDtypeStruct(s.shape, leaves[ours[p]][1]) for p, s in wanted.items()
             if p in ours}  # fmt: skip
    return Model("Linen", specs, tuple(c.made(ours) for c in calls))


def linen_variables(module: Any, probe: Probe) -> Any:
    """The abstract variables of a Linen module, in the boxes that it makes for them.

    Raises:
        BridgeError: the module fails.
    """
    return _LinenCall(linen_of(module), probe).boxed()


@dataclass(frozen=True, slots=True, eq=False)
class _LinenCall:
    module: Any
    probe: Probe
    given: Arguments = field(init=False)
    mode: dict[str, bool] = field(init=False)
    takes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        args, kwargs = self.probe.linen_arguments()
        function = _bound(self.module, self.probe.method)
        args, kwargs = in_mode(function, args, kwargs, train=self.probe.train)
        object.__setattr__(self, "given", Arguments.of(args, kwargs))
        mode, names = mode_of(function, args, train=self.probe.train)
        object.__setattr__(self, "takes", names)
        # what the constructor was given must not be given again
        own = {k for k in mode if getattr(self.module, k, None) is not None}
        mode = {k: v for k, v in mode.items() if k not in kwargs and k not in own}
        object.__setattr__(self, "mode", mode)

    def _method(self) -> Any:
        method = self.probe.method
        return method if method is None else _method(type(self.module), method)

    def variables(self) -> dict[LeafPath, jax.ShapeDtypeStruct]:
        """What the module keeps, by path with the collection first, unboxed."""
        found, _ = jax.tree_util.tree_flatten_with_path(linen.meta.unbox(self.boxed()))
        return {tuple(key_text(k) for k in path): struct for path, struct in found}

    def boxed(self) -> Any:
        """What the module keeps, as it makes it."""

        def init(inputs: Sequence[Any]) -> Any:
            args, kwargs = self.given.filled(inputs)
            rngs = {"params": jax.random.key(0)}
            return self.module.init(rngs, *args, **kwargs, **self.mode, method=self._method())

        try:
            with tied():
                return jax.eval_shape(init, self.given.arrays)
        except Exception as error:
            raise BridgeError(
                f"the Linen module {type(self.module).__name__} could not be traced with the "
                f"sample input ({shapes_text(self.given.arrays)}): {type(error).__name__}: {error}"
            ) from error

    def made(self, ours: Mapping[LeafPath, LeafPath]) -> Call:
        """The call, for values under the checkpoint's paths."""
        names: list[Name] = []

        def run(values: Mapping[tuple[str, ...], Any], inputs: Sequence[Any]) -> Called:
            tree: dict[str, Any] = {}
            for path, spelled in ours.items():
                node = tree
                for part in path[:-1]:
                    node = node.setdefault(part, {})
                node[path[-1]] = values[spelled]
            args, kwargs = self.given.filled(inputs)
            mutable = [c for c in tree if c != "params"] if self.probe.train else False
            with quiet():
                out = self.module.apply(
                    tree, *args, **kwargs, **self.mode, rngs={"params": jax.random.key(0)},
                    method=self._method(), mutable=mutable,
                )  # fmt: skip
            if mutable is False:
                return Called(outputs_of(out, names), {})
            new, _ = jax.tree_util.tree_flatten_with_path(linen.meta.unbox(out[1]))
            updated = {tuple(key_text(k) for k in path): x for path, x in new}
            after = {ours[p]: x for p, x in updated.items() if p in ours}
            return Called(outputs_of(out[0], names), after)

        return Call(self.probe, self.given.arrays, run, self.takes, names)


def _spelled(
    leaves: Mapping[LeafPath, tuple[tuple[int, ...], str]],
    wanted: Mapping[LeafPath, jax.ShapeDtypeStruct],
) -> dict[LeafPath, LeafPath]:
    """The checkpoint's path of each variable of the module.

    Raises:
        BridgeError: variables that the checkpoint lacks or has in another shape.
    """
    boxed = {p[:-1]: p for p in leaves if p[-1:] == ("value",)}
    found = {p: p if p in leaves else boxed[p] for p in wanted if p in leaves or p in boxed}
    lost = [p for p in wanted if p not in found]
    apart = [p for p, q in found.items() if wanted[p].shape != leaves[q][0]]
    if not lost and not apart:
        return found
    text = [f"{format_path(p)} is not in the checkpoint" for p in lost[:_SEEN]]
    text += [
        f"{format_path(p)} has shape {list(wanted[p].shape)} in the module and "
        f"{list(leaves[found[p]][0])} in the checkpoint"
        for p in apart[:_SEEN]
    ]
    more = len(lost) + len(apart) - len(text)
    text += [f"and {more} more"] if more > 0 else []
    raise BridgeError(
        "the Linen module is not the one whose variables the checkpoint holds:\n  "
        + "\n  ".join(text)
        + "\nGive the module with the arguments that it was trained with and a sample input of the "
        "sizes that it was trained on, or leave linen= away."
    )
