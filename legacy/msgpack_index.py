"""Walks a msgpack file and says where everything is, without touching the bytes of an array.

flax and Orbax put whole checkpoints into one msgpack value. ``msgpack.unpackb`` would copy every
array to find the next key, and answers a damaged file with whatever the bytes happen to mean. So
this walker decodes headers, keys and small values only, over a memory map; every length is held
against the bytes that are left before anything is made of it.

The result is a tree of plain values: ``dict``, ``list`` and :class:`TupleAt` for containers,
:class:`ArrayAt` and :class:`BytesAt` for what stays in the file, Python values for the rest.
"""

from __future__ import annotations

import math
import mmap
import stat
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from legacy.errors import (
    CannotLook,
    CheckpointNotFound,
    DamagedCheckpoint,
    LegacyError,
    NotACheckpoint,
    UnsupportedCheckpoint,
)
from legacy.leaves import LeafPath, format_path
from legacy.msgpack_dtypes import DtypeAt, resolve_dtype

__all__ = ["ArrayAt", "BytesAt", "TupleAt", "UnreadableAt", "array_size", "map_file", "scan"]

MAX_DEPTH: Final = 512
MAX_VALUES: Final = 1 << 22
"""Far above any real checkpoint; a corrupt count over zero bytes would else eat the memory."""

_MAX_AXES: Final = 64
_MAX_STARTS: Final = 8
_EXT_NDARRAY: Final = 1
_EXT_COMPLEX: Final = 2
_EXT_NPSCALAR: Final = 3
_EXT_TUPLE: Final = 4  # Orbax only
_COMPLEX_PARTS: Final = 2
_ARRAY_PARTS: Final = 3


class ArrayAt(NamedTuple):
    """The bytes of an array, or of a numpy scalar."""

    shape: tuple[int, ...]
    dtype: DtypeAt
    offset: int
    nbytes: int
    scalar: bool


class BytesAt(NamedTuple):
    """A Python ``bytes`` value."""

    offset: int
    nbytes: int


class UnreadableAt(NamedTuple):
    """A value whose extent is known and whose content cannot be; the others can be read."""

    error: LegacyError


class TupleAt(list[Any]):
    """A tuple of Orbax's encoding (Ext 4); a list, so that it can be filled while walking."""

    __slots__ = ()


def map_file(file: Path) -> mmap.mmap:
    """Map a file for reading; the map lives as long as an array that looks into it.

    Args:
        file: a regular file that nobody shortens in place while it is read (flax and Orbax
            replace whole files, which is fine).

    Returns:
        The read-only map.

    Raises:
        CheckpointNotFound: nothing is there.
        CannotLook: something is there, and it may not be read.
        NotACheckpoint: a folder, a device, or an empty file.
    """
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise NotACheckpoint(
                f"{file} is not a regular file. A flax msgpack checkpoint is one file; "
                "give the path of that file.",
                path=file,
            )
        if about.st_size == 0:
            raise NotACheckpoint(
                f"{file} is empty (0 bytes): the writer was stopped or the disk was full. "
                "Take another step or a backup.",
                path=file,
            )
        with file.open("rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise CheckpointNotFound(f"{file}: there is no such file.", path=file) from error
    except OSError as error:
        raise CannotLook(
            f"{file} could not be read: {error.strerror or error}. Check its permissions.",
            path=file,
        ) from error


def scan(buffer: mmap.mmap, file: Path) -> Any:
    """Walk the one msgpack value of a file.

    Args:
        buffer: the map of the file.
        file: its name, for messages.

    Returns:
        The tree described in this module's docstring.

    Raises:
        DamagedCheckpoint: truncated, contradictory or trailing bytes, or a repeated key.
        UnsupportedCheckpoint: an extension type, a dtype, a key type or a size that no release
            of flax or Orbax writes.
    """
    return _Scanner(buffer, file).run()


class _Head(NamedTuple):
    tag: str
    value: Any = None
    packed: struct.Struct | None = None


def _heads() -> tuple[_Head, ...]:
    table = {n: _Head("int", n) for n in range(0x80)}
    table |= {0x80 + n: _Head("map", n) for n in range(16)}
    table |= {0x90 + n: _Head("array", n) for n in range(16)}
    table |= {0xA0 + n: _Head("str", n) for n in range(32)}
    table |= {0xC0: _Head("nil"), 0xC1: _Head("unused byte 0xc1")}
    table |= {0xC2: _Head("bool", False), 0xC3: _Head("bool", True)}
    table |= {0xD4 + n: _Head("ext", 1 << n) for n in range(5)}
    table |= {0xE0 + n: _Head("int", n - 32) for n in range(32)}
    for tag, first, codes in (
        ("bin", 0xC4, "BHI"),
        ("ext", 0xC7, "BHI"),
        ("float", 0xCA, "fd"),
        ("int", 0xCC, "BHIQ"),
        ("int", 0xD0, "bhiq"),
        ("str", 0xD9, "BHI"),
        ("array", 0xDC, "HI"),
        ("map", 0xDE, "HI"),
    ):
        for n, code in enumerate(codes):
            table[first + n] = _Head(tag, None, struct.Struct(f">{code}"))
    return tuple(table[n] for n in range(256))


_HEADS: Final = _heads()
_INTEGERS: Final = frozenset(n for n, head in enumerate(_HEADS) if head.tag == "int")
_SIGNED: Final = struct.Struct("b")


@dataclass(slots=True)
class _Frame:
    """A container that is being filled."""

    into: Any
    left: int
    key: str | None = None
    end: int | None = None  # of the extension payload that a tuple fills
    numbered: bool | None = None  # whether the keys of a map are integers


class _Misplaced(Exception):
    """Damage of which nobody can say where it ends, so that no other value can be trusted."""

    def __init__(self, error: LegacyError) -> None:
        super().__init__()
        self.error = error


class _Scanner:
    def __init__(self, buffer: mmap.mmap, file: Path) -> None:
        self.buffer = buffer
        self.file = file
        self.size = len(buffer)
        self.at = 0
        self.values = 0
        self.open: list[_Frame] = []
        self.dtypes: dict[bytes, DtypeAt] = {}
        self.sizes: dict[tuple[tuple[int, ...], str], int | None] = {}
        # what stands before the data of arrays, by extension type and length: blocks repeat it
        self.starts: dict[tuple[int, int], list[tuple[bytes, ArrayAt]]] = {}

    def run(self) -> Any:
        try:
            root = self.value()
            while self.open:
                self.step(self.open[-1])
        except (IndexError, struct.error) as error:
            raise self.truncated() from error
        except _Misplaced as misplaced:
            raise misplaced.error from None
        if self.at != self.size:
            if not isinstance(root, dict | list | ArrayAt | UnreadableAt):
                raise NotACheckpoint(
                    f"{self.file}: begins with the byte {self.buffer[0]:#04x}, and a msgpack file "
                    "of flax begins with a map (0x80 to 0x8f, 0xde, 0xdf). It is a file of another "
                    "kind, or its first byte is damaged: then take another step or a backup.",
                    path=self.file,
                )
            raise self.damaged(
                f"the checkpoint ends here, but {self.size - self.at} more bytes follow. "
                "The file was appended to or overwritten, or is of another format"
            )
        return root

    def step(self, frame: _Frame) -> None:
        """Read one more child of a container, or leave it."""
        if frame.left == 0:
            if frame.end is not None and self.at != frame.end:
                raise self.damaged(f"a tuple should end at byte {frame.end}")
            self.open.pop()
            return
        frame.left -= 1
        into = frame.into
        if type(into) is dict:
            frame.key = None
            numbered = self.buffer[self.at] in _INTEGERS
            key = frame.key = self.key()
            if key in into:
                raise self.damaged(
                    f"the key {key!r} occurs twice in one map (integer keys count as text), "
                    "so one value would hide the other"
                )
            if frame.numbered is not numbered and into:
                raise self.damaged(
                    f"the key {key!r} is {'an integer' if numbered else 'text'}, and the keys "
                    "before it in the same map are not; JAX has no such dict"
                )
            frame.numbered = numbered
            into[key] = self.value()
        else:
            frame.key = str(len(into))
            into.append(self.value())

    def value(self) -> Any:
        """Read one value; a container is returned empty and filled by later steps."""
        start = self.at
        tag, arg = self.head()
        if tag == "ext":
            return self.extension(start, arg)
        if tag == "map":
            return self.container({}, arg, 2)
        if tag == "array":
            return self.container([], arg, 1)
        if tag == "str":
            self.skip(arg, "a string")  # a cut string is a cut file; only its content is its own
            self.at -= arg
            return self.contained(self.at + arg, lambda: self.text(arg))
        if tag == "bin":
            return BytesAt(self.skip(arg, "a bytes value"), arg)
        if tag in ("int", "float", "bool", "nil"):
            return arg
        raise self.damaged(f"the {tag} is no msgpack", start)

    def head(self) -> tuple[str, Any]:
        tag, value, packed = _HEADS[self.buffer[self.at]]
        self.at += 1
        if packed is None:
            return tag, value
        (value,) = packed.unpack_from(self.buffer, self.at)
        self.at += packed.size
        return tag, value

    def skip(self, nbytes: int, what: str) -> int:
        """Pass over a payload; where it starts."""
        start = self.at
        if nbytes > self.size - start:
            raise self.truncated(f"{what} of {nbytes} bytes")
        self.at = start + nbytes
        return start

    def text(self, nbytes: int) -> str:
        start = self.skip(nbytes, "a string")
        try:
            return self.buffer[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.damaged(
                f"a string is not UTF-8 ({error.reason}). Either the file is damaged, or a "
                "bytes value was written with msgpack < 1.0, which does not tell bytes from text",
                start + error.start,
            ) from error

    def key(self) -> str:
        start = self.at
        tag, arg = self.head()
        if tag == "str":
            return self.text(arg)
        if tag == "int":
            return str(arg)
        raise self.unsupported(
            f"a map key is of msgpack type {tag!r}; only text and integers are", start
        )

    def container(self, into: Any, count: int, least: int, end: int | None = None) -> Any:
        """Open a container of ``count`` entries of at least ``least`` bytes each."""
        if count * least > self.size - self.at:
            raise self.truncated(f"a {'map' if least > 1 else 'list'} of {count} entries")
        if count == 0 and end is None:
            return into
        self.values += count
        if self.values > MAX_VALUES:
            raise self.unsupported(f"more than {MAX_VALUES} values; no checkpoint has so many")
        if len(self.open) >= MAX_DEPTH:
            raise self.unsupported(f"containers nested deeper than {MAX_DEPTH} levels")
        self.open.append(_Frame(into, count, end=end))
        return into

    def extension(self, start: int, nbytes: int) -> Any:
        (code,) = _SIGNED.unpack_from(self.buffer, self.at)
        self.at += 1
        if nbytes > self.size - self.at:
            raise self.truncated(f"an extension value of {nbytes} bytes")
        end = self.at + nbytes
        if code in (_EXT_NDARRAY, _EXT_NPSCALAR):
            begin = self.at
            starts = self.starts.setdefault((code, nbytes), [])
            for head, like in starts:
                offset = begin + len(head)
                if self.buffer[begin:offset] == head:
                    self.at = end
                    return ArrayAt(like.shape, like.dtype, offset, like.nbytes, like.scalar)
            found = self.contained(end, lambda: self.array(end, scalar=code == _EXT_NPSCALAR))
            if isinstance(found, ArrayAt) and len(starts) < _MAX_STARTS:
                starts.append((self.buffer[begin : found.offset], found))
            return found
        if code == _EXT_COMPLEX:
            return self.contained(end, lambda: self.complex(end))
        if code == _EXT_TUPLE:
            return self.container(TupleAt(), self.expect("array", "a tuple"), 1, end)
        self.at = end
        return UnreadableAt(
            self.unsupported(
                f"the msgpack extension type {code}; flax writes 1 (array), 2 (complex) and 3 "
                "(numpy scalar), Orbax also 4 (tuple)",
                start,
            )
        )

    def contained(self, end: int, read: Callable[[], Any]) -> Any:
        """Read a value that ends at ``end`` whatever it holds, so its damage stays its own."""
        try:
            return read()
        except LegacyError as error:
            found = error
        except (IndexError, struct.error):
            found = self.truncated()
        self.at = end
        return UnreadableAt(found)

    def expect(self, tag: str, what: str) -> Any:
        start = self.at
        found, arg = self.head()
        if found != tag:
            raise self.damaged(
                f"{what} should have msgpack type {tag!r} here, not {found!r}", start
            )
        return arg

    def complex(self, end: int) -> complex:
        if self.expect("array", "a complex number") != _COMPLEX_PARTS:
            raise self.damaged("a complex number should have two parts")
        real, imag = (self.expect("float", "a part of a complex number") for _ in range(2))
        self.agreed("a complex number", self.at, end)
        return complex(real, imag)

    def agreed(self, what: str, found: int, end: int) -> int:
        """Where a value ends that has two lengths, one around the other.

        Raises:
            _Misplaced: they contradict each other, so nobody knows where the next value begins.
        """
        if found != end:
            raise _Misplaced(
                self.damaged(f"{what} should end at byte {end}, its data ends at byte {found}")
            )
        return end

    def array(self, end: int, *, scalar: bool) -> ArrayAt:
        """Read ``(shape, dtype, bytes)`` and pass over the bytes."""
        start = self.at
        if self.expect("array", "an array") != _ARRAY_PARTS:
            raise self.damaged("an array should be stored as (shape, dtype, bytes)", start)
        axes = self.expect("array", "the shape of an array")
        if axes > _MAX_AXES:
            raise self.damaged(f"an array has {axes} axes; numpy has at most {_MAX_AXES}", start)
        shape = tuple(self.expect("int", "the shape of an array") for _ in range(axes))
        unknown = None
        try:
            dtype = self.dtype()
        except UnsupportedCheckpoint as error:
            unknown = error
        nbytes = self.expect("bin", "the data of an array")
        offset = self.at
        if unknown is not None:
            self.at = self.agreed("the array", offset + nbytes, end)
            raise unknown
        if (shape, dtype.spelling) not in self.sizes:
            self.sizes[shape, dtype.spelling] = array_size(shape, dtype.stored.itemsize)
        size = self.sizes[shape, dtype.spelling]
        if size is None or offset + size != end:  # else it is the length of the data that is wrong
            self.agreed("the array", offset + nbytes, end)
        self.skip(nbytes, "an array")
        if size != nbytes:
            raise self.damaged(
                f"an array of shape {shape} and dtype {dtype.spelling} cannot have {nbytes} bytes",
                start,
            )
        if scalar and shape:
            raise self.damaged(f"a numpy scalar has shape {shape}", start)
        return ArrayAt(shape, dtype, offset, nbytes, scalar)

    def dtype(self) -> DtypeAt:
        start = self.at
        tag, nbytes = self.head()
        if tag not in ("str", "bin"):
            raise self.damaged(f"the dtype of an array is no string but {tag!r}", start)
        at = self.skip(nbytes, "the dtype of an array")
        spelled = self.buffer[at : self.at]
        if spelled not in self.dtypes:
            found = resolve_dtype(spelled.decode("ascii", "backslashreplace"))
            if found is None:
                raise self.unsupported(
                    f"an array of dtype {spelled[:80]!r}, which neither numpy nor ml_dtypes can "
                    "give back. If a newer ml_dtypes knows it, install that",
                    start,
                )
            self.dtypes[spelled] = found
        return self.dtypes[spelled]

    @property
    def path(self) -> LeafPath:
        return tuple(frame.key for frame in self.open if frame.key is not None)

    def truncated(self, what: str = "the next value") -> DamagedCheckpoint:
        return self.damaged(
            f"{what} does not fit into the {self.size} bytes of the file, which is truncated "
            "or overwritten"
        )

    def damaged(self, what: str, at: int | None = None) -> DamagedCheckpoint:
        message, data = self.report(f"{what}. Take another step or a backup.", at)
        return DamagedCheckpoint(message, **data)

    def unsupported(self, what: str, at: int | None = None) -> UnsupportedCheckpoint:
        message, data = self.report(f"unsupported: {what}.", at)
        return UnsupportedCheckpoint(message, **data)

    def report(self, what: str, at: int | None) -> tuple[str, dict[str, Any]]:
        """What an error says, and its data."""
        offset = min(self.at, self.size) if at is None else at
        return (
            f"{self.file}: at byte {offset}, leaf {format_path(self.path)}: {what}",
            {"path": self.file, "leaf": self.path, "offset": offset},
        )


def array_size(shape: tuple[int, ...], itemsize: int) -> int | None:
    """Bytes of an array.

    Args:
        shape: as the file has it.
        itemsize: bytes of one value.

    Returns:
        The bytes; None for a shape that numpy cannot have.

    >>> array_size((2, 3), 4), array_size((-1,), 4), array_size((0, 2**62), 4)
    (24, None, None)
    """
    if len(shape) > _MAX_AXES or not all(0 <= n <= sys.maxsize for n in shape):
        return None
    least = itemsize * math.prod(n for n in shape if n)  # numpy wants this to fit, too
    return math.prod(shape) * itemsize if least <= sys.maxsize else None
