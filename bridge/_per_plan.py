"""What depends on a plan alone is computed once for all steps of a run, which share one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bridge._plan import Plan
from bridge.target import Slot, SlotRef

__all__ = ["per_plan", "slots_of"]

T = TypeVar("T")


def per_plan(compute: Callable[..., T]) -> Callable[..., T]:
    """Keep what a function gave for the plan that was used last.

    Args:
        compute: from a plan, and plain values, to what depends on nothing else. Its result is
            shared and must not be changed.

    Returns:
        The function that computes it for another plan only.

    >>> counted = per_plan(lambda plan: object())
    >>> plan = object()
    >>> counted(plan) is counted(plan)
    True
    """
    last: list[tuple[Plan, tuple[Any, ...], T]] = []

    @functools.wraps(compute)
    def of(plan: Plan, *args: Any) -> T:
        for known, told, found in last[:]:  # a copy: other threads convert other runs
            if known is plan and told == args:  # a plan is a value; comparing two takes long
                return found
        found = compute(plan, *args)
        last[:] = [(plan, args, found)]
        return found

    return of


@per_plan
def slots_of(plan: Plan) -> Mapping[SlotRef, Slot]:
    """The slots of the plan's target by name."""
    return {slot.ref: slot for slot in plan.target.slots}
