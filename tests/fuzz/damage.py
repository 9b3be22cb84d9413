"""One file of a golden is damaged; what is read is held against what the golden says.

Run by hand for many more than the tests do: ``python tests/fuzz/damage.py --mutations 20000``.

Every mutation must end in one of these (:class:`Outcome` counts them):

- ``right``: every value is as it was (the bytes did not matter, or matter to nobody);
- ``refused``: a ``LegacyError`` when the checkpoint is opened;
- ``in part``: a ``LegacyError`` when some leaves are read, all others as they were;
- ``payload``: the bytes of a value changed, and only the leaf that owns them reads otherwise;
- ``document``: the name, shape or dtype of one leaf changed, in a document that stays consistent;
- ``other``: bytes that were put in or left out made another well-formed msgpack file.

The last three cannot be noticed in principle. msgpack files, zarr chunks and zarr metadata, the
values in OCDBT's data files (its index has checksums) and the JSON documents of Orbax carry none: a
flipped bit of a float, of a key (``kernel`` to ``jernel`` in msgpack, where nothing else has the
name), of a byte order (``<f4`` to ``>f4``), of text in a string, of a value type (``scalar`` to
``scalas``, a 0-d array) or of a digit of a shape that still fits its chunks gives another
well-formed checkpoint. What must never happen is that another leaf changes, that a leaf appears or
goes without an error, or that anything but a ``LegacyError`` is raised.
"""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgpack
from mutators import KINDS, generator, mutate
from references import CHUNKED, msgpack_leaves, same

import legacy

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = ("checkpoint_3", "ckpt", "mgr")
BARE_ARRAYS = frozenset({0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9)})
POINTS = frozenset({"flip", "byte"})
HOLLOW = frozenset({"none", "empty"})

LeafId = tuple[str, ...]
"""The item and the path of a leaf."""


class Defect(AssertionError):
    """Damage that was read as something else without an error."""


def goldens(root: Path = GOLDENS) -> list[str]:
    """Names of the goldens below a folder: those with a truth beside them."""
    return sorted(str(p.parent.relative_to(root)) for p in root.glob("*/*/truth.json"))


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint of a golden: what lies beside its truth, without side folders."""
    names = {p.name for p in folder.iterdir() if not p.name.startswith("truth")}
    known = [name for name in NAMES if name in names]
    return folder / (known or sorted(name for name in names if not name.endswith("_gda")))[0]


@dataclass(frozen=True)
class Value:
    """What a leaf says: compared as a whole."""

    kind: str
    value: object
    storage: object = None

    def same(self, other: Value) -> bool:
        """Bit for bit, and of the same kind."""
        return self.kind == other.kind and same(self.value, other.value)


REFUSED = Value("refused", None)


def read(path: Path, step: int | None) -> dict[LeafId, Value]:
    """All leaves; one that cannot be read is REFUSED."""
    return read_and_told(path, step)[0]


def read_and_told(path: Path, step: int | None) -> tuple[dict[LeafId, Value], bool]:
    """All leaves, and whether it is said that there may have been more."""
    checkpoint = legacy.open(path, step=step)
    is_told = any("the index is missing" in fact for fact in checkpoint.format.evidence)
    found: dict[LeafId, Value] = {}
    for item, table in checkpoint.items.items():
        for leaf_path, leaf in table.items():
            try:
                value = leaf.read()
            except legacy.LegacyError:
                found[item, *leaf_path] = REFUSED
                continue
            if leaf.kind == "unreadable":
                raise Defect(f"the unreadable leaf {leaf_path} was read as {value!r}")
            found[item, *leaf_path] = Value(leaf.kind, value, leaf.storage)
    return found, is_told


# --- which leaf owns which bytes of a msgpack file


@dataclass(frozen=True)
class Span:
    """Bytes of a msgpack file; ``prefix`` is the path of what they say something of."""

    start: int
    stop: int
    prefix: tuple[str, ...]
    is_key: bool = False


def spans(data: bytes) -> list[Span]:
    """The keys, headers and values of a msgpack file; none for a file of another kind."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=len(data))
    unpacker.feed(data)
    found: list[Span] = []
    try:
        _span(unpacker, data, (), found, None)
    except (ValueError, IndexError, msgpack.UnpackException):
        return []
    is_tree = len(found) > 1 or data[0] in BARE_ARRAYS
    return found if is_tree and found[-1].stop == len(data) else []


def _span(unpacker, data, path, found, whole) -> None:
    start = unpacker.tell()
    first = data[start]
    prefix = path if whole is None else whole
    if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
        count = unpacker.read_map_header()
        found.append(Span(start, unpacker.tell(), prefix))
        marks = {b"\xa4name", b"\xa6fields", b"\xa6values"}
        after = data[unpacker.tell() : unpacker.tell() + 26]
        is_one_leaf = any(after.startswith(m) for m in marks) or CHUNKED.encode() in after[:32]
        for _ in range(count):
            at = unpacker.tell()
            key = str(unpacker.unpack())
            inner = path if is_one_leaf and whole is None else whole
            owner = (*path, key) if inner is None else inner
            found.append(Span(at, unpacker.tell(), owner, is_key=True))
            known = len(found)
            _span(unpacker, data, (*path, key), found, inner)
            if inner is not None:  # name and fields say what the values are
                end = known + 1 if key == "values" else None
                found[known:end] = [replace(span, is_key=True) for span in found[known:end]]
    elif 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
        count = unpacker.read_array_header()
        found.append(Span(start, unpacker.tell(), prefix))
        for n in range(count):
            _span(unpacker, data, (*path, str(n)), found, whole)
    else:
        unpacker.skip()
        found.append(Span(start, unpacker.tell(), prefix))


# --- one golden


@dataclass
class Outcome:
    """How many mutations ended how."""

    count: collections.Counter = field(default_factory=collections.Counter)
    shown: dict = field(default_factory=dict)

    def add(self, what: str, example: str) -> None:
        """Count one; keep the first of its kind."""
        self.count[what] += 1
        self.shown.setdefault(what, example)


class Subject:
    """A golden of which a copy may be damaged."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        shutil.copytree(folder, scratch, ignore=shutil.ignore_patterns("truth*"))
        self.path = checkpoint_of(scratch)
        self.step = 3 if self.path.name == "mgr" else None
        self.truth, self.is_told = read_and_told(self.path, self.step)
        opened = legacy.open(self.path, step=self.step).path
        side = opened.with_name(f"{opened.name}_gda")
        every = [opened, *opened.rglob("*"), *side.rglob("*")]
        self.files = sorted(place for place in every if place.is_file())
        self.spans = {f: found for f in self.files if (found := spans(f.read_bytes()))}

    def damage(self, rng: random.Random, outcome: Outcome) -> None:
        """One mutation of one file, checked; the file is as it was afterwards."""
        file = rng.choice(self.files)
        kind = rng.choice(KINDS)
        good = file.read_bytes()
        bad = mutate(good, rng, kind)
        if bad == good:
            outcome.add("right", "")
            return
        where = f"{file.relative_to(self.path.parent)}: {kind} ({_shortly(good, bad)})"
        file.write_bytes(bad)
        try:
            outcome.add(self._judge(file, good, bad, kind), where)
        except Defect as defect:
            raise Defect(f"{where}: {defect}") from None
        except Exception as error:
            raise Defect(f"{where}: {type(error).__name__}: {error}") from error
        finally:
            file.write_bytes(good)

    def _judge(self, file: Path, good: bytes, bad: bytes, kind: str) -> str:
        try:
            found, is_told = read_and_told(self.path, self.step)
        except legacy.LegacyError:
            return "refused"
        if is_told and not self.is_told:
            found = dict.fromkeys(self.truth, REFUSED) | found
        gone = {leaf for leaf in self.truth if leaf not in found and not _is_refused(leaf, found)}
        new = {leaf for leaf, v in found.items() if leaf not in self.truth and v is not REFUSED}
        changed = {
            leaf
            for leaf, value in found.items()
            if leaf in self.truth and value is not REFUSED and not value.same(self.truth[leaf])
        }
        if not (gone or new or changed):
            return "in part" if REFUSED in found.values() else "right"
        if file in self.spans and len(good) != len(bad) and self._is_well_formed(file, bad, found):
            return "other"
        owners = self._owners(file, good, bad, kind)
        renamed = {old for old in gone if any(_is_renamed(old, other) for other in found)}
        lost = gone - renamed
        strangers = {leaf for leaf in new if not any(_is_renamed(leaf, old) for old in gone)}
        hit = self._hit(file, good, bad)
        below = [s.prefix for s in hit if s.is_key or _is_head(s, good, bad)]
        if kind == "swap":  # two keys, one below the other
            below += [s.prefix[:-1] for s in hit if s.is_key]
        named = {leaf for leaf in lost | strangers if any(leaf[1 : 1 + len(p)] == p for p in below)}
        self._only((lost | strangers) - named, "appeared or went without an error")
        self._only((changed | renamed) - owners, "changed, and does not own these bytes")
        is_payload = not (renamed or named) and all(
            _same_form(found[leaf], self.truth[leaf]) for leaf in changed
        )
        return "payload" if is_payload else "document"

    def _is_well_formed(self, file: Path, bad: bytes, found: dict[LeafId, Value]) -> bool:
        """Whether bytes too many or too few made another msgpack file, and it was read as such."""
        try:
            theirs = msgpack_leaves(bad, flax=file == self.path)
        except Exception:  # noqa: BLE001 - whatever is wrong with it
            return False
        values = {leaf: v for leaf, v in found.items() if v.storage is None or file == self.path}
        if file == self.path and {leaf[1:] for leaf in found} != theirs.keys():
            return False
        return all(
            v is REFUSED or v.kind == "empty" or same(v.value, theirs.get(leaf[1:]))
            for leaf, v in values.items()
            if leaf[1:] in theirs
        )

    def _only(self, leaves: set[LeafId], what: str) -> None:
        if leaves:
            raise Defect(f"{sorted(leaves)[:3]} ({len(leaves)} leaves) {what}")

    def _owners(self, file: Path, good: bytes, bad: bytes, kind: str) -> set[LeafId]:
        """The leaves that may read otherwise when this file does."""
        if file in self.spans:
            return self._owners_in_msgpack(file, good, bad)
        if file.parent.name == "d":  # OCDBT: values lie side by side, without a checksum
            return self._stored() if kind not in POINTS else _Few(self._stored(), 1)
        if file.name == "_METADATA":  # names of what has no array; 0-d array or numpy scalar
            hollow = {k for k, v in self.truth.items() if v.kind in HOLLOW}
            return hollow | {k for k, v in self.truth.items() if v.kind == "scalar"}
        if file.name == "_strings.json":
            return {k for k, v in self.truth.items() if v.kind == "str"}
        if file.name in ("metadata", "metrics", "data.json"):
            return {k for k in self.truth if k[0] == file.parent.name}
        return {
            leaf
            for leaf, value in self.truth.items()
            if f"/{getattr(value.storage, 'key', '.'.join(leaf[1:]))}/" in file.as_posix()
            or leaf[1:] == ("",)  # an array of no name lies in the folder itself
        }

    def _hit(self, file: Path, good: bytes, bad: bytes) -> list[Span]:
        """What a change of the same length hit in a msgpack file."""
        if file not in self.spans or len(good) != len(bad):
            return []
        differ = [n for n, (a, b) in enumerate(zip(good, bad, strict=True)) if a != b]
        return [s for s in self.spans[file] if any(s.start <= n < s.stop for n in differ)]

    def _stored(self) -> set[LeafId]:
        return {leaf for leaf, v in self.truth.items() if v.storage is not None}

    def _owners_in_msgpack(self, file: Path, good: bytes, bad: bytes) -> set[LeafId]:
        hit = self._hit(file, good, bad)
        items = {leaf[0] for leaf in self.truth}
        return {
            leaf
            for leaf in self.truth
            for span in hit
            if leaf[1 : 1 + len(span.prefix)] == span.prefix
            if file.parent.name == leaf[0] or file.parent.name not in items
        }


class _Few(frozenset):
    """Any of these leaves, but not more than a number of them."""

    def __new__(cls, leaves, limit):
        made = super().__new__(cls, leaves)
        made.limit = limit
        return made

    def __rsub__(self, other):
        rest = frozenset(other) - frozenset(self)
        return rest or (frozenset() if len(other) <= self.limit else frozenset(other))


def _is_refused(leaf: LeafId, found: dict[LeafId, Value]) -> bool:
    return any(found.get(leaf[:n]) is REFUSED for n in range(len(leaf)))


def _is_head(span: Span, good: bytes, bad: bytes) -> bool:
    """Whether the byte changed that says what a value is: an array can become a list so."""
    return good[span.start] != bad[span.start]


def _is_renamed(a: LeafId, b: LeafId) -> bool:
    # a swap can hit two keys
    return len(a) == len(b) and 0 < sum(x != y for x, y in zip(a, b, strict=True)) <= 2


def _same_form(a: Value, b: Value) -> bool:
    form = [
        (v.kind, getattr(v.value, "shape", None), getattr(v.value, "dtype", None)) for v in (a, b)
    ]
    return form[0] == form[1]


def _shortly(good: bytes, bad: bytes) -> str:
    at = next((n for n, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), len(bad))
    return f"at byte {at} of {len(good)}, {good[at : at + 8]!r} is {bad[at : at + 8]!r}"


# --- by hand


def archives() -> list[Path]:
    """The goldens that are packed, one archive for each era."""
    return sorted((GOLDENS / "eras").glob("*.tar.xz"))


def unpack(archive: Path, place: Path, some: int | None = None) -> list[Path]:
    """Unpack the goldens of an archive, or some of them, always the same; their folders."""
    with tarfile.open(archive) as packed:
        members = packed.getmembers()
        names = sorted({"/".join(m.name.split("/")[:2]) + "/" for m in members if "/" in m.name})
        if some is not None:
            names = generator(archive.name).sample(names, min(some, len(names)))
        wanted = [m for m in members if m.name.startswith(tuple(names))]
        packed.extractall(place, wanted, filter="data")
    return sorted(truth.parent for truth in place.rglob("truth.json"))


def folders(scratch: Path) -> Iterator[tuple[str, Path]]:
    """The folders of all goldens, those of the archives unpacked."""
    for name in goldens():
        yield name, GOLDENS / name
    for archive in archives():
        for folder in unpack(archive, scratch / archive.name):
            yield f"eras/{folder.parent.name}/{folder.name}", folder


def main() -> int:
    """Damage all goldens in turn, and say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of a golden")
    given = parser.parse_args()
    outcome, defects, begun = Outcome(), [], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        every = [(n, f) for n, f in folders(Path(scratch, "packed")) if given.only in n]
        for place, (name, folder) in enumerate(every):
            try:
                subject = Subject(folder, Path(scratch, str(place)))
            except legacy.LegacyError:  # some are kept because they must be refused
                outcome.add("closed", name)
                continue
            for number in range(place, given.mutations, len(every)):
                try:
                    subject.damage(generator(given.seed, name, number), outcome)
                except Defect as defect:
                    defects.append(f"{name}: mutation {number}: {defect}")
                    sys.stderr.write(f"{defects[-1]}\n")
            shutil.rmtree(Path(scratch, str(place)))
    for what, count in outcome.count.most_common():
        sys.stdout.write(f"{count:8} {what:10} {outcome.shown[what]}\n")
    seconds = time.monotonic() - begun
    sys.stdout.write(f"{len(defects):8} defects, {len(every)} goldens, {seconds:.0f} s\n")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
