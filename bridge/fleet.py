"""Converts a disk full of runs: find, look, group, plan, and then the work itself.

It can be stopped at any moment, and started again with the same command: what is done and still
fits is skipped, what changed is done again, what failed is tried again. Every checkpoint that was
found has a row in the ledger, whatever became of it.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bridge._plan import Plan
from bridge._verdict import check_level
from bridge._versions import installed
from bridge.errors import BridgeError, FleetError
from bridge.fleet_config import Config, Entry, read_config
from bridge.fleet_find import Source, below_roots, check_places, find_sources
from bridge.fleet_lock import alone
from bridge.fleet_plan import Group, Looked, group_all, plan_group, unused
from bridge.fleet_prints import in_words
from bridge.fleet_run import How, carry_out
from bridge.fleet_signals import listening
from bridge.fleet_stages import Fleet, check_room, clean_up, decide, gone, look, store_plans
from bridge.fleet_workers import Crew
from bridge.ledger import FOLDER, Ledger, LedgerRow, read_ledger
from bridge.repack_arrays import parse_compression
from legacy import Skipped
from legacy.paths import absolute

__all__ = ["FleetReport", "convert_fleet"]

_LIBRARIES: Final = ("linen-nnx-bridge", "numpy", "ml_dtypes", "tensorstore")

Event = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class FleetReport:
    """What became of a batch.

    Attributes:
        out: its output.
        groups: what was found, by structure and entry, with plans or what is wrong.
        unopened: what could not be opened.
        skipped: what lay beside the checkpoints and was left out, with reasons.
        rows: the ledger's row of each checkpoint that was found; in a dry run as it would begin.
        kept: how many of them were done before.
        interrupted: whether the user stopped it.
        dry_run: whether nothing was to be written.
        seconds: how long it took.
    """

    out: Path
    groups: tuple[Group, ...] = ()
    unopened: tuple[Looked, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    rows: tuple[LedgerRow, ...] = ()
    kept: int = 0
    interrupted: bool = False
    dry_run: bool = False
    seconds: float = 0.0

    @property
    def counts(self) -> Mapping[str, int]:
        """How many checkpoints are in each state."""
        return Counter(row.state for row in self.rows)

    @property
    def ok(self) -> bool:
        """Whether nothing failed and nothing is left to do."""
        undone = {"failed"} if self.dry_run else {"failed", "pending", "running"}
        return not self.interrupted and not undone & self.counts.keys()


def convert_fleet(
    roots: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    steps: str = "latest",
    jobs: int = 1,
    max_memory: int | None = None,
    dry_run: bool = False,
    fail_fast: bool = False,
    layout: str = "composite",
    link: bool = False,
    overwrite: bool = False,
    verify: str = "values",
    sync: bool = True,
    compression: str = "keep",
    on_event: Event = lambda _: None,
    **planning: Any,
) -> FleetReport:
    """Convert all runs below some folders, in worker processes, with a ledger.

    Args:
        roots: folders to look in, or checkpoints.
        out: the output: ``out/<run>/<step>``, and the ledger in ``out/.linen2nnx``.
        config: a ``fleet.toml``; see :func:`bridge.fleet_config.read_config`.
        plan: a stored plan, or its file, for everything; instead of ``config``.
        steps: of each run: ``latest``, ``all``, or numbers such as ``1000,2000``.
        jobs: how many worker processes.
        max_memory: bytes that they may hold together, as far as that can be told beforehand; a
            checkpoint that needs more is converted alone.
        dry_run: find, look and plan; write nothing.
        fail_fast: begin nothing new after the first failure.
        layout: see :func:`bridge.convert`.
        link: see :func:`bridge.convert`.
        overwrite: also replace outputs that are up to date, or somebody else's.
        verify: ``values``: every value of every checkpoint, and one restore by Orbax for each
            group; ``full``: Orbax restores each; ``fast`` and ``none``: see
            :func:`bridge.convert`.
        sync: see :func:`bridge.convert`.
        compression: see :func:`bridge.convert`.
        on_event: called with a JSON object when something happened.
        **planning: keywords of :func:`bridge.plan` for everything; instead of ``config``.

    Returns:
        What became of each checkpoint; failures are rows, not exceptions.

    Raises:
        FleetError: it cannot begin: outputs would collide, are somebody else's or find no room,
            ``config`` is wrong, or another batch writes there. Nothing was converted.
        WriteFailed: the ledger cannot be written.

    >>> convert_fleet("/data/runs", "/data/runs_nnx", jobs=4).counts  # doctest: +SKIP
    Counter({'done': 1988, 'failed': 12})
    """
    started = time.monotonic()
    check_level(verify)
    parse_compression(compression)
    given = [roots] if isinstance(roots, (str, os.PathLike)) else list(roots)
    places, target = [absolute(root) for root in given], absolute(out)
    chosen = _config(config, plan, planning)
    found = find_sources(places, steps)
    check_places(found.sources, places, target)
    how = How(
        target, target / FOLDER / "plans", verify, layout, link, sync, compression, jobs,
        max_memory, fail_fast, _versions(),
    )  # fmt: skip
    with ExitStack() as stack:
        ledger: Ledger | None = None
        if not dry_run:
            stack.enter_context(alone(target))
            ledger = stack.enter_context(Ledger(target))
        crew = Crew(jobs, None if dry_run else target / FOLDER)
        stack.callback(crew.close)
        stop = stack.enter_context(listening(crew.wake))
        known = ledger.rows if ledger is not None else _known(target)
        fleet = Fleet(
            places, target, chosen, how, dry_run, overwrite, on_event, crew, stop, ledger, known
        )
        report = FleetReport(target, skipped=found.skipped, dry_run=dry_run)
        try:
            report = _convert(fleet, found.sources, report)
        except KeyboardInterrupt:
            report = replace(report, interrupted=True)
    if ledger is not None and not fleet.rows:
        fleet.rows = {s.output: known[s.output] for s in found.sources if s.output in known}
    rows = [
        (ledger.rows if ledger is not None else fleet.rows).get(o, r) for o, r in fleet.rows.items()
    ]
    return replace(
        report,
        rows=tuple(rows),
        kept=fleet.kept,
        interrupted=report.interrupted or bool(stop.asked),
        seconds=time.monotonic() - started,
    )


def _config(config: Any, plan: Any, planning: Mapping[str, Any]) -> Config:
    others = [name for name, value in planning.items() if value not in (None, False)]
    if config is not None and (plan is not None or others):
        what = "plan" if plan is not None else others[0]
        raise FleetError(f"config is instead of {what}: fleet.toml says it for each group.")
    if config is not None:
        return read_config(os.fspath(config))
    if plan is not None:
        return Config(
            (Entry("the stored plan", plan=plan if isinstance(plan, Plan) else absolute(plan)),)
        )
    return Config((Entry("everything", given=dict(planning)),))


def _versions() -> str:
    return json.dumps({"python": platform.python_version(), **installed(_LIBRARIES)})


def _known(out: Path) -> Mapping[str, LedgerRow]:
    try:
        return {row.output: row for row in read_ledger(out)}
    except BridgeError:
        return {}


def _convert(fleet: Fleet, sources: Sequence[Source], report: FleetReport) -> FleetReport:
    if fleet.ledger is not None:
        clean_up(fleet)
    looked = look(fleet, sources)
    groups = []
    for group in group_all(looked, fleet.config):
        groups.append(plan_group(group))
        fleet.tell({"event": "planned", "groups": len(groups)})
    bad = tuple(one for one in looked if one.kind)
    report = replace(report, groups=tuple(groups), unopened=bad)
    idle = unused(fleet.config, looked)
    if idle:
        raise FleetError(
            "nothing that was found belongs to " + "; ".join(idle) + ". A misspelt path would "
            "leave its runs to the next entry: correct it, or take the entry out."
        )
    tasks = decide(fleet, groups, bad)
    for left in report.skipped:
        name = below_roots(left.path, fleet.roots)
        row = LedgerRow(name, in_words(left.path), name, state="skipped", error=left.reason)
        fleet.rows.setdefault(name, row)
    report = replace(report, rows=tuple(fleet.rows.values()), kept=fleet.kept)
    fleet.tell({"event": "groups", "report": report, "tasks": len(tasks), "kept": fleet.kept})
    if fleet.ledger is None:
        return report
    check_room(fleet, tasks)
    store_plans(fleet, groups)
    fleet.ledger.put(*fleet.rows.values(), *gone(fleet, sources))
    refused = any(row.state == "failed" for row in fleet.rows.values())
    if not (fleet.how.fail_fast and refused):
        fleet.stop.at_once = False
        carry_out(tasks, fleet.how, fleet.crew, fleet.ledger, fleet.stop, fleet.tell)
    return report
