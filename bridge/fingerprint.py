"""Finds which parameter of a Linen model is which of an NNX model by running both.

Names play no part, except to choose between parameters that no input can tell apart. Both models
get the same numbers in all leaves of one class, so they compute the same function whatever the
map is; equal outputs show that the architectures agree before there is a map. Leaves whose
gradients are the same numbers then belong together; they get numbers of their own, which tells
more leaves apart, and so on. In the end every leaf gets numbers of its own, the slots get them
through the transforms that a plan would use, and only equal outputs and gradients count as proof.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bridge.fingerprint_lift import is_float
from bridge.fingerprint_readings import Path
from bridge.fingerprint_run import Runner, Unrunnable, inputs_of
from bridge.fingerprint_search import Given, Search
from bridge.fingerprint_values import randoms
from bridge.probes import Model, unlike
from bridge.proof import Pairing, Proof
from bridge.target import SlotPath

__all__ = ["fingerprint"]

_MOST_BYTES = 2e9
_MOST_WAYS = 6
_MOST_WORK = 1e11
"""Floating point operations of one forward pass; a run takes about three times as many."""


def fingerprint(
    linen: Model,
    nnx: Model,
    kinds: Mapping[SlotPath, str],
    *,
    fixed: Sequence[Pairing] = (),
    hints: Sequence[Pairing] = (),
    initial: Mapping[SlotPath, Any] | None = None,
    seed: int = 0,
) -> Proof:
    """Pair the leaves of two models by what they do.

    Args:
        linen: the Linen model; its specs are what the checkpoint holds.
        nnx: the NNX model.
        kinds: what each slot is: ``params``, ``batch_stats`` or another word for a Variable that
            is no parameter. Such a slot may be fed by a leaf, or be a constant that none feeds.
        fixed: pairings that are settled; they are taken as true and are not in the result.
        hints: pairings by name; they only choose between what cannot be told apart.
        initial: the arrays that rules put into slots; no leaf is paired with those.
        seed: for the random numbers; the same seed gives the same result.

    Returns:
        What was found. ``pairings`` may be believed when ``verified``.
    """
    start = {p: _wide(x) for p, x in (initial or {}).items() if p in nnx.specs}
    big = 4 * sum(_bytes(m) for m in (linen, nnx)) / 2
    if big > _MOST_BYTES:
        return Proof("fingerprint", warnings=(_too_big(f"{big / 1e9:.1f} GB of numbers"),))
    rng = randoms(seed)
    inputs = [
        [inputs_of(a, b, rng) for a, b in zip(one.calls, other.calls, strict=True)]
        for one, other in ((linen, nnx), (nnx, linen))
    ]
    ours = Runner(linen, inputs[0])
    best: Proof | None = None
    for constant in _constants(linen, nnx, kinds, (*fixed, Pairing((), tuple(start)))):
        theirs = Runner(nnx, inputs[1], constant, ours.wide)
        if ours.wide and not theirs.wide:  # constants are to be rounded in both or in none
            ours = Runner(linen, inputs[0], wide=False)
        reason = unlike(linen, nnx)
        if reason:
            return Proof("fingerprint", warnings=(reason,))
        work = max(ours.work, theirs.work)
        if work > _MOST_WORK:
            return Proof("fingerprint", warnings=(_too_big(f"{work:.0e} operations a call"),))
        given = Given(ours, theirs, kinds, tuple(fixed), tuple(hints), start, rng)
        try:
            proof = Search(given, _compile).proof()
        except Unrunnable as error:
            text = f"the models cannot be run for fingerprints: {str(error).splitlines()[0]}"
            return Proof("fingerprint", warnings=(text,))
        if proof.verified and proof.same:
            return proof
        if best is None or _rank(proof) > _rank(best):
            best = proof
    assert best is not None  # noqa: S101 - there is always one way to choose constants
    return best


def _rank(proof: Proof) -> tuple[bool, bool, int, float]:
    return proof.verified, proof.same, len(proof.pairings), -proof.apart


def _wide(x: Any) -> np.ndarray[Any, Any]:
    """An array as the models get it: floats in float64, which is what they are run in."""
    array = np.asarray(x)
    if is_float(array.dtype):
        return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    return array


def _compile(jobs: Sequence[tuple[Runner, Any, Any]]) -> None:
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(lambda job: job[0].compile(job[1], job[2]), jobs))


def _bytes(model: Model) -> float:
    return float(sum(s.size * s.dtype.itemsize for s in model.specs.values()))


def _too_big(what: str) -> str:
    return f"the models are too big to run for fingerprints here ({what}); data flow is compared."


def _constants(
    linen: Model, nnx: Model, kinds: Mapping[SlotPath, str], fixed: Sequence[Pairing]
) -> list[frozenset[Path]]:
    """Which slots may be constants of the model that no leaf feeds, the likeliest choice first."""
    settled = {p for pairing in fixed for p in pairing.slots}
    used = {p for pairing in fixed for p in pairing.sources}
    odd = [p for p in nnx.specs if kinds.get(p, "params") not in ("params", "batch_stats")
           and p not in settled]  # fmt: skip
    have = Counter(_sort(s) for p, s in linen.specs.items() if p not in used)
    slots = Counter(_sort(s) for p, s in nnx.specs.items() if p not in settled)
    sorts = {p: _sort(nnx.specs[p]) for p in odd}
    alone = frozenset(p for p in odd if not have[sorts[p]])
    more = frozenset(p for p in odd if slots[sorts[p]] > have[sorts[p]])
    # of several Variables of one size, some may be constants and some not
    ways = []
    for sort in sorted(set(sorts.values())):
        ones = [p for p in odd if sorts[p] == sort]
        extra = slots[sort] - have[sort]
        if have[sort] and 0 < extra < len(ones):
            ways.append([frozenset(c) for c in itertools.combinations(ones, extra)])
    some = [alone.union(*c) for c in itertools.islice(itertools.product(*ways), _MOST_WAYS)]
    return list(dict.fromkeys([*(some if ways else [more]), alone, frozenset(odd), frozenset()]))


def _sort(spec: Any) -> tuple[bool, int]:
    return is_float(spec.dtype), spec.size
