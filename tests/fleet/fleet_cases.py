"""Folders of small runs, written without flax, and the program as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np

import legacy
from bridge.ledger import read_ledger

ROOT = Path(__file__).parents[2]


def array(value):
    value = np.ascontiguousarray(value)
    packed = msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
    return msgpack.ExtType(1, packed)


def tree(n, *, layers=1, width=4):
    """The tree of one checkpoint; its numbers tell checkpoints apart."""
    kernel = np.arange(width * 3, dtype=np.float32).reshape(width, 3)
    dense = {f"Dense_{i}": {"kernel": kernel + n + i, "bias": np.full(3, n, np.float32)}
             for i in range(layers)}  # fmt: skip
    return {"params": dense, "step": np.int32(n)}


def write(path, n, **shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgpack.packb(tree(n, **shape), default=array, use_bin_type=True))


def make_runs(root, runs, steps, *, structures=2, width=4):
    """``runs`` runs of ``steps`` checkpoints each, of a few structures in turn."""
    for run in range(runs):
        for step in range(1, steps + 1):
            path = Path(root, f"run{run:03d}", f"checkpoint_{step}")
            write(path, 100 * run + step, layers=1 + run % structures, width=width)


def command(*args):
    return [sys.executable, "-m", "bridge", *map(str, args)]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "JAX_PLATFORMS": "cpu", **more}


def call(*args, **options):
    """Exit code, standard output and standard error of the program."""
    env = environment(**options.pop("env", {}))
    done = subprocess.run(
        command(*args), capture_output=True, text=True, env=env, check=False, **options
    )
    return done.returncode, done.stdout, done.stderr


def rows(out):
    """The rows of the ledger, by output."""
    return {row.output: row.to_json() for row in read_ledger(out)}


def differences(root, out):
    """Every way in which the outputs are not what the sources say; empty when all is well."""
    found = []
    for run in legacy.find(root):
        for entry in run.steps:
            place = Path(out, run.path.relative_to(root), str(entry.step))
            if not place.is_dir():
                found.append(f"{place} is missing")
                continue
            old, new = legacy.open(entry.path).leaves, legacy.open(place).leaves
            for path, leaf in old.items():
                there = ("extras", *path) if path == ("step",) else ("model", *path[1:], "value")
                if there not in new or not np.array_equal(leaf.read(), new[there].read()):
                    found.append(f"{place}: {legacy.format_path(path)} differs")
    return found


def strangers(out):
    """What lies in an output and should not: temporary folders, unfinished steps."""
    found = []
    for path in Path(out).rglob("*"):
        if ".linen2nnx" in path.parts:
            continue
        if "orbax-checkpoint-tmp" in path.name or path.name.endswith(".part"):
            found.append(path)
        if path.is_dir() and path.name.isdigit() and not (path / "commit_success.txt").is_file():
            found.append(path)
    return found
