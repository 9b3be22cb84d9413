"""Comparing arrays bit by bit, in blocks, without holding more than a block of each.

Equality here is equality of bytes: two NaNs of one bit pattern are equal, ``0.0`` and ``-0.0``
are not. Numbers about a difference (how far, how often) are only for the reader of a report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from legacy.leaves import Index, Leaf

__all__ = [
    "BLOCK",
    "Measure",
    "blocks",
    "host_bytes",
    "measure",
    "same_bytes",
    "same_value",
    "show_value",
]

BLOCK = 16 << 20
"""Bytes read at a time from each side, unless a stored chunk is larger."""

_WORDS = 1 << 15
"""Words of 8 bytes that are compared at a time: what numpy answers stays in the cache."""

SHOWN = 60
"""Characters of a text value that a report shows."""


def blocks(leaf: Leaf, other: Leaf | None = None, limit: int = BLOCK) -> Iterator[Index | None]:
    """Cut an array along its first long axis into blocks of about ``limit`` bytes.

    A block is never smaller than a stored chunk of either side, so that no chunk is decoded
    twice. The bytes of all blocks in order are the bytes of the array in C order.

    >>> leaf = Leaf(("a",), "array", (4, 2), np.dtype("float32"), 32)
    >>> [b[0] for b in blocks(leaf, limit=16)]
    [slice(0, 2, None), slice(2, 4, None)]
    """
    # a key is read whole; axes of length 1 in front do not change the order of the bytes
    axis = next((n for n, length in enumerate(leaf.shape) if length != 1), None)
    if axis is None or leaf.nbytes <= limit or leaf.kind == "key":
        yield None
        return
    length = leaf.shape[axis]
    rows = max(1, limit // max(1, leaf.nbytes // length))
    for side in (leaf, other):
        if side is not None and side.chunks:
            rows = max(1, rows // side.chunks[axis]) * side.chunks[axis]
    front = (slice(0, 1),) * axis
    rest = tuple(slice(0, n) for n in leaf.shape[axis + 1 :])
    for start in range(0, length, rows):
        yield (*front, slice(start, min(start + rows, length)), *rest)


def host_bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of an array in C order, as a view where it can be one."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def same_bytes(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays have the same bytes in C order.

    >>> same_bytes(np.float32([1, 2]), np.float32([1, 2])), same_bytes(np.zeros(1), -np.zeros(1))
    (True, False)
    """
    left, right = host_bytes(a), host_bytes(b)
    if len(left) != len(right):
        return False
    end = len(left) // 8
    words, others = left[: 8 * end].view(np.uint64), right[: 8 * end].view(np.uint64)
    return np.array_equal(left[8 * end :], right[8 * end :]) and all(
        np.array_equal(words[at : at + _WORDS], others[at : at + _WORDS])
        for at in range(0, end, _WORDS)
    )


def same_value(a: Any, b: Any) -> bool:
    """Whether two values read from leaves are the same: bits for arrays, ``==`` and type else.

    >>> same_value(np.float32("nan"), np.float32("nan")), same_value(1, True)
    (True, False)
    """
    if isinstance(a, np.generic | np.ndarray) and isinstance(b, np.generic | np.ndarray):
        left, right = np.asarray(a), np.asarray(b)
        if left.shape != right.shape or left.dtype != right.dtype:
            return False
        return same_bytes(left, right)
    if type(a) is not type(b):
        return False
    # a float that is NaN differs from itself; JSON keeps no bits of it, so the text decides
    return bool(a == b) or (isinstance(a, float | complex) and repr(a) == repr(b))


def show_value(value: Any) -> str:
    """A value in a few words.

    >>> show_value(3), show_value(np.float32(0.5)), show_value("x" * 100)[-18:]
    ('3', '0.5', '… (100 characters)')
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return str(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} {value.shape}"
    text = repr(value)
    size = len(value) if isinstance(value, str | bytes) else len(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({size} characters)"


@dataclass(frozen=True, slots=True)
class Measure:
    """How far two arrays of one shape are apart.

    Attributes:
        size: elements compared.
        differing: elements whose bits differ (of unequal dtypes: whose values differ).
        max_abs: the largest difference among finite elements.
        max_ulp: the same in units of the last place; None unless both are one float dtype.
        nonfinite: differing elements where at least one side is NaN or infinite.
        max_rel: the largest difference in relation to the larger of the two, among finite ones.
        signs: differing elements that are zero on both sides, of unequal sign.
    """

    size: int = 0
    differing: int = 0
    max_abs: float = 0.0
    max_ulp: int | None = None
    nonfinite: int = 0
    max_rel: float = 0.0
    signs: int = 0

    def __or__(self, other: Measure) -> Measure:
        """Both together, as blocks of one array."""
        ulps = [u for u in (self.max_ulp, other.max_ulp) if u is not None]
        return Measure(
            self.size + other.size,
            self.differing + other.differing,
            max(self.max_abs, other.max_abs),
            max(ulps) if ulps else None,
            self.nonfinite + other.nonfinite,
            max(self.max_rel, other.max_rel),
            self.signs + other.signs,
        )

    def __str__(self) -> str:
        text = f"{self.differing:,} of {self.size:,} differ"
        if self.signs and self.signs == self.differing:
            return f"{text}, 0.0 and -0.0"
        text += f", max abs {self.max_abs:.3g}, max rel {self.max_rel:.3g}"
        if self.max_ulp is not None:
            text += f", max {self.max_ulp} ulp"
        text += f", {self.signs:,} times 0.0 and -0.0" if self.signs else ""
        return text + (f", {self.nonfinite:,} NaN or infinite" if self.nonfinite else "")

    def to_json(self) -> Mapping[str, Any]:
        """Plain JSON values."""
        return {
            "size": self.size,
            "differing": self.differing,
            "max_abs": self.max_abs,
            "max_ulp": self.max_ulp,
            "nonfinite": self.nonfinite,
            "max_rel": self.max_rel,
            "signs": self.signs,
        }


def measure(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> Measure:
    """Compare two arrays of one shape.

    >>> str(measure(np.float32([1, 2]), np.float32([1, 2.5])))
    '1 of 2 differ, max abs 0.5, max rel 0.2, max 2097152 ulp'
    """
    size = math.prod(a.shape)
    if a.dtype == b.dtype and same_bytes(a, b):
        return Measure(size)
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    at = _differs(flat_a, flat_b)
    if not at.any():
        return Measure(size)
    # only what differs: the rest would cost three more copies of a large array
    left, right = flat_a[at], flat_b[at]
    if left.dtype == right.dtype and _integral(left.dtype):
        return Measure(size, len(left), *_integer_distance(left, right))
    wide = np.complex128 if "c" in (left.dtype.kind, right.dtype.kind) else np.float64
    wide_left, wide_right = left.astype(wide), right.astype(wide)
    finite = np.isfinite(wide_left) & np.isfinite(wide_right)
    near, far = wide_left[finite], wide_right[finite]
    with np.errstate(over="ignore"):
        gaps = np.abs(near - far)
    scale = np.maximum(np.abs(near), np.abs(far))
    moved = gaps > 0
    return Measure(
        size,
        len(left),
        float(gaps.max(initial=0.0)),
        _ulps(left[finite], right[finite]),
        int((~finite).sum()),
        float((gaps[moved] / scale[moved]).max(initial=0.0)),
        int((scale == 0).sum()),
    )


def _differs(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if a.dtype == b.dtype:
        width = a.dtype.itemsize
        both = (host_bytes(x).reshape(-1, width) for x in (a, b))
        differs: np.ndarray[Any, Any] = np.not_equal(*both).any(axis=1)
        return differs
    if not _numeric(a.dtype) or not _numeric(b.dtype):
        return np.ones(len(a), bool)
    if a.dtype.kind in "biu" and b.dtype.kind in "biu":
        return np.asarray(a != b)
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    wide_a, wide_b = a.astype(wide), b.astype(wide)
    same = (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
    for narrow, widened in ((a, wide_a), (b, wide_b)):
        if narrow.dtype.kind in "iu":
            # 2**53 + 1 becomes 2.0**53: what float64 cannot hold equals no float
            limit = 2.0 ** (8 * narrow.dtype.itemsize - (narrow.dtype.kind == "i"))
            with np.errstate(invalid="ignore"):
                same &= widened.real.astype(narrow.dtype) == narrow
            same &= widened.real < limit
    return ~np.asarray(same)


def _numeric(dtype: np.dtype[Any]) -> bool:
    # bfloat16 and its family have kind V or f by release of ml_dtypes; a void has no cast at all
    return dtype.kind in "biufc" or dtype.type is not np.void


def _integral(dtype: np.dtype[Any]) -> bool:
    # int4 and its family have kind V
    return dtype.kind in "biu" or dtype.name.startswith(("int", "uint"))


def _integer_distance(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]
) -> tuple[float, None, int, float]:
    """``max_abs``, ``max_ulp``, ``nonfinite`` and ``max_rel`` of integers that differ."""
    if a.dtype.kind == "V":
        a, b = a.astype(np.int64), b.astype(np.int64)
    # modulo 2**64 the difference of the larger and the smaller is exact for every integer dtype
    high, low = np.maximum(a, b).astype(np.uint64), np.minimum(a, b).astype(np.uint64)
    gaps = high - low
    scale = np.maximum(np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64)))
    rel = gaps.astype(np.float64) / np.maximum(scale, 1.0)
    return float(gaps.max(initial=0)), None, 0, float(rel.max(initial=0.0))


def _ulps(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int | None:
    width = a.dtype.itemsize
    no_float = _integral(a.dtype) or a.dtype.kind == "c"
    if a.dtype != b.dtype or no_float or width not in (1, 2, 4, 8):
        return None
    kind = np.dtype(f"uint{8 * width}")
    magnitude_bits = kind.type(np.iinfo(kind).max >> 1)
    bits_a, bits_b = a.view(kind), b.view(kind)
    large_a = (bits_a & magnitude_bits).astype(np.uint64)
    large_b = (bits_b & magnitude_bits).astype(np.uint64)
    one_side = (bits_a > magnitude_bits) == (bits_b > magnitude_bits)
    apart = np.maximum(large_a, large_b) - np.minimum(large_a, large_b)
    return int(np.where(one_side, apart, large_a + large_b).max(initial=0))
