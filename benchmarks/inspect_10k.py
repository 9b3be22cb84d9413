"""Row 7: how long whole `inspect` and `--help` commands take, and that they do not import jax.

Makes its own inputs: an Adam TrainState of repeated blocks with 10,000 leaves, as an Orbax OCDBT
folder, as a folder of a zarr array for each parameter, and as a flax msgpack file. Commands are run
in turns with processes that only import what no command can do without, so that the table also says
what the floor is. Python's byte code is compiled first, as it is in an installed package.

    python benchmarks/inspect_10k.py [--scale 1] [--runs 9] [--folder DIR]
"""

from __future__ import annotations

import compileall
import logging
import sys
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    Measured,
    Options,
    Row,
    Run,
    command,
    interleaved,
    options_of,
    show,
    workspace,
)

NUMBER = 7
LEAVES = 10_000
INSPECT, HELP = 0.6, 0.25
FORMATS = ("ocdbt", "zarr", "msgpack")
PER_BLOCK = 6
FLOORS = {
    "floor: python": "pass",
    "floor: python, numpy": "import numpy",
    "floor: python, numpy, tensorstore": "import numpy, tensorstore",
}
WITHOUT_JAX = (
    "import sys; from bridge.cli import main\n"
    "try: main(sys.argv[1:])\n"
    "except SystemExit: pass\n"
    "sys.exit('jax' in sys.modules)"
)
_ENV = {"PYTHONDONTWRITEBYTECODE": ""}


def tree(leaves: int) -> dict[str, Any]:
    """Params in blocks of six arrays, with two moments of the same shapes, and a step."""
    import numpy as np

    shapes = {
        "attention": {"query": (4, 4), "key": (4, 4), "value": (4, 4)},
        "mlp": {"kernel": (4, 8), "bias": (8,)},
        "norm": {"scale": (4,)},
    }

    def params(value: float) -> dict[str, Any]:
        return {
            f"block_{n}": {
                module: {name: np.full(shape, value, np.float32) for name, shape in inside.items()}
                for module, inside in shapes.items()
            }
            for n in range(max(1, leaves // (3 * PER_BLOCK)))
        }

    moments = {"count": np.int32(3), "mu": params(0.0), "nu": params(0.5)}
    return {"params": params(1.0), "opt_state": {"0": moments}, "step": np.int32(3)}


def write(folder: Path, kind: str, state: dict[str, Any]) -> Path:
    """One checkpoint of a format, by the libraries themselves."""
    path = folder / kind
    if kind == "msgpack":
        from flax import serialization

        path.write_bytes(serialization.to_bytes(state))
        return path
    import orbax.checkpoint as ocp

    logging.disable(logging.WARNING)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=kind == "ocdbt")
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, state)
    return path


def timed(*words: Any) -> Run:
    """A whole command of this interpreter."""
    return command(sys.executable, *words, env=_ENV)


def rows(options: Options) -> list[Row]:
    """Measure everything of row 7."""
    leaves = max(10, int(LEAVES * options.scale))
    for package in ("bridge", "legacy"):
        compileall.compile_dir(ROOT / package, quiet=2)
    with workspace(options, "inspect") as folder:
        state = tree(leaves)
        paths = {kind: write(folder, kind, state) for kind in FORMATS}
        calls: dict[str, tuple[Any, ...]] = {"--help": ("--help",)}
        calls |= {f"inspect {kind}": ("inspect", path) for kind, path in paths.items()}
        for words in calls.values():  # also warms the page cache; fails where jax is imported
            timed("-c", WITHOUT_JAX, *words)
        ways = {name: lambda w=words: timed("-m", "bridge", *w) for name, words in calls.items()}
        ways |= {name: lambda c=code: timed("-c", c) for name, code in FLOORS.items()}
        found = interleaved(ways, options.runs)
    return [_row(found, leaves)]


def _row(found: dict[str, Measured], leaves: int) -> Row:
    slowest = max(found[f"inspect {kind}"].seconds for kind in FORMATS)
    helped = found["--help"].seconds
    return Row(
        NUMBER,
        f"`inspect` of {leaves:,} leaves (slowest of {', '.join(FORMATS)}); `--help`; no jax",
        f"< {INSPECT} s; < {HELP} s",
        f"{slowest:.2f} s; {helped:.2f} s; jax is not imported",
        slowest < INSPECT and helped < HELP,
        tuple(f"{name}: {measured.text()}" for name, measured in found.items()),
    )


if __name__ == "__main__":
    show(rows(options_of(None, __doc__ or "")))
