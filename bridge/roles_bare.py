"""Roles of a tree in which nothing is called params: a params tree itself, or an NNX state."""

from __future__ import annotations

from collections.abc import Mapping

from bridge.roles_groups import Group, Role, is_key, is_step
from bridge.roles_tree import PARAMS
from legacy import Leaf, LeafPath, LeafTable

__all__ = ["bare_groups"]


def bare_groups(table: LeafTable) -> tuple[Group, ...]:
    """No params anywhere: the arrays themselves are the params, but for what is plainly not."""
    found: dict[tuple[Role, LeafPath, str], list[LeafPath]] = {}
    modules = {p[: -_tail(p)]: set[str]() for p in table if p}
    for p in table:
        if p:
            modules[p[: -_tail(p)]].add(p[-_tail(p)])
    for path, leaf in table.items():
        role, prefix, collection = _bare_role(path, leaf, modules)
        found.setdefault((role, prefix, collection), []).append(path[len(prefix) :])
    return tuple(
        Group(role, prefix, collection, tuple(paths), -1 if role in ("rest", "rng") else 0)
        for (role, prefix, collection), paths in found.items()
    )


def _tail(path: LeafPath) -> int:
    """How many components say which leaf of a module it is; two where a Variable adds its own."""
    return 2 if len(path) > 1 and path[-1] in ("value", "raw_value") else 1


def _bare_role(
    path: LeafPath, leaf: Leaf, modules: Mapping[LeafPath, set[str]]
) -> tuple[Role, LeafPath, str]:
    tail = _tail(path) if path else 1
    own = path[: len(path) - tail + 1]
    siblings = modules.get(path[:-tail], set())
    optimizer = next((n for n, part in enumerate(path[:-1], 1) if part == "opt_state"), 0)
    if optimizer:
        return "opt_state", path[:optimizer], ""
    if is_key(own, leaf) or (siblings == {"key", "count"} and leaf.kind != "none"):
        return "rng", (), ""
    if is_step(own, leaf) and len(own) <= 2:  # noqa: PLR2004 - of the tree, or of an optimizer in it
        return "step", (), ""
    if leaf.kind != "array" or path[:1] in _NO_MODEL:
        return "rest", (), ""
    if siblings >= {"mean", "var"} and own[-1:] in (("mean",), ("var",)):
        return "collection", (), "batch_stats"
    return "params", (), PARAMS


_NO_MODEL = frozenset((name,) for name in ("metrics", "config", "hparams", "dynamic_scale"))
"""What stands beside a model in a bundle and is never one."""
