"""The trees of the golden matrix that training makes: states, optimizers, Linen variables.

The structures are made by the libraries of the era, so an optimizer state has the classes and field names of its own optax or `flax.optim`; then every array is filled with seeded values (`fill`),
since fresh states are full of zeros, which would not tell one leaf from another.

Runs on Python 3.8 - 3.12. Imports that a release lacks are inside the functions, whose failure
then says that the release has no such thing.
"""
import contextlib
import inspect
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from matrix_contents import CONTENTS, Content, Values, content, mlp, release

__all__ = ["CONTENTS"]

tree_map = jax.tree_util.tree_map


def fill(tree, seed):
    """The same tree with other values in every array: positive floats, small whole numbers."""
    values = Values(seed)

    def other(leaf):
        if not hasattr(leaf, "dtype") or getattr(jax.dtypes, "issubdtype", np.issubdtype)(
                leaf.dtype, getattr(jax.dtypes, "prng_key", np.void)):
            return leaf
        kind = np.dtype(leaf.dtype).kind
        if kind in "fV":
            made = values.random.uniform(0.1, 1.0, leaf.shape)
        elif kind == "b":
            made = values.random.rand(*leaf.shape) < 0.5
        else:
            made = values.random.randint(1, 100, leaf.shape)
        made = np.asarray(made).astype(leaf.dtype)
        return made if isinstance(leaf, (np.ndarray, np.generic)) else jnp.asarray(made)

    return tree_map(other, tree)


def _cnn_class():
    import flax.linen as nn

    class CNN(nn.Module):
        """A small image classifier, with the names Linen gives by itself."""

        @nn.compact
        def __call__(self, x, train):
            """Give logits for a batch of images."""
            for features in (2, 3):
                x = nn.Conv(features, (3, 3))(x)
                x = nn.BatchNorm(use_running_average=not train)(x)
                x = nn.relu(x)
            x = x.reshape((x.shape[0], -1))
            return nn.Dense(4)(x)

    return CNN


def _variables(model, seed, *inputs, **options):
    """The variables of a Linen module, of which no value is computed, and then filled."""
    shapes = jax.eval_shape(
        lambda key: model.init(key, *inputs, **options), jax.random.PRNGKey(0))
    return fill(tree_map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), seed)


def _on_device(tree):
    return tree_map(jnp.asarray, tree)


def _tx():
    import optax
    schedule = optax.exponential_decay(1e-2, transition_steps=2, decay_rate=0.9)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))


@content
def linen_variables():
    """What `Module.init` gives, as it is given: a FrozenDict until flax 0.7, then a dict."""
    model = _cnn_class()()
    return _on_device(_variables(model, 101, jnp.zeros((1, 4, 4, 2)), train=False))


@content
def cnn_state():
    """A subclass of TrainState with statistics, a slow copy of the parameters, and a dropout key."""
    from flax.training.train_state import TrainState

    class CNNState(TrainState):
        """The usual subclass."""

        batch_stats: Any
        ema_params: Any
        dropout_key: Any

    model, tx, trees = _cnn_class()(), _tx(), {}
    for step in (1, 2, 3):
        variables = _on_device(
            _variables(model, 110 + step, jnp.zeros((1, 4, 4, 2)), train=False))
        params = variables["params"]
        state = CNNState.create(
            apply_fn=model.apply, params=params, tx=tx, batch_stats=variables["batch_stats"],
            ema_params=fill(params, 120 + step), dropout_key=jax.random.PRNGKey(42 + step))
        trees[step] = state.replace(step=step, opt_state=fill(state.opt_state, 130 + step))
    inputs = np.random.RandomState(0).randn(2, 4, 4, 2).astype(np.float32)
    logits = model.apply({"params": trees[3].params, "batch_stats": trees[3].batch_stats}, inputs,
                         train=False)
    return Content(trees, {"inputs": inputs, "logits": np.asarray(logits)})


@content
def train_state():
    """A plain TrainState of an MLP, step as a jax array, momentum."""
    import optax
    from flax.training.train_state import TrainState
    params = mlp(Values(140))
    state = TrainState.create(apply_fn=len, params=params, tx=optax.sgd(0.1, momentum=0.9))
    return state.replace(step=jnp.asarray(17), opt_state=fill(state.opt_state, 141))


@content
def optax_zoo():
    """States of many optimizers of this optax."""
    import optax
    params, states = mlp(Values(150)), {}
    for name, options in (
            ("adam", {}), ("adamw", {}), ("sgd", {"momentum": 0.9, "nesterov": True}),
            ("rmsprop", {"momentum": 0.5}), ("adagrad", {}), ("lamb", {}), ("lars", {}),
            ("adabelief", {}), ("radam", {}), ("yogi", {}), ("fromage", {}),
            ("adafactor", {"min_dim_size_to_factor": 2}), ("lion", {}), ("sm3", {"momentum": 0.9}),
            ("novograd", {}), ("amsgrad", {}), ("adan", {}), ("nadam", {}), ("adamax", {}),
            ("optimistic_gradient_descent", {})):
        make = getattr(optax, name, None)
        if make is not None:
            known = inspect.signature(make).parameters
            options = {key: value for key, value in options.items() if key in known}
            states[name] = fill(make(0.1, **options).init(params), 151 + len(states))
    return {"opt_states": states}


@content
def optax_noisy():
    """An optimizer that keeps a key for random numbers, which is a typed one since 2025."""
    import optax
    params = mlp(Values(175))
    return {"opt_state": fill(optax.noisy_sgd(0.1).init(params), 176), "params": params}


@content
def optax_multi():
    """Transformations around transformations: as much as this optax has of them."""
    import optax
    params = mlp(Values(180))
    labels = {name: tree_map(lambda _, n=name: "a" if n.startswith("Dense") else "b", part)
              for name, part in params.items()}
    mask = tree_map(lambda label: label == "a", labels)
    makers = {
        "chain": lambda: optax.chain(optax.trace(0.9), optax.chain(optax.scale(1.0), optax.adam(1))),
        "masked": lambda: optax.chain(optax.masked(optax.adam(0.1), mask), optax.clip(1.0)),
        "multi": lambda: optax.multi_transform(
            {"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, labels),
        "steps": lambda: optax.MultiSteps(optax.adamw(0.1), every_k_schedule=2),
        "inject": lambda: optax.inject_hyperparams(optax.adam)(
            learning_rate=optax.linear_schedule(1.0, 0.0, 10)),
        "inject_inner": lambda: optax.chain(
            optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)),
        "frozen": lambda: optax.multi_transform(
            {"a": optax.adam(0.1), "b": optax.set_to_zero()}, labels),
        "finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
        "lookahead": lambda: optax.lookahead(optax.sgd(0.1), 5, 0.5),
        "ema": lambda: optax.ema(0.9),
        "scheduled": lambda: optax.chain(optax.scale_by_schedule(lambda n: 1.0), optax.identity()),
    }
    states = {}
    for number, (name, make) in enumerate(makers.items()):
        try:
            state = make().init(params)
        except (AttributeError, TypeError, AssertionError):  # not in this optax, or not this way
            continue
        states[name] = fill(state, 181 + number)
    return {"params": params, "opt_states": states, "step": 5}


def _linen_or_plain_params(seed):
    params = mlp(Values(seed))
    return flax.core.freeze(params) if hasattr(flax, "core") else params


@content
def cnn_optim():
    """`flax.optim` around parameters and statistics, as examples had it before TrainState."""
    from flax import optim
    optimizer = optim.Adam(learning_rate=0.1).create(_linen_or_plain_params(200))
    return {"optimizer": fill(optimizer, 201), "batch_stats": fill(mlp(Values(202)), 203),
            "epoch": 4}


@content
def optim_bare():
    """The optimizer itself is what is saved, which restores with the optimizer as target."""
    from flax import optim
    trees = {}
    for step in (1, 2, 3):
        optimizer = optim.Momentum(learning_rate=0.1, beta=0.9).create(mlp(Values(210 + step)))
        trees[step] = fill(optimizer, 220 + step)
    return Content(trees)


@content
def optim_zoo():
    """All of the optimizers of `flax.optim`, and wrappers around them."""
    from flax import optim
    made = {}
    for name in ("Adam", "Adagrad", "LAMB", "LARS", "Momentum", "RMSProp", "GradientDescent",
                 "Adafactor", "Adadelta", "AdaBelief"):
        make = getattr(optim, name, None)
        if make is None:
            continue
        try:
            optimizer = make(learning_rate=0.1).create(mlp(Values(230)))
        except (TypeError, AttributeError):  # needs what this release does not have
            continue
        made[name] = fill(optimizer, 231 + len(made))
    norm = optim.WeightNorm(optim.GradientDescent(learning_rate=0.1))
    made["WeightNorm"] = fill(norm.create({"kernel": Values(250)(3, 2)}), 251)
    with contextlib.suppress(ValueError):  # flax 0.1 wants a Model of flax.nn
        kernels = optim.ModelParamTraversal(lambda path, _: "kernel" in path)
        biases = optim.ModelParamTraversal(lambda path, _: "kernel" not in path)
        multi = optim.MultiOptimizer(
            (kernels, optim.Momentum(learning_rate=0.1)), (biases, optim.Adam(learning_rate=0.1)))
        made["MultiOptimizer"] = fill(multi.create(mlp(Values(252))), 253)
    return made


@content
def prelinen_optim():
    """`flax.nn` before Linen: a Model in an optimizer, and a Collection of statistics."""
    from flax import nn, optim

    class CNN(nn.Module):
        """A small image classifier of 2020."""

        def apply(self, x, train):
            """Give logits."""
            for features in (2, 3):
                x = nn.Conv(x, features=features, kernel_size=(3, 3))
                x = nn.BatchNorm(x, use_running_average=not train)
                x = nn.relu(x)
            x = x.reshape((x.shape[0], -1))
            return nn.Dense(x, features=4)

    with nn.stateful() as statistics:
        _, params = CNN.partial(train=True).init(jax.random.PRNGKey(0), jnp.ones((1, 4, 4, 2)))
    model = nn.Model(CNN.partial(train=False), fill(params, 260))
    optimizer = fill(optim.Adam(learning_rate=0.1).create(model), 261)
    return {"optimizer": optimizer, "model_state": fill(statistics, 262), "step": 3}


@content
def boxed():
    """Parameters inside `nn.Partitioned` and `nn.LogicallyPartitioned` boxes."""
    import flax.linen as nn
    values = Values(270)
    logical = getattr(nn, "LogicallyPartitioned", nn.Partitioned)
    return {"params": {
        "Dense_0": {"kernel": nn.Partitioned(values(4, 5), names=(None, "model")),
                    "bias": values(5)},
        "Dense_1": {"kernel": logical(values(5, 3), names=("embed", "mlp")),
                    "bias": nn.Partitioned(values(3), names=("model",))}}}


@content
def scan_stack():
    """Layers in `nn.scan`: their parameters are stacked along a first axis."""
    import flax.linen as nn

    class Layer(nn.Module):
        """One layer of the stack."""

        @nn.compact
        def __call__(self, carry, _):
            """Pass the carry on."""
            return nn.tanh(nn.Dense(3)(carry)), ()

    class Stack(nn.Module):
        """Four layers in a scan, and a head."""

        @nn.compact
        def __call__(self, x):
            """Give two numbers."""
            scan = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True},
                           length=4)
            x, _ = scan(name="layers")(x, None)
            return nn.Dense(2)(x)

    return _on_device(_variables(Stack(), 280, jnp.zeros((1, 3))))


@content
def dynamic_scale():
    """Loss scaling beside a state."""
    try:
        from flax.training.dynamic_scale import DynamicScale
    except ImportError:
        from flax.optim import DynamicScale
    scale = DynamicScale()
    return {"dynamic_scale": fill(scale.replace(fin_steps=jnp.asarray(7)), 290),
            "fresh": DynamicScale(), "params": mlp(Values(291))}


@content
def lstm():
    """A recurrent cell and attention: parameters of rank three, names of one letter."""
    values = Values(300)
    gates = {f"{side}{gate}": {"kernel": values(3, 3), "bias": values(3)}
             for side in "ih" for gate in "fgio"}
    heads = {name: {"kernel": values(3, 2, 2), "bias": values(2, 2)}
             for name in ("query", "key", "value")}
    heads["out"] = {"kernel": values(2, 2, 3), "bias": values(3)}
    return {"params": {"LSTMCell_0": gates, "SelfAttention_0": heads}}


@content
def sown():
    """Variables with collections of tuples, as `Module.sow` makes them, and cached keys."""
    values = Values(310)
    tree = {"params": mlp(values),
            "intermediates": {"Dense_0": {"__call__": (values(2, 3),)},
                              "features": (values(2), values(3))},
            "cache": {"cached_key": values(1, 2, 4), "cache_index": jnp.asarray(3, jnp.int32)}}
    return flax.core.freeze(tree) if release() < (0, 7) else tree


@content
def replicated():
    """A state with a device axis, as `jax_utils.replicate` left it, never taken off again."""
    return {"params": tree_map(lambda leaf: jnp.stack([leaf] * 2), mlp(Values(320))),
            "step": jnp.asarray([5, 5])}


@content
def mixed_precision():
    """Half-precision parameters beside full-precision optimizer slots."""
    import optax
    params = tree_map(lambda leaf: leaf.astype(jnp.bfloat16), mlp(Values(330)))
    half = {"f16": Values(331)(3, dtype=np.float16)}
    master = mlp(Values(332))
    return {"params": {**params, **half}, "master": master,
            "opt_state": fill(optax.adam(0.1).init(master), 333)}


@content
def bert():
    """The parameters of a small BERT of Hugging Face transformers."""
    from writers_hf import bert_model
    model = bert_model()
    shapes = jax.eval_shape(lambda: model.init_weights(jax.random.PRNGKey(0), (1, 1)))
    return _on_device(fill(tree_map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), 340))
