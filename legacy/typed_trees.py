"""The two trees that a typed restore walks side by side: the target's and the file's."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from legacy.leaves import Leaf, LeafPath, LeafTable, Node
from legacy.typed_leaves import raw_value

__all__ = [
    "BOX_FIELD",
    "Source",
    "children_of",
    "file_names",
    "is_box",
    "leaves_below",
    "leaves_of",
    "nest",
    "raw",
    "rebuild",
]

Source: TypeAlias = "Leaf | dict[str, Source] | None"
"""What the file has at a place; None where it has nothing."""

BOX_FIELD: Final = "value"
"""The field of flax's partitioning boxes, and its name in the file."""


def children_of(target: Any) -> dict[str, Any] | None:
    """The named children of a container of the target; None for a leaf."""
    if isinstance(target, Mapping):
        return {str(key): target[key] for key in target}
    if isinstance(target, tuple) and hasattr(target, "_fields"):
        return {name: getattr(target, name) for name in target._fields}
    if isinstance(target, (list, tuple)):
        return {str(i): child for i, child in enumerate(target)}
    if dataclasses.is_dataclass(target) and not isinstance(target, type):
        return {f.name: getattr(target, f.name) for f in dataclasses.fields(target) if _saved(f)}
    return None


def _saved(field: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass field is data: flax marks static ones one way, jax another."""
    return bool(field.metadata.get("pytree_node", True)) and not field.metadata.get("static", False)


def is_box(target: Any) -> bool:
    """A partitioning box of flax (``nn.Partitioned``, ``nn.LogicallyPartitioned``)."""
    return hasattr(type(target), "unbox") and set(children_of(target) or ()) == {BOX_FIELD}


def file_names(target: Any, children: dict[str, Any], source: dict[str, Source]) -> dict[str, str]:
    """What each child of the target is called in the file.

    A namedtuple is saved by field names, or by some writers by position; never by both.
    """
    positions = {name: str(i) for i, name in enumerate(children)}
    by_position = source and set(source) <= set(positions.values())
    if hasattr(target, "_fields") and by_position and not set(source) & set(children):
        return positions
    return {name: name for name in children}


def rebuild(target: Any, values: dict[str, Any]) -> Any:
    """A new container of the target's type, with its static parts and these children."""
    if isinstance(target, defaultdict):
        return defaultdict(target.default_factory, {key: values[str(key)] for key in target})
    if isinstance(target, Mapping):
        make: Any = type(target)
        return make({key: values[str(key)] for key in target})
    if hasattr(target, "_fields"):
        return type(target)(**values)
    if isinstance(target, (list, tuple)):
        return type(target)(values.values())  # dict order is index order
    plain = {f.name for f in dataclasses.fields(target) if f.init}
    if values.keys() <= plain:
        return dataclasses.replace(target, **values)
    new = copy.copy(target)
    for name, value in values.items():
        object.__setattr__(new, name, value)
    return new


def leaves_of(target: Any, path: LeafPath) -> Iterator[tuple[LeafPath, Any]]:
    """The leaves of a target; None and empty containers are none."""
    children = children_of(target)
    if children is None:
        if target is not None:
            yield path, target
        return
    for name, child in children.items():
        yield from leaves_of(child, (*path, name))


def leaves_below(source: Source, path: LeafPath) -> Iterator[tuple[LeafPath, Leaf]]:
    """The leaves of the file at and below a place."""
    if isinstance(source, Leaf):
        yield path, source
    elif source is not None:
        for name, child in source.items():
            yield from leaves_below(child, (*path, name))


def nest(table: LeafTable) -> Source:
    """The table as nested dicts.

    >>> list(nest(LeafTable([Leaf(("a", "b"), "none")]))["a"])
    ['b']
    """
    if () in table:
        return table[()]
    root: dict[str, Source] = {}
    for path, leaf in table.items():
        folder = root
        for name in path[:-1]:
            folder = folder.setdefault(name, {})  # type: ignore[assignment]  # no leaf has leaves
        folder[path[-1]] = leaf
    return root


def raw(source: Source, path: LeafPath, nodes: Mapping[LeafPath, Node]) -> Any:
    """The values at and below a place, in the plain containers that the file tells of."""
    if source is None:
        return None
    if isinstance(source, Leaf):
        return raw_value(source)
    values = {name: raw(child, (*path, name), nodes) for name, child in source.items()}
    container = nodes[path].container if path in nodes else "dict"
    if container in ("list", "tuple") and set(values) == {str(i) for i in range(len(values))}:
        ordered = [values[str(i)] for i in range(len(values))]
        return tuple(ordered) if container == "tuple" else ordered
    return values
