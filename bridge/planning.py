"""Draws up a plan: the stages in their order.

User rules come first and claim what they name; then paths and unique pairings settle what they
can; what is shaped like params follows; what has no home in the model is carried; and what is
left is a problem. No array is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bridge._plan import Plan, Problem
from bridge.carry import METADATA, carry, carry_copy, carry_optimizer, step_cast, step_slot
from bridge.claims import apply_ignores, apply_inits, apply_maps, check_casts
from bridge.draft import Draft
from bridge.errors import BridgeError, TargetError
from bridge.feeds import At, Feed, at_paths, feeds, model_items, optimizer_groups
from bridge.match import Candidate, match
from bridge.optimizer import Mapped, align
from bridge.roles import PARAMS, Group, Roles, find_roles
from bridge.rules import Rules
from bridge.structural import structural_feeds, structural_slots
from bridge.suggest import unfilled, unmatched
from bridge.target import Slot, SlotPath, SlotRef, Target
from legacy import Checkpoint, LeafPath, format_path
from legacy import open as open_checkpoint

__all__ = ["plan"]

NOTHING = frozenset({"none", "empty"})


def plan(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    model: Any = None,
    tx: Any = None,
    linen: Any = None,
    sample_input: Any = None,
    rules: Any = None,
    transforms: Mapping[str, Any] | None = None,
    step: int | float | None = None,
    at: At = None,
    seed: int = 0,
) -> Plan:
    """Plan how an old checkpoint becomes an NNX checkpoint; no array is read.

    Args:
        path: a checkpoint file or folder, a run (then its last step), or an opened checkpoint.
        model: what to fill: a factory without arguments, an abstract or concrete ``nnx`` object,
            several of them by item name, or a :class:`~bridge.Target` (a stored target spec).
            None makes a structural target: collections become Variable types, paths stay.
        tx: the optax transformation of the optimizer, or several by model name.
        linen: the Linen module; noted in the plan, not used for matching in this release.
        sample_input: an example input; as ``linen``.
        rules: user rules: a TOML file, :class:`~bridge.Rules`, or a list of rules.
        transforms: Orbax-style ``{regex: ocp.Transform(...)}``.
        step: which step of a run.
        at: which part of the checkpoint feeds an item: a path, or a path by item.
        seed: from which PRNG streams that no checkpoint holds are made.

    Returns:
        The plan. It may have problems; then nothing can be written by it.

    Raises:
        legacy.LegacyError: the checkpoint cannot be opened.
        TargetError: the model cannot be described.
        RuleError: the rules are not well formed.

    >>> plan("runs/exp1", model=lambda: CNN(rngs=nnx.Rngs(0)))  # doctest: +SKIP
    """
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path, step=step)
    given = Rules.of(rules)
    if transforms:
        from bridge.orbax_transforms import from_orbax  # noqa: PLC0415 - rarely used

        given = Rules((*given.rules, *from_orbax(transforms).rules))
    table = checkpoint.leaves
    roles = find_roles(table)
    target = None if model is None else _target(model, tx)
    if target is None and tx is not None:
        raise TargetError("tx= was given without model=: an nnx.Optimizer needs its model.")
    sheet = _Planner(checkpoint, roles, target, given, at, seed)
    warnings = ()
    if linen is not None:
        warnings = (
            "the Linen module was given; this release does not run it, so nothing here is proven "
            "by fingerprint",
        )
    return sheet.finish(warnings)


def _target(model: Any, tx: Any) -> Target:
    if isinstance(model, Target):
        return model
    from bridge._describe import describe  # noqa: PLC0415 - loads jax, which a spec does not need

    return describe(model, tx)


class _Planner:
    """The stages, in order, on one draft."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        roles: Roles,
        target: Target | None,
        rules: Rules,
        at: At,
        seed: int,
    ) -> None:
        self.checkpoint = checkpoint
        self.table = checkpoint.leaves
        self.roles = roles
        self.rules = rules
        self.seed = seed
        self.target = target
        self.draft = Draft(self.table, target.slots if target else (), rules)
        problems: list[Problem] = []
        self.at: dict[str, LeafPath] = {}
        if target is None:
            if at is not None:
                raise BridgeError("at= chooses what feeds an item of model=, which was not given.")
            self.feeds = structural_feeds(roles)
        else:
            self.at = at_paths(at, target.items)
            self.feeds, problems = feeds(self.table, roles, model_items(target), self.at)
        self.draft.problems += problems
        self.mapped = {(f.item, g.collection): _mapped(g) for f in self.feeds for g in f.groups}

    def finish(self, warnings: tuple[str, ...]) -> Plan:
        draft = self.draft
        # empty leaves of optimizer states are kept for later: they say where it is masked
        optimizer = {p for g in self.roles.of("opt_state") for p in g.full()}
        for path, leaf in self.table.items():
            if leaf.kind in NOTHING and path not in optimizer:
                draft.ignore(path, "empty")
        apply_ignores(draft, self.rules, self.feeds)
        apply_inits(draft, self.rules)
        if self.target is None:
            structural_slots(draft, self.rules, self.feeds)
        apply_maps(draft, self.rules, self.feeds)
        check_casts(draft)
        for feed in self.feeds:
            self._match(feed)
        self._record()
        self._optimizers()
        self._copies()
        for group in self.roles.of("rng"):
            carry(draft, group.full(), "keep-rng")
        for role in ("step", "rest"):
            for group in self.roles.of(role):  # type: ignore[arg-type] # both are roles
                carry(draft, group.full(), "keep")
        self._leftovers()
        slots = tuple(draft.slots.values())
        empties = (*(self.target.empties if self.target else ()), *draft.empties)
        problems = (*draft.finished_problems(), *_unsavable(slots))
        return Plan(
            steps=tuple(draft.steps),
            ignored=draft.finished_ignored(),
            initialised=tuple(draft.initialised.values()),
            problems=problems,
            target=Target(slots, tuple(empties), structural=self.target is None),
            signature=self.table.signature(),
            source=str(self.checkpoint.format),
            warnings=warnings,
        )

    # -- the model ---------------------------------------------------------------------------

    def _match(self, feed: Feed) -> None:
        pairs = match(self._open_sources(feed), self._open_slots(feed.item, feed.prefix))
        for pair in pairs:
            self.draft.add([pair.source], [pair.slot], (), pair.why)

    def _open_sources(self, feed: Feed) -> list[Candidate]:
        found = []
        for group in feed.groups:
            for rel in group.paths:
                full = group.prefix + rel
                leaf = self.table[full]
                settled = full in self.draft.ignored or feed.item in self.draft.fed[full]
                if not settled and leaf.kind in ("array", "scalar", "key"):
                    dtype = leaf.dtype.name if leaf.dtype is not None else ""
                    found.append(Candidate(rel, group.collection, leaf.shape, dtype, full))
        return found

    def _open_slots(self, item: str, prefix: SlotPath) -> list[Candidate]:
        return [
            Candidate(s.path[len(prefix) :], s.collection, s.shape, s.dtype, s.ref)
            for s in self.draft.slots.values()
            if s.item == item and s.collection != "opt_state" and self.draft.open_slot(s.ref)
        ]

    def _record(self) -> None:
        """Gather what became of each collection, for all that follows it."""
        for feed in self.feeds:
            for group in feed.groups:
                mapped = self.mapped[feed.item, group.collection]
                n = len(feed.prefix)
                mapped.slot_paths = {
                    s.ref: s.path[n:]
                    for s in self.draft.slots.values()
                    if s.item == feed.item and s.collection != "opt_state"
                }
                mapped.steps = [
                    s
                    for s in self.draft.steps
                    if s.slots[0].item == feed.item and all(p in mapped.rel for p in s.sources)
                ]
                mapped.ignored = {
                    rel: self.draft.ignored[full]
                    for rel, full in mapped.sources.items()
                    if full in self.draft.ignored
                }
                mapped.initialised = {
                    ref: i.rule for ref, i in self.draft.initialised.items()
                    if ref in mapped.slot_paths
                }  # fmt: skip

    # -- the optimizers ------------------------------------------------------------------------

    def _optimizers(self) -> None:
        draft = self.draft
        done: set[LeafPath] = set()
        if self.target is not None:
            found = optimizer_groups(self.target, self.roles, self.feeds, self.at)
            for item, (feed, group, slots) in found.items():
                self._step(feed, item, create=False)
                if group is None:
                    continue
                done.add(group.prefix)
                params = self.mapped[feed.item, PARAMS]
                sources = {
                    p: group.prefix + p
                    for p in group.paths
                    if draft.open_source(group.prefix + p)
                    and draft.table[group.prefix + p].kind not in NOTHING
                }
                below = {p[1:]: s for p, s in slots.items() if p[0] == "opt_state"}
                open_slots = {p: s for p, s in below.items() if draft.open_slot(s.ref)}
                align(draft, sources, open_slots, params, feed.wrapper)
        for group in self.roles.of("opt_state"):
            feed = next((f for f in self.feeds if f.state == group.state), None)  # type: ignore[assignment]
            if group.prefix not in done and feed is not None:
                self._structural_optimizer(feed, group)
        for group in self.roles.of("opt_state"):
            for path in group.full():
                if draft.table[path].kind in NOTHING and draft.open_source(path):
                    draft.ignore(path, "empty")

    def _structural_optimizer(self, feed: Feed, group: Group) -> None:
        item = "optimizer" if feed.item == "model" else f"{feed.item}_optimizer"
        if self.target is not None and item in self.target.items:
            return  # its leaves are left over, and become problems
        if any(s.item == item for s in self.draft.slots.values()):
            # a second state for the same params: kept as it is, so that nothing is lost
            carry(self.draft, group.full(), "keep")
            return
        self._step(feed, item, create=True)
        sources = {
            p: group.prefix + p for p in group.paths if self.draft.open_source(group.prefix + p)
        }
        params = self.mapped[feed.item, PARAMS]
        carry_optimizer(self.draft, item, sources, params, feed.wrapper)

    def _step(self, feed: Feed, item: str, *, create: bool) -> None:
        paths = [p for g in self.roles.of("step", feed.state) for p in g.full()]
        home = self.roles.states[feed.state].prefix
        ours = [p for p in paths if p[:-1] == home] or paths
        open_paths = [p for p in ours if self.draft.open_source(p)]
        ref = SlotRef(item, ("step",))
        if len(open_paths) != 1:
            return
        if create:
            self.draft.slots[ref] = step_slot(item)
        if ref in self.draft.slots and self.draft.open_slot(ref):
            leaf = self.table[open_paths[0]]
            cast = step_cast(leaf) if self.draft.slots[ref].dtype == "uint32" else ()
            self.draft.add(open_paths, [ref], cast, "rule:step")

    # -- copies --------------------------------------------------------------------------------

    def _copies(self) -> None:
        fed = {g.prefix for f in self.feeds for g in f.groups}
        for role in ("copy", "params", "collection"):
            for group in self.roles.of(role):  # type: ignore[arg-type] # all three are roles
                feed = next((f for f in self.feeds if f.state == group.state), None)
                if group.prefix in fed or (feed is None and role != "copy"):
                    continue
                mapped = self.mapped.get((feed.item, group.collection)) if feed else None
                sources = {
                    p: group.prefix + p
                    for p in group.paths
                    if self.draft.open_source(group.prefix + p)
                }
                if mapped is None:
                    carry(self.draft, sources.values(), "keep")
                else:
                    carry_copy(self.draft, group.prefix, sources, mapped, "keep-copy")

    # -- what is left --------------------------------------------------------------------------

    def _leftovers(self) -> None:
        draft = self.draft
        for feed in self.feeds:
            for group in feed.groups:
                plain = [p for p in group.full() if self.table[p].kind in ("str", "bytes")]
                carry(draft, plain, "keep")
            sources = [c for c in self._open_sources(feed) if draft.open_source(_path(c))]
            slots = self._open_slots(feed.item, feed.prefix)
            owed = [c for c in slots if not self._ephemeral(c)]
            draft.problems += unmatched(sources, owed)
            draft.problems += unfilled(owed, sources)
            draft.used |= {_path(c) for c in sources}
            draft.filled |= {c.key for c in owed if isinstance(c.key, SlotRef)}
        self._optimizer_leftovers()
        for path in self.table:
            if draft.open_source(path):
                draft.problems.append(
                    Problem(
                        "unmatched-source",
                        f"{format_path(path)} has no place in the target",
                        (path,),
                        rule=f"[[ignore]]\nsource = {_quoted(path)}",
                    )
                )
        for ref, slot in draft.slots.items():
            if draft.open_slot(ref):
                draft.problems.append(
                    Problem(
                        "unfilled-slot",
                        f"slot {ref} {slot.dtype}{list(slot.shape)} has no source",
                        slots=(ref,),
                        rule=f'[[init]]\nslot = {_quoted(ref.path)}\nitem = "{ref.item}"\n'
                        'value = "zeros"',
                    )
                )

    def _ephemeral(self, candidate: Candidate) -> bool:
        """Initialise a slot that no checkpoint owes us; say whether it was one."""
        assert isinstance(candidate.key, SlotRef)  # noqa: S101 - slots are keyed by name
        slot = self.draft.slots[candidate.key]
        if slot.ephemeral:
            how = f"rng:{self.seed}" if slot.key_impl else "zeros"
            self.draft.initialise(slot.ref, "ephemeral", how)
        return slot.ephemeral

    def _optimizer_leftovers(self) -> None:
        """One problem for each optimizer, with both trees: what is left of a chain is one thing."""
        draft = self.draft
        for group in self.roles.of("opt_state"):
            left = [p for p in group.full() if draft.open_source(p)]
            feed = next((f for f in self.feeds if f.state == group.state), None)
            items = set(self.target.items) if self.target and feed else set()
            item = next(
                (i for i in ("optimizer", f"{feed.item}_optimizer") if i in items), None
            ) if feed else None  # fmt: skip
            slots = [
                s for s in draft.slots.values()
                if s.item == item and s.collection == "opt_state" and draft.open_slot(s.ref)
            ]  # fmt: skip
            if not left:
                continue
            draft.used |= set(left)
            draft.filled |= {s.ref for s in slots}
            draft.problems.append(
                Problem(
                    "unmatched-source",
                    f"{len(left)} leaves of the optimizer state {format_path(group.prefix)} have "
                    f"no slot, {len(slots)} of its slots no source: the optimizers are chained "
                    "differently",
                    tuple(left),
                    tuple(s.ref for s in slots),
                    candidates=(
                        "the checkpoint has: " + _tree([p[len(group.prefix) :] for p in left]),
                        "the optimizer has: " + (_tree([s.path[1:] for s in slots]) or "nothing"),
                    ),
                    rule=f'[[ignore]]\nsource = "{format_path(group.prefix)}/**"',
                )
            )


def _mapped(group: Group) -> Mapped:
    sources = {p: group.prefix + p for p in group.paths}
    return Mapped(sources=sources, rel={full: rel for rel, full in sources.items()})


def _path(candidate: Candidate) -> LeafPath:
    assert isinstance(candidate.key, tuple)  # noqa: S101 - sources are keyed by path
    return candidate.key


def _quoted(path: Sequence[str]) -> str:
    text = format_path(tuple(path))
    return f"'{text}'" if '"' in text else f'"{text}"'


def _tree(paths: Sequence[tuple[str, ...]]) -> str:
    """The fields of an optimizer state, without the parameter paths below them."""
    heads = dict.fromkeys("/".join(p[:3]) + ("/…" if len(p) > 3 else "") for p in paths)  # noqa: PLR2004 - as deep as fields are
    shown = list(heads)[:8]
    return ", ".join(shown) + (f", and {len(heads) - 8} more" if len(heads) > 8 else "")  # noqa: PLR2004 - a line


def _unsavable(slots: Sequence[Slot]) -> list[Problem]:
    """Arrays without elements cannot be saved by Orbax (measured with 0.12.8)."""
    return [
        Problem(
            "shape",
            f"slot {s.ref} has shape {list(s.shape)}: Orbax refuses arrays without elements",
            slots=(s.ref,),
        )
        for s in slots
        if 0 in s.shape and s.item not in (METADATA,) and s.variable_type != "Json"
    ]

