"""Rules as TOML text, for problems to show and users to paste."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import permutations
from math import prod

from bridge.target import Slot, SlotRef
from bridge.transforms import Spec
from legacy import LeafPath, format_path

__all__ = ["ignore_rules", "init_rule", "quoted", "reshaping", "shape_rule"]


def quoted(path: Sequence[str]) -> str:
    """A path as a TOML string."""
    text = format_path(tuple(path))
    return f"'{text}'" if '"' in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def init_rule(ref: SlotRef, value: str = '"zeros"') -> str:
    """A rule to paste that fills a slot."""
    return f"[[init]]\nslot = {quoted(ref.path)}\nitem = {quoted((ref.item,))}\nvalue = {value}"


def shape_rule(sources: Sequence[LeafPath], slot: Slot, spec: Spec) -> str:
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
    if len(ours) == len(theirs) > 1 and sorted(ours) == sorted(theirs):
        # axes in another order: a reshape would scramble them
        axes = [p for p in permutations(range(len(ours))) if tuple(ours[n] for n in p) == theirs]
        return f'{{op = "transpose", axes = {list(axes[0])}}}' if len(axes) == 1 else ""
    if prod(ours) == prod(theirs):
        return f'{{op = "reshape", shape = {list(theirs)}}}'
    return ""


def ignore_rules(paths: Iterable[LeafPath]) -> str:
    """Rules to paste that leave leaves behind."""
    return "\n\n".join(f"[[ignore]]\nsource = {quoted(p)}" for p in paths)
