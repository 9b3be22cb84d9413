"""What happens to an optimizer's arrays when their parameter is moved or transformed."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge._plan import Step
from bridge.draft import Draft
from bridge.errors import TransformError
from bridge.factored import FACTORED, Axes, factored_way, per_axis_way
from bridge.names import is_index
from bridge.optimizer_heads import Path, container
from bridge.rule_text import ignore_rules, init_rule
from bridge.target import SlotPath, SlotRef
from bridge.transforms import Cast, Copy, Permute, Reshape, Scale, Transform, Transpose
from legacy import LeafPath

__all__ = ["Mapped", "Way", "anew", "for_moments", "moment_order", "way"]

# What a field of an optimizer state is to its parameter: 1 moves like a gradient, 2 like its
# square, 0 like the parameter itself. Decides what a scale or a pad does to it.
MOMENT_ORDER: Mapping[str, int] = {
    "mu": 1, "trace": 1, "m": 1, "m1": 1, "m2": 1, "ema": 1, "exp_avg": 1, "acc_grads": 1,
    "grad_acc": 1, "grad_sum": 1, "grad_ema": 1, "previous_gradient": 1, "prev_updates": 1,
    "nu": 2, "nu_max": 2, "v": 2, "v_row": 2, "v_col": 2, "sum_of_squares": 2, "exp_avg_sq": 2,
    "grad_sq_ema": 2,
    "params0": 0, "x0": 0, "z": 0, "init_params": 0, "slow": 0, "cache": 0,
}  # fmt: skip

# Fields that hold updates: raw gradients in plain momentum, but after Adam or RMSProp in the chain
# they are normalised, and then a scale of the parameter leaves them alone. The file cannot tell.
UPDATE_FIELDS = frozenset({"trace", "ema", "grad_acc", "prev_updates"})

# Transforms that only move the elements of one array: what is known of it as a whole still holds.
_MOVES = (Transpose, Reshape, Permute, Copy)


@dataclass(slots=True)
class Mapped:
    """What became of the params of one state, for everything that follows them.

    Attributes:
        sources: full path of each parameter leaf by its path below params.
        steps: the steps made for params.
        ignored: rule by path below params.
        rel: path below params by full path.
        slot_paths: path of each params slot in its item, without the item's prefix.
        initialised: rule by slot, for slots that a rule fills.
    """

    sources: dict[LeafPath, LeafPath] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    ignored: dict[LeafPath, str] = field(default_factory=dict)
    rel: dict[LeafPath, LeafPath] = field(default_factory=dict)
    slot_paths: dict[SlotRef, SlotPath] = field(default_factory=dict)
    initialised: dict[SlotRef, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Way:
    """How the arrays of one field follow a step of the parameters.

    Attributes:
        sources: the arrays that feed the slots of this field; of another field where a transpose
            exchanges rows and columns.
        transforms: what is done to them.
        placeholder: the arrays are zeros that nothing reads: leave them, and start with zeros.
    """

    sources: tuple[LeafPath, ...]
    transforms: tuple[Transform, ...] = ()
    placeholder: bool = False


def moment_order(head: tuple[str, ...]) -> int | None:
    """What the arrays under a head are to their parameters; None when the name does not say."""
    return MOMENT_ORDER.get(_field(head))


def _field(head: tuple[str, ...]) -> str:
    return next((part for part in reversed(head) if not is_index(part)), "")


def for_moments(
    transforms: Sequence[Transform], head: tuple[str, ...], *, updates: bool = False
) -> tuple[Transform, ...]:
    """The transforms of a parameter, as they act on a moment of it.

    Args:
        transforms: of the parameter.
        head: where in the optimizer state.
        updates: whether the state is known to keep updates under this name.

    Raises:
        TransformError: the moment cannot follow, or its name does not say how.
    """
    order = moment_order(head)
    updates = updates or _field(head) in UPDATE_FIELDS
    if order is not None and not updates:
        return tuple(t.for_moment(order) for t in transforms)
    orders = (1, 2) if updates else (0, 1, 2)
    ways = {tuple(t.for_moment(n) for t in transforms) for n in orders}
    if len(ways) > 1:
        raise TransformError(
            f"the field {'/'.join(head)!r} of the optimizer state is not known to be a first or a "
            "second moment, so it cannot be told how it scales"
        )
    return ways.pop()


def way(
    draft: Draft,
    heads: Mapping[Path, Mapping[LeafPath, LeafPath]],
    head: Path,
    step: Step,
    params: Mapped,
) -> Way:
    """What a parameter's step does to the arrays under one head.

    Args:
        draft: for shapes; nothing is added to it.
        heads: all arrays of the state, by head and parameter path.
        head: the field that is to follow.
        step: the parameter's step.
        params: what became of the params.

    Raises:
        TransformError: the arrays cannot follow; the text says why.
    """
    # a cast of the parameter is no cast of its moments: their dtype has slots of its own
    moving = [t for t in step.transforms if not isinstance(t, Cast | Copy)]
    rels = [params.rel[p] for p in step.sources]
    found = tuple(heads[head][r] for r in rels)
    if not moving:
        return Way(found)
    shapes = [draft.table[p].shape for p in step.sources]
    home = container(head)
    siblings = {h[len(home) :]: below for h, below in heads.items() if container(h) == home}
    if any("projector" in key for h in heads for key in h):
        raise TransformError(
            "the optimizer keeps its moments in a projection of the parameter (galore)"
        )
    axes = Axes.of(shapes, step.transforms)
    if is_index(head[-1]) and len(head) - len(home) == 2:  # noqa: PLR2004 - a name and a position
        position = per_axis_way(axes, int(head[-1]), len(shapes[0]))
        return Way(tuple(heads[(*head[:-1], str(position))][r] for r in rels))
    kept = {
        name: [draft.table[siblings[name,][r]].shape for r in rels]
        for name in FACTORED
        if (name,) in siblings and all(r in siblings[name,] for r in rels)
    }
    if len(kept) == len(FACTORED) and head[-1] in kept:
        name, transforms = factored_way(head[-1], shapes, kept, axes, moving)
        if not name:
            return Way(found, placeholder=True)
        order = tuple(t.for_moment(2) for t in transforms)
        return Way(tuple(siblings[name,][r] for r in rels), order)
    own = [draft.table[p].shape for p in found]
    if own == shapes:
        return Way(found, for_moments(moving, head, updates=_of_updates(draft, siblings, head)))
    alone = len(found) == 1 == len(step.slots)
    if alone and own == [()] and all(isinstance(t, (*_MOVES, Scale)) for t in moving):
        scales = [t for t in moving if isinstance(t, Scale)]
        return Way(found, for_moments(scales, head))
    raise TransformError(
        "its arrays are not shaped like the parameters (factored or per-tensor state), so they "
        "cannot follow a transform"
    )


def _of_updates(
    draft: Draft, siblings: Mapping[Path, Mapping[LeafPath, LeafPath]], head: Path
) -> bool:
    """Whether a field named like a moment holds updates: ``sm3`` and ``novograd`` do that."""
    if head[-1] == "nu":
        return ("mu", "0") in siblings
    if head[-1] != "mu" or ("nu",) not in siblings:
        return False
    norms, moments = _Same(siblings["nu",]), _Same(siblings["mu",])
    table = _Same(draft.table)
    return _shapes(table, norms)[0] and _shapes(table, moments)[1]


class _Same:
    """A key of a cache: one object, and no other that is equal to it."""

    __slots__ = ("it",)

    def __init__(self, it: Any) -> None:
        self.it = it

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.it is other.it


@functools.lru_cache(maxsize=2)
def _shapes(table: _Same, below: _Same) -> tuple[bool, bool]:
    """Whether some array of a field is a scalar, and whether some is none; once for each field."""
    scalars = [table.it[path].shape == () for path in below.it.values()]
    return any(scalars), not all(scalars)


def anew(sources: Sequence[LeafPath], refs: Iterable[SlotRef]) -> str:
    """Rules to paste: leave the arrays behind, and start their slots at zero."""
    return "\n\n".join([*([ignore_rules(sources)] if sources else []), *map(init_rule, refs)])
