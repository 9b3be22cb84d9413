"""What old optimizers do next: states after three steps, and the parameters of the steps after.

    SCRIPT=optim_steps.py run.sh ENVS ERA FILE

For each optimizer of `flax.optim` (flax 0.1 - 0.5), and with the name `optax_...` for those of the
release's optax, `FILE` (npz) holds `<name>/state`, the bytes that `flax.serialization.to_bytes`
made of it after three steps, and `<name>/next`, all parameters after each of the three steps that
follow, in the order of `SHAPES`. The gradients are `tree_of(10)`, `tree_of(11)`, ...

Runs on Python 3.8 and later; what a release does not have is left out.
"""
import contextlib
import pathlib
import sys

import compat

compat.install()  # before jax and flax

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

SHAPES = {"Dense_0": {"kernel": (4, 5), "bias": (5,)}, "Dense_1": {"kernel": (5, 5), "bias": (5,)}}
BEFORE, AFTER = 3, 3


def tree_of(seed):
    """Values for each parameter."""
    random = np.random.RandomState(seed)
    return {
        layer: {name: random.uniform(-1, 1, shape).astype(np.float32)
                for name, shape in leaves.items()}
        for layer, leaves in SHAPES.items()
    }


def flax_optims():
    """The optimizers of flax.optim that this release has."""
    from flax import optim

    made = {
        "Adam": lambda: optim.Adam(learning_rate=0.01),
        "Adam_decay": lambda: optim.Adam(learning_rate=0.01, weight_decay=0.1),
        "Momentum": lambda: optim.Momentum(learning_rate=0.1, beta=0.9),
        "Momentum_nesterov_decay": lambda: optim.Momentum(
            learning_rate=0.1, beta=0.8, weight_decay=0.1, nesterov=True),
        "GradientDescent": lambda: optim.GradientDescent(learning_rate=0.1),
        "RMSProp": lambda: optim.RMSProp(learning_rate=0.01),
        "RMSProp_centered": lambda: optim.RMSProp(learning_rate=0.01, centered=True),
        "Adagrad": lambda: optim.Adagrad(learning_rate=0.1),
        "Adadelta": lambda: optim.Adadelta(learning_rate=0.5),
        "LAMB": lambda: optim.LAMB(learning_rate=0.01, weight_decay=0.1),
        "LARS": lambda: optim.LARS(learning_rate=0.1, beta=0.9),
        "AdaBelief": lambda: optim.AdaBelief(learning_rate=0.01),
        "Adafactor": lambda: optim.Adafactor(learning_rate=0.01, min_dim_size_to_factor=2),
        "Adafactor_momentum": lambda: optim.Adafactor(
            learning_rate=0.01, min_dim_size_to_factor=2, beta1=0.9, weight_decay_rate=0.01),
        "MultiOptimizer": lambda: optim.MultiOptimizer(
            (optim.ModelParamTraversal(lambda path, _: "kernel" in path),
             optim.Adam(learning_rate=0.01)),
            (optim.ModelParamTraversal(lambda path, _: "kernel" not in path),
             optim.Momentum(learning_rate=0.1))),
    }
    for name, make in made.items():
        with contextlib.suppress(AttributeError, TypeError):  # not in this release
            yield name, make()


def run_flax(optimizer_def):
    """Three steps, saved; three more, noted."""
    from flax import serialization

    optimizer = optimizer_def.create(jax.tree_util.tree_map(jnp.asarray, tree_of(0)))
    for step in range(BEFORE):
        optimizer = optimizer.apply_gradient(tree_of(10 + step))
    state, after = serialization.to_bytes(optimizer), []
    for step in range(AFTER):
        optimizer = optimizer.apply_gradient(tree_of(10 + BEFORE + step))
        after.append(flat(optimizer.target))
    return state, after


def flat(params):
    """All parameters in one vector."""
    return np.concatenate([
        np.asarray(params[layer][name]).reshape(-1)
        for layer, leaves in SHAPES.items() for name in leaves])


def optaxes():
    """Optimizers of this release's optax, by what wraps what."""
    import optax

    def labels(params):
        return jax.tree_util.tree_map(lambda p: "mat" if p.ndim > 1 else "vec", params)

    def mask(params):
        return jax.tree_util.tree_map(lambda p: p.ndim > 1, params)

    def schedule(count):  # optax.exponential_decay(1e-2, 2, 0.9), which optax 0.0.1 does not have
        return 1e-2 * 0.9 ** (count / 2)

    made = {
        "adam": lambda: optax.adam(0.01),
        "adamw_schedule": lambda: optax.adamw(schedule, weight_decay=0.1),
        "adamw_mask": lambda: optax.adamw(0.01, weight_decay=0.1, mask=mask),
        "clip_adam_schedule": lambda: optax.chain(
            optax.clip_by_global_norm(0.5), optax.adam(schedule)),
        "sgd_nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
        "rmsprop_momentum": lambda: optax.rmsprop(0.01, momentum=0.9),
        "rmsprop_centered": lambda: optax.rmsprop(0.01, centered=True),
        "adagrad": lambda: optax.adagrad(0.1),
        "lamb": lambda: optax.lamb(0.01),
        "lars": lambda: optax.lars(0.1),
        "adabelief": lambda: optax.adabelief(0.01),
        "radam": lambda: optax.radam(0.01),
        "yogi": lambda: optax.yogi(0.01),
        "fromage": lambda: optax.fromage(0.01),
        "adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=2),
        "adafactor_momentum": lambda: optax.adafactor(
            0.01, min_dim_size_to_factor=2, momentum=0.9),
        "sm3": lambda: optax.sm3(0.1, 0.9),
        "lion": lambda: optax.lion(0.01),
        "novograd": lambda: optax.novograd(0.01),
        "masked": lambda: optax.masked(optax.adam(0.01), mask),
        "multi": lambda: optax.multi_transform(
            {"mat": optax.adam(0.01), "vec": optax.sgd(0.1, momentum=0.9)}, labels),
        "steps": lambda: optax.MultiSteps(optax.adam(0.01), 2),
        "inject": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
        "inject_schedule": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=schedule),
        "finite": lambda: optax.apply_if_finite(optax.adam(0.01), 3),
        "every": lambda: optax.chain(optax.adam(0.01), optax.apply_every(2)),
        "ema": lambda: optax.chain(optax.sgd(0.1), optax.ema(0.9)),
    }
    for name, make in made.items():
        with contextlib.suppress(AttributeError, TypeError):  # not in this release
            yield "optax_" + name, make()


def run_optax(tx):
    """The same with optax: the saved tree is that of a TrainState."""
    import optax
    from flax import serialization

    params = jax.tree_util.tree_map(jnp.asarray, tree_of(0))
    state = tx.init(params)

    def go(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(BEFORE):
        params, state = go(params, state, jax.tree_util.tree_map(jnp.asarray, tree_of(10 + step)))
    tree = {"step": BEFORE, "params": params, "opt_state": state}
    saved, after = serialization.to_bytes(tree), []
    for step in range(AFTER):
        grads = jax.tree_util.tree_map(jnp.asarray, tree_of(10 + BEFORE + step))
        params, state = go(params, state, grads)
        after.append(flat(params))
    return saved, after


def main(file):
    """Write all that this release has."""
    found = {}
    for all_of, run in ((flax_optims, run_flax), (optaxes, run_optax)):
        with contextlib.suppress(ImportError):
            for name, made in all_of():
                try:
                    state, after = run(made)
                except Exception as error:  # noqa: BLE001 - one that does not run here is left out
                    print(name, type(error).__name__, str(error)[:200])
                    continue
                found[name + "/state"] = np.frombuffer(state, np.uint8)
                found[name + "/next"] = np.stack(after)
    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **found)


if __name__ == "__main__":
    main(sys.argv[1])
