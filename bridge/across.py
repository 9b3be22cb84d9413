"""Pairs leaves with slots of another collection, where nothing else could be meant.

A Variable class in NNX is the author's choice: a position table that was a parameter becomes a
buffer, and the collection ``vq_stats`` becomes a class ``Codebook``. Collections that both sides
know are never mixed; what is left of the others is paired by path, and, where one collection
faces one class, as the leaves of one collection are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from bridge.feeds import Feed
from bridge.match import Candidate, match, normal, path_of, ref_of
from bridge.names import unboxed
from bridge.roles import PARAMS
from bridge.work import Work
from legacy import LeafPath

__all__ = ["pair_across"]

KNOWN = frozenset(
    {PARAMS, "batch_stats", "cache", "intermediates", "perturbations", "rngs", "opt_state"}
)
"""Collections with a Variable class of their own: what is in them is in no other."""


def pair_across(work: Work) -> None:
    """Pair what is left of collections that the target calls otherwise.

    Args:
        work: gets the steps.
    """
    for feed in work.feeds:
        # a params leaf goes to no other Param than its own, but it may have become a buffer
        _by_path(work, feed, PARAMS, "rule:buffer")
        _by_path(work, feed, None, "path")
        _one_to_one(work, feed)
        _beside(work, feed)


def _own_slots(work: Work, feed: Feed) -> list[Candidate]:
    return [c for c in work.open_slots(feed) if c.collection not in KNOWN]


def _by_path(work: Work, feed: Feed, collection: str | None, why: str) -> None:
    slots = _by_normal(_own_slots(work, feed))
    sources = _by_normal(
        c
        for c in work.open_sources(feed)
        if (c.collection == collection if collection else c.collection not in KNOWN)
    )
    for path, ours in sources.items():
        theirs = slots.get(path, [])
        if len(ours) == len(theirs) == 1 and _same(ours[0], theirs[0]):
            work.draft.add([path_of(ours[0])], [ref_of(theirs[0])], (), why)


def _one_to_one(work: Work, feed: Feed) -> None:
    slots = _own_slots(work, feed)
    sources = [c for c in work.open_sources(feed) if c.collection not in KNOWN]
    if len({c.collection for c in slots}) != 1 or len({c.collection for c in sources}) != 1:
        return
    for pair in match(
        [replace(c, collection="") for c in sources], [replace(c, collection="") for c in slots]
    ):
        work.draft.add(list(pair.sources), list(pair.slots), pair.transforms, pair.why)


def _beside(work: Work, feed: Feed) -> None:
    """A collection so flat that it was taken for something beside the model."""
    if feed.state < 0:
        return
    state = work.roles.states[feed.state]
    homes = {state.prefix, state.variables}
    flat: dict[LeafPath, list[LeafPath]] = defaultdict(list)
    for group in work.roles.of("rest"):
        for full in group.full():
            for home in homes:
                below = full[len(home) :]
                if full[: len(home)] == home and len(below) > 1 and work.draft.open_source(full):
                    flat[normal(unboxed(below[1:]))].append(full)
    for slot in _own_slots(work, feed):
        found = list(dict.fromkeys(flat.get(normal(slot.path), ())))
        if len(found) == 1:
            leaf = work.table[found[0]]
            dtype = "" if leaf.dtype is None else leaf.dtype.name
            if leaf.kind == "array" and (leaf.shape, dtype) == (slot.shape, slot.dtype or dtype):
                work.draft.add([found[0]], [ref_of(slot)], (), "path")


def _by_normal(candidates: Iterable[Candidate]) -> dict[LeafPath, list[Candidate]]:
    found: dict[LeafPath, list[Candidate]] = defaultdict(list)
    for c in candidates:
        found[normal(unboxed(c.path))].append(c)
    return found


def _same(a: Candidate, b: Candidate) -> bool:
    return a.shape == b.shape and (a.dtype == b.dtype or "" in (a.dtype, b.dtype))
