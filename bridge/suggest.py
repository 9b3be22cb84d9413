"""Candidates and rules to paste, for what could not be paired.

A problem without a way forward is half a refusal. Open leaves are set against open slots of their
shape (then of their size), by names alone, each at most once: so the rules of all problems fit
together, and a leaf and its slot show the same one. They are guesses, for the user to judge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from math import prod
from typing import TypeAlias

from bridge._plan import Problem
from bridge.match import Candidate, path_of, ref_of
from bridge.names import may_pair, unboxed
from bridge.rule_text import init_rule, quoted
from bridge.suggest_pairs import Guess, guess_pairs
from bridge.suggest_rules import Known, write_rules
from bridge.target import SlotRef
from legacy import LeafPath, format_path

__all__ = ["Known", "suggest"]

_MOST = 3  # candidates shown


def suggest(
    sources: Sequence[Candidate], slots: Sequence[Candidate], known: Known, item: str | None
) -> list[Problem]:
    """A problem for each leaf without a slot and each slot without a leaf.

    Args:
        sources: open leaves of one item's collections.
        slots: open slots of that item.
        known: everything that feeds the item, and what is mapped already.
        item: named in rules where paths alone do not tell.

    Returns:
        One problem for each, with candidates and a rule; where an index repeats, twelve blocks
        have one rule.
    """
    guesses = guess_pairs(sources, slots, known.pairs)
    rules = write_rules(guesses, known, item)
    of_source: dict[Hashable, tuple[Guess, str]] = {}
    of_slot: dict[Hashable, tuple[Guess, str]] = {}
    for guess, rule in zip(guesses, rules, strict=True):
        of_source |= {c.key: (guess, rule) for c in guess.sources}
        of_slot |= {c.key: (guess, rule) for c in guess.slots}
    near_slots, near_sources = _by_shape(slots), _by_shape(sources)
    other_slots, other_sources = _Parts(slots), _Parts(sources)
    problems = []
    for source in sources:
        chosen = of_source.get(source.key)
        same = near_slots.get((source.collection, source.shape), [])
        others = _others(source, chosen[0].slots if chosen else (), same)
        rivals = len(near_sources[source.collection, source.shape])
        ambiguous = bool(same) and (len(same) > 1 or rivals > 1)
        message = f"{_variable(source)} {_shape(source)} has no slot"
        if ambiguous:
            message += (
                f"; {rivals} leaves and {len(same)} slots of this shape are open, and nothing "
                "proves which is which"
            )
        elif same:
            message += f"; slot {same[0].key} has its shape, and nothing proves that it is the one"
        problems.append(
            Problem(
                "ambiguous" if same else "unmatched-source",
                message,
                sources=(path_of(source),),
                candidates=tuple(f"{c.key} {_shape(c)}" for c in others),
                rule=chosen[1] if chosen else _alone(_ignore(source), source, other_slots),
            )
        )
    for slot in slots:
        chosen = of_slot.get(slot.key)
        same = near_sources.get((slot.collection, slot.shape), [])
        others = _others(slot, chosen[0].sources if chosen else (), same)
        ref = ref_of(slot)
        problems.append(
            Problem(
                "unfilled-slot",
                f"slot {ref} {_shape(slot)} has no source",
                slots=(ref,),
                candidates=tuple(f"{_variable(c)} {_shape(c)}" for c in others),
                rule=chosen[1]
                if chosen
                else _alone(init_rule(ref, _start(slot)), slot, other_sources),
            )
        )
    return problems


def _alone(rule: str, wanted: Candidate, others: _Parts) -> str:
    """A rule that gives up on a leaf or slot; only as a remark where it may be part of another.

    Who pastes without reading must not lose the gates of a cell, or fill a fused bias with zeros.
    """
    other = others.first(wanted)
    if other is None:
        return rule
    name = other.key if isinstance(other.key, SlotRef) else _variable(other)
    said = "\n".join(f"# {line}" for line in rule.splitlines())
    return (
        f"# {name} {_shape(other)} may be a part of it,\n# or the whole (join, stack, "
        f"split, unstack); if it really stands alone:\n{said}"
    )


_Kind: TypeAlias = "tuple[str, str, tuple[int, ...]]"


class _Parts:
    """Finds the first of many that one may be a part of, or the whole of.

    Blocks repeat, and only collection, name and shape decide: one look for each of these is enough.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.known: dict[_Kind, Candidate | None] = {}
        firsts: dict[_Kind, tuple[int, Candidate]] = {}
        for n, c in enumerate(candidates):
            firsts.setdefault(_kind(c), (n, c))
        self.by_size: dict[int, list[tuple[int, Candidate]]] = defaultdict(list)
        for n, c in firsts.values():
            self.by_size[prod(c.shape)].append((n, c))
        self.sizes = [n for n in self.by_size if n > 1]

    def first(self, wanted: Candidate) -> Candidate | None:
        """The first of them, in their order."""
        kind = _kind(wanted)
        if kind not in self.known:
            size = prod(wanted.shape)
            near = [n for n in self.sizes if not (size % n and n % size)] if size > 1 else []
            found = [one for n in near for one in self.by_size[n] if _part_of_one(wanted, one[1])]
            self.known[kind] = min(found, key=lambda one: one[0])[1] if found else None
        return self.known[kind]


def _kind(c: Candidate) -> _Kind:
    return c.collection, unboxed(c.path)[-1] if c.path else "", c.shape


def _part_of_one(a: Candidate, b: Candidate) -> bool:
    """Whether one may be cut out of the other: its other axes are the same."""
    big, small = sorted((a.shape, b.shape), key=prod, reverse=True)
    names = [unboxed(c.path)[-1] if c.path else "" for c in (a, b)]
    if a.collection != b.collection or not may_pair(names[0], names[1], (), placed=True):
        return False
    if not 1 < prod(small) < prod(big) or prod(big) % prod(small):
        return False
    if len(big) == len(small):
        return sum(m != n for m, n in zip(big, small, strict=True)) == 1
    if len(big) == len(small) + 1 and any(
        (*big[:n], *big[n + 1 :]) == small for n in range(len(big))
    ):
        return True
    # heads are an axis of their own on one side only
    return min(len(big), len(small)) > 1 and (big[0] == small[0] or big[-1] == small[-1])


def _others(
    wanted: Candidate, first: Sequence[Candidate], same: list[Candidate]
) -> list[Candidate]:
    """The guess, then others of the same shape that could be meant."""
    shown = {c.key: c for c in first[:_MOST]}
    for c in same:
        if len(shown) >= _MOST:
            break
        if may_pair(wanted.path[-1], c.path[-1], (), placed=True):
            shown.setdefault(c.key, c)
    return list(shown.values())


def _start(slot: Candidate) -> str:
    """What a new parameter of this name starts with, as TOML."""
    name = slot.path[-1] if slot.path else ""
    if name in ("scale", "var"):
        return '"ones"'
    if name in ("bias", "mean"):
        return '"zeros"'
    return '"zeros"  # or "ones", a number, "package.module:function"'


def _by_shape(candidates: Iterable[Candidate]) -> dict[Hashable, list[Candidate]]:
    found: dict[Hashable, list[Candidate]] = defaultdict(list)
    for c in candidates:
        found[c.collection, c.shape].append(c)
    return found


def _ignore(source: Candidate) -> str:
    return f"[[ignore]]\nsource = {quoted(_full(source))}"


def _full(c: Candidate) -> LeafPath:
    return (c.collection, *c.path)


def _variable(c: Candidate) -> str:
    return format_path(_full(c))


def _shape(c: Candidate) -> str:
    return f"{c.dtype}{list(c.shape)}"
