"""A leaf in words, and reasons that many leaves share.

Reports of a hundred thousand leaves spend their time here, so words are made once for each
structure and not once for each leaf.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from legacy.leaves import FileRegion, Leaf, LeafPath, StoredArray, format_path

__all__ = ["Reason", "describe", "dtype_name", "group_reasons", "storage_word"]

_DIGITS = re.compile(r"\d+")
_HOLE = "\0"


def describe(leaf: Leaf) -> str:
    """Kind, dtype and shape of a leaf in words.

    >>> describe(Leaf(("a",), "array", (2, 3), np.dtype("float32"), 24))
    'float32 (2, 3)'
    >>> describe(Leaf(("a",), "empty", container="tuple"))
    'empty tuple'
    """
    return _words(leaf.kind, leaf.dtype, leaf.shape, leaf.container or leaf.key_impl)


@functools.lru_cache(maxsize=1 << 14)
def _words(
    kind: str, dtype: np.dtype[Any] | None, shape: tuple[int, ...], detail: str | None
) -> str:
    if kind == "array":
        return f"{dtype} {shape}"
    if kind == "key":
        return f"{detail or 'PRNG'} key {shape}"
    if kind == "empty":
        return f"empty {detail or 'container'}"
    if kind == "unreadable":
        return "unreadable" if dtype is None else f"unreadable {dtype} {shape}"
    return f"{dtype} scalar" if kind == "scalar" else kind


@functools.lru_cache(maxsize=1 << 10)
def dtype_name(dtype: np.dtype[Any] | None) -> str | None:
    """``dtype.name``, which numpy composes anew each time it is asked.

    >>> dtype_name(np.dtype("int8")), dtype_name(None)
    ('int8', None)
    """
    return None if dtype is None else str(dtype.name)


def storage_word(leaf: Leaf) -> str | None:
    """How the bytes of a leaf lie on disk; None where the reader does not say.

    >>> storage_word(Leaf(("a",), "none")) is None
    True
    """
    if isinstance(leaf.storage, FileRegion):
        return "file"
    if isinstance(leaf.storage, StoredArray):
        return f"ocdbt+{leaf.storage.driver}" if leaf.storage.ocdbt else leaf.storage.driver
    return None


@dataclass(frozen=True, slots=True)
class Reason:
    """Something that is said of several leaves.

    Attributes:
        text: as it is said of the first of them.
        paths: the leaves.
    """

    text: str
    paths: tuple[LeafPath, ...]


def group_reasons(said: Iterable[tuple[LeafPath, str]]) -> list[Reason]:
    """Put leaves of one reason together, most leaves first.

    Texts are of one reason when they differ only in the leaf that they name and in numbers.

    Args:
        said: leaves, each with what is said of it.

    >>> said = [(("a",), "the folder a is missing"), (("b",), "the folder b is missing")]
    >>> [(reason.text, len(reason.paths)) for reason in group_reasons(said)]
    [('the folder a is missing', 2)]
    """
    by_text: dict[str, list[LeafPath]] = {}
    for path, text in said:
        by_text.setdefault(text, []).append(path)
    groups: dict[str, tuple[str, list[LeafPath]]] = {}
    for text, paths in by_text.items():
        key = _DIGITS.sub("#", _without(text, paths[0])) if len(paths) == 1 else text
        groups.setdefault(key, (text, []))[1].extend(paths)
    found = [Reason(text, tuple(paths)) for text, paths in groups.values()]
    return sorted(found, key=lambda reason: -len(reason.paths))


def _without(text: str, path: LeafPath) -> str:
    """The text without the names that formats give to the leaf."""
    for name in sorted({format_path(path), "/".join(path), ".".join(path)}, key=len, reverse=True):
        at = text.find(name) if name else -1
        while at >= 0:
            end = at + len(name)
            if text[at - 1 : at].isalnum() or text[end : end + 1].isalnum():
                at = text.find(name, end)  # part of another word: a leaf may be called "a"
                continue
            text = f"{text[:at]}{_HOLE}{text[end:]}"
            at = text.find(name, at)
    return text
