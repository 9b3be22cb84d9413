"""Kills batches and their workers at random moments, and starts them again, until all is done.

    python -m tests.fleet.kills --kills 200

After each kill whatever has the name of a step must be complete, a ``CheckpointManager`` must take
the last one of these for the latest, and what was complete before must not have been touched; at
the end of each round every checkpoint is compared with its source.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import fleet_cases as cases  # noqa: E402


def children(pid):
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def complete(out):
    """Every finished step with what would change if it were made again."""
    found = {}
    for done in Path(out).glob("**/commit_success.txt"):
        step = done.parent
        if step.name.isdigit() and "orbax-checkpoint-tmp" not in str(step):
            status = (step / "_CHECKPOINT_METADATA").stat()
            found[step] = (status.st_ino, status.st_mtime_ns)
    return found


def half_written(out):
    """Steps that a ``CheckpointManager`` would see, and that are not complete."""
    return [
        path
        for path in Path(out).glob("*/*")
        if path.name.isdigit() and not (path / "commit_success.txt").is_file()
    ]


def latest(out, steps):
    """Runs for which Orbax names another latest step than the last complete one."""
    import orbax.checkpoint as ocp

    found = {}
    for done in steps:
        found[done.parent] = max(found.get(done.parent, -1), int(done.name))
    logging.getLogger("absl").setLevel(logging.ERROR)  # it says each time that it only reads
    runs = {path.parent for path in Path(out).glob("[!.]*/*") if path.is_dir()}
    options = ocp.CheckpointManagerOptions(read_only=True, create=False)
    named = {}
    for run in runs:
        with ocp.CheckpointManager(run, options=options) as manager:
            named[run] = manager.latest_step()
    return {run: step for run, step in named.items() if step != found.get(run)}


def batch(root, out, level, jobs):
    return subprocess.Popen(
        cases.command("convert", root, "--out", out, "--steps", "all", "--jobs", jobs,
                      "--verify", level, "--json", "--no-sync"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=cases.environment(),
    )  # fmt: skip


def kill_one(process, chance, rest, workers_too=0.5):
    """Kill the parent or a worker after a while; says which, or None when all was over before."""
    try:
        process.wait(rest)
    except subprocess.TimeoutExpired:
        pass
    else:
        return None
    workers = children(process.pid)
    if workers and chance.random() < workers_too:
        try:
            os.kill(chance.choice(workers), signal.SIGKILL)
        except ProcessLookupError:
            return None
        process.wait()
        return "worker"
    process.kill()
    process.wait()
    return "parent"


def work(folder, kills, *, seed=0, runs=6, steps=3, level="fast", jobs=2, said=lambda _: None):
    """Kill until there were enough kills and everything is done.

    Returns:
        How many parents and workers were killed, and how many rounds and checkpoints there were.
    """
    chance = random.Random(seed)  # noqa: S311 - chance, no secret
    root, counts = Path(folder, "runs"), Counter()
    cases.make_runs(root, runs, steps, structures=3)
    started = time.monotonic()
    assert batch(root, Path(folder, "warm"), level, jobs).wait() == 0
    whole = time.monotonic() - started
    while counts["parent"] + counts["worker"] < kills:
        counts["round"] += 1
        out = Path(folder, f"out{counts['round']}")
        before = {}
        while True:
            enough = counts["parent"] + counts["worker"] >= kills
            process = batch(root, out, level, jobs)
            killed = kill_one(process, chance, None if enough else chance.uniform(0, whole))
            counts[killed] += 1
            assert half_written(out) == [], counts
            after = complete(out)
            assert latest(out, after) == {}, counts
            again = [step for step, about in before.items() if after.get(step) != about]
            assert again == [], f"made again or lost: {again}"
            before = after
            if killed is None and process.returncode == 0:
                break
            assert killed is not None, f"exit code {process.returncode}"
        check(root, out, runs * steps)
        counts["checkpoints"] += runs * steps
        said(f"{dict(counts)}")
    return counts


def check(root, out, number):
    """Everything is converted, once, rightly, and nothing else is there."""
    assert cases.differences(root, out) == []
    assert cases.strangers(out) == []
    found = cases.rows(out)
    assert len(found) == number
    assert {row["state"] for row in found.values()} == {"done"}
    assert {row["pid"] for row in found.values()} == {None}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--level", default="fast")
    parser.add_argument("--folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        started = time.monotonic()
        counts = work(
            folder, args.kills, seed=args.seed, runs=args.runs, steps=args.steps,
            level=args.level, said=lambda text: print(text, flush=True),  # noqa: T201 - a script
        )  # fmt: skip
        told = {**{str(k): n for k, n in counts.items()}}
        told["seconds"] = round(time.monotonic() - started)
        print(json.dumps(told))  # noqa: T201 - a script


if __name__ == "__main__":
    main()
