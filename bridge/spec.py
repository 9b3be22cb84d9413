"""Names of Python objects in text: ``--model pkg.mod:fn`` on the command line and in specs.

Needs no JAX itself; what the named module imports is the user's affair.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from bridge.errors import TargetError

__all__ = ["import_file", "resolve"]


def resolve(text: str) -> Any:
    """Import the object that ``pkg.mod:name`` names.

    The current folder is searched first, as ``python -m`` does.

    Args:
        text: module, colon, name; the name may have dots (``models:Zoo.small``).

    Returns:
        The object itself; it is not called.

    Raises:
        TargetError: the text has another form, the module does not exist or fails when it is
            imported, or it has no such name.

    >>> resolve("math:sqrt")(9.0)
    3.0
    """
    name, colon, attribute = text.partition(":")
    if not (colon and attribute.strip() and name.strip()):
        raise TargetError(
            f"{text!r} does not name a Python object; expected module:name, such as "
            "my_package.models:make_model."
        )
    if name.endswith(".py") or "/" in name:
        module = ".".join(Path(name).with_suffix("").parts)
        raise TargetError(f"{text!r}: give the module, not its file: {module}:{attribute}")
    found: Any = _module(name, text)
    for n, part in enumerate(attribute.split(".")):
        if not hasattr(found, part):
            owner = ".".join([name, *attribute.split(".")[:n]])
            raise TargetError(f"{text!r}: {owner} has no {part!r}.{_near(part, dir(found))}")
        found = getattr(found, part)
    return found


def import_file(path: Path, name: str) -> ModuleType:
    """Import a file as a module of that name; what it raises is the caller's to tell.

    Args:
        path: a file that is there and ends in ``.py``.
        name: what it is called in ``sys.modules``; it is not left there when it fails.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # noqa: S101 - the suffix is that of Python
    assert spec.loader is not None  # noqa: S101 - likewise
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module(name: str, text: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(
                f"{text!r}: there is no module {error.name!r} on the Python path (searched "
                f"{here} first). Run from the folder that holds it, or set PYTHONPATH."
            ) from error
        raise TargetError(f"{text!r}: importing {name} failed: {error}") from error
    except Exception as error:
        raise TargetError(
            f"{text!r}: importing {name} failed: {type(error).__name__}: {error}"
        ) from error


def _near(part: str, names: list[str]) -> str:
    public = [n for n in names if not n.startswith("_")]
    close = difflib.get_close_matches(part, public, n=3)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" It has {', '.join(public[:8])}{', ...' if len(public) > 8 else ''}." if public else ""  # noqa: PLR2004 - a line's worth
