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

from collections.abc import Collection, Mapping

from bridge.roles_bare import bare_groups
from bridge.roles_groups import Group, Role, Roles, is_key, is_step
from bridge.roles_tree import (
    COLLECTION_NAMES,
    MOMENT_NAMES,
    PARAMS,
    State,
    Tree,
    is_flax_optim,
    mirrored,
    node_at,
    primary,
    shapes_in,
    states_in,
    tree_of,
)
from bridge.words import bundled_name, copy_words, is_optimizer_name, name_words
from legacy import Leaf, LeafPath, LeafTable

__all__ = ["PARAMS", "Group", "Role", "Roles", "State", "find_roles"]


def find_roles(table: LeafTable, collections: Collection[str] = (), *, nnx: bool = False) -> Roles:
    """Give every leaf of a table its role, from names and shapes; nothing is read.

    Args:
        table: the leaves of a checkpoint.
        collections: names that are collections wherever they stand beside params, because the
            target has Variables of them.
        nnx: the table is an NNX state, in which ``params`` is a name as any other.

    Returns:
        The groups; together they hold each leaf exactly once.

    >>> find_roles(LeafTable([Leaf(("step",), "number")])).groups[0].role
    'step'
    """
    tree = tree_of(table)
    states, copies = primary(states_in(tree, ()), tree)
    if not states:
        states, copies = primary(mirrored(tree), tree)
    if nnx or not states:
        return Roles(bare_groups(table), (State((), (), (), ()),))
    known = COLLECTION_NAMES | ({*collections} - {PARAMS, "opt_state", "rngs", ""})
    homes = frozenset(s.prefix for s in copies)
    return Roles(_Classifier(table, tree, tuple(states), homes, known).groups(), tuple(states))


class _Classifier:
    """One walk over the tree that hands each subtree to a role."""

    def __init__(
        self,
        table: LeafTable,
        tree: Tree,
        states: tuple[State, ...],
        copies: frozenset[LeafPath],
        known: frozenset[str],
    ) -> None:
        self.table = table
        self.tree = tree
        self.states = states
        self.copies = copies  # prefixes of states that copy another one
        self.known = known  # names of collections
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
                        self._collection(path, name, n)
            if state.params == state.prefix:
                self._bundled(n)
        self._walk(self.tree, ())
        return tuple(
            Group(role, prefix, collection, tuple(paths), state)
            for (role, prefix, collection, state), paths in self.found.items()
            if paths
        )

    def _bundled(self, state: int) -> None:
        """Collections that a bundle names as it names the params: ``actor_batch_stats``."""
        here = self.states[state].prefix
        label = bundled_name(here[-1]) if here else ""
        for name, child in self._node(here[:-1]).items():
            kinds = (c for c in self.known if name in (f"{c}_{label}", f"{label}_{c}"))
            kind = next(kinds, None)
            if isinstance(child, dict) and kind is not None:
                self._collection((*here[:-1], name), kind, state)

    def _collection(self, path: LeafPath, name: str, state: int) -> None:
        self._take("collection", path, name, state)
        self.collections[state, name] = shapes_in(self._node(path))

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
        if any(s.params[: len(path)] == path for s in self.states) or is_optimizer_name(name):
            return False
        if name in self.known:
            return True
        inside = shapes_in(self._node(path))
        copies = inside.items() <= self.params[state].items()
        mine = {p[0] for p in inside if p}
        arrays = any(self.table[path + p].kind == "array" for p in inside)
        deep = any(len(p) > 1 for p in inside)
        return arrays and deep and not copies and mine <= self.modules[state]

    def _near(self, path: LeafPath) -> list[int]:
        """States, the one that shares the longest prefix with the path first."""
        return sorted(
            range(len(self.states)),
            key=lambda n: _shared(self.states[n].prefix, path),
            reverse=True,
        )

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
            elif is_optimizer_name(name) or self._looks_like_optimizer(path, near):
                self._optimizer(path, near)
            elif (copied := self._copy_of(path, near)) is not None:
                self._take("copy", path, *copied)
            else:
                self._walk(child, path)

    def _optimizer(self, path: LeafPath, near: list[int]) -> None:
        """The state of one optimizer, or of several by the names of their models."""
        if any(path[: len(home)] == home for home in self.copies if home):
            # a copy that was saved with an optimizer of its own, which nothing else follows
            self._take("rest", path, "", -1)
            return
        node = self._node(path)
        named = {s.words[-1:] for s in self.states if s.words}
        if len(self.states) > 1 and any(
            isinstance(child, dict) and not name.isdigit() and name_words(name) in named
            for name, child in node.items()
        ):
            self._walk_optimizers(path, near)
        else:
            self._take("opt_state", path, "", self._owner(path, near))

    def _walk_optimizers(self, prefix: LeafPath, near: list[int]) -> None:
        for name, child in self._node(prefix).items():
            path = (*prefix, name)
            if isinstance(child, dict):
                self._take("opt_state", path, "", self._owner(path, near))
            else:
                self._leaf("opt_state", path, near[0])

    def _walk_leaf(self, path: LeafPath, leaf: Leaf, state: int) -> None:
        if is_key(path, leaf):
            self._leaf("rng", path, state)
        elif is_step(path, leaf) and path[:-1] in self._homes(state):
            self._leaf("step", path, state)
        else:
            self._leaf("rest", path, state)

    def _homes(self, state: int) -> set[LeafPath]:
        found = self.states[state]
        return {found.prefix, found.variables, found.prefix[:-1]}

    def _looks_like_optimizer(self, path: LeafPath, near: list[int]) -> bool:
        if path[-1] == "state" and is_flax_optim(self._node(path)):
            return True
        if copy_words(name_words(path[-1])):
            return False
        inside = shapes_in(self._node(path))
        ends = {p[i + 1 :] for p in inside for i, part in enumerate(p[:-1]) if part in MOMENT_NAMES}
        return any(not ends.isdisjoint(self.params[n]) for n in near)

    def _owner(self, path: LeafPath, near: list[int]) -> int:
        """The state whose parameters an optimizer state follows; -1 when that cannot be told."""
        words = name_words(path)
        named = [n for n in near if words and self.states[n].words == words]
        homes = [n for n in near if path[:-1] in (self.states[n].prefix, self.states[n].variables)]
        for chosen in (named, homes):
            if len(chosen) == 1:
                return chosen[0]
        inside = shapes_in(self._node(path))
        mirrored = {n: self._mirrored(inside, n) for n in near}
        most = max(mirrored.values())
        best = [n for n in near if mirrored[n] == most]
        shared = {n: _shared(self.states[n].prefix, path) for n in best}
        nearest = [n for n in best if shared[n] == max(shared.values())]
        return nearest[0] if len(nearest) == 1 else -1

    def _mirrored(self, inside: Mapping[LeafPath, tuple[int, ...]], state: int) -> int:
        """How many arrays of an optimizer have the name and the shape of a parameter."""
        params = self.params[state]
        return sum(
            any(params.get(p[i:]) == shape for i in range(1, len(p))) for p, shape in inside.items()
        )

    def _copy_of(self, path: LeafPath, near: list[int]) -> tuple[str, int] | None:
        """The collection and state that a subtree copies, when all its leaves have a twin.

        The state is -1 when several would do and no name says which.
        """
        inside = shapes_in(self._node(path))
        if not any(self.table[path + p].kind == "array" for p in inside):
            return None
        found: list[tuple[str, int]] = []
        for n in near:
            candidates: Mapping[str, dict[LeafPath, tuple[int, ...]]] = {
                PARAMS: self.params[n],
                **{c: v for (s, c), v in self.collections.items() if s == n},
            }
            for name, shapes in candidates.items():
                # a part of the params under its own names is a copy, too (masked averages)
                if inside.items() <= shapes.items() and 2 * len(inside) >= len(shapes):
                    found.append((name, n))
                    break
        words = set(name_words(path))
        named = [f for f in found if set(self.states[f[1]].words) <= words and words]
        most = max((len(self.states[n].words) for _, n in named), default=0)
        named = [f for f in named if len(self.states[f[1]].words) == most]
        best = named or found
        shared = [_shared(self.states[n].prefix, path) for _, n in best]
        best = [f for f, s in zip(best, shared, strict=True) if s == max(shared)]
        if len(best) <= 1:
            return best[0] if best else None
        return best[0][0], -1


def _shared(a: LeafPath, b: LeafPath) -> int:
    """How many components two paths have in common at their start."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
