"""Constructor arguments by which two models behave differently though their parameters agree.

No shape shows an epsilon or a momentum. Layers that the same steps of the plan feed are held
against each other, argument by argument; nothing is computed, the models are only traced.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from bridge.behaviour_fields import EFFECTS, Unknown, plain, shown
from bridge.paired import Pairs, alike, module_groups, module_pairs
from bridge.probes import Model
from bridge.recording import LinenModule, linen_modules, nnx_modules
from legacy import format_path

__all__ = ["behaviour_warnings"]

Path = tuple[str, ...]

_NORMS = frozenset({"BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"})
_ATTENTION = frozenset({"MultiHeadDotProductAttention", "MultiHeadAttention", "SelfAttention"})
_BY_CALL = frozenset({"use_running_average", "deterministic", "decode"})
"""Given at each call, or by ``model.train()``: their defaults differ and mean nothing."""

_BY_SHAPE = frozenset({"features", "num_embeddings", "kernel_size", "param_dtype", "shape"})
"""What the shapes and dtypes of the parameters show already."""

_NO_BEHAVIOUR = frozenset(
    {
        "promote_dtype",
        "dot_general",
        "dot_general_cls",
        "conv_general_dilated",
        "conv_general_dilated_cls",
        "qkv_dot_general",
        "out_dot_general",
        "qkv_dot_general_cls",
        "out_dot_general_cls",
        "attention_fn",
        "variable_axes",
        "variable_broadcast",
        "variable_carry",
        "split_rngs",
        "variable_filter",
        "rng_collection",
        "qkv_features",
        "out_features",
        "batch_dims",
        "layer_instance",
        "cell",
        "forward_rnn",
        "backward_rnn",
        "collection_name",
    }
)
"""Compared by rules of their own, or not comparable at all."""

_ONLY_LINEN: Mapping[str, Any] = {
    "force_float32_reductions": True,
    "force_fp32_for_softmax": False,
    "qk_attn_weights_einsum_cls": None,
    "attn_weights_value_einsum_cls": None,
    "dot_general_cls": None,
    "conv_general_dilated_cls": None,
    "qkv_dot_general_cls": None,
    "out_dot_general_cls": None,
}
"""Arguments that NNX layers do not have, with what they do instead."""

_MAYBE = frozenset({"num_groups", "group_size"})
"""One of them follows from the other, and Linen leaves it None."""


_CAST_FIRST = (
    "NNX casts input, scale, bias and statistics to it first, Linen at the end: outputs differ by "
    "a few units of it"
)
_OTHER_KERNEL = "uses another kernel in NNX (jax.nn.dot_product_attention, as dropout_rate is 0)"
_KEY_BIAS = (
    "outputs differ by rounding only; key biases have no effect on them, and Adam lets these drift "
    "apart"
)


@dataclass(frozen=True, slots=True)
class _Finding:
    """One difference at one pair of layers."""

    text: str
    """What differs; equal texts are told once."""
    effect: str
    ours: Path
    theirs: Path
    kinds: tuple[str, str]
    order: int


def behaviour_warnings(ours: Model, theirs: Any, pairs: Pairs) -> tuple[str, ...]:
    """Differences between layers that are mapped to each other.

    Args:
        ours: the Linen model; its calls are traced abstractly.
        theirs: the NNX module, live or abstract, or a function that makes it.
        pairs: variable paths (collection first) and slot paths of each step of the plan.

    Returns:
        A sentence for each difference, with both values and both paths; layers with the same
        difference share one.
    """
    modules = _traced(ours)
    others = nnx_modules(theirs if isinstance(theirs, nnx.Module) else _abstract(theirs))
    kinds = {p: m.kind.__name__ for p, m in modules.items()}
    other_kinds = {p: type(m).__name__ for p, m in others.items()}
    found: list[_Finding] = []
    seen = set()
    exact = module_pairs(pairs, kinds, other_kinds)
    for left, right in (
        *exact,
        *_repeated(module_groups(pairs, kinds, other_kinds), kinds, other_kinds),
    ):
        if (left, right) not in seen and left in modules and right in others:
            seen.add((left, right))
            found += _layer((left, modules[left]), (right, others[right]))
    found += _dropouts(modules, others, exact)
    return tuple(_sentences(sorted(found, key=lambda f: f.order)))


def _traced(model: Model) -> dict[Path, LinenModule]:
    found: dict[Path, LinenModule] = {}
    for call in model.calls:

        def run(call: Any = call) -> None:
            # a function of its own: what was traced before would not be run again
            fresh = lambda *args: call.run(*args)  # noqa: E731, PLW0108 - see above
            jax.eval_shape(fresh, dict(model.specs), list(call.inputs))

        found = {**linen_modules(run), **found}
    return found


def _abstract(make: Callable[[], Any]) -> Any:
    with nnx.use_eager_sharding(False):
        # a function of its own: JAX compares what a traced function holds when it meets it again,
        # and arrays in it cannot be compared
        return nnx.eval_shape(lambda: make())  # noqa: PLW0108 - see above


def _repeated(
    groups: Sequence[tuple[tuple[Path, ...], tuple[Path, ...]]],
    ours: Mapping[Path, str],
    theirs: Mapping[Path, str],
) -> Iterator[tuple[Path, Path]]:
    """Layers of a stack on one side with each of its layers on the other."""
    for left, right in groups:
        for p in left:
            yield from ((p, q) for q in right if alike(ours[p], theirs[q]))


def _layer(ours: tuple[Path, LinenModule], theirs: tuple[Path, Any]) -> Iterator[_Finding]:
    path, module = ours
    kinds = module.kind.__name__, type(theirs[1]).__name__
    for text, effect in _differences(module, theirs[1], kinds):
        yield _Finding(text, effect, path, theirs[0], kinds, module.begun)


def _differences(
    module: LinenModule, other: Any, kinds: tuple[str, str]
) -> Iterator[tuple[str, str]]:
    flax_own = module.kind.__module__.startswith("flax.") and type(other).__module__.startswith(
        "flax."
    )
    if flax_own and not alike(*kinds):
        return
    for name, value in module.fields.items():
        if name in _BY_CALL | _BY_SHAPE | _NO_BEHAVIOUR or name.endswith("_init"):
            continue
        if not hasattr(other, name):
            continue
        a, b = plain(name, value), plain(name, getattr(other, name))
        if name in _MAYBE and None in (a, b):
            continue
        if name == "dtype" and _same_dtype(a, b, module.fields):
            continue
        if (flax_own or _simple(a, b)) and a != b:
            yield f"{name} is {shown(a)} in Linen and {shown(b)} in NNX", EFFECTS.get(name, "")
    if flax_own:
        yield from _special(module, other, kinds)


def _simple(a: Any, b: Any) -> bool:
    """Whether two values of the user's own layers can mean the same thing at all."""
    kinds = (bool, int | float, str)
    return any(isinstance(a, k) and isinstance(b, k) for k in kinds)


def _same_dtype(a: Any, b: Any, fields: Mapping[str, Any]) -> bool:
    """Linen's None promotes, which for float32 parameters gives float32."""
    held = np.dtype(fields.get("param_dtype") or np.float32).name
    return held == "float32" and {a, b} <= {None, "float32"}


def _special(module: LinenModule, other: Any, kinds: tuple[str, str]) -> Iterator[tuple[str, str]]:
    fields = module.fields
    for name, usual in _ONLY_LINEN.items():
        if name in fields and fields[name] != usual:
            value = plain(name, fields[name])
            said = "set" if isinstance(value, Unknown) else shown(value)
            yield f"{name} is {said} in Linen; NNX has no such argument", "numbers differ"
    half = plain("dtype", fields.get("dtype"))
    if kinds[0] in _NORMS and half in ("bfloat16", "float16"):
        yield f"computes in {half}", _CAST_FIRST
    if kinds[0] in _ATTENTION:
        yield from _attention(fields, other)


def _attention(fields: Mapping[str, Any], other: Any) -> Iterator[tuple[str, str]]:
    given = getattr(fields.get("attention_fn"), "__module__", "")
    theirs = getattr(getattr(other, "attention_fn", None), "__module__", "")
    if not given.startswith("flax.linen") or not theirs.startswith("flax.nnx"):
        a, b = (
            plain("f", f)
            for f in (fields.get("attention_fn"), getattr(other, "attention_fn", None))
        )
        if a != b:
            yield f"attention_fn is {shown(a)} in Linen and {shown(b)} in NNX", ""
    elif not getattr(other, "dropout_rate", 0.0):
        yield _OTHER_KERNEL, _KEY_BIAS
    if fields.get("decode"):
        yield "decodes from a cache in Linen", "NNX needs decode=True and init_cache()"


def _dropouts(
    modules: Mapping[Path, LinenModule],
    others: Mapping[Path, Any],
    exact: Sequence[tuple[Path, Path]],
) -> Iterator[_Finding]:
    """Dropout has no parameters; its rates are compared layer by layer."""
    ours: dict[Path, set[float]] = defaultdict(set)
    theirs: dict[Path, set[float]] = defaultdict(set)
    left, right = {p for p, _ in exact}, {q for _, q in exact}
    for path, module in modules.items():
        if module.kind.__name__ == "Dropout" and module.fields["rate"]:
            ours[_owner(path, left)].add(float(module.fields["rate"]))
    for path, module in others.items():
        if isinstance(module, nnx.Dropout) and module.rate:
            theirs[_owner(path, right)].add(float(module.rate))
    for p, q in exact:
        if ours[p] != theirs[q] and p in modules:
            a, b = (", ".join(map(str, sorted(r))) or "none" for r in (ours[p], theirs[q]))
            kinds = modules[p].kind.__name__, type(others[q]).__name__
            text = f"dropout rates are {a} in Linen and {b} in NNX"
            yield _Finding(text, EFFECTS["rate"], p, q, kinds, modules[p].begun)


def _owner(path: Path, known: set[Path]) -> Path:
    return next((path[:n] for n in range(len(path) - 1, -1, -1) if path[:n] in known), ())


def _sentences(found: Sequence[_Finding]) -> Iterator[str]:
    same: dict[tuple[str, str, tuple[str, str]], list[_Finding]] = {}
    for one in found:
        same.setdefault((one.text, one.effect, one.kinds), []).append(one)
    for (text, effect, (ours, theirs)), all_of in same.items():
        first = all_of[0]
        more = f" and {len(all_of) - 1} more" if len(all_of) > 1 else ""
        left = format_path(first.ours) if first.ours else "the model"
        right = format_path(first.theirs) if first.theirs else "the model"
        where = f"Linen {left} ({ours}) / NNX {right} ({theirs}){more}"
        yield f"{where}: {text}" + (f"; {effect}" if effect else "")
