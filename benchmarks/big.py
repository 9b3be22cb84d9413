"""Row 12: bigger than this machine, simulated with sparse files.

A msgpack file of 2 TB with 100,000 arrays, of which only the headers are on the disk, is converted
with ``--link``: what is read and written is counted, and so is memory. Then sparse files of 2 and
20 GB are copied for real: ten times the bytes, the same memory. Memory and bytes per array are what
is extrapolated; the time of 2 TB is that of the storage.
"""

from __future__ import annotations

import struct
import sys
from functools import partial
from pathlib import Path

from common import (
    ROOT,
    Measured,
    Options,
    Row,
    clocked,
    fresh,
    inside,
    options_of,
    show,
    workspace,
)
from states import plan_of

WAYS = Path(__file__).with_name("ways.py")


def sparse(path: Path, leaves: int, each: int) -> None:
    """A file as ``flax.serialization`` writes it, with holes instead of the arrays' bytes."""
    import msgpack

    pack = msgpack.Packer().pack
    with path.open("wb") as file:
        file.write(b"\x81" + pack("params") + b"\xdf" + struct.pack(">I", leaves))
        for n in range(leaves):
            inner = b"\x93" + pack([each // 4096, 1024]) + pack("float32")
            inner += b"\xc6" + struct.pack(">I", each)
            file.write(pack(f"layer_{n}") + b"\x81" + pack("kernel"))
            file.write(b"\xc9" + struct.pack(">Ib", len(inner) + each, 1) + inner)
            file.seek(each, 1)
        file.truncate()


def make(path: Path, leaves: int, each: int) -> None:
    """The file, and its plan."""
    import bridge

    sparse(path, leaves, each)
    plan_of(path).write_text(bridge.plan(path).require_ok().to_json())


def rows(options: Options) -> list[Row]:
    """Row 12."""
    many = max(100, round(100_000 * options.scale))
    cases = [
        ("2 TB, linked", many, 20 << 20, "--link"),
        ("2 GB, copied", 100, 20 << 20, ""),
        ("20 GB, copied", max(101, round(1000 * options.scale)), 20 << 20, ""),
    ]
    details, peaks, moved = [], [], []
    for name, leaves, each, flag in cases:
        with workspace(options, "big") as folder:
            source, out = folder / "old", folder / "out"
            inside(__file__, "make", source, leaves, each)
            fresh(out)
            run = inside(WAYS, "ours", source, out, *([flag] if flag else []))
            told = Measured((run,))
            peaks.append(run.peak)
            size = leaves * each
            moved.append(run.told["read"] / size)
            details.append(
                f"{name} ({leaves:,} arrays, {size / 1e12:.4f} TB): {told.text()}; read "
                f"{run.told['read'] / 1e9:.2f} GB, wrote {run.told['wrote'] / 1e9:.2f} GB"
            )
    flat = peaks[2] < 1.5 * peaks[1]
    return [
        Row(
            12,
            "2 TB of 100,000 arrays linked; 2 GB and 20 GB copied (sparse files)",
            "memory grows with neither bytes nor, but for the index, with arrays; each byte once",
            f"{peaks[0] / 1e6:.0f} MB ({1e-3 * peaks[0] / many:.1f} kB an array); "
            f"{peaks[1] / 1e6:.0f} and {peaks[2] / 1e6:.0f} MB",
            flat and moved[2] < 1.1,
            tuple(details),
        )
    ]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["make"]:
        clocked(partial(make, Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    else:
        show(rows(options_of(None, __doc__)))
