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

__all__ = ["At", "Feed", "Optimised", "at_paths", "feeds", "model_items", "optimizer_groups"]

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
    by_item: dict[str, list[Slot]] = {}
    for slot in target.slots:
        by_item.setdefault(slot.item, []).append(slot)
    for item, slots in by_item.items():
        own = [s for s in slots if s.collection != "opt_state"]
        both = len(own) < len(slots) and all(s.path[:1] == ("model",) for s in own)
        if own:
            found[item] = ("model",) if both else ()
    return found


def feeds(
    table: LeafTable, roles: Roles, items: Mapping[str, SlotPath], at: Mapping[str, LeafPath]
) -> tuple[list[Feed], dict[str, Problem]]:
    """Choose the leaves for each item.

    Args:
        table: the source.
        roles: its roles.
        items: see :func:`model_items`.
        at: path by item, from the user.

    Returns:
        The feeds, and a problem by item for those that could not be decided.
    """
    found: list[Feed] = []
    problems: dict[str, Problem] = {}
    for item, prefix in items.items():
        if item in at:
            groups = _named(table, roles, at[item])
        else:
            groups = _guess(roles, item, alone=len(items) == 1)
        if groups:
            state = groups[0].state
            wrapper = roles.states[state].params[len(roles.states[state].optimised) :]
            found.append(Feed(item, prefix, groups, state, wrapper))
        else:
            problems[item] = _undecided(roles, item, at.get(item))
    return found, problems


def _undecided(roles: Roles, item: str, at: LeafPath | None) -> Problem:
    where = sorted({g.prefix for g in (*roles.of("params"), *roles.of("copy"))})
    first = format_path(where[0]) if where else "params"
    wanted = "none can be chosen" if at is None else f"nothing is at {format_path(at)}"
    return Problem(
        "ambiguous",
        f"item {item!r} needs params; the checkpoint has {len(where)} set(s), and {wanted}",
        candidates=tuple(f"at={{{item!r}: {format_path(p)!r}}}" for p in where),
        rule=f"# bridge.plan(..., at={{{item!r}: {first!r}}})   or   --at {item}={first}",
    )


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
    around = [g for g in roles.of("params") if path[: len(g.prefix)] == g.prefix]
    return _inside(table, roles, around[0], path) if len(around) == 1 else ()


def _inside(table: LeafTable, roles: Roles, params: Group, path: LeafPath) -> tuple[Group, ...]:
    """One of several models in one params tree, with its part of the other collections."""
    part = tuple(table.below(path))
    if not part:
        return ()
    sub = path[len(params.prefix) :]
    found = [Group("params", path, PARAMS, part, params.state)]
    for group in roles.of("collection", params.state):
        below = tuple(p[len(sub) :] for p in group.paths if p[: len(sub)] == sub)
        if below:
            name = group.collection
            found.append(Group("collection", group.prefix + sub, name, below, params.state))
    return tuple(found)


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
    """``ema`` is ``ema_params`` and ``params_ema``; ``critic`` is no ``target_critic_params``."""
    plain = {"params", "variables", "state", "model", "network", "net"}
    words = {*item.lower().split("_")} - plain
    return item == part or (bool(words) and words == {*part.lower().split("_")} - plain)


@dataclass(frozen=True, slots=True)
class Optimised:
    """An item with optimizer slots.

    Attributes:
        item: the item.
        feed: the feed of the model that it optimises; None when the target has no such model.
        group: the optimizer state that feeds it; None when it cannot be chosen.
        slots: its optimizer slots by path, ``step`` and ``opt_state/...``.
    """

    item: str
    feed: Feed | None
    group: Group | None
    slots: Mapping[SlotPath, Slot]


def optimizer_groups(
    target: Target, roles: Roles, found: list[Feed], at: Mapping[str, LeafPath]
) -> list[Optimised]:
    """For each item with optimizer slots: the model it optimises, and its source.

    Args:
        target: the target.
        roles: the roles of the source.
        found: the feeds of the models.
        at: path by item, from the user.
    """
    by_item: dict[str, dict[SlotPath, Slot]] = {}
    for slot in target.slots:
        if slot.collection == "opt_state":
            by_item.setdefault(slot.item, {})[slot.path] = slot
    models = model_items(target)
    result = []
    for item, slots in by_item.items():
        feed = _optimised(item, found)
        groups = roles.of("opt_state")
        if item in at and item not in models:
            groups = tuple(g for g in groups if at[item] in (g.prefix, g.prefix[:-1]))
        elif feed is not None:
            groups = tuple(g for g in groups if g.state == feed.state)
        elif models:  # some model could not be fed: its problem comes first
            groups = ()
        if len(groups) > 1:
            groups = tuple(g for g in groups if item in g.prefix) or groups
        result.append(Optimised(item, feed, groups[0] if len(groups) == 1 else None, slots))
    return result


def _optimised(item: str, found: list[Feed]) -> Feed | None:
    by_item = {f.item: f for f in found}
    for name in (item, item.removesuffix("_optimizer"), item.removesuffix("_opt")):
        if name in by_item:
            return by_item[name]
    if item in ("optimizer", "opt") and "model" in by_item:
        return by_item["model"]
    return found[0] if len(found) == 1 else None
