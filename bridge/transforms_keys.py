"""The transform that starts a random stream of the model from a key of the checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from bridge.transforms_base import Array, Spec, Transform, show
from bridge.transforms_fields import checked, integers, text

__all__ = ["StreamKey"]


@dataclass(frozen=True, slots=True)
class StreamKey(Transform):
    """Make the key of one random stream from the key that the checkpoint has.

    The new key is a digest of the old one and the stream's name: every stream gets another one,
    and the same one each time. It needs no JAX, and works for keys of any algorithm.

    Attributes:
        stream: which stream it is for.
        shape: of the key data.

    >>> one = StreamKey("model:dropout", (2,)).apply([np.zeros(2, np.uint32)])[0]
    >>> other = StreamKey("model:noise", (2,)).apply([np.zeros(2, np.uint32)])[0]
    >>> one.shape, bool((one == other).all())
    ((2,), False)
    """

    op: ClassVar[str] = "stream_key"
    stream: str = checked(text)
    shape: tuple[int, ...] = checked(integers)

    def _loss(self) -> str | None:
        return "a digest cannot be undone; the stored key is kept in extras"

    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        if len(specs) != 1 or specs[0].dtype != "uint32":
            raise self.refuse(f"takes the uint32 data of one key, got {show(specs)}.")
        return (Spec(self.shape, "uint32"),)

    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        self._infer(tuple(Spec.of(a) for a in arrays))
        name = json.dumps(self.stream).encode()
        seed = np.ascontiguousarray(arrays[0]).astype("<u4").tobytes()
        size = prod(self.shape) * 4
        data = b"".join(
            hashlib.sha256(b"%d:%s:%s" % (n, name, seed)).digest() for n in range(-(-size // 32))
        )
        return (np.frombuffer(data[:size], "<u4").astype(np.uint32).reshape(self.shape),)

    def _inverse(self, specs: Sequence[Spec]) -> Transform:  # noqa: ARG002 - none at all
        raise self.lossy()
