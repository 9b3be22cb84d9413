"""Trees of arrays that are spread over devices, and the same trees on the host.

Each content is a dict of `Spread` (or plain) values. `spread` puts the arrays onto a mesh; the truth is recorded
from the host arrays, because no process holds all of an array that two processes share.

Runs on Python 3.8 - 3.13. Import it after the devices were asked for (`XLA_FLAGS`).
"""
import collections

import jax
import numpy as np

STEP = 3
Spread = collections.namedtuple("Spread", "host axes")
"""A host array and, axis by axis, the mesh axis it is split over (None: it is not)."""


def spread8():
    """What eight devices hold: split along each axis, along both, along none, and partly copied."""
    rng = np.random.RandomState(8)
    return {
        "params": {
            "Dense_0": {"kernel": Spread(_normal(rng, 16, 8), ("x", None)),
                        "bias": Spread(_normal(rng, 8), ("y",))},
            "Dense_1": {"kernel": Spread(_normal(rng, 8, 16), (None, "y")),
                        "bias": Spread(_normal(rng, 16), ())},
            "Dense_10": {"kernel": Spread(_normal(rng, 8, 4), ("x", "y")),
                         "bias": Spread(_normal(rng, 8), (("x", "y"),))},
        },
        "opt_state": [
            {"mu": Spread(_normal(rng, 8, 6, 2).astype(jax.numpy.bfloat16), ("x", None, "y")),
             "count": Spread(np.asarray(7, np.int32), ())},
            {"mu": Spread(np.zeros((8, 4), np.float32), ("x", None))},
        ],
        "batch_stats": {"mean": Spread(np.arange(-8, 8, dtype=np.int8), ("x",)),
                        "mask": Spread(np.arange(8) % 3 == 0, ("x",))},
        "odd": {"a.b": Spread(_normal(rng, 8, 2), ("x", None)),
                "with space": Spread(_normal(rng, 4, 8).astype(np.float16), (None, "x"))},
        "host": np.arange(5, dtype=np.float32),
        "step": STEP,
    }


def slashes8():
    """The same with keys that hold slashes, as Linen's SpectralNorm makes them."""
    rng = np.random.RandomState(9)
    return {
        "spectral": {"Dense_0/kernel/u": Spread(_normal(rng, 1, 8), (None, "x")),
                     "Dense_0/kernel/sigma": Spread(np.asarray(1.5, np.float32), ())},
        "x": {"y": Spread(_normal(rng, 8, 2), ("x", None))},
        "step": STEP,
    }


def large8():
    """Arrays whose chunks are too large for the nodes of an OCDBT database: they lie in data files."""
    rng = np.random.RandomState(11)
    return {"layer_%d" % n: {"kernel": Spread(_normal(rng, 32, 48), axes)}
            for n, axes in enumerate((("x", None), (None, "y"), ("x", "y"), ()))}


def bare8():
    """No tree: one array."""
    return Spread(_normal(np.random.RandomState(10), 8, 2), ("x", "y"))


def host(node):
    """The content with every `Spread` as its host array."""
    return _mapped(node, lambda leaf: leaf.host)


def device(node, mesh):
    """The content with every `Spread` as a `jax.Array` on the mesh."""
    from jax.sharding import NamedSharding, PartitionSpec

    def put(leaf):
        sharding = NamedSharding(mesh, PartitionSpec(*leaf.axes))
        return jax.make_array_from_callback(leaf.host.shape, sharding, lambda i: leaf.host[i])
    return _mapped(node, put)


def global_device_arrays(node, mesh):
    """The content with every `Spread` as a `GlobalDeviceArray` (jax up to 0.4.6)."""
    from jax.experimental.global_device_array import GlobalDeviceArray
    from jax.experimental.pjit import PartitionSpec

    def put(leaf):
        axes = PartitionSpec(*leaf.axes)
        return GlobalDeviceArray.from_callback(leaf.host.shape, mesh, axes, lambda i: leaf.host[i])
    return _mapped(node, put)


def mesh():
    """All devices of all processes, as (x, y) with two along y."""
    devices = np.asarray(jax.devices())
    shape = (len(devices) // 2, 2)
    try:
        from jax.sharding import Mesh
    except ImportError:
        from jax.experimental.maps import Mesh
    return Mesh(devices.reshape(shape), ("x", "y"))


def _mapped(node, change):
    if isinstance(node, Spread):
        return change(node)
    if isinstance(node, dict):
        return {key: _mapped(child, change) for key, child in node.items()}
    if isinstance(node, list):
        return [_mapped(child, change) for child in node]
    return node


def _normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)
