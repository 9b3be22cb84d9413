"""The ledger of a batch: what became of each checkpoint, in one SQLite file beside the output.

Only the process that holds the lock of the output writes it; anybody may read it meanwhile. It is
written ahead of the deed (``running``, with the number of the worker) and after it, so that what a
killed process leaves behind can be told from what somebody else wrote. Times of day are for
people: nothing is decided by them, because clocks jump.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from bridge.errors import BridgeError, WriteFailed
from legacy.paths import absolute

__all__ = ["FOLDER", "STATES", "Ledger", "LedgerRow", "now", "read_ledger"]

FOLDER: Final = ".linen2nnx"
"""Our folder in an output; no step of a ``CheckpointManager`` has such a name."""

STATES: Final = ("done", "failed", "running", "pending", "skipped")

_NAME: Final = "ledger.sqlite"
_VERSION: Final = 1
_PATIENCE: Final = 30.0
_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One checkpoint of a batch.

    Attributes:
        output: its step folder, relative to the output of the batch.
        source: the old checkpoint.
        run: its run, as ``fleet.toml`` names it.
        step: its number.
        state: ``pending``, ``running``, ``done``, ``failed`` or ``skipped``.
        signature: of the structure of the source; empty when it could not be opened.
        fingerprint: of the files of the source: names, sizes, times and inodes.
        plan_digest: of the plan that was carried out.
        values_digest: of all values that were compared.
        level: how it was to be verified.
        rung: how far the verification came.
        layout: of the output.
        identity: of the files of the output.
        attempts: how often it was begun.
        pid: the worker that had it in hand, until all that it may have left is gone.
        started: time of day, for people.
        finished: the same.
        seconds: how long it took.
        nbytes: bytes of its arrays.
        disk_bytes: bytes of the source on disk.
        format: of the source, in words.
        versions: of the tools that converted it.
        error_kind: the type of the error of a failed one.
        error: the error, or why it was skipped.
        warnings: of its plan: what is to be known of the output although all of it is right.
    """

    output: str
    source: str
    run: str = ""
    step: int | None = None
    state: str = "pending"
    signature: str = ""
    fingerprint: str = ""
    plan_digest: str = ""
    values_digest: str = ""
    level: str = ""
    rung: str = ""
    layout: str = ""
    identity: str = ""
    attempts: int = 0
    pid: int | None = None
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    nbytes: int = 0
    disk_bytes: int = 0
    format: str = ""
    versions: str = ""
    error_kind: str = ""
    error: str = ""
    warnings: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: getattr(self, name) for name in _COLUMNS}


_COLUMNS: Final = tuple(f.name for f in fields(LedgerRow))
_TYPES: Final = {"step": "INTEGER", "attempts": "INTEGER", "pid": "INTEGER", "seconds": "REAL",
                 "nbytes": "INTEGER", "disk_bytes": "INTEGER"}  # fmt: skip
_TYPED: Final = ", ".join(f"{name} {_TYPES.get(name, 'TEXT')}" for name in _COLUMNS)
_CREATE: Final = f"CREATE TABLE IF NOT EXISTS checkpoints ({_TYPED}, PRIMARY KEY (output))"
_PUT: Final = (
    f"INSERT OR REPLACE INTO checkpoints ({', '.join(_COLUMNS)}) "  # noqa: S608 - our own names
    f"VALUES ({', '.join('?' * len(_COLUMNS))})"
)
_ALL: Final = f"SELECT {', '.join(_COLUMNS)} FROM checkpoints ORDER BY rowid"  # noqa: S608 - same


def now() -> str:
    """The time of day, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Ledger:
    """The writer's side of a ledger. The caller holds the lock of the output.

    Args:
        out: the output of the batch.

    Raises:
        BridgeError: the file is damaged, or of another version.
        WriteFailed: it cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / FOLDER / _NAME
        with _told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            try:
                self.rows = self._begin()
            except BaseException:
                self._db.close()
                raise

    def _begin(self) -> dict[str, LedgerRow]:
        self._db.execute("PRAGMA journal_mode=WAL")  # a kill -9 loses nothing of it
        self._db.execute("PRAGMA synchronous=NORMAL")
        _check_version(self._db, self.path)
        self._db.execute(_CREATE)
        self._db.execute(f"PRAGMA user_version={_VERSION}")
        return {row.output: row for row in _rows(self._db)}

    def put(self, *rows: LedgerRow) -> None:
        """Write rows, each in the place of the one with its output; all of them or none.

        Raises:
            WriteFailed: they cannot be written.
        """
        with _told(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    _PUT, ([getattr(row, name) for name in _COLUMNS] for row in rows)
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self.rows.update({row.output: row for row in rows})

    def close(self) -> None:
        """Put everything into the one file."""
        try:
            self._db.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error:  # somebody is reading: the next one who opens it does it
            pass
        finally:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ledger(out: str | os.PathLike[str]) -> tuple[LedgerRow, ...]:
    """What became of each checkpoint of a batch; also while it runs.

    Args:
        out: the output of the batch.

    Returns:
        A row for each checkpoint, in the order in which they were found.

    Raises:
        BridgeError: there is no ledger, or it cannot be read.

    >>> [row.error for row in read_ledger("runs_nnx") if row.state == "failed"]  # doctest: +SKIP
    ['runs/exp7/checkpoint_900: ...']
    """
    path = absolute(out) / FOLDER / _NAME
    if not path.is_file():
        raise BridgeError(
            f"{absolute(out)}: no ledger ({FOLDER}/{_NAME}). Give the folder that was --out of "
            "`linen2nnx convert`; a conversion of one run without --jobs keeps none."
        )
    with _told(path):
        db = _open_to_read(path)
        try:
            _check_version(db, path)
            return tuple(_rows(db))
        finally:
            db.close()


def _open_to_read(path: Path) -> sqlite3.Connection:
    address = path.as_uri()
    db = sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=_PATIENCE)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db.close()
        if os.access(path.parent, os.W_OK):
            raise
        # a folder in which no lock can be made: nobody can be writing there from here either
        db = sqlite3.connect(f"{address}?immutable=1", uri=True)
    return db


def _rows(db: sqlite3.Connection) -> Iterable[LedgerRow]:
    return [LedgerRow(*values) for values in db.execute(_ALL)]


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, _VERSION):
        raise BridgeError(
            f"{path} has version {version}; this release reads version {_VERSION}. Use the release "
            "that wrote it, or choose another output."
        )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise WriteFailed(
                f"{path}: the ledger cannot be written or read ({error}). What was converted is "
                "safe; make room or give access, and start the same command again."
            ) from error
        raise BridgeError(
            f"{path}: the ledger is damaged ({error}). Move it away and start the same command "
            "again: outputs say themselves what they were made from, and are taken over."
        ) from error
