"""What comes out of the compatibility folders of Orbax's own tests, as a table.

    python tests/e2e/compatibility.py        # rewrites COMPATIBILITY.md beside it

Orbax's authors keep folders of one small tree each, with one file or another deliberately removed
or added (in the corpus, see tests/e2e/corpus.py). Every one holds the same two arrays, which is the
whole truth about them: they are read, or refused for the right reason, and never wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from corpus import CORPUS

import legacy

FILE = Path(__file__).with_name("COMPATIBILITY.md")
ROOT = CORPUS / "orbax" / "compatibility"
TRUTH = {"a": np.arange(8, dtype=np.int32), "c": np.arange(1, 4, dtype=np.int32)}
"""From Orbax's scripts that wrote the folders."""


def folders() -> list[Path]:
    """Every checkpoint below the root; an item inside a step belongs to its step."""
    found = {
        path.parent
        for marker in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "orbax.checkpoint")
        for path in ROOT.rglob(marker)
        if "ocdbt.process_" not in path.parent.name
    }
    return sorted(folder for folder in found if folder.parent not in found)


def outcome(folder: Path) -> tuple[str, str]:
    """``read``, ``in part``, ``refused`` or ``WRONG``, and why."""
    try:
        checkpoint = legacy.open(folder)
    except legacy.LegacyError as error:
        return "refused", _without_root(error)
    lost = [leaf for leaf in checkpoint.leaves.values() if leaf.kind == "unreadable"]
    good = {path: leaf for path, leaf in checkpoint.leaves.items() if leaf not in lost}
    try:
        right = all(_is_right(path[-1], leaf) for path, leaf in good.items())
    except legacy.LegacyError as error:
        return "refused", _without_root(error)
    names = {path[-1] for path in good}
    if not right or (not lost and names != set(TRUTH)):
        return "WRONG", ", ".join(sorted(names))
    if lost:
        return "in part", "; ".join(_without_root(leaf.problem or "") for leaf in lost)
    return "read", checkpoint.format.era


def _is_right(name: str, leaf: legacy.Leaf) -> bool:
    want, got = TRUTH.get(name), leaf.read()
    return want is not None and got.dtype == want.dtype and got.tobytes() == want.tobytes()


def _without_root(said: object) -> str:
    return str(said).replace(f"{ROOT}/", "").replace("|", "\\|").replace("\n", " ")


def table() -> str:
    """The table in Markdown."""
    rows = [(str(folder.relative_to(ROOT)), *outcome(folder)) for folder in folders()]
    counts = [f"{sum(r[1] == what for r in rows)} {what}" for what in sorted({r[1] for r in rows})]
    return "\n".join(
        [
            "# Orbax's own compatibility folders",
            "",
            "Made by `python tests/e2e/compatibility.py` from the corpus (google/orbax @ 3ff7b24);",
            "a test holds it up to date. Every folder holds the same two arrays.",
            "",
            f"{len(rows)} folders: {', '.join(counts)}.",
            "",
            "| folder | outcome | how it was taken, or why not |",
            "|---|---|---|",
            *(f"| {name} | {what} | {why} |" for name, what, why in rows),
            "",
        ]
    )


if __name__ == "__main__":
    FILE.write_text(table(), encoding="utf-8")
