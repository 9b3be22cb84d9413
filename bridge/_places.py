"""Where the outputs of several sources go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["clashes", "outputs"]


def outputs(paths: Sequence[str], out: str) -> dict[Path, Path]:
    """A single path goes straight to ``out``, several go to folders of their names in it.

    >>> outputs(["a/run1", "b/run2"], "/new")[Path("b/run2")].as_posix()
    '/new/run2'
    """
    if len(paths) == 1:
        return {Path(paths[0]): Path(out)}
    return {Path(p): Path(out, Path(p).absolute().name) for p in paths}


def clashes(paths: Sequence[str]) -> list[str]:
    """Every name that two of the paths share, in words.

    >>> clashes(["a/run", "b/run"])
    ['a/run and b/run have one name']
    """
    by_name: dict[str, list[str]] = {}
    for path in paths if len(paths) > 1 else ():
        by_name.setdefault(Path(path).absolute().name, []).append(path)
    return [f"{' and '.join(same)} have one name" for same in by_name.values() if len(same) > 1]
