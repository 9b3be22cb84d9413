"""The working sheet on which a plan is drawn up.

Stages add steps, ignored leaves and initialised slots to it; it checks each step against shapes
and dtypes at once, keeps count of what is still open, and turns whatever is left at the end into
problems. Nothing can be dropped on the way: a leaf is mapped, ignored by a named rule, or in a
problem, and a slot likewise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from bridge._plan import Ignored, Initialised, Problem, Step
from bridge.errors import TransformError
from bridge.rule_text import ignore_rules, init_rule, quoted, shape_rule
from bridge.rules import CastRule, Rules
from bridge.target import Empty, Slot, SlotRef
from bridge.transforms import Cast, Spec, Transform, infer_all
from legacy import Leaf, LeafPath, LeafTable, format_path

__all__ = ["JSON_TYPE", "Draft", "spec_of"]

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


UNSAVABLE = frozenset("MmUSO")
"""numpy kinds of times, text and objects: flax wrote some into msgpack, Orbax writes none."""


def _kind(leaf: Leaf) -> str:
    return "" if leaf.dtype is None else leaf.dtype.kind


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
        # what a person should know though it is no problem; the plan's warnings
        self.notes: list[str] = []
        self.used: set[LeafPath] = set()
        # items that a leaf feeds: an EMA model may share the batch statistics of the model
        self.fed: dict[LeafPath, set[str]] = defaultdict(set)
        self.filled: dict[SlotRef, str] = {}
        # places of slots that were created, which must not collide: by disk name, and by path
        self._places: dict[tuple[str, str], str] = {}
        self._inner: set[tuple[str, LeafPath]] = set()
        self._outer: set[tuple[str, LeafPath]] = set()
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

    def create(self, slot: Slot, sources: Sequence[LeafPath]) -> bool:
        """Add a slot that no model asked for.

        Args:
            slot: the slot.
            sources: the leaves that are to feed it; they get a problem when it cannot be.

        Returns:
            Whether its place was free.
        """
        # Orbax joins with dots and escapes nothing, so 'a.b' and a/b are one place
        place = (slot.item, ".".join(slot.disk_path))
        above = {(slot.item, slot.path[:n]) for n in range(1, len(slot.path))}
        other = self._places.get(place)
        if other is None and (slot.item, slot.path) in self._inner:
            other = "what lies below it"
        if other is None:
            other = next((f"{i}:{format_path(p)}" for i, p in above if (i, p) in self._outer), None)
        if other is not None:
            rule = ignore_rules(sources)
            text = f"{self._names(sources)} would be saved as {slot.ref}, where {other} is already"
            self.refuse("ambiguous", text, sources, (), rule)
            return False
        self._places[place] = str(slot.ref)
        self._inner |= above
        self._outer.add((slot.item, slot.path))
        self.slots[slot.ref] = slot
        return True

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
        trouble = self._taken(taken[0], sources, why) if taken else None
        self.filled |= {r: why for r in refs if r not in taken}
        slots = [self.slots[r] for r in refs]
        trouble = trouble or self._unfit(sources, slots)
        made = trouble or self._step(sources, slots, transforms, why)
        if isinstance(made, Step):
            self.steps.append(made)
            return made
        self.refuse(made.kind, made.message, sources, refs, made.rule)
        return None

    def _taken(self, ref: SlotRef, sources: Sequence[LeafPath], why: str) -> Problem:
        """A slot that something feeds already."""
        other = self.filled.get(ref)
        by = f"rule:{self.initialised[ref].rule}" if other is None else other
        return Problem(
            "rule",
            f"slot {ref} is fed twice: by {by}, and by {why} from {self._names(sources)}. "
            "Remove or narrow one of the two",
        )

    def _unfit(self, sources: Sequence[LeafPath], slots: Sequence[Slot]) -> Problem | None:
        """What no transform can help: no array, nothing to save, keys of another algorithm."""
        lost = [p for p in sources if self.table[p].kind == "unreadable"]
        if lost:
            text = f"{format_path(lost[0])} cannot be read: {self.table[lost[0]].problem}"
            return Problem("loss", text, rule=ignore_rules(lost))
        odd = [p for p in sources if _kind(self.table[p]) in UNSAVABLE]
        if odd:
            text = (
                f"{format_path(odd[0])} has dtype {self.table[odd[0]].dtype}, which Orbax refuses"
            )
            return Problem("dtype", text, rule=ignore_rules(odd))
        for slot in slots:
            # a live optimizer may hold placeholders (galore); what converts refuses them later
            live = slot.collection == "opt_state" and (slot.item, slot.path) not in self._outer
            if 0 in slot.shape and not live:
                rule = ignore_rules(sources)
                return Problem("shape", _unsavable(slot), rule=rule)
        for path in sources:
            if self.table[path].kind in NO_ARRAYS:
                kind = self.table[path].kind
                return Problem("dtype", f"{format_path(path)} is {kind!r} and no array")
        mixed = self._mixed_keys(sources, slots)
        return Problem("dtype", mixed) if mixed else None

    def _step(
        self,
        sources: Sequence[LeafPath],
        slots: Sequence[Slot],
        transforms: Sequence[Transform],
        why: str,
    ) -> Step | Problem:
        """The step, when what comes out of its transforms is what the slots want."""
        try:
            specs = self.infer(sources, transforms)
        except TransformError as error:
            return Problem("shape", f"{self._names(sources)}: {error}")
        if len(specs) != len(slots):
            return Problem(
                "rule",
                f"{self._names(sources)} gives {len(specs)} array(s) for {len(slots)} slot(s)",
            )
        for spec, slot in zip(specs, slots, strict=True):
            if spec.shape != slot.shape:
                return Problem(
                    "shape",
                    f"{self._names(sources)} gives shape {list(spec.shape)}, "
                    f"slot {slot.ref} has {list(slot.shape)}",
                    rule=shape_rule(sources, slot, spec),
                )
        extra = self._cast(specs, slots)
        if extra is None:
            spec, slot = next(
                (a, b) for a, b in zip(specs, slots, strict=True) if a.dtype != b.dtype
            )
            return Problem(
                "dtype",
                f"{self._names(sources)} has dtype {spec.dtype}, slot {slot.ref} has {slot.dtype}",
                rule=f"[[cast]]\nslot = {quoted(slot.path)}\n"
                f'item = {quoted((slot.item,))}\ndtype = "{slot.dtype}"',
            )
        refs = tuple(s.ref for s in slots)
        return Step(tuple(sources), refs, (*transforms, *extra), why)

    def add_json(self, path: LeafPath, slot: Slot, why: str) -> None:
        """Carry a plain value into the JSON item: no shape, no dtype, nothing to check."""
        if not self.create(slot, [path]):
            return
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

    def _mixed_keys(self, sources: Sequence[LeafPath], slots: Sequence[Slot]) -> str:
        """What is wrong when PRNG keys of one algorithm would feed another one; else empty."""
        ours = {k for p in sources if (k := self.table[p].key_impl) is not None}
        theirs = {s.key_impl for s in slots if s.key_impl is not None}
        if not ours or not theirs or ours == theirs:
            return ""
        return (
            f"{self._names(sources)} holds {'/'.join(sorted(ours))} keys, slot {slots[0].ref} "
            f"{'/'.join(sorted(theirs))} keys: ignore the leaf and initialise the slot"
        )

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
            rule = ignore_rules(lost)
            found.append(Problem("moments", f"{format_path(lost[0])}: {text}", lost, rule=rule))
        if bare:
            text = f"{_many(bare, 'slot', 'slots')} cannot follow what became of the parameters"
            rule = "\n\n".join(init_rule(r) for r in bare)
            found.append(Problem("moments", f"{bare[0]}: {text}", slots=bare, rule=rule))
        return tuple(found)

    def finished_steps(self) -> tuple[Step, ...]:
        """All steps, item by item and in the order of the table, as a person would read them."""
        items = {ref.item: n for n, ref in reversed(list(enumerate(self.slots)))}
        place = {path: n for n, path in enumerate(self.table)}
        return tuple(
            sorted(self.steps, key=lambda s: (items[s.slots[0].item], place[s.sources[0]]))
        )

    def finished_ignored(self) -> tuple[Ignored, ...]:
        """All ignored leaves, in the order of the table."""
        return tuple(Ignored(p, self.ignored[p]) for p in self.table if p in self.ignored)

    @staticmethod
    def _names(sources: Sequence[LeafPath]) -> str:
        shown = " + ".join(format_path(p) for p in sources[:3])
        return shown + (f" + {len(sources) - 3} more" if len(sources) > 3 else "")  # noqa: PLR2004 - three fit on a line


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
