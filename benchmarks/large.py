"""Rows 1 to 4: one large checkpoint, against ``cp -r`` and against the script of the docs.

Everything is done by a stored plan and verified ``fast``. The copy to compare with is made by
``cp -r`` and, where ours is synced, followed by an fsync of each file and folder of the copy.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from common import (
    ROOT,
    Options,
    Row,
    Run,
    command,
    fresh,
    inside,
    interleaved,
    options_of,
    ratio,
    show,
    workspace,
)
from states import make, plan_of, width_for

WAYS = Path(__file__).with_name("ways.py")
GIGABYTE = 1000.0


def copied(source: Path, out: Path, *, sync: bool) -> Run:
    """``cp -r``, and fsync of the copies."""
    fresh(out)
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    if sync:
        for path in (out, *out.rglob("*")):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    return Run(time.perf_counter() - started, 0)


def ours(source: Path, out: Path, *flags: str) -> Run:
    """``bridge.convert``, its imports not counted."""
    fresh(out)
    return inside(WAYS, "ours", source, out, *flags)


def docs_script(source: Path, out: Path, megabytes: float) -> Run:
    """The script of the docs as a whole process."""
    fresh(out)
    return command(sys.executable, WAYS, "docs", source, out, width_for(megabytes), "whole")


def our_command(source: Path, out: Path, *flags: str) -> Run:
    """``linen2nnx convert`` as a whole process."""
    fresh(out)
    words = ("convert", source, "--out", out, "--plan", plan_of(source), "--verify", "fast")
    return command(sys.executable, "-m", "bridge", *words, *flags)


def rows(options: Options) -> list[Row]:
    """Rows 1 to 4."""
    size = GIGABYTE * options.scale
    with workspace(options, "large") as folder:
        ocdbt, msgpack = make("ocdbt", folder, size), make("msgpack", folder, size)
        out = folder / "out"
        found = [_against_cp(ocdbt, out, options), _linked(folder, ocdbt, out, options)]
        found.append(_whole(3, ocdbt, out, options, size, (10, 15)))
        return [*found, _msgpack(msgpack, out, options, size)]


def _against_cp(source: Path, out: Path, options: Options) -> Row:
    m = interleaved(
        {
            "cp": partial(copied, source, out, sync=False),
            "ours, --no-sync": partial(ours, source, out, "--no-sync"),
            "cp + fsync": partial(copied, source, out, sync=True),
            "ours": partial(ours, source, out),
        },
        options.runs,
    )
    synced = ratio(m["ours"], m["cp + fsync"])
    loose = ratio(m["ours, --no-sync"], m["cp"])
    return Row(
        1,
        f"OCDBT, {GIGABYTE * options.scale:.0f} MB adamw TrainState, copied",
        "<= 1.3 x (cp -r + fsync); with --no-sync <= 1.3 x cp -r",
        f"{synced:.2f} x; {loose:.2f} x",
        synced <= 1.3 and loose <= 1.3,
        tuple(f"{way}: {x.text()}" for way, x in m.items()),
    )


def _linked(folder: Path, source: Path, out: Path, options: Options) -> Row:
    sizes = [options.scale * s for s in (0.25 * GIGABYTE, GIGABYTE, 4 * GIGABYTE)]
    sources = [make("ocdbt", folder, sizes[0]), source, make("ocdbt", folder, sizes[2])]
    m = interleaved(
        {
            f"{s:.0f} MB": partial(ours, p, out, "--link")
            for s, p in zip(sizes, sources, strict=True)
        },
        max(options.runs, 5),
    )
    seconds = [x.seconds for x in m.values()]
    return Row(
        2,
        "the same with --link, 0.25, 1 and 4 GB",
        "does not grow with bytes; < 0.15 s",
        " / ".join(f"{s:.3f} s" for s in seconds),
        max(seconds) < 0.15 and max(seconds) < 1.5 * min(seconds),
        tuple(f"{way}: {x.text()}" for way, x in m.items()),
    )


def _whole(
    number: int, source: Path, out: Path, options: Options, size: float, least: tuple[int, int]
) -> Row:
    m = interleaved(
        {
            "docs' script": partial(docs_script, source, out, size),
            "linen2nnx convert": partial(our_command, source, out),
            "linen2nnx convert --no-sync": partial(our_command, source, out, "--no-sync"),
        },
        min(options.runs, 3),
    )
    faster = ratio(m["docs' script"], m["linen2nnx convert"])
    loose = ratio(m["docs' script"], m["linen2nnx convert --no-sync"])
    less = m["docs' script"].peak / m["linen2nnx convert"].peak
    return Row(
        number,
        f"whole command, {source.name.split('-')[0]}, against the whole docs' script",
        f">= {least[0]} x faster" + (f", >= {least[1]} x less memory" if least[1] > 1 else ""),
        f"{faster:.1f} x faster ({loose:.1f} x with --no-sync), {less:.0f} x less",
        faster >= least[0] and less >= least[1],
        tuple(f"{way}: {x.text()}" for way, x in m.items()),
    )


def _msgpack(source: Path, out: Path, options: Options, size: float) -> Row:
    m = interleaved(
        {
            "cp + fsync": partial(copied, source, out, sync=True),
            "ours": partial(ours, source, out),
        },
        options.runs,
    )
    synced = ratio(m["ours"], m["cp + fsync"])
    whole = _whole(4, source, out, options, size, (4, 1))
    return Row(
        4,
        f"msgpack, {GIGABYTE * options.scale:.0f} MB",
        "<= 2 x (cp + fsync); whole command >= 4 x faster than the docs' script",
        f"{synced:.2f} x; {whole.result}",
        synced <= 2 and whole.met,
        (*(f"{way}: {x.text()}" for way, x in m.items()), *whole.details),
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    show(rows(options_of(None, __doc__)))
