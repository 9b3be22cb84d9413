"""Takes stored bytes to the output without decoding them, and says where they lie then.

How a file of the source gets across, best first:

1. *linked*: a second name for the file (only when the user asked for it).
2. *cloned*: the file system shares its blocks (``FICLONE``: btrfs, xfs, bcachefs, overlays of
   them), when at least half of the file is wanted. Costs no time and no room.
3. *copied*: the wanted ranges, one behind the other, into data files of the item. Nothing that is
   not wanted is copied, so the output is never larger than the source, and no two items share a
   file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from bridge import output
from bridge.ocdbt_tree import Place, new_data_file
from bridge.repack_copy import INLINE, Stored, copied

__all__ = ["Carried", "Carrier", "Way"]

Way: TypeAlias = Literal["linked", "cloned", "copied"]

_FICLONE = 0x40049409
"""The request of ``ioctl_ficlone(2)`` on all Linux machines but sparc, mips and ppc."""

_WORTH_CLONING = 1 << 20
"""Bytes below which copying costs no more than asking for a clone."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of the values of one item.

    Attributes:
        values: for each key its value in the output.
        ways: for each key that is not in the tree itself, how it got there.
    """

    values: Mapping[str, bytes | Place]
    ways: Mapping[str, Way]


@dataclass(slots=True)
class Carrier:
    """Carries files of one source to the items of one output.

    Args:
        link: hard-link instead of copying.
        wanted: bytes that the whole output takes from each file.
        sync: begin to force copies to the disk while others are made.
    """

    link: bool
    wanted: Mapping[Path, int] = field(default_factory=dict)
    sync: bool = False
    _no_clones: set[int] = field(default_factory=set)

    def carry(
        self, root: Path, values: Mapping[str, bytes | Stored], report: Callable[[str], None]
    ) -> Carried:
        """Take the values of one item across.

        Args:
            root: the folder of the item, which gets data files.
            values: by key: bytes, or where they are stored.
            report: called with each key whose bytes are there.

        Returns:
            Where everything is now.

        Raises:
            DamagedCheckpoint: a file of the source is gone, or shorter than it was.
            WriteFailed: a link is not possible.
            OSError: the disk is full, or the folder cannot be written.
        """
        found: dict[str, bytes | Place] = {}
        ways: dict[str, Way] = {}
        files: dict[Path, list[tuple[str, Stored]]] = defaultdict(list)
        for key, value in values.items():
            if isinstance(value, bytes):
                found[key] = value
            else:
                files[value.file].append((key, value))
        left: list[tuple[str, Stored]] = []
        for file, inside in sorted(files.items()):
            inside.sort(key=lambda e: (e[1].offset, e[1].length))
            whole = self._whole(file, root, [v for _, v in inside])
            if whole is None:
                left += inside
                continue
            for key, old in inside:
                found[key], ways[key] = Place(whole[0], old.offset, old.length), whole[1]
                report(key)
        for key, place in copied(root, left, report, sync=self.sync):
            found[key] = place
            if isinstance(place, Place):
                ways[key] = "copied"
        return Carried(found, ways)

    def _whole(self, file: Path, root: Path, values: Iterable[Stored]) -> tuple[str, Way] | None:
        """The name of a link or clone of the file; None when ranges are to be copied."""
        if all(v.length <= INLINE for v in values):
            return None
        name = new_data_file()
        if self.link:
            output.link_file(file.resolve(), root / name)
            return name, "linked"
        try:
            status = file.stat()
        except FileNotFoundError:
            return None  # which copying will say
        wanted = self.wanted.get(file, 0)
        half = wanted >= _WORTH_CLONING and 2 * wanted >= status.st_size
        if half and status.st_dev not in self._no_clones:
            if _cloned(file, root / name):
                return name, "cloned"
            self._no_clones.add(status.st_dev)
        return None


def _cloned(source: Path, to: Path) -> bool:
    """Whether the file system could share the blocks of a file."""
    try:
        import fcntl  # noqa: PLC0415 - Unix only
    except ImportError:
        return False
    to.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, to.open("xb") as write, suppress(OSError):
        fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
        return True
    to.unlink()
    return False
