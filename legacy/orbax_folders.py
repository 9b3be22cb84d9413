"""A folder that holds one folder of zarr files for each array: where Orbax puts them without OCDBT.

It answers the questions that :class:`legacy.orbax_stores.Database` answers, too: which arrays are
there, what does their metadata say, which chunks are stored. No link out of it is followed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from legacy.errors import DamagedCheckpoint, UnsupportedCheckpoint
from legacy.orbax_documents import (
    cannot_look,
    entries_of,
    entry_kind,
    leads_out,
    list_folder,
    out_of_checkpoint,
    read_plain,
    read_regular,
)
from legacy.orbax_zarr import ZARR2_METADATA, ZARR3_METADATA, other_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Folder", "both_formats", "dangling_chunk", "escapes"]

_NAMES: Final = (ZARR2_METADATA, ZARR3_METADATA)
_ZARR2: Final = 2
_MAX_OTHER: Final = 1 << 16
_MAX_OTHERS: Final = 16


def dangling_chunk(folder: Path, root: Path) -> str | None:
    """The name of a chunk that is a link to nothing or out of the checkpoint, or None.

    TensorStore takes the one (git-annex, DVC) for a chunk that was never written, and follows the
    other. A pipe, on which it would wait, is named as well.

    Raises:
        CannotLook: the folder or a file cannot be looked at.
    """
    files = (name for name in _walk(folder) if name[:1].isdigit() or Path(name).parts[0] == "c")
    return min((name for name in files if not _is_plain(folder / name, root)), default=None)


def _is_plain(file: Path, root: Path) -> bool:
    return entry_kind(file) == "file" and leads_out(file, root) is None


def _walk(top: Path) -> Iterator[str]:
    for place, _, files in os.walk(top, onerror=_refuse):
        for file in files:
            yield os.path.relpath(os.path.join(place, file), top)  # noqa: PTH118 - hot


def escapes(name: str) -> bool:
    """Whether a storage name, taken as a path, would leave the folder of its tree.

    >>> escapes("params.Dense_0.kernel"), escapes("a/../../b"), escapes("/etc")
    (False, True, True)
    """
    return name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name)


class Folder:
    """A folder that holds one folder of zarr files for each array.

    Args:
        root: the folder.
    """

    context = None
    """Databases share one; folders need none."""

    def __init__(self, root: Path) -> None:
        self.root = root
        entries = entries_of(root)
        self.names = frozenset([entry.name for entry in entries])
        # no links, and no name that means another place
        plain = [e.name for e in entries if "\\" not in e.name and e.is_dir(follow_symlinks=False)]
        self.folders = frozenset(plain)

    def arrays(self) -> Iterator[str]:
        """The names of all arrays, found by walking; symbolic links are not followed."""
        for place, _, files in os.walk(self.root, onerror=_refuse):
            if any(name in files for name in _NAMES) or self._otherwise_named(place, files):
                yield str(Path(place).relative_to(self.root))

    def plain_metadata(self, name: str) -> tuple[str, bytes] | None:
        """What :meth:`metadata` gives, where nothing about the array is unusual, else None.

        Of ten thousand arrays all are like that. A link anywhere, two formats, or none: None.
        """
        if name not in self.folders:
            return None
        found = None
        for file in _NAMES:
            try:
                text = read_plain(f"{self.root}/{name}/{file}")
            except FileNotFoundError:
                continue
            if text is None or found is not None:
                return None
            found = (file, text)
        return found

    def metadata(self, name: str) -> tuple[str, bytes] | None:
        """The name and the text of the metadata file of an array; None where there is none.

        Raises:
            CannotLook: the file cannot be read.
            DamagedCheckpoint: the array is there in two formats.
            UnsupportedCheckpoint: the name leads out of the folder, or its files have no metadata.
        """
        if escapes(name):
            raise UnsupportedCheckpoint(
                f"the name {name!r} leads out of {self.root}, and is not followed",
                path=self.root,
            )
        if name.partition("/")[0] not in self.names and name:
            return None
        place = f"{self.root}/{name}"
        self._refuse_link(name)
        for file in _NAMES:
            if (real := leads_out(f"{place}/{file}", self.root)) is not None:
                raise out_of_checkpoint(Path(place, file), real)
        found = [(n, text) for n in _NAMES if (text := _read(f"{place}/{n}")) is not None]
        if len(found) > 1:
            raise both_formats(place, self.root)
        files = [] if found or not name else list_folder(Path(place))
        if (other := self._otherwise_named(place, files)) is not None:
            return other
        if any(c[:1].isdigit() or c == "c" for c in files):
            raise UnsupportedCheckpoint(
                f"{place} holds chunks, and its {ZARR2_METADATA} (or {ZARR3_METADATA}) is missing, "
                "so neither shape nor dtype is known. Copy the checkpoint again, hidden files too",
                path=Path(place),
            )
        return found[0] if found else None

    def is_array(self, name: str) -> bool:
        """Whether the folder ``name`` is an array."""
        place = f"{self.root}/{name}"  # joining paths costs more than looking
        if any(entry_kind(f"{place}/{n}") is not None for n in _NAMES):
            return True
        return entry_kind(place) == "folder" and (
            self._otherwise_named(place, list_folder(place)) is not None
        )

    def chunk_names(self, name: str) -> frozenset[str]:
        """The files below an array, relative to its folder; a link to nothing is none."""
        top = self.root / name
        return frozenset(n for n in _walk(top) if _is_plain(top / n, self.root))

    def dangling(self, name: str) -> str | None:
        """The first chunk of an array that is a link to nothing, or out of the checkpoint."""
        return dangling_chunk(self.root / name, self.root)

    def contents(self, name: str, wanted: Iterable[str]) -> dict[str, bytes]:
        """Some files of an array, for the few that TensorStore cannot open in place."""
        return {n: (self.root / name / n).read_bytes() for n in wanted}

    def _otherwise_named(self, place: str, files: Iterable[str]) -> tuple[str, bytes] | None:
        """The one file beside the chunks of an array that describes it, and its text."""
        found: list[tuple[str, bytes]] = []
        for name in other_metadata(files)[:_MAX_OTHERS]:
            file = Path(place, name)
            if _is_plain(file, self.root) and file.stat().st_size <= _MAX_OTHER:
                text = _read(str(file))
                if text is not None and _is_zarr2(text):
                    found.append((name, text))
        return found[0] if len(found) == 1 else None

    def _refuse_link(self, name: str) -> None:
        text = str(self.root)
        for part in name.split("/"):
            text = f"{text}/{part}"
            try:
                is_link = stat.S_ISLNK(os.lstat(text).st_mode)
            except (FileNotFoundError, NotADirectoryError, ValueError):
                return
            except OSError as error:
                cannot_look(Path(text), error)
            # realpath, unlike resolve(), bears with a loop
            real = Path(os.path.realpath(text)) if is_link else self.root
            if is_link and not real.is_relative_to(os.path.realpath(self.root)):
                raise out_of_checkpoint(Path(text), str(real))


def _is_zarr2(text: bytes) -> bool:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("zarr_format") == _ZARR2


def _read(file: str) -> bytes | None:
    try:
        return read_regular(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        cannot_look(Path(file), error)


def _refuse(error: OSError) -> None:
    cannot_look(Path(error.filename or "."), error)


def both_formats(what: str, path: Path) -> DamagedCheckpoint:
    """The error for an array that is described twice."""
    return DamagedCheckpoint(
        f"{what} has both {ZARR2_METADATA} and {ZARR3_METADATA}; which one holds the values "
        "cannot be known",
        path=path,
    )
