"""``python -m tests.pairs [name ...]``: how every pair is planned today, as a table.

``--truth`` first proves the truth of each pair; ``-v`` prints what is wrong and each problem.
"""

# ruff: noqa: T201 - a table for people
from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from . import harness
from .all_pairs import PAIRS
from .scoring import score


def main(arguments):
    """Print the table."""
    names = [a for a in arguments if not a.startswith("-")]
    chosen = [p for n, p in PAIRS.items() if not names or any(m in n for m in names)]
    row = "{:24} {:>6} | {:>6} {:>6} {:>7} {:>5} | {:>6} {:>6} {:>7} {:>5} {}"
    print(row.format("pair", "leaves", *("right", "wrong", "refused", "slots") * 2, ""))
    for pair in chosen:
        if "--truth" in arguments:
            prove(pair)
        with tempfile.TemporaryDirectory() as folder:
            made = harness.make(pair)
            path = harness.write(made, Path(folder))
            cells, notes, leaves = [], [], 0
            for linen in (False, True):
                start = time.perf_counter()
                try:
                    plan = harness.planned(made, path, linen=linen)
                    found = score(plan, made, path)
                except Exception as error:  # noqa: BLE001 - the table shows it
                    cells += ["error", "", "", ""]
                    notes.append(f"  {type(error).__name__}: {error}")
                    continue
                cells += [found.right, len(found.wrong), found.refused, found.open_slots]
                seconds = time.perf_counter() - start
                leaves = found.leaves
                side = "with Linen" if linen else "without"
                notes += [f"  WRONG {side}: {w}" for w in found.wrong]
                notes += [f"  MISSING {side}: {w}" for w in found.missing]
                if "-v" in arguments:
                    notes += [f"  {side}: {n}" for n in found.notes]
                    notes.append(f"  {side}: {dict(found.why)}, {seconds:.1f} s")
            print(row.format(pair.name, leaves, *cells, pair.needs), flush=True)
            for note in notes:
                print(note, flush=True)


def prove(pair):
    """Run both models and say how far they are apart."""
    start = time.perf_counter()
    old, new = harness.outputs(pair)
    far = max(float(abs(a - b).max()) for a, b in zip(old, new, strict=True))
    big = max(float(abs(a).max()) for a in old)
    verdict = "ok" if far <= pair.tolerance else "TOO FAR"
    seconds = time.perf_counter() - start
    print(f"{pair.name}: outputs differ by {far:.2g} of {big:.2g}, {verdict}; {seconds:.1f} s")
    assert harness.unused_leaves(pair) == list(pair.unused), harness.unused_leaves(pair)


if __name__ == "__main__":
    main(sys.argv[1:])
