"""One spelling for paths on disk: absolute, and without ``..``.

TensorStore refuses a path with ``..`` in it ("Invalid file path", measured with 0.1.86), and
Orbax wants absolute paths for OCDBT. A ``..`` behind a symbolic link means the parent of where the
link leads, so it is the file system that must be asked, not the text.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["absolute"]


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path made absolute; symbolic links are followed only where ``..`` asks for it.

    >>> ".." in absolute("a/../b").parts
    False
    """
    place = Path(path).absolute()
    return Path(os.path.realpath(place)) if ".." in place.parts else place
