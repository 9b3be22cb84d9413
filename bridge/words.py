"""What the names of states, optimizers and items say.

People call one thing ``critic``, ``critic_params``, ``params_critic``, ``CriticState`` and
``states/critic``, and its optimizer ``critic_opt_state``. The words that say which model is meant
are told from those that only say what kind of thing it is, so that names can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = [
    "all_words",
    "bundled_name",
    "copy_words",
    "is_optimizer_name",
    "is_params_name",
    "name_words",
    "without_copy_words",
]

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_PLAIN = frozenset(
    {"param", "variable", "weight", "state", "train", "training", "ts", "model", "module",
     "network", "net", "nnx", "default", "opt", "optim", "optimizer", "optimiser", "tx"}
)  # fmt: skip
"""Words that say what kind of thing it is, in the singular."""

_AVERAGES = ("ema", "teacher", "avg", "average", "polyak", "shadow", "swa", "slow")
_COPIES = (*_AVERAGES, "target", "best", "old", "init", "prev")
_EXACT = frozenset({"old", "best", "init", "prev", "slow", "swa", "avg"})
"""Short words that other words start with, too (``slower``, ``bestiary``)."""

_OPTIMIZER = re.compile(
    r"(?:.+_)?(?:opt|optim|optimi[sz]er|tx)_states?(?:_.+)?|(?:.+_)?opts?", re.IGNORECASE
)
_PARAMS = re.compile(r".+_(?:params|variables|weights)|(?:params|variables)_.+", re.IGNORECASE)


def name_words(names: str | Iterable[str]) -> tuple[str, ...]:
    """The words of a name, or of a path, that say which one is meant; sorted, in the singular.

    >>> name_words("params_actor") == name_words(("actor", "params")) == ("actor",)
    True
    >>> name_words("TargetCritic") == name_words("target_critic_params")
    True
    >>> name_words(("agents", "3", "train_state")) == name_words("agent3")
    True
    """
    found = (w for name in ((names,) if isinstance(names, str) else names) for w in all_words(name))
    return tuple(sorted(w for w in found if w not in _PLAIN))


def all_words(name: str) -> Iterator[str]:
    """Every word of a name, in the singular.

    >>> list(all_words("RandomParams_2"))
    ['random', 'param', '2']
    """
    for word in _WORD.findall(name):
        lower = word.lower()
        plural = len(lower) > 3 and lower.endswith("s") and not lower.endswith("ss")  # noqa: PLR2004 - 'bus', 'ts'
        yield lower[:-1] if plural else lower


def is_optimizer_name(name: str) -> bool:
    """Whether a key is called like an optimizer state.

    >>> [is_optimizer_name(n) for n in ("opt_state", "critic_opt_state", "opt_state_0", "adopt")]
    [True, True, True, False]
    """
    return _OPTIMIZER.fullmatch(name) is not None


def is_params_name(name: str) -> bool:
    """Whether a key is called like the params of one model of several.

    >>> [is_params_name(n) for n in ("actor_params", "params_critic", "params")]
    [True, True, False]
    """
    return _PARAMS.fullmatch(name) is not None


def bundled_name(name: str) -> str:
    """The name without what makes it one of params.

    >>> bundled_name("actor_params"), bundled_name("params_actor")
    ('actor', 'actor')
    """
    for kind in ("params", "variables", "weights"):
        name = name.removesuffix(f"_{kind}").removeprefix(f"{kind}_")
    return name


def copy_words(words: Iterable[str]) -> tuple[str, ...]:
    """Those words that people give to copies of params; all words for an average are one.

    >>> copy_words(name_words("target_critic_params")), copy_words(["teacher"])
    (('target',), ('ema',))
    """
    found = []
    for word in words:
        kind = next((c for c in _COPIES if _starts(word, c)), None)
        if kind is not None:
            found.append("ema" if kind in _AVERAGES else kind)
    return tuple(sorted(set(found)))


def without_copy_words(words: Iterable[str]) -> tuple[str, ...]:
    """The other words: which model a copy is of.

    >>> without_copy_words(("critic", "target"))
    ('critic',)
    """
    return tuple(w for w in words if not copy_words((w,)))


def _starts(word: str, kind: str) -> bool:
    if kind == "init":
        return word in ("init", "initial")
    return word == kind or (kind not in _EXACT and word.startswith(kind))
