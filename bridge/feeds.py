"""Which part of the checkpoint feeds which item of the target.

One model and one set of params need no words. With several (actor and critic, a generator and a
discriminator, a model and its EMA copy), names decide where they are equal, and ``at`` decides
where they are not; anything else is a problem that lists the candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bridge._plan import Problem
from bridge.errors import BridgeError
from bridge.feeds_choice import (
    Choice,
    Wanted,
    choices,
    choose,
    fitting,
    from_copy,
    inside,
    whole,
)
from bridge.roles import PARAMS, Group, Roles
from bridge.target import Slot, SlotPath, Target
from bridge.words import name_words
from legacy import LeafPath, LeafTable, format_path, parse_path

__all__ = [
    "At",
    "Feed",
    "Optimised",
    "at_paths",
    "feeds",
    "model_items",
    "optimizer_groups",
    "wrapper_in",
]

NO_STATE = -1
"""The state of a feed that has no leaves, and of leaves that belong to none."""

At = str | LeafPath | Mapping[str, str | LeafPath] | None


@dataclass(frozen=True, slots=True)
class Feed:
    """The leaves that feed the model part of one item.

    Attributes:
        item: the item.
        prefix: where the model lies in the item (``('model',)`` in a ``ModelAndOptimizer``).
        groups: params first, then other collections.
        state: index of the state they are from; :data:`NO_STATE` for none.
        wrapper: what lay between the optimizer's fields and the params collection, as the paths
            of both say; see :func:`wrapper_in` for what an optimizer state says itself.
        note: what the user should know of the choice; empty where its name says it.
    """

    item: str
    prefix: SlotPath
    groups: tuple[Group, ...]
    state: int
    wrapper: LeafPath = field(default=())
    note: str = ""


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
    table: LeafTable, roles: Roles, target: Target, at: Mapping[str, LeafPath]
) -> tuple[list[Feed], dict[str, Problem]]:
    """Choose the leaves for each item.

    Args:
        table: the source.
        roles: its roles.
        target: what is to be fed.
        at: path by item, from the user.

    Returns:
        The feeds, and a problem by item for those that could not be decided.
    """
    items = model_items(target)
    every = choices(table, roles)
    chosen = {item: (_named(table, roles, at[item]), "") for item in items if item in at}
    taken = {groups[0].prefix for groups, _ in chosen.values() if groups}
    free = [c for c in every if c.prefix not in taken]
    wanted = [Wanted.of(item, target.slots) for item in items if item not in at]
    wanted = [want for want in wanted if want.shapes or len(items) == 1]
    if len(wanted) == 1 and not at and (only := _only(every, wanted[0])):
        chosen[wanted[0].item] = (only.groups, "")
    else:
        chosen |= {i: (c.groups, note) for i, (c, note) in choose(wanted, free).items()}
    found: list[Feed] = []
    problems: dict[str, Problem] = {}
    for item, prefix in items.items():
        groups, note = chosen.get(item, ((), ""))
        if groups:
            state = groups[0].state
            found.append(Feed(item, prefix, groups, state, _wrapper(roles, groups[0]), note))
            continue
        wants = Wanted.of(item, target.slots)
        if item not in at and not wants.shapes:
            # metrics, random streams: no checkpoint feeds them, their slots speak for themselves
            found.append(Feed(item, prefix, (), NO_STATE))
        else:
            problems[item] = _undecided(every, wants, at.get(item))
    return found, problems


def _only(every: list[Choice], want: Wanted) -> Choice | None:
    """One item and one set of params need no words."""
    states = [c for c in every if c.kind == "state"]
    if len(states) != 1:
        return None
    if fitting(want, states[0]):
        return states[0]
    parts = [c for c in every if c.kind == "part" and fitting(want, c)]
    named = [c for c in parts if want.words and want.words == c.words]
    return named[0] if len(named) == 1 else states[0]


def _wrapper(roles: Roles, params: Group) -> LeafPath:
    """What lies between the fields of the optimizer and the params."""
    if params.state < 0:
        return ()
    state = roles.states[params.state]
    below = params.prefix[: len(state.optimised)] == state.optimised
    return (params.prefix if below else state.params)[len(state.optimised) :]


def _undecided(every: list[Choice], want: Wanted, at: LeafPath | None) -> Problem:
    whole_sets = [c for c in every if c.kind != "part"]
    fit = {c.prefix for c in whole_sets if fitting(want, c)}
    fit = fit or {c.prefix for c in every if fitting(want, c)}
    shown = sorted({c.prefix for c in whole_sets} | fit, key=lambda p: (p not in fit, p))
    first = format_path(shown[0]) if shown else "params"
    if at is not None:
        wanted = f"nothing is at {format_path(at)}"
    elif len(fit) > 1:
        wanted = f"{len(fit)} have its names and shapes, so none can be chosen"
    else:
        wanted = "none can be chosen"
    item = want.item
    return Problem(
        "ambiguous",
        f"item {item!r} needs params; the checkpoint has {len(whole_sets)} set(s), and {wanted}",
        candidates=tuple(
            f"at={{{item!r}: {format_path(p)!r}}}"
            + (" (fits)" if p in fit and len(fit) > 1 else "")
            for p in shown
        ),
        rule=f"# bridge.plan(..., at={{{item!r}: {first!r}}})   or   --at {item}={first}",
    )


def _named(table: LeafTable, roles: Roles, path: LeafPath) -> tuple[Group, ...]:
    for group in roles.of("params"):
        state = roles.states[group.state]
        if path in (group.prefix, state.prefix, state.variables, state.optimised):
            return whole(roles, group)
    for copy in roles.of("copy"):
        if copy.collection == PARAMS and path in (copy.prefix, copy.prefix[:-1]):
            return from_copy(roles, copy)
    below = [g for g in roles.of("params") if g.prefix[: len(path)] == path]
    if len(below) == 1:
        return whole(roles, below[0])
    around = [g for g in roles.of("params") if path[: len(g.prefix)] == g.prefix]
    return inside(table, roles, around[0], path) if len(around) == 1 else ()


@dataclass(frozen=True, slots=True)
class Optimised:
    """An item with optimizer slots.

    Attributes:
        item: the item.
        feed: the feed of the model that it optimises; None when the target has no such model.
        group: the optimizer state that feeds it; None when it cannot be chosen.
        slots: its optimizer slots by path, ``step`` and ``opt_state/...``.
        wrapper: what lies between the fields of its source and the params.
    """

    item: str
    feed: Feed | None
    group: Group | None
    slots: Mapping[SlotPath, Slot]
    wrapper: LeafPath = ()


def wrapper_in(group: Group, params: Group) -> LeafPath:
    """What an optimizer state has between its fields and the paths of the params.

    Args:
        group: the optimizer state.
        params: the params that it follows.

    Returns:
        The end of the path to the params that is seen in each field: ``('params',)`` when the
        optimizer was made for ``{'params': ...}``.
    """
    names = frozenset(params.paths)
    seen = []
    for path in group.paths:
        start = next((i for i in range(len(path)) if path[i:] in names), 0)
        n = 0
        while n < min(start, len(params.prefix)) and path[start - n - 1] == params.prefix[-n - 1]:
            n += 1
        if start:
            seen.append(n)
    # a state over several models repeats the name of this one before each of its arrays
    named = next((n for n, part in enumerate(reversed(params.prefix), 1) if part != PARAMS), 0)
    own = [n for n in seen if n >= named > 0]
    # in every field: that of lbfgs which is named `params` is none
    shared = min(own or seen, default=0)
    return params.prefix[len(params.prefix) - shared :]


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
        feed = _optimised(item, found, models)
        groups = roles.of("opt_state")
        if item in at and item not in models:
            groups = tuple(g for g in groups if at[item] in (g.prefix, g.prefix[:-1]))
        elif feed is not None:
            groups = tuple(g for g in groups if g.state == feed.state != NO_STATE)
        elif models:  # some model could not be fed: its problem comes first
            groups = ()
        if len(groups) > 1:
            groups = tuple(g for g in groups if item in g.prefix) or groups
        if len(groups) > 1:
            words = name_words(item)
            groups = tuple(g for g in groups if name_words(g.prefix) == words) or groups
        if len(groups) == 1 and feed is not None and feed.groups:
            groups = _part_of(groups[0], feed, roles)
        group = groups[0] if len(groups) == 1 else None
        wrapper = wrapper_in(group, feed.groups[0]) if group and feed and feed.groups else ()
        result.append(Optimised(item, feed, group, slots, wrapper))
    return result


def _part_of(group: Group, feed: Feed, roles: Roles) -> tuple[Group]:
    """Of one state of several optimizers, that of the model which is a part of the params."""
    params = feed.groups[0]
    home = roles.states[feed.state].params if feed.state >= 0 else params.prefix
    sub = params.prefix[len(home) :][:1] if params.prefix[: len(home)] == home else ()
    below = tuple(p[1:] for p in group.paths if p[:1] == sub)
    joint = bool(sub) and sub[0] in wrapper_in(group, params)  # one state over all parts
    part = replace(group, prefix=group.prefix + sub, paths=below)
    return (part if sub and below and not joint else group,)


def _optimised(item: str, found: list[Feed], models: Mapping[str, SlotPath]) -> Feed | None:
    by_item = {f.item: f for f in found}
    for name in (item, item.removesuffix("_optimizer"), item.removesuffix("_opt")):
        if name in by_item:
            return by_item[name]
    if item in ("optimizer", "opt") and "model" in by_item:
        return by_item["model"]
    named = [f for f in found if name_words(f.item) == name_words(item)]
    if len(named) == 1:
        return named[0]
    return found[0] if len(found) == len(models) == 1 else None
