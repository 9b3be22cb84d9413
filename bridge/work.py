"""What the stages of planning share: the draft, the parts of the source, and what feeds what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge._plan import Problem
from bridge.draft import Draft
from bridge.feeds import Feed
from bridge.match import Candidate
from bridge.moments import Mapped
from bridge.roles import Group, Roles
from bridge.target import Target
from legacy import LeafPath, LeafTable

__all__ = ["Work", "mapped_of"]


@dataclass(slots=True)
class Work:
    """One plan in the making.

    Attributes:
        draft: the plan so far.
        roles: the parts of the source.
        target: None when no model was given.
        at: path by item, from the user.
        seed: for PRNG streams that no checkpoint holds.
        feeds: what feeds each item.
        undecided: the problem of each item for which no feed could be chosen.
        mapped: what became of each collection, by item and collection; filled by :meth:`record`.
        allow_order: whether pairs that only their order suggests may be written.
        nnx: whether the source is an NNX state itself.
        rngs: what becomes of PRNG keys, see :mod:`bridge.rngs`.
        warnings: for the plan.
        proven: items whose whole mapping running both models has proven.
        uncompared: items whose two models are called or answer in ways that do not correspond.
    """

    draft: Draft
    roles: Roles
    target: Target | None
    at: Mapping[str, LeafPath]
    seed: int
    feeds: list[Feed]
    undecided: Mapping[str, Problem]
    mapped: dict[tuple[str, str], Mapped] = field(default_factory=dict)
    allow_order: bool = False
    rngs: str = "keep"
    nnx: bool = False
    warnings: list[str] = field(default_factory=list)
    proven: set[str] = field(default_factory=set)
    uncompared: set[str] = field(default_factory=set)

    @property
    def table(self) -> LeafTable:
        """The source leaves."""
        return self.draft.table

    def feed_of(self, state: int) -> Feed | None:
        """The first feed from a state."""
        return next((f for f in self.feeds if f.state == state >= 0), None)

    def open_sources(self, feed: Feed) -> list[Candidate]:
        """Leaves that could still feed an item."""
        found = []
        draft = self.draft
        casts = self._casts(feed)
        for group in feed.groups:
            for rel in group.paths:
                full = group.prefix + rel
                leaf = self.table[full]
                settled = full in draft.ignored or feed.item in draft.fed.get(full, ())
                if not settled and leaf.kind in ("array", "scalar", "key"):
                    dtype = "" if casts or leaf.dtype is None else leaf.dtype.name
                    found.append(Candidate(rel, group.collection, leaf.shape, dtype, full))
        return found

    def open_slots(self, feed: Feed) -> list[Candidate]:
        """Model slots of an item that could still be fed."""
        n = len(feed.prefix)
        casts = self._casts(feed)
        return [
            Candidate(s.path[n:], s.collection, s.shape, "" if casts else s.dtype, s.ref)
            for s in self.draft.slots.values()
            if s.item == feed.item and s.collection != "opt_state" and self.draft.open_slot(s.ref)
        ]

    def _casts(self, feed: Feed) -> bool:
        """Whether the user allows casts in an item; then dtypes tell no leaves apart."""
        return any(rule.item in (None, feed.item) for rule in self.draft.casts)

    def record(self) -> None:
        """Gather what became of each collection, for all that follows it."""
        draft = self.draft
        for feed in self.feeds:
            n = len(feed.prefix)
            slot_paths = {
                s.ref: s.path[n:]
                for s in draft.slots.values()
                if s.item == feed.item and s.collection != "opt_state"
            }
            steps = [s for s in draft.steps if s.slots[0].item == feed.item]
            inits = {r: i.rule for r, i in draft.initialised.items() if r in slot_paths}
            for group in feed.groups:
                mapped = mapped_of(group)
                mapped.slot_paths = slot_paths
                mapped.steps = [s for s in steps if all(p in mapped.rel for p in s.sources)]
                mapped.ignored = {
                    rel: draft.ignored[full]
                    for rel, full in mapped.sources.items()
                    if full in draft.ignored
                }
                mapped.initialised = inits
                self.mapped[feed.item, group.collection] = mapped


def mapped_of(group: Group) -> Mapped:
    """What is known of a collection before anything became of it."""
    sources = {p: group.prefix + p for p in group.paths}
    return Mapped(sources=sources, rel={full: rel for rel, full in sources.items()})
