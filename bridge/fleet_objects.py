"""Imports what ``fleet.toml`` names: functions of modules, and of files that are no module yet."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError, TargetError
from legacy.paths import absolute

__all__ = ["load_object"]


def load_object(name: str, folder: Path) -> Any:
    """What ``pkg.mod:fn`` or ``file.py:fn`` names.

    Files of one name in two folders are two modules.

    Args:
        name: a module on the Python path, or a file.
        folder: what the file is relative to.

    Raises:
        TargetError: it does not exist, or importing it fails.

    >>> load_object("math:sqrt", Path())(9.0)
    3.0
    """
    from bridge.spec import resolve  # noqa: PLC0415 - only where models are named

    module, colon, attribute = name.partition(":")
    if not (colon and module.endswith(".py")):
        return resolve(name)
    path = absolute(folder / module)
    unique = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if unique not in sys.modules:
        _import_file(path, unique, name)
    return resolve(f"{unique}:{attribute}")


def _import_file(path: Path, unique: str, name: str) -> None:
    from bridge.spec import import_file  # noqa: PLC0415 - as above

    if not path.is_file():
        raise TargetError(f"{name!r}: there is no file {path}.")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # for what it imports from beside it
    try:
        import_file(path, unique)
    except BridgeError:
        raise
    except Exception as error:
        raise TargetError(
            f"{name!r}: importing {path} failed: {type(error).__name__}: {error}"
        ) from error
