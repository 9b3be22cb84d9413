"""Looking at files, and reading JSON documents that may be damaged or hostile.

"Nothing there" is told from "may not look", and a field of a wrong type is reported by file and
field, so that nothing behind this module meets a ``KeyError``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from legacy.errors import CannotLook, DamagedCheckpoint, LegacyError, UnsupportedCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "Remembered",
    "cannot_look",
    "count_keys",
    "entries_of",
    "entry_kind",
    "expect",
    "is_folder",
    "leads_out",
    "list_folder",
    "looking",
    "optional",
    "out_of_checkpoint",
    "parse_json",
    "read_document",
    "read_json",
    "read_plain",
    "read_regular",
    "refuse_links",
]

MAX_DOCUMENT: Final = 1 << 29
MAX_DEPTH: Final = 256
_SMALL: Final = 1 << 14
_REMEMBERED: Final = 1 << 17
_PLAIN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC

T = TypeVar("T")
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Nothing is there, and a link that leads to itself leads to nothing."""


def entry_kind(path: Path | str) -> str | None:
    """``file``, ``folder`` or ``other``; None where nothing is.

    Raises:
        CannotLook: something is in the way of looking, which is not the same as "nothing there".

    >>> from pathlib import Path
    >>> entry_kind(Path("/nowhere/at/all")) is None
    True
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - Path.stat costs three times as much
    except OSError as error:
        if error.errno in _GONE:
            return None
        cannot_look(Path(path), error)
    except ValueError:  # a NUL in the name
        return None
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


def list_folder(folder: Path | str) -> list[str]:
    """The names in a folder, sorted; empty where there is no folder.

    Raises:
        CannotLook: the folder cannot be listed.
    """
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths
    except OSError as error:
        if error.errno in _GONE:
            return []
        cannot_look(Path(folder), error)


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name, as :func:`list_folder`; most know what they are at once.

    Raises:
        CannotLook: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if error.errno in _GONE:
            return []
        cannot_look(folder, error)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; as :func:`entry_kind`, mostly for nothing."""
    if entry.is_symlink():
        return entry_kind(entry.path) == "folder"
    return entry.is_dir(follow_symlinks=False)


def cannot_look(path: Path, error: OSError) -> NoReturn:
    """Raise CannotLook for a file or folder that the system refused to show."""
    raise CannotLook(
        f"{path}: cannot be read ({error.strerror or error}). Is it yours, and is the disk "
        "mounted? Make it readable and try again.",
        path=path,
    ) from error


def leads_out(file: str | Path, root: Path) -> str | None:
    """Where a symbolic link out of a folder leads; None for everything else.

    >>> from pathlib import Path
    >>> leads_out("/no/link", Path("/no")) is None
    True
    """
    if not os.path.islink(file):  # noqa: PTH114 - a third of Path's time, for each array
        return None
    real = os.path.realpath(file)  # unlike resolve(), bears with a loop
    inside = os.path.realpath(root) + os.sep
    return None if real.startswith(inside) else real


def refuse_links(folder: Path) -> None:
    """Refuse a folder in which a file is a link to a file elsewhere.

    Nothing outside of a checkpoint is read: it may be anybody's.

    Raises:
        UnsupportedCheckpoint: there is one; the message says where it leads.
    """
    for entry in entries_of(folder):
        if not entry.is_symlink():
            continue
        real = leads_out(entry.path, folder)
        if real is not None and os.path.isfile(real):  # noqa: PTH113
            raise out_of_checkpoint(folder / entry.name, real)


def out_of_checkpoint(place: Path, real: str) -> UnsupportedCheckpoint:
    """The error for a link that is not followed."""
    return UnsupportedCheckpoint(
        f"{place} is a symbolic link out of the checkpoint ({real}), and is not followed. Copy the "
        "checkpoint with what its links stand for (cp -rL), if you trust them.",
        path=place,
    )


@contextlib.contextmanager
def looking(place: Path) -> Iterator[None]:
    """Turn what the system says of a place into :class:`CannotLook`, wherever it says so.

    >>> from pathlib import Path
    >>> with looking(Path("ckpt")):
    ...     raise OSError(5, "Input/output error")
    Traceback (most recent call last):
        ...
    legacy.errors.CannotLook: ckpt: cannot be read (Input/output error). Is it yours, and is the \
disk mounted? Make it readable and try again.
    """
    try:
        yield
    except LegacyError:  # some of them are errors of the system, too
        raise
    except OSError as error:
        cannot_look(Path(error.filename or place), error)


def read_json(file: Path, keys_in: Callable[[Any], int] | None = None) -> Any:
    """Parse a JSON document of a checkpoint.

    Args:
        file: the document.
        keys_in: as for :func:`parse_json`.

    Returns:
        The parsed value, or None where there is no such file. (No document of Orbax is ``null``.)

    Raises:
        CannotLook: the file cannot be read.
        DamagedCheckpoint: it is no JSON, or absurdly large or deep.
    """
    raw = read_document(file)
    return None if raw is None else parse_json(raw, str(file), file, keys_in)


def read_document(file: Path) -> bytes | None:
    """The text of a document of a checkpoint, or None where there is no such file.

    Raises:
        CannotLook: the file cannot be read.
        DamagedCheckpoint: it is no regular file, or absurdly large.
    """
    try:
        return read_regular(file)
    except OSError as error:
        if error.errno in _GONE:
            return None
        cannot_look(file, error)


def read_regular(file: Path | str) -> bytes | None:
    """The content of a document; None where a name has a NUL, so that no file can have it.

    A pipe or a device is refused before it is read: the one waits, the other never ends.

    Raises:
        DamagedCheckpoint: it is no regular file, or absurdly large.
        OSError: it cannot be read.
    """
    try:
        # a third of Path's time, and it is done for each of thousands of arrays
        with open(file, "rb", buffering=0, opener=_at_once) as stream:
            about = os.fstat(stream.fileno())
            if stat.S_ISREG(about.st_mode) and about.st_size <= MAX_DOCUMENT:
                return stream.read()
    except ValueError:
        return None
    if stat.S_ISREG(about.st_mode):
        what = f"larger than {MAX_DOCUMENT} bytes; no document of a checkpoint is"
    else:
        what = "no regular file but a pipe or a device"
    raise DamagedCheckpoint(
        f"{file}: {what}. Copy the checkpoint again, or take another step.", path=file
    )


def read_plain(file: str) -> bytes | None:
    """The content of a small document that is a plain file; None for everything else.

    Whoever gets None looks closer: at a link, a pipe, a large file or one that may not be read.

    Raises:
        FileNotFoundError: nothing is there, not even a link.
    """
    try:
        opened = os.open(file, _PLAIN_FLAGS)
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        return None
    try:
        is_file = stat.S_ISREG(os.fstat(opened).st_mode)
        text = os.read(opened, _SMALL) if is_file else None
    except OSError:
        return None
    finally:
        os.close(opened)
    return None if text is None or len(text) == _SMALL else text


def _at_once(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_NONBLOCK)  # else a pipe waits for its writer


def parse_json(
    raw: bytes, where: str, file: Path, keys_in: Callable[[Any], int] | None = None
) -> Any:
    """Parse the JSON text ``raw``; ``where`` says in messages what it is.

    ``keys_in`` counts the keys of all objects of a parsed document, for a form in which that goes
    quicker than by looking everywhere. It may count too few: then the text is parsed again, slowly.

    >>> from pathlib import Path
    >>> parse_json(b"[1]", "x", Path("x"))
    [1]
    """
    try:
        value = json.loads(raw)
        # each key is followed by a colon, so none can be hidden where there are as many of both
        if (keys_in or count_keys)(value) < raw.count(b":"):
            value = json.loads(raw, object_pairs_hook=_unique)
    except RecursionError as error:
        raise DamagedCheckpoint(f"{where}: JSON nested too deeply.", path=file) from error
    except ValueError as error:
        offset = getattr(error, "pos", getattr(error, "start", None))
        raise DamagedCheckpoint(
            f"{where}: {len(raw)} bytes that are no JSON ({error}). The file was cut or "
            "overwritten; take another step or a backup.",
            path=file,
            offset=offset,
        ) from error
    return value


def count_keys(value: Any) -> int:
    """How many keys all objects of a document have; half the price of looking at each of them."""
    found = 0
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            found += len(value)
            waiting.extend(value.values())
        elif type(value) is list:
            waiting.extend(value)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; Python's own parser would let the last of two twins win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(n for n, _ in pairs if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(twin)} occurs twice in one object")
    return found


class Remembered(Generic[T]):
    """What the last few documents said, by their text: the steps of a run have the same ones.

    Only small ones that are good are kept; what is wrong is parsed again, and so names its file.
    What is kept is shared, and must not be changed.

    Args:
        parse: from the text, and what messages need, to what it says.
        most: how many are kept.

    >>> length = Remembered(lambda raw, where: len(raw))
    >>> length(b"abc", "here"), length(b"abc", "there")
    (3, 3)
    """

    def __init__(self, parse: Callable[..., T], most: int = 64) -> None:
        self._parse = parse
        self._most = most
        self._known: dict[bytes, T] = {}

    def __call__(self, raw: bytes, *about: Any) -> T:
        """What the text says.

        Args:
            raw: the text.
            about: what ``parse`` takes beside it; the result must not depend on it.
        """
        known = self._known.get(raw)
        if known is not None:
            return known
        found = self._parse(raw, *about)
        if len(raw) <= _REMEMBERED:
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[raw] = found
        return found


def expect(value: Any, kind: type[T], file: Path, field: str) -> T:
    """Return ``value`` when it is of ``kind``.

    Raises:
        DamagedCheckpoint: it is not; the message names file and field.

    >>> from pathlib import Path
    >>> expect(3, int, Path("_METADATA"), "key_type")
    3
    """
    # bool is an int to Python, not to a format
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise DamagedCheckpoint(
        f"{file}: field {field} should be {kind.__name__}, and is {type(value).__name__} "
        f"({short(value)}). The document is damaged or from a release this one does not know.",
        path=file,
    )


def short(value: Any) -> str:
    """The ``repr`` of a value, cut to fit into a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004


def optional(document: Mapping[str, Any], key: str, kind: type[T], file: Path) -> T | None:
    """Return ``document[key]`` when it is of ``kind``; None when it is null or not there.

    Raises:
        DamagedCheckpoint: it is of another kind.
    """
    value = document.get(key)
    return None if value is None else expect(value, kind, file, key)
