"""Pairs parameters by the data flow of both models, however large they are.

Both models are traced on shapes alone and become graphs in which layout does not exist
(:mod:`bridge.dataflow_graph`); a parameter's place in its graph is refined until it is told from
all others (:mod:`bridge.dataflow_colour`). If both graphs are one graph with other names, that is
a proof that the models compute the same function of their parameters as paired. If they are not,
a coarser view may still be one graph for both (:mod:`bridge.dataflow_coarse`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.dataflow_axes import Uneven
from bridge.dataflow_coarse import LEVELS, Coarse, coarse
from bridge.dataflow_colour import Colours
from bridge.dataflow_differences import aligned_differences, first_apart
from bridge.dataflow_drop import without_extras
from bridge.dataflow_match import fix, match, natural, pairings
from bridge.dataflow_read import Numbers
from bridge.dataflow_trace import Path, Program, Traced, program, read
from bridge.probes import Model, unlike
from bridge.proof import Pairing, Proof
from bridge.target import SlotPath
from legacy import format_path

__all__ = ["dataflow", "differences"]

_Both = tuple[Traced, Traced]


def dataflow(
    linen: Model,
    nnx: Model,
    kinds: Mapping[SlotPath, str],
    *,
    fixed: Sequence[Pairing] = (),
    hints: Sequence[Pairing] = (),
) -> Proof:
    """Pair the leaves of a Linen model with the slots of an NNX model by their data flow.

    Args:
        linen: the Linen side.
        nnx: the NNX side; no array of it is computed.
        kinds: the Linen collection that each slot belongs to.
        fixed: pairs that are known.
        hints: pairs by which to choose where nothing tells leaves apart.

    Returns:
        What is proven. ``same`` says that both graphs are one graph, so that both models compute
        the same, up to rounding, with the parameters as paired. Otherwise ``pairings`` are those
        that a coarser view tells apart, and ``parted`` says where the models part.

    Raises:
        Exception: whatever a model raises when it is traced.

    >>> import jax
    >>> from bridge.probe import Probe
    >>> from bridge.probes import Call, Called
    >>> spec = jax.ShapeDtypeStruct((3, 3), "float32")
    >>> def model(name, *path):
    ...     call = lambda values, inputs: Called((inputs[0] @ values[path],), {})
    ...     return Model(name, {path: spec}, (Call(Probe((spec,)), (spec,), call),))
    >>> proof = dataflow(model("Linen", "params", "w"), model("NNX", "kernel"), {})
    >>> proof.same, proof.pairings[0].slots
    (True, (('kernel',),))
    """
    programs = _programs(linen, nnx, kinds)
    reason = unlike(linen, nnx)
    if reason:
        return Proof("dataflow", parted=reason)
    tried = _tried(programs)
    if not tried:
        return Proof("dataflow", parted=_UNEVEN)
    for both in tried:
        colours = Colours([t.flow for t in both])
        fix(colours, both, fixed)
        found, colours = match(colours, both, hints, ties=True)
        if found.whole:
            made, lost = pairings(found, colours, both)
            return _proof(both, made, lost, ties=found.ties, same=not lost)
    for both in tried:
        proof = _with_less(both, fixed, hints)
        if proof is not None:
            return proof
    return _coarsely(tried[0], fixed, hints)


def _coarsely(both: _Both, fixed: Sequence[Pairing], hints: Sequence[Pairing]) -> Proof:
    """The proof for two models that are not one graph, but may be in a coarser view."""
    best = 0
    proof: Proof | None = None
    for level in LEVELS:
        views = (coarse(both[0], level), coarse(both[1], level))
        pair = (views[0].traced, views[1].traced)
        colours = Colours([t.flow for t in pair])
        fix(colours, pair, fixed)
        found, colours = match(colours, pair, hints, ties=False)
        if len(found.places) > best:
            best = len(found.places)
            made, lost = pairings(found, colours, pair)
            texts = aligned_differences(both, _aligned(views, colours))
            proof = _proof(both, made, lost, parted=texts[0] if texts else _UNCLEAR)
    if proof is not None:
        return proof
    views = (coarse(both[0], LEVELS[0]), coarse(both[1], LEVELS[0]))
    parted = first_apart((views[0].traced, views[1].traced))
    return _proof(both, [], [], parted=parted or _UNCLEAR)


_UNEVEN = "an axis is cut in ways that do not nest, so that the models cannot be compared"
_UNCLEAR = "the models part in how their parts are joined"


def _with_less(both: _Both, fixed: Sequence[Pairing], hints: Sequence[Pairing]) -> Proof | None:
    """The proof for two models of which one has biases or scales that the other has not."""

    def matched(pair: _Both) -> Colours | None:
        colours = Colours([t.flow for t in pair])
        fix(colours, pair, fixed)
        found, colours = match(colours, pair, hints, ties=True)
        return colours if found.whole else None

    less = without_extras(both, matched)
    if less is None:
        return None
    pair, gone = less
    colours = Colours([t.flow for t in pair])
    fix(colours, pair, fixed)
    found, colours = match(colours, pair, hints, ties=True)
    if not found.whole:
        return None
    made, lost = pairings(found, colours, pair)
    texts = [f"{both[side].name} {format_path(both[side].leaves[leaf])} is {value}"
             for side, leaf, value in gone]  # fmt: skip
    parted = f"only one of the models has these; both compute the same if {', '.join(texts)}"
    return _proof(both, made, lost, ties=found.ties, parted=parted)


def differences(linen: Model, nnx: Model) -> tuple[str, ...]:
    """What differs in numbers though the parameters correspond, one sentence for each.

    Args:
        linen: the Linen side.
        nnx: the NNX side.

    Returns:
        Sentences such as "the epsilon is 1e-06 in Linen and 1e-05 in NNX (at ...)"; none when
        both compute the same, or when they differ too much to be compared.
    """
    programs = _programs(linen, nnx, {})
    if unlike(linen, nnx):
        return ()
    tried = _tried(programs)
    for both in tried:
        colours = Colours([t.flow for t in both])
        colours.refine()
        if colours.balanced():
            return ()
    if not tried:
        return ()
    best = 0
    texts: tuple[str, ...] = ()
    for level in LEVELS:
        views = (coarse(tried[0][0], level), coarse(tried[0][1], level))
        colours = Colours([v.traced.flow for v in views])
        colours.refine()
        pairs = _aligned(views, colours) if colours.balanced() else []
        if len(pairs) > best:
            best, texts = len(pairs), aligned_differences(tried[0], pairs)
    return texts


def _programs(linen: Model, nnx: Model, kinds: Mapping[SlotPath, str]) -> tuple[Program, Program]:
    return (
        program(linen, lambda p: p[0]),
        program(nnx, lambda p: kinds.get(p, "batch_stats" if p[-1] in _STATS else "params")),
    )


_STATS = ("mean", "var")


def _tried(programs: tuple[Program, Program]) -> list[_Both]:
    """The graphs of both; with all loops unrolled, too, if there are any that can be."""
    out = []
    for unroll in (False, True) if any(p.loops() for p in programs) else (False,):
        numbers = Numbers()
        with contextlib.suppress(Uneven):
            out.append(
                (
                    read(programs[0], numbers, unroll=unroll),
                    read(programs[1], numbers, unroll=unroll),
                )
            )
    return out


def _aligned(views: tuple[Coarse, Coarse], colours: Colours) -> list[tuple[int, int]]:
    """Operations of the finer graphs that correspond."""
    every = [range(len(v.origin)) for v in views]
    return [
        (views[0].origin[a[0]], views[1].origin[b[0]])
        for a, b in colours.classes(every).values()
        if len(a) == len(b) == 1 and views[0].origin[a[0]] >= 0 and views[1].origin[b[0]] >= 0
    ]


def _proof(
    both: _Both, made: list[Pairing], lost: list[Path], *, same: bool = False,
    ties: Sequence[str] = (), parted: str = "",
) -> Proof:  # fmt: skip
    """The proof, with the leaves that outputs do not depend on."""
    warnings = []
    if lost:
        warnings.append(
            "the data flow shows where these leaves belong, but no transforms are known for it: "
            + ", ".join(map(format_path, lost))
        )
    if made:
        rest = _excluded(both, made)
        made = sorted([*made, *rest], key=lambda p: natural(p.sources[0]))
        unproven = tuple(p.sources[0] for p in rest)
    else:
        unproven = ()
    return Proof("dataflow", tuple(made), same=same, ties=tuple(ties), unproven=unproven,
                 warnings=tuple(warnings), parted=parted)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Left:
    path: Path
    shape: tuple[int, ...]
    kind: str


def _excluded(both: _Both, made: Sequence[Pairing]) -> list[Pairing]:
    """Leaves that no output depends on, where all others of their module are paired."""
    left: list[list[_Left]] = []
    for traced in both:
        used = traced.used()
        left.append([_Left(p, traced.shapes[n], traced.kinds[n])
                     for n, p in enumerate(traced.leaves) if n not in used])  # fmt: skip
    homes = {(p.sources[0][1:-1], p.slots[0][:-1]) for p in made
             if len(p.sources) == len(p.slots) == 1}  # fmt: skip
    out = []
    for leaf in left[0]:
        near = [s for s in left[1] if (leaf.path[1:-1], s.path[:-1]) in homes and _alike(leaf, s)]
        others = [x for s in near for x in left[0]
                  if (x.path[1:-1], s.path[:-1]) in homes and _alike(x, s)]  # fmt: skip
        if len(near) == len(others) == 1:
            out.append(Pairing((leaf.path,), (near[0].path,)))
    return out


def _alike(leaf: _Left, slot: _Left) -> bool:
    return leaf.shape == slot.shape and leaf.kind == slot.kind
