"""What follows the params: optimizer states, the step, copies such as EMA parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bridge.carry import NOTHING, carry, carry_copy
from bridge.feeds import Feed, Optimised, optimizer_groups, wrapper_in
from bridge.flax_optim import step_paths
from bridge.moments import Mapped
from bridge.optimizer import align
from bridge.optimizer_alone import pair_parameters
from bridge.optimizer_carry import carry_optimizer, step_cast, step_slot
from bridge.roles import PARAMS, Group
from bridge.target import SlotRef
from bridge.work import Work, mapped_of
from legacy import LeafPath, format_path

__all__ = ["follow_copies", "follow_optimizers"]


def follow_optimizers(work: Work) -> list[Optimised]:
    """Map every optimizer state of the checkpoint.

    Where the target has the optimizer, its slots are fed; where it has none, the state is laid
    out as ``nnx.Optimizer`` would.

    Args:
        work: gets the steps and problems.

    Returns:
        The optimizers of the target, with what was to feed them.
    """
    found = []
    if work.target is not None:
        found = optimizer_groups(work.target, work.roles, work.feeds, work.at)
    for n, one in enumerate(found):
        _align(work, one)
        _share(work, one, found[:n])
    done = {one.group.prefix for one in found if one.group is not None}
    for group in work.roles.of("opt_state"):
        feed = work.feed_of(group.state)
        if group.prefix not in done and feed is not None:
            _structural(work, feed, group)
        elif feed is None and work.target is None:
            # a state without the parameters that it belongs to: kept as it is
            carry(work.draft, (p for p in group.full() if work.draft.open_source(p)), "keep")
    for group in work.roles.of("opt_state"):
        for path in group.full():
            if work.table[path].kind in NOTHING and work.draft.open_source(path):
                work.draft.ignore(path, "empty")
    return found


def _align(work: Work, one: Optimised) -> None:
    draft = work.draft
    state = one.feed.state if one.feed else one.group.state if one.group else None
    if state is not None:
        _step(work, state, one.item, create=False)
    if one.group is None:
        return
    sources = {
        p: full for p, full in _open(work, one.group) if draft.table[full].kind not in NOTHING
    }
    if one.feed is not None:
        others = _of_others(work, one.group, one.feed)
        sources = {p: full for p, full in sources.items() if p not in others}
    below = {p[1:]: s for p, s in one.slots.items() if p[0] == "opt_state"}
    slots = {p: s for p, s in below.items() if draft.open_slot(s.ref)}
    if one.feed is not None:
        align(draft, sources, slots, work.mapped[one.feed.item, PARAMS], one.wrapper)
        return
    groups = work.roles.of("params", one.group.state)
    if len(groups) == 1:
        params = _params(work, groups[0])
        wrapper = wrapper_in(one.group, groups[0])
        pair_parameters(draft, one.item, sources, below, params, wrapper)
        align(draft, sources, slots, params, wrapper)


def _open(work: Work, group: Group) -> Iterator[tuple[LeafPath, LeafPath]]:
    """What is left of an optimizer state; its own step, which feeds more than one count, too."""
    steps = step_paths(group.prefix, group.paths)
    for path in group.paths:
        full = group.prefix + path
        if work.draft.open_source(full) or (full in steps and full not in work.draft.ignored):
            yield path, full


def _of_others(work: Work, group: Group, feed: Feed) -> set[LeafPath]:
    """Arrays of one state over several models that belong to another model than this one."""
    params = feed.groups[0]
    whole = next(iter(work.roles.of("params", feed.state)), params)
    sub = params.prefix[len(whole.prefix) :]
    if not sub or params.prefix[: len(whole.prefix)] != whole.prefix:
        return set()
    names = frozenset(whole.paths)
    found = set()
    for path in group.paths:
        name = next((path[i:] for i in range(len(path)) if path[i:] in names), sub)
        if name[: len(sub)] != sub:
            found.add(path)
    return found


def _share(work: Work, one: Optimised, before: Sequence[Optimised]) -> None:
    """One state over the params of several models: each gets the counts that belong to none."""
    draft = work.draft
    joint = [o for o in before if one.group is not None and o.group == one.group]
    for other in joint:
        for step in tuple(draft.steps):
            ref = step.slots[0]
            slot = one.slots.get(ref.path) if ref.item == other.item else None
            alone = len(step.sources) == len(step.slots) == 1 and ref.path != ("step",)
            if slot is None or not alone or not draft.open_slot(slot.ref):
                continue
            if slot.shape == work.table[step.sources[0]].shape == ():
                draft.add(step.sources, [slot.ref], step.transforms, step.why)
    if joint and one.group is not None:
        work.warnings.append(
            f"{format_path(one.group.prefix)} is one optimizer over the params of "
            f"{', '.join(o.item for o in joint)} and {one.item}, which are separate in the target: "
            "what looks at all gradients together (clip_by_global_norm) now sees those of one model"
        )


def _params(work: Work, group: Group) -> Mapped:
    """The params that an optimizer without its model tracks."""
    params = mapped_of(group)
    ignored = work.draft.ignored
    params.ignored = {rel: ignored[p] for rel, p in params.sources.items() if p in ignored}
    return params


def _structural(work: Work, feed: Feed, group: Group) -> None:
    draft = work.draft
    item = "optimizer" if feed.item == "model" else f"{feed.item}_optimizer"
    if work.target is not None and item in work.target.items:
        return  # its leaves are left over, and become problems
    if any(s.item == item for s in draft.slots.values()):
        # a second state for the same params: kept as it is, so that nothing is lost
        carry(draft, group.full(), "keep")
        return
    _step(work, feed.state, item, create=True)
    sources = dict(_open(work, group))
    wrapper = wrapper_in(group, feed.groups[0])
    carry_optimizer(draft, item, sources, work.mapped[feed.item, PARAMS], wrapper)


def _step(work: Work, state: int, item: str, *, create: bool) -> None:
    draft = work.draft
    home = work.roles.states[state].prefix if state >= 0 else ()
    own = [p for g in work.roles.of("step", state) for p in g.full()]
    # a bundle has one step for all that it holds: that of the nearest one around
    around = [p for g in work.roles.of("step") for p in g.full() if p[:-1] == home[: len(p) - 1]]
    most = max(map(len, around), default=0)
    ours = [p for p in own if p[:-1] == home] or [p for p in around if len(p) == most] or own
    # flax.optim counts in its own state
    groups = work.roles.of("opt_state", state)
    ours = [p for g in groups for p in step_paths(g.prefix, g.paths)] or ours
    open_paths: list[LeafPath] = [p for p in ours if p not in draft.ignored]
    ref = SlotRef(item, ("step",))
    others = [s for s in draft.steps if list(s.sources) == open_paths and s.why == "rule:step"]
    if len(open_paths) != 1 or not (others or draft.open_source(open_paths[0])):
        return
    if create:
        draft.create(step_slot(item), open_paths)
    if ref in draft.slots and draft.open_slot(ref):
        leaf = work.table[open_paths[0]]
        cast = step_cast(leaf) if draft.slots[ref].dtype == "uint32" else ()
        draft.add(open_paths, [ref], cast, "rule:step")
        for other in others:
            work.warnings.append(
                f"{format_path(open_paths[0])} feeds {other.slots[0]} and {ref}: the checkpoint "
                "counts the updates of both in one; counts in optimizer states are their own"
            )


def follow_copies(work: Work) -> None:
    """Carry copies of collections, and models that the target does not ask for, as extras."""
    draft = work.draft
    fed = {g.prefix for f in work.feeds for g in f.groups}
    models = bool(work.feeds or work.undecided)
    # only optimizers are asked for, or nothing in particular
    alone = not models and (work.target is None or bool(work.target.slots))
    for role in ("copy", "params", "collection"):
        for group in work.roles.of(role):
            feed = work.feed_of(group.state)
            if group.prefix in fed or (feed is None and role != "copy" and not alone):
                continue
            mapped = work.mapped.get((feed.item, group.collection)) if feed else None
            sources = {
                p: group.prefix + p for p in group.paths if draft.open_source(group.prefix + p)
            }
            if mapped is None:
                carry(draft, sources.values(), "keep")
            else:
                carry_copy(draft, group.prefix, sources, mapped, "keep-copy")
