"""Program to ONNX: the integers of `compiler.golden`, in somebody else's runtime, bit for bit.

Every operation of a Program becomes standard integer operators; there is no float in the graph. A
tensor of the Program is the value of the same name, so the two can be compared layer by layer.

====================  ==========================================================================
operation             operators
====================  ==========================================================================
`Quantise`            Mul, Sub, Max, Div, Min on int64; a Cast to uint8 where it fits
`Conv`                ConvInteger (uint8 times int8, the zero point its own); of wider integers
                      one MatMul a tap, on int64
`Add`                 the shift (Mul, or Add, Mod, Sub, Div), Add, Clip on int64
`Pool`                Pad, nine Slices added up, Mul by 36/count, the shift, Clip, Pad
`MaxPool`             MaxPool on uint8; where channels fall Mul and Add on int64
`SumPixels`           Sub, ReduceSum on int64
====================  ==========================================================================

Division is the one point where languages differ: ONNX truncates. It is used here only where that
is floor too, on operands that are not negative or that are multiples of the divisor.
"""

from __future__ import annotations

import json

import numpy as np
import onnx

from compiler import arith
from compiler.arith import Int, Pads, Staircase
from compiler.onnx_model import Model, onnx_pads
from compiler.program import (
    Add,
    Conv,
    MaxPool,
    Op,
    Pool,
    Program,
    Quantise,
    SumPixels,
    Tensor,
)

CLASSES = "class"
"""Output beside the scores: index of the highest, (N,) int64; of equal ones the lowest."""

TENSORS = "signum.tensors"
"""Key of the metadata: JSON, of each tensor of the Program its kind, zero and step."""


def to_onnx(program: Program, every_layer: bool = False) -> onnx.ModelProto:
    """The Program as a checked ONNX model.

    Input ``image`` (the Program's own name for it): (N, C, H, W) uint8. Outputs: the scores
    (N, classes, 1, 1), int64 and still around their zero, and `CLASSES`.

    Parameters
    ----------
    every_layer : bool
        Make every tensor of the Program an output.
    """
    writer = _Writer(program)
    for op in program.ops:
        writer.write(op)
    return writer.finish(every_layer)


class _Writer:
    """Emits the operators of one Program; `dtypes` are what its tensors are held in."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.model = Model(program.network, {CLASSES, *(t.name for t in program.tensors)})
        self.dtypes: dict[str, type[np.integer]] = {program.image.name: np.uint8}

    def finish(self, every_layer: bool) -> onnx.ModelProto:
        """Close with the class and declare every tensor."""
        program, model = self.program, self.model
        best = model.node("ArgMax", [program.scores.name], axis=1, keepdims=0)
        model.node("Reshape", [best, model.vector([-1])], CLASSES)
        for tensor in program.tensors:
            model.declare(tensor.name, self.dtypes[tensor.name], tensor.shape)
        model.declare(CLASSES, np.int64, ())
        names = [t.name for t in program.tensors[1:]] if every_layer else [program.scores.name]
        meaning = {
            t.name: {"kind": t.kind, "zero": t.zero, "step": t.step} for t in program.tensors
        }
        metadata = {
            TENSORS: json.dumps(meaning),
            "signum.labels": json.dumps(program.labels),
            "signum.activation_bits": str(program.activation_bits),
        }
        return model.finish(program.image.name, [*names, CLASSES], metadata)

    def write(self, op: Op) -> None:
        """The operators of one operation; the last of them writes its tensor."""
        source, out = self.program[op.source], self.program[op.output]
        dtype: type[np.integer] = np.int64
        match op:
            case Quantise():
                dtype = np.uint8 if out.high <= np.iinfo(np.uint8).max else np.int64
                steps = self._staircase(self._wide(op.source), op.staircase)
                self._named(steps, op.output, dtype)
            case Conv() if self.dtypes[op.source] is np.uint8:
                dtype = np.int32
                self._convolve(op, source)
            case Conv():
                self._convolve_wide(op, source, out)
            case Add():
                self._add(op, out)
            case Pool():
                self._pool(op, source, out)
            case MaxPool():
                dtype = np.uint8
                self._maximum(op, out)
            case SumPixels():
                centred = self._offset(self._wide(op.source), -source.zero)
                self.model.node(
                    "ReduceSum", [centred, self.model.vector([2, 3])], op.output, keepdims=1
                )
        self.dtypes[op.output] = dtype

    # -- operations ----------------------------------------------------------------------------

    def _staircase(self, x: str, s: Staircase) -> str:
        """`Staircase.__call__` on int64.

        Clipping at 0 comes before the division, where golden has it after: a negative dividend
        has a negative quotient, so both give 0, and Div meets nothing negative.
        """
        node = self.model.node
        factors = self._channels(f"{x}/gain", [g << s.fraction_bits for g in s.gains])
        y = node("Mul", [x, factors])
        y = node("Sub", [y, self._channels(f"{x}/t", s.offsets)])
        y = node("Max", [y, self._int(0)])
        y = node("Div", [y, self._channels(f"{x}/d", s.divisors)])
        return node("Min", [y, self._int((1 << s.bits) - 1)])

    def _convolve(self, op: Conv, source: Tensor) -> None:
        """Padding is the zero point, as ConvInteger has it."""
        weights = self.model.constant(f"{op.name}.weight", self.program.signs(op))
        self.model.node(
            "ConvInteger",
            [op.source, weights, self.model.number(source.zero, np.uint8)],
            op.output,
            kernel_shape=[op.kernel] * 2,
            strides=[op.stride] * 2,
            pads=onnx_pads(op.pads),
        )

    def _convolve_wide(self, op: Conv, source: Tensor, out: Tensor) -> None:
        """Of integers that no byte holds (the head's pixel sums): one matrix product a tap."""
        model, signs = self.model, self.program.signs(op).astype(np.int64)
        x = self._padded(self._offset(self._wide(op.source), -source.zero), op.pads)
        pixels = model.vector([0, source.channels, out.height * out.width])
        total = ""
        for ky in range(op.kernel):
            for kx in range(op.kernel):
                tap = self._window(x, (ky, kx), op.stride, (out.height, out.width))
                matrix = model.constant(f"{op.name}.weight{ky}{kx}", signs[:, :, ky, kx])
                part = model.node("MatMul", [matrix, model.node("Reshape", [tap, pixels])])
                total = model.node("Add", [total, part]) if total else part
        model.node("Reshape", [total, model.vector([0, *out.shape])], op.output)

    def _add(self, op: Add, out: Tensor) -> None:
        addend = self._offset(self._wide(op.source), -self.program[op.source].zero)
        if op.division is not None:
            addend = self._staircase(addend, op.division)
            addend = self._offset(addend, -(1 << (op.division.bits - 1)))
        addend = self._shifted(addend, op.shift)
        if op.residual is not None:
            addend = self.model.node("Add", [self._wide(op.residual), addend])
        self._saturated(addend, out, op.output)

    def _pool(self, op: Pool, source: Tensor, out: Tensor) -> None:
        model, size = self.model, (out.height, out.width)
        x = self._padded(self._wide(op.source), op.pads)
        total = ""
        for ky in range(arith.POOL_KERNEL):
            for kx in range(arith.POOL_KERNEL):
                tap = self._window(x, (ky, kx), 2, size)
                total = model.node("Add", [total, tap]) if total else tap
        counts = arith.pool_counts((source.height, source.width), op.pads, op.count_padding)
        weights: Int = np.vectorize(arith.pool_weight, otypes=[np.int64])(counts)
        total = model.node("Mul", [total, model.constant(f"{op.name}.weight", weights)])
        total = self._shifted(total, -op.right_shift)
        more = out.channels - source.channels
        if not more:
            self._saturated(total, out, op.output)
            return
        pooled = self._saturated(total, out)
        model.node("Pad", [pooled, model.vector([0, 0, 0, 0, 0, more, 0, 0])], op.output)

    def _maximum(self, op: MaxPool, out: Tensor) -> None:
        falls = any(op.falling)
        best = self.model.node(
            "MaxPool",
            [op.source],
            "" if falls else op.output,
            kernel_shape=[op.kernel] * 2,
            strides=[op.stride] * 2,
            pads=onnx_pads(op.pads),
        )
        if falls:
            wide = self.model.node("Cast", [best], to=onnx.TensorProto.INT64)
            signs = self._channels(f"{op.name}.sign", [1 - 2 * falling for falling in op.falling])
            tops = self._channels(f"{op.name}.top", [out.high * falling for falling in op.falling])
            turned = self.model.node("Mul", [wide, signs])
            self._named(self.model.node("Add", [turned, tops]), op.output, np.uint8)

    # -- what they are made of -----------------------------------------------------------------

    def _shifted(self, x: str, j: int) -> str:
        """`arith.shift`: what is divided is made a multiple of the divisor first."""
        node = self.model.node
        if j == 0:
            return x
        if j > 0:
            return node("Mul", [x, self._int(1 << j)])
        divisor = self._int(1 << -j)
        x = self._offset(x, 1 << (-j - 1))
        # Mod takes the sign of its divisor: it is never negative.
        return node("Div", [node("Sub", [x, node("Mod", [x, divisor])]), divisor])

    def _saturated(self, x: str, out: Tensor, name: str = "") -> str:
        return self.model.node("Clip", [x, self._int(out.low), self._int(out.high)], name)

    def _offset(self, x: str, constant: int) -> str:
        return self.model.node("Add", [x, self._int(constant)]) if constant else x

    def _padded(self, x: str, pads: Pads) -> str:
        if not any(onnx_pads(pads)):
            return x
        before, after = (0, 0, pads.top, pads.left), (0, 0, pads.bottom, pads.right)
        return self.model.node("Pad", [x, self.model.vector([*before, *after])])

    def _window(self, x: str, start: tuple[int, int], stride: int, size: tuple[int, int]) -> str:
        """The pixels that one tap of a window meets."""
        ends = [first + stride * (n - 1) + 1 for first, n in zip(start, size, strict=True)]
        parts = (start, ends, (2, 3), (stride, stride))
        return self.model.node("Slice", [x, *map(self.model.vector, parts)])

    def _wide(self, name: str) -> str:
        """A tensor of the Program as int64."""
        if self.dtypes[name] is np.int64:
            return name
        return self.model.node("Cast", [name], to=onnx.TensorProto.INT64)

    def _named(self, x: str, name: str, dtype: type[np.integer]) -> None:
        """Give a helper value the name of a tensor, in its type."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.model.node("Cast", [x], name, to=kind)

    def _channels(self, name: str, values: list[int] | tuple[int, ...]) -> str:
        """One constant a channel."""
        return self.model.constant(name, np.array(values, np.int64).reshape(-1, 1, 1))

    def _int(self, value: int) -> str:
        return self.model.number(value, np.int64)
