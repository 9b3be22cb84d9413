"""The target when no model is given: the checkpoint's own structure, as NNX would hold it.

Collections become Variable types and the Linen paths stay, so the result restores into an NNX
model whose attributes bear those names, and into ``nnx.bridge.ToNNX(linen_module)``.
"""

from __future__ import annotations

from bridge.claims import canonical
from bridge.draft import Draft, spec_of
from bridge.feeds import Feed
from bridge.names import BOX
from bridge.roles import Group, Roles, State
from bridge.rule_text import quoted
from bridge.rules import Map, Rules
from bridge.rules_index import PathIndex
from bridge.target import EPHEMERAL, Slot, SlotPath, SlotRef
from bridge.words import bundled_name
from legacy import LeafPath, format_path

__all__ = ["structural_feeds", "structural_slots"]

# the registry of nnx.bridge (flax 0.12.12); other collections give a type of their own name
VARIABLE_TYPES = {
    "params": "Param",
    "batch_stats": "BatchStat",
    "cache": "Cache",
    "intermediates": "Intermediate",
    "perturbations": "Perturbation",
}
RESERVED = frozenset({"extras", "metadata", "metrics", "descriptor"})


def structural_feeds(roles: Roles) -> list[Feed]:
    """One item for each state: ``model``, or the states' own names when there are several."""
    params = roles.of("params")
    names: list[str] = []
    found = []
    for group in params:
        state = roles.states[group.state]
        name = "model" if len(params) == 1 else _title(state) or "model"
        name = name.replace("/", "_")
        while name in names or name in RESERVED:
            name += "_"
        names.append(name)
        groups = (group, *roles.of("collection", group.state))
        wrapper = state.params[len(state.optimised) :]
        found.append(Feed(name, (), groups, group.state, wrapper))
    return found


def _title(state: State) -> str:
    """What its path is called; ``actor`` for ``actor_params`` of a bundle."""
    if state.params == state.prefix and state.prefix:
        return "_".join((*state.prefix[:-1], bundled_name(state.prefix[-1])))
    return "_".join(state.prefix)


def structural_slots(draft: Draft, rules: Rules, feeds: list[Feed]) -> None:
    """Add a slot for each leaf of the model collections.

    A ``map`` rule of one source and one slot without a change of shape renames here as well:
    its target is the name of the new slot.
    """
    renames = [r for r in rules.rules if isinstance(r, Map)]
    for feed in feeds:
        places: dict[SlotPath, LeafPath] = {}
        renamed = _renamed(renames, feed)
        for group in feed.groups:
            siblings = _children(group)
            for rel in group.paths:
                full = group.prefix + rel
                leaf = draft.table[full]
                if full in draft.ignored or leaf.kind not in ("array", "scalar", "key"):
                    continue
                variable = (group.collection, *rel)
                path = renamed.get(variable) or _unboxed(rel, siblings)
                if path in places:
                    _clash(draft, places[path], full, variable, path)
                    continue
                places[path] = full
                draft.create(_slot(draft, feed.item, path, group.collection, full), [full])


def _slot(draft: Draft, item: str, path: SlotPath, collection: str, full: LeafPath) -> Slot:
    leaf = draft.table[full]
    spec = spec_of(leaf)
    kind = VARIABLE_TYPES.get(collection, collection)
    ref = SlotRef(item, path)
    # without a model it is the cast rule that says what the new dtype is
    dtypes = [r.dtype for r in draft.casts if r.matches(ref)]
    return Slot(
        item=item,
        path=path,
        disk_path=(*path, BOX),
        variable_type=kind,
        collection=collection,
        shape=spec.shape,
        dtype=dtypes[0] if dtypes and leaf.kind != "key" else spec.dtype,
        key_impl=leaf.key_impl,
        ephemeral=kind in EPHEMERAL,
    )


def _children(group: Group) -> dict[LeafPath, int]:
    """How many children each module has."""
    count: dict[LeafPath, set[str]] = {}
    for path in group.paths:
        for n in range(len(path)):
            count.setdefault(path[:n], set()).add(path[n])
    return {p: len(names) for p, names in count.items()}


def _unboxed(path: LeafPath, children: dict[LeafPath, int]) -> SlotPath:
    """A last ``value`` that is an only child is a box; the Variable's own takes its place."""
    boxed = len(path) > 1 and path[-1] == BOX and children.get(path[:-1]) == 1
    return path[:-1] if boxed else path


def _renamed(rules: list[Map], feed: Feed) -> dict[LeafPath, SlotPath]:
    """What the first rule that matches a leaf calls it, by variable path."""
    if not rules:
        return {}
    index = PathIndex((path, path) for path in canonical(feed))
    found: dict[LeafPath, SlotPath] = {}
    for rule in rules:
        if len(rule.sources) == 1 and not isinstance(rule.to, tuple):
            if rule.item not in (None, feed.item):
                continue
            captures = set(rule.to.captures)
            for _, path, _ in index.near(rule.sources[0]):
                match = None if path in found else rule.sources[0].match(path)
                if match is not None and captures <= set(match):
                    found[path] = tuple(rule.to.fill(match))
    return found


def _clash(
    draft: Draft, first: LeafPath, second: LeafPath, variable: LeafPath, path: SlotPath
) -> None:
    draft.refuse(
        "ambiguous",
        f"{format_path(first)} and {format_path(second)} would both be Variable "
        f"{format_path(path)}: NNX has one namespace where Linen has collections",
        (second,),
        rule=f"[[map]]\nfrom = {quoted(variable)}\n"
        f"to = {quoted((*path[:-1], f'{path[-1]}_{variable[0]}'))}",
    )
