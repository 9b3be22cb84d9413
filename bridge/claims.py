"""What the user's rules claim, before anything is matched.

A rule may name a leaf by its variable path (``params/Dense_0/kernel``, wherever the checkpoint
keeps it) or by its full path in the file; the first serves every checkpoint of a model, and what
follows the params (moments, copies) follows the rule. A rule that finds nothing is a problem:
a typo must not become a leaf that is quietly treated otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge._plan import Problem
from bridge.draft import Draft
from bridge.feeds import Feed
from bridge.rules import Ignore, Init, Rules, expand, is_map
from bridge.target import SlotRef
from legacy import LeafPath, format_path

__all__ = ["apply_ignores", "apply_inits", "apply_maps", "canonical", "check_casts"]


def canonical(feed: Feed) -> dict[LeafPath, LeafPath]:
    """Full path by variable path (collection first) for the leaves that feed an item.

    >>> from bridge.roles import Group
    >>> group = Group("params", ("state", "params"), "params", (("k",),))
    >>> canonical(Feed("model", (), (group,), 0))
    {('params', 'k'): ('state', 'params', 'k')}
    """
    return {(g.collection, *p): g.prefix + p for g in feed.groups for p in g.paths}


def apply_ignores(draft: Draft, rules: Rules, feeds: Sequence[Feed]) -> None:
    """Leave behind what ``ignore`` rules name."""
    names = [canonical(f) for f in feeds]
    for rule in rules.rules:
        if not isinstance(rule, Ignore):
            continue
        hit = False
        for short in names:
            for path, full in short.items():
                if rule.source.match(path) is not None:
                    hit = True
                    draft.ignore(full, rule.code)
        for path in draft.table:
            if rule.source.match(path) is not None:
                hit = True
                draft.ignore(path, rule.code)
        if not hit:
            _nothing(draft, rule.code, f"ignores {rule.source}, and no leaf has such a path")


def apply_inits(draft: Draft, rules: Rules) -> None:
    """Fill the slots that ``init`` rules name."""
    for rule in rules.rules:
        if not isinstance(rule, Init):
            continue
        hit = False
        for ref in draft.slots:
            if rule.item in (None, ref.item) and rule.slot.match(ref.path) is not None:
                hit = True
                if ref in draft.initialised:
                    other = draft.initialised[ref].rule
                    draft.problems.append(
                        Problem("rule", f"rules {other} and {rule.code} both fill {ref}", (), (ref,))
                    )
                else:
                    draft.initialise(ref, rule.code, rule.how)
        if not hit:
            _nothing(draft, rule.code, f"fills {rule.slot}, and no slot has such a path")


def check_casts(draft: Draft) -> None:
    """A ``cast`` rule must name some slot; whether a cast is needed is seen later."""
    for rule in draft.casts:
        if not any(
            rule.item in (None, ref.item) and rule.slot.match(ref.path) is not None
            for ref in draft.slots
        ):
            _nothing(draft, rule.code, f"casts {rule.slot}, and no slot has such a path")


def apply_maps(draft: Draft, rules: Rules, feeds: Sequence[Feed]) -> None:
    """Map what ``map`` rules name: by variable path for each item, else by full path."""
    for rule in rules.rules:
        if not is_map(rule):
            continue
        problems: list[str] = []
        bound = False
        for feed in feeds:
            if rule.item in (None, feed.item):
                bound |= _map_feed(draft, rule, feed, problems)
        if not bound:
            whole = {p: p for p in draft.table}
            slots = {r: r for r in draft.slots if rule.item in (None, r.item)}
            bound = _bind(draft, rule, whole, slots, problems)
        if not bound or problems:
            for text in dict.fromkeys(problems) or ("it matches nothing",):
                draft.problems.append(Problem("rule", f"rule {rule.code}: {text}"))


def _map_feed(draft: Draft, rule: Any, feed: Feed, problems: list[str]) -> bool:
    n = len(feed.prefix)
    slots = {
        SlotRef(r.item, r.path[n:]): r
        for r, s in draft.slots.items()
        if r.item == feed.item and (s.collection != "opt_state" or not n)
    }
    found: list[str] = []
    bound = _bind(draft, rule, canonical(feed), slots, found)
    if bound:
        problems += found
    elif found and not problems:
        problems += found
    return bound


def _bind(
    draft: Draft,
    rule: Any,
    sources: Mapping[LeafPath, LeafPath],
    slots: Mapping[SlotRef, SlotRef],
    problems: list[str],
) -> bool:
    expansion = expand(rule, sources, slots)
    if not expansion.bindings:
        problems += [p for p in expansion.problems if p not in problems]
        return False
    problems[:] = list(expansion.problems)
    for binding in expansion.bindings:
        full = [sources[p] for p in binding.sources]
        refs = [slots[r] for r in binding.slots]
        clash = [p for p in full if p in draft.ignored]
        if clash:
            problems.append(
                f"{format_path(clash[0])} is claimed by rule {draft.ignored[clash[0]]}, too"
            )
            draft.filled |= set(refs)
            continue
        draft.add(full, refs, rule.transforms, f"rule:{rule.code}")
    return True


def _nothing(draft: Draft, code: str, text: str) -> None:
    draft.problems.append(Problem("rule", f"rule {code} {text}"))

