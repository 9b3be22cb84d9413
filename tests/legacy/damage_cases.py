"""Damage to checkpoints: what can befall each file and folder, done and undone in place.

:mod:`damage_oracle` says what must hold afterwards. By hand, over any folders of goldens (each with
a ``checkpoint_3``, ``ckpt`` or ``mgr`` inside), and printed as a matrix::

    python tests/legacy/damage_cases.py FOLDER... [--all] [--only TEXT]
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import legacy
from legacy.orbax import is_tree_folder

GONE = object()
"""Stands for a JSON field that is left out."""

WRONG_VALUES = (
    *(GONE, None, -1, 10**30, "x", [], {"x": None}),
    *(True, 0, 1.5, "", "x" * 70_000, {}, [[]]),
)

_HASH = re.compile(r"[0-9a-f]{32}")
_CHUNK = re.compile(r"\d+(\.\d+)*")
_ARRAY_MARKS = (".zarray", "zarr.json")
NOBODY = 65534


@dataclass(frozen=True)
class Damage:
    """One thing that befalls one file or folder.

    Attributes:
        name: the row of the matrix.
        place: the file or folder concerned.
        touched: every path that is changed, made or removed.
        act: does it.
        detail: which field, which donor.
        is_content: the bytes are others of the same form, so that a value without a checksum
            can read as another value.
        around: a context in which the checkpoint is looked at.
    """

    name: str
    place: Path
    touched: tuple[Path, ...]
    act: Callable[[], object]
    detail: str = ""
    is_content: bool = False
    around: Callable[[], Any] = contextlib.nullcontext

    @contextlib.contextmanager
    def done(self, stash: Path) -> Iterator[None]:
        """Do it to copies, put the originals back afterwards."""
        kept: list[tuple[Path, Path]] = []
        for n, path in enumerate(self.touched):
            if os.path.lexists(path):
                kept.append((stash / str(n), path))
                path.rename(stash / str(n))
                _copy(stash / str(n), path)
        try:
            self.act()
            yield
        finally:
            for path in self.touched:
                _remove(path)
            for source, path in kept:
                source.rename(path)

    def __str__(self) -> str:
        return f"{self.name} {self.place}{self.detail and f' ({self.detail})'}"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _remove(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o755)
        shutil.rmtree(path)
    else:
        path.unlink()


# --- what is damaged


T = TypeVar("T")


@dataclass(frozen=True)
class Depth:
    """How much is damaged: everything, or some of all kinds.

    Attributes:
        every_file: all files and all entries of documents, not only some of each kind.
        each: of the fields of a document, of the wrong values of a field and of the files to
            swap with, take so many, evenly; None for all.
    """

    every_file: bool = False
    each: tuple[int, int, int] | None = None

    def fields(self, found: list[T]) -> list[T]:
        """Some fields of a document, from its beginning to its end."""
        return found if self.each is None else found[:: -(-len(found) // self.each[0]) or 1]

    def values(self, found: list[T], number: int) -> list[T]:
        """Some damages to a field: other ones for each."""
        if self.each is None:
            return found
        return [found[(number * self.each[1] + n) % len(found)] for n in range(self.each[1])]

    def swaps(self, found: list[T]) -> list[T]:
        """Some files to swap with."""
        return found if self.each is None else found[:: -(-len(found) // self.each[2]) or 1]


SAMPLE = Depth(each=(6, 2, 3))
"""What the tests do."""


@dataclass
class Subject:
    """A run of two steps, of which the newer one is damaged.

    Attributes:
        name: the golden.
        run: the folder of the steps.
        step: the file or folder that is damaged; a copy of it is the older step.
        files: the files of the newer step, its side folder and the documents of the run.
        is_alone: no release takes folders of this layout for steps.
    """

    name: str
    run: Path
    step: Path
    files: list[Path]
    is_alone: bool

    @property
    def folders(self) -> list[Path]:
        """The folders that hold the files, the step itself included."""
        found = {p for f in self.files for p in f.parents if self.run in p.parents}
        return sorted(found)


def subject(golden: Path, scratch: Path) -> Subject:
    """Copy a golden into a run of two steps.

    Args:
        golden: the folder with ``checkpoint_3``, ``ckpt`` or ``mgr``.
        scratch: where the run is made.

    Returns:
        The run.
    """
    entries = [p for p in sorted(golden.iterdir()) if not p.name.startswith("truth")]
    found = [p for p in entries if p.name in ("mgr", "ckpt")] or entries
    checkpoint = legacy.open(found[0] if len(found) == 1 else golden)
    source = checkpoint.path
    source = source.parent if source.suffix == ".json" else source  # the index of several files
    is_step = source.is_dir() and not is_tree_folder(source)
    prefix = "" if is_step else "checkpoint_"
    name = f"{golden.parent.name}/{golden.name}"
    run = scratch / name.replace("/", "-") / "run"
    run.mkdir(parents=True)
    beside = source.with_name(f"{source.name}_gda")
    for number in (2, 3):
        _copy(source, run / f"{prefix}{number}")
        if beside.is_dir():
            _copy(beside, run / f"{prefix}{number}_gda")
    step = run / f"{prefix}3"
    documents = source.parent / "metadata"
    if is_step and documents.is_dir() and source.parent.name == "mgr":
        _copy(documents, run / "metadata")
    tops = [step, step.with_name(f"{step.name}_gda"), run / "metadata"]
    files = [f for top in tops for f in (top, *sorted(top.rglob("*"))) if f.is_file()]
    for path in (scratch, scratch / run.parent.name, *run.parent.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return Subject(name, run, step, files, is_alone=source != checkpoint.path)


def kind_of(file: Path) -> str:
    """What a file is in its layout, whatever it is called: the same in all goldens."""
    if file.parent.name == "d" and _HASH.fullmatch(file.name):
        return f"{_plain(file.parent.parent)}d/*"
    if _is_chunk(file):
        return "chunk"
    if file.name in _ARRAY_MARKS:
        return file.name
    return f"{_plain(file.parent)}{re.sub(r'[0-9]+$', 'N', file.name)}"


def _plain(folder: Path) -> str:
    name = folder.name
    known = name.startswith(("ocdbt", "array_metadatas", "jax_random", "np_random", "metadata"))
    return f"{re.sub('[0-9]+$', 'N', name)}/" if known else ""


def _is_chunk(file: Path) -> bool:
    parents = list(file.parents)[:8]
    inside = any((p / mark).exists() for p in parents for mark in _ARRAY_MARKS)
    return inside and (bool(_CHUNK.fullmatch(file.name)) or "c" in file.parts[-6:])


def representatives(files: list[Path]) -> list[Path]:
    """Of each kind of file the largest and the smallest; of the data of a database three."""
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(kind_of(file), []).append(file)
    chosen: list[Path] = []
    for kind, group in kinds.items():
        ordered = sorted(group, key=lambda f: (-f.stat().st_size, str(f)))
        picks = [0, len(ordered) // 2, -1] if kind.endswith("d/*") else [0]
        chosen += dict.fromkeys(ordered[n] for n in picks)
    return chosen


# --- what befalls it


def damages(one: Subject, others: list[Subject], depth: Depth) -> Iterator[Damage]:
    """All that can befall the newer step of a run.

    Args:
        one: the run.
        others: runs from which files are taken.
        depth: how much of it.

    Yields:
        Damages, one at a time.
    """
    chosen = one.files if depth.every_file else representatives(one.files)
    for file in chosen:
        yield from _bytes_damages(file)
        yield from _entry_damages(file)
        yield from depth.swaps(list(_swaps(file, one)) + list(_donations(file, one, others)))
        yield from _json_damages(file, depth)
    folders = {f.parent for f in chosen} | {one.step}
    for folder in one.folders:
        if depth.every_file or folder in folders:
            yield from _folder_damages(folder)
    if one.step.is_dir():
        yield from _extras(one, folders)


def _bytes_damages(file: Path) -> Iterator[Damage]:
    good = file.read_bytes()
    changed = bytearray(good)
    if good:
        changed[len(good) // 2] ^= 0x55
    at = {f"cut to {n} bytes": n for n in (0, 1) if n < len(good)}
    at |= {"cut in half": len(good) // 2, "cut by one byte": len(good) - 1} if good else {}
    for name, size in at.items():
        yield _write(name, file, good[:size])
    yield _write("zeros", file, bytes(len(good)), is_content=True)
    yield _write("byte changed", file, bytes(changed), is_content=True)
    yield _write("junk appended", file, good + b"\x93junk\0")


def _write(name: str, file: Path, content: bytes, *, is_content: bool = False) -> Damage:
    act = partial(file.write_bytes, content)
    return Damage(name, file, (file,), act, is_content=is_content)


def _entry_damages(file: Path) -> Iterator[Damage]:
    def replaced(name: str, make: Callable[[], object]) -> Damage:
        def act() -> None:
            file.unlink()
            make()

        return Damage(name, file, (file,), act)

    yield replaced("removed", lambda: None)
    yield replaced("now a folder", file.mkdir)
    yield replaced("now a full folder", lambda: _full_folder(file))
    yield replaced("dangling link", lambda: file.symlink_to("nothing-here"))
    yield replaced("link to itself", lambda: file.symlink_to(file.name))
    yield replaced("now a pipe", lambda: os.mkfifo(file))
    yield from _name_and_rights(file)


def _full_folder(place: Path) -> None:
    place.mkdir()
    (place / "file").write_text("text")


def _name_and_rights(place: Path) -> Iterator[Damage]:
    other = place.with_name(place.name.swapcase())
    if other.name != place.name:
        yield Damage("other case", place, (place, other), partial(place.rename, other))
    locked = partial(place.chmod, 0)
    yield Damage("no permission", place, (place,), locked, around=as_nobody)
    for name, is_stale in (("I/O error", False), ("stale handle", True)):
        around = partial(failing, place, is_stale=is_stale)
        yield Damage(name, place, (), lambda: None, around=around)


def _folder_damages(folder: Path) -> Iterator[Damage]:
    def act(make: Callable[[], object]) -> None:
        shutil.rmtree(folder)
        make()

    file = partial(folder.write_text, "text")
    yield Damage("folder removed", folder, (folder,), partial(act, lambda: None))
    yield Damage("folder now a file", folder, (folder,), partial(act, file))
    yield Damage("folder emptied", folder, (folder,), partial(act, folder.mkdir))
    for damage in _name_and_rights(folder):
        yield replace(damage, name=f"folder: {damage.name}")


def _extras(one: Subject, folders: set[Path]) -> Iterator[Damage]:
    for folder in sorted(folders):
        if one.step not in (folder, *folder.parents):
            continue
        for name in ("notes.txt", ".DS_Store"):
            extra = folder / name
            yield Damage("file added", extra, (extra,), partial(extra.write_text, "hello"))


def _swaps(file: Path, one: Subject) -> Iterator[Damage]:
    """The file and another one change places: one of each other kind, and two of its own."""
    if file == one.step:
        return  # another whole checkpoint
    content = file.read_bytes()
    mine = kind_of(file)
    kinds: dict[str, Path] = {}
    for other in one.files:
        kinds.setdefault(kind_of(other), other)
    alike = [other for other in one.files if other != file and kind_of(other) == mine][:2]
    for other in [*(path for kind, path in kinds.items() if kind != mine), *alike]:
        theirs = other.read_bytes()
        if theirs != content:

            def act(other: Path = other, theirs: bytes = theirs) -> None:
                file.write_bytes(theirs)
                other.write_bytes(content)

            detail = f"with {other.relative_to(one.run)}"
            yield Damage("swapped", file, (file, other), act, detail, is_content=True)


def _donations(file: Path, one: Subject, others: list[Subject]) -> Iterator[Damage]:
    """The file is one of the same name in another golden."""
    if file == one.step or [f for f in one.files if one.step in f.parents] == [file]:
        return  # all of a checkpoint of another golden: nothing is wrong with it
    shown: set[str] = set()
    for donor in others:
        alike = [f for f in donor.files if f != donor.step and kind_of(f) == kind_of(file)]
        if donor is not one and alike and len(shown) < 2:
            theirs = alike[0].read_bytes()
            if theirs != file.read_bytes():
                shown.add(donor.name)
                damage = _write("another golden's", file, theirs, is_content=True)
                yield replace(damage, detail=str(alike[0]))


# --- JSON, field by field


def _json_damages(file: Path, depth: Depth) -> Iterator[Damage]:
    try:
        document = json.loads(file.read_bytes())
    except ValueError:
        return
    forms: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = {}
    for path, value in _fields((), document):
        forms.setdefault(path if depth.every_file else _form(path, document), (path, value))
    for n, (path, value) in enumerate(depth.fields(list(forms.values()))):
        yield from depth.values(list(_field_damages(file, document, path, value)), n)


def _field_damages(
    file: Path, document: Any, path: tuple[Any, ...], value: Any
) -> Iterator[Damage]:
    where = "".join(f"[{part!r}]" for part in path)
    for wrong in WRONG_VALUES[0 if path else 1 :]:
        if wrong is GONE or type(wrong) is not type(value) or wrong != value:
            said = "gone" if wrong is GONE else repr(wrong)[:20]
            text = json.dumps(_replaced(document, path, wrong)).encode()
            damage = _write("field gone" if wrong is GONE else "field wrong", file, text)
            yield replace(damage, detail=f"{where} {said}")
    if path and isinstance(path[-1], str):
        damage = _write("field twice", file, _doubled(document, path).encode())
        yield replace(damage, detail=where)


def _fields(path: tuple[Any, ...], value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, value
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _fields((*path, key), child)
    elif isinstance(value, list):
        for n, child in enumerate(value):
            yield from _fields((*path, n), child)


def _form(path: tuple[Any, ...], document: Any) -> tuple[str, ...]:
    """The path with the names of entries left out; one entry of each type of value is enough."""
    form = tuple("#" if isinstance(part, int) else part for part in path)
    if path[:1] == ("tree_metadata",) and len(path) > 1:
        kind = document["tree_metadata"][path[1]]["value_metadata"]["value_type"]
        return (form[0], kind, *form[2:])
    return form


def _replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(document))
    node = copy
    for part in path[:-1]:
        node = node[part]
    if value is not GONE:
        node[path[-1]] = value
    else:
        del node[path[-1]]
    return copy


def _doubled(document: Any, path: tuple[Any, ...]) -> str:
    copy = json.loads(json.dumps(document))
    node = copy
    for part in path[:-1]:
        node = node[part]
    node["@again@"] = None
    return json.dumps(copy).replace('"@again@"', json.dumps(path[-1]))


# --- rights and errors of the system


def can_be_nobody() -> bool:
    """Whether the tests run as root, for whom nothing is unreadable, and may become another."""
    if os.geteuid() != 0:
        return True
    try:
        os.seteuid(NOBODY)
    except OSError:
        return False
    os.seteuid(0)
    return True


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Look as a user without rights, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def failing(place: Path, *, is_stale: bool) -> Iterator[None]:
    """Let every call that opens a place, or what is below it, fail as a bad disk does.

    Args:
        place: the place.
        is_stale: fail calls that only ask about it, too.
    """

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, str | os.PathLike) and _inside(os.fspath(path)):
                raise OSError(5, "Input/output error", os.fspath(path))
            return call(path, *args, **kwargs)

        return wrapper

    def _inside(path: str) -> bool:
        return path == str(place) or path.startswith(f"{place}/")

    with contextlib.ExitStack() as stack:
        names = ["open", "listdir", "scandir", *(("stat", "lstat") if is_stale else ())]
        for module, name in [(io, "open"), *((os, name) for name in names)]:
            patched = guarded(getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, patched))
        stack.enter_context(mock.patch("builtins.open", io.open))
        yield


def state_of(folder: Path) -> list[tuple[Any, ...]]:
    """What would tell that something below a folder was written."""
    found = []
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            about = os.lstat(f"{top}/{name}")
            times = (about.st_size, about.st_mtime_ns) if stat.S_ISREG(about.st_mode) else ()
            found.append((top, name, about.st_mode, about.st_ino, *times))
    return sorted(found)


if __name__ == "__main__":
    from damage_oracle import main

    sys.exit(main(sys.argv[1:]))
