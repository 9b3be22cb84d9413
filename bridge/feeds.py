"""Which part of the checkpoint feeds which item of the target.

One model and one set of params need no words. With several (actor and critic, a generator and a
discriminator, a model and its EMA copy), names decide where they are equal, and ``at`` decides
where they are not; anything else is a problem that lists the candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge._plan import Problem
from bridge.errors import BridgeError
from bridge.roles import PARAMS, Group, Roles
from bridge.target import Slot, SlotPath, Target
from legacy import LeafPath, LeafTable, format_path, parse_path

__all__ = ["At", "Feed", "at_paths", "feeds", "model_items", "optimizer_groups"]

At = str | LeafPath | Mapping[str, str | LeafPath] | None


@dataclass(frozen=True, slots=True)
class Feed:
    """The leaves that feed the model part of one item.

    Attributes:
        item: the item.
        prefix: where the model lies in the item (``('model',)`` in a ``ModelAndOptimizer``).
        groups: params first, then other collections.
        state: index of the state they are from.
        wrapper: what lay between the optimizer's fields and the params collection.
    """

    item: str
    prefix: SlotPath
    groups: tuple[Group, ...]
    state: int
    wrapper: LeafPath = field(default=())


def at_paths(at: At, items: tuple[str, ...]) -> dict[str, LeafPath]:
    """Bring ``at`` into one form: item to path.

    Raises:
        BridgeError: a path for an item that the target does not have.

    >>> at_paths("ema_params", ("model",))
    {'model': ('ema_params',)}
    """
    if at is None:
        return {}
    given = at if isinstance(at, Mapping) else {items[0]: at} if items else {}
    unknown = sorted(set(given) - set(items))
    if unknown:
        raise BridgeError(
            f"at= names item(s) {', '.join(unknown)}; the target has {', '.join(items)}."
        )
    return {i: parse_path(p) if isinstance(p, str) else tuple(p) for i, p in given.items()}


def model_items(target: Target) -> dict[str, SlotPath]:
    """Items that hold model variables, with where the model lies in them.

    >>> model_items(Target((Slot("m", ("k",), ("k", "value"), "Param", "params", (), "float32"),)))
    {'m': ()}
    """
    found: dict[str, SlotPath] = {}
    for item in target.items:
        slots = [s for s in target.slots if s.item == item]
        own = [s for s in slots if s.collection != "opt_state"]
        both = len(own) < len(slots) and all(s.path[:1] == ("model",) for s in own)
        if own:
            found[item] = ("model",) if both else ()
    return found


def feeds(
    table: LeafTable, roles: Roles, items: Mapping[str, SlotPath], at: Mapping[str, LeafPath]
) -> tuple[list[Feed], list[Problem]]:
    """Choose the leaves for each item.

    Args:
        table: the source.
        roles: its roles.
        items: see :func:`model_items`.
        at: path by item, from the user.

    Returns:
        The feeds, and a problem for each item that could not be decided.
    """
    found: list[Feed] = []
    problems: list[Problem] = []
    for item, prefix in items.items():
        if item in at:
            groups = _named(table, roles, at[item])
        else:
            groups = _guess(roles, item, alone=len(items) == 1)
        if groups:
            state = groups[0].state
            wrapper = roles.states[state].params[len(roles.states[state].optimised) :]
            found.append(Feed(item, prefix, groups, state, wrapper))
            continue
        where = sorted({g.prefix for r in ("params", "copy") for g in roles.of(r)})  # type: ignore[arg-type]
        first = format_path(where[0]) if where else "params"
        wanted = f"nothing is at {format_path(at[item])}" if item in at else "none can be chosen"
        problems.append(
            Problem(
                "ambiguous",
                f"item {item!r} needs params; the checkpoint has {len(where)} set(s), and {wanted}",
                candidates=tuple(f"at={{{item!r}: {format_path(p)!r}}}" for p in where),
                rule=f"# bridge.plan(..., at={{{item!r}: {first!r}}})   "
                f"or   --at {item}={first}",
            )
        )
    return found, problems


def _with_collections(roles: Roles, params: Group) -> tuple[Group, ...]:
    return (params, *(g for g in roles.of("collection", params.state)))


def _from_copy(roles: Roles, copy: Group) -> tuple[Group, ...]:
    """A copy of the params as a feed; collections copied beside it, else the state's own."""
    params = Group("params", copy.prefix, PARAMS, copy.paths, copy.state)
    beside = {
        g.collection: Group("collection", g.prefix, g.collection, g.paths, g.state)
        for g in roles.of("copy", copy.state)
        if g.collection != PARAMS and g.prefix[:-1] == copy.prefix[:-1]
    }
    own = [g for g in roles.of("collection", copy.state) if g.collection not in beside]
    return (params, *beside.values(), *own)


def _named(table: LeafTable, roles: Roles, path: LeafPath) -> tuple[Group, ...]:
    for group in roles.of("params"):
        state = roles.states[group.state]
        if path in (group.prefix, state.prefix, state.variables, state.optimised):
            return _with_collections(roles, group)
    for copy in roles.of("copy"):
        if copy.collection == PARAMS and path in (copy.prefix, copy.prefix[:-1]):
            return _from_copy(roles, copy)
    inside = [g for g in roles.of("params") if g.prefix[: len(path)] == path]
    if len(inside) == 1:
        return _with_collections(roles, inside[0])
    bare = tuple(p for p in table.below(path))
    whole = roles.of("params")
    if bare and len(whole) == 1 and not whole[0].prefix:  # several models in one bare tree
        return (Group("params", path, PARAMS, bare, 0),)
    return ()


def _guess(roles: Roles, item: str, *, alone: bool) -> tuple[Group, ...]:
    params = roles.of("params")
    if alone and len(params) == 1:
        return _with_collections(roles, params[0])
    named = [g for g in params if item in roles.states[g.state].prefix]
    if len(named) == 1:
        return _with_collections(roles, named[0])
    copies = [
        g
        for g in roles.of("copy")
        if g.collection == PARAMS and any(_alike(item, p) for p in g.prefix[-2:])
    ]
    if len(copies) == 1 and not named:
        return _from_copy(roles, copies[0])
    if item == "model" and len(params) == 1:
        return _with_collections(roles, params[0])
    bare = [g for g in params if not g.prefix and any(p[:1] == (item,) for p in g.paths)]
    if len(bare) == 1:
        below = tuple(p[1:] for p in bare[0].paths if p[:1] == (item,))
        return (Group("params", (item,), PARAMS, below, bare[0].state),)
    return ()


def _alike(item: str, part: str) -> bool:
    """``ema`` is ``ema_params`` and ``params_ema``, and not ``schema``."""
    return item == part or item in part.split("_") or part in item.split("_")


def optimizer_groups(
    target: Target, roles: Roles, found: list[Feed], at: Mapping[str, LeafPath]
) -> dict[str, tuple[Feed, Group | None, dict[SlotPath, Slot]]]:
    """For each item with optimizer slots: the model feed it optimises, and its source.

    Returns:
        Item to (feed, group of the optimizer state or None, slot by path in the item).
    """
    result: dict[str, tuple[Feed, Group | None, dict[SlotPath, Slot]]] = {}
    for item in target.items:
        slots = {s.path: s for s in target.slots if s.item == item and s.collection == "opt_state"}
        if not slots:
            continue
        feed = _optimised(item, found)
        if feed is None:
            continue
        groups = [
            g
            for g in roles.of("opt_state")
            if (g.prefix == at[item] if item in at else g.state == feed.state)
        ]
        result[item] = (feed, groups[0] if len(groups) == 1 else None, slots)
    return result


def _optimised(item: str, found: list[Feed]) -> Feed | None:
    by_item = {f.item: f for f in found}
    for name in (item, item.removesuffix("_optimizer"), item.removesuffix("_opt"), "model"):
        if name in by_item:
            return by_item[name]
    return found[0] if len(found) == 1 else None
