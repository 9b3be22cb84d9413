"""Dumps parts of an OCDBT database, and leaves nothing behind.

TensorStore (0.1.84 to 0.1.86, found by counting references) keeps one reference too many of each
key and value that it puts into a Python dict made of JSON. Every dump of a B-tree so leaves all of
its keys behind: of a run of 2,000 steps with a thousand arrays each that is gigabytes. The
forgotten references are dropped here, and only where counting shows that there is exactly one.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

__all__ = ["dumped"]


def _alone() -> int:
    holder: list[Any] = [bytes(bytearray(b"a new object"))]
    return sys.getrefcount(holder[0])


_FORGOTTEN = _alone() + 1
"""What counting says of a value that a list holds, and somebody else; Pythons differ in it."""

_WORKS = hasattr(ctypes, "pythonapi") and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Without the lock of the interpreter counts are no counts."""

if _WORKS:
    _drop = ctypes.PyDLL(None).Py_DecRef
    _drop.argtypes, _drop.restype = [ctypes.py_object], None


def dumped(base: Any, *location: str) -> Any:
    """What ``tensorstore.ocdbt.dump`` gives.

    Args:
        base: the ``tensorstore.KvStore`` of the folder with ``manifest.ocdbt``.
        location: of a node or value; the manifest without one.

    Returns:
        The dump: dicts and lists, or bytes.

    Raises:
        ValueError, OSError: what is there is damaged, or not there.
    """
    import tensorstore as ts  # noqa: PLC0415 - slow to import; `inspect --help` is quick

    return _owned(ts.ocdbt.dump(base, *location).result())


def _owned(value: Any) -> Any:
    """The same value in new dicts and lists; ``value`` is emptied.

    Nothing but the very result of a dump may be given: of a value that somebody else holds, too,
    a reference would be dropped that is not forgotten.
    """
    if type(value) is list:
        return [_owned(item) for item in value]
    if type(value) is not dict:
        return value
    found = {}
    name: list[Any] = [None]
    part: list[Any] = [None]
    while value:
        name[0], part[0] = value.popitem()
        if _WORKS and sys.getrefcount(name[0]) == _FORGOTTEN:
            _drop(name[0])
        if _WORKS and sys.getrefcount(part[0]) == _FORGOTTEN:
            _drop(part[0])
        found[name[0]] = _owned(part[0])
    return dict(reversed(found.items()))
