"""The ways to convert that are compared, each run in a process of its own.

``ways.py WAY SOURCE OUT [FLAGS…]`` runs one of them under the clock (see ``common.clocked``), after
its imports. ``docs`` is what a user would write today from the documentation of Flax and Orbax:
restore, ``nnx.replace_by_pure_dict``, save with ``StandardSave``; with ``whole`` its process is the
"whole docs' script" that a whole command is compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import clocked
from states import nnx_objects, plan_of


def put_into(old: Any, adam: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
    """Rearrange the restored dicts and put them into live NNX objects; the states to save."""
    import jax.numpy as jnp
    from flax import nnx

    def rename(params):
        found = {int(k.removeprefix("Dense_")): v for k, v in params.items()}
        return {"layers": found}

    state, opt_state = nnx.state(model), nnx.state(optimizer)
    nnx.replace_by_pure_dict(state, rename(old["params"]))
    nnx.update(model, state)
    moments = {"count": adam["count"], "mu": rename(adam["mu"]), "nu": rename(adam["nu"])}
    pure = {
        "step": jnp.uint32(old["step"]),  # as it is, it would be saved as int64
        "opt_state": {0: moments},
    }
    nnx.replace_by_pure_dict(opt_state, pure)
    return nnx.state(model), opt_state


def docs(source: Path, out: Path, width: int) -> Any:
    """Restore everything, rearrange the dicts, put them into live NNX objects, save."""
    import orbax.checkpoint as ocp
    from flax import serialization

    def work() -> None:
        if source.is_file():
            old = serialization.msgpack_restore(source.read_bytes())
            adam = old["opt_state"]["0"]
        else:
            old = ocp.PyTreeCheckpointer().restore(source)
            adam = old["opt_state"][0]
        model, optimizer = nnx_objects(width)
        state, opt_state = put_into(old, adam, model, optimizer)
        with ocp.CheckpointManager(out) as manager:
            save = ocp.args.StandardSave
            args = ocp.args.Composite(model=save(state), optimizer=save(opt_state))
            manager.save(1000, args=args)
            manager.wait_until_finished()

    return work


def ours(source: Path, out: Path, flags: list[str]) -> Any:
    """``bridge.convert`` by a stored plan."""
    import tensorstore  # noqa: F401 - imported before the clock starts, as in the other ways

    import bridge

    convert, load = bridge.convert, bridge.Plan.from_json  # which imports them
    level = next((f.split("=")[1] for f in flags if f.startswith("--verify=")), "fast")

    def work() -> dict[str, Any]:
        plan = load(plan_of(source).read_text())
        before = _io()
        (done,) = convert(
            source,
            out,
            plan=plan,
            verify=level,
            link="--link" in flags,
            sync="--no-sync" not in flags,
        )
        read, wrote = (b - a for a, b in zip(before, _io(), strict=True))
        return {**done.written, "read": read, "wrote": wrote}

    return work


def _io() -> tuple[int, int]:
    """Bytes that this process has read and written by calls to the kernel (not by maps)."""
    words = Path("/proc/self/io").read_text().split()
    return int(words[1]), int(words[3])


def main(way: str, source: Path, out: Path, *flags: str) -> None:
    """Run one way."""
    work = docs(source, out, int(flags[0])) if way == "docs" else ours(source, out, list(flags))
    if "whole" in flags:
        work()
    else:
        clocked(work)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
