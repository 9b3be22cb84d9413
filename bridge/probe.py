"""How a user says what both models are called with. Loads no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.errors import TargetError

__all__ = ["Probe", "by_item", "probes_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One call that both models are compared by.

    Attributes:
        args: positional arguments; arrays, pytrees of them, or ``jax.ShapeDtypeStruct`` for a
            random array of that shape.
        kwargs: keyword arguments. A mode argument that is missing (``train``, ``deterministic``,
            ...) is set by :attr:`train`.
        nnx_args: positional arguments of the NNX model; None for the same.
        nnx_kwargs: keyword arguments of the NNX model; None for those of ``kwargs`` that its
            method takes.
        method: the Linen method, by name or as a function; None for ``__call__``.
        nnx_method: the NNX method, by name; None for the one of the same name.
        train: call in training mode, and compare what becomes of the batch statistics, too.

    >>> Probe((1.0,), method="encode").nnx_name()
    'encode'
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    nnx_args: tuple[Any, ...] | None = None
    nnx_kwargs: Mapping[str, Any] | None = None
    method: Any = None
    nnx_method: str | None = None
    train: bool = False

    def linen_arguments(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Arguments of the Linen side."""
        return self.args, self.kwargs

    def nnx_arguments(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Arguments of the NNX side."""
        args = self.args if self.nnx_args is None else self.nnx_args
        return args, self.kwargs if self.nnx_kwargs is None else self.nnx_kwargs

    def nnx_name(self) -> str:
        """The name of the NNX method."""
        method = self.nnx_method or self.method
        if method is None:
            return "__call__"
        return method if isinstance(method, str) else str(method.__name__)

    def of_nnx(self, model: Any) -> Any:
        """The bound NNX method."""
        return getattr(model, self.nnx_name())


def probes_of(sample_input: Any, methods: Any = None) -> tuple[Probe, ...]:
    """Bring a sample input into the form of probes.

    Args:
        sample_input: an array (the one argument), a tuple of arguments, a dict of keyword
            arguments, a :class:`Probe`, or a list of probes.
        methods: names of further methods that are called with the same input.

    >>> [p.args for p in probes_of((1, 2))]
    [(1, 2)]
    """
    if sample_input is None:
        return ()
    if isinstance(sample_input, list) and all(isinstance(p, Probe) for p in sample_input):
        first = tuple(sample_input)
    elif isinstance(sample_input, Probe):
        first = (sample_input,)
    elif isinstance(sample_input, tuple):
        first = (Probe(sample_input),)
    elif isinstance(sample_input, Mapping) and all(isinstance(k, str) for k in sample_input):
        first = (Probe((), dict(sample_input)),)
    else:
        first = (Probe((sample_input,)),)
    names = [methods] if isinstance(methods, str) else list(methods or ())
    return (*first, *(Probe(p.args, p.kwargs, p.nnx_args, p.nnx_kwargs, m, None, p.train)
                      for m in names for p in first[:1]))  # fmt: skip


def by_item(value: Any, items: Sequence[str], what: str, *, shared: bool = False) -> dict[str, Any]:
    """What was given for each item: by name, or one thing for the only item.

    Args:
        value: a dict by item name, or the thing itself.
        items: the names there are.
        what: the argument, for errors.
        shared: one thing may serve all items, and a dict whose keys are no item names is a thing.

    Raises:
        TargetError: an unknown name, or one thing for several items.

    >>> by_item({"actor": 1}, ("actor", "critic"), "linen=")
    {'actor': 1}
    """
    if isinstance(value, Mapping) and value and (not shared or set(value) <= set(items)):
        unknown = sorted(set(value) - set(items))
        if unknown:
            raise TargetError(f"{what} names {', '.join(unknown)}; there are {', '.join(items)}.")
        return dict(value)
    if len(items) > 1 and not shared:
        raise TargetError(
            f"{what} is one for the items {', '.join(items)}; give a dict by item name."
        )
    return dict.fromkeys(items, value)
