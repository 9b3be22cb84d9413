"""Says in words where two data flows part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.dataflow_colour import Colours
from bridge.dataflow_flow import Op
from bridge.dataflow_trace import Traced
from legacy import format_path

__all__ = ["aligned_differences", "first_apart"]

_SHOWN = 4
_SMALL = 0.01
_MOMENTUM = 0.5
_NAMED = frozenset({"relu", "relu6", "gelu", "silu", "swish", "elu", "selu", "celu", "softplus",
                    "leaky_relu", "hard_tanh", "log_sigmoid", "soft_sign", "glu"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Side:
    traced: Traced
    anchors: Mapping[int, int]

    def place(self, n: int) -> str:
        """The nearest parameter's module, before or at an operation."""
        ops = self.traced.flow.ops
        seen = {n}
        waiting = [n]
        while waiting:
            at = waiting.pop(0)
            for arg, _ in reversed(ops[at].args):
                if ops[arg].leaf >= 0:
                    return format_path(self.traced.leaves[ops[arg].leaf][:-1]) or "the model"
                if arg not in seen:
                    seen.add(arg)
                    waiting.append(arg)
        return "the input"

    def region(self, n: int) -> Counter[tuple[str, Hashable, str]]:
        """What is computed between an operation and those before it that have a partner."""
        ops = self.traced.flow.ops
        found: Counter[tuple[str, Hashable, str]] = Counter()
        waiting = [a for a, _ in ops[n].args]
        seen: set[int] = set()
        while waiting:
            at = waiting.pop()
            if at in seen or at in self.anchors:
                continue
            seen.add(at)
            found[ops[at].op, ops[at].key, ops[at].label] += 1
            waiting.extend(a for a, _ in ops[at].args)
        return found


def aligned_differences(
    both: tuple[Traced, Traced], pairs: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    """What differs between operations that correspond.

    Args:
        both: the models.
        pairs: operations of both that correspond.

    Returns:
        Sentences, in the order of the computation; each with its place in both models.
    """
    sides = tuple(_Side(t, {p[k]: n for n, p in enumerate(pairs)}) for k, t in enumerate(both))
    forms: dict[Hashable, int] = {}
    shapes = [_forms(s, forms) for s in sides]
    found: dict[str, list[tuple[str, str]]] = {}
    for a, b in sorted(pairs):
        one, other = both[0].flow.ops[a], both[1].flow.ops[b]
        texts = []
        if shapes[0][a] != shapes[1][b]:
            texts.append(_told(sides[0].region(a), sides[1].region(b)))
        if one.key != other.key and one.leaf < 0 and one.op not in ("output", "update"):
            texts.append(_keys(one, other))
        for text in texts:
            found.setdefault(text, []).append((sides[0].place(a), sides[1].place(b)))
    return tuple(
        f"{text} (at {places[0][0]} in Linen, {places[0][1]} in NNX"
        + (f", and {len(places) - 1} more)" if len(places) > 1 else ")")
        for text, places in found.items()
    )


def _forms(side: _Side, table: dict[Hashable, int]) -> list[int]:
    """A number for what each operation computes from the operations that have a partner."""
    out: list[int] = []
    inner: list[int] = []
    for n, op in enumerate(side.traced.flow.ops):
        args = [inner[a] for a, _ in op.args]
        form: Hashable = tuple(sorted(args) if op.symmetric else args)
        out.append(table.setdefault(("of", form), len(table)))
        partner = side.anchors.get(n)
        whole = ("at", partner) if partner is not None else ("op", op.op, op.key, form)
        inner.append(table.setdefault(whole, len(table)))
    return out


def _told(left: Counter[Any], right: Counter[Any]) -> str:
    more, less = left - right, right - left
    names = [_activation(x) for x in (more, less)]
    if any(names) and names[0] != names[1]:
        shown = [n or _listed(x) for n, x in zip(names, (more, less), strict=True)]
        return f"Linen computes {shown[0]}, NNX {shown[1]}"
    plain = [Counter({(o, k[0]): c for (o, k, _), c in x.items()}) for x in (more, less)]
    if plain[0] == plain[1] and more:
        return _numbers(more, less)
    converts = [sorted({str(k[0]) for o, k, _ in x if o == "convert_element_type"})
                for x in (more, less)]  # fmt: skip
    if any(converts) and all(o == "convert_element_type" for x in (more, less) for o, _, _ in x):
        shown = [f"converts to {', '.join(c)}" if c else "does not convert" for c in converts]
        return f"Linen {shown[0]} here, NNX {shown[1]}"
    if not more and not less:
        return "Linen and NNX compute this in another order"
    return f"Linen computes {_listed(more)}, NNX {_listed(less)}"


def _numbers(more: Counter[Any], less: Counter[Any]) -> str:
    parts = []
    left, right = ([(o, n) for (o, k, _) in sorted(x, key=str) for _, n in k[1]]
                   for x in (more, less))  # fmt: skip
    for (op, a), (_, b) in zip(left, right, strict=False):
        if a == b:
            continue
        small = all(isinstance(x, float) and 0 < x < _SMALL for x in (a, b))
        part = all(isinstance(x, float) and _MOMENTUM < x < 1 for x in (a, b))
        kind = "the epsilon" if op == "add" and small else f"the number in {op}"
        kind = "the momentum" if op == "mul" and part else kind
        parts.append(f"{kind} is {a:g} in Linen and {b:g} in NNX"
                     if isinstance(a, (int, float)) and isinstance(b, (int, float))
                     else f"{kind} is {a} in Linen and {b} in NNX")  # fmt: skip
    momentum = [p for p in parts if p.startswith("the momentum")]
    return "; ".join(momentum or parts) or "the numbers differ"


def _activation(ops: Counter[Any]) -> str:
    """The activation that operations are likely to be; empty if they look like none."""
    labels = sorted({label for _, _, label in ops if label in _NAMED})
    kinds = {o for o, _, _ in ops}
    likely = (
        ("the exact gelu", bool(kinds & {"erf", "erfc"})),
        ("gelu by tanh", {"tanh", "integer_pow"} <= kinds),
        (" and ".join(labels), bool(labels)),
        ("sigmoid or swish", "logistic" in kinds),
        ("tanh", "tanh" in kinds),
        ("relu", any(o == "max" and (0, 0) in k[1] for o, k, _ in ops)),
    )
    return next((name for name, is_it in likely if is_it), "")


def _listed(ops: Counter[Any]) -> str:
    if not ops:
        return "nothing of the kind"
    names = []
    for o, k, _ in sorted(ops, key=str)[:_SHOWN]:
        numbers = ", ".join(f"{n:g}" if isinstance(n, (int, float)) else str(n) for _, n in k[1])
        names.append(f"{o}({numbers})" if numbers else str(o))
    more = len(ops) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _keys(one: Op, other: Op) -> str:
    left, right = (dict(_items(op.key)) for op in (one, other))
    parts = [f"{k} is {left.get(k)} in Linen and {right.get(k)} in NNX"
             for k in sorted({*left, *right}) if left.get(k) != right.get(k)]  # fmt: skip
    return f"{one.op}: {'; '.join(parts) or 'other parameters'}"


def _items(key: Any) -> list[tuple[str, Any]]:
    """Parameters of a primitive by name, however deep they lie."""
    if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str):  # noqa: PLR2004
        return [key]
    if isinstance(key, tuple):
        return [x for part in key for x in _items(part)]
    return [] if isinstance(key, int) else [("result", key)]


def first_apart(both: tuple[Traced, Traced]) -> str:
    """The first operation whose like the other model has not, in words; empty if there is none."""
    colours = Colours([t.flow for t in both])
    colours.forward()
    texts = []
    for side in (0, 1):
        other = set(colours.node[1 - side])
        ops = both[side].flow.ops
        for n, op in enumerate(ops):
            if colours.node[side][n] in other:
                continue
            if op.leaf >= 0:
                continue
            if all(colours.node[side][a] in other or ops[a].leaf >= 0 for a, _ in op.args):
                near = _Side(both[side], {}).place(n)
                what = "a product" if op.op == "dot" else f"the operation {op.op}"
                texts.append(f"{both[side].name} has {what} at {near} {list(op.sizes)}")
                break
    if not texts:
        return ""
    return "; ".join(texts) + ": the other model has nothing like it there"
