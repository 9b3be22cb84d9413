"""Turns whatever is left at the end into problems, or into what nobody owes us."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from bridge.carry import carry
from bridge.feeds import Feed, Optimised
from bridge.match import Candidate, path_of, ref_of
from bridge.moments import moment_order
from bridge.roles import Group
from bridge.rule_text import init_rule, quoted
from bridge.suggest import Known, suggest
from bridge.target import Slot
from bridge.work import Work
from legacy import LeafPath, format_path

__all__ = ["settle"]

_PASSING = frozenset({"intermediates", "cache", "perturbations", "losses"})
"""Collections that Linen fills in each call; an ``init`` may have saved some."""
_SHOWN = 8  # fields of an optimizer in one line
_DEEP = 3  # as deep as the fields of an optimizer state are
_COUNTS = frozenset({"count", "step", "mini_step", "gradient_step", "notfinite_count", "t"})


def settle(work: Work, optimizers: Sequence[Optimised]) -> None:
    """Give every open leaf and slot a problem; initialise ephemeral slots.

    Args:
        work: gets the problems.
        optimizers: the optimizers of the target.
    """
    several = len({f.item for f in work.feeds}) > 1
    for feed in work.feeds:
        _passing(work, feed)
        for group in feed.groups:
            plain = [p for p in group.full() if work.table[p].kind in ("str", "bytes")]
            carry(work.draft, plain, "keep")
        _model(work, feed, several=several)
    _unfed(work, optimizers)
    _optimizers(work, optimizers)
    _sources(work)
    _slots(work)


def _model(work: Work, feed: Feed, *, several: bool) -> None:
    draft = work.draft
    # a leaf that feeds another item already is not owed to this one
    sources = [c for c in work.open_sources(feed) if draft.open_source(path_of(c))]
    slots = [c for c in work.open_slots(feed) if not _ephemeral(work, c)]
    slots = [c for c in slots if not _constant(work, c, sources)]
    if not sources and not slots:
        return
    known = Known(
        leaves=[(g.collection, *p) for g in feed.groups for p in g.paths],
        slots=[
            s.path[len(feed.prefix) :]
            for s in draft.slots.values()
            if s.item == feed.item and s.collection != "opt_state"
        ],
        pairs=_pairs(work, feed),
    )
    for problem in suggest(sources, slots, known, feed.item if several else None):
        draft.refuse(
            problem.kind,
            problem.message,
            problem.sources,
            problem.slots,
            problem.rule,
            problem.candidates,
        )


def _pairs(work: Work, feed: Feed) -> dict[LeafPath, LeafPath]:
    """Variable path to slot path, for what is mapped one to one."""
    names = {g.prefix + p: (g.collection, *p) for g in feed.groups for p in g.paths}
    n = len(feed.prefix)
    return {
        names[s.sources[0]]: s.slots[0].path[n:]
        for s in work.draft.steps
        if len(s.sources) == len(s.slots) == 1
        and s.slots[0].item == feed.item
        and s.sources[0] in names
    }


def _ephemeral(work: Work, candidate: Candidate) -> bool:
    """Initialise a slot that no checkpoint owes us; say whether it was one."""
    slot = work.draft.slots[ref_of(candidate)]
    if slot.ephemeral:
        how = f"rng:{work.seed}" if slot.key_impl else "zeros"
        work.draft.initialise(slot.ref, "ephemeral", how)
    return slot.ephemeral


def _passing(work: Work, feed: Feed) -> None:
    """Leave behind what is made anew in each forward pass, where the model has no place for it."""
    draft = work.draft
    wanted = {c.collection for c in work.open_slots(feed)}
    for group in feed.groups:
        if group.collection in _PASSING - wanted:
            for path in group.full():
                if draft.open_source(path):
                    draft.ignore(path, "ephemeral")


def _constant(work: Work, candidate: Candidate, sources: Sequence[Candidate]) -> bool:
    """Leave a constant of the model as it is, when no leaf could be meant for it; say whether."""
    slot = work.draft.slots[ref_of(candidate)]
    size = prod(slot.shape)
    if slot.constant is None or any(prod(c.shape) == size for c in sources):
        return False
    work.draft.initialise(slot.ref, "constant", "constant")
    return True


def _unfed(work: Work, optimizers: Sequence[Optimised]) -> None:
    """Items for which no params could be chosen: that problem comes before all it leads to."""
    draft = work.draft
    if not work.undecided:
        return
    waiting = {*work.undecided, *(one.item for one in optimizers if one.feed is None)}
    refs = [r for r in draft.slots if r.item in waiting and draft.open_slot(r)]
    groups = [g for r in ("params", "collection", "opt_state") for g in work.roles.of(r)]
    sources = [
        p for g in groups if work.feed_of(g.state) is None for p in g.full() if draft.open_source(p)
    ]
    for n, problem in enumerate(work.undecided.values()):
        draft.refuse(
            problem.kind,
            problem.message,
            () if n else sources,
            () if n else refs,
            problem.rule,
            problem.candidates,
        )


def _optimizers(work: Work, optimizers: Sequence[Optimised]) -> None:
    """One problem for each optimizer, with both trees: what is left of a chain is one thing."""
    draft = work.draft
    for one in optimizers:
        groups: tuple[Group, ...]
        groups = () if one.group is None else (one.group,)
        if not groups and one.feed is not None:
            groups = work.roles.of("opt_state", one.feed.state)
        left = [p for g in groups for p in g.full() if draft.open_source(p)]
        slots = [s for s in one.slots.values() if draft.open_slot(s.ref)]
        if left or slots:
            _optimizer(work, one, groups, left, slots)
    for group in work.roles.of("opt_state"):
        left = [p for p in group.full() if draft.open_source(p)]
        if left:
            draft.refuse(
                "unmatched-source",
                f"the optimizer state {format_path(group.prefix)} ({len(left)} leaves) belongs to "
                "no optimizer of the target",
                left,
                rule=_ignore_all(group.prefix),
            )


def _optimizer(
    work: Work,
    one: Optimised,
    groups: Sequence[Group],
    left: Sequence[LeafPath],
    slots: Sequence[Slot],
) -> None:
    n = len(groups[0].prefix) if groups else 0
    named = ", ".join(format_path(g.prefix) for g in groups)
    if not groups:
        message = f"no optimizer state of the checkpoint can be chosen for item {one.item!r}"
    elif not left and all(s.path == ("step",) for s in slots):
        message = f"the checkpoint has no step for {one.item}:step"
    else:
        message = (
            f"{len(left)} leaves of the optimizer state {named} have no slot, {len(slots)} slots "
            f"of {one.item!r} no source: the optimizers are chained differently"
        )
    if one.feed is None:
        message += "; give the model with its optimizer, model=(model, optimizer), for better names"
    if left and len(left) == sum(len(g.paths) for g in groups):
        rules = [_ignore_all(g.prefix) for g in groups]
    else:
        rules = [f"[[ignore]]\nsource = {quoted(p)}" for p in left]
    rules += _fresh(slots)
    work.draft.refuse(
        "unmatched-source" if left else "unfilled-slot",
        message,
        left,
        [s.ref for s in slots],
        "\n\n".join(rules),
        (
            "the checkpoint has: " + (_fields([p[n:] for p in left]) or "nothing"),
            "the optimizer has: " + (_fields([s.path for s in slots]) or "nothing"),
        ),
    )


def _fresh(slots: Sequence[Slot]) -> list[str]:
    """Rules for a new optimizer state: what starts at zero, and what the user must say."""
    rules = []
    for slot in slots:
        zero = moment_order(slot.path[:-1]) in (1, 2) or any(
            moment_order(slot.path[:n]) in (1, 2) for n in range(1, len(slot.path))
        )
        if zero or slot.path[-1] in _COUNTS:
            rules.append(init_rule(slot.ref))
        else:
            rules.append(init_rule(slot.ref, '"zeros"  # or what the optimizer starts with'))
    return rules


def _ignore_all(prefix: LeafPath) -> str:
    return f"[[ignore]]\nsource = {quoted(prefix)[:-1]}/**{quoted(prefix)[-1]}"


def _sources(work: Work) -> None:
    """Leaves of models that the target does not ask for, one problem for each part."""
    draft = work.draft
    for group in work.roles.groups:
        left = [p for p in group.full() if draft.open_source(p)]
        if not left:
            continue
        if len(left) == len(group.paths) > 1 and group.prefix:
            draft.refuse(
                "unmatched-source",
                f"{format_path(group.prefix)} ({group.collection or group.role}, {len(left)} "
                "leaves) feeds no item of the target",
                left,
                rule=_ignore_all(group.prefix),
            )
            continue
        for path in left:
            draft.refuse(
                "unmatched-source",
                f"{format_path(path)} has no place in the target",
                (path,),
                rule=f"[[ignore]]\nsource = {quoted(path)}",
            )


def _slots(work: Work) -> None:
    for ref, slot in work.draft.slots.items():
        if work.draft.open_slot(ref):
            work.draft.refuse(
                "unfilled-slot",
                f"slot {ref} {slot.dtype}{list(slot.shape)} has no source",
                (),
                (ref,),
                init_rule(ref),
            )


def _fields(paths: Sequence[tuple[str, ...]]) -> str:
    """The fields of an optimizer state, without the parameter paths below them."""
    heads = list(dict.fromkeys("/".join(p[:_DEEP]) + "/…" * (len(p) > _DEEP) for p in paths))
    rest = len(heads) - _SHOWN
    return ", ".join(heads[:_SHOWN]) + (f", and {rest} more" if rest > 0 else "")
