"""Writes goldens of NNX states, as flax 0.8 and later gave them to Orbax.

    python writers_nnx.py OUT CONTENT-WRITER ...     (no names: all)

They are no sources of a migration from Linen; they are what a reader must not take for one. The truth has the
paths under which jax flattens the live state, so a release's own suffix (`raw_value`, `value`, or none) is in it.

Contents and writers are the functions of this module that `CONTENTS` and `WRITERS` name.
Each golden is written in a forked process of its own.
"""
import inspect
import os
import pathlib
import signal
import sys
import traceback
from importlib import metadata

LATEST = "0.12.12"
LONGEST = 120
STEP = 3


def main():
    """Write each golden in a process of its own."""
    out = pathlib.Path(sys.argv[1]).absolute()
    names = sys.argv[2:] or [c + "-" + w for c in CONTENTS for w in WRITERS]
    import jax  # noqa: F401 - imported once, before the forks
    import orbax.checkpoint  # noqa: F401
    _nnx()
    for name in names:
        child = os.fork()
        if child == 0:
            signal.alarm(LONGEST)
            try:
                _write(out, name)
            except BaseException as error:
                said = str(error).strip().splitlines() or [""]
                print(metadata.version("flax"), name, "FAILED", type(error).__name__, said[0][:160], flush=True)
                if "GOLDEN_TRACE" in os.environ:
                    traceback.print_exc()
            finally:
                os._exit(0)
        if os.waitpid(child, 0)[1] & 0x7f:
            print(name, "KILLED", flush=True)


def _write(out, name):
    from truth import record
    content, writer = name.split("-")
    release = metadata.version("flax")
    era = "latest" if release == LATEST else "flax" + release.replace(".", "")
    folder = out / era / name
    tree = globals()[content]()
    folder.mkdir(parents=True, exist_ok=True)
    facts = globals()[writer](folder, tree)
    record(folder, _named(tree), STEP, era=era, writer=writer, how=inspect.getdoc(globals()[writer]),
           content=inspect.getdoc(globals()[content]), **facts)
    print(era, name, flush=True)


def _named(tree):
    """The tree as nested dicts by the names that jax gives to its leaves."""
    import jax
    root = {}
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)
    for path, leaf in flat:
        node = root
        names = [_name(key) for key in path]
        for part in names[:-1]:
            node = node.setdefault(part, {})
        node[names[-1]] = leaf
    return root


def _name(key):
    return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))


def _nnx():
    try:
        from flax import nnx
        return nnx
    except ImportError:
        from flax.experimental import nnx
        return nnx


def _model(dropout=False):
    import jax
    nnx = _nnx()

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            if dropout:
                self.drop = nnx.Dropout(0.5, rngs=rngs)

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.block = Block(rngs)
            self.scale = nnx.Param(jax.numpy.ones((2,)) * 1.5)
            self.head = nnx.Linear(4, 2, use_bias=False, rngs=rngs)
            if hasattr(nnx, "List"):
                self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])
            elif release_at_least(0, 8, 3):
                self.layers = [nnx.Linear(2, 2, rngs=rngs) for _ in range(2)]

    return Net(nnx.Rngs(params=0, dropout=1))


def release_at_least(*wanted):
    """Whether the installed flax is this or newer."""
    return tuple(int(n) for n in metadata.version("flax").split(".")[:3]) >= wanted


def _state(module):
    nnx = _nnx()
    if hasattr(nnx, "state"):
        return nnx.state(module)
    return module.get_state()


def nnx_model():
    """`nnx.state(model)` of a model without random state."""
    return _state(_model())


def nnx_dropout():
    """`nnx.state(model)` of a model with Dropout, whose streams have a key and a count."""
    return _storable(_state(_model(dropout=True)))


def nnx_split():
    """`nnx.split(model, nnx.Param, ...)`: the parameters and the rest, as two entries of a dict."""
    nnx, model = _nnx(), _model()
    if hasattr(nnx, "split"):
        _, params, rest = nnx.split(model, nnx.Param, ...)
    else:
        params, rest, _ = model.split(nnx.Param, ...)
    return {"params": params, "rest": rest}


def nnx_pure():
    """The state as a pure dict of arrays."""
    nnx, state = _nnx(), nnx_model()
    if hasattr(nnx, "to_pure_dict"):
        return nnx.to_pure_dict(state)
    return state.to_pure_dict()


def nnx_optimizer():
    """`nnx.state(nnx.Optimizer(model, adam))`; where the optimizer holds the model, that too."""
    import optax
    nnx = _nnx()
    model, tx = _model(), optax.adam(1e-3)
    try:
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    except TypeError:
        optimizer = nnx.Optimizer(model, tx)
    return _state(optimizer)


def nnx_rngs():
    """`nnx.state(nnx.Rngs(0, dropout=1))`: keys and counts only."""
    return _storable(_state(_nnx().Rngs(params=0, dropout=1)))


def _storable(state):
    """Typed keys as their data, for the releases of Orbax that cannot store typed ones."""
    import jax
    if tuple(int(n) for n in metadata.version("orbax-checkpoint").split(".")[:2]) >= (0, 11):
        return state

    def data(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf
    return jax.tree_util.tree_map(data, state)


def linen_boxed():
    """Not NNX: Linen parameters in `nn.Partitioned` boxes, whose paths end in `value`, too."""
    import jax
    import flax.linen as nn
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    return nn.Dense(4, kernel_init=init).init(jax.random.PRNGKey(0), jax.numpy.ones((1, 3)))


def linen_value():
    """Not NNX: a Linen model with a parameter called `value`."""
    import jax
    import numpy as np
    rng = np.random.RandomState(3)
    draw = lambda *shape: jax.numpy.asarray(rng.standard_normal(shape), "float32")  # noqa: E731
    return {"params": {"value": {"kernel": draw(3, 2), "bias": draw(2)}, "Dense_0": {"kernel": draw(2, 2)},
                       "Critic_0": {"value": draw(4)}}}


def std(folder, tree):
    """`StandardCheckpointer`."""
    import orbax.checkpoint as ocp
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(folder / "ckpt", tree)
    if hasattr(checkpointer, "wait_until_finished"):
        checkpointer.wait_until_finished()
    return {}


def ptc(folder, tree):
    """`PyTreeCheckpointer`."""
    import orbax.checkpoint as ocp
    ocp.PyTreeCheckpointer().save(folder / "ckpt", tree)
    return {}


def mgr_args(folder, tree):
    """`CheckpointManager` with `StandardSave`."""
    import orbax.checkpoint as ocp
    (folder / "mgr").mkdir(exist_ok=True)
    manager = ocp.CheckpointManager(folder / "mgr")
    manager.save(STEP, args=ocp.args.StandardSave(tree))
    manager.wait_until_finished()
    return {"item": "default"}


CONTENTS = ("nnx_model", "nnx_dropout", "nnx_split", "nnx_pure", "nnx_optimizer", "nnx_rngs", "linen_boxed",
            "linen_value")
WRITERS = ("std", "ptc", "mgr_args")

if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
