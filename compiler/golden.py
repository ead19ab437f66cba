"""The interpreter of a Program: THE definition of what the hardware must output.

Two interpreters, equal for every Program and every image:

- `run_reference` calls `compiler.arith` and nothing else, in int64. It is what "golden" means.
- `run` computes in floats just wide enough to be exact, convolutions as matrix products, in chunks,
  on every core; large convolutions in bytes where the CPU has units for that. It is what everybody
  calls; tests hold it to the reference.

Why floats can be exact: integers below 2**24 (float32) or 2**53 (float64) are floats, and sums,
products by powers of two and roundings of them that stay below make no error. Each function here
states the largest number it meets, and takes the type that holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import arith, int8
from compiler.arith import Int, Staircase
from compiler.errors import ProgramError
from compiler.graph import convolve, in_chunks
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
    reads,
)

IMAGES_PER_CHUNK = 16
"""Images a thread interprets together: their maps stay in its cache."""

MUCH_WORK = 10**10
"""Additions in all from which a run looks for 8-bit units: torch takes seconds to be there."""

Array = NDArray[Any]
"""Integers, as int64 or as floats that hold them exactly."""

Values = dict[str, Array]

Execute = Callable[[Program, Op, Values], tuple[Array, int]]
"""The output of one operation, and how many of its values saturated."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a Program answers for N images.

    Attributes
    ----------
    scores : (N, classes) int64
        ``q - zero`` of the last tensor; times its ``step`` it is the class score.
    classes : (N,) int64
        Index of the highest score; of equal ones the lowest.
    tensors : dict
        The tensors asked for, (N, C, H, W) int64, as the integers the hardware holds.
    saturations : dict
        For each `Add` and `Pool` by its output's name, how many values saturated.
    """

    scores: Int
    classes: Int
    tensors: dict[str, Int] = field(default_factory=dict)
    saturations: dict[str, int] = field(default_factory=dict)


def run(
    program: Program,
    images: NDArray[np.uint8],
    tensors: Iterable[str] | None = None,
    threads: int | None = None,
) -> Result:
    """Interpret a Program, fast; equal to `run_reference`.

    Parameters
    ----------
    images : (N, C, H, W) uint8
    tensors : iterable of str, optional
        Names of the tensors wanted in the answer.
    threads : int, optional
        Default: one for each core.

    Raises
    ------
    ProgramError
        For images of another shape or type, and tensors that do not exist.
    """
    if program.addsub_per_image * len(images) < MUCH_WORK or not int8.available():
        return _run(program, images, tensors, _execute_exact, threads)
    with int8.one_thread():
        return _run(program, images, tensors, _execute_bytes, threads)


def run_reference(
    program: Program, images: NDArray[np.uint8], tensors: Iterable[str] | None = None
) -> Result:
    """Interpret a Program by `compiler.arith` alone: the definition. Same contract as `run`."""
    return _run(program, images, tensors, _execute, 1)


def _run(
    program: Program,
    images: NDArray[np.uint8],
    tensors: Iterable[str] | None,
    execute: Execute,
    threads: int | None,
) -> Result:
    wanted = _checked(program, images, tensors)

    def one(chunk: NDArray[np.uint8]) -> Result:
        return _run_chunk(program, chunk, wanted, execute)

    return _joined(in_chunks(one, images, IMAGES_PER_CHUNK, threads))


def _checked(
    program: Program, images: NDArray[np.uint8], tensors: Iterable[str] | None
) -> frozenset[str]:
    shape = program.image.shape
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        found = f"{images.dtype} {images.shape}"
        raise ProgramError(f"images must be uint8 (N, {', '.join(map(str, shape))}), not {found}")
    if not len(images):
        raise ProgramError("images must be at least one, not 0")
    wanted = frozenset(tensors or ())
    if unknown := sorted(wanted - {tensor.name for tensor in program.tensors}):
        raise ProgramError(f"tensor must be one of the program's, not {unknown[0]!r}")
    return wanted


def _joined(parts: list[Result]) -> Result:
    return Result(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.classes for part in parts]),
        {k: np.concatenate([part.tensors[k] for part in parts]) for k in parts[0].tensors},
        {k: sum(part.saturations[k] for part in parts) for k in parts[0].saturations},
    )


def _run_chunk(
    program: Program, images: NDArray[np.uint8], wanted: frozenset[str], execute: Execute
) -> Result:
    values: Values = {program.image.name: images.astype(np.int64)}
    saturations: dict[str, int] = {}
    last_use = {name: i for i, op in enumerate(program.ops) for name in reads(op)}
    for i, op in enumerate(program.ops):
        values[op.output], saturated = execute(program, op, values)
        if isinstance(op, Add | Pool):
            saturations[op.output] = saturated
        for name in set(reads(op)):
            if last_use[name] == i and name not in wanted:
                del values[name]
    q = values[program.scores.name].astype(np.int64)
    scores = q[:, :, 0, 0] - program.scores.zero
    kept = {name: values[name].astype(np.int64) for name in wanted}
    return Result(scores, np.argmax(scores, axis=1), kept, saturations)


# -- the definition --------------------------------------------------------------------------------


def _execute(program: Program, op: Op, values: Values) -> tuple[Int, int]:
    """One operation on int64, by `compiler.arith`."""
    x, source, out = values[op.source], program[op.source], program[op.output]
    match op:
        case Quantise():
            return op.staircase(x), 0
        case Conv():
            signs = program.signs(op).astype(np.int64)
            return arith.convolve(x, signs, op.stride, op.pads, source.zero), 0
        case Add():
            residual = values[op.residual] if op.residual is not None else np.zeros_like(x)
            x = x - source.zero
            if op.division is not None:
                x = op.division(x) - (1 << (op.division.bits - 1))
            return arith.add_residual(residual, x, op.shift, out.bits)
        case Pool():
            exact = arith.pool(x, op.pads, op.count_padding, op.right_shift)
            pooled = arith.saturate(exact, out.bits)
            more = out.channels - source.channels
            saturated = int(np.count_nonzero(pooled != exact))
            return np.pad(pooled, ((0, 0), (0, more), (0, 0), (0, 0))), saturated
        case MaxPool():
            best = arith.max_pool(x, op.kernel, op.stride, op.pads)
            falling = np.array(op.falling)[:, None, None]
            return np.where(falling, source.high - best, best), 0
        case SumPixels():
            return np.asarray((x - source.zero).sum(axis=(2, 3), keepdims=True)), 0


# -- the same in exact floats ----------------------------------------------------------------------


def _execute_exact(program: Program, op: Op, values: Values) -> tuple[Array, int]:
    """`_execute` on floats; what no float holds, and what costs little, goes to the definition."""
    kind = _narrowest(_largest(program, op))
    if kind is None:
        integers = {name: values[name].astype(np.int64) for name in reads(op)}
        return _execute(program, op, integers)
    x, source, out = values[op.source].astype(kind), program[op.source], program[op.output]
    match op:
        case Quantise():
            return _staircase(x, op.staircase), 0
        case Conv():
            centred = x - x.dtype.type(source.zero) if source.zero else x
            return convolve(centred, program.signs(op), op.stride, op.pads), 0
        case Add(residual=str(name)):
            return _add(values[name].astype(kind), x, op.shift, out)
        case _:
            raise ProgramError(f"{op.name}: no float form")


def _execute_bytes(program: Program, op: Op, values: Values) -> tuple[Array, int]:
    """`_execute_exact`, but convolutions whose inputs are bytes are computed in bytes."""
    if not isinstance(op, Conv):
        return _execute_exact(program, op, values)
    source, out = program[op.source], program[op.output]
    low, high = source.low - source.zero, source.high - source.zero
    # Unsigned values of 8 bits are taken 128 less: sum(w*x) = sum(w*(x - 128)) + 128*sum(w).
    less = 0 if high <= int8.HIGH else -int8.LOW
    kind = _narrowest(_magnitude(out))
    if kind is None or low - less < int8.LOW or high - less > int8.HIGH:
        return _execute_exact(program, op, values)
    signs = program.signs(op)
    x = (values[op.source].transpose(0, 2, 3, 1) - (source.zero + less)).astype(np.int8)
    acc = int8.convolve(x, signs, op.stride, op.pads, -less)
    if less:
        acc += less * signs.sum(axis=(1, 2, 3), dtype=np.int32)
    return np.ascontiguousarray(acc.transpose(0, 3, 1, 2)).astype(kind), 0


def _largest(program: Program, op: Op) -> float:
    """Bound of every integer (or integer over a power of two) that the float form meets.

    Of a convolution whatever the order of its summation: partial sums stay within the
    accumulator's exact range. Infinite where there is no float form.
    """
    reach = _magnitude(program[op.source])
    match op:
        case Quantise(staircase=s):
            # |y| < 2**24 is enough for floor(y / d) in float32. Below a whole k + 1 the quotient is
            # at least 1 / d away from it, and rounds up only from within half a unit in the last
            # place, at most 2**-24 * k: but d * k <= |y|. (A d beyond 2**24 gives 0 however it
            # is rounded.)
            return (reach << s.fraction_bits) + max(map(abs, s.offsets))
        case Conv():
            return _magnitude(program[op.output])
        case Add(residual=str(name), division=None):
            j = op.shift
            return _magnitude(program[name]) + (reach << max(j, 0)) + (1 << max(-j, 0))
    return math.inf


def _narrowest(largest: float) -> type[np.floating[Any]] | None:
    """The narrowest float type in which integers up to ``largest`` are exact."""
    if largest < 1 << 24:
        return np.float32
    return np.float64 if largest < 1 << 53 else None


def _magnitude(tensor: Tensor) -> int:
    return max(-tensor.low, tensor.high)


def _staircase(x: Array, s: Staircase) -> Array:
    """`Staircase.__call__` on floats."""
    kind = x.dtype.type
    factors = np.array(s.gains, kind) * kind(1 << s.fraction_bits)
    y: Array = x * factors[:, None, None]
    y -= np.array(s.offsets, kind)[:, None, None]
    y /= np.array(s.divisors, kind)[:, None, None]
    np.floor(y, out=y)
    np.clip(y, 0, (1 << s.bits) - 1, out=y)
    return y


def _add(r: Array, acc: Array, j: int, out: Tensor) -> tuple[Array, int]:
    """`arith.add_residual`: halves of integers are floats too, so the shift rounds as it should."""
    shifted = acc * acc.dtype.type(2.0**j)
    if j < 0:
        shifted += acc.dtype.type(0.5)
        np.floor(shifted, out=shifted)
    shifted += r
    clipped = np.clip(shifted, out.low, out.high)
    return clipped, int(np.count_nonzero(clipped != shifted))
