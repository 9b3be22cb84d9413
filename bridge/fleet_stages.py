"""The stages of a batch before its work: what is there, and what is to be done with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bridge.errors import FleetError
from bridge.fleet_config import Config
from bridge.fleet_find import Source
from bridge.fleet_outputs import clean, standing, taken_over
from bridge.fleet_plan import Group, Looked
from bridge.fleet_prints import fingerprint, in_words
from bridge.fleet_run import How, Task
from bridge.fleet_signals import Stop
from bridge.fleet_workers import Crew, Death
from bridge.ledger import Ledger, LedgerRow

__all__ = ["Fleet", "check_room", "clean_up", "decide", "gone", "look", "store_plans"]

_LINKED: Final = 1 << 17
_PROBLEM: Final = 4000

Event = Callable[[Mapping[str, Any]], None]


@dataclass
class Fleet:
    """One batch on its way."""

    roots: Sequence[Path]
    out: Path
    config: Config
    how: How
    dry_run: bool
    overwrite: bool
    tell: Event
    crew: Crew
    stop: Stop
    ledger: Ledger | None
    known: Mapping[str, LedgerRow]
    rows: dict[str, LedgerRow] = field(default_factory=dict)
    kept: int = 0


def clean_up(fleet: Fleet) -> None:
    """Remove what killed workers left, and say what became of what they had in hand."""
    assert fleet.ledger is not None  # noqa: S101 - only then called
    for row in list(fleet.ledger.rows.values()):
        if row.pid is None:
            continue
        place = fleet.out / row.output
        clean(place, row.pid, fleet.out)
        back = replace(row, state="pending", pid=None) if row.state == "running" else None
        fleet.ledger.put(taken_over(row, place) or back or replace(row, pid=None))


def look(fleet: Fleet, sources: Sequence[Source]) -> list[Looked]:
    """Open every source once, in the workers: a file that ends a process ends one of theirs."""
    looked: dict[str, Looked] = {}
    open_: dict[str, Looked] = {}
    for source in sources:
        one = _outside(source, fleet.known.get(source.output))
        if one.kind or one.signature:
            looked[source.output] = one
        else:
            open_[source.output] = one
    waiting = list(open_)[::-1]
    crew = fleet.crew
    while waiting or crew.busy:
        while len(crew.workers) < min(crew.size, len(crew.busy) + len(waiting)):
            crew.hire()
        for worker in crew.workers:
            if worker.ready and worker.job is None and waiting:
                name = waiting.pop()
                path = str(open_[name].source.path)
                worker.send({"id": name, "task": "look", "source": path})
        for worker, said in crew.wait(None):
            job, worker.job = worker.job, None
            if job is not None:
                looked[job["id"]] = _inside(open_[job["id"]], said)
                fleet.tell({"event": "looked", "done": len(looked), "of": len(sources)})
    return [looked[source.output] for source in sources]


def _outside(source: Source, row: LedgerRow | None) -> Looked:
    """What can be told without opening a source; all of it when the ledger knows the source."""
    if source.error is not None:
        return Looked(source, kind=type(source.error).__name__, error=str(source.error))
    try:
        found, disk_bytes = fingerprint(source.path)
    except OSError as error:
        said = f"{source.path}: could not look ({error.strerror or error})."
        return Looked(source, kind=type(error).__name__, error=said)
    one = Looked(source, found, disk_bytes)
    if row is None or row.fingerprint != found or row.source != in_words(source.path):
        return one
    return replace(one, signature=row.signature, nbytes=row.nbytes, format=row.format)


def _inside(one: Looked, said: Mapping[str, Any] | Death) -> Looked:
    if isinstance(said, Death):
        told = f"{one.source.path}: a worker that only opened it {said.reason}."
        return replace(one, kind="WorkerDied", error=told)
    if not said["ok"]:
        return replace(one, kind=said["kind"], error=said["error"])
    return replace(one, signature=said["signature"], nbytes=said["nbytes"], format=said["format"])


def decide(fleet: Fleet, groups: Sequence[Group], bad: Sequence[Looked]) -> list[Task]:
    """Say for every checkpoint what is to be done, and fill the rows."""
    tasks: list[Task] = []
    foreign: list[str] = []
    for one in bad:
        fleet.rows[one.source.output] = replace(
            _row(fleet, one), state="failed", error_kind=one.kind, error=one.error
        )
    for group in groups:
        for one in group.members:
            row = replace(
                _row(fleet, one),
                plan_digest=group.digest,
                level=fleet.how.level,
                warnings="\n".join(group.plan.warnings) if group.plan else "",
            )
            if group.kind:
                state = "skipped" if group.skipped else "failed"
                kind = "" if group.skipped else group.kind
                row = replace(row, state=state, error_kind=kind, error=group.problem[:_PROBLEM])
            else:
                row = _stand(fleet, row, group, tasks, foreign)
            fleet.rows[one.source.output] = row
    if foreign:
        shown = foreign[:10]
        more = [f"and {len(foreign) - len(shown)} more"] if len(foreign) > len(shown) else []
        raise FleetError(
            f"{len(foreign)} output(s) are there already, and not from these sources by this "
            "command:\n  " + "\n  ".join([*shown, *more]) + "\nChoose another output, or ask for "
            "overwrite to replace them.",
            problems=foreign,
        )
    return tasks


def _row(fleet: Fleet, one: Looked) -> LedgerRow:
    old = fleet.known.get(one.source.output)
    source = in_words(one.source.path)
    row = LedgerRow(
        output=one.source.output,
        source=source,
        run=one.source.run,
        step=one.source.step,
        signature=one.signature,
        fingerprint=one.fingerprint,
        layout=fleet.how.layout,
        nbytes=one.nbytes,
        disk_bytes=one.disk_bytes,
        format=one.format,
    )
    if old is None or old.source != source:
        return row
    return replace(row, identity=old.identity, attempts=old.attempts)


def _stand(
    fleet: Fleet, row: LedgerRow, group: Group, tasks: list[Task], foreign: list[str]
) -> LedgerRow:
    place = fleet.out / row.output
    old = fleet.known.get(row.output)
    what = standing(place, old, row, again=fleet.overwrite)
    if what == "done" and old is not None:
        fleet.kept += 1
        return old
    if what == "adopt":
        fleet.kept += 1
        return taken_over(row, place) or row
    if what == "foreign":
        foreign.append(f"{place} (wanted for {row.source})")
        return row
    row = replace(row, identity="" if what == "convert" else row.identity)
    tasks.append(Task(row, group, replaces=what == "replace"))
    return row


def gone(fleet: Fleet, sources: Sequence[Source]) -> list[LedgerRow]:
    """Rows of sources that never came to be done, and are not there any more."""
    found = {source.output for source in sources}
    said = "the source is not there any more, and was never converted"
    return [
        replace(row, state="failed", error_kind="SourceGone", error=f"{row.source}: {said}.")
        for row in fleet.known.values()
        if row.output not in found
        and row.state in ("pending", "running", "failed")
        and not os.path.lexists(row.source)
    ]


def check_room(fleet: Fleet, tasks: Sequence[Task]) -> None:
    """Refuse a batch that would fill the disk, as far as that can be told beforehand.

    Raises:
        FleetError: there is too little room.
    """
    needed = sum(_LINKED if fleet.how.link else t.row.disk_bytes + _LINKED // 8 for t in tasks)
    free = shutil.disk_usage(fleet.out).free
    if needed > free:
        raise FleetError(
            f"{fleet.out}: {len(tasks)} checkpoints need about {needed:,} bytes, and {free:,} are "
            "free. Make room, choose another output, or hard-link data files (--link)."
        )


def store_plans(fleet: Fleet, groups: Sequence[Group]) -> None:
    """Write the plans for the workers, each under its digest."""
    folder = fleet.how.plans
    folder.mkdir(parents=True, exist_ok=True)
    for group in groups:
        if group.plan is None:
            continue
        path = folder / f"{group.digest}.json"
        begun = path.with_suffix(".part")
        begun.write_text(group.plan.to_json(), encoding="utf-8")
        begun.replace(path)
