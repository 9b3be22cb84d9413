"""Finds biases and scales that only one of two models has.

A key projection with a bias against one without, a gate whose bias the other flavour has no place
for, a norm with a scale against one without: with the bias at zero, the scale at one, both models
compute the same, and every other parameter can be paired. The extra one itself is never paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bridge.dataflow_colour import Colours
from bridge.dataflow_flow import Flow, Op
from bridge.dataflow_trace import Traced

__all__ = ["without_extras"]

_NEUTRAL = {"add": "zero", "mul": "one"}

_Pair = tuple[Traced, Traced]
_Matcher = Callable[[_Pair], Colours | None]


def without_extras(
    both: _Pair, matcher: _Matcher
) -> tuple[_Pair, list[tuple[int, int, str]]] | None:
    """Take away the biases and scales that only one model has.

    Both models without any bias and scale are matched first; each bias then belongs to what it is
    added to.

    Args:
        both: the models.
        matcher: gives colours that tell everything in both apart, or None.

    Returns:
        Both models, and what was taken away: side, leaf, and the value with which it does
        nothing. None when there is nothing to take away, or when it does not help.
    """
    places = [_extras(t.flow) for t in both]
    bare, bases = zip(*(_stripped(t, p) for t, p in zip(both, places, strict=True)), strict=True)
    if not any(bases):
        return None
    colours = matcher((bare[0], bare[1]))
    if colours is None:
        return None
    at = [
        {(colours.node[side][base], op): n for n, (base, op) in bases[side].items()}
        for side in (0, 1)
    ]
    if any(len(a) != len(b) for a, b in zip(at, bases, strict=True)):
        return None
    only = [{n for key, n in at[side].items() if key not in at[1 - side]} for side in (0, 1)]
    if not any(only):
        return None
    gone = [
        (side, flow.ops[flow.ops[n].args[1 - places[side][n]][0]].leaf, _NEUTRAL[flow.ops[n].op])
        for side in (0, 1) for flow in [both[side].flow] for n in sorted(only[side])
    ]  # fmt: skip
    less = [_stripped(both[side], {n: places[side][n] for n in only[side]})[0] for side in (0, 1)]
    return (less[0], less[1]), gone


def _extras(flow: Flow) -> dict[int, int]:
    return {n: at for n in range(len(flow.ops)) for at in [_base(flow, n)] if at is not None}


def _base(flow: Flow, n: int) -> int | None:
    """Which operand a bias is added to, or a scale multiplied with; None if there is none."""
    op = flow.ops[n]
    if op.op not in _NEUTRAL or len(op.args) != 2 or op.key[1]:  # noqa: PLR2004
        return None
    found = []
    for at in (0, 1):
        base, extra = op.args[at], op.args[1 - at][0]
        whole = sorted(base[1]) == sorted(op.out)
        if whole and flow.ops[extra].leaf >= 0 and len(flow.users[extra]) == 1:
            found.append(at)
    return found[0] if len(found) == 1 else None


def _stripped(traced: Traced, extra: dict[int, int]) -> tuple[Traced, dict[int, tuple[int, str]]]:
    """The model in which sums are only what a bias is added to, and products likewise.

    Returns:
        The model, and for each operation that went the one in its place and its name.
    """
    flow = traced.flow
    ops: list[Op] = []
    new: dict[int, tuple[int, tuple[int, ...]]] = {}
    bases: dict[int, tuple[int, str]] = {}
    lost = {flow.ops[n].args[1 - at][0] for n, at in extra.items()}
    for n, op in enumerate(flow.ops):
        args = tuple(
            (new[a][0], tuple(walk[k] for k in new[a][1])) for a, walk in op.args if a not in lost
        )
        if n in extra:
            base, walk = args[0]
            new[n] = base, tuple(op.out.index(loop) for loop in walk)
            bases[n] = base, op.op
        elif n not in lost:
            new[n] = len(ops), tuple(range(len(op.out)))
            ops.append(replace(op, args=args))
    out = Flow(ops)
    out.link()
    return replace(traced, flow=out), bases
