"""Times `inspect` and `diff` over checkpoints of more and more leaves.

Makes its own inputs once: an Adam TrainState of repeated blocks with 1,000, 10,000 and 100,000
leaves, as a flax msgpack file and as an Orbax OCDBT folder, each twice, the second with other
values. Then it times whole commands (a process each, interpreter start and imports included) and
says where the time of `inspect` goes.

    python benchmarks/inspect_scaling.py [--runs 3] [--most 100000] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAVES = (1_000, 10_000, 100_000)
FORMATS = ("msgpack", "ocdbt")
PER_BLOCK = 6
COMMANDS = {
    "--help": ("--help",),
    "inspect": ("inspect", "{a}"),
    "inspect --json": ("inspect", "{a}", "--json"),
    "diff --no-values": ("diff", "{a}", "{b}", "--no-values"),
    "diff": ("diff", "{a}", "{b}"),
}
STAGES = """
import sys, time
marks = [time.perf_counter()]
import legacy
from bridge import report_inspect as report
from bridge.roles import find_roles
marks.append(time.perf_counter())
opened = legacy.open(sys.argv[1])
marks.append(time.perf_counter())
roles = find_roles(opened.leaves)
marks.append(time.perf_counter())
text = report.checkpoint_text(opened, roles)
marks.append(time.perf_counter())
data = report.checkpoint_json(opened, roles)
marks.append(time.perf_counter())
print(*(round(b - a, 3) for a, b in zip(marks, marks[1:])), len(text.splitlines()))
"""


def tree(leaves: int, shift: float) -> dict:
    """Params in blocks of six arrays, with two moments of the same shape, and a step."""
    import numpy as np

    blocks = max(1, leaves // (3 * PER_BLOCK))
    shapes = {
        "attention": {"query": (4, 4), "key": (4, 4), "value": (4, 4)},
        "mlp": {"kernel": (4, 8), "bias": (8,)},
        "norm": {"scale": (4,)},
    }

    def params(value: float) -> dict:
        return {
            f"block_{n}": {
                module: {name: np.full(shape, value, np.float32) for name, shape in inside.items()}
                for module, inside in shapes.items()
            }
            for n in range(blocks)
        }

    moments = {"count": np.int32(3), "mu": params(0.0), "nu": params(shift)}
    return {"params": params(1 + shift), "opt_state": {"0": moments}, "step": np.int32(3)}


def write(folder: Path, kind: str, leaves: int, name: str, shift: float) -> Path:
    """One checkpoint, unless it is there."""
    path = folder / f"{kind}-{leaves}-{name}"
    if path.exists():
        return path
    state = tree(leaves, shift)
    if kind == "msgpack":
        from flax import serialization

        path.write_bytes(serialization.to_bytes(state))
        return path
    import logging

    import orbax.checkpoint as ocp

    logging.disable(logging.WARNING)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, state)
    return path


def seconds(*args: str) -> float:
    """Wall-clock seconds of one command."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "bridge", *args], cwd=ROOT, capture_output=True, check=False
    )
    took = time.perf_counter() - started
    assert done.returncode in {0, 1}, done.stderr.decode()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--most", type=int, default=LEAVES[-1])
    parser.add_argument("--keep", type=Path, help="where inputs are made and kept")
    parser.add_argument("--make-only", action="store_true", help="make the inputs, time nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        cases = []
        for leaves in (n for n in LEAVES if n <= given.most):
            for kind in FORMATS:
                a = write(folder, kind, leaves, "a", 0.0)
                cases.append((kind, leaves, a, write(folder, kind, leaves, "b", 0.5)))
        if given.make_only:
            return
        print(f"{'format':9}{'leaves':>9}" + "".join(f"{name:>18}" for name in COMMANDS))
        for kind, leaves, a, b in cases:
            row = [
                statistics.median(
                    seconds(*(word.format(a=a, b=b) for word in words)) for _ in range(given.runs)
                )
                for words in COMMANDS.values()
            ]
            print(f"{kind:9}{leaves:9,}" + "".join(f"{took:18.2f}" for took in row), flush=True)
        print("\nwhere the seconds of inspect go")
        print(f"{'format':9}{'leaves':>9}{'import':>9}{'open':>9}{'roles':>9}{'text':>9}{'json':>9}"
              f"{'lines':>9}")  # fmt: skip
        for kind, leaves, a, _ in cases:
            said = subprocess.run(
                [sys.executable, "-c", STAGES, str(a)],
                cwd=ROOT, capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            print(f"{kind:9}{leaves:9,}" + "".join(f"{n:>9}" for n in said.split()), flush=True)


if __name__ == "__main__":
    main()
