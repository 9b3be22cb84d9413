"""Which releases of libraries are installed, for what is kept with an output."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable

__all__ = ["installed", "version"]


@functools.cache
def version(name: str) -> str | None:
    """The release of a library; None when it is not there.

    >>> version("no-such-library") is None
    True
    """
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    # the whole document takes ten times as long to parse
    lines = (found.read_text("METADATA") or "").splitlines()
    named = next((line for line in lines if line.startswith("Version: ")), None)
    return found.version if named is None else named.removeprefix("Version: ")


def installed(names: Iterable[str]) -> dict[str, str]:
    """The releases of those libraries that are there.

    >>> installed(["no-such-library"])
    {}
    """
    found = {name: version(name) for name in names}
    return {name: text for name, text in found.items() if text is not None}
