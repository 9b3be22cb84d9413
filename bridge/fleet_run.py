"""Carries out a batch: who does what next, within which memory, and what becomes of it.

Every checkpoint of a group has the same structure, and whether plain Orbax can restore the output
is a question of structure, and of the format whose data files are taken over. So with level
``values`` the first checkpoint of each group and format is verified in full, by a worker that may
load JAX for it and is replaced afterwards; the others follow when that has succeeded, and are
compared value by value without Orbax.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from bridge.fleet_outputs import clean, taken_over
from bridge.fleet_plan import Group
from bridge.fleet_signals import Stop
from bridge.fleet_workers import Crew, Death, Worker
from bridge.ledger import Ledger, LedgerRow, now

__all__ = ["GRACE", "How", "Task", "carry_out"]

GRACE: Final = 10.0
"""Seconds that are given to what is in hand after Ctrl-C, before it is rolled back."""

_ORBAX: Final = 700 << 20
_PROOF: Final = "ProofFailed"

Event = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class How:
    """What is the same for all checkpoints of a batch.

    Attributes:
        out: the output.
        plans: the folder of stored plans.
        level: of verification.
        layout: of the outputs.
        link: hard-link data files.
        sync: force outputs to the disk.
        compression: of arrays that are written anew.
        jobs: how many workers.
        max_memory: bytes that they may hold together; None for no limit.
        fail_fast: begin nothing new after the first failure.
        versions: of the tools, for the ledger.
    """

    out: Path
    plans: Path
    level: str
    layout: str
    link: bool
    sync: bool
    compression: str
    jobs: int
    max_memory: int | None
    fail_fast: bool
    versions: str


@dataclass(frozen=True, slots=True)
class Task:
    """One checkpoint that is to be converted."""

    row: LedgerRow
    group: Group
    replaces: bool = False


@dataclass
class _Batch:
    """What waits, by group, and how far each group is proven."""

    how: How
    waiting: dict[str, deque[Task]]
    proof: dict[str, Literal["needed", "running", "done"]] = field(default_factory=dict)

    def next(self, used: int, *, busy: bool) -> tuple[Task, bool] | None:
        """The next checkpoint that fits into memory, and whether it proves its group."""
        for key, tasks in self.waiting.items():
            proof = self.proof.get(key, "done")
            if not tasks or proof == "running":
                continue
            need = tasks[0].group.memory + (_ORBAX if proof == "needed" else 0)
            limit = self.how.max_memory
            if limit is not None and used + need > limit and busy:
                continue
            if proof == "needed":
                self.proof[key] = "running"
            return tasks.popleft(), proof == "needed"
        return None

    @property
    def left(self) -> int:
        return sum(len(tasks) for tasks in self.waiting.values())


def carry_out(
    tasks: list[Task], how: How, crew: Crew, ledger: Ledger, stop: Stop, tell: Event
) -> None:
    """Convert everything, and keep the ledger.

    Args:
        tasks: what is to be converted.
        how: see :class:`How`.
        crew: the workers; they are started as they are needed.
        ledger: has a row for each task.
        stop: asks for the end.
        tell: called with a JSON object for each checkpoint.
    """
    batch = _Batch(how, {})
    for task in tasks:
        batch.waiting.setdefault(_key(task), deque()).append(task)
    if how.level == "values":
        proven = {
            (r.plan_digest, r.format)
            for r in ledger.rows.values()
            if r.state == "done" and r.rung == "d"
        }
        batch.proof = {
            key: "done" if (waiting[0].group.digest, waiting[0].row.format) in proven else "needed"
            for key, waiting in batch.waiting.items()
        }
    _Loop(batch, how, crew, ledger, stop, tell).run()


def _key(task: Task) -> str:
    return f"{task.group.digest} {task.row.format}"  # data files of some formats are taken over


class _Loop:
    """The parent's side of the work."""

    def __init__(
        self, batch: _Batch, how: How, crew: Crew, ledger: Ledger, stop: Stop, tell: Event
    ) -> None:
        self.batch, self.how, self.crew = batch, how, crew
        self.ledger, self.stop, self.tell = ledger, stop, tell
        self.enough = False
        self.hands: dict[Worker, tuple[Task, bool, int]] = {}

    def run(self) -> None:
        """Until nothing is left, or nothing more is wanted."""
        deadline: float | None = None
        while True:
            if self.stop.asked and deadline is None:
                deadline = time.monotonic() + GRACE
                self.tell({"event": "stopping", "in_hand": len(self.hands), "seconds": GRACE})
            if deadline is None and not self.enough:
                self._hand_out()
            if not self.hands and (deadline is not None or self.enough or not self.batch.left):
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                for worker in list(self.hands):
                    self._roll_back(worker)
                return
            for worker, said in self.crew.wait(left):
                self._hear(worker, said)

    def _hand_out(self) -> None:
        wanted = min(self.how.jobs, len(self.hands) + self.batch.left)
        while len(self.crew.workers) < wanted:
            self.crew.hire()
        for worker in self.crew.workers:
            if worker.ready and worker.job is None:
                used = sum(memory for _, _, memory in self.hands.values())
                chosen = self.batch.next(used, busy=bool(self.hands))
                if chosen is None:
                    return
                self._begin(worker, *chosen)

    def _begin(self, worker: Worker, task: Task, proves: bool) -> None:
        level = "full" if proves else self.how.level
        row = replace(
            task.row,
            state="running",
            attempts=task.row.attempts + 1,
            pid=worker.pid,
            started=now(),
            finished="",
            level=level,
            versions=self.how.versions,
            error_kind="",
            error="",
        )
        self.ledger.put(row)
        loads = level == "full"
        worker.loaded |= loads
        self.hands[worker] = (replace(task, row=row), proves, task.group.memory + loads * _ORBAX)
        worker.send(
            {
                "id": row.output,
                "task": "convert",
                "source": row.source,
                "step": row.step,
                "place": str(self.how.out / row.output),
                "plan": str(self.how.plans / f"{task.group.digest}.json"),
                "fingerprint": row.fingerprint,
                "level": level,
                "layout": self.how.layout,
                "link": self.how.link,
                "overwrite": task.replaces,
                "sync": self.how.sync,
                "compression": self.how.compression,
            }
        )

    def _hear(self, worker: Worker, said: Mapping[str, Any] | Death) -> None:
        worker.job = None
        if worker not in self.hands:
            return  # it died while it waited, and is replaced when there is work
        task, proves, _ = self.hands.pop(worker)
        if isinstance(said, Death):
            row = self._after_death(task.row, worker.pid, said.reason)
            rungs: list[str] = []
        elif said["ok"]:
            row = replace(
                task.row,
                state="done",
                pid=None,
                seconds=said["seconds"],
                nbytes=said["nbytes"],
                rung=said["rung"],
                values_digest=said["values_digest"],
                identity=said["identity"],
            )
            rungs = []
        else:
            row = replace(
                task.row, state="failed", pid=None, error_kind=said["kind"], error=said["error"]
            )
            rungs = said["rungs"]
        if worker.loaded and self.how.level != "full" and not isinstance(said, Death):
            self.crew.dismiss(worker)
        self._end(row)
        if proves:
            self._proven(task, row, broken="d" in rungs)

    def _after_death(self, row: LedgerRow, pid: int, reason: str) -> LedgerRow:
        place = self.how.out / row.output
        clean(place, pid, self.how.out)
        done = taken_over(row, place)  # it may have been killed after the output got its name
        said = f"{row.source}: the worker that converted it {reason}. Nothing was left behind."
        return done or replace(row, state="failed", pid=None, error_kind="WorkerDied", error=said)

    def _roll_back(self, worker: Worker) -> None:
        task, _, _ = self.hands.pop(worker)
        self.crew.dismiss(worker, at_once=True)
        place = self.how.out / task.row.output
        clean(place, worker.pid, self.how.out)
        back = replace(task.row, state="pending", pid=None)
        self._end(taken_over(task.row, place) or back)

    def _end(self, row: LedgerRow) -> None:
        if row.state != "pending":
            row = replace(row, finished=now())
        self.ledger.put(row)
        self.tell({"event": "checkpoint", **row.to_json()})
        if row.state == "failed" and self.how.fail_fast:
            self.enough = True

    def _proven(self, task: Task, row: LedgerRow, *, broken: bool) -> None:
        key = _key(task)
        if row.state == "done":
            self.batch.proof[key] = "done"
        elif not broken:
            self.batch.proof[key] = "needed"  # this one was damaged: the next one is tried
        else:
            self.batch.proof[key] = "done"
            said = (
                f"Orbax does not restore what came of {row.source}, which has the same structure: "
                f"{row.error}"
            )
            while self.batch.waiting[key]:
                other = self.batch.waiting[key].popleft().row
                self._end(replace(other, state="failed", error_kind=_PROOF, error=said))
