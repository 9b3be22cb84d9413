"""The user's code that a golden names: model, optimizer, Linen module, sample input.

A golden is checked from any working folder and beside other goldens, so a file is named by its
path from the golden, and each file is a module of its own, whatever its name.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bridge.errors import TargetError
from bridge.spec import import_file, resolve

if TYPE_CHECKING:
    from bridge.golden import Golden

__all__ = ["References", "load_input", "load_reference", "moved_input", "moved_reference"]

_OURS = "linen_golden_"
"""Before the names of modules that are loaded from a file."""


def moved_reference(text: str, place: Path) -> str:
    """A reference as a golden keeps it: a file by its path from the golden.

    Args:
        text: ``pkg.mod:name``, or ``file.py:name`` with the path from the working folder.
        place: the folder of the golden.

    >>> moved_reference("src/models.py:make", Path("tests/goldens/cnn"))
    '../../../src/models.py:make'
    >>> moved_reference("lab.models:make", Path("tests/goldens/cnn"))
    'lab.models:make'
    """
    file, colon, name = text.rpartition(":")
    if not file.endswith(".py"):
        return text
    path = os.path.relpath(Path(file).resolve(), place.resolve())
    return f"{Path(path).as_posix()}{colon}{name}"


def load_reference(text: str, place: Path) -> Any:
    """What a reference names.

    Args:
        text: as :func:`moved_reference` gives it.
        place: the folder of the golden.

    Raises:
        TargetError: there is no such module or name, or the module fails when it is imported.

    >>> load_reference("math:pi", Path())
    3.141592653589793
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py"):
        return resolve(text)
    path = Path(os.path.normpath((place / file).absolute()))
    found: Any = _module(path, text)
    for part in name.split("."):
        if not hasattr(found, part):
            raise TargetError(f"{text!r}: {path} has no {part!r}.")
        found = getattr(found, part)
    return found


def _module(path: Path, text: str) -> ModuleType:
    try:
        code = path.read_bytes()
    except OSError as error:
        raise TargetError(f"{text!r}: {path} cannot be read: {error.strerror}.") from error
    for known, module in tuple(sys.modules.items()):  # the tests may have imported it themselves
        ours = known.startswith(_OURS) or known == "__main__"
        if getattr(module, "__file__", None) == str(path) and not ours:
            return module
    name = f"{_OURS}{hashlib.sha256(str(path).encode() + code).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:  # for what it imports from beside itself
        sys.path.append(str(path.parent))
    try:
        return import_file(path, name)
    except Exception as error:
        raise TargetError(
            f"{text!r}: importing {path} failed: {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True, slots=True)
class References:
    """What a golden names, loaded when it is asked for.

    Attributes:
        place: the folder of the golden.
        made: ``plan`` of its document.
        outputs: ``outputs`` of its document; empty without recorded outputs.
    """

    place: Path
    made: Mapping[str, Any]
    outputs: Mapping[str, Any]

    @classmethod
    def of(cls, golden: Golden) -> References:
        """Those of a golden."""
        document = golden.document
        return cls(golden.path, document.get("plan") or {}, document.get("outputs") or {})

    def model(self) -> Any:
        """The model; None for a structural target."""
        return self._load(self.made.get("model"))

    def tx(self) -> Any:
        """The optimizer; None without one."""
        return self._load(self.made.get("tx"))

    def linen(self) -> Any:
        """The Linen module; None where it is not needed for the plan."""
        return self._load(self.made.get("linen"))

    def sample_input(self) -> Any:
        """The sample input of the Linen module."""
        text = self.made.get("input")
        if text is None:
            return None
        return load_input(text, self.place)

    def _load(self, text: str | None) -> Any:
        return None if text is None else load_reference(text, self.place)


def load_input(text: str, place: Path) -> Any:
    """A sample input: a reference, or anything that ``--input`` takes.

    Args:
        text: see :func:`bridge.inputs.read_input`; files by their path from the golden.
        place: the folder of the golden.
    """
    from bridge.inputs import read_input  # noqa: PLC0415 - loads jax

    if text.rpartition(":")[0].endswith(".py"):
        found = load_reference(text, place)
        return found() if callable(found) else found
    return read_input(str(place / text) if text.endswith((".npy", ".npz")) else text)


def moved_input(text: str, place: Path) -> str:
    """As :func:`moved_reference`, for a sample input."""
    if text.endswith((".npy", ".npz")):
        return Path(os.path.relpath(Path(text).resolve(), place.resolve())).as_posix()
    return moved_reference(text, place)
