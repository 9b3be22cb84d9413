"""What is already in an output, and what of it is ours.

An output says itself what it was made from: its provenance holds the digest of the plan and the
fingerprint of the source. So a ledger that was killed before it could say ``done``, or was lost,
is made good, and what somebody else wrote is never replaced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from bridge._convert import PROVENANCE
from bridge._verdict import LEVELS
from bridge.fleet_prints import fingerprint
from bridge.fleet_worker import FINGERPRINT
from bridge.layout import CHECKPOINT_METADATA, COMMIT_SUCCESS, CUSTOM_METADATA, TEMPORARY_SUFFIX
from bridge.ledger import LedgerRow

__all__ = ["Standing", "clean", "provenance", "standing", "taken_over"]

Standing = Literal["done", "adopt", "convert", "replace", "foreign"]
"""``done``: nothing to do; ``adopt``: it is there, and the ledger does not know; ``convert``:
nothing is there; ``replace``: ours, and no longer what is wanted; ``foreign``: somebody else's."""

_DIGITS: Final = 3


def provenance(place: Path) -> Mapping[str, Any] | None:
    """What an output says of itself; None when it is not one of ours, or not complete."""
    try:
        if not (place / COMMIT_SUCCESS).is_file():
            return None
        document = json.loads((place / CHECKPOINT_METADATA).read_bytes())
        about = document[CUSTOM_METADATA][PROVENANCE]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about if isinstance(about, Mapping) and isinstance(about.get("source"), str) else None


def standing(place: Path, row: LedgerRow | None, wanted: LedgerRow, *, again: bool) -> Standing:
    """Decide what is to be done for one checkpoint.

    Args:
        place: its step folder in the output.
        row: what the ledger knows of it.
        wanted: a row with everything that the output should have been made from.
        again: replace whatever is there.

    Returns:
        See :data:`Standing`.
    """
    if not os.path.lexists(place):
        return "convert"
    about = provenance(place)
    if again:
        return "replace"
    if about is not None and _fits(about, wanted):
        known = row is not None and row.state == "done" and row.layout == wanted.layout
        if known and row is not None and row.identity == _identity(place):
            return "done" if _rank(row.level) >= _rank(wanted.level) else "replace"
        if not known and _rank(_level(about)) >= _rank(wanted.level):
            return "adopt"
        return "replace"
    ours = row is not None and row.identity and row.source == wanted.source
    made_from_it = about is not None and FINGERPRINT in about and about["source"] == wanted.source
    return "replace" if ours or made_from_it else "foreign"


def taken_over(row: LedgerRow, place: Path) -> LedgerRow | None:
    """The row of an output that is complete though nobody has said so; None when there is none.

    Args:
        row: what it should have been made from.
        place: its step folder.
    """
    about = provenance(place)
    if about is None or not _fits(about, row):
        return None
    verified = about.get("verified") or {}
    return replace(
        row,
        state="done",
        pid=None,
        values_digest=str(about.get("values_digest") or ""),
        level=_level(about),
        rung=str(verified.get("rung") or ""),
        identity=_identity(place),
        error_kind="",
        error="",
    )


def _fits(about: Mapping[str, Any], row: LedgerRow) -> bool:
    return (
        bool(row.fingerprint)
        and about.get(FINGERPRINT) == row.fingerprint
        and about.get("plan_digest") == row.plan_digest
        and about["source"] == row.source
    )


def _level(about: Mapping[str, Any]) -> str:
    return str((about.get("verified") or {}).get("level") or "none")


def _rank(level: str) -> int:
    return len(LEVELS) - LEVELS.index(level) if level in LEVELS else 0


def _identity(place: Path) -> str:
    try:
        return fingerprint(place, own=True)[0]
    except OSError:
        return ""


def clean(place: Path, pid: int, out: Path) -> None:
    """Remove what a worker that is gone left beside the place of an output.

    An older output that it had put aside, and not yet replaced, gets its name back.

    Args:
        place: the step folder that it was making.
        pid: the worker.
        out: the output of the batch; empty folders below it go, too.
    """
    mine = re.compile(re.escape(f"{place.name}{TEMPORARY_SUFFIX}-{pid}") + rf"\d{{{_DIGITS}}}")
    try:
        names = [path.name for path in place.parent.iterdir()]
    except OSError:
        return
    for name in names:
        if not mine.fullmatch(name):
            continue
        folder = place.parent / name
        if not os.path.lexists(place) and (folder / CHECKPOINT_METADATA).is_file():
            folder.rename(place)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for above in place.parents:
        if above == out:
            return
        with suppress(OSError):
            above.rmdir()
            continue
        return
