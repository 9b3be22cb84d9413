"""What must hold of a damaged checkpoint: all leaves right, or an error that names file and leaf.

A verdict is one of

- ``right``: every leaf reads as it did before;
- ``refused``: the checkpoint is not opened, and the error names what is concerned;
- ``leaf``: some leaves are listed and raise, all others read as before;
- ``told``: leaves are gone or of another kind, and the evidence or the notes say what was lost;
- ``payload``: a value without a checksum reads as another one, of the leaf that owns the bytes;
- ``document``: so does the name or the form of such a value;
- ``WRONG``: anything else.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from damage_cases import SAMPLE, Damage, Depth, Subject, damages, kind_of, state_of, subject

import legacy
from legacy.leaves import Leaf
from legacy.orbax_folders import Folder

LeafId = tuple[str, ...]
"""The item and the path of a leaf."""

PATIENCE = 10.0
USELESS = ("_sharding", "commit_success.txt", "descriptor", "orbax.checkpoint")
RUN_DOCUMENTS = ("_CHECKPOINT_METADATA", "_ROOT_METADATA")
KEYS = "array_metadatas"
STRINGS = "_strings.json"
JSON_ITEMS = ("metadata", "metrics", "data.json")
HOLLOW = ("none", "empty")


class Wrong(AssertionError):
    """What must not happen."""


class Hang(BaseException):
    """A call that did not return; no ``except Exception`` may catch it."""


@dataclass(frozen=True)
class Value:
    """What a leaf says."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    value: bytes | str
    more: tuple[Any, ...]
    notes: tuple[str, ...] = field(compare=False)

    def is_like(self, other: Value) -> bool:
        """Of the same form, whatever the value."""
        return (self.shape, self.dtype) == (other.shape, other.dtype)


@dataclass
class Truth:
    """A run before it is damaged."""

    one: Subject
    values: dict[LeafId, Value]
    evidence: frozenset[str]
    owned: dict[Path, frozenset[LeafId]]
    """The leaves that a file may concern; a file that is not here concerns all."""
    own: frozenset[Path]
    """Files of arrays and documents that must not stop other leaves."""


def value_of(leaf: Leaf) -> Value:
    """Read a leaf."""
    value = leaf.read()
    plain = isinstance(value, np.ndarray | np.generic)
    content = np.asarray(value).tobytes() if plain else repr(value)
    dtype = np.asarray(value).dtype.name if plain else ""
    more = (leaf.key_impl, leaf.container)
    return Value(leaf.kind, np.shape(value) if plain else (), dtype, content, more, leaf.notes)


def truth_of(one: Subject) -> Truth:
    """Read a run that is not damaged yet, and find out which files hold which leaves."""
    checkpoint = legacy.open(one.step)
    leaves = {(i, *p): leaf for i, t in checkpoint.items.items() for p, leaf in t.items()}
    values = {leaf_id: value_of(leaf) for leaf_id, leaf in leaves.items()}
    owned: dict[Path, frozenset[LeafId]] = {}
    own: set[Path] = set()
    places = {leaf_id: place for leaf_id, leaf in leaves.items() if (place := _folder_of(leaf))}
    for file in one.files:
        item = next((n for n in checkpoint.items if one.step / n in file.parents), None)
        inside = {k for k in leaves if item is None or k[0] == item}
        holders = {k for k, place in places.items() if place in file.parents}
        if one.step.is_dir() and file.suffix == ".msgpack":  # one of several files
            holders = {k for k, leaf in leaves.items() if getattr(leaf.storage, "file", 0) == file}
        if holders:
            owned[file] = frozenset(holders)
            own.add(file)
        elif file.name in USELESS or one.run / "metadata" in file.parents:
            owned[file] = frozenset()
            own.add(file)
        elif file.name == STRINGS:
            owned[file] = frozenset(k for k in inside if values[k].kind == "str")
            own.add(file)
        elif KEYS in file.parts:
            owned[file] = frozenset(
                k for k in inside if values[k].dtype == "uint32" or values[k].kind == "key"
            )
            own.add(file)
        elif item is not None:
            owned[file] = frozenset(inside)
    evidence = frozenset(checkpoint.format.evidence)
    return Truth(one, values, evidence, owned, frozenset(own))


def _folder_of(leaf: Leaf) -> Path | None:
    """The folder of files that belongs to one leaf only."""
    found = getattr(leaf.reader, "found", None)
    is_folder = found is not None and isinstance(found.store, Folder)
    return Path(found.store.root, found.key) if is_folder else None


# --- the verdict


def judge(truth: Truth, damage: Damage, stash: Path) -> str:
    """Do a damage, look at the checkpoint in every way, undo the damage.

    Returns:
        The verdict.

    Raises:
        Wrong: the promise is broken.
    """
    try:
        with damage.done(stash), _patience(truth.one.run), warnings.catch_warnings():
            warnings.simplefilter("error")
            return _look(truth, damage)
    except (Wrong, Hang) as error:
        raise Wrong(f"{damage}: {type(error).__name__}: {error}") from error
    except Exception as error:
        frames = [
            f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)
        ]
        raise Wrong(
            f"{damage}: {type(error).__name__}: {error} at {' '.join(frames[-4:])}"
        ) from error


def _look(truth: Truth, damage: Damage) -> str:
    before = state_of(truth.one.run)
    is_there = os.path.lexists(truth.one.step)
    with damage.around():
        verdict = _judge(truth, damage, is_there=is_there)
    if state_of(truth.one.run) != before:
        raise Wrong("a file was changed")
    return verdict


@contextlib.contextmanager
def _patience(run: Path) -> Iterator[None]:
    def stop(*_: object) -> None:
        for path in run.rglob("*"):
            if path.is_fifo():  # lets go a thread that waits for a writer
                os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        raise Hang(f"no answer in {PATIENCE} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _judge(truth: Truth, damage: Damage, *, is_there: bool) -> str:
    error, checkpoint = None, None
    try:
        checkpoint = legacy.open(truth.one.step)
    except legacy.LegacyError as caught:
        error = caught
    is_inside = damage.name.startswith(("field", "swapped", "another golden's"))
    is_inside &= damage.place.name not in RUN_DOCUMENTS
    if not is_inside and not truth.one.is_alone:
        _check_run(truth, damage, error, is_there=is_there)
    if checkpoint is None:
        assert error is not None
        _check_names(error, truth, damage)
        # an array that no index names is not passed over
        is_renamed = damage.name.endswith(("other case", "stale handle"))
        files = _files(truth, damage)
        is_part = damage.place != truth.one.step and all(f in truth.own for f in files)
        if is_part and not is_renamed and not _owners(truth, files) >= truth.values.keys():
            raise Wrong(f"all is refused for the damage of one part: {error}")
        return "refused"
    return _check_leaves(truth, damage, checkpoint)


def _files(truth: Truth, damage: Damage) -> list[Path]:
    """The files of the checkpoint that a damage concerns."""
    tops = tuple(map(str, (damage.place, *damage.touched)))
    below = tuple(f"{top}/" for top in tops)
    return [f for f in truth.one.files if str(f) in tops or str(f).startswith(below)]


def _owners(truth: Truth, files: list[Path]) -> frozenset[LeafId]:
    every = frozenset(truth.values)
    return frozenset().union(*(truth.owned.get(f, every) for f in files))


def _check_names(error: legacy.LegacyError, truth: Truth, damage: Damage) -> None:
    if error.path is None:
        raise Wrong(f"the error has no path: {error}")
    if str(error.path) not in str(error):
        raise Wrong(f"the error does not name {error.path}: {error}")
    if error.path == truth.one.run and len(damage.place.parts) > len(truth.one.step.parts):
        raise Wrong(f"the error names only the run: {error}")
    if truth.one.run not in (error.path, *error.path.parents):
        raise Wrong(f"the error names another place: {error}")


def _check_run(
    truth: Truth, damage: Damage, error: legacy.LegacyError | None, *, is_there: bool
) -> None:
    """The folder above: nothing is offered in its place, and nothing goes unmentioned."""
    run, step = truth.one.run, truth.one.step
    found = legacy.find(run.parent)
    named = {e.path for r in found for e in r.steps} | {s.path for r in found for s in r.skipped}
    if step not in named and not any(step in p.parents for p in named) and is_there:
        raise Wrong(f"find names {sorted(map(str, named))} and not the step")
    try:
        steps = legacy.steps_of(run)
    except legacy.LegacyError as caught:
        _check_names(caught, truth, damage)
        steps = None
    try:
        opened = legacy.open(run)
    except legacy.LegacyError as caught:
        _check_names(caught, truth, damage)
        return
    if opened.path == step and error is not None:
        raise Wrong(f"the run opens it, and its path does not: {error}")
    if opened.path != step and is_there:
        skipped = {s.path for s in opened.skipped}
        if step not in skipped or steps is None or step in {e.path for e in steps.steps}:
            raise Wrong(f"the run opens {opened.path}, and does not say that it skipped the last")


def _check_leaves(truth: Truth, damage: Damage, checkpoint: legacy.Checkpoint) -> str:
    found: dict[LeafId, Value | legacy.LegacyError] = {}
    for item, table in checkpoint.items.items():
        for path, leaf in table.items():
            found[item, *path] = _read(leaf, truth)
    lost = {k for k, v in found.items() if isinstance(v, legacy.LegacyError)}
    good = {k: v for k, v in found.items() if isinstance(v, Value)}
    gone = {
        k for k in truth.values if k not in found and not any(k[:n] in lost for n in range(len(k)))
    }
    new = good.keys() - truth.values.keys()
    changed = {k for k in good.keys() & truth.values.keys() if good[k] != truth.values[k]}
    files = _files(truth, damage)
    owners = _owners(truth, files)
    if files and all(f in truth.own for f in files):
        stopped = {k for k in lost & truth.values.keys() if k not in owners}
        if stopped:
            raise Wrong(f"{sorted(stopped)[:3]} cannot be read: {found[min(stopped)]}")
    if not (gone or new or changed):
        return "leaf" if lost else "right"
    told = frozenset(checkpoint.format.evidence) - truth.evidence
    told |= {s.reason for s in checkpoint.skipped if truth.one.step in s.path.parents}
    untold = {
        k for k in changed if not set(good[k].notes) - set(truth.values[k].notes) and not told
    }
    if not damage.is_content and not told and (gone or new or untold):
        return _check_untold(damage, truth, gone, new, changed, good, owners)
    if damage.is_content and not told:
        return _check_content(damage, truth, gone, new, changed, good, owners)
    if any(good[k].value != truth.values[k].value for k in changed):
        raise Wrong(_differences(gone, new, changed, good, truth))
    return "told"


def _check_untold(
    damage: Damage,
    truth: Truth,
    gone: set[LeafId],
    new: set[LeafId],
    changed: set[LeafId],
    good: dict[LeafId, Value],
    owners: frozenset[LeafId],
) -> str:
    # a field of a document of a user is a value, too
    if _is_users(damage, owners, gone | new | changed):
        return "payload"
    if not _is_listed(truth, damage) and not changed:
        return "document"  # nothing on disk says which items a step had
    hollow = all(truth.values[k].kind in HOLLOW for k in gone)
    typed = all(good[k].value == truth.values[k].value for k in changed)
    if damage.name.startswith("field") and hollow and typed and not new:
        return "document"  # the only place on disk that says it
    raise Wrong(_differences(gone, new, changed, good, truth))


def _check_content(
    damage: Damage,
    truth: Truth,
    gone: set[LeafId],
    new: set[LeafId],
    changed: set[LeafId],
    good: dict[LeafId, Value],
    owners: frozenset[LeafId],
) -> str:
    strangers = changed - owners
    if strangers:
        raise Wrong("not theirs: " + _differences(set(), set(), strangers, good, truth))
    if gone or new:
        if _is_users(damage, owners, gone | new):
            return "payload"
        if not all(any(_one_apart(a, b) for b in gone) for a in new) or len(gone) != len(new):
            raise Wrong(_differences(gone, new, changed, good, truth))
        return "document"
    if damage.name == "byte changed" and len(changed) > 1:
        raise Wrong("one byte, and " + _differences(gone, new, changed, good, truth))
    if all(good[k].is_like(truth.values[k]) for k in changed):
        return "payload"
    return "document"


def _is_users(damage: Damage, owners: frozenset[LeafId], concerned: set[LeafId]) -> bool:
    """Whether a JSON item, which is a value of the user's, was changed into another one."""
    if damage.name.startswith("field") and damage.place.name == STRINGS:
        return concerned <= owners
    items = {k[0] for k in concerned}
    changed = damage.name in ("field gone", "field wrong", "byte changed", "another golden's")
    places = damage.touched if damage.name == "swapped" else (damage.place,) if changed else ()
    documents = [p for p in places if p.name in JSON_ITEMS]
    return len(items) == 1 and any(p.parent.name in items for p in documents)


def _is_listed(truth: Truth, damage: Damage) -> bool:
    """Whether a document on disk would miss what was damaged."""
    is_item = damage.place.parent == truth.one.step and damage.name.startswith("folder")
    file = truth.one.step / RUN_DOCUMENTS[0]
    handlers = json.loads(file.read_bytes()).get("item_handlers") if file.exists() else None
    return not is_item or isinstance(handlers, dict)


def _one_apart(a: LeafId, b: LeafId) -> bool:
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1


def _read(leaf: Leaf, truth: Truth) -> Value | legacy.LegacyError:
    try:
        value = value_of(leaf)
    except legacy.LegacyError as error:
        name = legacy.format_path(leaf.path)
        if error.leaf != leaf.path:
            raise Wrong(f"leaf {name}: .leaf is {error.leaf}: {error}") from error
        if error.path is None or str(error.path) not in str(error):
            raise Wrong(f"leaf {name}: .path is {error.path}: {error}") from error
        if truth.one.run not in error.path.parents:
            raise Wrong(f"leaf {name}: another place is named: {error}") from error
        if name not in str(error):
            raise Wrong(f"leaf {name} is not named: {error}") from error
        return error
    if leaf.kind == "unreadable":
        raise Wrong(f"the unreadable leaf {leaf.path} was read")
    return value


def _differences(
    gone: set[LeafId],
    new: set[LeafId],
    changed: set[LeafId],
    good: dict[LeafId, Value],
    truth: Truth,
) -> str:
    said = [f"{len(gone)} leaves went silently: {sorted(gone)[:2]}"] if gone else []
    said += [f"{len(new)} leaves appeared: {sorted(new)[:2]}"] if new else []
    shown = [(k, _short(truth.values[k]), _short(good[k])) for k in sorted(changed)[:2]]
    said += [f"{len(changed)} leaves read otherwise: {shown}"] if changed else []
    return "; ".join(said)


def _short(value: Value) -> str:
    return f"{value.kind} {value.dtype}{value.shape} {value.value[:16]!r} {value.more}"


# --- by hand


def main(arguments: list[str]) -> int:
    """Damage the goldens of some folders in every way; print the matrix."""
    parser = argparse.ArgumentParser(prog="damage_cases.py")
    parser.add_argument("folders", nargs="+", type=Path, help="goldens, or folders of goldens")
    parser.add_argument("--all", action="store_true", help="damage every file and field")
    parser.add_argument("--sample", action="store_true", help="only what the tests do")
    parser.add_argument("--only", default="", help="part of the name of a damage")
    given = parser.parse_args(arguments)
    faulthandler.enable()
    depth = SAMPLE if given.sample else Depth(every_file=given.all)
    scratch = Path(tempfile.mkdtemp(prefix="damage-"))
    matrix: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wrong, begun = 0, time.monotonic()
    try:
        others = [subject(g.absolute(), scratch) for g in _goldens(given.folders)]
        (scratch / "stash").mkdir()
        for one in others:
            count: collections.Counter[str] = collections.Counter()
            truth = truth_of(one)
            for damage in damages(one, others, depth):
                if given.only not in damage.name:
                    continue
                try:
                    verdict = judge(truth, damage, scratch / "stash")
                except Wrong as error:
                    verdict = "WRONG"
                    _say(f"{one.name}: {error}")
                wrong += verdict == "WRONG"
                count[verdict] += 1
                for row in (damage.name, f"[{kind_of(damage.place)}]"):
                    matrix[row][verdict] += 1
            _say(f"{one.name}: {dict(count)}")
    finally:
        shutil.rmtree(scratch)
    _show(matrix)
    _say(f"{wrong} wrong, {time.monotonic() - begun:.0f} s")
    return 1 if wrong else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _goldens(folders: list[Path]) -> list[Path]:
    found = []
    for folder in folders:
        truths = sorted(folder.rglob("truth.json"))
        found += [t.parent for t in truths] or [folder]
    return found


def _show(matrix: dict[str, collections.Counter[str]]) -> None:
    verdicts = ("right", "refused", "leaf", "told", "payload", "document", "WRONG")
    _say(f"{'':28}" + "".join(f"{v:>10}" for v in verdicts))
    for row, count in sorted(matrix.items()):
        _say(f"{row:28}" + "".join(f"{count[v] or '':>10}" for v in verdicts))
