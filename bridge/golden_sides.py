"""One side of a recorded call: a model with its values, and arrays as a golden keeps them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bridge.calls import Call
from bridge.precision import Program, doubled, doubles, tolerance

__all__ = ["Recorded", "Side", "kept_dtype", "on_host", "write_arrays"]


@dataclass
class Recorded:
    """What is kept of some calls.

    Attributes:
        document: ``outputs`` of ``golden.json``.
        arrays: inputs and outputs, by the names that the document uses.
    """

    document: dict[str, Any]
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.arrays.values())


@dataclass(frozen=True, slots=True)
class Side:
    """One model with its values: what it gives for a call."""

    calls: Sequence[Call]
    values: Mapping[Any, Any]

    def outputs(self, n: int, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs in the model's own precision."""
        program = Program(outputs_of_call(self.calls[n]))
        found: tuple[Any, ...] = program(self.values, list(inputs))
        return found

    def shapes(self, n: int, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Shapes and dtypes of the outputs."""
        found: tuple[Any, ...] = jax.eval_shape(
            outputs_of_call(self.calls[n]), self.values, list(inputs)
        )
        return found

    def wide(self, n: int, inputs: Sequence[Any]) -> tuple[Any, ...] | None:
        """The same in float64; None where the model does not compute in it."""
        with doubles():
            args = jax.tree.map(doubled, (self.values, list(inputs)))
            program = Program(outputs_of_call(self.calls[n]))
            try:
                if not program.wide(*args):
                    return None
                return tuple(np.asarray(x) for x in program(*args))
            except Exception:  # noqa: BLE001 - the user's code need not take float64
                return None

    def narrowest(self, n: int, inputs: Sequence[Any]) -> float:
        """How far apart rounding alone may bring them."""
        program = Program(outputs_of_call(self.calls[n]))
        return tolerance(program.narrowest(self.values, list(inputs)))


def outputs_of_call(call: Call) -> Any:
    return lambda values, inputs: call.run(values, inputs).outputs


def kept_dtype(dtype: Any) -> Any:
    """The dtype in which npz keeps one."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return np.dtype(np.uint32)
    plain = np.dtype(dtype)
    return plain if plain.kind in "biufc" and plain.isbuiltin == 1 else np.dtype(np.float32)


def on_host(value: Any) -> np.ndarray[Any, Any]:
    """An array as npz can keep it: keys as their data, bfloat16 and its like as float32."""
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.astype(kept_dtype(array.dtype), copy=False)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write an ``.npz`` whose bytes depend on the arrays alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in sorted(arrays.items()):
            held = io.BytesIO()
            np.lib.format.write_array(held, np.asanyarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.external_attr = 0o644 << 16
            archive.writestr(info, held.getvalue())
