"""States of ``flax.optim`` (flax 0.1 to 0.5), said in the words of optax.

``{'step', 'param_states': {<parameter>: {'grad_ema', 'grad_sq_ema'}}}`` holds what optax holds in
``mu``, ``nu`` and ``count``, the other way round: by parameter first, by field second. The state
does not name its optimizer, and some that differ use the same fields; what was measured of that
against the old releases is in the notes of a plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from bridge.draft import Draft, spec_of
from bridge.optimizer_heads import Path
from bridge.rule_text import quoted
from bridge.target import Slot, SlotPath, SlotRef
from bridge.transforms import Cast, Transform
from legacy import LeafPath, format_path

__all__ = ["NOTES", "RULE", "as_optax", "by_head", "count_cast", "is_flax_optim", "step_paths"]

RULE = "rule:flax-optim"
_STATES = "param_states"
_ADAFACTOR = frozenset({"v_row", "v_col", "v", "m"})

_FIELDS: Mapping[frozenset[str], Mapping[str, str]] = {
    frozenset({"grad_ema", "grad_sq_ema"}): {"grad_ema": "mu", "grad_sq_ema": "nu"},
    frozenset({"momentum"}): {"momentum": "trace"},
    frozenset({"v"}): {"v": "nu"},
    frozenset({"v", "mg"}): {"v": "nu", "mg": "mu"},
    frozenset({"G"}): {"G": "sum_of_squares"},
    frozenset({"sq_avg", "acc_delta"}): {"sq_avg": "e_g", "acc_delta": "e_x"},
    _ADAFACTOR: {"v_row": "v_row", "v_col": "v_col", "v": "v", "m": "ema"},
}
"""The name in optax of each field, by all fields of a parameter."""

_LAYOUT: Mapping[frozenset[str], tuple[Mapping[str, Path], tuple[Path, ...]]] = {
    frozenset({"grad_ema", "grad_sq_ema"}): (
        {"grad_ema": ("0", "mu"), "grad_sq_ema": ("0", "nu")}, (("0", "count"),)),
    frozenset({"momentum"}): ({"momentum": ("0", "trace")}, ()),
    frozenset({"v"}): ({"v": ("0", "nu")}, ()),
    frozenset({"v", "mg"}): ({"v": ("0", "nu"), "mg": ("0", "mu")}, ()),
    frozenset({"G"}): ({"G": ("0", "sum_of_squares")}, ()),
    frozenset({"sq_avg", "acc_delta"}): ({"sq_avg": ("1", "e_g"), "acc_delta": ("1", "e_x")}, ()),
    _ADAFACTOR: (
        {"v_row": ("0", "v_row"), "v_col": ("0", "v_col"), "v": ("0", "v"), "m": ("4", "ema")},
        (("0", "count"), ("4", "count")),
    ),
}  # fmt: skip
"""Where ``optax.adam``, ``sgd``, ``rmsprop``, ... keep it, and their counts."""

NOTES: Mapping[str, str] = {
    "grad_ema": "flax.optim does not say which optimizer it was: Adam is optax.adam (with "
    "weight_decay optax.adamw), LAMB is optax.lamb, AdaBelief is optax.adabelief",
    "momentum": "flax.optim does not say which optimizer it was: Momentum is optax.sgd(momentum=); "
    "LARS kept updates with the learning rate in them, and with the other sign than optax.lars",
    "v": "flax.optim.RMSProp adds eps outside of the root: optax.rmsprop(eps_in_sqrt=False); its "
    "beta2, which is optax's decay, was 0.999 by default in flax 0.1",
    "G": "flax.optim.Adagrad adds eps outside of the root, optax.adagrad inside",
    "sq_avg": "flax.optim.Adadelta decays weights after the update, optax.adadelta before it",
    "v_row": "flax.optim.Adafactor is optax.adafactor with the same arguments; its beta1 is "
    "optax's momentum",
}


def is_flax_optim(paths: Iterable[LeafPath]) -> bool:
    """Whether these are paths of a ``flax.optim`` state.

    >>> is_flax_optim([("step",), ("param_states", "kernel", "momentum")])
    True
    """
    return any(p[0] == _STATES for p in paths if p)


def step_paths(prefix: LeafPath, paths: Iterable[LeafPath]) -> list[LeafPath]:
    """The step of a ``flax.optim`` state, as a full path; none of any other state."""
    known = list(paths)
    return [(*prefix, "step")] if is_flax_optim(known) and ("step",) in known else []


def count_cast(draft: Draft, path: LeafPath) -> tuple[Transform, ...]:
    """How a step becomes one of optax's counts."""
    return () if spec_of(draft.table[path]).dtype == "int32" else (Cast("int32", exact=True),)


def by_parameter(
    sources: Mapping[LeafPath, LeafPath], params: Iterable[LeafPath]
) -> dict[LeafPath, dict[str, LeafPath]]:
    """The fields of each parameter: full path by field by parameter path.

    What lies between ``param_states`` and a parameter (``params``, when the optimizer was made for
    all variables) is left out.
    """
    names = set(params)
    found: dict[LeafPath, dict[str, LeafPath]] = defaultdict(dict)
    for rel, full in sources.items():
        path = rel[1:-1]
        while path and path not in names:
            path = path[1:]
        if rel[0] == _STATES and path:
            found[path][rel[-1]] = full
    return found


def _placeholders(draft: Draft, fields: Mapping[LeafPath, Mapping[str, LeafPath]]) -> set[LeafPath]:
    """Adafactor without momentum keeps one zero for each parameter in ``m``."""
    kept = {p: f["m"] for p, f in fields.items() if f.keys() == _ADAFACTOR}
    if any(draft.table[full].shape != (1,) for full in kept.values()):
        return set()
    return set(kept.values())


def by_head(
    draft: Draft,
    sources: Mapping[LeafPath, LeafPath],
    images: Mapping[LeafPath, list[SlotPath]],
    theirs: Mapping[Path, Mapping[SlotPath, Slot]],
    params: Mapping[LeafPath, LeafPath],
) -> dict[Path, dict[LeafPath, LeafPath]]:
    """Say where in the state of an optax optimizer each array belongs.

    Args:
        draft: gets problems for what could be in two places, and placeholders as ignored.
        sources: full path by path below the old state.
        images: what each parameter became.
        theirs: the slots of the optimizer, by head.
        params: the parameters, full path by path below params.

    Returns:
        Full path by parameter path by head of the optimizer.
    """
    found: dict[Path, dict[LeafPath, LeafPath]] = defaultdict(dict)
    fields = by_parameter(sources, params)
    empty = _placeholders(draft, fields)
    late: dict[LeafPath, SlotRef] = {}
    for path, own in fields.items():
        names = _FIELDS.get(frozenset(own), {})
        for name, full in own.items():
            if full in empty and not any(h[-1] == "ema" for h in theirs):
                draft.ignore(full, "placeholder")
                continue
            slots = {
                h: below[p]
                for h, below in theirs.items()
                for p in images.get(path, ())
                if h[-1] == names.get(name) and p in below
            }
            if len(slots) != 1:
                continue  # left over: one problem for the whole state
            ((head, slot),) = slots.items()
            if name == "momentum" and head[-2:-1] not in ((), ("0",)):
                late[full] = slot.ref
                continue
            found[head][path] = full
            if name in NOTES:
                draft.notes.append(NOTES[name])
    if late:
        _momentum_or_lars(draft, late)
    return dict(found)


def _momentum_or_lars(draft: Draft, places: Mapping[LeafPath, SlotRef]) -> None:
    """The same field with two meanings; where the new optimizer keeps a trace says which."""
    first = next(iter(places))
    draft.refuse(
        "moments",
        f"{format_path(first)} (and {len(places) - 1} more) is of flax.optim.Momentum or of LARS, "
        "which name it alike. The trace of the new optimizer is not the first of its chain, as in "
        "optax.lars, which keeps it with the other sign: the rules say that. If it was Momentum, "
        "leave out the scale",
        list(places),
        list(places.values()),
        "\n\n".join(
            f"[[map]]\nfrom = {quoted(path)}\nto = {quoted(ref.path)}\n"
            f"item = {quoted((ref.item,))}\n"
            'transforms = [{op = "scale", factor = -1.0}]'
            for path, ref in places.items()
        ),
    )


def as_optax(
    draft: Draft, sources: Mapping[LeafPath, LeafPath], params: Iterable[LeafPath]
) -> tuple[dict[LeafPath, LeafPath], list[LeafPath]] | None:
    """The same state under the paths that the optax counterpart has.

    Args:
        draft: gets placeholders as ignored.
        sources: full path by path below the old state.
        params: paths of the parameters.

    Returns:
        Full path by path of the arrays, and the paths of the counts; None when the state is not
        that of one optimizer.
    """
    fields = by_parameter(sources, params)
    kinds = {frozenset(own) for own in fields.values()}
    known = sum(map(len, fields.values()))
    if known != sum(rel[0] == _STATES for rel in sources):
        return None
    if not kinds:
        return {}, []
    if len(kinds) > 1 or not kinds <= _LAYOUT.keys():
        return None
    layout, counts = _LAYOUT[kinds.pop()]
    empty = _placeholders(draft, fields)
    for full in empty:
        draft.ignore(full, "placeholder")
    arrays = {
        (*layout[name], *path): full
        for path, own in fields.items()
        for name, full in own.items()
        if full not in empty
    }
    draft.notes += [NOTES[name] for name in layout if name in NOTES]
    used = {p[:1] for p in arrays}
    return arrays, [c for c in counts if c[:1] in used]
