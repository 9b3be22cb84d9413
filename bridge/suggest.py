"""Candidates and rules to paste, for what could not be paired.

A problem without a way forward is half a refusal. For each open leaf the nearest open slots of
its shape are named, and a rule that would settle it; where an index repeats, the rule captures
it, so that twelve blocks need one rule.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from bridge._plan import Problem
from bridge.match import Candidate
from bridge.target import SlotRef
from legacy import LeafPath, format_path

__all__ = ["unfilled", "unmatched"]

_MOST = 3  # candidates shown
_LOOK = 64  # candidates compared by name; more of one shape cannot be told apart by names anyway
_NUMBER = re.compile(r"\d+")


def unmatched(sources: Sequence[Candidate], slots: Sequence[Candidate]) -> list[Problem]:
    """A problem for each leaf without a slot.

    Args:
        sources: open leaves of one item's collections.
        slots: open slots of that item.

    Returns:
        One problem for each source, with candidates nearest first and a rule.
    """
    by_shape = _by(slots, lambda c: (c.collection, c.shape))
    rivals = _by(sources, lambda c: (c.collection, c.shape))
    problems = []
    for source in sources:
        same = by_shape.get((source.collection, source.shape), [])
        near = _nearest(source, same or [c for c in slots if c.collection == source.collection])
        alike = len(rivals[source.collection, source.shape])
        ambiguous = len(same) > 1 or (same and alike > 1)
        full = format_path((source.collection, *source.path))
        message = f"{full} {_shape(source)} has no slot"
        if ambiguous:
            message += (
                f"; {alike} leaves and {len(same)} slots of this shape are open, "
                "and nothing proves which is which"
            )
        problems.append(
            Problem(
                "ambiguous" if ambiguous else "unmatched-source",
                message,
                sources=(_path(source),),
                candidates=tuple(f"{_slot(c)} {_shape(c)}" for c in near),
                rule=_rule(source, near[0] if same and near else None),
            )
        )
    return problems


def unfilled(slots: Sequence[Candidate], sources: Sequence[Candidate]) -> list[Problem]:
    """A problem for each slot without a source; see :func:`unmatched`."""
    by_shape = _by(sources, lambda c: (c.collection, c.shape))
    problems = []
    for slot in slots:
        same = by_shape.get((slot.collection, slot.shape), [])
        near = _nearest(slot, same or [c for c in sources if c.collection == slot.collection])
        ref = _slot(slot)
        problems.append(
            Problem(
                "unfilled-slot",
                f"slot {ref} {_shape(slot)} has no source",
                slots=(ref,),
                candidates=tuple(
                    f"{format_path((c.collection, *c.path))} {_shape(c)}" for c in near
                ),
                rule=_rule(near[0], slot)
                if same and near
                else f'[[init]]\nslot = "{format_path(slot.path)}"\nitem = "{ref.item}"\n'
                'value = "zeros"',
            )
        )
    return problems


def _by(
    items: Iterable[Candidate], key: Callable[[Candidate], tuple[object, ...]]
) -> Mapping[tuple[object, ...], list[Candidate]]:
    groups: dict[tuple[object, ...], list[Candidate]] = defaultdict(list)
    for c in items:
        groups[key(c)].append(c)
    return groups


def _path(c: Candidate) -> LeafPath:
    assert isinstance(c.key, tuple)  # noqa: S101 - sources are keyed by path
    return c.key


def _slot(c: Candidate) -> SlotRef:
    assert isinstance(c.key, SlotRef)  # noqa: S101 - slots are keyed by name
    return c.key


def _shape(c: Candidate) -> str:
    return f"{c.dtype}{list(c.shape)}"


def _nearest(wanted: Candidate, among: Sequence[Candidate]) -> list[Candidate]:
    text = "/".join(wanted.path).lower()
    scored = [
        (difflib.SequenceMatcher(None, text, "/".join(c.path).lower()).ratio(), -n, c)
        for n, c in enumerate(among[:_LOOK])
    ]
    return [c for _, _, c in sorted(scored, key=lambda t: t[:2], reverse=True)[:_MOST]]


def _rule(source: Candidate, slot: Candidate | None) -> str:
    """A map rule with equal indices captured; an ignore rule where no slot fits."""
    full = (source.collection, *source.path)
    if slot is None:
        return f'[[ignore]]\nsource = "{format_path(full)}"'
    ours, theirs = list(full), list(slot.path)
    letters = iter("ijklmn")
    for n, part in enumerate(ours):
        for number in _NUMBER.findall(part):
            at = [m for m, p in enumerate(theirs) if number in _NUMBER.findall(p)]
            letter = next(letters, None)
            if len(at) == 1 and letter is not None and part.count(number) == 1:
                ours[n] = ours[n].replace(number, f"{{{letter}}}")
                theirs[at[0]] = theirs[at[0]].replace(number, f"{{{letter}}}", 1)
    return f'[[map]]\nfrom = "{_pattern(ours)}"\nto = "{_pattern(theirs)}"'


def _pattern(parts: Sequence[str]) -> str:
    # captures must not be quoted: a quoted component is literal
    return "/".join(p if "{" in p else format_path((p,)) for p in parts).replace('"', '\\"')
