"""The last word on a map: independent numbers in every leaf, through the plan's own transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from bridge.fingerprint_compare import Outputs
from bridge.fingerprint_pairs import pairings
from bridge.fingerprint_readings import Path
from bridge.fingerprint_run import Ran, Values
from bridge.fingerprint_state import State, settled
from bridge.fingerprint_values import role_of
from bridge.proof import Pairing
from bridge.transforms import apply_all
from legacy import format_path

__all__ = ["verified"]

Array: TypeAlias = np.ndarray[Any, Any]


def verified(
    state: State,
    outputs: Outputs,
    run: Callable[[tuple[Values, Values]], tuple[Ran, Ran]],
    same: float,
    tolerance: float,
) -> tuple[list[Pairing], bool, float, list[str], list[Path]]:
    """Make pairings and run both models under them.

    Args:
        state: what is matched.
        outputs: which outputs are compared.
        run: runs both models.
        same: relative difference of equal outputs.
        tolerance: relative difference of equal gradients.

    Returns:
        The pairings, whether they hold, how far outputs were apart, texts for the plan, and the
        leaves that a training step changes in another way than their slots.
    """
    made, lost = pairings(
        state.partners,
        {p: (s, state.ours[p][0]) for p, s in state.linen.items() if len(state.ours[p]) == 1},
        {p: (s, state.theirs[p][0]) for p, s in state.nnx.items() if len(state.theirs[p]) == 1},
    )
    texts = [f"{format_path(p)} was found in several slots, but not in a way that transforms can "
             "express." for p in lost]  # fmt: skip
    if not made:
        return [], False, 0.0, texts, []
    ours, theirs = state.values()
    fixed = settled(state.given, state.classes, "verify")
    ours |= fixed[0]
    theirs |= fixed[1]
    for pairing in made:
        arrays = []
        for path in pairing.sources:
            noise = state.given.rng("verify " + "\0".join(path), ours[path].size)
            flat = state.classes.styled(role_of(path), noise.size, noise, zero=False)
            arrays.append(_like(flat.reshape(ours[path].shape), ours[path]))
        ours |= dict(zip(pairing.sources, arrays, strict=True))
        theirs |= dict(zip(pairing.slots, apply_all(pairing.transforms, arrays), strict=True))
    a, b = run((ours, theirs))
    apart = outputs.apart(a, b)
    ok = apart <= 3 * same and np.isfinite(apart)
    floor = _floor(a, same)
    moved: list[Path] = []
    for pairing in made:
        ok = ok and _agree(pairing, a.grads, b.grads, tolerance, floor)
        for before, after in zip(a.updates, b.updates, strict=True):
            both = all(p in before for p in pairing.sources)
            both = both and all(p in after for p in pairing.slots)
            if both and not _agree(pairing, before, after, tolerance, 0.0):
                moved += pairing.sources
    return made, bool(ok), apart, texts, list(dict.fromkeys(moved))


def _floor(ran: Ran, same: float) -> float:
    return 1e-4 * same * max((float(np.linalg.norm(g)) for g in ran.grads.values()), default=0.0)


def _agree(pairing: Pairing, ours: Values, theirs: Values, tolerance: float, floor: float) -> bool:
    """Whether numbers of slots are those of the sources, moved as the pairing says."""
    moved = apply_all(pairing.transforms, [ours[p] for p in pairing.sources])
    for path, expected in zip(pairing.slots, moved, strict=True):
        norms = max(float(np.linalg.norm(expected)), float(np.linalg.norm(theirs[path])))
        if not np.isfinite(norms):
            return False
        if norms > floor and np.linalg.norm(expected - theirs[path]) > tolerance * norms + floor:
            return False
    return True


def _like(flat: Array, other: Array) -> Array:
    return flat.astype(np.complex128) * (1 - 0.5j) if np.iscomplexobj(other) else flat
