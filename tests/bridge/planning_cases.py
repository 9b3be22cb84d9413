"""Checkpoints and targets made by hand, whose arrays must not be read; what must always hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

import bridge
from bridge import Plan, Slot, Target
from legacy import Checkpoint, Format, Leaf, LeafTable, parse_path


def unread(_):
    raise AssertionError("a plan must not read arrays")


def leaf(path, shape=(), dtype="float32", kind="array", **more):
    path = parse_path(path) if isinstance(path, str) else path
    if kind in ("none", "empty", "str", "bytes", "number", "bool"):
        return Leaf(path, kind, reader=unread, **more)
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    return Leaf(path, kind, tuple(shape), dtype, size, reader=unread, **more)


def tree(prefix, shapes, dtype="float32"):
    """Leaves of these shapes below a prefix."""
    return [leaf((*parse_path(prefix), *parse_path(p)), s, dtype) for p, s in shapes.items()]


def checkpoint(*leaves, items=None):
    tables = items or {"default": LeafTable(leaves)}
    return Checkpoint(Path("/nowhere"), Format("flax-msgpack", "msgpack", "any"), 1, tables)


def slot(path, shape=(), dtype="float32", kind="Param", collection="params", item="model", **more):
    path = parse_path(path) if isinstance(path, str) else path
    return Slot(item, path, (*path, "value"), kind, collection, tuple(shape), dtype, **more)


def target(shapes, item="model", **more):
    return Target(tuple(slot(p, s, item=item, **more) for p, s in shapes.items()))


def opt_slots(fields, shapes, item="optimizer", scalars=("0/count",), step=True):
    """The slots of an ``nnx.Optimizer``: fields such as ``0/mu`` over these parameters."""
    found = [
        slot(f"opt_state/{f}/{p}", s, kind="OptVariable", collection="opt_state", item=item)
        for f in fields
        for p, s in shapes.items()
    ]
    found += [
        slot(f"opt_state/{c}", (), "int32", kind="OptArray", collection="opt_state", item=item)
        for c in scalars
    ]
    if step:
        found.append(slot("step", (), "uint32", "OptState", "opt_state", item))
    return tuple(found)


def check(plan: Plan, source: Checkpoint) -> Plan:
    """Every leaf and every slot has exactly one account, and the stored form says the same."""
    mapped = {p for s in plan.steps for p in s.sources}
    ignored = [i.path for i in plan.ignored]
    stuck = [p for problem in plan.problems for p in dict.fromkeys(problem.sources)]
    accounts = Counter([*mapped, *ignored, *set(stuck)])
    assert set(accounts) == set(source.leaves)
    assert not [p for p, n in accounts.items() if n != 1]
    filled = [r for s in plan.steps for r in s.slots]
    fresh = [i.slot for i in plan.initialised]
    open_slots = {r for problem in plan.problems for r in problem.slots}
    slots = Counter([*filled, *fresh, *open_slots])
    assert set(slots) == {s.ref for s in plan.target.slots}
    assert not [r for r, n in slots.items() if n != 1]
    for step in plan.steps:
        assert step.why in ("path", "unique") or step.why.startswith("rule:"), step
    assert Plan.from_json(plan.to_json()) == plan
    assert str(plan)
    return plan


def make(source, **more) -> Plan:
    """Plan, check, and return the plan."""
    return check(bridge.plan(source, **more), source)


def went(plan, item="model"):
    """Slot by source, as text, for one item."""
    return {
        "/".join(p): "/".join(r.path)
        for s in plan.steps
        for p in s.sources
        for r in s.slots
        if r.item == item
    }


def whys(plan):
    return {"/".join(s.sources[0]): s.why for s in plan.steps}


def kinds(plan):
    return sorted(p.kind for p in plan.problems)


def pasted(plan):
    """The rules of all problems, each once, as a user would paste them."""
    return bridge.Rules.from_toml(
        "\n\n".join(dict.fromkeys(r for p in plan.problems for r in p.rule.split("\n\n") if r))
    )
