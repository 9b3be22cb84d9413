"""The written checkpoint as the verifier sees it: rungs a and b.

In layout ``composite`` an item of the plan is an item on disk, and JSON values have items of
their own. In layout ``single`` the tree items are branches of one item, and JSON values lie in
Orbax's custom metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from bridge._bits import same_value, show_value
from bridge._per_plan import slots_of
from bridge._plan import Plan
from bridge._verdict import Difference
from bridge.apply import JSON_TYPE
from bridge.json_item import decode
from bridge.layout import METADATA_ITEM
from bridge.target import Slot, SlotPath, SlotRef
from legacy import Checkpoint, Leaf, LeafTable, format_path
from legacy.leaves import ARRAY_KINDS

__all__ = ["MISSING", "Output"]

Place: TypeAlias = tuple[str, SlotPath]
"""An item of the output and a path in it."""

Document: TypeAlias = Mapping[SlotPath, Any]

SOURCE_PREFIX = "source_"
"""Before the name of a JSON item of the source whose own name the plan has taken."""


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()


class Output:
    """A written step, and where in it each slot of the plan should be.

    Args:
        checkpoint: the output, opened.
        plan: what it should hold.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        self.checkpoint = checkpoint
        self.slots = slots_of(plan)
        self.places = {ref: self._place(slot) for ref, slot in self.slots.items()}
        self.empties = {self._tree_place(e.item, e.disk_path): e for e in plan.target.empties}
        self.files = {
            name: dict(_flat(json.loads(table.json_file.read_bytes())))
            for name, table in checkpoint.items.items()
            if table.json_file is not None
        }
        self.planned = self._planned_documents()

    def _place(self, slot: Slot) -> Place:
        if slot.variable_type == JSON_TYPE:
            return slot.item, slot.path
        return self._tree_place(slot.item, slot.disk_path)

    def _tree_place(self, item: str, path: SlotPath) -> Place:
        trees = list(self.checkpoint.tree_items)
        if item in trees or len(trees) != 1:
            return item, path
        return trees[0], (item, *path)

    def _planned_documents(self) -> dict[str, Document]:
        wanted = list(
            dict.fromkeys(s.item for s in self.slots.values() if s.variable_type == JSON_TYPE)
        )
        inline = self.checkpoint.metadata.get(METADATA_ITEM)
        if inline is None:
            read = {name: self.checkpoint.items.get(name) for name in wanted}
            return {
                name: dict(_flat(decode(json.loads(table.json_file.read_bytes()))))
                for name, table in read.items()
                if table is not None and table.json_file is not None
            }
        if wanted == [METADATA_ITEM]:
            return {METADATA_ITEM: dict(_flat(decode(inline)))}
        return {name: dict(_flat(decode(inline.get(name, {})))) for name in wanted}

    def leaf(self, ref: SlotRef) -> Leaf | None:
        """The leaf at the place of a slot, if there is one."""
        item, path = self.places[ref]
        return self.checkpoint.tree_items.get(item, LeafTable([])).get(path)

    def plain(self, ref: SlotRef) -> Any:
        """The value at the place of a slot of a JSON item, or :data:`MISSING`."""
        item, path = self.places[ref]
        return self.planned.get(item, {}).get(path, MISSING)

    def structure(self, source: Checkpoint) -> Iterator[Difference]:
        """Rung a: every slot has its leaf, there is no other leaf, and JSON items are copies."""
        for ref, slot in self.slots.items():
            plain = slot.variable_type == JSON_TYPE
            if (self.plain(ref) is MISSING) if plain else (self.leaf(ref) is None):
                yield Difference("a", f"slot {ref}: the output has nothing there.", ref)
        yield from self._surplus()
        yield from self._copies(source)

    def _surplus(self) -> Iterator[Difference]:
        planned = {*self.places.values(), *self.empties}
        there = [
            (i, p) for i, t in self.checkpoint.tree_items.items() for p in t if not _bare(t[p])
        ]
        there += [(i, p) for i, document in self.planned.items() for p in document]
        for item, path in there:
            if (item, path) not in planned:
                yield Difference("a", f"{item}:{format_path(path)}: no slot of the plan.")
        for (item, path), empty in self.empties.items():
            leaf = self.checkpoint.tree_items.get(item, LeafTable([])).get(path)
            if leaf is not None and not _bare(leaf):
                said = f"should be empty ({empty.value_type}), is {leaf.kind} {leaf.shape}"
                yield Difference("a", f"{item}:{format_path(path)}: {said}.")

    def _copies(self, source: Checkpoint) -> Iterator[Difference]:
        """JSON items of the source are carried across as they are."""
        ours = set() if METADATA_ITEM in self.checkpoint.metadata else set(self.planned)
        seen = set(ours)
        for item, table in source.items.items():
            if table.json_file is None:
                continue
            name = f"{SOURCE_PREFIX}{item}" if item not in self.files or item in ours else item
            seen.add(name)
            before = dict(_flat(json.loads(table.json_file.read_bytes())))
            after = self.files.get(name, {})
            for path in sorted({*before, *after}):
                was, now = before.get(path, MISSING), after.get(path, MISSING)
                if not same_value(was, now):
                    said = f"{show_value(was)} in the source, {show_value(now)} in the output"
                    yield Difference("a", f"JSON item {name}: {format_path(path)} is {said}.")
        for name in self.files.keys() - seen:
            yield Difference("a", f"JSON item {name}: neither in the plan nor in the source.")

    def shapes(self) -> Iterator[Difference]:
        """Rung b: every leaf has the shape and dtype of its slot."""
        for ref, slot in self.slots.items():
            leaf = self.leaf(ref)
            if leaf is None:
                continue
            got = _in_words(leaf.kind, leaf.shape, leaf.dtype and leaf.dtype.name, leaf.key_impl)
            want = _in_words("array", slot.shape, slot.dtype, slot.key_impl)
            if got != want:
                message = f"slot {ref}: the plan says {want}, the output holds {got}."
                yield Difference("b", message, ref)


def _bare(leaf: Leaf) -> bool:
    return leaf.kind in ("none", "empty")


def _in_words(kind: str, shape: tuple[int, ...], dtype: str | None, impl: str | None) -> str:
    if kind not in ARRAY_KINDS:
        return kind
    return f"{dtype} {shape}" + (f" of {impl} keys" if impl else "")


def _flat(node: Any, path: SlotPath = ()) -> Iterator[tuple[SlotPath, Any]]:
    """The values of a JSON document by path; an empty container is a value."""
    if isinstance(node, dict | list) and node:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _flat(child, (*path, str(key)))
    else:
        yield path, node
