"""What all benchmarks share: interleaved runs, medians, anonymous memory, and the rows they print.

Machines are noisy, so nothing here is an absolute promise: ways are measured in turns in one run,
medians are compared, and a result is a ratio wherever the target is one. Memory is ``RssAnon``
(``/proc/<pid>/status``): pages of mapped files belong to the page cache and can be dropped at any
time. A way that is measured "inside the process" runs in a fresh process of its own, and its clock
starts after the imports and ends with the last byte; a "whole command" is timed from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        number: of the row.
        work: what was done.
        target: what must be reached, as text.
        result: what was seen, as text.
        met: whether it was reached.
        details: medians and spreads, as text.
    """

    number: int
    work: str
    target: str
    result: str
    met: bool
    details: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        scale: 1.0 for the sizes of the table; less for a quick look.
        runs: of each way; the median counts.
        folder: where inputs and outputs are made.
    """

    scale: float = 1.0
    runs: int = 5
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))


@dataclass(frozen=True)
class Run:
    """One run of one way: seconds, and the peak of anonymous memory in bytes."""

    seconds: float
    peak: int
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """All runs of one way."""

    runs: tuple[Run, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(r.seconds for r in self.runs)

    @property
    def peak(self) -> int:
        """The largest."""
        return max(r.peak for r in self.runs)

    def text(self) -> str:
        """Median, spread and memory."""
        low, high = min(r.seconds for r in self.runs), max(r.seconds for r in self.runs)
        return f"{self.seconds:.3f} s ({low:.3f}-{high:.3f}), peak {self.peak / 1e6:.0f} MB"


def interleaved(ways: Mapping[str, Callable[[], Run]], runs: int) -> dict[str, Measured]:
    """Run all ways in turns, so that a slow minute hits all of them."""
    found: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            found[name].append(way())
    return {name: Measured(tuple(r)) for name, r in found.items()}


def ratio(a: Measured, b: Measured) -> float:
    """The median of the ratios run by run: neighbours in time share their noise."""
    return statistics.median(x.seconds / y.seconds for x, y in zip(a.runs, b.runs, strict=True))


def command(*words: Any, env: Mapping[str, str] | None = None) -> Run:
    """Time a whole command, and sample the anonymous memory of it and its children."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(w) for w in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**_usual(), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **(env or {})},
    )
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.003):
            peak[0] = max(peak[0], rss_anon(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    out, err = process.communicate()
    seconds = time.perf_counter() - started
    done.set()
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"{words}: exit code {process.returncode}\n{err.decode()[-2000:]}")
    return Run(seconds, peak[0], {"stdout": out.decode()})


def _usual() -> dict[str, str]:
    """The environment, but without what keeps Python from storing compiled modules."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def rss_anon(pid: int | str = "self") -> int:
    """Anonymous memory of a process and its children, in bytes; 0 when it is gone."""
    total = 0
    for one in (pid, *_children(pid)):
        try:
            text = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        lines = (line for line in text.splitlines() if line.startswith("RssAnon"))
        total += sum(int(line.split()[1]) * 1024 for line in lines)
    return total


def _children(pid: int | str) -> Iterator[str]:
    try:
        found = Path(f"/proc/{pid}/task/{os.getpid() if pid == 'self' else pid}/children")
        yield from found.read_text().split()
    except OSError:
        return


def inside(script: str | Path, *words: Any) -> Run:
    """Run a script that measures a piece of its own with :func:`clocked`, and read what it says."""
    told = json.loads(command(sys.executable, script, *words).told["stdout"].splitlines()[-1])
    return Run(told.pop("seconds"), told.pop("peak"), told)


def clocked(work: Callable[[], Any]) -> None:
    """Measure ``work`` in this process, print seconds, peak and what it returns, and end.

    The peak is what is above the memory that was held before (imports).
    """
    before, peak, done = rss_anon(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.003):
            peak[0] = max(peak[0], rss_anon())

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    told = work()
    seconds = time.perf_counter() - started
    done.set()
    sampler.join()
    more = told if isinstance(told, dict) else {}
    found = {"seconds": seconds, "peak": max(peak[0], rss_anon()), "before": before, **more}
    print(json.dumps(found), flush=True)
    os._exit(0)  # what a library does at the end is not measured


@contextmanager
def workspace(options: Options, name: str) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=options.folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fresh(*paths: Path) -> None:
    """Remove outputs of an earlier run, and let the disk finish: no run pays for another."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    os.sync()


def nbytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def options_of(argv: Sequence[str] | None, doc: str) -> Options:
    """The options of a benchmark that is run alone."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add_options(parser)
    given = parser.parse_args(argv)
    return Options(given.scale, given.runs, given.folder)


def add_options(parser: argparse.ArgumentParser) -> None:
    default = Options()
    parser.add_argument("--scale", type=float, default=default.scale, help="of the sizes")
    parser.add_argument("--runs", type=int, default=default.runs, help="of each way")
    parser.add_argument("--folder", type=Path, default=default.folder, help="for all files")


def show(rows: Sequence[Row]) -> None:
    """Print rows for people."""
    for row in rows:
        mark = "met" if row.met else "MISSED"
        print(f"{row.number:>3} {row.work}\n    target {row.target}; result {row.result}: {mark}")
        for line in row.details:
            print(f"      {line}")
