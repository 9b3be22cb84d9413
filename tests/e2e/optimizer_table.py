"""The optimizers whose states must go across: one row for each that was measured.

Each is made by a function, so that one which an older optax lacks is skipped and no more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax
from optax import contrib

__all__ = ["TABLE", "Row", "labels"]


@dataclass(frozen=True)
class Row:
    """One optimizer.

    Attributes:
        name: of the test.
        make: the transformation.
        value: whether its update wants the value of the loss.
        orbax: whether only Orbax can store its state (no plain dicts, or typed keys).
        msgpack: whether only msgpack can: Orbax refuses arrays without elements.
        apart: how far from byte-identity the state may go when the names sort differently,
            relative to the largest element (None: not at all). Only reductions over the whole
            tree, whose terms are then added in another order, may.
        noise: whether it draws noise parameter by parameter in the order of their names.
    """

    name: str
    make: Callable[[], Any]
    value: bool = False
    orbax: bool = False
    msgpack: bool = False
    apart: float | None = None
    noise: bool = False

    def __str__(self) -> str:
        return self.name


def is_matrix(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda p: "mat" if p.ndim > 1 else "vec", params)


def decay():
    return optax.exponential_decay(1e-2, transition_steps=2, decay_rate=0.9)


def two(mat, vec):
    return optax.multi_transform({"mat": mat, "vec": vec}, labels)


def conditional():
    return optax.chain(
        optax.transforms.conditionally_transform(
            optax.trace(0.9), lambda n, *_, **__: n % 2 == 0, forward_extra_args=False
        ),
        optax.scale(-0.01),
    )


def stateful():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the old name of inject_hyperparams
        return optax.inject_stateful_hyperparams(optax.adamw)(learning_rate=1e-2)


TABLE = [
    Row("sgd", lambda: optax.sgd(0.1)),
    Row("sgd_momentum", lambda: optax.sgd(0.1, 0.9)),
    Row(
        "sgd_nesterov_bf16",
        lambda: optax.sgd(0.1, 0.9, nesterov=True, accumulator_dtype="bfloat16"),
    ),
    Row("sgd_schedule", lambda: optax.sgd(decay())),
    Row("adam", lambda: optax.adam(1e-2)),
    Row("adam_mu_bf16", lambda: optax.adam(1e-2, mu_dtype="bfloat16")),
    Row("adamw", lambda: optax.adamw(1e-2)),
    Row("adamw_mask", lambda: optax.adamw(1e-2, mask=is_matrix)),
    Row("adamax", lambda: optax.adamax(1e-2)),
    Row("adamaxw", lambda: optax.adamaxw(1e-2)),
    Row("nadam", lambda: optax.nadam(1e-2)),
    Row("radam", lambda: optax.radam(1e-2)),
    Row("amsgrad", lambda: optax.amsgrad(1e-2)),
    Row("adabelief", lambda: optax.adabelief(1e-2)),
    Row("adan", lambda: optax.adan(1e-2)),
    Row("adadelta", lambda: optax.adadelta(1e-2)),
    Row("yogi", lambda: optax.yogi(1e-2)),
    Row("lamb", lambda: optax.lamb(1e-2)),
    Row("lars", lambda: optax.lars(1e-2)),
    Row("lion", lambda: optax.lion(1e-2)),
    Row("signum", lambda: optax.signum(1e-2)),
    Row("fromage", lambda: optax.fromage(1e-2)),
    Row("adafactor", lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2)),
    Row(
        "adafactor_momentum", lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2, momentum=0.9)
    ),
    Row("adafactor_unfactored", lambda: optax.adafactor(1e-2)),
    Row("rmsprop", lambda: optax.rmsprop(1e-2)),
    Row("rmsprop_centered", lambda: optax.rmsprop(1e-2, centered=True, momentum=0.9)),
    Row("rprop", lambda: optax.rprop(1e-2)),
    Row("adagrad", lambda: optax.adagrad(1e-2)),
    Row("novograd", lambda: optax.novograd(1e-2)),
    Row("sm3", lambda: optax.sm3(1e-2)),
    Row("noisy_sgd", lambda: optax.noisy_sgd(1e-2, key=jax.random.key(3)), orbax=True, noise=True),
    Row("optimistic_adam_v2", lambda: optax.optimistic_adam_v2(1e-2)),
    Row(
        "clip_adamw_schedule",
        lambda: optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(decay())),
        apart=1e-6,
    ),
    Row(
        "named_chain",
        lambda: optax.named_chain(("clip", optax.clip(0.1)), ("opt", optax.adamw(1e-2))),
        orbax=True,
    ),
    Row("adaptive_grad_clip", lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1))),
    Row("inject", lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2)),
    Row("inject_schedule", lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=decay())),
    Row("inject_stateful", stateful),
    Row("partition", lambda: two(optax.adam(1e-2), optax.sgd(0.1, 0.9))),
    Row("freeze", lambda: two(optax.adam(1e-2), optax.set_to_zero())),
    Row("masked", lambda: optax.masked(optax.adam(1e-2), is_matrix)),
    Row("multi_steps", lambda: optax.MultiSteps(optax.adam(1e-2), 2)),
    Row(
        "multi_steps_transformation",
        lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    ),
    Row("apply_if_finite", lambda: optax.apply_if_finite(optax.adam(1e-2), 3)),
    Row("apply_every", lambda: optax.chain(optax.adam(1e-2), optax.apply_every(2))),
    Row("ema", lambda: optax.chain(optax.sgd(0.1), optax.ema(0.9))),
    Row("flatten", lambda: optax.flatten(optax.adam(1e-2))),
    Row(
        "zero_nans",
        lambda: optax.chain(optax.zero_nans(), optax.sgd(0.1), optax.keep_params_nonnegative()),
    ),
    Row("conditionally_transform", conditional),
    Row("lbfgs", lambda: optax.lbfgs(1e-2, linesearch=None), apart=2e-3),
    Row("polyak_sgd", lambda: optax.polyak_sgd(1.0), value=True, apart=1e-6),
    Row("schedule_free_adamw", lambda: contrib.schedule_free_adamw(1e-2)),
    Row("schedule_free_sgd", lambda: contrib.schedule_free(optax.sgd(0.1), 0.1)),
    Row("prodigy", lambda: contrib.prodigy(1.0), apart=1e-6),
    Row("muon", lambda: contrib.muon(1e-2)),
    Row("sam", lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.01), sync_period=2)),
    Row("adopt", lambda: contrib.adopt(1e-2)),
    Row("ademamix", lambda: contrib.ademamix(1e-2)),
    Row("simplified_ademamix", lambda: contrib.simplified_ademamix(1e-2)),
    Row("cocob", lambda: contrib.cocob(1.0)),
    Row("dadapt_adamw", lambda: contrib.dadapt_adamw(1.0), apart=1e-6),
    Row("dog", lambda: contrib.dog(1.0), apart=1e-6),
    Row("dowg", lambda: contrib.dowg(1.0), apart=1e-6),
    Row("momo", lambda: contrib.momo(1e-2), value=True, apart=1e-6),
    Row("momo_adam", lambda: contrib.momo_adam(1e-2), value=True, apart=1e-6),
    Row("mechanize", lambda: contrib.mechanize(optax.adam(1e-2)), apart=1e-6),
    Row(
        "reduce_on_plateau",
        lambda: optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau(patience=1)),
        value=True,
    ),
    Row("galore", lambda: contrib.galore(1e-2, rank=2), msgpack=True),
    Row("madgrad", lambda: contrib.madgrad(1e-2)),
    Row("split_real_and_imaginary", lambda: contrib.split_real_and_imaginary(optax.adam(1e-2))),
    Row("acprop", lambda: contrib.acprop(1e-2)),
    Row(
        "two_adams",
        lambda: optax.chain(optax.scale_by_adam(0.5), optax.scale_by_adam(0.9), optax.scale(-0.01)),
    ),
    Row("two_labels_alike", lambda: two(optax.adam(1e-2), optax.adam(1e-3))),
    Row(
        "nested",
        lambda: optax.MultiSteps(
            optax.chain(
                optax.clip(0.5),
                two(
                    optax.inject_hyperparams(optax.adamw)(learning_rate=decay()),
                    optax.chain(optax.trace(0.9), optax.apply_if_finite(optax.sgd(0.1, 0.5), 2)),
                ),
                optax.ema(0.9),
            ),
            2,
        ).gradient_transformation(),
    ),
    Row(
        "masked_in_named_chain",
        lambda: optax.named_chain(
            ("mats", optax.masked(optax.trace(0.9), is_matrix)),
            ("all", optax.chain(optax.trace(0.5), optax.scale_by_schedule(decay()))),
            ("sign", optax.scale(-1.0)),
        ),
        orbax=True,
    ),
    Row(
        "multi_steps_in_parts",
        lambda: two(
            optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(), optax.lion(1e-3)
        ),
    ),
]
