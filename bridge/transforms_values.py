"""Transforms that compute new values: a constant factor, and the user's own function."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bridge.errors import TransformError
from bridge.transforms_base import (
    Array,
    Copy,
    EachTransform,
    Spec,
    Transform,
    show,
)
from bridge.transforms_cast import fits, in_blocks, number_kind
from bridge.transforms_fields import checked, flag, one_of, real, text

__all__ = ["Function", "Scale"]


@dataclass(frozen=True, slots=True)
class Scale(EachTransform):
    """Multiply by a constant, computed in double precision and rounded once to the old dtype.

    A parameter that is scaled by ``f`` has gradients scaled by ``1/f``: so has momentum, and
    the second moment is scaled by ``1/f**2``.

    >>> Scale(0.5).for_moment(2)
    Scale(factor=4.0)
    """

    op: ClassVar[str] = "scale"
    factor: float = checked(real)

    def _validate(self) -> None:
        if self.factor == 0:
            raise self.refuse("the result would be all zeros; ignore the source and use `init`.")

    def _loss(self) -> str | None:
        if self.factor == 1:
            return None
        if abs(math.frexp(self.factor)[0]) == 0.5:  # noqa: PLR2004 - a power of two
            return "exact but for numbers near the smallest of the dtype"
        return "the last bit: x * f / f need not be x"

    def _infer_one(self, spec: Spec) -> Spec:
        if number_kind(spec.dtype) not in ("float", "complex"):
            raise self.refuse(f"scales floating point numbers only, the array is {spec}.")
        return spec

    def _apply_one(self, array: Array) -> Array:
        if self.factor == 1:
            return array
        dtype = array.dtype
        wide = np.complex128 if dtype.kind == "c" else np.float64

        def work(block: Array, before: int) -> Array:
            with np.errstate(all="ignore"):
                old = block.astype(wide)
                exact = _times(old, self.factor)
                new: Array = exact.astype(dtype)
                bad = (np.isfinite(old) != np.isfinite(exact)) | ~fits(exact, new)
            if bad.any():
                at = int(np.flatnonzero(bad)[0])
                index = tuple(int(i) for i in np.unravel_index(before + at, array.shape))
                value = old.reshape(-1)[at].item()
                raise self.refuse(
                    f"value {value} at index {index} leaves the range of {dtype.name}."
                )
            return new

        return in_blocks(array, dtype, work)

    def _inverse_one(self, spec: Spec) -> Transform:  # noqa: ARG002 - the same for all specs
        if self.factor != 1:
            raise self.lossy()
        return Copy()

    def _for_moment(self, order: int) -> Transform:
        try:
            return Scale(1 / self.factor**order)
        except (ArithmeticError, TransformError) as error:
            raise self.refuse(
                f"moments of order {order} would be scaled beyond what floats hold."
            ) from error


def _times(old: Array, factor: float) -> Array:
    if old.dtype.kind != "c":
        product: Array = old * factor
        return product
    out = np.empty_like(old)  # part by part: infinity times the factor's imaginary 0 is NaN
    out.real, out.imag = old.real * factor, old.imag * factor
    return out


@dataclass(frozen=True, slots=True)
class Function(Transform):
    """A Python function of the user's.

    Attributes:
        name: ``package.module:function``.
        moments: what to do with optimizer moments: ``refuse``, ``copy`` them unchanged, or do
            the ``same`` to them as to the parameter.
        result: ``same`` shape and dtype as what goes in, or ``probe``: found out by calling the
            function on zeros when the plan is made.
        many: the function takes all arrays as arguments and gives one array, or a tuple of them;
            otherwise it is called with each array. Its results are always probed.
        fn: the function itself, for use in memory; a name that can be imported needs none.

    >>> Function("numpy:flipud").apply([np.array([1, 2, 3])])
    (array([3, 2, 1]),)
    """

    op: ClassVar[str] = "function"
    name: str = checked(text)
    moments: str = checked(one_of("refuse", "copy", "same"), default="refuse")
    result: str = checked(one_of("same", "probe"), default="same")
    many: bool = checked(flag, default=False)
    fn: Callable[..., Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls, fn: Callable[..., Any], *, moments: str = "refuse", result: str = "same"
    ) -> Function:
        """Wrap a function that is at hand.

        A plan with a lambda or a local function works in memory and cannot be stored.
        """
        module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
        if module and name and "<" not in name and module != "__main__" and _same(fn, module, name):
            return cls(f"{module}:{name}", moments, result, fn=fn)
        code = getattr(fn, "__code__", None)
        where = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(fn)
        return cls(f"<{name or 'callable'} of {where}>", moments, result, fn=fn)

    def _validate(self) -> None:
        module, _, name = self.name.partition(":")
        if self.fn is None and not (module and name):
            raise self.refuse("the name has the form 'package.module:function'.")

    def _loss(self) -> str | None:
        return f"whatever {self.name} does; its inverse is not known"

    def _counts(self) -> tuple[bool, bool]:
        return self.many, self.many

    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        if not self.many and self.result == "same":
            return tuple(specs)
        # zeros that take no memory: every element is the same one
        zeros = [np.broadcast_to(np.zeros((), s.dtype), s.shape) for s in specs]
        with np.errstate(all="ignore"):
            return tuple(Spec.of(a) for a in self._call(zeros))

    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        results = self._call(arrays)
        if not self.many and self.result == "same":
            for old, new in zip(arrays, results, strict=True):
                if Spec.of(old) != Spec.of(new):
                    raise self.refuse(
                        f"made {Spec.of(new)} of {Spec.of(old)}. "
                        'If that is meant, declare it: result = "probe".'
                    )
        return results

    def _call(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        fn = self.fn or self._imported()
        given = []
        for array in arrays:
            given.append(array.view())
            given[-1].flags.writeable = False  # the same memory may feed another step
        try:
            if self.many:
                got = fn(*given)
                results = got if isinstance(got, (tuple, list)) else (got,)
            else:
                results = tuple(fn(a) for a in given)
        except Exception as error:
            raise self.refuse(
                f"raised {type(error).__name__}: {error} when called with "
                f"{show(Spec.of(a) for a in arrays)}."
            ) from error
        arrays = tuple(np.asarray(r) for r in results)
        for array in arrays:
            if number_kind(array.dtype) == "other":
                raise self.refuse(f"gave no array of numbers, but {Spec.of(array)}.")
        return arrays

    def _imported(self) -> Callable[..., Any]:
        module, _, name = self.name.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise self.refuse(f"cannot be imported: {error}.") from error
        if not callable(found):
            raise self.refuse(f"is no function but {found!r}.")
        return found  # type: ignore[no-any-return]

    def _inverse(self, specs: tuple[Spec, ...]) -> Transform:  # noqa: ARG002 - no inverse at all
        raise self.lossy()

    def _for_moment(self, order: int) -> Transform:  # noqa: ARG002 - both alike
        if self.moments == "same":
            return self
        if self.moments == "copy":
            return Copy()
        raise self.refuse(
            "what it does to optimizer moments is not known. Say so in the rule: "
            'moments = "copy" (unchanged) or "same" (the function is linear and the moments '
            "follow it); or ignore the moments and initialise their slots."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values.

        Raises:
            TransformError: the function has no name that can be imported.
        """
        if self.name.startswith("<"):
            raise self.refuse(
                "only functions that can be imported by name can be stored. "
                "Move it to a module and name it 'package.module:function'."
            )
        return Transform.to_json(self)


def _same(fn: Any, module: str, name: str) -> bool:
    """Whether importing the name gives this very function."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is fn
