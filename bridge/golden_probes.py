"""How a model is called, as JSON and arrays, so that a golden needs none of the code that said it.

Arguments are dicts, lists, tuples, plain values and arrays; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bridge.golden import GoldenError
from bridge.probe import Probe

__all__ = ["probe_from_json", "probe_json"]

_ARRAY, _KEY, _TUPLE, _DICT = "array", "key", "tuple", "dict"


def probe_json(
    probe: Probe, inputs: Sequence[Any], name: str, arrays: dict[str, Any]
) -> dict[str, Any]:
    """A probe of the NNX side as JSON.

    Args:
        probe: the call.
        inputs: the arrays among its arguments, in order, as :attr:`bridge.calls.Call.inputs`.
        name: before the names of the arrays.
        arrays: the arrays are put here.

    Raises:
        GoldenError: an argument is none of what can be kept.
    """
    method = probe.nnx_name()
    if probe.nnx_method is None and probe.method is not None and not isinstance(probe.method, str):
        raise GoldenError(
            f"the method {method} is given as a function, which a golden cannot keep. Name the "
            "method of the NNX model: bridge.Probe(..., nnx_method='encode')."
        )
    args, kwargs = probe.nnx_arguments()
    keep = _Keep(iter(inputs), name, arrays)
    # jax flattens a dict in the order of its keys
    shown: dict[str, Any] = {"args": [keep.json(a) for a in args]}
    shown["kwargs"] = {key: keep.json(kwargs[key]) for key in sorted(kwargs)}
    if probe.nnx_kwargs is None and probe.kwargs:
        shown["mine"] = True  # those that the method takes
    shown |= {"method": method} if method != "__call__" else {}
    return shown | ({"train": True} if probe.train else {})


class _Keep:
    def __init__(self, inputs: Iterator[Any], name: str, arrays: dict[str, Any]) -> None:
        self._inputs, self._name, self._arrays = inputs, name, arrays
        self._count = 0

    def json(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return [self.json(v) for v in value]
        if type(value) is tuple:
            return {_TUPLE: [self.json(v) for v in value]}
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return {_DICT: {k: self.json(value[k]) for k in sorted(value)}}
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return self._array(next(self._inputs))
        raise GoldenError(
            f"the sample input holds a {type(value).__name__}, which a golden cannot keep. Give "
            "arrays, plain values, and dicts, lists and tuples of them."
        )

    def _array(self, value: Any) -> dict[str, Any]:
        name = f"{self._name}.in.{self._count}"
        self._count += 1
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            self._arrays[name] = np.asarray(jax.random.key_data(value))
            return {_KEY: name, "impl": str(jax.random.key_impl(value))}
        array = np.asarray(value)
        if array.dtype.kind not in "biufc" or array.dtype.isbuiltin != 1:
            self._arrays[name] = array.astype(np.float32)
            return {_ARRAY: name, "dtype": array.dtype.name}
        self._arrays[name] = array
        return {_ARRAY: name}


def probe_from_json(data: Mapping[str, Any], arrays: Mapping[str, Any]) -> Probe:
    """Read back what :func:`probe_json` gave.

    Args:
        data: the JSON.
        arrays: the arrays that it names.
    """
    args = tuple(_value(a, arrays) for a in data["args"])
    kwargs = {k: _value(v, arrays) for k, v in data["kwargs"].items()}
    return Probe(
        args,
        kwargs,
        nnx_args=args,
        nnx_kwargs=None if data.get("mine") else kwargs,
        method=data.get("method"),
        train=data.get("train", False),
    )


def _value(data: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(data, list):
        return [_value(v, arrays) for v in data]
    if not isinstance(data, dict):
        return data
    if _TUPLE in data:
        return tuple(_value(v, arrays) for v in data[_TUPLE])
    if _DICT in data:
        return {k: _value(v, arrays) for k, v in data[_DICT].items()}
    if _KEY in data:
        return jax.random.wrap_key_data(arrays[data[_KEY]], impl=data["impl"])
    array = arrays[data[_ARRAY]]
    return array if "dtype" not in data else jax.numpy.asarray(array, data["dtype"])
