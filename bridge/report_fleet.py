"""What a batch says: its groups before it starts, a line for each checkpoint, where it stands."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bridge._text import WIDTH, count, grid, printable, size, wrap
from bridge.fleet import FleetReport
from bridge.fleet_plan import Group, Looked
from bridge.ledger import STATES, LedgerRow
from bridge.report_problems import problem_lines
from legacy.leaves import natural_key

__all__ = [
    "checkpoint_line",
    "groups_json",
    "groups_text",
    "status_json",
    "status_text",
    "summary_json",
    "summary_text",
]

_SHOWN = 5
_LINES = 12
_RUNS = 40
_WARNINGS = 10


def groups_text(report: FleetReport, tasks: int, width: int = WIDTH) -> str:
    """What was found and what is going to be done with it.

    Args:
        report: with groups and rows.
        tasks: how many checkpoints are to be converted.
        width: of the terminal.
    """
    total = sum(len(g.members) for g in report.groups) + len(report.unopened)
    runs = len({m.source.run for g in report.groups for m in g.members})
    kinds = count(len(report.groups), "group")
    lines = [f"{count(total, 'checkpoint')} of {count(runs, 'run')}, {kinds} of one structure each"]
    for number, group in enumerate(report.groups, 1):
        lines += _group_lines(number, group, width)
    if report.unopened:
        lines += ["", f"cannot be opened: {count(len(report.unopened), 'checkpoint')}"]
        lines += _unopened_lines(report.unopened, width)
    if report.skipped:
        lines += ["", f"left out: {len(report.skipped):,}"]
        by_reason = Counter(s.reason for s in report.skipped)
        said = [
            f"{n} × {reason}" if n > 1 else reason for reason, n in by_reason.most_common(_SHOWN)
        ]
        lines += [line for text in said for line in wrap(printable(text), width, "  ", "    ")]
    done = f"; {report.kept:,} done already" if report.kept else ""
    verb = "would be converted" if report.dry_run else "to convert"
    return "\n".join([*lines, "", f"{count(tasks, 'checkpoint')} {verb}{done}"])


def _group_lines(number: int, group: Group, width: int) -> Iterator[str]:
    held = f"{count(group.runs, 'run')}, {count(len(group.members), 'checkpoint')}"
    yield ""
    head = f"{number}. {group.entry.name}, structure {group.signature[:12]}"
    yield from wrap(printable(head), width, "", "   ")
    formats = Counter(m.format for m in group.members)
    yield f"   {held}, {size(group.nbytes)}"
    for name, n in formats.most_common(_SHOWN):
        yield from wrap(f"{n} × {name}", width, "   ", "     ")
    if group.plan is not None:
        plan = group.plan
        mapped = sum(len(step.sources) for step in plan.steps)
        said = (
            f"plan {group.digest[:12]}: {mapped} mapped, {len(plan.ignored)} ignored, "
            f"{len(plan.initialised)} initialised"
        )
        yield from wrap(said, width, "   ", "     ")
        for warning in plan.warnings[:_SHOWN]:
            yield from wrap(f"warning: {printable(warning)}", width, "   ", "     ")
    elif group.skipped:
        yield from wrap(f"left: {printable(group.problem)}", width, "   ", "     ")
    else:
        yield from _refusal_lines(group, width)


def _refusal_lines(group: Group, width: int) -> Iterator[str]:
    yield f"   REFUSED: {group.kind}"
    if group.problems:
        lines = list(problem_lines(group.problems, width - 3))
    else:
        lines = [x for line in group.problem.splitlines() for x in wrap(printable(line), width - 5)]
    yield from (f"   {line}" for line in lines[:_LINES])
    if len(lines) > _LINES:
        example = printable(str(group.members[0].source.path))
        yield from wrap(f"… all of it: linen2nnx plan {example}", width, "   ", "     ")


def _unopened_lines(unopened: Sequence[Looked], width: int) -> Iterator[str]:
    by_kind: dict[str, list[Looked]] = defaultdict(list)
    for one in unopened:
        by_kind[one.kind].append(one)
    for kind, group in by_kind.items():
        yield f"  {kind} × {len(group)}"
        for one in group[:_SHOWN]:
            yield from wrap(printable(one.error), width, "    ", "      ")
        if len(group) > _SHOWN:
            yield f"    and {len(group) - _SHOWN} more (--json has all of them)"


def checkpoint_line(row: Mapping[str, Any]) -> str:
    """One checkpoint in one line (an error is cut to its first line).

    >>> checkpoint_line({"state": "done", "output": "a/3", "nbytes": 2048, "seconds": 0.25,
    ...                  "rung": "c"})
    'done    a/3  2.0 KiB, 0.25 s, verified to rung c'
    """
    said = printable(f"{row['state']:<7} {row['output']}").replace("\n", "\\n")
    if row["state"] == "done":
        rung = f", verified to rung {row['rung']}" if row["rung"] else ", not verified"
        return f"{said}  {size(row['nbytes'])}, {row['seconds']:.2f} s{rung}"
    if row["state"] == "pending":
        return f"{said}  rolled back"
    first = printable(str(row["error"])).partition("\n")[0]
    return f"{said}  {row['error_kind']}: {first}" if row["error_kind"] else f"{said}  {first}"


def summary_text(report: FleetReport, again: str, width: int = WIDTH) -> str:
    """Where a batch stands at its end, and how to go on.

    Args:
        report: of the batch.
        again: the command that goes on with it.
        width: of the terminal.
    """
    done, counts = _done(report), report.counts
    if report.dry_run:
        return f"nothing was written; {counts.get('failed', 0):,} would fail"
    parts = [f"{count(done, 'checkpoint')} converted, {counts.get('failed', 0):,} failed"]
    parts += [f"{report.kept:,} done before"] if report.kept else []
    parts += [f"{counts['skipped']:,} left"] if counts.get("skipped") else []
    waiting = counts.get("pending", 0) + counts.get("running", 0)
    parts += [f"{waiting:,} to do"] if waiting else []
    head = "interrupted: " if report.interrupted else ""
    lines = wrap(f"{head}{', '.join(parts)}; {report.seconds:.1f} s", width)
    if counts.get("failed"):
        lines += ["why: " + f"linen2nnx status {report.out} --failed"]
    if waiting:
        lines += [f"to go on: {again}"]
    return "\n".join(lines)


def _done(report: FleetReport) -> int:
    return report.counts.get("done", 0) - report.kept


def groups_json(report: FleetReport, tasks: int) -> dict[str, Any]:
    """The groups as plain JSON values."""
    return {
        "event": "groups",
        "tasks": tasks,
        "kept": report.kept,
        "groups": [
            {
                "entry": g.entry.name,
                "signature": g.signature,
                "runs": g.runs,
                "checkpoints": len(g.members),
                "nbytes": g.nbytes,
                "plan_digest": g.digest,
                "memory": g.memory,
                "refused": g.kind,
                "problem": g.problem,
                "first": str(g.members[0].source.path),
            }
            for g in report.groups
        ],
        "unopened": [
            {"source": str(o.source.path), "kind": o.kind, "error": o.error}
            for o in report.unopened
        ],
        "skipped": [{"path": str(s.path), "reason": s.reason} for s in report.skipped],
    }


def summary_json(report: FleetReport) -> dict[str, Any]:
    """The end of a batch as plain JSON values."""
    return {
        "event": "summary",
        "ok": report.ok,
        "out": str(report.out),
        "counts": dict(report.counts),
        "kept": report.kept,
        "interrupted": report.interrupted,
        "dry_run": report.dry_run,
        "seconds": round(report.seconds, 3),
    }


def status_text(rows: Sequence[LedgerRow], *, failed: bool = False, width: int = WIDTH) -> str:
    """The ledger for people.

    Args:
        rows: of the ledger.
        failed: show the failed ones only, each with its whole error.
        width: of the terminal.
    """
    if failed:
        return _failed_text([r for r in rows if r.state == "failed"], width)
    counts = Counter(row.state for row in rows)
    lines = [
        ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state]) or "empty"
    ]
    done = [row for row in rows if row.state == "done"]
    if done:
        seconds = sum(r.seconds for r in done)
        arrays = size(sum(r.nbytes for r in done))
        rungs = Counter(r.rung or "-" for r in done)
        told = ", ".join(f"{n:,} to rung {rung}" for rung, n in sorted(rungs.items()))
        lines += wrap(f"done: {arrays} of arrays, {seconds:.1f} s of work; verified {told}", width)
    lines += ["", *_run_lines(rows, width)]
    kinds = Counter(row.error_kind for row in rows if row.state == "failed")
    if kinds:
        lines += ["", "failed: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())]
    warned = Counter(text for row in done for text in row.warnings.splitlines())
    if warned:
        lines += ["", "done, with warnings:"]
        for text, n in warned.most_common(_WARNINGS):
            lines += wrap(f"{count(n, 'checkpoint')}: {printable(text)}", width, "  ", "      ")
    return "\n".join(lines)


def _run_lines(rows: Iterable[LedgerRow], width: int) -> list[str]:
    by_run: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        by_run[row.run].append(row)
    whole = {run for run, group in by_run.items() if all(r.state == "done" for r in group)}
    shown = sorted(by_run, key=lambda run: natural_key(tuple(run.split("/"))))
    if len(shown) > _RUNS:  # those with something to look at
        shown = [run for run in shown if run not in whole]
    left = len(by_run) - len(shown[:_RUNS])
    heads = ("", *STATES)
    table: list[Sequence[str]] = [heads]
    for run in shown[:_RUNS]:
        counts = Counter(row.state for row in by_run[run])
        name = printable(run).replace("\n", "\\n")
        table.append((_cut(name, width), *(f"{counts[s]:,}" if counts[s] else "" for s in STATES)))
    more = [f"and {count(left, 'more run')}, {len(whole):,} of all runs are done"] if left else []
    return [*(grid(table, right=range(1, len(heads))) if shown else []), *more]


def _cut(name: str, width: int) -> str:
    """The end of a long name, which tells more than its beginning."""
    room = max(20, width - sum(len(s) + 2 for s in STATES))
    return name if len(name) <= room else "…" + name[1 - room :]


def _failed_text(rows: Sequence[LedgerRow], width: int) -> str:
    if not rows:
        return "nothing failed"
    lines = []
    for row in rows:
        name = printable(row.output).replace("\n", "\\n")
        tried = (
            f"tried {count(row.attempts, 'time')}" if row.attempts else "refused before the work"
        )
        lines += [f"{name}  {row.error_kind}, {tried}"]
        for line in row.error.splitlines():
            lines += wrap(printable(line), width, "  ", "    ")
    return "\n".join(lines)


def status_json(rows: Sequence[LedgerRow], *, failed: bool = False) -> dict[str, Any]:
    """The ledger as plain JSON values."""
    chosen = [row for row in rows if row.state == "failed" or not failed]
    return {
        "counts": dict(Counter(row.state for row in rows)),
        "checkpoints": [
            {**row.to_json(), "versions": json.loads(row.versions or "{}")} for row in chosen
        ],
    }
