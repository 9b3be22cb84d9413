"""What happens to an optimizer's arrays when their parameter is moved or transformed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bridge._plan import Step
from bridge.draft import Draft
from bridge.errors import TransformError
from bridge.rule_text import ignore_rules, init_rule
from bridge.target import SlotPath, SlotRef
from bridge.transforms import Cast, Transform
from legacy import LeafPath, format_path

__all__ = ["Mapped", "anew", "for_moments", "moment_order", "moment_transforms"]

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


def moment_order(head: tuple[str, ...]) -> int | None:
    """What the arrays under a head are to their parameters; None when the name does not say."""
    return MOMENT_ORDER.get(_field(head))


def _field(head: tuple[str, ...]) -> str:
    return next((part for part in reversed(head) if not part.isdigit()), "")


def for_moments(transforms: Sequence[Transform], head: tuple[str, ...]) -> tuple[Transform, ...]:
    """The transforms of a parameter, as they act on a moment of it.

    Raises:
        TransformError: the moment cannot follow, or its name does not say how.
    """
    order = moment_order(head)
    updates = _field(head) in UPDATE_FIELDS
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


def moment_transforms(
    draft: Draft,
    head: tuple[str, ...],
    step: Step,
    found: Sequence[LeafPath],
    refs: Sequence[SlotRef] = (),
) -> tuple[Transform, ...] | None:
    """What a parameter's step does to the arrays under one head.

    Args:
        draft: gets the problem, if there is one.
        head: where in the optimizer state.
        step: the parameter's step.
        found: the arrays under the head, one for each source of the step.
        refs: their slots, for the problem.

    Returns:
        The transforms; None when the arrays cannot follow, which is then a problem.
    """
    # a cast of the parameter is no cast of its moments: their dtype has slots of its own
    moving = [t for t in step.transforms if not isinstance(t, Cast)]
    same = all(
        draft.table[a].shape == draft.table[p].shape
        for a, p in zip(found, step.sources, strict=True)
    )
    error: TransformError | str = (
        "its arrays are not shaped like the parameters (factored or per-tensor state), so they "
        "cannot follow a transform"
    )
    if same or not moving:
        try:
            return for_moments(moving, head)
        except TransformError as found_wrong:
            error = found_wrong
    draft.refuse(
        "moments",
        f"optimizer field {'/'.join(head)!r} of {format_path(step.sources[0])}: {error}",
        found,
        refs,
        anew(found, refs),
    )
    return None


def anew(sources: Sequence[LeafPath], refs: Iterable[SlotRef]) -> str:
    """Rules to paste: leave the arrays behind, and start their slots at zero."""
    return "\n\n".join([*([ignore_rules(sources)] if sources else []), *map(init_rule, refs)])
