"""Groups of leaves by role, and what a single leaf says about its role."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bridge.roles_tree import State
from legacy import Leaf, LeafPath, LeafTable

__all__ = ["Group", "Role", "Roles", "is_key", "is_step"]

Role = Literal["params", "collection", "opt_state", "step", "rng", "copy", "rest"]

STEP_NAMES = frozenset({"step", "global_step"})
KEY_NAME = re.compile(r"rng|key|seed|prng", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Group:
    """Leaves of one role under one prefix.

    Attributes:
        role: see :data:`Role`.
        prefix: where the group starts in the table.
        collection: the Linen collection; for copies the collection that they copy.
        paths: the paths below ``prefix``, in natural order.
        state: index of the :class:`State` it belongs to; -1 for none.
    """

    role: Role
    prefix: LeafPath
    collection: str
    paths: tuple[LeafPath, ...]
    state: int = -1

    def full(self) -> Iterator[LeafPath]:
        """The paths of its leaves in the table."""
        return (self.prefix + p for p in self.paths)


@dataclass(frozen=True, slots=True)
class Roles:
    """All groups of a table; each leaf is in exactly one."""

    groups: tuple[Group, ...]
    states: tuple[State, ...]

    def of(self, role: Role, state: int | None = None) -> tuple[Group, ...]:
        """The groups of a role, of one state or of all."""
        return tuple(
            g for g in self.groups if g.role == role and (state is None or g.state == state)
        )

    def totals(self, table: LeafTable) -> dict[str, tuple[int, int]]:
        """Leaves and bytes by role (collections by name)."""
        sums: dict[str, tuple[int, int]] = {}
        for group in self.groups:
            name = group.collection if group.role == "collection" else group.role
            count, size = sums.get(name, (0, 0))
            sums[name] = (
                count + len(group.paths),
                size + sum(table[p].nbytes for p in group.full()),
            )
        return sums


def is_step(path: LeafPath, leaf: Leaf) -> bool:
    """Whether a leaf is a step counter, by its name and kind."""
    return (
        bool(path)
        and path[-1] in STEP_NAMES
        and leaf.shape == ()
        and (leaf.kind == "number" or (leaf.dtype is not None and leaf.dtype.kind in "iu"))
    )


def is_key(path: LeafPath, leaf: Leaf) -> bool:
    """Whether a leaf is a PRNG key: typed, or raw under a name that says so."""
    if leaf.kind == "key":
        return True
    raw = (
        leaf.kind == "array"
        and leaf.dtype is not None
        and leaf.dtype.name == "uint32"
        and leaf.shape[-1:] in ((2,), (4,))
    )
    return raw and any(KEY_NAME.search(p) for p in path[-2:])
