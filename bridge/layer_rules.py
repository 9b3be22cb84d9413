"""The layer rules that the bridge brings itself: how Linen's layers become those of NNX.

Each rule has a code that stays, a sentence, and an example that a test runs and the README shows.
A rule is a function that puts views (:mod:`bridge.views`) in the places of leaves; what is then
paired with what is decided by matching alone, by the same names, shapes and doubts as always.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bridge.layer_rules_attention import attention_names, attention_qkv, attention_reshape
from bridge.layer_rules_cells import gru_fuse, lstm_fuse, simple_cell
from bridge.layer_rules_norms import norm_wrapper
from bridge.layer_rules_stacks import loop_stack, scan_axis, scan_unstack
from bridge.views import Sides
from legacy import LeafPath, parse_path

__all__ = ["LAYER_RULES", "LayerRule", "expanded"]


@dataclass(frozen=True, slots=True)
class LayerRule:
    """One correspondence between layers.

    Attributes:
        code: its name in plans, as ``rule:<code>``; never changes.
        text: what it does, in a sentence.
        before: an example: leaves of the checkpoint with their shapes.
        after: the slots that they become; those of another collection than ``params`` with it
            in front.
        steps: what a plan says of it.
        view: puts the views in place; None where another rule's view does it, too.
    """

    code: str
    text: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    steps: tuple[str, ...]
    view: Callable[[Sides], Sides] | None = None


def expanded(line: str) -> list[tuple[LeafPath, tuple[int, ...]]]:
    """Paths and shapes of one line of an example.

    >>> expanded("params/{a,b}/kernel [2,3]")
    [(('params', 'a', 'kernel'), (2, 3)), (('params', 'b', 'kernel'), (2, 3))]
    >>> expanded("params/layers_{0..1}/bias [3]")[1]
    (('params', 'layers_1', 'bias'), (3,))
    """
    text, _, shape = line.rpartition(" ")
    pieces = re.split(r"\{([^}]*)\}", text)
    choices = [[piece] if n % 2 == 0 else _choices(piece) for n, piece in enumerate(pieces)]
    sizes = tuple(int(n) for n in shape.strip("[]").split(",") if n)
    return [(parse_path("".join(found)), sizes) for found in itertools.product(*choices)]


def _choices(text: str) -> list[str]:
    first, dots, last = text.partition("..")
    return [str(n) for n in range(int(first), int(last) + 1)] if dots else text.split(",")


_LSTM_GATES = (
    "params/cell/{ii,if,ig,io}/kernel [3,4]",
    "params/cell/{hi,hf,hg,ho}/kernel [4,4]",
    "params/cell/{hi,hf,hg,ho}/bias [4]",
)
_LSTM_JOINED = (
    "cell/dense_i/kernel [3,16]",
    "cell/dense_h/kernel [4,16]",
    "cell/dense_h/bias [16]",
)

LAYER_RULES: Mapping[str, LayerRule] = {
    rule.code: rule
    for rule in (
        LayerRule(
            "lstm-fuse",
            "The gates of a Linen LSTM are joined for `nnx.OptimizedLSTMCell`, in the order "
            "i, f, g, o.",
            _LSTM_GATES,
            _LSTM_JOINED,
            (("cell/ii/kernel + cell/if/kernel + cell/ig/kernel + cell/io/kernel → "
             "cell/dense_i/kernel by join(-1)"),),
            lstm_fuse,
        ),
        LayerRule(
            "lstm-split",
            "Joined gates of an LSTM are split for `nnx.LSTMCell`, in the order i, f, g, o.",
            tuple(f"params/{line}" for line in _LSTM_JOINED),
            tuple(
                line.removeprefix("params/").replace("if,", "if_,", 1) for line in _LSTM_GATES
            ),
            (("cell/dense_h/bias → cell/hi/bias + cell/hf/bias + cell/hg/bias + cell/ho/bias by "
             "split(axis=-1, sizes=4,4,4,4)"),),
        ),
        LayerRule(
            "gru-fuse",
            "The gates of a Linen GRU are joined for `nnx.GRUCell`, in the order r, z, n. Its "
            "`hn/bias` has no place there: it must be all zeros, which the plan looks at, or be "
            "ignored by a rule.",
            (
                "params/cell/{ir,iz,in}/kernel [3,4]",
                "params/cell/{ir,iz,in}/bias [4]",
                "params/cell/{hr,hz,hn}/kernel [4,4]",
                "params/cell/hn/bias [4]",
            ),
            ("cell/dense_i/kernel [3,12]", "cell/dense_i/bias [12]", "cell/dense_h/kernel [4,12]"),
            (("cell/ir/bias + cell/iz/bias + cell/in/bias + cell/hn/bias → cell/dense_i/bias by "
             "drop_zero → join(-1)"),),
            gru_fuse,
        ),
        LayerRule(
            "simple-cell",
            "`i` and `h` of a Linen `SimpleCell` are `dense_i` and `dense_h` of `nnx.SimpleCell`.",
            ("params/cell/i/kernel [3,4]", "params/cell/i/bias [4]", "params/cell/h/kernel [4,4]"),
            ("cell/dense_i/kernel [3,4]", "cell/dense_i/bias [4]", "cell/dense_h/kernel [4,4]"),
            ("cell/h/kernel → cell/dense_h/kernel",),
            simple_cell,
        ),
        LayerRule(
            "spectral-norm",
            "`nn.SpectralNorm` writes its vectors under one key with slashes and its layer beside "
            "itself; `nnx.SpectralNorm` holds both.",
            (
                "params/Dense_0/kernel [3,4]",
                "params/Dense_0/bias [4]",
                'batch_stats/SpectralNorm_0/"Dense_0/kernel/u" [1,4]',
                'batch_stats/SpectralNorm_0/"Dense_0/kernel/sigma" []',
            ),
            (
                "sn/layer_instance/kernel [3,4]",
                "sn/layer_instance/bias [4]",
                "batch_stats: sn/batch_stats/\"('kernel', 'u')\" [1,4]",
                "batch_stats: sn/batch_stats/\"('kernel', 'sigma')\" []",
            ),
            ("Dense_0/kernel → sn/layer_instance/kernel",
             "SpectralNorm_0/\"Dense_0/kernel/u\" → sn/batch_stats/\"('kernel', 'u')\""),
            norm_wrapper,
        ),
        LayerRule(
            "weight-norm",
            "`nn.WeightNorm` writes its scales under one key with slashes and its layer beside "
            "itself; `nnx.WeightNorm` holds both.",
            (
                "params/Dense_0/kernel [3,4]",
                "params/Dense_0/bias [4]",
                'params/WeightNorm_0/"Dense_0/kernel/scale" [4]',
            ),
            (
                "wn/layer_instance/kernel [3,4]",
                "wn/layer_instance/bias [4]",
                "wn/scales/\"('kernel',)\" [4]",
            ),
            ("WeightNorm_0/\"Dense_0/kernel/scale\" → wn/scales/('kernel',)",),
        ),
        LayerRule(
            "attention-names",
            "The four projections of an attention go by the names that people give them (`query`, "
            "`q`, `q_proj`, `wq`, ...), where all four are there on both sides.",
            (
                "params/attn/{query,key,value}/kernel [8,2,4]",
                "params/attn/out/kernel [2,4,8]",
            ),
            ("attn/{q,k,v}_proj/kernel [8,2,4]", "attn/o_proj/kernel [2,4,8]"),
            ("attn/query/kernel → attn/q_proj/kernel", "attn/key/kernel → attn/k_proj/kernel"),
            attention_names,
        ),
        LayerRule(
            "attention-reshape",
            "The heads of an attention lie in one axis where the model projects with plain linear "
            "layers; the order of the numbers stays.",
            (
                "params/attn/{query,key,value}/kernel [8,2,4]",
                "params/attn/{query,key,value}/bias [2,4]",
                "params/attn/out/kernel [2,4,8]",
                "params/attn/out/bias [8]",
            ),
            ("attn/{query,key,value,out}/kernel [8,8]", "attn/{query,key,value,out}/bias [8]"),
            ("attn/query/kernel → attn/query/kernel by reshape(8,8)",),
            attention_reshape,
        ),
        LayerRule(
            "attention-qkv",
            "Three projections are one named `qkv` with an axis of three; with heads and all three "
            "in one axis the order of the numbers cannot be known, which is refused.",
            (
                "params/attn/{query,key,value}/kernel [8,2,4]",
                "params/attn/{query,key,value}/bias [2,4]",
                "params/attn/out/kernel [2,4,8]",
            ),
            ("attn/qkv/kernel [8,3,2,4]", "attn/qkv/bias [3,2,4]", "attn/out/kernel [2,4,8]"),
            (("attn/query/kernel + attn/key/kernel + attn/value/kernel → attn/qkv/kernel by "
             "stack(1)"),),
            attention_qkv,
        ),
        LayerRule(
            "scan-unstack",
            "A stack of layers (`nn.scan`, `nn.vmap`, `nn.remat_scan`) becomes the list of its "
            "name, along the one axis that fits all shapes. A list of another name is an order.",
            ("params/blocks/Dense_0/kernel [3,4,5]", "params/blocks/Dense_0/bias [3,5]"),
            ("blocks/{0..2}/Dense_0/kernel [4,5]", "blocks/{0..2}/Dense_0/bias [5]"),
            (
                ("blocks/Dense_0/bias → blocks/0/Dense_0/bias + blocks/1/Dense_0/bias + "
                "blocks/2/Dense_0/bias by unstack"),
            ),
            scan_unstack,
        ),
        LayerRule(
            "loop-stack",
            "A list of layers becomes the stack of its name (`nnx.vmap`, `nnx.scan`), number by "
            "number. A stack of another name is an order.",
            ("params/block_{0..2}/fc/kernel [4,5]", "params/block_{0..2}/fc/bias [5]"),
            ("block/fc/kernel [3,4,5]", "block/fc/bias [3,5]"),
            ("block_0/fc/bias + block_1/fc/bias + block_2/fc/bias → block/fc/bias by stack",),
            loop_stack,
        ),
        LayerRule(
            "scan-axis",
            "A stack of layers keeps them along another axis than the model.",
            ("params/scan/Dense_0/kernel [4,3,5]", "params/scan/Dense_0/bias [5,3]"),
            ("blocks/fc/kernel [3,4,5]", "blocks/fc/bias [3,5]"),
            ("scan/Dense_0/kernel → blocks/fc/kernel by transpose(1,0,2)",),
            scan_axis,
        ),
    )
}  # fmt: skip
"""Every layer rule by its code, in the order in which their views are made."""
