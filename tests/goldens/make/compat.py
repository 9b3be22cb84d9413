"""Lets flax 0.3.4 - 0.6.1 import on jax 0.4.4.

Those releases are older than the oldest CPU jaxlib that can still be installed. This module puts
back the names jax had removed in between. Nothing of flax is changed, so every byte that goes to
disk is made by the flax release itself. Newer eras run on the jax of their time and need none of
it. `install()` must be called before anything imports jax or flax.
"""
import os
import types
from importlib import metadata

NEEDS_IT = ("0.3.4", "0.3.6", "0.6.1")


def install():
    """Put the removed jax names back, if the installed flax is one that wants them."""
    if metadata.version("flax") not in NEEDS_IT:
        return
    # The array class of the time (DeviceArray), and the jit that goes with it.
    os.environ.setdefault("JAX_ARRAY", "0")
    os.environ.setdefault("JAX_JIT_PJIT_API_MERGE", "0")
    import jax
    import jax.numpy as jnp
    from jax._src.numpy import lax_numpy
    from jax.interpreters import xla
    from jaxlib.xla_extension import DeviceArray

    fake_xla = types.ModuleType("jax.xla")
    fake_xla.DeviceArray = DeviceArray
    fake_api = types.SimpleNamespace(device_put_sharded=jax.device_put_sharded)
    _put(jax, "xla", fake_xla)
    _put(jax, "api", fake_api)
    _put(jax, "tree_multimap", jax.tree_util.tree_map)
    _put(jax.tree_util, "tree_multimap", jax.tree_util.tree_map)
    _put(type(jax.config), "omnistaging_enabled", True)
    _put(xla, "DeviceArray", DeviceArray)
    _put(xla, "call_translations", {})
    _put(lax_numpy, "isin", jnp.isin)


def _put(owner, name, value):
    if not hasattr(owner, name):
        setattr(owner, name, value)
