"""What a save that did not finish leaves behind: names on disk, and marks in a step's metadata.

flax writes ``<prefix>tmp`` and renames it; Orbax writes ``<name>.orbax-checkpoint-tmp...`` and
renames it, for a step and (in old releases, inside of that) for each item. So nothing under a final
name is half-written, but where renaming is not atomic (GCS) or where somebody renamed by hand.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from legacy.flax_gda import GDA_SUFFIX
from legacy.orbax import TEMPORARY
from legacy.orbax_eras import NOT_COMMITTED
from legacy.orbax_metadata import STEP_METADATA
from legacy.step_names import split_step

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["leftover", "not_committed"]

COMMIT_SUCCESS: Final = "commit_success.txt"
PARTIAL_SAVE: Final = ".partial_save"
_FLAX_PREFIX: Final = "checkpoint_"
_FLAX_TMP: Final = "tmp"


def leftover(name: str, names: set[str]) -> str | None:
    """Say why an entry of a folder is what an interrupted save left there.

    Args:
        name: of the entry.
        names: of all entries of the folder.

    Returns:
        The reason, or None.

    >>> leftover("checkpoint_tmp", {"checkpoint_1"})
    'temporary file of a flax save that did not finish'
    """
    if TEMPORARY in name:
        return "temporary folder of an Orbax save that did not finish"
    if PARTIAL_SAVE in name:
        return "part of an Orbax v1 save that was never finalized"
    stem = name.removesuffix(GDA_SUFFIX)
    if stem.endswith(_FLAX_TMP):
        prefix = stem.removesuffix(_FLAX_TMP)
        found = (split_step(other) for other in names)
        if prefix == _FLAX_PREFIX or (prefix and any(s and s.prefix == prefix for s in found)):
            return "temporary file of a flax save that did not finish"
    if name.endswith(".tmp"):
        return "temporary by its name"
    return None


def not_committed(folder: Path) -> str | None:
    """Say why a step is not finished, though it can be opened.

    On file systems without an atomic rename (GCS) Orbax writes into the final folder, and notes
    the commit last, in two places. A missing note means nothing, since old releases and copies have
    none; a note that says "not yet" does, unless the other one says "done".

    Args:
        folder: a step or tree folder.

    Returns:
        The reason, or None.
    """
    if any(TEMPORARY in name for name in (folder.name, folder.parent.name)):
        return (
            f"{NOT_COMMITTED}: a temporary folder of an Orbax save that did not finish. What was "
            "not written yet cannot be told from what never was"
        )
    if any(PARTIAL_SAVE in name for name in (folder.name, folder.parent.name)):
        return (
            f"{NOT_COMMITTED}: a part of an Orbax v1 save that was never finalized. What other "
            "parts hold is not in it"
        )
    if os.path.exists(f"{folder}/{COMMIT_SUCCESS}"):  # noqa: PTH110 - asked for each step
        return None
    if item := _unfinished_item(folder):
        return (
            f"{NOT_COMMITTED}: its item {item} is a temporary folder, so the save did not finish. "
            "To read what is there all the same, give the path of this folder"
        )
    if _has_no_commit_time(folder):
        return (
            f"{NOT_COMMITTED}: {STEP_METADATA} has a start time and no commit time, so the save "
            "did not finish. To read it all the same, give the path of this folder"
        )
    return None


def _unfinished_item(folder: Path) -> str | None:
    """The temporary folder of an item that has no finished one beside it."""
    try:
        names = set(os.listdir(folder))  # noqa: PTH208 - names, not paths
    except OSError:
        return None  # opening the step says so
    temporary = (name for name in sorted(names) if TEMPORARY in name)
    return next((name for name in temporary if name.partition(TEMPORARY)[0] not in names), None)


def _has_no_commit_time(folder: Path) -> bool:
    file = folder / STEP_METADATA
    try:
        document = json.loads(file.read_bytes()) if file.is_file() else None
    except (ValueError, OSError):
        return False  # there is none, or opening the step reports a damaged one
    return bool(
        isinstance(document, dict)
        and document.get("init_timestamp_nsecs")
        and document.get("commit_timestamp_nsecs", 0) is None
    )
