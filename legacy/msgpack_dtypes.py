"""The spellings of dtypes in msgpack and zarr files, from a closed list.

``np.dtype`` takes far more than was ever written (objects, records, ``'i4'`` against ``'int4'``),
so a spelling that is not on the list is unknown, never guessed.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

__all__ = ["DtypeAt", "resolve_dtype"]

_NUMPY_NAME = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64|96|128)|complex(64|128|192|256)")
_ML_NAME = re.compile(
    r"bfloat16|float8_e(3m4|4m3|4m3b11fnuz|4m3fn|4m3fnuz|5m2|5m2fnuz|8m0fnu)"
    r"|float6_e(2m3|3m2)fn|float4_e2m1fn|u?int[124]|b?complex32"
)
_CODE = re.compile(r"[<>|=](?:[biufcSU]\d{1,7}|[mM]8(?:\[[0-9]{0,9}[A-Za-z]{1,2}\])?)")
_TEXT_NAME = re.compile(r"(str|bytes)(\d{1,9})")
_TIME_NAME = re.compile(r"(?:datetime|timedelta)64(?:\[[0-9]{0,9}[A-Za-z]{1,2}\])?")
_OLD_BFLOAT16: Final = "<V2"
_OLD_BFLOAT16_NOTE: Final = (
    "the file calls the dtype '<V2', which is how flax 0.2.2 and older wrote bfloat16"
)
_OLD_FLOAT8: Final = "float8_e4m3b11"
_OLD_FLOAT8_NOTE: Final = "float8_e4m3b11 is what ml_dtypes 0.1 called float8_e4m3b11fnuz"
_NO_BYTE_ORDER: Final = (
    "the dtype's name has no byte order: read as little-endian, which is wrong for a numpy array "
    "that was big-endian when it was saved"
)


class DtypeAt(NamedTuple):
    """A dtype as the file spells it.

    ``stored`` is how the bytes lie, ``dtype`` what a reader gets (native byte order), ``is_code``
    whether it was a code like ``<f4`` (flax 0.2.2 and older) rather than a name.
    """

    spelling: str
    stored: np.dtype[Any]
    dtype: np.dtype[Any]
    is_code: bool
    note: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a leaf of a msgpack file says of its dtype."""
        return _notes(self)


@functools.lru_cache(maxsize=1 << 8)  # asked for each leaf
def _notes(at: DtypeAt) -> tuple[str, ...]:
    found = () if at.note is None else (at.note,)
    # jax and ml_dtypes have no big-endian arrays, but numpy has them for its own dtypes
    ordered = at.dtype.itemsize > 1 and at.dtype.kind in "iufc"
    return found if at.is_code or not ordered else (*found, _NO_BYTE_ORDER)


def resolve_dtype(spelling: str) -> DtypeAt | None:
    """The dtype of a name or a code.

    Args:
        spelling: ``float32``, ``bfloat16``, ``<f4``, ...

    Returns:
        The dtype; None when it holds objects or fields, or is not known.

    >>> resolve_dtype("bfloat16").dtype, resolve_dtype("object")
    (dtype(bfloat16), None)
    """
    if spelling == _OLD_BFLOAT16:
        bfloat16 = np.dtype(ml_dtypes.bfloat16)
        return DtypeAt(spelling, bfloat16, bfloat16, is_code=True, note=_OLD_BFLOAT16_NOTE)
    if spelling == _OLD_FLOAT8:
        float8 = np.dtype(ml_dtypes.float8_e4m3b11fnuz)
        return DtypeAt(spelling, float8, float8, is_code=False, note=_OLD_FLOAT8_NOTE)
    try:
        stored = _numpy_dtype(spelling)
    except (TypeError, ValueError, OverflowError):
        return None
    if stored is None or stored.itemsize == 0:
        return None
    return DtypeAt(
        spelling,
        stored,
        stored if stored.isnative else stored.newbyteorder("="),
        is_code=_CODE.fullmatch(spelling) is not None,
        note=None,
    )


def _numpy_dtype(spelling: str) -> np.dtype[Any] | None:
    if any(known.fullmatch(spelling) for known in (_NUMPY_NAME, _CODE, _TIME_NAME)):
        return np.dtype(spelling)
    if _ML_NAME.fullmatch(spelling):
        found = getattr(ml_dtypes, spelling, None)
        return None if found is None else np.dtype(found)
    text = _TEXT_NAME.fullmatch(spelling)  # dtype.name counts bits
    if text is None:
        return None
    kind, unit = ("U", 32) if text[1] == "str" else ("S", 8)
    chars, rest = divmod(int(text[2]), unit)
    return None if rest else np.dtype(f"<{kind}{chars}")
