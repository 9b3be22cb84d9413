"""Optimizer states of real old releases go on under today's optax as they would have gone on then.

``tests/goldens/optim/<era>/steps.npz`` holds, for each optimizer of an old ``flax.optim`` or optax,
its state after three steps and the parameters after each of the three steps that followed, made by
the old code (``tests/goldens/make/optim_steps.py``). Here the state is restored into an
``nnx.Optimizer``, which is given the same gradients.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optimizer_table import labels

import bridge

GOLDENS = Path(__file__).parent.parent / "goldens" / "optim"
SHAPES = {"Dense_0": {"kernel": (4, 5), "bias": (5,)}, "Dense_1": {"kernel": (5, 5), "bias": (5,)}}
NAMES = {"Dense_0": "upper", "Dense_1": "lower"}  # sorts the other way round
RULES = "\n".join(
    f'[[map]]\nfrom = "params/{old}/{{x}}"\nto = "{new}/{{x}}"' for old, new in NAMES.items()
)


class Net(nnx.Module):
    def __init__(self):
        self.upper = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
        self.lower = nnx.Linear(5, 5, rngs=nnx.Rngs(0))


def gradients(seed):
    """As ``tree_of`` of the script that made the goldens."""
    random = np.random.RandomState(seed)
    tree = {
        layer: {
            name: random.uniform(-1, 1, shape).astype(np.float32) for name, shape in leaves.items()
        }
        for layer, leaves in SHAPES.items()
    }
    return {NAMES[layer]: leaves for layer, leaves in tree.items()}


def kernels(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def decay():
    return optax.exponential_decay(1e-2, 2, 0.9)


FLAX_OPTIM = {
    "Adam": lambda: optax.adam(0.01),
    "Adam_decay": lambda: optax.adamw(0.01, weight_decay=0.1),
    "Momentum": lambda: optax.sgd(0.1, 0.9),
    "Momentum_nesterov_decay": lambda: optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.8, nesterov=True)
    ),
    "GradientDescent": lambda: optax.sgd(0.1),
    "RMSProp": lambda: optax.rmsprop(0.01, eps_in_sqrt=False),
    "RMSProp_centered": lambda: optax.rmsprop(0.01, centered=True, eps_in_sqrt=False),
    "Adagrad": lambda: optax.adagrad(0.1, eps=1e-16),
    "Adadelta": lambda: optax.adadelta(0.5),
    "LAMB": lambda: optax.lamb(0.01, weight_decay=0.1),
    "AdaBelief": lambda: optax.adabelief(0.01),
    "Adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=2),
    "Adafactor_momentum": lambda: optax.adafactor(
        0.01, min_dim_size_to_factor=2, momentum=0.9, weight_decay_rate=0.01
    ),
    "MultiOptimizer": lambda: optax.multi_transform(
        {"mat": optax.adam(0.01), "vec": optax.sgd(0.1, 0.9)}, labels
    ),
}
OPTAX = {
    "optax_adam": lambda: optax.adam(0.01),
    "optax_adamw_schedule": lambda: optax.adamw(decay(), weight_decay=0.1),
    "optax_adamw_mask": lambda: optax.adamw(0.01, weight_decay=0.1, mask=kernels),
    "optax_clip_adam_schedule": lambda: optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(decay())
    ),
    "optax_sgd_nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "optax_rmsprop_momentum": lambda: optax.rmsprop(0.01, momentum=0.9),
    "optax_rmsprop_centered": lambda: optax.rmsprop(0.01, centered=True),
    "optax_adagrad": lambda: optax.adagrad(0.1),
    "optax_lamb": lambda: optax.lamb(0.01),
    "optax_lars": lambda: optax.lars(0.1),
    "optax_adabelief": lambda: optax.adabelief(0.01),
    "optax_radam": lambda: optax.radam(0.01),
    "optax_yogi": lambda: optax.yogi(0.01),
    "optax_fromage": lambda: optax.fromage(0.01),
    "optax_adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=2),
    "optax_adafactor_momentum": lambda: optax.adafactor(
        0.01, min_dim_size_to_factor=2, momentum=0.9
    ),
    "optax_sm3": lambda: optax.sm3(0.1, 0.9),
    "optax_lion": lambda: optax.lion(0.01),
    "optax_novograd": lambda: optax.novograd(0.01),
    "optax_masked": lambda: optax.masked(optax.adam(0.01), kernels),
    "optax_multi": lambda: optax.multi_transform(
        {"mat": optax.adam(0.01), "vec": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    "optax_steps": lambda: optax.MultiSteps(optax.adam(0.01), 2),
    "optax_inject": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "optax_inject_schedule": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=decay()),
    "optax_finite": lambda: optax.apply_if_finite(optax.adam(0.01), 3),
    "optax_every": lambda: optax.chain(optax.adam(0.01), optax.apply_every(2)),
    "optax_ema": lambda: optax.chain(optax.sgd(0.1), optax.ema(0.9)),
}


@functools.cache
def golden(era):
    with np.load(GOLDENS / era / "steps.npz") as file:
        return dict(file)


def cases():
    for folder in sorted(GOLDENS.iterdir()):
        with np.load(folder / "steps.npz") as file:
            names = sorted(n.removesuffix("/state") for n in file if n.endswith("/state"))
        yield from (pytest.param(folder.name, n, id=f"{folder.name}-{n}") for n in names)


def continued(era, name, tx, folder, rules=RULES):
    """The largest difference of three updates, relative to the largest of them."""
    path = folder / "checkpoint_3"
    path.write_bytes(golden(era)[f"{name}/state"].tobytes())
    model, optimizer, _ = bridge.restore(
        path, model=Net, tx=tx, rules=bridge.Rules.from_toml(rules)
    )
    assert int(optimizer.step[...]) == 3
    after, found = golden(era)[f"{name}/next"].astype("f8"), []
    for n in range(len(after)):
        grads = jax.tree.map(lambda g: nnx.Param(jnp.asarray(g)), gradients(13 + n))
        optimizer.update(model, nnx.State(grads))
        params = [
            np.asarray(getattr(getattr(model, NAMES[layer]), leaf)[...]).reshape(-1)
            for layer, leaves in SHAPES.items()
            for leaf in leaves
        ]
        found.append(np.concatenate(params).astype("f8"))
    return float(np.abs(found - after).max() / np.abs(after[-1] - after[0]).max())


# What optax itself has changed since, so that today's next step is another one than the old one's:
# what the second moment of adabelief is of (0.2.4), and at which count inject_hyperparams looked at
# its schedules (0.1.5).
CHANGED = {
    *((era, "optax_adabelief") for era in ("flax010", "flax042", "flax0611", "flax085")),
    *((era, "optax_inject_schedule") for era in ("flax010", "flax042")),
}
ROUNDING = 2e-5  # measured: 1e-5 at most; the size of a step is about 1e-2 of a parameter


@pytest.mark.parametrize(("era", "name"), list(cases()))
def test_the_next_steps_are_those_of_the_old_release(era, name, tmp_path):
    if name == "LARS":
        _lars(era, tmp_path)
        return
    tx = {**FLAX_OPTIM, **OPTAX}[name]()
    if (era, name) == ("flax010", "RMSProp"):  # its default was another one
        tx = optax.rmsprop(0.01, decay=0.999, eps_in_sqrt=False)
    apart = continued(era, name, tx, tmp_path)
    if (era, name) in CHANGED:
        assert 1e-3 < apart < 0.3
    else:
        assert apart < ROUNDING


def _lars(era, tmp_path):
    """LARS is refused, for its field could be that of Momentum; the rules to paste are right."""
    tx = optax.lars(0.1, weight_decay=0.0)
    with pytest.raises(bridge.PlanProblems, match="Momentum or of LARS") as refused:
        continued(era, "LARS", tx, tmp_path)
    (problem,) = refused.value.problems
    assert continued(era, "LARS", tx, tmp_path, f"{RULES}\n{problem.rule}") < ROUNDING
