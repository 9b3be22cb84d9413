"""Restores a checkpoint of any era into the types of the user's own state.

An old library read the file back into the ``TrainState`` that the caller held in his hands. This
does the same for every format that can be opened, and without importing flax or jax: what a target
is made of is seen from its shape (a mapping, a namedtuple, a dataclass), not from its class. First
everything is fitted and all differences are collected; only then are arrays read.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from legacy.checkpoint import Checkpoint
from legacy.errors import AmbiguousCheckpoint, TargetMismatch
from legacy.leaves import Leaf, LeafPath, LeafTable, format_path, natural_key, parse_path
from legacy.opening import open as open_checkpoint
from legacy.opening import require_step
from legacy.typed_defaults import Defaults
from legacy.typed_errors import SHOWN, how_many, misfit, refuse_unreadable
from legacy.typed_leaves import describe, fit_leaf, is_leaf_target
from legacy.typed_trees import (
    BOX_FIELD,
    Source,
    children_of,
    file_names,
    is_box,
    leaves_below,
    leaves_of,
    nest,
    raw,
    rebuild,
)

if TYPE_CHECKING:
    import os

__all__ = ["restore"]

Make: TypeAlias = Callable[[], Any]

_HOLLOW: Final = ("none", "empty")


def restore(
    path: str | os.PathLike[str] | Checkpoint,
    target: Any,
    *,
    step: float | None = None,
    item: str | None = None,
    at: str | LeafPath = (),
    defaults: bool | Collection[str | LeafPath] = False,
    cast: bool = False,
    strict: bool = False,
    on_ignored: Callable[[LeafPath], None] | None = None,
) -> Any:
    r"""Read a checkpoint into the types of ``target``.

    Dicts, FrozenDicts, lists, tuples, namedtuples (optax states) and dataclasses (``TrainState``,
    partitioning boxes) come back as what they are in the target; static fields keep the target's
    values. Arrays come back as numpy arrays, or as jax arrays on the target's devices where the
    target has jax arrays. Shapes and dtypes must agree.

    Args:
        path: what :func:`legacy.open` takes, or an opened checkpoint.
        target: an example of the result, concrete or abstract (``jax.eval_shape``). Where it is
            None, what the file has comes back as dicts, lists and tuples (typed keys as their
            uint32 data; several items as a dict of them).
        step: the step of a run; the last when None.
        item: the item to read, where a step holds several trees.
        at: the place in the file's tree to restore from, such as ``"params"``.
        defaults: what may be missing in the file, and then keeps the target's value: True for
            everything, or patterns such as ``"opt_state"`` or ``"params/*/bias"`` (a pattern also
            covers what lies below it).
        cast: convert dtypes and number types instead of refusing.
        strict: refuse names that only the file has.
        on_ignored: called with the path of each leaf that only the file has.

    Returns:
        A new object of the target's type; ``target`` is not changed.

    Raises:
        TargetMismatch: the target and the file differ; ``.problems`` has every difference.
        DamagedCheckpoint: leaves that the target asks for are ``unreadable``; all are named.
        AmbiguousCheckpoint: the step holds several items and ``item`` was not given.
        LegacyError: the checkpoint cannot be opened or read (see :func:`legacy.open`).

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "checkpoint_3")
    ...     _ = file.write_bytes(b"\x82\xa4step\x03\xa1s\x81\xa10\x01")
    ...     restore(file, {"step": 0, "s": (0,)}), restore(file, None)
    ({'step': 3, 's': (1,)}, {'s': {'0': 1}, 'step': 3})
    """
    if isinstance(path, Checkpoint):
        checkpoint = require_step(path, step)
    else:
        checkpoint = open_checkpoint(path, step=step)
    prefix = parse_path(at) if isinstance(at, str) else tuple(at)
    table = _table(checkpoint, target, item)
    work = _Fitting(table, prefix, Defaults(defaults), cast, strict, on_ignored)
    make = work.fit(target, work.start(checkpoint), ())
    leaves = [path for path, _ in leaves_of(target, ())]
    problems = [*work.problems, *work.defaults.unused(leaves)]
    if problems:
        message = misfit(checkpoint, problems, work.ignored)
        raise TargetMismatch(message, path=checkpoint.path, problems=problems)
    refuse_unreadable(checkpoint, work.unreadable)
    return make()


def _table(checkpoint: Checkpoint, target: Any, item: str | None) -> LeafTable:
    if item is not None:
        if item not in checkpoint.items:
            raise TargetMismatch(
                f"{checkpoint.path}: there is no item {item!r}; its items are "
                f"{', '.join(sorted(checkpoint.items))}.",
                path=checkpoint.path,
            )
        return checkpoint.items[item]
    trees = checkpoint.tree_items
    if len(trees) > 1 and target is not None:
        raise AmbiguousCheckpoint(
            f"{checkpoint.path}: holds {len(trees)} items, {', '.join(sorted(trees))}. Say which "
            f"one the target is for, such as item={min(trees)!r}.",
            path=checkpoint.path,
        )
    return checkpoint.leaves


@dataclasses.dataclass(slots=True)
class _Fitting:
    """One restore: walks target and file side by side, and collects all that differs."""

    table: LeafTable
    prefix: LeafPath
    defaults: Defaults
    cast: bool
    strict: bool
    on_ignored: Callable[[LeafPath], None] | None
    problems: list[str] = dataclasses.field(default_factory=list)
    ignored: list[LeafPath] = dataclasses.field(default_factory=list)
    unreadable: list[Leaf] = dataclasses.field(default_factory=list)

    def start(self, checkpoint: Checkpoint) -> Source:
        """The file's tree at ``at``."""
        source: Source = nest(self.table)
        for depth, name in enumerate(self.prefix):
            inside = source if isinstance(source, dict) else {}
            if name not in inside:
                raise TargetMismatch(
                    f"{checkpoint.path}: at={format_path(self.prefix)!r} is not in the file. "
                    f"{format_path(self.prefix[:depth])} has {_names(inside) or 'no children'}.",
                    path=checkpoint.path,
                )
            source = inside[name]
        return source

    def fit(self, target: Any, source: Source, path: LeafPath) -> Make:
        """Fit one place; the returned function may be called when there is no problem."""
        if target is None:
            nodes = self.table.nodes
            below = leaves_below(source, ()) if source is not None else ()
            self.unreadable += [leaf for _, leaf in below if leaf.kind == "unreadable"]
            return lambda: raw(source, self.prefix + path, nodes)
        if source is None or (isinstance(source, Leaf) and source.kind in _HOLLOW):
            return self._missing(target, source, path)
        if isinstance(target, type):
            return self._problem(path, f"target is the class {target.__name__}, not an instance")
        return self._present(target, source, path)

    def _present(self, target: Any, source: Leaf | dict[str, Source], path: LeafPath) -> Make:
        """Fit a place where both have something."""
        if isinstance(source, Leaf) and source.kind == "unreadable":
            self.unreadable.append(source)
            return lambda: target
        children = children_of(target)
        if children is None:
            return self._leaf(target, source, path)
        if isinstance(source, Leaf):
            return self._array_for_container(target, children, source, path)
        return self._container(target, children, source, path)

    def _array_for_container(
        self, target: Any, children: dict[str, Any], source: Leaf, path: LeafPath
    ) -> Make:
        if is_box(target):
            # saved before the parameter was put into a partitioning box
            boxed = self.fit(getattr(target, BOX_FIELD), source, path)
            return lambda: rebuild(target, {BOX_FIELD: boxed()})
        return self._problem(
            path, f"target: {_class_name(target)} {_sample(children)}; file: {describe(source)}"
        )

    def _leaf(self, target: Any, source: Source, path: LeafPath) -> Make:
        if not is_leaf_target(target):
            return self._problem(
                path,
                f"target has a {_class_name(target)}, which is no array, number or text. Make the "
                "field static, or put None or an array there",
            )
        if isinstance(source, dict):
            inner = source.get(BOX_FIELD)
            if len(source) == 1 and isinstance(inner, Leaf):
                source = inner  # a partitioning box around the array that the target has
            else:
                return self._problem(
                    path, f"target: {describe(target)}; file: a container with {_names(source)}"
                )
        if not isinstance(source, Leaf):
            raise TypeError(source)
        fit = fit_leaf(target, source, cast=self.cast)
        if fit.make is None:
            return self._problem(path, fit.problem or "")
        return fit.make

    def _container(
        self, target: Any, children: dict[str, Any], source: dict[str, Source], path: LeafPath
    ) -> Make:
        if isinstance(target, Mapping) and len(children) != len(target):
            return self._problem(
                path, "two keys of the target are the same as text, such as 1, '1'"
            )
        names = file_names(target, children, source)
        extra = [n for n in source if n not in names.values()]
        if isinstance(target, (list, tuple)) and any(_has_data(source[n]) for n in extra):
            return self._problem(
                path,
                f"target: {_class_name(target)} {_sample(children) or '()'}; file has "
                f"{_names(source)}",
            )
        missing = [n for n in children if names[n] not in source]
        for name in extra:
            self._only_in_file(source[name], (*path, name), close=missing)
        made = {n: self.fit(c, source.get(names[n]), (*path, n)) for n, c in children.items()}
        return lambda: rebuild(target, {name: make() for name, make in made.items()})

    def _only_in_file(self, source: Source, path: LeafPath, close: list[str]) -> None:
        leaves = [p for p, _ in leaves_below(source, path)]
        if self.strict:
            near = difflib.get_close_matches(path[-1], close, n=1)
            hint = f" (the target has {near[0]!r} there)" if near else ""
            self._problem(path, f"only the file has this, {how_many(len(leaves))}{hint}")
            return
        self.ignored.append(path)
        if self.on_ignored is not None:
            for leaf in leaves:
                self.on_ignored(self.prefix + leaf)

    def _missing(self, target: Any, source: Source, path: LeafPath) -> Make:
        """Fit a place where the file has nothing, None, or an empty container."""
        wanted = list(leaves_of(target, path))
        kept = [self.defaults.covers(p) for p, _ in wanted]
        lost = [p for (p, _), keep in zip(wanted, kept, strict=True) if not keep]
        has = "nothing" if source is None else describe(source)
        if lost and len(lost) == len(wanted):
            what = describe(target) if children_of(target) is None else how_many(len(lost))
            self._problem(path, f"target: {what}; file has {has} here")
        else:
            for p in lost:
                self._problem(p, "the file has nothing here")
        for (p, value), keep in zip(wanted, kept, strict=True):
            if keep and type(value).__name__ == "ShapeDtypeStruct":
                self._problem(p, "the file has nothing here, and an abstract target has no default")
        return lambda: target

    def _problem(self, path: LeafPath, text: str) -> Make:
        there = f"{format_path(path)}: {text}"
        if self.prefix:
            there += f" (in the file: {format_path(self.prefix + path)})"
        self.problems.append(f"{there}.")
        return lambda: None


def _has_data(source: Source) -> bool:
    return any(leaf.kind not in _HOLLOW for _, leaf in leaves_below(source, ()))


def _names(source: Mapping[str, Any]) -> str:
    names = sorted(source, key=lambda n: natural_key((n,)))
    more = f", … ({len(names)})" if len(names) > SHOWN else ""
    return ", ".join(repr(n) for n in names[:SHOWN]) + more


def _sample(children: Mapping[str, Any]) -> str:
    return f"with {_names(children)}" if children else ""


def _class_name(value: Any) -> str:
    return type(value).__name__
