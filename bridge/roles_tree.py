"""A table as nested dicts, and where in it the states of models are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from bridge.words import copy_words, is_optimizer_name, is_params_name, name_words
from legacy import Leaf, LeafPath, LeafTable

__all__ = [
    "State",
    "Tree",
    "is_flax_optim",
    "mirrored",
    "node_at",
    "primary",
    "shapes_in",
    "states_in",
    "tree_of",
]

Tree: TypeAlias = "dict[str, Tree | Leaf]"

PARAMS = "params"
COLLECTION_NAMES = frozenset(
    {"batch_stats", "cache", "intermediates", "losses", "perturbations", "spectral_stats",
     "_overwrite_with_gradient", "aqt", "quant", "lora", "state_vars"}
)  # fmt: skip
# fields of optax and flax.optim states that hold one array for each parameter
MOMENT_NAMES = frozenset(
    {"mu", "nu", "trace", "acc_grads", "nu_max", "sum_of_squares", "exp_avg", "exp_avg_sq",
     "param_states"}
)  # fmt: skip
# leaves that only the layers of a model are called, so that `env_params` is no model
LAYER_LEAVES = frozenset(
    {"kernel", "bias", "scale", "embedding", "w", "b", "weight", "gamma", "beta", "embeddings"}
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
    def words(self) -> tuple[str, ...]:
        """What its path says about which model it is, see :func:`bridge.words.name_words`."""
        return name_words(self.prefix)


def tree_of(table: LeafTable) -> Tree:
    """The table as nested dicts."""
    root: Tree = {}
    node = root
    parent: LeafPath = ()
    for path, leaf in table.items():
        if path[:-1] != parent:  # leaves of one parent come one after the other
            node, parent = root, path[:-1]
            for part in parent:
                child = node.setdefault(part, {})
                assert isinstance(child, dict)  # noqa: S101 - LeafTable: none below a leaf
                node = child
        node[path[-1] if path else ""] = leaf
    return root


def states_in(node: Tree, prefix: LeafPath) -> Iterator[State]:
    """States below a node, outermost first."""
    params = node.get(PARAMS)
    if isinstance(params, dict):
        top = (*prefix, PARAMS)
        doubled = isinstance(params.get(PARAMS), dict)
        if is_lookahead(params):
            fast = (*top, "fast")
            yield State(prefix, fast, prefix, fast)
        else:
            inner = (*top, PARAMS) if doubled else top
            yield State(prefix, top, top if doubled else prefix, inner)
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
        path = (*prefix, name)
        if not isinstance(child, dict) or name in COLLECTION_NAMES:
            continue
        if is_params_name(name) and _is_model(node, name, child):
            yield State(path, path, path, path)
        elif name not in MOMENT_NAMES and not is_optimizer_name(name):
            yield from states_in(child, path)


def is_lookahead(node: Tree) -> bool:
    """Whether params are two sets, as ``optax.lookahead`` keeps them: fast and slow ones."""
    if node.keys() != {"fast", "slow"}:
        return False
    fast, slow = node["fast"], node["slow"]
    return isinstance(fast, dict) and isinstance(slow, dict) and shapes_in(fast) == shapes_in(slow)


def _is_model(node: Tree, name: str, child: Tree) -> bool:
    """Whether ``actor_params`` holds the params themselves, and of a model."""
    if PARAMS in child:
        return False  # variables under such a name: the params are further down
    optimized = any(is_optimizer_name(n) and name_words(n) == name_words(name) for n in node)
    arrays = {p: s for p, s in shapes_in(child).items() if s}
    return bool(arrays) and (optimized or any(p[-1] in LAYER_LEAVES for p in arrays))


def mirrored(tree: Tree) -> Iterator[State]:
    """States without any key that says so: subtrees that some optimizer's arrays are shaped like.

    So are ``(params, opt_state)`` as a tuple, and ``{"actor": ..., "actor_opt": ...}``.
    """
    moments = [shapes_in(node) for node in _moments(tree) if shapes_in(node)]

    def below(node: Tree, prefix: LeafPath) -> Iterator[State]:
        for name, child in node.items():
            path = (*prefix, name)
            if not isinstance(child, dict) or name in MOMENT_NAMES:
                continue
            if shapes_in(child) in moments:
                yield State(path, path, path, path)
            else:
                yield from below(child, path)

    return below(tree, ())


def _moments(node: Tree) -> Iterator[Tree]:
    for name, child in node.items():
        if isinstance(child, dict):
            if name in MOMENT_NAMES:
                yield child
            else:
                yield from _moments(child)


def is_flax_optim(node: Tree | Leaf | None) -> bool:
    """Whether a node is the state of a ``flax.optim`` optimizer."""
    return isinstance(node, dict) and "param_states" in node


def primary(states: Iterator[State], tree: Tree) -> tuple[list[State], list[State]]:
    """Tell the states from those that are copies of another one, by name and structure.

    Returns:
        The states, and the copies.
    """
    found = list(states)
    shapes = [shapes_in(node_at(tree, s.params)) for s in found]
    kept: list[State] = []
    copies: list[State] = []
    for n, state in enumerate(found):
        words = set(copy_words(state.words))
        twins = [
            other
            for m, other in enumerate(found)
            # a part of the params under their own names is a copy, too (masked averages)
            if m != n
            and shapes[n].items() <= shapes[m].items()
            and 2 * len(shapes[n]) >= len(shapes[m])
        ]
        named = any(words - set(copy_words(o.words)) for o in twins)
        # `frozen_params` beside the `params` of one TrainState, when no optimizer has it
        bundled = state.params == state.prefix and not _optimized(tree, state)
        beside = bundled and any((*state.prefix[:-1], PARAMS) == o.optimised for o in twins)
        (copies if named or beside else kept).append(state)
    return kept, copies


def _optimized(tree: Tree, state: State) -> bool:
    beside = node_at(tree, state.prefix[:-1])
    return any(is_optimizer_name(n) and name_words(n) == name_words(state.prefix[-1])
               for n in beside)  # fmt: skip


def shapes_in(node: Tree, prefix: LeafPath = ()) -> dict[LeafPath, tuple[int, ...]]:
    """Shapes below a node by relative path; costs what the subtree costs, not the table."""
    found: dict[LeafPath, tuple[int, ...]] = {}

    def below(node: Tree, prefix: LeafPath) -> None:
        for name, child in node.items():
            if isinstance(child, dict):
                below(child, (*prefix, name))
            else:
                found[*prefix, name] = child.shape

    below(node, prefix)
    return found


def node_at(tree: Tree, path: LeafPath) -> Tree:
    """The inner node at a path."""
    node = tree
    for part in path:
        child = node[part]
        assert isinstance(child, dict)  # noqa: S101 - asked for inner nodes only
        node = child
    return node
