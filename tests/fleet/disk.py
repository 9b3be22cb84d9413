"""A synthetic disk of mixed runs, some of them damaged, converted with kills in between.

    python -m tests.fleet.disk --checkpoints 2000 --damaged 40 --kills 5
    python -m tests.fleet.disk --tiny 10000

The runs are copies of our goldens, of every format that they have. At the end the ledger must say
of each whole checkpoint that it is done, with the same values as all other copies of its golden,
and of each damaged one that it failed, and why.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import fleet_cases as cases  # noqa: E402
import kills  # noqa: E402

GOLDENS = HERE.parent / "goldens"
STEPS = 20
INDICES = {
    "checkpoint",
    "_METADATA",
    "_sharding",
    "_strings.json",
    "_CHECKPOINT_METADATA",
    "array_metadatas",
}


def goldens():
    """The checkpoints of the goldens that lie here unpacked, by era and name."""
    found = {}
    for folder in sorted(GOLDENS.glob("*/*-*")):
        if not (folder / "truth.json").is_file():
            continue
        for name in ("checkpoint_3", "ckpt", "mgr"):
            if (folder / name).exists():
                found[f"{folder.parent.name}.{folder.name}"] = folder / name
    return found


def make_disk(root, number):
    """Copies of the goldens in turn; gives the golden of each checkpoint."""
    made = {}
    sources = goldens()
    run = 0
    while len(made) < number:
        for name, source in sources.items():
            folder = root / f"user{run % 7}" / f"{name} {run:04d}"
            run += 1
            if source.name == "mgr":
                shutil.copytree(source, folder)
                steps = [path for path in folder.iterdir() if path.name.isdigit()]
                made |= {path: f"{name}/{path.name}" for path in steps}
            else:
                for step in range(1, min(STEPS, number - len(made)) + 1):
                    path = folder / f"checkpoint_{step}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    copy = shutil.copytree if source.is_dir() else shutil.copy
                    copy(source, path)
                    made[path] = name
            if len(made) >= number:
                break
    return made


def cut(path):
    """Cut the largest file in half."""
    file = path if path.is_file() else max(files(path), key=lambda p: p.stat().st_size)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def empty(path):
    """Empty the largest file."""
    file = path if path.is_file() else max(files(path), key=lambda p: p.stat().st_size)
    file.write_bytes(b"")


def pointer(path):
    """A Git LFS pointer in the place of the largest file."""
    file = path if path.is_file() else max(files(path), key=lambda p: p.stat().st_size)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def lost(path):
    """Take a file of arrays away (of a single file, all but its first bytes).

    A lost index is another matter: the reader finds the arrays without it, and says so.
    """
    data = [p for p in files(path) if not INDICES.intersection(p.parts)]
    if path.is_file():
        path.write_bytes(path.read_bytes()[:7])
    elif data:
        max(data, key=lambda p: p.stat().st_size).unlink()
    else:
        shutil.rmtree(path)
        path.mkdir()


def files(path):
    return [p for p in sorted(path.rglob("*")) if p.is_file()]


DAMAGES = (cut, empty, pointer, lost)


def run_disk(folder, number, damaged, times, *, seed=0, jobs=2, said=print):
    """Make the disk, convert it with kills in between, and look at the ledger."""
    chance = random.Random(seed)  # noqa: S311 - chance, no secret
    root, out = Path(folder, "disk"), Path(folder, "out")
    made = make_disk(root, number)
    bad = {}
    for n, path in enumerate(chance.sample(sorted(made), damaged)):
        DAMAGES[n % len(DAMAGES)](path)
        bad[path] = DAMAGES[n % len(DAMAGES)].__name__
    said(f"{len(made)} checkpoints of {len(set(made.values()))} goldens, {len(bad)} damaged")
    counts, seconds = Counter(), 0.0
    while True:
        started = time.monotonic()
        process = kills.batch(root, out, "values", jobs)
        enough = counts["parent"] + counts["worker"] >= times
        killed = kills.kill_one(process, chance, None if enough else chance.uniform(5, 60), 0.2)
        seconds += time.monotonic() - started
        counts[killed] += 1
        assert kills.half_written(out) == []
        said(f"{killed or 'finished'} after {time.monotonic() - started:.0f} s: {states(out)}")
        if killed is None:
            break
    # what failed because its worker was killed is tried again
    process = kills.batch(root, out, "values", jobs)
    process.wait()
    account(made, bad, out, said)
    started = time.monotonic()
    kills.batch(root, out, "values", jobs).wait()
    again = time.monotonic() - started
    said(f"kills {dict(counts)}; {seconds:.0f} s in all; once more, with nothing to do but the "
         f"damaged ones: {again:.1f} s")  # fmt: skip


def states(out):
    return dict(Counter(row["state"] for row in cases.rows(out).values()))


def account(made, bad, out, said):
    """Hold the ledger against what was made."""
    by_source = {row["source"]: row for row in cases.rows(out).values()}
    assert by_source.keys() == {str(path) for path in made}
    values = defaultdict(set)
    for path, golden in made.items():
        row = by_source[str(path)]
        if path in bad:
            assert row["state"] in ("failed", "skipped"), f"{path} ({bad[path]}) was converted"
            assert row["error"]
        else:
            assert row["state"] == "done", f"{path}: {row['error']}"
            values[golden].add(row["values_digest"])
    assert {len(digests) for digests in values.values()} == {1}
    formats = Counter(row["format"].partition(",")[0] for row in by_source.values())
    kinds = Counter(by_source[str(path)]["error_kind"] or "left out" for path in bad)
    told = {"states": states(out), "formats": formats, "damaged": kinds,
            "attempts": Counter(r["attempts"] for r in by_source.values()),
            "rungs": Counter(r["rung"] for r in by_source.values())}  # fmt: skip
    said(json.dumps(told, indent=1))
    assert cases.strangers(out) == []


def run_tiny(folder, number, *, jobs=2, said=print):
    """Many tiny checkpoints of two structures."""
    root, out = Path(folder, "disk"), Path(folder, "out")
    cases.make_runs(root, number // 50, 50)
    for text in ("first", "again"):
        started = time.monotonic()
        assert kills.batch(root, out, "values", jobs).wait() == 0
        took = time.monotonic() - started
        said(f"{number} tiny checkpoints, {text}: {took:.1f} s, {states(out)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=2000)
    parser.add_argument("--damaged", type=int, default=40)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", type=int)
    parser.add_argument("--folder")
    args = parser.parse_args()

    def said(text):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    folder = tempfile.mkdtemp(dir=args.folder)
    if args.tiny:
        run_tiny(folder, args.tiny, jobs=args.jobs, said=said)
    else:
        run_disk(folder, args.checkpoints, args.damaged, args.kills, seed=args.seed,
                 jobs=args.jobs, said=said)  # fmt: skip
    shutil.rmtree(folder)  # kept after a failure, to be looked at


if __name__ == "__main__":
    main()
