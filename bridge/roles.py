"""Which part of an old checkpoint is what.

Old checkpoints are trees that somebody's code put together: a bare params dict, variables with
``batch_stats``, a TrainState at any depth, a bundle with a config. This module finds the parts
that have a meaning for a model (params, other collections), for an optimizer (its state, the
step), for neither (PRNG keys, the rest), and the copies that are shaped like params (EMA, target
networks), from names and shapes alone. Every leaf gets exactly one role.

The danger is in calling something less than it is: a collection taken for "the rest" would be
carried as an extra, but then the slots it should fill stay unfilled, which is a problem of the
plan. So a wrong guess here is a refusal later, never a wrong weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from bridge.roles_tree import (
    COLLECTION_NAMES,
    COPY_NAME,
    OPT_NAMES,
    PARAMS,
    State,
    Tree,
    is_flax_optim,
    node_at,
    primary,
    shapes_in,
    states_in,
    tree_of,
)
from legacy import Leaf, LeafPath, LeafTable

__all__ = ["PARAMS", "Group", "Role", "Roles", "State", "find_roles"]

Role = Literal["params", "collection", "opt_state", "step", "rng", "copy", "rest"]

STEP_NAMES = frozenset({"step", "global_step"})
# fields of optax and flax.optim states that hold one array for each parameter
MOMENT_NAMES = frozenset(
    {"mu", "nu", "trace", "acc_grads", "nu_max", "sum_of_squares", "exp_avg", "exp_avg_sq",
     "param_states"}
)  # fmt: skip
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


def find_roles(table: LeafTable) -> Roles:
    """Give every leaf of a table its role, from names and shapes; nothing is read.

    Args:
        table: the leaves of a checkpoint.

    Returns:
        The groups; together they hold each leaf exactly once.

    >>> find_roles(LeafTable([Leaf(("step",), "number")])).groups[0].role
    'rest'
    """
    tree = tree_of(table)
    states = tuple(primary(states_in(tree, ()), tree))
    if not states:
        return Roles(_bare(table), (State((), (), (), ()),))
    return Roles(_Classifier(table, tree, states).groups(), states)


def _bare(table: LeafTable) -> tuple[Group, ...]:
    """No params anywhere: the arrays themselves are the params."""
    arrays = tuple(p for p, v in table.items() if v.kind == "array" and not _is_step(p, v))
    rest = tuple(p for p in table if p not in set(arrays))
    groups = []
    if arrays:
        groups.append(Group("params", (), PARAMS, arrays, 0))
    if rest:
        groups.append(Group("rest", (), "", rest))
    return tuple(groups)


def _is_step(path: LeafPath, leaf: Leaf) -> bool:
    return (
        bool(path)
        and path[-1] in STEP_NAMES
        and leaf.shape == ()
        and (leaf.kind == "number" or (leaf.dtype is not None and leaf.dtype.kind in "iu"))
    )


def _is_key(path: LeafPath, leaf: Leaf) -> bool:
    if leaf.kind == "key":
        return True
    raw = (
        leaf.kind == "array"
        and leaf.dtype is not None
        and leaf.dtype.name == "uint32"
        and leaf.shape[-1:] in ((2,), (4,))
    )
    return raw and any(KEY_NAME.search(p) for p in path[-2:])


class _Classifier:
    """One walk over the tree that hands each subtree to a role."""

    def __init__(self, table: LeafTable, tree: Tree, states: tuple[State, ...]) -> None:
        self.table = table
        self.tree = tree
        self.states = states
        self.found: dict[tuple[Role, LeafPath, str, int], list[LeafPath]] = {}
        self.assigned: set[LeafPath] = set()  # a leaf keeps the first role it is given
        self.params = {n: shapes_in(node_at(tree, s.params)) for n, s in enumerate(states)}
        self.modules = {n: {p[0] for p in ps if p} for n, ps in self.params.items()}
        # copies copy a collection, too (EMA of batch_stats)
        self.collections: dict[tuple[int, str], dict[LeafPath, tuple[int, ...]]] = {}

    def groups(self) -> tuple[Group, ...]:
        for n, state in enumerate(self.states):
            self._take("params", state.params, PARAMS, n)
            siblings = {state.variables, state.prefix, state.optimised} - {state.params}
            for parent in sorted(siblings):
                node = self._node(parent)
                for name, child in node.items():
                    path = (*parent, name)
                    if isinstance(child, dict) and self._is_collection(path, n):
                        self._take("collection", path, name, n)
                        self.collections[n, name] = shapes_in(self._node(path))
        self._walk(self.tree, ())
        return tuple(
            Group(role, prefix, collection, tuple(paths), state)
            for (role, prefix, collection, state), paths in self.found.items()
            if paths
        )

    def _node(self, path: LeafPath) -> Tree:
        return node_at(self.tree, path)

    def _taken(self, path: LeafPath) -> bool:
        return any(path == prefix for (_, prefix, _, _) in self.found)

    def _take(self, role: Role, prefix: LeafPath, collection: str, state: int) -> None:
        key = (role, prefix, collection, state)
        if key not in self.found:
            inside = [p for p in shapes_in(self._node(prefix)) if prefix + p not in self.assigned]
            self.assigned |= {prefix + p for p in inside}
            self.found[key] = inside

    def _leaf(self, role: Role, path: LeafPath, state: int) -> None:
        if path not in self.assigned:
            self.assigned.add(path)
            self.found.setdefault((role, (), "", state), []).append(path)

    def _is_collection(self, path: LeafPath, state: int) -> bool:
        name = path[-1]
        # the subtree that holds a state is not a collection of it
        if any(s.params[: len(path)] == path for s in self.states) or name in OPT_NAMES:
            return False
        if name in COLLECTION_NAMES:
            return True
        inside = shapes_in(self._node(path))
        copies = inside.items() <= self.params[state].items()
        mine = {p[0] for p in inside if p}
        arrays = any(self.table[path + p].kind == "array" for p in inside)
        deep = any(len(p) > 1 for p in inside)
        return arrays and deep and not copies and mine <= self.modules[state]

    def _near(self, path: LeafPath) -> list[int]:
        """States, the one that shares the longest prefix with the path first."""

        def shared(n: int) -> int:
            prefix = self.states[n].prefix
            return next((i for i, (a, b) in enumerate(zip(prefix, path, strict=False)) if a != b),
                        min(len(prefix), len(path)))  # fmt: skip

        return sorted(range(len(self.states)), key=shared, reverse=True)

    def _walk(self, node: Tree, prefix: LeafPath) -> None:
        for name, child in node.items():
            path = (*prefix, name)
            if self._taken(path):
                continue
            near = self._near(path)
            if not isinstance(child, dict):
                self._walk_leaf(path, child, near[0])
            elif any(s.params[: len(path)] == path for s in self.states):
                self._walk(child, path)
            elif name in OPT_NAMES or self._looks_like_optimizer(path, near[0]):
                self._take("opt_state", path, "", self._owner(path, near))
            elif (copied := self._copy_of(path, near)) is not None:
                self._take("copy", path, *copied)
            else:
                self._walk(child, path)

    def _walk_leaf(self, path: LeafPath, leaf: Leaf, state: int) -> None:
        if _is_key(path, leaf):
            self._leaf("rng", path, state)
        elif _is_step(path, leaf) and path[:-1] in self._homes(state):
            self._leaf("step", path, state)
        else:
            self._leaf("rest", path, state)

    def _homes(self, state: int) -> set[LeafPath]:
        found = self.states[state]
        return {found.prefix, found.variables, found.prefix[:-1]}

    def _looks_like_optimizer(self, path: LeafPath, state: int) -> bool:
        if path[-1] == "state" and is_flax_optim(self._node(path)):
            return True
        inside = shapes_in(self._node(path))
        return any(
            MOMENT_NAMES & set(p[:-1]) and p[i + 1 :] in self.params[state]
            for p in inside
            for i, part in enumerate(p)
            if part in MOMENT_NAMES
        ) and not any(COPY_NAME.search(p) for p in path[-1:])

    def _owner(self, path: LeafPath, near: list[int]) -> int:
        """The nearest state whose params names occur in an optimizer state."""
        inside = shapes_in(self._node(path))
        for n in near:
            names = self.params[n]
            if any(p[i:] in names for p in inside for i in range(len(p))):
                return n
        return near[0]

    def _copy_of(self, path: LeafPath, near: list[int]) -> tuple[str, int] | None:
        """The collection and state that a subtree copies, when all its leaves have a twin."""
        inside = shapes_in(self._node(path))
        if not any(self.table[path + p].kind == "array" for p in inside):
            return None
        for n in near:
            candidates: Mapping[str, dict[LeafPath, tuple[int, ...]]] = {
                PARAMS: self.params[n],
                **{c: v for (s, c), v in self.collections.items() if s == n},
            }
            for name, shapes in candidates.items():
                # a part of the params under its own names is a copy, too (masked averages)
                if inside.items() <= shapes.items() and 2 * len(inside) >= len(shapes):
                    return name, n
        return None
