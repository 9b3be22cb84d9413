"""Which leaf changed, and by how much, in words.

A golden keeps digests, so the old values are gone; unless they are still somewhere: in the source
that was copied, or in another slot, when two were exchanged. Then the difference is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bridge._bits import measure
from bridge.golden_digests import Record, changes, places_of, shape_words
from legacy import Leaf
from legacy.errors import LegacyError
from legacy.leaves import ARRAY_KINDS

__all__ = ["Known", "changed_leaves", "far", "known_values"]

Known = Mapping[str, tuple[str, Leaf]]
"""Leaves whose values are at hand, by digest, with what to call them."""


def known_values(
    records: Mapping[str, Record], leaves: Mapping[str, Leaf], called: str
) -> dict[str, tuple[str, Leaf]]:
    """The arrays among some leaves by digest.

    Args:
        records: what is known of each.
        leaves: the leaves themselves.
        called: what each is, before its name.
    """
    return {
        entry["sha256"]: (f"{called} {name}", leaves[name])
        for name, entry in records.items()
        if entry["kind"] in ARRAY_KINDS and "sha256" in entry
    }


def changed_leaves(
    was: Mapping[str, Record],
    now: Mapping[str, Record],
    leaves: Mapping[str, Leaf],
    known: Known,
) -> Iterator[str]:
    """A sentence for each leaf that is not as it was recorded.

    Args:
        was: what was recorded.
        now: what is there.
        leaves: the leaves that are there, as far as they can be read.
        known: where recorded values may still be.
    """
    for name, before, after in changes(was, now):
        if before is None and after is not None:
            yield f"{name} is new: {shape_words(after)}"
        elif after is None and before is not None:
            yield f"{name} is gone: it was {shape_words(before)}"
        elif before is not None and after is not None:
            yield f"{name}: {_changed(before, after, leaves.get(name), known)}"


def _changed(was: Record, now: Record, leaf: Leaf | None, known: Known) -> str:
    before, after = shape_words(was), shape_words(now)
    if before != after:
        return f"{before} was recorded, {after} today"
    if now["kind"] not in ARRAY_KINDS:
        return f"{was.get('value')} was recorded, {now.get('value')} today"
    told = _measured(was, leaf, known)
    return told or f"other values ({before}); {_by_numbers(was, now)}"


def _measured(was: Record, leaf: Leaf | None, known: Known) -> str | None:
    if leaf is None or was["sha256"] not in known:
        return None
    words, other = known[was["sha256"]]
    try:
        a, b = np.asarray(other.read()), np.asarray(leaf.read())
    except LegacyError:
        return None
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"the recorded values are now those of {words}"
    return f"{measure(a, b)}{far(a, b)}; the recorded values are those of {words}"


def far(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> str:
    """Where two arrays are farthest apart, in words; empty when that cannot be told.

    >>> far(np.float32([1, 2]), np.float32([1, 2.5]))
    ', the farthest at [1]: 2.0 recorded, 2.5 today'
    """
    if not a.size or not a.ndim:
        return f": {a} recorded, {b} today" if a.size else ""
    try:
        wide = np.complex128 if a.dtype.kind == "c" else np.float64
        gaps = np.abs(a.astype(wide) - b.astype(wide))
    except (TypeError, ValueError):
        return ""
    at = np.unravel_index(int(np.nanargmax(gaps)) if not np.isnan(gaps).all() else 0, a.shape)
    place = ", ".join(str(int(i)) for i in at)
    return f", the farthest at [{place}]: {a[at]} recorded, {b[at]} today"


def _by_numbers(was: Record, now: Record) -> str:
    few = list(zip(places_of(now["shape"]), was.get("few", ()), now.get("few", ()), strict=False))
    other = [(place, a, b) for place, a, b in few if a != b]
    told = []
    if other:
        place, a, b = max(other, key=_gap)
        at = f" at {list(place)}" if place else ""
        told.append(f"of {len(few)} kept values {len(other)} differ, the farthest{at}: "
                    f"{a} recorded, {b} today")  # fmt: skip
    elif few:
        told.append(f"the {len(few)} kept values are the same")
    told += [f"{key} {was[key]} → {now[key]}" for key in ("mean", "min", "max")
             if key in was and key in now and was[key] != now[key]]  # fmt: skip
    return ", ".join(told) or "the kept numbers are the same"


def _gap(row: tuple[Any, str, str]) -> float:
    try:
        gap = abs(complex(row[1]) - complex(row[2]))
    except ValueError:
        return 0.0
    return gap if gap == gap else float("inf")  # noqa: PLR0124 - NaN
