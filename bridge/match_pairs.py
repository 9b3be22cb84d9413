"""What a pairing of candidates says about the leaves and slots that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bridge.target import SlotRef
from bridge.transforms import Join, Split, Stack, Transform, Unstack
from bridge.views import Candidate, Key, View, parts_of
from legacy import LeafPath

__all__ = ["Pair", "paired", "path_of", "ref_of"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Source leaves and the slots they belong to, with the reason; mostly one of each.

    Attributes:
        sources: full paths.
        slots: names of slots.
        why: the reason.
        transforms: from the sources' arrays to the slots'.
    """

    sources: tuple[LeafPath, ...]
    slots: tuple[SlotRef, ...]
    why: str
    transforms: tuple[Transform, ...] = ()

    @property
    def source(self) -> LeafPath:
        """The first source."""
        return self.sources[0]

    @property
    def slot(self) -> SlotRef:
        """The first slot."""
        return self.slots[0]


def ref_of(candidate: Candidate) -> SlotRef:
    """The name of a slot."""
    assert isinstance(candidate.key, SlotRef)  # noqa: S101 - slots are keyed by name
    return candidate.key


def path_of(candidate: Candidate) -> LeafPath:
    """The full path of a source leaf."""
    assert isinstance(candidate.key, tuple)  # noqa: S101 - sources are keyed by path
    return candidate.key


def paired(source: Key, slot: Key, why: str) -> Iterator[Pair]:
    """What a pair of candidates says about the leaves and slots that they show.

    Args:
        source: a path, or a view of several.
        slot: a slot, or a view of several.
        why: the reason for the pair; a view's own code goes before it.
    """
    sources, slots = parts_of(source), parts_of(slot)
    views = [key for key in (source, slot) if isinstance(key, View)]
    if views and why in ("path", "unique"):
        # of two views the one that does more to the arrays says more
        most = max(views, key=lambda view: (len(view.parts), bool(view.transforms)))
        why = f"rule:{most.code}"
    transforms = tuple(t for view in views for t in view.transforms)
    if len(sources) == len(slots) > 1 and _undone(transforms):
        # joined here and split there in one order: each part is its like
        for one, other in zip(sources, slots, strict=True):
            yield Pair((one,), (other,), why)  # type: ignore[arg-type] # by construction
        return
    yield Pair(sources, slots, why, transforms)  # type: ignore[arg-type] # by construction


def _undone(transforms: tuple[Transform, ...]) -> bool:
    """Whether the second of two transforms takes apart what the first has put together."""
    match transforms:
        case (Stack(a), Unstack(b)):
            return a == b
        case (Join(a), Split(b)):
            return a == b
    return False
