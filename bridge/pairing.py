"""Pairs what a feed still holds with what its item still wants, layer rules included.

First what has one path and one shape is set aside. Layer rules then look at the rest, as whole
modules: they show gates as one kernel, a list as a stack, a wrapper's leaves under the names that
the model has for them. With these views in the places of what they show, everything is matched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from bridge.draft import Draft
from bridge.feeds import Feed
from bridge.layer_notes import notes
from bridge.layer_rules import LAYER_RULES
from bridge.layer_rules_attention import unsure_qkv
from bridge.layer_rules_stacks import ordered_stack, unsure_axes
from bridge.match import Pair, match_leaves, paired, same_paths
from bridge.names import is_vector
from bridge.rule_text import ignore_rules, quoted
from bridge.target import SlotRef
from bridge.transforms import DropZero
from bridge.transforms_zero import largest
from bridge.views import Candidate, Leaf, Sides, leaves_of, parts_of
from bridge.work import Work
from legacy import LeafPath, format_path

__all__ = ["offer_order", "pair", "pair_feed", "seen"]


def pair_feed(work: Work, feed: Feed) -> None:
    """Make the steps of all that can be paired with certainty.

    Args:
        work: gets the steps, and a problem where a leaf that has no place is not zero.
        feed: which leaves feed which item.
    """
    pairs = pair(work.open_sources(feed), work.open_slots(feed))
    unsure = _turned(work.draft, pairs)
    for one in pairs:
        if one not in unsure and not lost(work.draft, one):
            work.draft.add(one.sources, one.slots, one.transforms, one.why)
    offered = offer_order(work.open_sources(feed), work.open_slots(feed))
    if not work.allow_order and offered:
        count = sum(len(one.sources) for one in offered)
        work.warnings.append(
            f"{feed.item}: {count} leaves could be paired by the order of their numbered layers, "
            "which proves nothing; allow_order=True (--allow-order) does so. With the Linen module "
            "and a sample input it is proven, or refuted"
        )
    for one in offered if work.allow_order else ():
        if not lost(work.draft, one):
            work.draft.add(one.sources, one.slots, one.transforms, one.why)
    left = leaves_of(work.open_sources(feed), boxes=True)
    right = leaves_of(work.open_slots(feed), boxes=False)
    rest = Sides(left, right)
    work.warnings += [f"{feed.item}: {text}" for text in (*unsure_axes(rest), *unsure_qkv(rest))]
    for note in notes(left, right):
        paths = [part for leaf in note.leaves for part in parts_of(leaf.key)]
        sources = [path for path in paths if not isinstance(path, SlotRef)]
        work.draft.refuse("unmatched-source", note.message, sources, (), ignore_rules(sources))


def _turned(draft: Draft, pairs: Iterable[Pair]) -> list[Pair]:
    """Refuse stacks whose layers may lie along another axis than the model's, for all one sees.

    ``nn.scan`` stacks along any axis. Where the number of layers is the width of every array in
    the stack, each axis fits as well as the first.
    """
    stacks: dict[LeafPath, list[Pair]] = {}
    for one in pairs:
        if one.why == "unique" and not one.transforms:
            stacks.setdefault(one.source[:-2], []).append(one)
    unsure = []
    for path, found in stacks.items():
        shapes = [draft.table[one.source].shape for one in found]
        vectors = [
            len(s) for one, s in zip(found, shapes, strict=True) if is_vector(one.source[-1])
        ]
        # a bias with an axis more than a bias has is one of many
        if max(vectors, default=0) < 2 or not all(s and s[0] in s[1:] for s in shapes):  # noqa: PLR2004
            continue
        n = shapes[0][0]
        unsure += found
        draft.refuse(
            "ambiguous",
            f"{format_path(path)} is a stack of {n} layers, and every array in it has {n} along "
            "more than one axis, so nothing proves along which the layers lie: map it by rules, "
            "with transforms where the axes differ, or give the Linen module",
            [one.source for one in found],
            [one.slot for one in found],
            "\n\n".join(
                f"[[map]]\nfrom = {quoted(one.source)}\nto = {quoted(one.slot.path)}"
                for one in found
            ),
        )
    return unsure


def lost(draft: Draft, one: Pair) -> bool:
    """Refuse to drop a leaf that says something; say whether it was refused.

    Args:
        draft: gets the problem.
        one: a pair; with a :class:`~bridge.transforms.DropZero` its last source is looked at.

    This is the one array that a plan reads: without a look at it every GRU would be a problem, or
    every conversion could fail at its end.
    """
    if not any(isinstance(t, DropZero) for t in one.transforms):
        return False
    path = one.sources[-1]
    most = largest(np.asarray(draft.table[path].read()))
    if most == 0:
        return False
    draft.refuse(
        "loss",
        f"{format_path(path)} has no place in {one.slot}: it could be left behind only if it were "
        f"all zeros, and its largest value is {most:g}. The outputs would change. Give the model a "
        "cell that has this bias, or accept the loss by the rule",
        one.sources,
        one.slots,
        ignore_rules([path]),
    )
    return True


def pair(sources: Iterable[Candidate], slots: Iterable[Candidate]) -> tuple[Pair, ...]:
    """Pair what can be paired with certainty, by paths, by exclusion and by layer rules.

    Args:
        sources: leaves without a slot yet, of one model.
        slots: slots without a source yet, of one item.

    Returns:
        Pairs, each source and each slot at most once.

    >>> from bridge.target import SlotRef
    >>> gates = [
    ...     Candidate(("cell", gate, "kernel"), "params", (3, 4), "float32", (gate,))
    ...     for gate in ("i", "h")
    ... ]
    >>> pair(gates, [])
    ()
    """
    sides = seen(sources, slots)
    found = match_leaves(sides.left, sides.right)
    return tuple(one for a, b, why in found for one in paired(a.key, b.key, why))


def offer_order(sources: Iterable[Candidate], slots: Iterable[Candidate]) -> tuple[Pair, ...]:
    """Pair what is left by the order of numbered layers, which proves nothing.

    Linen numbers layers as they are constructed, most models list them as they are called; where
    both are the same these pairs are right. Layers that are told apart by words (query and key,
    mean and variance) are never paired by their order.

    Args:
        sources: leaves that nothing else could place.
        slots: slots that nothing else could fill.

    Returns:
        Pairs, all with the reason ``order``.
    """
    sides = seen(sources, slots, (ordered_stack,))
    found = match_leaves(sides.left, sides.right, order=True)
    return tuple(one for a, b, _ in found for one in paired(a.key, b.key, "order"))


def seen(
    sources: Iterable[Candidate],
    slots: Iterable[Candidate],
    extra: Iterable[Callable[[Sides], Sides]] = (),
) -> Sides:
    """Both sides with the views of all layer rules.

    Args:
        sources: open leaves.
        slots: open slots.
        extra: rules that prove nothing by themselves, for offers.
    """
    left, right = leaves_of(sources, boxes=True), leaves_of(slots, boxes=False)
    both = {c.collection for c in left} & {c.collection for c in right}
    settled = same_paths(left, right)

    def is_open(leaf: Leaf) -> bool:
        return leaf.collection in both and leaf.key not in settled

    sides = Sides(tuple(filter(is_open, left)), tuple(filter(is_open, right)))
    for view in (*(r.view for r in LAYER_RULES.values() if r.view is not None), *extra):
        if sides.left and sides.right:
            sides = view(sides)
    return Sides(
        (*(leaf for leaf in left if not is_open(leaf)), *sides.left),
        (*(leaf for leaf in right if not is_open(leaf)), *sides.right),
    )
