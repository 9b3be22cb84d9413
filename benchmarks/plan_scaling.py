"""Measures how the time to plan grows with the number of leaves; it should grow with them.

Three kinds of plans over repeated blocks with an Adam state: without a model, with a model of the
same paths, and with a model under other names, where every block is refused with a suggestion.
Reports CPU seconds (medians) and the ratio to the row before, imports excluded.

    python benchmarks/plan_scaling.py [--runs 3] [--most 40000]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "bridge"))

from test_planning_properties import big

import bridge

KINDS = {
    "structural": (lambda i: f"Block/{i}", False),
    "path": (lambda i: f"Block/{i}", True),
    "refused": (lambda i: f"xs/{i}", True),
}


def seconds(leaves: int, kind: str) -> float:
    rename, with_model = KINDS[kind]
    source, model = big(leaves, rename)
    start = time.process_time()
    bridge.plan(source, model=model if with_model else None)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--most", type=int, default=40_000)
    given = parser.parse_args()
    print(f"{'kind':12}{'leaves':>8}{'seconds':>9}{'ratio':>7}")
    for kind in KINDS:
        before, leaves = None, 2_500
        while leaves <= given.most:
            took = statistics.median(seconds(leaves, kind) for _ in range(given.runs))
            ratio = "" if before is None else f"{took / before:.1f}"
            print(f"{kind:12}{leaves:8}{took:9.2f}{ratio:>7}", flush=True)
            before, leaves = took, leaves * 4


if __name__ == "__main__":
    main()
