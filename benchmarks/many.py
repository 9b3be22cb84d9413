"""Row 6: many small checkpoints, the steps of one ``CheckpointManager``, in one process.

About 200 kB each (an adamw ``TrainState``); ours by a stored plan, verified ``fast`` and synced;
the docs' script as one loop in one process, which syncs nothing. ``many.py`` alone shows the row.
"""

from __future__ import annotations

import sys
from pathlib import Path

import states
from common import Measured, Options, Row, clocked, fresh, inside, options_of, show, workspace
from states import linen_state, nnx_objects, plan_of, store_plan, width_for
from ways import put_into

MEGABYTES = 0.2
STEPS = 500
states.LAYERS = 4  # 26 arrays: a small network, as of reinforcement learning


def make(folder: Path, steps: int) -> None:
    """The run, and the plan of its steps beside it."""
    import orbax.checkpoint as ocp

    width = width_for(MEGABYTES)
    state = linen_state(width)
    options = ocp.CheckpointManagerOptions(max_to_keep=None, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder, options=options) as manager:
        for n in range(steps):
            manager.save(n, args=ocp.args.PyTreeSave(state.replace(step=n)))
    store_plan(folder, width)


def docs(source: Path, out: Path) -> None:
    """The loop that the documentation of Flax and Orbax leads to."""
    import orbax.checkpoint as ocp

    width = width_for(MEGABYTES)

    def work() -> None:
        model, optimizer = nnx_objects(width)
        keep = ocp.CheckpointManagerOptions(max_to_keep=None)
        with (
            ocp.CheckpointManager(source) as old_manager,
            ocp.CheckpointManager(out, options=keep) as manager,
        ):
            for step in old_manager.all_steps():
                old = old_manager.restore(step, args=ocp.args.PyTreeRestore())
                state, opt_state = put_into(old, old["opt_state"][0], model, optimizer)
                save = ocp.args.StandardSave
                args = ocp.args.Composite(model=save(state), optimizer=save(opt_state))
                manager.save(step, args=args)
            manager.wait_until_finished()

    clocked(work)


def ours(source: Path, out: Path, *flags: str) -> None:
    """``bridge.convert`` of all steps."""
    import tensorstore  # noqa: F401 - imported before the clock starts, as in the other way

    import bridge

    convert, load = bridge.convert, bridge.Plan.from_json

    def work() -> None:
        plan = load(plan_of(source).read_text())
        convert(source, out, plan=plan, steps="all", verify="fast", sync="--no-sync" not in flags)

    clocked(work)


def rows(options: Options) -> list[Row]:
    """Row 6."""
    steps = max(4, round(STEPS * options.scale))
    with workspace(options, "many") as folder:
        source = folder / "run"
        inside(__file__, "make", source, steps)
        found: dict[str, list] = {"docs": [], "ours": [], "no-sync": []}
        for n in range(options.runs):
            for way, runs in found.items():
                if way == "docs" and n >= 2:  # it takes minutes
                    continue
                out = folder / way
                fresh(out)
                flags = ["--no-sync"] if way == "no-sync" else []
                runs.append(inside(__file__, way.replace("no-sync", "ours"), source, out, *flags))
        medians = {way: Measured(tuple(runs)) for way, runs in found.items()}
    faster = medians["docs"].seconds / medians["ours"].seconds
    return [
        Row(
            6,
            f"{steps} checkpoints of ~200 kB (26 arrays), one process, stored plan",
            ">= 20 x faster than the docs' script as one loop",
            f"{faster:.0f} x ({1e3 * medians['ours'].seconds / steps:.1f} ms each)",
            faster >= 20,
            tuple(f"{way}: {m.text()}" for way, m in medians.items()),
        )
    ]


if __name__ == "__main__":
    ways = {"docs": docs, "ours": ours}
    if sys.argv[1:2] == ["make"]:
        clocked(lambda: make(Path(sys.argv[2]), int(sys.argv[3])))
    elif sys.argv[1:2] and sys.argv[1] in ways:
        ways[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
    else:
        show(rows(options_of(None, __doc__)))
