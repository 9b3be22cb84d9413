"""PRNG keys of the checkpoint, and the random streams of the model.

Linen keeps no stream in a model, so a key in an old checkpoint belonged to the training loop;
``nnx.Rngs`` lives in the model. Masks cannot go on bit for bit (Linen folds the module's path into
a key, NNX counts), so what becomes of both is a policy that the user states, and the plan says
which one it followed:

=========  ==============================================  ====================================
policy     keys of the checkpoint                          streams of the model
=========  ==============================================  ====================================
``keep``   carried to ``extras``                           start from ``seed=``
``reseed`` carried to ``extras``                           start from the key of the checkpoint
``drop``   ignored by the rule ``drop-rng``                start from ``seed=``
=========  ==============================================  ====================================
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.carry import carry
from bridge.errors import BridgeError
from bridge.nnx_source import is_stream, plain_path
from bridge.rule_text import init_rule
from bridge.target import Slot
from bridge.transforms_keys import StreamKey
from bridge.words import all_words
from bridge.work import Work
from legacy import Leaf, LeafPath, format_path

__all__ = ["POLICIES", "checked_policy", "settle_rngs"]

POLICIES = ("keep", "reseed", "drop")
_KIND_WORDS = frozenset({"rng", "key", "prng", "seed", "random", "base"})
_WIDTHS = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}


def checked_policy(policy: str) -> str:
    """The policy, when it is one.

    Raises:
        BridgeError: it is none.

    >>> checked_policy("reseed")
    'reseed'
    """
    if policy not in POLICIES:
        raise BridgeError(f"rngs={policy!r} is no policy; write {', '.join(map(repr, POLICIES))}.")
    return policy


def settle_rngs(work: Work) -> None:
    """Do with keys and streams what ``work.rngs`` says.

    Args:
        work: gets steps, ignored leaves and a warning; streams that are left are initialised from
            the seed at the end, as all that is ephemeral.
    """
    draft = work.draft
    keys = [p for g in work.roles.of("rng") for p in g.full() if draft.open_source(p)]
    if work.nnx:
        streams_of_old = (p for p in work.table if is_stream(p) and draft.open_source(p))
        keys = list(dict.fromkeys((*keys, *streams_of_old)))
    streams = [s for s in draft.slots.values() if s.key_impl and draft.open_slot(s.ref)]
    streams = [s for s in streams if s.collection == "rngs"]
    if work.rngs == "drop":
        for path in keys:
            draft.ignore(path, "drop-rng")
    else:
        carry(draft, keys, "keep-rng")
    if work.rngs == "reseed":
        _reseed(work, [p for p in keys if _is_key(work.table[p])], streams)
    left = [s for s in streams if draft.open_slot(s.ref)]
    if left:
        work.warnings.append(_said(work, keys, left))


def _is_key(leaf: Leaf) -> bool:
    """Whether it is a key, and no count of a stream."""
    return leaf.kind == "key" or (leaf.kind == "array" and leaf.shape[-1:] in ((2,), (4,)))


def _said(work: Work, keys: Sequence[LeafPath], left: Sequence[Slot]) -> str:
    many = f"{len(left)} random stream{'s' * (len(left) > 1)} of the model"
    text = f"{many} start{'s' * (len(left) == 1)} from seed {work.seed} (rngs={work.rngs!r})"
    if not keys:
        return f"{text}: the checkpoint has no PRNG key"
    named = ", ".join(format_path(p) for p in keys[:3]) + ", ..." * (len(keys) > 3)  # noqa: PLR2004 - three fit on a line
    done = "left behind" if work.rngs == "drop" else "kept in extras"
    return f"{text}; the keys of the checkpoint ({named}) are {done}"


def _reseed(work: Work, keys: Sequence[LeafPath], streams: Sequence[Slot]) -> None:
    draft = work.draft
    for slot in streams:
        fit = [p for p in keys if _alike(work.table[p], slot)]
        chosen = _chosen(fit, slot)
        if chosen is not None:
            leaf = work.table[chosen]
            alone = len(streams) == 1 and leaf.shape == slot.shape
            how = () if alone else (StreamKey(str(slot.ref), slot.shape),)
            draft.add([chosen], [slot.ref], how, "rule:reseed")
        elif keys:
            draft.refuse(
                "ambiguous" if fit else "dtype",
                f"rngs='reseed': {len(fit)} of the {len(keys)} PRNG keys of the checkpoint are "
                f"{slot.key_impl} keys for the stream {slot.ref}"
                + (", and no name says which one is meant" if fit else ""),
                refs=[slot.ref],
                rule=init_rule(slot.ref, f'"rng:{work.seed}"'),
                candidates=tuple(_words_of(p, work.table[p]) for p in keys),
            )


def _words_of(path: LeafPath, leaf: Leaf) -> str:
    return f"{format_path(path)} {leaf.key_impl or 'uint32'}{list(leaf.shape)}"


def _alike(leaf: Leaf, slot: Slot) -> bool:
    """Whether a key is of the stream's algorithm; a raw one does not say more than its width."""
    if leaf.key_impl is not None:
        return leaf.key_impl == slot.key_impl
    return leaf.shape[-1:] == (_WIDTHS.get(slot.key_impl or "", 0),)


def _chosen(keys: Sequence[LeafPath], slot: Slot) -> LeafPath | None:
    """The key for a stream: the only one, the one of its name, or the one without a name."""
    if len(keys) == 1:
        return keys[0]
    for wanted in (_words((slot.stream or "",)), ()):
        named = [p for p in keys if _stream_words(p) == wanted]
        if len(named) == 1:
            return named[0]
    return None


def _stream_words(path: LeafPath) -> tuple[str, ...]:
    plain = plain_path(path)
    name = plain[-2:-1] if len(plain) > 1 and plain[-1] == "key" else plain[-1:]
    return _words(name)


def _words(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(w for name in names for w in all_words(name) if w not in _KIND_WORDS)
