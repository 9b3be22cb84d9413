"""A table as nested dicts, and where in it the states of models are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from legacy import Leaf, LeafPath, LeafTable

__all__ = [
    "State",
    "Tree",
    "is_flax_optim",
    "node_at",
    "primary",
    "shapes_in",
    "states_in",
    "tree_of",
]

Tree: TypeAlias = "dict[str, Tree | Leaf]"

PARAMS = "params"
OPT_NAMES = frozenset(
    {"opt_state", "opt_states", "optimizer_state", "optim_state", "tx_state", "opt"}
)
COLLECTION_NAMES = frozenset(
    {"batch_stats", "cache", "intermediates", "losses", "perturbations", "spectral_stats",
     "_overwrite_with_gradient", "aqt", "quant", "lora", "state_vars"}
)  # fmt: skip
COPY_NAME = re.compile(
    r"ema|target|avg|average|teacher|shadow|slow|polyak|swa|best|old|init", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class State:
    """One set of model variables found in the tree.

    Attributes:
        prefix: the TrainState, variables dict or bundle entry that holds it.
        optimised: the subtree that the optimizer saw (``TrainState.params``).
        variables: the parent of the collections.
        params: the params collection itself.
    """

    prefix: LeafPath
    optimised: LeafPath
    variables: LeafPath
    params: LeafPath

    @property
    def name(self) -> str:
        """The last component of the prefix, or an empty string at the root."""
        return self.prefix[-1] if self.prefix else ""


def tree_of(table: LeafTable) -> Tree:
    """The table as nested dicts."""
    root: Tree = {}
    for path, leaf in table.items():
        node = root
        for part in path[:-1]:
            child = node.setdefault(part, {})
            assert isinstance(child, dict)  # noqa: S101 - LeafTable holds no leaf below a leaf
            node = child
        node[path[-1] if path else ""] = leaf
    return root


def states_in(node: Tree, prefix: LeafPath) -> Iterator[State]:
    """States below a node, outermost first."""
    params = node.get(PARAMS)
    if isinstance(params, dict):
        top = (*prefix, PARAMS)
        doubled = isinstance(params.get(PARAMS), dict)
        yield State(prefix, top, top if doubled else prefix, (*top, PARAMS) if doubled else top)
        rest = {k: v for k, v in node.items() if k != PARAMS}
    elif isinstance(node.get("target"), dict) and is_flax_optim(node.get("state")):
        # a flax.optim.Optimizer has its params in `target` and all else in `state`
        target = node["target"]
        top = (*prefix, "target")
        doubled = isinstance(target, dict) and isinstance(target.get(PARAMS), dict)
        yield State(prefix, top, top, (*top, PARAMS) if doubled else top)
        rest = {k: v for k, v in node.items() if k not in ("target", "state")}
    else:
        rest = node
    for name, child in rest.items():
        if isinstance(child, dict) and name not in OPT_NAMES | COLLECTION_NAMES:
            yield from states_in(child, (*prefix, name))


def is_flax_optim(node: Tree | Leaf | None) -> bool:
    """Whether a node is the state of a ``flax.optim`` optimizer."""
    return isinstance(node, dict) and "param_states" in node


def primary(states: Iterator[State], tree: Tree) -> Iterator[State]:
    """The states that are not copies of another one by name and structure."""
    found = list(states)
    shapes = [shapes_in(node_at(tree, s.params)) for s in found]
    for n, state in enumerate(found):
        named_copy = any(COPY_NAME.search(p) for p in state.prefix)
        twin = any(
            m != n and shapes[m] == shapes[n] and not any(COPY_NAME.search(p) for p in o.prefix)
            for m, o in enumerate(found)
        )
        if not (named_copy and twin):
            yield state


def shapes_in(node: Tree, prefix: LeafPath = ()) -> dict[LeafPath, tuple[int, ...]]:
    """Shapes below a node by relative path; costs what the subtree costs, not the table."""
    found: dict[LeafPath, tuple[int, ...]] = {}
    for name, child in node.items():
        if isinstance(child, dict):
            found |= shapes_in(child, (*prefix, name))
        else:
            found[*prefix, name] = child.shape
    return found


def node_at(tree: Tree, path: LeafPath) -> Tree:
    """The inner node at a path."""
    node = tree
    for part in path:
        child = node[part]
        assert isinstance(child, dict)  # noqa: S101 - asked for inner nodes only
        node = child
    return node
