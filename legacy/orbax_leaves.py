"""The leaves of a tree folder: what an array or string is, and what its files no longer say."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from legacy.errors import LegacyError, UnsupportedCheckpoint
from legacy.leaves import Kind, Leaf, LeafPath, format_path, unreadable
from legacy.orbax_index import UNTYPED, TreeIndex, Wanted
from legacy.orbax_items import Constant
from legacy.orbax_metadata import (
    ARRAY_TYPE,
    CUSTOM_METADATA,
    SCALAR_TYPE,
    TreeMetadata,
    random_key_impls,
)
from legacy.orbax_reader import ArrayReader, FoundArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["LeafMaker"]

_CLASH: Final = (
    "shares its storage name {name!r} with {other}: one value overwrote the other when it was "
    "saved, and which one is left cannot be known"
)
_UNSTORED: Final = (
    "chunks that are not stored count as the fill value: Orbax 0.5-0.9 left out zarr3 chunks that "
    "are all zero, so a lost chunk would look the same"
)
_PERHAPS_KEY: Final = (
    "array_metadatas is missing or does not list it, so a typed PRNG key cannot be told from an "
    "array of uint32"
)


class LeafMaker:
    """Makes leaves of what was found.

    Args:
        index: what the tree says it has.
        metadata: ``_METADATA``, where there is one.
        root: the folder of the tree.
    """

    def __init__(self, index: TreeIndex, metadata: TreeMetadata | None, root: Path) -> None:
        self.metadata = metadata
        self.notes = index.notes
        self.complete = metadata is not None and metadata.stores_fill_value
        self.tells_keys = metadata is not None and CUSTOM_METADATA in metadata.keys
        self.impls: Mapping[str, str | None] = {}
        self.no_impls: LegacyError | None = None
        try:
            self.impls = random_key_impls(root) or {}
        except LegacyError as error:
            self.no_impls = error
        self.paths: defaultdict[str, list[LeafPath]] = defaultdict(list)
        for want in index.wanted:
            self.paths[want.name].append(want.path)
        # a name is the keys joined by dots; one that differs, or a value in its place, may be a
        # placeholder that was damaged, and then the array is not the other leaf's alone
        odd = [want.path for want in index.wanted if want.name != ".".join(want.path)]
        odd += [leaf.path for leaf in index.ready if leaf.kind in ("str", "unreadable")]
        for path in odd:
            if (name := ".".join(path)) in self.paths:
                self.paths[name].append(path)

    def string(self, want: Wanted, value: str) -> Leaf:
        """The leaf of a string."""
        nbytes = len(value.encode(errors="replace"))
        reader = Constant(value)
        leaf = Leaf(want.path, "str", nbytes=nbytes, reader=reader, notes=self.notes)
        return self._checked(leaf, want)

    def array(self, want: Wanted, found: FoundArray) -> Leaf:
        """The leaf of a stored array, with what its files no longer say."""
        facts = found.metadata
        if self.no_impls is not None and facts.may_be_key:
            # a typed key or plain numbers: the broken document is the only one that knows
            return unreadable(want.path, self.no_impls, shape=facts.shape, dtype=facts.dtype)
        complete = self.complete
        kind: Kind = "scalar" if want.value_type == SCALAR_TYPE and not facts.shape else "array"
        impl = self.impls.get(want.name)
        kind = "key" if impl is not None else kind
        leaf = Leaf(
            want.path,
            kind,
            shape=facts.shape,
            dtype=facts.dtype,
            nbytes=facts.nbytes,
            reader=ArrayReader(found, want.path, complete=complete, scalar=kind == "scalar"),
            storage=found.stored if found.opens_in_place else None,
            key_impl=impl,
            chunks=facts.chunks,
            notes=(*self.notes, *found.notes, *self._doubts(found, want, impl)),
        )
        return self._checked(leaf, want)

    def _doubts(self, found: FoundArray, want: Wanted, impl: str | None) -> Iterable[str]:
        facts = found.metadata
        doubts = []
        if facts.fills and not self.complete and found.lacks_chunks():
            doubts.append(_UNSTORED)
        if self.metadata is None and not facts.shape:
            doubts.append(UNTYPED)
        if (
            self.tells_keys
            and facts.may_be_key
            and impl is None
            and want.name not in self.impls
            and want.value_type in (None, ARRAY_TYPE)
        ):
            doubts.append(_PERHAPS_KEY)
        return doubts

    def _checked(self, leaf: Leaf, want: Wanted) -> Leaf:
        if len(self.paths[want.name]) == 1:
            return leaf
        others = [format_path(p) for p in self.paths[want.name] if p != want.path]
        lost = UnsupportedCheckpoint(
            f"leaf {format_path(want.path)} "
            f"{_CLASH.format(name=want.name, other=', '.join(others))}. Ignore both leaves by a "
            "rule, or save again with other keys.",
            leaf=want.path,
        )
        return unreadable(want.path, lost, notes=leaf.notes)
