"""Measures how planning grows with the number of leaves: no worse than n log n.

Transformer blocks with an Adam state, from an opened checkpoint and a described target to the
plan: renamed by a few capture rules (the row of the table), and as details under equal names,
without a model, by a rule for each leaf, refused with a suggestion for everything, and with all
blocks in one scanned stack. CPU seconds, imports excluded.

    python benchmarks/plan_scaling.py [--scale 1.0] [--runs 3]
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "bridge"))

from common import Options, Row, options_of, show
from planning_cases import checkpoint, leaf, opt_slots, target, tree

import bridge
from bridge import Target

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[str, Shape]
Case: TypeAlias = tuple[Any, dict[str, Any]]

_MOST_SECONDS = 5.0
_SIZES = (1_000, 10_000, 100_000)
_NOISE = 1.3
"""Times the growth of n log n that still counts as it: caches and the collector are not linear."""
_BLOCK: Mapping[str, tuple[str, Shape]] = {
    **{
        f"LayerNorm_{n}/{name}": (f"norm{n + 1}/{name}", (8,))
        for n in (0, 1)
        for name in ("scale", "bias")
    },
    **{
        f"MultiHeadDotProductAttention_0/{name}/{part}": (f"attn/{name}/{part}", shape)
        for name in ("query", "key", "value")
        for part, shape in (("kernel", (8, 2, 4)), ("bias", (2, 4)))
    },
    "MultiHeadDotProductAttention_0/out/kernel": ("attn/out/kernel", (2, 4, 8)),
    "MultiHeadDotProductAttention_0/out/bias": ("attn/out/bias", (8,)),
    "MlpBlock_0/Dense_0/kernel": ("mlp/fc1/kernel", (8, 32)),
    "MlpBlock_0/Dense_0/bias": ("mlp/fc1/bias", (32,)),
    "MlpBlock_0/Dense_1/kernel": ("mlp/fc2/kernel", (32, 8)),
    "MlpBlock_0/Dense_1/bias": ("mlp/fc2/bias", (8,)),
}
_MAPS = {
    "LayerNorm_0/{leaf}": "norm1/{leaf}",
    "LayerNorm_1/{leaf}": "norm2/{leaf}",
    "MultiHeadDotProductAttention_0/{rest...}": "attn/{rest...}",
    "MlpBlock_0/Dense_0/{leaf}": "mlp/fc1/{leaf}",
    "MlpBlock_0/Dense_1/{leaf}": "mlp/fc2/{leaf}",
}


def _blocks(leaves: int) -> int:
    """Params and two moments of each, and two counts."""
    return max(2, (leaves - 2) // (3 * len(_BLOCK)))


def _case(ours: Shapes, theirs: Shapes | None, rules: Sequence[Any] = ()) -> Case:
    source = checkpoint(
        *tree("params", ours),
        *tree("opt_state/0/mu", ours),
        *tree("opt_state/0/nu", ours),
        leaf("opt_state/0/count", (), "int32"),
        leaf("step", (), "int32"),
    )
    if theirs is None:
        return source, {}
    slots = (*target(theirs).slots, *opt_slots(["0/mu", "0/nu"], theirs))
    return source, {"model": Target(slots), "rules": list(rules)}


def _linen(leaves: int) -> Shapes:
    return {
        f"encoderblock_{i}/{a}": s for i in range(_blocks(leaves)) for a, (_, s) in _BLOCK.items()
    }


def _nnx(leaves: int, blocks: str = "encoderblock") -> Shapes:
    return {f"{blocks}/{i}/{b}": s for i in range(_blocks(leaves)) for b, s in _BLOCK.values()}


def _renamed(leaves: int) -> Case:
    rules = [
        bridge.Map.of(f"params/encoderblock_{{i}}/{a}", f"encoderblock/{{i}}/{b}")
        for a, b in _MAPS.items()
    ]
    return _case(_linen(leaves), _nnx(leaves), rules)


def _same(leaves: int) -> Case:
    ours = _linen(leaves)
    return _case(ours, {p.replace("block_", "block/", 1): s for p, s in ours.items()})


def _structural(leaves: int) -> Case:
    return _case(_linen(leaves), None)


def _literal(leaves: int) -> Case:
    ours, theirs = _linen(leaves), _nnx(leaves)
    rules = [bridge.Map.of(f"params/{a}", b) for a, b in zip(ours, theirs, strict=True)]
    return _case(ours, theirs, rules)


def _refused(leaves: int) -> Case:
    return _case(_linen(leaves), _nnx(leaves, "blocks"))


def _unstacked(leaves: int) -> Case:
    n = _blocks(leaves)
    ours = {f"encoderblock/{a}": (n, *s) for a, (_, s) in _BLOCK.items()}
    theirs = {f"encoderblock/{i}/{a}": s for i in range(n) for a, (_, s) in _BLOCK.items()}
    return _case(ours, theirs)


def _stacked(leaves: int) -> Case:
    n = _blocks(leaves)
    return _case(_linen(leaves), {f"encoderblock/{a}": (n, *s) for a, (_, s) in _BLOCK.items()})


KINDS: Mapping[str, Callable[[int], Case]] = {
    "renamed by capture rules": _renamed,
    "same names": _same,
    "no model": _structural,
    "a rule for each leaf": _literal,
    "refused, with suggestions": _refused,
    "a stack into blocks": _unstacked,
    "blocks into a stack": _stacked,
}


def seconds(kind: str, leaves: int, runs: int) -> float:
    """CPU seconds of one plan, the median of some."""
    found = []
    for _ in range(runs):
        source, more = KINDS[kind](leaves)
        start = time.process_time()
        plan = bridge.plan(source, **more)
        found.append(time.process_time() - start)
        if plan.ok != kind.startswith(("renamed", "same", "no ", "a ", "blocks")):
            raise RuntimeError(f"{kind}: {plan.problems[:3]}")
    return statistics.median(found)


def _growth(few: int, many: int) -> float:
    return many * math.log(many) / (few * math.log(few))


def rows(options: Options) -> list[Row]:
    """Plan each kind in three sizes."""
    sizes = [max(200, round(n * options.scale)) for n in _SIZES]
    seconds("renamed by capture rules", sizes[0], 1)  # what is imported on first use
    told, found = [], {}
    for kind in KINDS:
        took = [
            seconds(kind, n, options.runs if n < _SIZES[-1] else min(options.runs, 1))
            for n in sizes
        ]
        found[kind] = took
        grown = [took[n] / took[n - 1] / _growth(sizes[n - 1], sizes[n]) for n in (1, 2)]
        shown = ", ".join(f"{n:,}: {s:.2f} s" for n, s in zip(sizes, took, strict=True))
        told.append(f"{kind}: {shown}; growth over n log n {grown[0]:.2f}, {grown[1]:.2f}")
    took = found["renamed by capture rules"]
    over = took[2] / took[1] / _growth(sizes[1], sizes[2])
    return [
        Row(
            8,
            f"plan of {', '.join(f'{n:,}' for n in sizes)} leaves, beyond the imports",
            f"grows no worse than n log n; {sizes[1]:,} in < {_MOST_SECONDS:.0f} s",
            f"{over:.2f} x the growth of n log n; {sizes[1]:,} in {took[1]:.2f} s",
            met=took[1] < _MOST_SECONDS and over <= _NOISE,
            details=tuple(told),
        )
    ]


if __name__ == "__main__":
    show(rows(options_of(None, __doc__ or "")))
