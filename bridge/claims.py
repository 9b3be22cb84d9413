"""What the user's rules claim, before anything is matched.

A rule may name a leaf by its variable path (``params/Dense_0/kernel``, wherever the checkpoint
keeps it) or by its full path in the file; the first serves every checkpoint of a model, and what
follows the params (moments, copies) follows the rule. A rule that finds nothing is a problem:
a typo must not become a leaf that is quietly treated otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

from bridge.draft import Draft
from bridge.feeds import Feed
from bridge.rules import Ignore, Init, MapRule, Rules, expand, is_map
from bridge.rules_index import PathIndex, Paths, Slots
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
    """Leave behind what ``ignore`` rules name.

    Args:
        draft: gets the ignored leaves, and a problem for each rule that finds nothing.
        rules: the user's rules.
        feeds: what feeds the items, for variable paths.
    """
    ignores = [rule for rule in rules.rules if isinstance(rule, Ignore)]
    if not ignores:
        return
    names = PathIndex(both for f in feeds for both in canonical(f).items())
    whole = PathIndex((path, path) for path in draft.table)
    for rule in ignores:
        found = {
            full
            for index in (names, whole)
            for _, path, full in index.near(rule.source)
            if rule.matches(path)
        }
        for path in found:
            draft.ignore(path, rule.code)
        if not found:
            draft.refuse(
                "rule", f"rule {rule.code} ignores {rule.source}, and no leaf has such a path"
            )


def apply_inits(draft: Draft, rules: Rules) -> None:
    """Fill the slots that ``init`` rules name.

    A rule without an item is about model slots wherever it names one: what it says about a
    parameter is not meant for the moments of the parameter, which start at zero.

    Args:
        draft: gets the initialised slots, and a problem for each rule that finds nothing.
        rules: the user's rules.
    """
    inits = [rule for rule in rules.rules if isinstance(rule, Init)]
    index = Slots.of(draft.slots if inits else ()).index
    for rule in inits:
        found = [ref for _, _, ref in index.near(rule.slot) if rule.matches(ref)]
        if rule.item is None:
            found = [r for r in found if draft.slots[r].collection != "opt_state"] or found
        for ref in found:
            if ref in draft.initialised:
                other = draft.initialised[ref].rule
                draft.refuse("rule", f"rules {other} and {rule.code} both fill {ref}", (), (ref,))
            else:
                draft.initialise(ref, rule.code, rule.how)
        if not found:
            draft.refuse("rule", f"rule {rule.code} fills {rule.slot}, and no slot has such a path")


def check_casts(draft: Draft) -> None:
    """A ``cast`` rule must name some slot of its dtype; whether it is needed is seen later."""
    index = Slots.of(draft.slots if draft.casts else ()).index
    for rule in draft.casts:
        near = (ref for _, _, ref in index.near(rule.slot))
        dtypes = {draft.slots[ref].dtype for ref in near if rule.matches(ref)}
        if not dtypes:
            text = "and no slot has such a path"
        elif rule.dtype not in dtypes:
            text = (
                f"and the slots of such a path are {', '.join(sorted(dtypes))}: a cast makes a "
                "leaf fit its slot, it does not change the model"
            )
        else:
            continue
        draft.refuse("rule", f"rule {rule.code} casts {rule.slot} to {rule.dtype}, {text}")


def apply_maps(draft: Draft, rules: Rules, feeds: Sequence[Feed]) -> None:
    """Map what ``map`` rules name: by variable path for each item, else by full path.

    Args:
        draft: gets the steps, and a problem for each rule that does not come out even.
        rules: the user's rules.
        feeds: what feeds the items, for variable paths.
    """
    maps = [r for r in rules.rules if is_map(r)]
    if not maps:
        return
    views = [(f.item, _Names(canonical(f), _slots_of(draft, f))) for f in feeds]
    whole = _Names({p: p for p in draft.table}, {r: r for r in draft.slots})
    for rule in maps:
        complaints: list[str] = []
        bound = False
        for item, names in views:
            if rule.item in (None, item):
                done, found = _bind(draft, rule, names)
                if done:
                    complaints = [*(complaints if bound else ()), *found]
                elif not bound:
                    complaints += found
                bound |= done
        if not bound:
            bound, found = _bind(draft, rule, whole)
            complaints = found if bound else complaints or found
        if not bound and not complaints:
            complaints = ["it matches nothing"]
        for text in dict.fromkeys(complaints):
            draft.refuse("rule", f"rule {rule.code}: {text}")


def _slots_of(draft: Draft, feed: Feed) -> dict[SlotRef, SlotRef]:
    """Slots by the names that rules have for them: below the model of an item."""
    n = len(feed.prefix)
    return {
        SlotRef(r.item, r.path[n:]): r
        for r, s in draft.slots.items()
        if r.item == feed.item and s.collection != "opt_state"
    }


class _Names:
    """The names that rules have for leaves and slots, laid out once for all rules."""

    def __init__(
        self, sources: Mapping[LeafPath, LeafPath], slots: Mapping[SlotRef, SlotRef]
    ) -> None:
        self.sources = sources
        self.slots = slots

    @functools.cached_property
    def paths(self) -> Paths:
        """The names of the leaves."""
        return Paths.of(self.sources)

    @functools.cached_property
    def refs(self) -> Slots:
        """The names of the slots."""
        return Slots.of(self.slots)


def _bind(draft: Draft, rule: MapRule, names: _Names) -> tuple[bool, list[str]]:
    """Carry out one rule on one view; whether it bound anything, and what is wrong."""
    expansion = expand(rule, names.paths, names.refs)
    for binding in expansion.bindings:
        full = [names.sources[p] for p in binding.sources]
        refs = [names.slots[r] for r in binding.slots]
        clash = next(_clashes(draft, full), None)
        if clash is not None:
            text = f"rule {rule.code} maps {clash}, too; narrow one of the two"
            draft.refuse("rule", text, full, [r for r in refs if draft.open_slot(r)])
            continue
        draft.add(full, refs, rule.transforms, f"rule:{rule.code}")
    return bool(expansion.bindings), list(expansion.problems)


def _clashes(draft: Draft, paths: Sequence[LeafPath]) -> Iterator[str]:
    for path in paths:
        if path in draft.ignored:
            yield f"{format_path(path)}, which rule {draft.ignored[path]} ignores"
