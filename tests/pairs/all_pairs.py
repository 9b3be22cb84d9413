"""All pairs by name."""

from __future__ import annotations

import importlib
from pathlib import Path

from .pair import Pair

_NOT_PAIRS = {"__init__", "__main__", "all_pairs", "harness", "pair", "scoring", "trees"}


def load() -> dict[str, Pair]:
    """Every pair of every module here."""
    found: dict[str, Pair] = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem in _NOT_PAIRS or file.stem.startswith("test_"):
            continue
        for pair in importlib.import_module(f"{__package__}.{file.stem}").PAIRS:
            assert pair.name not in found, pair.name
            found[pair.name] = pair
    return found


PAIRS = load()
