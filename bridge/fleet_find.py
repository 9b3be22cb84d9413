"""What a batch converts, and where each of it goes: before anything is opened.

Outputs mirror the folders of the sources. Whatever would make two outputs meet, or an output meet
a source, is an error before the batch begins: later it would be a checkpoint that is missing.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import legacy
from bridge._steps import step_number
from bridge.errors import BridgeError, FleetError
from bridge.fleet_prints import in_words
from bridge.ledger import FOLDER
from legacy.paths import absolute
from legacy.step_names import split_step

__all__ = ["Found", "Source", "below_roots", "check_places", "find_sources"]

_UNREADABLE = "could not look"
_SHOWN = 10
_NAMED = re.compile(r"(checkpoint|ckpt|chkpt)s?[_\-.]?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint that was found.

    Attributes:
        path: the file or folder.
        run: the path of its run below its root, as ``fleet.toml`` names it.
        step: its number in the output.
        output: its step folder, relative to the output of the batch.
        error: why it cannot be converted, found out by its name alone.
    """

    path: Path
    run: str
    step: int | None
    output: str
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Everything below the roots.

    Attributes:
        sources: the checkpoints that are to be converted, by run and step.
        runs: how many runs they belong to.
        skipped: what was left out, with reasons.
    """

    sources: tuple[Source, ...]
    runs: int
    skipped: tuple[legacy.Skipped, ...]


def find_sources(roots: Sequence[str | os.PathLike[str]], steps: str = "latest") -> Found:
    """Look for runs and checkpoints below the roots.

    Args:
        roots: folders or checkpoints. One root goes straight to the output, several go to folders
            of their names.
        steps: ``latest`` of each run, ``all``, or numbers such as ``1000,2000``.

    Returns:
        What was found. A root that is not there is a source with an error.

    Raises:
        FleetError: two roots have one name, or no run has a step that was asked for.

    >>> [s.output for s in find_sources(["runs"], "all").sources]  # doctest: +SKIP
    ['exp1/1000', 'exp1/2000', 'exp2/best/0']
    """
    places = [absolute(root) for root in roots]
    _check_names(places)
    sources: list[Source] = []
    skipped: list[legacy.Skipped] = []
    numbers = None if steps in ("latest", "all") else [float(n) for n in steps.split(",")]
    seen: Counter[float] = Counter()
    known: set[Path] = set()
    runs = 0
    for root in places:
        name = root.name if len(places) > 1 else ""
        try:
            found = _runs(root)
        except legacy.LegacyError as error:
            sources.append(Source(root, name or root.name, None, name or root.name, error))
            continue
        prefixed = Counter(run.path for run in found if run.steps and run.kind != "single")
        for run in found:
            skipped += run.skipped
            known |= {entry.path for entry in run.steps}
            chosen = run.steps
            if numbers is not None:
                chosen = tuple(e for e in run.steps if e.step in numbers)
                seen.update(float(e.step) for e in chosen if e.step is not None)
            elif steps == "latest":
                chosen = run.steps[-1:]
            runs += bool(chosen)
            at = _run_name(run, root, name, shared=prefixed[run.path] > 1)
            sources += [_source(entry, at, root) for entry in chosen]
    missing = [f"{n:g}" for n in numbers or () if not seen[n]]
    if missing:
        raise FleetError(f"no run has step {', '.join(missing)}.")
    unreadable = [s for s in skipped if _UNREADABLE in s.reason]
    sources += [_lost(s.path, legacy.CannotLook(s.reason, path=s.path), places) for s in unreadable]
    known |= {s.path for s in skipped}
    for root in places:
        sources += [_lost(path, error, places) for path, error in _overlooked(root, known)]
    return Found(tuple(sources), runs, tuple(s for s in skipped if s not in unreadable))


def _runs(root: Path) -> tuple[legacy.Run, ...]:
    found = legacy.find(root)
    if not any(run.steps for run in found):
        legacy.open(root)  # says what is there instead
    return found


def _run_name(run: legacy.Run, root: Path, name: str, *, shared: bool) -> str:
    """The path of a run in the output; two runs in one folder are told apart by their prefixes."""
    below = run.path.relative_to(root).as_posix() if run.path != root else "."
    parts = [part for part in (name, below) if part not in ("", ".")]
    prefix = split_step(run.steps[0].path.name) if shared and run.steps else None
    if prefix is not None and prefix.prefix.rstrip("_-."):
        parts.append(prefix.prefix.rstrip("_-."))
    return "/".join(parts)


def _source(entry: legacy.StepEntry, run: str, root: Path) -> Source:
    label = run or root.name
    try:
        str(entry.path).encode()
    except UnicodeEncodeError:
        error: Exception = BridgeError(
            f"{in_words(entry.path)}: the name is not UTF-8, and cannot be kept with the output. "
            "Rename it."
        )
        return Source(
            entry.path, in_words(label), None, in_words(f"{run}/{entry.path.name}"), error
        )
    try:
        step = step_number(entry)
    except BridgeError as error:
        return Source(entry.path, label, None, f"{run}/{entry.step}".lstrip("/"), error)
    return Source(entry.path, label, step, f"{run}/{step}".lstrip("/"))


def _overlooked(root: Path, known: set[Path]) -> Iterator[tuple[Path, Exception]]:
    """Files named like checkpoints in folders where nothing is one: emptied, or cut short.

    A run of which every file is damaged is no run for the reader, and must not be missing here.
    """
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if here / name not in known)
        for name in sorted(names):
            path = here / name
            step = split_step(name)
            if step is None or path in known or not _NAMED.search(step.prefix):
                continue
            try:
                legacy.open(path)
            except legacy.LegacyError as error:
                yield path, error


def _lost(path: Path, error: Exception, roots: Sequence[Path]) -> Source:
    """Something that should have been a checkpoint, as a source with an error."""
    below = below_roots(path, roots)
    return Source(path, below.rpartition("/")[0] or below, None, below, error)


def below_roots(path: Path, roots: Sequence[Path]) -> str:
    """Where a path lies below the roots, as it would be named in the output."""
    root = next(r for r in roots if path.is_relative_to(r))
    name = root.name if len(roots) > 1 else ""
    return in_words("/".join(p for p in (name, path.relative_to(root).as_posix()) if p))


def _check_names(roots: Sequence[Path]) -> None:
    by_name: dict[str, set[Path]] = defaultdict(set)
    for root in roots:
        by_name[root.name].add(root)
    same = [sorted(map(str, group)) for group in by_name.values() if len(group) > 1]
    same += [[str(r)] * n for r, n in Counter(roots).items() if n > 1]
    if same:
        raise FleetError(
            "; ".join(f"{' and '.join(group)} have one name" for group in same)
            + ". Convert them with an output of their own each."
        )


def check_places(sources: Sequence[Source], roots: Sequence[Path], out: Path) -> None:
    """Refuse outputs that would meet each other or a source.

    Args:
        sources: what is going to be converted.
        roots: where it was found.
        out: the output of the batch.

    Raises:
        FleetError: with every collision.
    """
    problems = []
    here = out.resolve()
    for root in roots:
        there = root.resolve()
        if here == there or here in there.parents or there in here.parents:
            how = "is" if here == there else "lies in" if there in here.parents else "holds"
            problems.append(f"the output {out} {how} the root {root}; sources are never written to")
    good = [s for s in sources if s.error is None]
    problems += _same(good)
    problems += _nested(good)
    if problems:
        more = len(problems) - _SHOWN
        shown = [*problems[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise FleetError(
            f"{len(problems)} collision(s), so nothing was begun:\n  " + "\n  ".join(shown),
            problems=problems,
        )


def _same(sources: Sequence[Source]) -> Iterator[str]:
    by_place: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        by_place[_folded(source.output)].append(source)
    for group in by_place.values():
        if len(group) == 1:
            continue
        names = sorted({s.output for s in group})
        if len(names) == 1:
            said = f"{group[0].output} would come from each of "
        else:
            said = f"{' and '.join(names)} are one name on some disks; they would come from "
        yield said + ", ".join(str(s.path) for s in group)
    for source in sources:
        if source.output.split("/")[0] == FOLDER:
            yield f"{source.path}: {FOLDER} is our own folder in the output"


def _nested(sources: Sequence[Source]) -> Iterator[str]:
    steps = {_folded(s.output): s for s in sources}
    for source in sources:
        parts = _folded(source.output).split("/")
        for n in range(1, len(parts)):
            above = steps.get("/".join(parts[:n]))
            if above is not None:
                yield (
                    f"{source.output} (of {source.path}) would lie in {above.output}, the "
                    f"checkpoint that comes from {above.path}"
                )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
