"""What follows the params: optimizer states, the step, copies such as EMA parameters."""

from __future__ import annotations

from bridge.carry import NOTHING, carry, carry_copy, carry_optimizer, step_cast, step_slot
from bridge.feeds import Feed, Optimised, optimizer_groups
from bridge.moments import Mapped
from bridge.optimizer import align
from bridge.optimizer_alone import pair_parameters
from bridge.roles import PARAMS, Group
from bridge.target import SlotRef
from bridge.work import Work, mapped_of
from legacy import LeafPath

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
    for one in found:
        _align(work, one)
    done = {one.group.prefix for one in found if one.group is not None}
    for group in work.roles.of("opt_state"):
        feed = work.feed_of(group.state)
        if group.prefix not in done and feed is not None:
            _structural(work, feed, group)
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
    prefix = one.group.prefix
    sources = {
        p: prefix + p
        for p in one.group.paths
        if draft.open_source(prefix + p) and draft.table[prefix + p].kind not in NOTHING
    }
    below = {p[1:]: s for p, s in one.slots.items() if p[0] == "opt_state"}
    slots = {p: s for p, s in below.items() if draft.open_slot(s.ref)}
    if one.feed is not None:
        align(draft, sources, slots, work.mapped[one.feed.item, PARAMS], one.feed.wrapper)
        return
    groups = work.roles.of("params", one.group.state)
    if len(groups) == 1:
        params = _params(work, groups[0])
        of = work.roles.states[one.group.state]
        wrapper = of.params[len(of.optimised) :]
        pair_parameters(draft, one.item, sources, below, params, wrapper)
        align(draft, sources, slots, params, wrapper)


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
    sources = {p: group.prefix + p for p in group.paths if draft.open_source(group.prefix + p)}
    carry_optimizer(draft, item, sources, work.mapped[feed.item, PARAMS], feed.wrapper)


def _step(work: Work, state: int, item: str, *, create: bool) -> None:
    draft = work.draft
    paths = [p for g in work.roles.of("step", state) for p in g.full()]
    home = work.roles.states[state].prefix
    ours = [p for p in paths if p[:-1] == home] or paths
    open_paths: list[LeafPath] = [p for p in ours if p not in draft.ignored]
    ref = SlotRef(item, ("step",))
    if len(open_paths) != 1 or not draft.open_source(open_paths[0]):
        return
    if create:
        draft.create(step_slot(item), open_paths)
    if ref in draft.slots and draft.open_slot(ref):
        leaf = work.table[open_paths[0]]
        cast = step_cast(leaf) if draft.slots[ref].dtype == "uint32" else ()
        draft.add(open_paths, [ref], cast, "rule:step")


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
