"""What the metadata of one zarr array says, and which chunks it promises.

TensorStore opens an array for a tenth of a millisecond and gives zeros for a chunk that is lost. So
the few fields that a table of leaves needs are parsed here, for thousands of arrays at once, and
the chunks are counted before anything is read. Facts: the zarr 2 and 3 specifications, and
TensorStore 0.1.86 as measured by the tests of this module.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.msgpack_dtypes import resolve_dtype
from legacy.orbax_documents import Remembered, expect, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

    import numpy as np

__all__ = ["ArrayMetadata", "other_metadata", "parse_array_metadata"]

ZARR2_METADATA: Final = ".zarray"
ZARR3_METADATA: Final = "zarr.json"

_CHUNK = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_SIZE: Final = 1 << 48
_MAX_AXES: Final = 32
_MAX_DIGITS: Final = 20
_KEY_ENDS: Final = ((2,), (4,))
_WORD: Final = 4
_VOID_BFLOAT16: Final = ("<V2", "|V2")


class ArrayMetadata(NamedTuple):
    """The facts of one array.

    Attributes:
        driver: TensorStore's name of the format.
        shape, dtype, chunks: of the array; the dtype is native, whatever lies on disk.
        fills: whether the format has a value for a chunk that is not stored.
        prefix, separator: how the name of a chunk is made from its indices.
        is_void: the dtype is written as raw bytes (``<V2``, bfloat16 before it had a name).
    """

    driver: Literal["zarr", "zarr3"]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    fills: bool
    prefix: str
    separator: str
    is_void: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the array when read."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def may_be_key(self) -> bool:
        """Whether it has the shape and the dtype that the data of PRNG keys have."""
        return (
            self.shape[-1:] in _KEY_ENDS and self.dtype.kind == "u" and self.dtype.itemsize == _WORD
        )

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of one chunk when read."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks lie along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    def chunk_name(self, index: tuple[int, ...]) -> str:
        """The name of a chunk below the array.

        >>> import numpy as np
        >>> meta = ArrayMetadata("zarr3", (4,), np.dtype("i4"), (2,), True, "c", "/")
        >>> meta.chunk_name((1,)), meta.grid
        ('c/1', (2,))
        """
        parts = [self.prefix] if self.prefix else []
        return self.separator.join([*parts, *map(str, index)]) or "0"

    def in_block(self, name: str, block: tuple[slice, ...]) -> bool:
        """Whether a chunk, by its name, holds values of a block.

        >>> import numpy as np
        >>> meta = ArrayMetadata("zarr", (4,), np.dtype("i4"), (2,), True, "", ".")
        >>> [meta.in_block(name, (slice(1, 2),)) for name in ("0", "1")]
        [True, False]
        """
        place = self._indices(name)
        if place is None or len(place) != len(block):
            return place == (0,) and not block  # the one chunk of a 0-d array
        return all(
            n * size < span.stop and (n + 1) * size > span.start
            for n, size, span in zip(place, self.chunks, block, strict=True)
        )

    def missing(self, stored: AbstractSet[str]) -> str | None:
        """The name of a chunk that should be stored and is not; None when all are.

        Never looks at more chunks than are stored, whatever size the metadata claims.
        """
        return next((name for name in self._names() if name not in stored), None)

    def foreign(self, stored: AbstractSet[str]) -> str | None:
        """The name of a stored chunk that lies outside the array; None when there is none."""
        return next((n for n in sorted(stored) if self._is_outside(n)), None)

    def _names(self) -> Iterator[str]:
        for number in range(math.prod(self.grid)):  # itertools.product would list every axis
            index: list[int] = []
            for size in reversed(self.grid):
                number, place = divmod(number, size)  # noqa: PLW2901 - the digits of a number
                index.append(place)
            yield self.chunk_name(tuple(reversed(index)))

    def _is_outside(self, name: str) -> bool:
        place = self._indices(name)
        if place is None:
            return False
        if not self.shape:
            return bool(place) and name != "0"
        return len(place) != len(self.shape) or any(
            n >= most for n, most in zip(place, self.grid, strict=True)
        )

    def _indices(self, name: str) -> tuple[int, ...] | None:
        """The place in the grid that the name of a chunk tells; None for names of no chunk."""
        parts = name.split(self.separator)
        if self.prefix:
            if parts[0] != self.prefix:
                return None
            parts = parts[1:]
        if not all(part.isascii() and part.isdigit() for part in parts):
            return None
        # beyond the longest size, and Python refuses to parse some thousand digits
        return tuple(int(part) if len(part) < _MAX_DIGITS else _MAX_SIZE + 1 for part in parts)


def other_metadata(names: Iterable[str]) -> list[str]:
    """The names, beside chunks of zarr 2, of which one may be the metadata of the array.

    Orbax up to 0.5 let its user name the file (``ArrayHandler(metadata_key=)``).

    Args:
        names: directly below the array, among them neither ``.zarray`` nor ``zarr.json``.

    Returns:
        The names that are no chunk; none where there is no chunk either.

    >>> other_metadata(["0.0", "0.1", "array.json"]), other_metadata(["array.json"])
    (['array.json'], [])
    """
    known = sorted(names)
    others = [name for name in known if not _CHUNK.fullmatch(name) and name.isprintable()]
    return others if any(_CHUNK.fullmatch(name) for name in known) else []


def parse_array_metadata(raw: bytes, where: str, file: Path) -> ArrayMetadata:
    """Read a ``.zarray`` or ``zarr.json``.

    Args:
        raw: the JSON text.
        where: the document, for messages (it may lie inside a database).
        file: the file or database that holds it.

    Returns:
        What it says.

    Raises:
        DamagedCheckpoint: no JSON, a field of a wrong type, or sizes that cannot be.
        UnsupportedCheckpoint: a dtype or chunk grid that Orbax never wrote.
    """
    return _array_of(raw, where, file)


def _parsed_array(raw: bytes, where: str, file: Path) -> ArrayMetadata:
    place = Path(where)
    try:
        document = expect(parse_json(raw, where, file), dict, place, "(whole document)")
        version = expect(document.get("zarr_format"), int, place, "zarr_format")
        if version == 2:  # noqa: PLR2004 - a format number
            return _zarr2(document, place)
        if version == 3:  # noqa: PLR2004
            return _zarr3(document, place)
    except LegacyError as error:
        error.path = file  # the document may lie inside of it
        raise
    raise UnsupportedCheckpoint(f"{place}: zarr_format is {version}; 2 and 3 are read.", path=file)


_array_of: Final = Remembered(_parsed_array, 4096)


def _zarr2(document: dict[str, Any], place: Path) -> ArrayMetadata:
    shape = _sizes(document.get("shape"), place, "shape", least=0)
    return ArrayMetadata(
        "zarr",
        shape,
        _dtype(document.get("dtype"), place, "dtype"),
        _chunks(document.get("chunks"), shape, place, "chunks"),
        fills=document.get("fill_value") is not None,
        prefix="",
        separator=_separator(document.get("dimension_separator", "."), place),
        is_void=document["dtype"] in _VOID_BFLOAT16,
    )


def _zarr3(document: dict[str, Any], place: Path) -> ArrayMetadata:
    shape = _sizes(document.get("shape"), place, "shape", least=0)
    grid = expect(document.get("chunk_grid"), dict, place, "chunk_grid")
    if grid.get("name") != "regular":
        raise UnsupportedCheckpoint(f"{place}: chunk_grid {grid.get('name')!r} is not read.")
    chunks = expect(grid.get("configuration"), dict, place, "chunk_grid.configuration")
    encoding = expect(document.get("chunk_key_encoding"), dict, place, "chunk_key_encoding")
    name = expect(encoding.get("name"), str, place, "chunk_key_encoding.name")
    if name not in ("default", "v2"):
        raise UnsupportedCheckpoint(f"{place}: chunk_key_encoding {name!r} is not read.")
    options = expect(encoding.get("configuration", {}), dict, place, "chunk_key_encoding")
    usual = "/" if name == "default" else "."
    return ArrayMetadata(
        "zarr3",
        shape,
        _dtype(document.get("data_type"), place, "data_type"),
        _chunks(chunks.get("chunk_shape"), shape, place, "chunk_grid.configuration.chunk_shape"),
        fills=True,
        prefix="c" if name == "default" else "",
        separator=_separator(options.get("separator", usual), place),
    )


def _sizes(value: Any, place: Path, field: str, *, least: int) -> tuple[int, ...]:
    sizes = expect(value, list, place, field)
    for size in sizes:
        expect(size, int, place, field)
    if len(sizes) > _MAX_AXES or any(not least <= n <= _MAX_SIZE for n in sizes):
        raise DamagedCheckpoint(f"{place}: {field} is {sizes}, which no array can have.")
    return tuple(sizes)


def _chunks(value: Any, shape: tuple[int, ...], place: Path, field: str) -> tuple[int, ...]:
    chunks = _sizes(value, place, field, least=1)
    if len(chunks) != len(shape):
        raise DamagedCheckpoint(
            f"{place}: {field} has {len(chunks)} axes and shape has {len(shape)}."
        )
    # none of 11,000 arrays of 22 releases has such a chunk; a few bytes could ask for all memory
    if any(chunk > max(n, 1) for chunk, n in zip(chunks, shape, strict=True)):
        raise DamagedCheckpoint(
            f"{place}: chunks of {chunks} are larger than the array of shape {shape}, which no "
            "release writes: a size is damaged. Take another step or a backup."
        )
    return chunks


def _separator(value: Any, place: Path) -> str:
    if value not in (".", "/"):
        raise DamagedCheckpoint(f"{place}: dimension separator {value!r} is neither '.' nor '/'.")
    return str(value)


def _dtype(value: Any, place: Path, field: str) -> np.dtype[Any]:
    known = "<V2" if value in _VOID_BFLOAT16 else value
    found = resolve_dtype(known) if isinstance(known, str) else None
    if found is None or found.dtype.kind in "USmM":
        raise UnsupportedCheckpoint(
            f"{place}: {field} is {str(value)[:80]!r}, an element type that Orbax never wrote "
            "or that this release does not know. Upgrading ml_dtypes may help."
        )
    return found.dtype
