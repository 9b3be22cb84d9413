"""Aligns an old optax state with the state of an ``nnx.Optimizer``.

An optax state holds arrays for each parameter (``mu``, ``nu``, ``trace``, accumulated gradients)
under the parameter's own path, and a few scalars (``count``). Both sides are cut the same way:
*head* (where in the state) and parameter path. Heads are paired; below them, everything follows
the mapping that was made for params, transforms included (LAYERS.md section 2.1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bridge._plan import Problem, Step
from bridge.draft import Draft
from bridge.errors import TransformError
from bridge.target import Slot, SlotPath, SlotRef
from bridge.transforms import Cast, Transform
from legacy import LeafPath, format_path

__all__ = ["Mapped", "align", "cut", "for_moments", "moment_order", "pair_heads"]

T = TypeVar("T")

# What a field of an optimizer state is to its parameter: 1 moves like a gradient, 2 like its
# square, 0 like the parameter itself. Decides what a scale or a pad does to it.
MOMENT_ORDER: Mapping[str, int] = {
    "mu": 1, "trace": 1, "m": 1, "m1": 1, "m2": 1, "ema": 1, "exp_avg": 1, "acc_grads": 1,
    "grad_acc": 1, "grad_sum": 1, "grad_ema": 1, "previous_gradient": 1, "prev_updates": 1,
    "nu": 2, "nu_max": 2, "v": 2, "sum_of_squares": 2, "exp_avg_sq": 2, "grad_sq_ema": 2,
    "params0": 0, "x0": 0, "z": 0, "init_params": 0, "slow": 0, "cache": 0,
}  # fmt: skip


@dataclass(slots=True)
class Mapped:
    """What became of the params of one state, for everything that follows them.

    Attributes:
        sources: full path of each parameter leaf by its path below params.
        steps: the steps made for params.
        ignored: rule by path below params.
        rel: path below params by full path.
        slot_paths: path of each params slot in its item, without the item's prefix.
    """

    sources: dict[LeafPath, LeafPath] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    ignored: dict[LeafPath, str] = field(default_factory=dict)
    rel: dict[LeafPath, LeafPath] = field(default_factory=dict)
    slot_paths: dict[SlotRef, SlotPath] = field(default_factory=dict)
    initialised: dict[SlotRef, str] = field(default_factory=dict)

    def stepped(self) -> set[LeafPath]:
        """Paths below params that some step reads."""
        return {self.rel[p] for s in self.steps for p in s.sources}


def cut(
    path: tuple[str, ...], names: Iterable[tuple[str, ...]], wrapper: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Split a path of an optimizer state into head and parameter path.

    Args:
        path: below the optimizer state.
        names: parameter paths (a set or dict, looked up).
        wrapper: what lies between the head and the params collection (``('params',)`` when the
            optimizer was made for ``{'params': ...}``); not part of the head.

    Returns:
        ``(head, parameter path)``, the longest parameter path first; None when no suffix is one.

    >>> cut(("0", "mu", "Dense_0", "kernel"), {("Dense_0", "kernel")})
    (('0', 'mu'), ('Dense_0', 'kernel'))
    """
    for i in range(len(path)):
        if path[i:] in names:  # type: ignore[operator] # a set or dict; Iterable for readers
            head = path[:i]
            if wrapper and head[-len(wrapper) :] == wrapper:
                head = head[: -len(wrapper)]
            return head, path[i:]
    return None


def moment_order(head: tuple[str, ...]) -> int | None:
    """What the arrays under a head are to their parameters; None when the name does not say."""
    for part in reversed(head):
        if not part.isdigit():
            return MOMENT_ORDER.get(part)
    return None


def for_moments(
    transforms: Sequence[Transform], head: tuple[str, ...]
) -> tuple[Transform, ...]:
    """The transforms of a parameter, as they act on a moment of it.

    Raises:
        TransformError: the moment cannot follow, or its name does not say how.
    """
    order = moment_order(head)
    if order is not None:
        return tuple(t.for_moment(order) for t in transforms)
    ways = {tuple(t.for_moment(n) for t in transforms) for n in (0, 1, 2)}
    if len(ways) > 1:
        raise TransformError(
            f"the field {'/'.join(head)!r} of the optimizer state is not known to be a first or a "
            "second moment, so it cannot be told how it scales"
        )
    return ways.pop()


def align(
    draft: Draft,
    sources: Mapping[LeafPath, LeafPath],
    slots: Mapping[SlotPath, Slot],
    params: Mapped,
    wrapper: LeafPath,
) -> None:
    """Map an optimizer state onto the slots of an ``nnx.Optimizer``.

    Args:
        draft: gets the steps and problems.
        sources: full path by path below the optimizer state; leaves with data only.
        slots: slot by path below ``opt_state``.
        params: what became of the params.
        wrapper: see :func:`cut`.
    """
    ours, our_rest = _cut_all(sources, params.sources, wrapper)
    names = {path: ref for ref, path in params.slot_paths.items()}
    theirs, their_rest = _cut_all(slots, names, ())
    slot_of = {ref: path for path, ref in names.items()}
    heads = pair_heads(
        {h: frozenset(_images(params, v, slot_of)) for h, v in ours.items()},
        {h: frozenset(v) for h, v in theirs.items()},
    )
    for head, (other, why) in heads.items():
        _follow(draft, head, ours[head], theirs[other], params, why)
    _scalars(draft, our_rest, their_rest, {h[:-1]: o[:-1] for h, (o, _) in heads.items()})


def _cut_all(
    entries: Mapping[tuple[str, ...], T],
    names: Mapping[tuple[str, ...], object],
    wrapper: tuple[str, ...],
) -> tuple[dict[tuple[str, ...], dict[tuple[str, ...], T]], dict[tuple[str, ...], T]]:
    heads: dict[tuple[str, ...], dict[tuple[str, ...], T]] = defaultdict(dict)
    rest: dict[tuple[str, ...], T] = {}
    for path, entry in entries.items():
        found = cut(path, names, wrapper)
        if found is None:
            rest[path] = entry
        else:
            heads[found[0]][found[1]] = entry
    return dict(heads), rest


def _images(
    params: Mapped, below: Iterable[LeafPath], slot_of: Mapping[SlotRef, SlotPath]
) -> Iterable[SlotPath]:
    """The slot paths that a set of parameter paths maps onto."""
    here = set(below)
    for step in params.steps:
        if any(params.rel[p] in here for p in step.sources):
            yield from (slot_of[r] for r in step.slots if r in slot_of)


def pair_heads(
    ours: Mapping[tuple[str, ...], frozenset[tuple[str, ...]]],
    theirs: Mapping[tuple[str, ...], frozenset[tuple[str, ...]]],
) -> dict[tuple[str, ...], tuple[tuple[str, ...], str]]:
    """Pair heads by path, then by field name and the parameters that they cover.

    An older optax may have had an ``EmptyState`` more or fewer in the chain, so that ``0/mu``
    became ``1/0/mu``; the only ``mu`` over the same parameters is still the same one.

    Returns:
        ``{our head: (their head, why)}``.

    >>> p = frozenset({("k",)})
    >>> pair_heads({("0", "mu"): p}, {("1", "0", "mu"): p})
    {('0', 'mu'): (('1', '0', 'mu'), 'unique')}
    """
    pairs = {h: (h, "path") for h in ours if h in theirs}
    left = {h: s for h, s in ours.items() if h not in pairs}
    right = {h: s for h, s in theirs.items() if h not in pairs}
    for key in (
        lambda h, s: (tuple(p for p in h if not p.isdigit()), s),
        lambda h, s: (h[-1:], s),
    ):
        a = _only(left, key)
        b = _only(right, key)
        for k in a.keys() & b.keys():
            pairs[a[k]] = (b[k], "unique")
        left = {h: s for h, s in left.items() if h not in pairs}
        taken = {o for o, _ in pairs.values()}
        right = {h: s for h, s in right.items() if h not in taken}
    return pairs


def _only(
    heads: Mapping[tuple[str, ...], frozenset[tuple[str, ...]]],
    key: Callable[[tuple[str, ...], frozenset[tuple[str, ...]]], Hashable],
) -> dict[Hashable, tuple[str, ...]]:
    found: dict[Hashable, list[tuple[str, ...]]] = defaultdict(list)
    for head, covered in heads.items():
        found[key(head, covered)].append(head)
    return {k: v[0] for k, v in found.items() if len(v) == 1}


def _follow(
    draft: Draft,
    head: tuple[str, ...],
    ours: Mapping[LeafPath, LeafPath],
    theirs: Mapping[SlotPath, Slot],
    params: Mapped,
    why: str,
) -> None:
    """One head: each array goes where its parameter went."""
    for step in params.steps:
        sources = [ours.get(params.rel[p]) for p in step.sources]
        slots = [theirs.get(params.slot_paths[r]) for r in step.slots if r in params.slot_paths]
        found = [p for p in sources if p is not None]
        refs = [s.ref for s in slots if s is not None]
        if not found and not refs:
            continue
        if found and not _trainable(draft, step):
            # the parameter became a buffer, which no optimizer tracks
            for path in found:
                draft.ignore(path, "moments-of-a-buffer")
            continue
        if len(found) < len(sources) or len(refs) < len(step.slots):
            draft.used |= set(found)
            draft.filled |= set(refs)
            draft.problems.append(
                Problem(
                    "moments",
                    f"optimizer field {'/'.join(head)!r} holds {len(found)} of {len(sources)} "
                    f"source arrays for {len(refs)} of {len(step.slots)} slots of "
                    f"{format_path(step.sources[0])}: is the optimizer masked differently?",
                    tuple(found),
                    tuple(refs),
                )
            )
            continue
        _one_moment(draft, head, step, found, refs, why)
    for rel, rule in params.ignored.items():
        if rel in ours:
            draft.ignore(ours[rel], rule)
    open_refs = {s.ref for s in theirs.values() if draft.open_slot(s.ref)}
    for ref, rule in params.initialised.items():
        slot = theirs.get(params.slot_paths.get(ref, ("",)))
        if slot is not None and slot.ref in open_refs and moment_order(head) in (1, 2):
            draft.initialise(slot.ref, rule, "zeros")
    _attach(draft, ours, theirs, params)


def _one_moment(
    draft: Draft,
    head: tuple[str, ...],
    step: Step,
    found: Sequence[LeafPath],
    refs: Sequence[SlotRef],
    why: str,
) -> None:
    transforms = moment_transforms(draft, head, step, found, refs)
    if transforms is not None:
        draft.add(found, refs, transforms, step.why if why == "path" else why)


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
    try:
        if moving and not same:
            raise TransformError(
                "its arrays are not shaped like the parameters (factored or per-tensor state), "
                "so they cannot follow a transform"
            )
        return for_moments(moving, head)
    except TransformError as error:
        draft.used |= set(found)
        draft.filled |= set(refs)
        fresh = [
            f'[[init]]\nslot = "{format_path(r.path)}"\nitem = "{r.item}"\nvalue = "zeros"'
            for r in refs
        ]
        drop = [f'[[ignore]]\nsource = "{format_path(p)}"' for p in found]
        draft.problems.append(
            Problem(
                "moments",
                f"optimizer field {'/'.join(head)!r} of {format_path(step.sources[0])}: {error}",
                tuple(found),
                tuple(refs),
                rule="\n".join(drop + fresh),
            )
        )
        return None


def _trainable(draft: Draft, step: Step) -> bool:
    """Whether some slot of a step is a trainable parameter."""
    return any(draft.slots[r].collection == "params" for r in step.slots)


def _attach(
    draft: Draft,
    ours: Mapping[LeafPath, LeafPath],
    theirs: Mapping[SlotPath, Slot],
    params: Mapped,
) -> None:
    """Arrays of parameters that have a problem share it."""
    for rel, path in ours.items():
        if draft.open_source(path):
            draft.follow(params.sources[rel], path)
    fed = {r for s in params.steps for r in s.slots} | params.initialised.keys()
    for ref, slot_path in params.slot_paths.items():
        slot = theirs.get(slot_path)
        if slot is not None and draft.open_slot(slot.ref) and ref not in fed:
            draft.follow_slot(ref, slot.ref)


def _scalars(
    draft: Draft,
    ours: Mapping[LeafPath, LeafPath],
    theirs: Mapping[SlotPath, Slot],
    containers: Mapping[tuple[str, ...], tuple[str, ...]],
) -> None:
    """Counts and other values that belong to no parameter."""
    for path, full in ours.items():
        if not draft.open_source(full):
            continue
        moved = (*containers.get(path[:-1], path[:-1]), path[-1])
        slot = theirs.get(moved)
        if slot is not None and draft.open_slot(slot.ref):
            draft.add([full], [slot.ref], (), "path" if moved == path else "unique")
    left = {p: f for p, f in ours.items() if draft.open_source(f)}
    right = {p: s for p, s in theirs.items() if draft.open_slot(s.ref)}
    a = _only({p: frozenset() for p in left}, lambda p, _: p[-1])
    b = _only({p: frozenset() for p in right}, lambda p, _: p[-1])
    for name in a.keys() & b.keys():
        draft.add([left[a[name]]], [right[b[name]].ref], (), "unique")
