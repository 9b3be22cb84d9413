"""Lets flax 0.1.0 - 0.6.1 import and run on jax 0.4.4.

Those releases are older than the oldest CPU jaxlib that can still be installed. This module puts
back the names jax had removed in between. Nothing of flax is changed, so every byte that goes to
disk is made by the flax release itself. Newer eras run on the jax of their time and need none of
it; flax 0.6.3 misses one name of tensorflow. `install()` must be called before anything imports
jax or flax.
"""
import contextlib
import functools
import importlib.util
import os
import sys
import types
from importlib import metadata

NEEDS_IT = ("0.1.0", "0.2.2", "0.3.0", "0.3.4", "0.3.6", "0.4.2", "0.6.1")


def install():
    """Put the removed jax names back, if the installed flax is one that wants them."""
    if metadata.version("flax") == "0.6.3":
        _tensorflow_errors()
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
    fake_xla.abstractify = xla.abstractify
    fake_api = types.SimpleNamespace(device_put_sharded=jax.device_put_sharded)
    _put(jax, "xla", fake_xla)
    _put(jax, "api", fake_api)
    _put(jax, "partial", functools.partial)
    _put(jax, "tree_multimap", jax.tree_util.tree_map)
    _put(jax.tree_util, "tree_multimap", jax.tree_util.tree_map)
    _put(type(jax.config), "omnistaging_enabled", True)
    _put(xla, "DeviceArray", DeviceArray)
    _put(xla, "call_translations", {})
    _put(lax_numpy, "isin", jnp.isin)
    _tracing()


def _tracing():
    """What `flax.nn` and the first Linen ask of jax's tracer."""
    import jax.core
    stack = jax.core.thread_local_state.trace_state.trace_stack

    class TraceStack:
        """The interpreters above and below; since omnistaging jax keeps one list."""

        upward = property(lambda self: stack.stack)
        downward = property(lambda self: [])

        def __getattr__(self, name):
            return getattr(stack, name)

    _put(jax.core, "trace_state", types.SimpleNamespace(trace_stack=TraceStack()))
    _put(jax.core.Trace, "master", property(lambda self: self.main))
    for name in ("initial_style_staging", "eval_context"):
        _put(jax.core, name, contextlib.nullcontext)


def _tensorflow_errors():
    """The one name that flax 0.6.3 wants of tensorflow when it is not installed: an exception."""
    import flax.io  # noqa: F401 - it looks for tensorflow itself, and must not find this one
    if "tensorflow" in sys.modules or importlib.util.find_spec("tensorflow"):
        return
    fake = types.ModuleType("tensorflow")
    fake.errors = types.SimpleNamespace(NotFoundError=FileNotFoundError)
    sys.modules["tensorflow"] = fake


def _put(owner, name, value):
    if not hasattr(owner, name):
        setattr(owner, name, value)
