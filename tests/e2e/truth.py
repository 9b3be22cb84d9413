"""Truth that was written beside each golden, in no checkpoint format: JSON and npz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

GOLDENS = Path(__file__).parents[1] / "goldens"


def goldens(prefix: str = "") -> list[str]:
    """Names ``era/content-writer`` of the goldens whose content starts with a prefix."""
    found = sorted(
        f"{p.parent.parent.name}/{p.parent.name}" for p in GOLDENS.glob("*/*/truth.json")
    )
    return [name for name in found if name.split("/")[1].startswith(prefix)]


def checkpoint_path(name: str) -> Path:
    """The checkpoint of a golden: a file, a folder, or a run."""
    folder = GOLDENS / name
    return next(p for n in ("checkpoint_3", "ckpt", "mgr") if (p := folder / n).exists())


class Truth:
    """What a golden must read as."""

    def __init__(self, name: str, step: int | None = None) -> None:
        folder = GOLDENS / name
        tail = "" if step is None else f"_step{step}"
        self.info = json.loads((folder / f"truth{tail}.json").read_text())
        with np.load(folder / f"truth{tail}.npz") as arrays:
            self.arrays = dict(arrays)

    def value(self, leaf: dict[str, Any]) -> Any:
        """The value of a leaf entry: an array of its own dtype, or a Python value."""
        if "data" not in leaf:
            return leaf.get("value")
        array = self.arrays[leaf["data"]]
        if leaf["kind"] == "key":  # truth holds the key's data
            return array
        dtype = np.dtype(getattr(ml_dtypes, leaf["dtype"], leaf["dtype"]))
        return array if array.dtype == dtype else array.view(dtype)

    def leaves(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """Leaf entries by path."""
        return {tuple(e["path"]): e for e in self.info["leaves"]}

    def tree(self, *prefix: str) -> dict[str, Any]:
        """The arrays below a prefix as a nested dict."""
        root: dict[str, Any] = {}
        for path, leaf in self.leaves().items():
            if path[: len(prefix)] == prefix and "data" in leaf:
                node = root
                for part in path[len(prefix) : -1]:
                    node = node.setdefault(part, {})
                node[path[-1]] = self.value(leaf)
        return root
