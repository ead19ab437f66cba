"""Constant parts of an ONNX graph, worked out in numpy: what exporters leave for the runtime.

Scales, pads and shapes come out of exporters as little computations on constants. `fold` does one
operator of such, with two differences from a runtime:

- Floats are float64 whatever the file says, so that nothing is rounded that the author has not.
- Sizes are known before anything is allocated, and bounded: a file of a hundred bytes can ask for
  a terabyte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compiler.onnx_file import Node

Array = NDArray[Any]
Optional = Array | None
"""An input that a node may leave out."""

MAX_ELEMENTS = 1 << 25
"""Largest constant that is made: no layer of a 26-20 network has more than half as many weights."""

MAX_WORK = 1 << 32
"""Bytes that all foldings of a file may touch: a 26-20 network's weights, five times over."""


class Unfoldable(Exception):  # noqa: N818  (an answer, caught by the caller, not a user's error)
    """The operator, or this use of it, is not done here; the text is the reason."""


class Folder:
    """Folds the constants of one file; `MAX_WORK` bounds what all of them cost together."""

    def __init__(self) -> None:
        self._left = MAX_WORK

    def fold(self, node: Node, inputs: Sequence[Optional]) -> Array:
        """The first output of a node whose inputs are constants.

        Raises
        ------
        Unfoldable
            No such operator, inputs that it cannot take, or too much work; the text says which.
        """
        rule = _RULES.get(node.operator)
        if rule is None:
            raise Unfoldable("no rule for this operator on constants")
        try:
            with np.errstate(all="ignore"):
                arrays = [_real(x) for x in inputs]
                answer = np.asarray(rule(node, arrays))
        except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
            raise Unfoldable(f"its constants do not suit it: {error}") from error
        self._left -= max(x.nbytes for x in (*arrays, answer) if x is not None)
        if self._left < 0:
            raise Unfoldable("the constants of the file are too much work")
        return answer


def _real(x: Optional) -> Optional:
    """Floats as float64."""
    if x is None or x.dtype.kind != "f":
        return x
    return x.astype(np.float64, copy=False)


def bounded(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that may be allocated."""
    shape = tuple(int(n) for n in shape)
    if min(shape, default=0) < 0 or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"a shape of {list(shape)[:8]}")
    return shape


def given(inputs: Sequence[Optional], index: int) -> Optional:
    """An input that may be left out."""
    return inputs[index] if index < len(inputs) else None


def needed(inputs: Sequence[Optional], index: int) -> Array:
    """An input that may not."""
    found = given(inputs, index)
    if found is None:
        raise ValueError(f"input {index} is missing")
    return found


def integers(node: Node, inputs: Sequence[Optional], index: int, name: str) -> list[int] | None:
    """What later opsets take as an input and earlier ones as an attribute (axes, pads, …)."""
    found = given(inputs, index)
    if found is not None:
        if found.size > 1 << 10:
            raise ValueError(f"{found.size} {name}")
        return [int(n) for n in np.ravel(found)]
    value = node.attributes.get(name)
    if value is None:
        return None
    return [int(n) for n in value] if isinstance(value, list) else [int(value)]


def axes_of(axes: list[int], rank: int) -> list[int]:
    """Axes counted from the front."""
    found = [a + rank if a < 0 else a for a in axes]
    if len(set(found)) != len(found) or any(not 0 <= a < rank for a in found):
        raise ValueError(f"axes {axes} of {rank}")
    return found


# -- rules -----------------------------------------------------------------------------------------

Rule = Callable[[Node, list[Optional]], Array]


def _elementwise(function: Callable[..., Array], arity: int) -> Rule:
    """A function of ``arity`` arrays, broadcast."""

    def rule(_: Node, inputs: list[Optional]) -> Array:
        if len(inputs) != arity:  # numpy would write its answer into one more
            raise ValueError(f"{len(inputs)} inputs")
        arrays = [needed(inputs, i) for i in range(arity)]
        bounded(np.broadcast_shapes(*(x.shape for x in arrays)))
        return np.asarray(function(*arrays))

    return rule


def _divide(a: Array, b: Array) -> Array:
    """Truncating on integers."""
    if a.dtype.kind == "f" or b.dtype.kind == "f":
        return np.asarray(a / b)
    if not b.all():
        raise ValueError("a division by 0")
    sign = np.sign(a) * np.sign(b)
    return np.asarray(np.abs(a) // np.abs(b) * sign).astype(a.dtype)


def _constant(node: Node, _: list[Optional]) -> Array:
    a = node.attributes
    if isinstance(a.get("value"), np.ndarray):
        return np.asarray(_real(a["value"]))
    for name, dtype in (
        *(("value_float", np.float64), ("value_floats", np.float64)),
        *(("value_int", np.int64), ("value_ints", np.int64)),
    ):
        if name in a:
            return np.array(a[name], dtype)
    raise ValueError("no number")


def _cast(node: Node, inputs: list[Optional]) -> Array:
    kind = node.attributes.get("to", TensorProto.UNDEFINED)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    x = needed(inputs, 0)
    if dtype == np.float16:
        return x.astype(np.float16).astype(np.float64)
    # Single precision is where the author's number was to be used, not where it came from.
    return x.astype(np.float64 if dtype == np.float32 else dtype)


def _constant_of_shape(node: Node, inputs: list[Optional]) -> Array:
    shape = bounded(np.ravel(needed(inputs, 0)).tolist())
    value = np.ravel(np.asarray(node.attributes.get("value", np.zeros(1))))
    return np.broadcast_to(value[:1].reshape(()), shape)


def _reshape(node: Node, inputs: list[Optional]) -> Array:
    x, shape = needed(inputs, 0), [int(n) for n in np.ravel(needed(inputs, 1))]
    if not node.attributes.get("allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x.reshape(shape)


def _squeeze(node: Node, inputs: list[Optional]) -> Array:
    axes, x = integers(node, inputs, 1, "axes"), needed(inputs, 0)
    return np.squeeze(x, None if axes is None else tuple(axes_of(axes, x.ndim)))


def _unsqueeze(node: Node, inputs: list[Optional]) -> Array:
    axes, x = integers(node, inputs, 1, "axes") or [], needed(inputs, 0)
    return np.expand_dims(x, tuple(axes_of(axes, x.ndim + len(axes))))


def _flatten(node: Node, inputs: list[Optional]) -> Array:
    x, axis = needed(inputs, 0), node.attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(node: Node, inputs: list[Optional]) -> Array:
    return np.transpose(needed(inputs, 0), node.attributes.get("perm"))


def _concat(node: Node, inputs: list[Optional]) -> Array:
    arrays = [needed(inputs, i) for i in range(len(inputs))]
    if sum(x.size for x in arrays) > MAX_ELEMENTS:
        raise ValueError("its answer is too large")
    return np.concatenate(arrays, node.attributes["axis"])


def _gather(node: Node, inputs: list[Optional]) -> Array:
    x, index = needed(inputs, 0), needed(inputs, 1)
    axis = axes_of([node.attributes.get("axis", 0)], x.ndim)[0]
    bounded((*x.shape[:axis], index.size, *x.shape[axis + 1 :]))
    return np.take(x, index, axis)


def _slice(node: Node, inputs: list[Optional]) -> Array:
    x = needed(inputs, 0)
    index = [slice(None)] * x.ndim
    for axis, part in slices(node, inputs, x.ndim).items():
        index[axis] = part
    return x[tuple(index)]


def slices(node: Node, inputs: Sequence[Optional], rank: int) -> dict[int, slice]:
    """The parts that a Slice takes, by axis."""
    starts = integers(node, inputs, 1, "starts") or []
    ends = integers(node, inputs, 2, "ends") or []
    axes = axes_of(integers(node, inputs, 3, "axes") or list(range(len(starts))), rank)
    steps = integers(node, inputs, 4, "steps") or [1] * len(starts)
    found = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # A reversed slice to the very front ends below 0, which Python would count from the back.
        stop = None if step < 0 and end < -(1 << 30) else end
        found[axis] = slice(start, stop, step)
    return found


def _expand(_: Node, inputs: list[Optional]) -> Array:
    x, shape = needed(inputs, 0), [int(n) for n in np.ravel(needed(inputs, 1))]
    return np.broadcast_to(x, bounded(np.broadcast_shapes(x.shape, bounded(shape))))


def _shape(node: Node, inputs: list[Optional]) -> Array:
    return shape_part(node, needed(inputs, 0).shape)


def shape_part(node: Node, shape: Sequence[int]) -> Array:
    """What a Shape says of ``shape``."""
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return np.array(shape[start:end], np.int64)


def _reduce(function: Callable[..., Array]) -> Rule:
    """A mean, sum or extreme over some axes."""

    def rule(node: Node, inputs: list[Optional]) -> Array:
        x, axes = needed(inputs, 0), integers(node, inputs, 1, "axes")
        if not axes and node.attributes.get("noop_with_empty_axes"):
            return x
        over = tuple(axes_of(axes, x.ndim)) if axes else None
        return function(x, axis=over, keepdims=bool(node.attributes.get("keepdims", 1)))

    return rule


def _clip(_: Node, inputs: list[Optional]) -> Array:
    return np.clip(needed(inputs, 0), given(inputs, 1), given(inputs, 2))


def _quantise(node: Node, inputs: list[Optional]) -> Array:
    """QONNX's Quant: to an integer of some bits and back."""
    x, scale, zero = (needed(inputs, i) for i in range(3))
    bounded(np.broadcast_shapes(x.shape, scale.shape, zero.shape))
    low, high = quant_range(node, float(np.ravel(needed(inputs, 3))[0]))
    q = np.clip(np.rint(x / scale + zero), low, high)
    return (q - zero) * scale


def quant_range(node: Node, bits: float) -> tuple[int, int]:
    """Lowest and highest integer of a Quant of ``bits``."""
    if bits != int(bits) or not 1 <= bits <= 32:
        raise ValueError(f"a width of {bits:g} bits")
    signed, narrow = (bool(node.attributes.get(key, 0)) for key in ("signed", "narrow"))
    half, whole = 1 << (int(bits) - 1), 1 << int(bits)
    return (-half + narrow, half - 1) if signed else (0, whole - 1 - narrow)


def _bipolar(_: Node, inputs: list[Optional]) -> Array:
    """QONNX's BipolarQuant: the sign, that of 0 being +1, times a scale."""
    x, scale = needed(inputs, 0), needed(inputs, 1)
    bounded(np.broadcast_shapes(x.shape, scale.shape))
    return np.where(x >= 0, 1.0, -1.0) * scale


def _dequantise(node: Node, inputs: list[Optional]) -> Array:
    x, zero = needed(inputs, 0), given(inputs, 2)
    centred = x.astype(np.float64)
    if zero is not None:
        centred = centred - _along(node, zero, x.ndim)
    return np.asarray(centred * _along(node, needed(inputs, 1), x.ndim))


def _along(node: Node, part: Array, rank: int) -> Array:
    """Numbers along a DequantizeLinear's axis, as broadcasting wants them."""
    if part.size == 1:
        return part.reshape(())
    shape = [1] * rank
    shape[axes_of([node.attributes.get("axis", 1)], rank)[0]] = part.size
    return part.reshape(shape)


def _first(_: Node, inputs: list[Optional]) -> Array:
    return needed(inputs, 0)


_UNARY: dict[str, Callable[..., Array]] = {
    "Neg": np.negative,
    "Abs": np.abs,
    "Sign": np.sign,
    "Not": np.logical_not,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
}
_BINARY: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Pow": np.power,
    "Max": np.maximum,
    "Min": np.minimum,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}
_RULES: dict[str, Rule] = {
    **{name: _elementwise(function, 1) for name, function in _UNARY.items()},
    **{name: _elementwise(function, 2) for name, function in _BINARY.items()},
    "Where": _elementwise(np.where, 3),
    "Clip": _clip,
    "Identity": _first,
    "Dropout": _first,
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Expand": _expand,
    "Shape": _shape,
    "Quant": _quantise,
    "IntQuant": _quantise,
    "BipolarQuant": _bipolar,
    "DequantizeLinear": _dequantise,
}
"""By operator, whatever its domain: QONNX's have moved between several."""
