"""The working sheet on which a plan is drawn up.

Stages add steps, ignored leaves and initialised slots to it; it checks each step against shapes
and dtypes at once, keeps count of what is still open, and turns whatever is left at the end into
problems. Nothing can be dropped on the way: a leaf is mapped, ignored by a named rule, or in a
problem, and a slot likewise.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeVar

from bridge._plan import Ignored, Initialised, Problem, Step
from bridge.errors import TransformError
from bridge.rules import CastRule, Rules
from bridge.target import Empty, Slot, SlotRef
from bridge.transforms import Cast, Spec, Transform, infer_all
from legacy import Leaf, LeafPath, LeafTable, format_path

__all__ = ["JSON_TYPE", "Draft", "init_rule", "quoted", "reshaping", "spec_of"]

T = TypeVar("T")

JSON_TYPE = "Json"
"""Variable type of slots that are values of the JSON item, not arrays."""

NO_ARRAYS = frozenset({"none", "empty", "str", "bytes"})


def spec_of(leaf: Leaf) -> Spec:
    """Shape and dtype of a leaf as transforms see it.

    A Python number counts as the integer it nearly always is (a step); a plan reads no values, so
    a float is only found out when the plan is carried out, and refused there.
    """
    if leaf.dtype is not None:
        return Spec(leaf.shape, leaf.dtype.name)
    return Spec(leaf.shape, "bool" if leaf.kind == "bool" else "int64")


class Draft:
    """A plan in the making.

    Args:
        table: the source leaves.
        slots: the target's slots, so far.
        rules: the user's rules, for the casts that they allow.
    """

    def __init__(self, table: LeafTable, slots: Iterable[Slot], rules: Rules) -> None:
        self.table = table
        self.slots: dict[SlotRef, Slot] = {s.ref: s for s in slots}
        self.casts = [r for r in rules.rules if isinstance(r, CastRule)]
        self.cast_used: set[str] = set()
        self.steps: list[Step] = []
        self.ignored: dict[LeafPath, str] = {}
        self.initialised: dict[SlotRef, Initialised] = {}
        self.problems: list[Problem] = []
        self.empties: list[Empty] = []
        self.used: set[LeafPath] = set()
        # items that a leaf feeds: an EMA model may share the batch statistics of the model
        self.fed: dict[LeafPath, set[str]] = defaultdict(set)
        self.filled: dict[SlotRef, str] = {}
        # what shares the fate of a parameter: its moments and copies, and their slots
        self.followers: dict[LeafPath, list[LeafPath]] = defaultdict(list)
        self.slot_followers: dict[SlotRef, list[SlotRef]] = defaultdict(list)

    def open_source(self, path: LeafPath) -> bool:
        """Whether a leaf has not been settled yet."""
        return path not in self.used and path not in self.ignored

    def open_slot(self, ref: SlotRef) -> bool:
        """Whether a slot has not been settled yet."""
        return ref not in self.filled and ref not in self.initialised

    def ignore(self, path: LeafPath, rule: str) -> None:
        """Leave a leaf behind by a named rule."""
        self.ignored[path] = rule

    def initialise(self, ref: SlotRef, rule: str, how: str) -> None:
        """Fill a slot by a named rule."""
        if 0 in self.slots[ref].shape:
            self.refuse("shape", _unsavable(self.slots[ref]), (), [ref])
        else:
            self.initialised[ref] = Initialised(ref, rule, how)

    def infer(
        self, sources: Sequence[LeafPath], transforms: Sequence[Transform]
    ) -> tuple[Spec, ...]:
        """Shapes and dtypes that a step would give.

        Raises:
            TransformError: the transforms do not fit.
        """
        return infer_all(transforms, tuple(spec_of(self.table[p]) for p in sources))

    def add(
        self,
        sources: Sequence[LeafPath],
        refs: Sequence[SlotRef],
        transforms: Sequence[Transform],
        why: str,
    ) -> Step | None:
        """Record a step, or the problem that keeps it from being one.

        Returns:
            The step, or None when it does not fit; then a problem holds its leaves and slots.
        """
        self.used |= set(sources)
        for path in sources:
            self.fed[path] |= {r.item for r in refs}
        taken = [r for r in refs if not self.open_slot(r)]
        for ref in taken[:1]:
            other = self.filled.get(ref)
            by = f"rule:{self.initialised[ref].rule}" if other is None else other
            self.refuse(
                "rule",
                f"slot {ref} is fed twice: by {by}, and by {why} from {self._names(sources)}. "
                "Remove or narrow one of the two",
                sources,
                refs,
            )
        self.filled |= {r: why for r in refs if r not in taken}
        if taken:
            return None
        barren = [r for r in refs if 0 in self.slots[r].shape]
        if barren:
            rule = "\n".join(f"[[ignore]]\nsource = {quoted(p)}" for p in sources)
            self.refuse("shape", _unsavable(self.slots[barren[0]]), sources, refs, rule)
            return None
        wrong = [p for p in sources if self.table[p].kind in NO_ARRAYS]
        if wrong:
            kind = self.table[wrong[0]].kind
            self.refuse("dtype", f"{format_path(wrong[0])} is {kind!r} and no array", sources, refs)
            return None
        try:
            specs = self.infer(sources, transforms)
        except TransformError as error:
            self.refuse("shape", f"{self._names(sources)}: {error}", sources, refs)
            return None
        slots = [self.slots[r] for r in refs]
        if len(specs) != len(slots):
            self.refuse(
                "rule",
                f"{self._names(sources)} gives {len(specs)} array(s) for {len(slots)} slot(s)",
                sources,
                refs,
            )
            return None
        for spec, slot in zip(specs, slots, strict=True):
            if spec.shape != slot.shape:
                self.refuse(
                    "shape",
                    f"{self._names(sources)} gives shape {list(spec.shape)}, "
                    f"slot {slot.ref} has {list(slot.shape)}",
                    sources,
                    refs,
                    _shape_rule(sources, slot, spec),
                )
                return None
        extra = self._cast(specs, slots)
        if extra is None:
            spec, slot = next(
                (a, b) for a, b in zip(specs, slots, strict=True) if a.dtype != b.dtype
            )
            self.refuse(
                "dtype",
                f"{self._names(sources)} has dtype {spec.dtype}, slot {slot.ref} has {slot.dtype}",
                sources,
                refs,
                f"[[cast]]\nslot = {quoted(slot.path)}\n"
                f'item = {quoted((slot.item,))}\ndtype = "{slot.dtype}"',
            )
            return None
        step = Step(tuple(sources), tuple(refs), (*transforms, *extra), why)
        self.steps.append(step)
        return step

    def add_json(self, path: LeafPath, slot: Slot, why: str) -> None:
        """Carry a plain value into the JSON item: no shape, no dtype, nothing to check."""
        self.slots[slot.ref] = slot
        self.used.add(path)
        self.filled[slot.ref] = why
        self.steps.append(Step((path,), (slot.ref,), (), why))

    def _cast(self, specs: Sequence[Spec], slots: Sequence[Slot]) -> tuple[Transform, ...] | None:
        """The cast that rules allow; () when none is needed; None when it is not allowed."""
        if all(a.dtype == b.dtype for a, b in zip(specs, slots, strict=True)):
            return ()
        for rule in self.casts:
            if all(
                rule.slot.match(s.path) is not None
                and rule.dtype == s.dtype
                and rule.item in (None, s.item)
                for s in slots
            ):
                self.cast_used.add(rule.code)
                return (Cast(rule.dtype, exact=rule.exact),)
        return None

    def refuse(
        self,
        kind: str,
        message: str,
        sources: Iterable[LeafPath] = (),
        refs: Iterable[SlotRef] = (),
        rule: str = "",
        candidates: Sequence[str] = (),
    ) -> None:
        """Record a problem, which settles its leaves and slots."""
        sources, refs = tuple(sources), tuple(refs)
        self.used |= set(sources)
        for ref in refs:
            self.filled.setdefault(ref, "problem")
        self.problems.append(Problem(kind, message, sources, refs, tuple(candidates), rule))

    def follow(self, leader: LeafPath, follower: LeafPath) -> None:
        """Let a moment or copy share the problem of its parameter."""
        self.used.add(follower)
        self.followers[leader].append(follower)

    def follow_slot(self, leader: SlotRef, follower: SlotRef) -> None:
        """Let an optimizer slot share the problem of its parameter's slot."""
        self.filled.setdefault(follower, "problem")
        self.slot_followers[leader].append(follower)

    def finished_problems(self) -> tuple[Problem, ...]:
        """All problems; followers are named with their leaders.

        A problem names what is settled nowhere else, so each leaf and slot has one account. What
        followed something that turned out to have no problem gets one of its own.
        """
        mapped = {p for s in self.steps for p in s.sources} | self.ignored.keys()
        filled = {r for s in self.steps for r in s.slots} | self.initialised.keys()
        found = []
        for problem in self.problems:
            sources = _with(problem.sources, self.followers)
            slots = _with(problem.slots, self.slot_followers)
            found.append(
                replace(
                    problem,
                    sources=tuple(p for p in sources if p not in mapped),
                    slots=tuple(r for r in slots if r not in filled),
                )
            )
        mapped |= {p for problem in found for p in problem.sources}
        filled |= {r for problem in found for r in problem.slots}
        lost = tuple(p for p in self.table if p not in mapped)
        bare = tuple(r for r in self.slots if r not in filled)
        if lost:
            text = f"{_many(lost, 'leaf', 'leaves')} cannot follow what became of the parameters"
            rule = "\n".join(f"[[ignore]]\nsource = {quoted(p)}" for p in lost)
            found.append(Problem("moments", f"{format_path(lost[0])}: {text}", lost, rule=rule))
        if bare:
            text = f"{_many(bare, 'slot', 'slots')} cannot follow what became of the parameters"
            rule = "\n".join(init_rule(r) for r in bare)
            found.append(Problem("moments", f"{bare[0]}: {text}", slots=bare, rule=rule))
        return tuple(found)

    def finished_ignored(self) -> tuple[Ignored, ...]:
        """All ignored leaves, in the order of the table."""
        return tuple(Ignored(p, self.ignored[p]) for p in self.table if p in self.ignored)

    @staticmethod
    def _names(sources: Sequence[LeafPath]) -> str:
        shown = " + ".join(format_path(p) for p in sources[:3])
        return shown + (f" + {len(sources) - 3} more" if len(sources) > 3 else "")  # noqa: PLR2004 - three fit on a line


def quoted(path: Sequence[str]) -> str:
    """A path as a TOML string."""
    text = format_path(tuple(path))
    return f"'{text}'" if '"' in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def init_rule(ref: SlotRef, value: str = '"zeros"') -> str:
    """A rule to paste that fills a slot."""
    return f"[[init]]\nslot = {quoted(ref.path)}\nitem = {quoted((ref.item,))}\nvalue = {value}"


def _many(things: Sequence[object], one: str, many: str) -> str:
    return f"this {one}" if len(things) == 1 else f"this and {len(things) - 1} more {many}"


def _with(leaders: tuple[T, ...], followers: Mapping[T, list[T]]) -> tuple[T, ...]:
    """Leaders and all that follow them, each once."""
    return tuple(dict.fromkeys((*leaders, *(f for s in leaders for f in followers.get(s, ())))))


def _unsavable(slot: Slot) -> str:
    # measured with orbax 0.12.8
    return (
        f"slot {slot.ref} has shape {list(slot.shape)}, and Orbax refuses to save arrays without "
        "elements: take it out of the model, and ignore its source"
    )


def _shape_rule(sources: Sequence[LeafPath], slot: Slot, spec: Spec) -> str:
    """A rule to paste where a reshape or a transpose would do; the user must know which."""
    if len(sources) != 1:
        return ""
    transforms = reshaping(spec.shape, slot.shape)
    if not transforms:
        return ""
    return (
        f"[[map]]\nfrom = {quoted(sources[0])}\nto = {quoted(slot.path)}\n"
        f"item = {quoted((slot.item,))}\ntransforms = [{transforms}]"
    )


def reshaping(ours: tuple[int, ...], theirs: tuple[int, ...]) -> str:
    """The transform that makes one shape of another, as TOML; empty when there is none."""
    if len(ours) == 2 and ours[::-1] == theirs:  # noqa: PLR2004 - a matrix
        return '{op = "transpose", axes = [1, 0]}'
    if prod(ours) == prod(theirs):
        return f'{{op = "reshape", shape = {list(theirs)}}}'
    return ""
