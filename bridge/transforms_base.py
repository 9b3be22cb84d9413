"""What every transform is: a frozen value that works on a tuple of arrays.

A step of a plan feeds one or many source leaves through its transforms into one or many slots,
so a transform takes a tuple and gives a tuple. Each one can say what comes out before a byte is
read (:meth:`Transform.infer`), undo itself bit for bit or say what is lost
(:meth:`Transform.inverse`, :attr:`Transform.loss`), and say what must happen to the optimizer
moments of a parameter it is applied to (:meth:`Transform.for_moment`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeAlias

import ml_dtypes  # noqa: F401 - registers bfloat16, float8 and int4 by name
import numpy as np

from bridge.errors import TransformError
from bridge.transforms_fields import checked

__all__ = ["Array", "Copy", "Each", "EachTransform", "Spec", "Transform"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Spec(NamedTuple):
    """Shape and dtype name of an array that has not been read.

    >>> Spec.of(np.zeros((2, 3), np.float32))
    Spec(shape=(2, 3), dtype='float32')
    """

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: Array) -> Spec:
        """The spec of an array."""
        return cls(array.shape, array.dtype.name)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def show(specs: Iterable[Spec]) -> str:
    """Specs as text, such as ``float32[2,3], float32[3]``."""
    return ", ".join(map(str, specs)) or "no array"


class Transform(ABC):
    """One operation on a tuple of arrays.

    Subclasses are frozen dataclasses; two of one kind and with the same fields are equal.
    """

    __slots__ = ()
    op: ClassVar[str]

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            check = f.metadata.get("check")
            if check is None:
                continue
            try:
                value = check(getattr(self, f.name))
            except (TypeError, ValueError) as error:
                raise TransformError(f"{self.op}: field {f.name!r}: {error}.") from error
            object.__setattr__(self, f.name, value)
        self._validate()

    def _validate(self) -> None:
        """Check the fields against each other; raise :class:`TransformError`."""
        return

    def infer(self, specs: Sequence[Spec]) -> tuple[Spec, ...]:
        """What comes out of arrays like these.

        Args:
            specs: shape and dtype of each array that goes in.

        Raises:
            TransformError: the transform does not fit; the text has both numbers.
        """
        return self._infer(tuple(specs))

    @abstractmethod
    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]: ...

    def apply(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """The new arrays; views of the old ones where numpy can give a view.

        Args:
            arrays: what goes in; never written to.

        Raises:
            TransformError: shapes, dtypes or values do not fit.
        """
        return self._apply(tuple(arrays))

    @abstractmethod
    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]: ...

    def room(self, specs: Sequence[Spec]) -> tuple[Array, ...] | None:
        """Memory to read arrays into that lie in it as they lie in the result.

        Args:
            specs: of the arrays that are going to go in.

        Returns:
            One new array for each; :meth:`apply` of exactly these copies nothing. None for a
            transform that has to copy, or that copies nothing anyway.
        """
        return self._room(tuple(specs))

    def _room(self, specs: tuple[Spec, ...]) -> tuple[Array, ...] | None:  # noqa: ARG002
        return None

    def inverse(self, specs: Sequence[Spec]) -> Transform:
        """The transform that gives back the arrays that went in, bit for bit.

        Args:
            specs: of the arrays that went in.

        Raises:
            TransformError: it does not fit these specs, or it loses something.
        """
        self._infer(tuple(specs))
        return self._inverse(tuple(specs))

    @abstractmethod
    def _inverse(self, specs: tuple[Spec, ...]) -> Transform: ...

    @property
    def loss(self) -> str | None:
        """None when it can always be undone; else what may be lost, in words."""
        return self._loss()

    def _loss(self) -> str | None:
        return None

    @property
    def joins(self) -> bool:
        """Whether it makes one array of many."""
        return self._counts()[0]

    @property
    def splits(self) -> bool:
        """Whether it makes many arrays of one."""
        return self._counts()[1]

    def _counts(self) -> tuple[bool, bool]:
        return False, False

    def for_moment(self, order: int) -> Transform:
        """What to do to an optimizer's copy of the parameter.

        Args:
            order: 0 for a copy of parameters (EMA, target network), 1 for what is like a gradient
                (momentum, ``mu``, accumulated gradients), 2 for what is like its square (``nu``).

        Returns:
            The transform for that copy; structural ones give themselves.

        Raises:
            TransformError: there is no right answer; the text says what to do.
        """
        if order not in (0, 1, 2):
            raise self.refuse(f"a moment has order 0, 1 or 2, got {order!r}.")
        return self if order == 0 else self._for_moment(order)

    def _for_moment(self, order: int) -> Transform:  # noqa: ARG002 - most do not ask
        return self

    def describe(self) -> str:
        """Short text for reports, such as ``transpose(1,0)``."""
        parts = [
            shown if len(fields(self)) == 1 else f"{name}={shown}"  # type: ignore[arg-type]
            for name, value in self._set_fields()
            for shown in [_short(value)]
        ]
        return f"{self.op}({', '.join(parts)})" if parts else self.op

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without fields at their default; ``op`` names the kind."""
        return {"op": self.op} | {name: _plain(value) for name, value in self._set_fields()}

    def _set_fields(self) -> list[tuple[str, Any]]:
        return [
            (f.name, getattr(self, f.name))
            for f in fields(self)  # type: ignore[arg-type]
            if f.compare and (f.default is MISSING or getattr(self, f.name) != f.default)
        ]

    def __str__(self) -> str:
        return self.describe()

    def refuse(self, why: str) -> TransformError:
        """An error of this transform."""
        return TransformError(f"{self.describe()}: {why}")

    def lossy(self) -> TransformError:
        """The error of an inverse that does not exist."""
        return self.refuse(f"cannot be undone bit for bit ({self.loss}). Keep the source.")


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_short(v) for v in value)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value.to_json() if isinstance(value, Transform) else value


class EachTransform(Transform):
    """A transform that does the same to each array of the tuple."""

    __slots__ = ()

    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        return tuple(self._infer_one(s) for s in specs)

    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        self.infer([Spec.of(a) for a in arrays])
        return tuple(self._apply_one(a) for a in arrays)

    def _inverse(self, specs: tuple[Spec, ...]) -> Transform:
        undo = tuple(self._inverse_one(s) for s in specs)
        if not undo:
            return Copy()
        return undo[0] if len(set(undo)) == 1 else Each(undo)

    @abstractmethod
    def _infer_one(self, spec: Spec) -> Spec: ...

    @abstractmethod
    def _apply_one(self, array: Array) -> Array: ...

    @abstractmethod
    def _inverse_one(self, spec: Spec) -> Transform: ...

    def axis_of(self, axis: int, spec: Spec) -> int:
        """The axis counted from the front.

        Raises:
            TransformError: the array has no such axis.
        """
        return find_axis(self, axis, len(spec.shape), spec)


def find_axis(transform: Transform, axis: int, ndim: int, spec: Spec) -> int:
    """Count an axis from the front, or say that there is none."""
    if not -ndim <= axis < ndim:
        raise transform.refuse(f"there is no axis {axis} here: the array is {spec}.")
    return axis % ndim


@dataclass(frozen=True, slots=True)
class Copy(EachTransform):
    """Nothing happens.

    >>> Copy().to_json()
    {'op': 'copy'}
    """

    op: ClassVar[str] = "copy"

    def _infer_one(self, spec: Spec) -> Spec:
        return spec

    def _apply_one(self, array: Array) -> Array:
        return array

    def _inverse_one(self, spec: Spec) -> Transform:  # noqa: ARG002 - the same for all specs
        return self


def _transforms(value: Any) -> tuple[Transform, ...]:
    got = tuple(value)
    for t in got:
        if not isinstance(t, Transform):
            raise TypeError(f"expected a list of transforms, got {t!r}")
    return got


@dataclass(frozen=True, slots=True)
class Each(Transform):
    """A transform of its own for each array, as query, key and value may need before a join.

    >>> Each((Copy(), Copy())).describe()
    'each(copy,copy)'
    """

    op: ClassVar[str] = "each"
    transforms: tuple[Transform, ...] = checked(_transforms)

    def _validate(self) -> None:
        for t in self.transforms:
            if t.joins or t.splits:
                raise self.refuse(f"{t} changes the number of arrays; put it beside `each`.")

    def _loss(self) -> str | None:
        return "; ".join(dict.fromkeys(t.loss for t in self.transforms if t.loss)) or None

    def _pairs(self, specs: Sequence[Spec]) -> list[tuple[Transform, Spec]]:
        if len(specs) != len(self.transforms):
            raise self.refuse(
                f"has {len(self.transforms)} transforms for {len(specs)} arrays ({show(specs)})."
            )
        return list(zip(self.transforms, specs, strict=True))

    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        return tuple(out for t, s in self._pairs(specs) for out in t.infer((s,)))

    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        self._pairs([Spec.of(a) for a in arrays])
        return tuple(
            out for t, a in zip(self.transforms, arrays, strict=True) for out in t.apply((a,))
        )

    def _inverse(self, specs: tuple[Spec, ...]) -> Transform:
        return Each(tuple(t.inverse((s,)) for t, s in self._pairs(specs)))

    def _for_moment(self, order: int) -> Transform:
        return Each(tuple(t.for_moment(order) for t in self.transforms))
