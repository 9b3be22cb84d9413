"""Measures a conversion three ways: the script of the docs, repack with a copy, repack with links.

Makes its own Orbax checkpoint of an adamw ``TrainState`` (about 887 MB of float32 arrays; 122 of
them), and runs each way in a process of its own, interleaved. Peak memory is anonymous memory
(``RssAnon``), sampled every 5 ms; pages of mapped files do not count, because they can be dropped
at any time. Times are from the first read to the last written byte, imports excluded; nothing is
synced to the disk in any of them.

    python benchmarks/repack_887mb.py [--mb 887] [--runs 5] [--folder /tmp]
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
from pathlib import Path

WAYS = ("docs", "copy", "link")
LAYERS = 20


def width_for(mb: float) -> int:
    # params, mu and nu of LAYERS square layers
    return round((mb * 1e6 / (3 * LAYERS * 4)) ** 0.5)


# -- the checkpoint and its two models ----------------------------------------------------------


def make_source(folder: Path, width: int) -> None:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax
    import orbax.checkpoint as ocp
    from flax.training.train_state import TrainState

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(LAYERS):
                x = nn.relu(nn.Dense(width)(x))
            return x

    net = Net()
    params = net.init(jax.random.key(0), jnp.ones((1, width)))["params"]
    state = TrainState.create(apply_fn=net.apply, params=params, tx=optax.adamw(1e-3))
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    # moments of a real run are not zeros, which would compress to nothing
    noisy = jax.tree.map(
        lambda x: jax.random.normal(next(keys), x.shape) if x.ndim else x, state.opt_state
    )
    ocp.PyTreeCheckpointer().save(folder, state.replace(opt_state=noisy, step=1000))


def nnx_objects(width: int):
    import optax
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(LAYERS)])

    model = Net(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)


def make_plan(source: Path, width: int):
    import legacy
    from bridge._describe import describe
    from bridge._plan import Plan, Step
    from bridge.transforms import Cast

    target = describe(lambda: nnx_objects(width))
    steps = []
    for slot in target.slots:
        *head, layer, name = slot.path if len(slot.path) > 1 else ("", "", "")
        dense = (f"Dense_{layer}", name)
        if slot.item == "model":
            path, transforms = ("params", *dense), ()
        elif slot.path == ("step",):
            path, transforms = ("step",), (Cast("uint32"),)
        elif slot.path[-1] == "count":
            path, transforms = slot.path, ()
        else:
            path, transforms = (*(h for h in head if h != "layers"), *dense), ()
        steps.append(Step((path,), (slot.ref,), transforms))
    leaves = legacy.open(source).leaves
    return Plan(tuple(steps), (), (), (), target, leaves.signature())


# -- the three ways -----------------------------------------------------------------------------


def by_docs(source: Path, out: Path, width: int):
    """Restore everything, rearrange the dicts, put them into live NNX objects, save."""
    import jax.numpy as jnp
    import orbax.checkpoint as ocp
    from flax import nnx

    def work():
        old = ocp.PyTreeCheckpointer().restore(source)
        model, optimizer = nnx_objects(width)

        def rename(params):
            return {"layers": {i: params[f"Dense_{i}"] for i in range(LAYERS)}}

        state = nnx.state(model)
        nnx.replace_by_pure_dict(state, rename(old["params"]))
        nnx.update(model, state)
        adam = old["opt_state"][0]
        opt_state = nnx.state(optimizer)
        pure = {
            "step": jnp.uint32(old["step"]),  # as it is, it would be saved as int64
            "opt_state": {
                0: {"count": adam["count"], "mu": rename(adam["mu"]), "nu": rename(adam["nu"])}
            },
        }
        nnx.replace_by_pure_dict(opt_state, pure)
        with ocp.CheckpointManager(out) as manager:
            save = ocp.args.StandardSave
            args = ocp.args.Composite(model=save(nnx.state(model)), optimizer=save(opt_state))
            manager.save(1000, args=args)
            manager.wait_until_finished()

    return work


def by_repack(source: Path, out: Path, plan_file: Path, *, link: bool):
    import tensorstore  # noqa: F401 - imported before the clock starts, as in the other way

    import legacy
    from bridge._plan import Plan
    from bridge.output import staged
    from bridge.repack import repack

    def work():
        plan = Plan.from_json(plan_file.read_text())
        checkpoint = legacy.open(source)
        with staged(out / "1000", sync=False) as folder:
            repack(plan, checkpoint, folder, link=link, sync=False)

    return work


def rss_anon() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def measure(way: str, source: Path, out: Path, plan_file: Path, width: int) -> None:
    if way == "docs":
        work = by_docs(source, out, width)
    else:
        work = by_repack(source, out, plan_file, link=way == "link")
    peak, done = 0, threading.Event()

    def sample():
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, rss_anon())

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    done.set()
    sampler.join()
    print(json.dumps({"seconds": seconds, "peak": max(peak, rss_anon())}), flush=True)
    os._exit(0)


def check_equal(a: Path, b: Path) -> None:
    import numpy as np

    import legacy

    left, right = legacy.open(a).leaves, legacy.open(b).leaves
    assert left.signature() == right.signature()
    assert all(np.array_equal(left[p].read(), right[p].read()) for p in left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=887)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, source, out, plan_file, width = options.measure
        measure(way, Path(source), Path(out), Path(plan_file), int(width))
    width = width_for(options.mb)
    folder = Path(tempfile.mkdtemp(prefix="repack-", dir=options.folder))
    try:
        source, plan_file = folder / "old", folder / "plan.json"
        make_source(source, width)
        plan_file.write_text(make_plan(source, width).to_json())
        rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for run in range(options.runs):
            for way in WAYS:
                out = folder / way
                shutil.rmtree(out, ignore_errors=True)
                arguments = [way, source, out, plan_file, width]
                done = subprocess.run(
                    [sys.executable, __file__, "--measure", *map(str, arguments)],
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
                    stdout=subprocess.PIPE,
                    check=True,
                    text=True,
                )
                rows[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"run {run + 1} of {options.runs} done", file=sys.stderr)
        for way in WAYS[1:]:
            check_equal(folder / "docs" / "1000", folder / way / "1000")
        size = sum(p.stat().st_size for p in source.rglob("*"))
        report(rows, size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(rows: dict[str, list[dict[str, float]]], size: int) -> None:
    def median(way, key):
        return statistics.median(row[key] for row in rows[way])

    print(f"\n{size / 1e6:.0f} MB on disk, {len(rows['docs'])} runs each, medians")
    print(f"{'way':6} {'seconds':>8} {'min-max':>13} {'faster':>7} {'peak MB':>8} {'less':>6}")
    for way in WAYS:
        seconds, peak = median(way, "seconds"), max(row["peak"] for row in rows[way])
        spread = [row["seconds"] for row in rows[way]]
        print(
            f"{way:6} {seconds:8.3f} {min(spread):6.2f}-{max(spread):6.2f} "
            f"{median('docs', 'seconds') / seconds:6.0f}x {peak / 1e6:8.0f} "
            f"{max(row['peak'] for row in rows['docs']) / peak:5.0f}x"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
