"""What of an optimizer state depends on the order of all parameters.

``optax.flatten`` keeps one vector over all parameters in the order of their names, and what draws
noise draws it in that order. Names that sort otherwise make the same vector mean other
parameters, and no shape shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod

from bridge.draft import Draft
from bridge.moments import MOMENT_ORDER, Mapped
from bridge.rule_text import ignore_rules
from bridge.transforms import Blocks, Transform
from legacy import LeafPath, format_path
from legacy.leaves import natural_key

__all__ = ["flat_vectors", "noise"]


def flat_vectors(
    draft: Draft, rest: Mapping[LeafPath, LeafPath], params: Mapped
) -> dict[LeafPath, tuple[Transform, ...]]:
    """The transforms that put the blocks of flat vectors into the order of the new names.

    Args:
        draft: gets a problem for vectors whose blocks are not known.
        rest: what belongs to no parameter: full path by path below the optimizer state.
        params: what became of the params.

    Returns:
        Transforms by full path.
    """
    total = sum(prod(draft.table[p].shape) for p in params.sources.values())
    flat = [p for r, p in rest.items() if draft.open_source(p) and _is_flat(draft, rest, r, total)]
    if not flat or len(params.sources) == 1:
        return {}
    order = _order(draft, params)
    full = [p for p in flat if draft.table[p].shape == (total,)]
    if order is not None and (list(order) == sorted(order) or full == flat):
        if list(order) == sorted(order):
            return {}
        old = sorted(params.sources)
        sizes = tuple(prod(draft.table[params.sources[rel]].shape) for rel in old)
        return {p: (Blocks(0, sizes, order),) for p in flat}
    draft.refuse(
        "moments",
        f"{format_path(flat[0])} is one vector over all {total} numbers of the parameters "
        "(optax.flatten), in the order of their old names, which is not that of the new names, "
        "and where each parameter lies in it cannot be told",
        flat,
        rule=ignore_rules(flat),
    )
    return {}


def _is_flat(draft: Draft, rest: Mapping[LeafPath, LeafPath], rel: LeafPath, total: int) -> bool:
    shape = draft.table[rest[rel]].shape
    if len(shape) != 1 or shape == (1,):
        return False
    # below a mask a vector is shorter than all parameters; `mechanize` has short ones of its own
    tuner = all((*rel[:-1], name) in rest for name in ("r", "m", "v", "s"))
    # of a parameter of another model; but the name after `inner_states` is a label
    nested = any(
        part in MOMENT_ORDER and before != "inner_states"
        for before, part in pairwise(("", *rel[:-1]))
    )
    return shape == (total,) or (rel[-1] in MOMENT_ORDER and not tuner and not nested)


def _order(draft: Draft, params: Mapped) -> tuple[int, ...] | None:
    """Which old parameter each new one is, both in the order of names; None when not one to one."""
    whole = all(len(s.sources) == len(s.slots) == 1 and not s.transforms for s in params.steps)
    old = sorted(params.sources)
    if not whole or len(params.steps) != len(old) or old != sorted(old, key=natural_key):
        return None
    if params.initialised:
        return None
    source = {s.slots[0]: params.rel[s.sources[0]] for s in params.steps}
    trained = [
        r
        for r in params.slot_paths
        if r not in draft.slots or draft.slots[r].collection == "params"
    ]
    ours = {params.slot_paths[r]: source[r] for r in trained if r in source}
    if not len(ours) == len(trained) == len(old):
        return None
    paths, letters = list(ours), sorted(ours)
    numbers = sorted(ours, key=natural_key)
    # nnx.State has names by letters and positions by number, and so has the target if it is one
    if letters != numbers and paths not in (letters, numbers):
        return None
    return tuple(old.index(ours[p]) for p in (letters if letters == numbers else paths))


def noise(draft: Draft, rest: Mapping[LeafPath, LeafPath], params: Mapped) -> None:
    """Say when noise is drawn for the parameters in another order from now on."""
    keys = [p for p in rest.values() if draft.table[p].kind == "key" or p[-1] == "rng_key"]
    order = _order(draft, params)
    if keys and (order is None or list(order) != sorted(order)):
        draft.notes.append(
            f"{format_path(keys[0])}: the optimizer draws noise parameter by parameter in the "
            "order of their names, which is another one now: other numbers of the same "
            "distribution than the old run would have drawn"
        )
