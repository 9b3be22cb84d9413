"""Runs all benchmarks and prints the table of targets and results, side by side.

    python benchmarks/run.py [--rows 1,2,7] [--scale 1.0] [--runs 5] [--folder DIR] [--markdown]

Everything at full size takes about an hour and 30 GB in ``--folder``. Other work on the machine
disturbs it; ratios suffer least.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from common import ROOT, Options, Row, add_options

MODULES = {
    "large": (1, 2, 3, 4),
    "memory": (5, 11),
    "many": (6,),
    "inspect_10k": (7,),
    "plan_scaling": (8,),
    "restore_verify": (9, 10),
    "big": (12,),
}
"""Which module measures which rows."""


def machine() -> str:
    """What this runs on, in a line."""
    model = "unknown processor"
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("flax", "jax", "orbax-checkpoint", "tensorstore")
    )
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}; {libraries}"
    )


def table(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = ["| # | work | must reach | result | |", "|---|---|---|---|---|"]
    lines += [
        f"| {r.number} | {r.work} | {r.target} | {r.result} | {'met' if r.met else '**missed**'} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--rows", help="numbers, separated by commas (default: all)")
    parser.add_argument("--markdown", action="store_true", help="only the table")
    given = parser.parse_args()
    wanted = {int(n) for n in given.rows.split(",")} if given.rows else set(range(1, 13))
    options = Options(given.scale, given.runs, given.folder)
    sys.path.insert(0, str(ROOT))
    found: list[Row] = []
    for name, numbers in MODULES.items():
        if not wanted & set(numbers):
            continue
        started = time.perf_counter()
        rows = importlib.import_module(name).rows(options)
        found += [row for row in rows if row.number in wanted]
        took = time.perf_counter() - started
        print(f"{name}: {took:.0f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        for row in rows if not given.markdown else ():
            for line in row.details:
                print(f"  {row.number}: {line}", file=sys.stderr, flush=True)
    found.sort(key=lambda row: row.number)
    print(f"{machine()}\nsizes x {options.scale:g}, medians of {options.runs} runs\n")
    print(table(found))
    return 0 if all(row.met for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
