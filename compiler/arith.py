"""The integer arithmetic of a 1-bit-weight residual network: its only definition.

Everything that computes integers in this project calls this file: the golden model, the lowering,
the ONNX writer, the Image packer and the benches that hold the hardware to account. A hardware
block's docstring names the function here that it equals.

Notation used throughout
------------------------
========  =====================================================================================
``q``     activation, unsigned, ``bits`` wide; stands for ``(q - zero) * step``
``acc``   accumulator of a convolution, ``sum(weight * (q - zero))``, exact
``r``     residual stream, signed, saturating at a declared width; stands for ``r * unit``
``t, d``  offset and divisor of a staircase, one pair a channel
``F``     fraction bits of a staircase: ``t`` and ``d`` are in units of ``2**-F`` of its input
``j``     shift that aligns a convolution with the residual stream: ``scale * step == unit * 2**j``
========  =====================================================================================

Arrays are int64 unless said otherwise, channels first: ``(..., C, H, W)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]

INPUT_BITS = 8
"""Width of a pixel, and of the input after its batch norm, whatever the activation bits are."""

SIGNED_INPUT_ZERO = 1 << (INPUT_BITS - 1)
"""The q that stands for 0 in the quantised input: q - 128 is the signed 8-bit value."""

INPUT_FRACTION_BITS = 12
"""Ceiling of F for the quantiser of the image, which has 255 thresholds on 256 values."""

MAX_FRACTION_BITS = 8
"""Ceiling of F. A channel whose divisor stays small even so is nearly a single step, where the
rounding of a divisor moves no integer input across a threshold."""

DIVISOR_MARGIN = 5
"""A rounded divisor shifts the top step by at most 2**-(DIVISOR_MARGIN + 1) of a step."""

SCORE_BITS = 16
"""Width of a class score: signed, saturating."""


def sign(weights: NDArray[np.floating]) -> NDArray[np.int8]:
    """Binarise: +1 where ``weights >= 0`` (so sign(0) = +1), else -1."""
    return np.where(weights >= 0, 1, -1).astype(np.int8)


def conv_scale(fan_in: int, gain: float = 2.0) -> float:
    """The constant of a 1-bit layer, ``sqrt(gain / fan_in)``, fan_in = F*F*C_in.

    Source: McDonnell 2018, section 3.1 (``gain = 2``; 4 for networks without skips).
    """
    return math.sqrt(gain / fan_in)


def bits_signed(low: int, high: int) -> int:
    """Smallest two's complement width that holds every integer of ``low .. high``."""
    return max((-low - 1).bit_length() if low < 0 else 0, high.bit_length()) + 1


def bits_unsigned(high: int) -> int:
    """Smallest unsigned width (at least 1) that holds ``0 .. high``."""
    return max(1, high.bit_length())


def saturate(x: Int, bits: int) -> Int:
    """Clip to the signed range of ``bits``."""
    return np.clip(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def shift(x: Int | int, j: int) -> Int:
    """``x * 2**j``: exact for ``j >= 0``; else a right shift rounding to nearest.

    Ties go towards +infinity, for negative numbers too: ``(x + 2**(n-1)) >> n``.
    """
    x = np.asarray(x, dtype=np.int64)
    if j >= 0:
        return x << j
    return (x + (1 << (-j - 1))) >> -j


def add_residual(r: Int, acc: Int, j: int, bits: int) -> tuple[Int, int]:
    """Residual addition: shift and round, add, saturate, in that order.

    Returns the new stream and how many of its values saturated.
    """
    exact = np.asarray(r, dtype=np.int64) + shift(acc, j)
    clipped = saturate(exact, bits)
    return clipped, int(np.count_nonzero(exact != clipped))


# -- scale + batch norm + ReLU + quantiser = staircase ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Staircase:
    """``q = clip((2**F * gain*x - t) // d, 0, 2**bits - 1)``, a rising staircase of equal steps.

    Attributes
    ----------
    bits : int
        Width of q; also the number of subtractions the restoring division takes.
    fraction_bits : int
        F, 0 .. `MAX_FRACTION_BITS`.
    offsets, divisors : tuple of int
        t and d >= 1, one a channel.
    gains : tuple of int
        One a channel: +1; -1 where batch norm's scale is negative (the input is negated first);
        0 for a channel whose answer does not depend on its input (``q = clip(-t // d)``).
    """

    bits: int
    fraction_bits: int
    offsets: tuple[int, ...]
    divisors: tuple[int, ...]
    gains: tuple[int, ...]

    @property
    def channels(self) -> int:
        return len(self.offsets)

    def __call__(self, x: Int, axis: int = -3) -> Int:
        """Apply to integers whose dimension ``axis`` is the channel."""
        x = np.asarray(x, dtype=np.int64)
        shape = [1] * x.ndim
        shape[axis] = self.channels
        t, d, g = (
            np.array(v, dtype=np.int64).reshape(shape)
            for v in (self.offsets, self.divisors, self.gains)
        )
        q = np.clip(((x * g << self.fraction_bits) - t) // d, 0, (1 << self.bits) - 1)
        return np.asarray(q, dtype=np.int64)

    def restricted(self, low: int, high: int) -> Staircase:
        """The same answers for every x in ``low .. high``, by constants no larger than needed.

        A channel that answers alike over the whole range gets gain 0; one that has a single
        threshold in it gets the smallest divisor that keeps the others outside. So t stays below
        ``2**bits + 1`` times the range in width, whatever batch norm makes of the channel.
        """
        channels = zip(self.offsets, self.divisors, self.gains, strict=True)
        t, d, g = zip(*(self._restrict(*c, low, high) for c in channels), strict=True)
        return Staircase(self.bits, self.fraction_bits, t, d, g)

    def exceeds(self, low: int, high: int) -> bool:
        """Whether some x of ``low .. high`` would be given more than ``bits`` can hold."""
        channels = zip(self.offsets, self.divisors, self.gains, strict=True)
        ends = [
            ((g * x << self.fraction_bits) - t) // d for t, d, g in channels for x in (low, high)
        ]
        return max(ends) >= 1 << self.bits

    def complemented(self, falling: tuple[bool, ...]) -> Staircase:
        """Answers ``2**bits - 1 - q`` in the channels that ``falling`` names, still a staircase.

        ``top - floor((y - t) / d) == floor((-y + t + d - 1 + top*d) / d)``, and clipping commutes.
        """
        channels = zip(self.offsets, self.divisors, self.gains, falling, strict=True)
        turned = [
            (1 - t - (d << self.bits), d, -g) if falls else (t, d, g) for t, d, g, falls in channels
        ]
        t, d, g = zip(*turned, strict=True)
        return Staircase(self.bits, self.fraction_bits, t, d, g)

    def _restrict(self, t: int, d: int, g: int, low: int, high: int) -> tuple[int, int, int]:
        ends = sorted((g * x << self.fraction_bits) for x in (low, high))
        first, last = (min(max((y - t) // d, 0), (1 << self.bits) - 1) for y in ends)
        if first == last:
            return -first, 1, 0
        if last == first + 1:
            threshold = t + last * d
            narrowest = max(threshold - ends[0], ends[1] - threshold + 1)
            d = min(d, narrowest)
            t = threshold - last * d
        return t, d, g

    def with_fraction_bits(self, fraction_bits: int) -> Staircase:
        """The same function with a larger F: ``floor(y*2**k / (d*2**k)) == floor(y / d)``."""
        k = fraction_bits - self.fraction_bits
        if k < 0:
            raise ValueError(
                f"fraction_bits must be at least {self.fraction_bits}, not {fraction_bits}"
            )
        return Staircase(
            self.bits,
            fraction_bits,
            tuple(t << k for t in self.offsets),
            tuple(d << k for d in self.divisors),
            self.gains,
        )


def restoring_division(y: int, d: int, bits: int) -> int:
    """``clip(y // d, 0, 2**bits - 1)`` by ``bits`` compare-and-subtract steps.

    The reference of the hardware dividers. The ends need no clipping of their own: a negative y
    passes no comparison, a large one passes all of them.
    """
    q = 0
    for j in range(bits - 1, -1, -1):
        if y >= d << j:
            y -= d << j
            q |= 1 << j
    return q


def staircase(
    slope: NDArray[np.float64],
    intercept: NDArray[np.float64],
    step: float,
    zero: int,
    bits: int,
    domain: tuple[int, int] | None = None,
    max_fraction_bits: int = MAX_FRACTION_BITS,
) -> Staircase:
    """Fold ``value = slope*x + intercept``, then ``q = clip(round(value/step) + zero)``.

    Parameters
    ----------
    slope, intercept : (C,) float64
        The affine function (scale and batch norm) of the integer x, one a channel.
    step, zero, bits
        The quantiser. A ReLU needs nothing of its own where ``zero == 0``: clipping at 0 is it.
    domain : (low, high), optional
        Range of x. With it t and d are chosen such that q is the rounded value **for every integer
        x of the range**, where integers t and d can do that, and F is the smallest for which all
        channels have such; `MAX_EXACT_BITS` at most.
    max_fraction_bits : int
        Largest F.

    Rounding is to nearest, ties upwards, and is part of t. F is at least so large that every live
    channel has ``d >= 2**(bits + DIVISOR_MARGIN)``, but at most ``max_fraction_bits``. Where no t
    and d are exact, the threshold below ``zero`` is the one that no rounding of d moves: small
    values keep their answers.

    A channel is dead when its slope moves the answer by less than half a step over 24 bits of x;
    it gets gain 0 and its constant.
    """
    slope = np.asarray(slope, dtype=np.float64)
    intercept = np.asarray(intercept, dtype=np.float64)
    live = np.abs(slope) * float(1 << 24) >= step / 2
    width = np.where(live, step / np.abs(np.where(live, slope, 1.0)), np.inf)
    narrowest = float(np.min(width)) if live.any() else 1.0
    fraction_bits = 0
    while fraction_bits < max_fraction_bits and round(narrowest * (1 << fraction_bits)) < 1 << (
        bits + DIVISOR_MARGIN
    ):
        fraction_bits += 1
    lines = list(zip(slope.tolist(), intercept.tolist(), live.tolist(), strict=True))
    while True:
        steps = [
            _one_staircase(a, b, step, zero, bits, domain, fraction_bits)
            if alive
            else (-min(max(math.floor(b / step + zero + 0.5), 0), (1 << bits) - 1), 1, 0, True)
            for a, b, alive in lines
        ]
        if fraction_bits == max_fraction_bits or all(exact for *_, exact in steps):
            t, d, g, _ = zip(*steps, strict=True)
            return Staircase(bits, fraction_bits, t, d, g)
        fraction_bits += 1


MAX_EXACT_BITS = 8
"""Widest q whose thresholds are made exact one by one."""


def _one_staircase(
    a: float,
    b: float,
    step: float,
    zero: int,
    bits: int,
    domain: tuple[int, int] | None,
    fraction_bits: int,
) -> tuple[int, int, int, bool]:
    """t, d, gain of one live channel, and whether they are exact (or nothing asks them to be)."""
    gain = 1 if a > 0 else -1
    unit = 1 << fraction_bits
    # q >= k  <=>  |a|*gx + b >= (k - zero - 1/2)*step; t is placed such that k = zero is exact
    d = max(1, round(step / abs(a) * unit))
    t = math.ceil((-step / 2 - b) / abs(a) * unit) - zero * d
    if domain is None or bits > MAX_EXACT_BITS:
        return t, d, gain, True
    low, high = sorted(gain * x for x in domain)
    k = np.arange(1, 1 << bits)
    # The smallest integer that reaches q = k; then t + k*d must lie just above its predecessor.
    first = np.ceil(((k - zero - 0.5) * step - b) / abs(a))
    over, under = first > high, first <= low
    first = np.clip(first, low, high + 1).astype(np.int64)
    far = 1 << 60
    above = np.where(under, -far, (first - 1) * unit)
    upto = np.where(over, far, first * unit)
    reach = unit // len(k) + 2
    divisors = np.arange(max(1, d - reach), d + reach + 1)
    lowest = (above - divisors[:, None] * k).max(axis=1) + 1
    highest = (upto - divisors[:, None] * k).min(axis=1)
    fits = np.flatnonzero(lowest <= highest)
    if len(fits) == 0:
        return t, d, gain, False
    best = fits[np.argmin(np.abs(divisors[fits] - d))]
    exact_t = int(min(max(t, lowest[best]), highest[best]))
    return exact_t, int(divisors[best]), gain, True


# -- convolution -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pads:
    """Rows and columns of padding around a map; what stands there is the value 0."""

    top: int
    left: int
    bottom: int
    right: int

    def output_size(self, size: tuple[int, int], kernel: int, stride: int) -> tuple[int, int]:
        """Height and width of the output for an input of ``size`` (height, width)."""
        h, w = size
        return (
            (h + self.top + self.bottom - kernel) // stride + 1,
            (w + self.left + self.right - kernel) // stride + 1,
        )


def same_pads(size: tuple[int, int], kernel: int, stride: int) -> Pads:
    """Keras and TensorFlow 'same': output ``ceil(size/stride)``, the odd pad at the far end."""

    def one(n: int) -> tuple[int, int]:
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        return total // 2, total - total // 2

    (top, bottom), (left, right) = one(size[0]), one(size[1])
    return Pads(top, left, bottom, right)


def convolve(q: Int, weights: Int, stride: int, pads: Pads, zero: int) -> Int:
    """Exact accumulators ``sum(weights * (q - zero))``; the slow, obvious reference.

    Parameters
    ----------
    q : (N, C_in, H, W)
    weights : (C_out, C_in, K, K), +1 and -1
    Returns (N, C_out, H_out, W_out) int64. Padding is q = zero.
    """
    n, _, h, w = q.shape
    kernel = weights.shape[-1]
    h_out, w_out = pads.output_size((h, w), kernel, stride)
    values = np.zeros((n, q.shape[1], h + pads.top + pads.bottom, w + pads.left + pads.right))
    values = values.astype(np.int64)
    values[:, :, pads.top : pads.top + h, pads.left : pads.left + w] = q.astype(np.int64) - zero
    acc = np.zeros((n, weights.shape[0], h_out, w_out), dtype=np.int64)
    for ky in range(kernel):
        for kx in range(kernel):
            rows = slice(ky, ky + stride * (h_out - 1) + 1, stride)
            columns = slice(kx, kx + stride * (w_out - 1) + 1, stride)
            tap = values[:, :, rows, columns]
            acc += np.einsum("oc,nchw->nohw", weights[:, :, ky, kx].astype(np.int64), tap)
    return acc


def accumulator_range(fan_in: int, low: int, high: int, zero: int) -> tuple[int, int]:
    """Exact static bound of a convolution over q in ``low .. high`` whatever its weights are."""
    reach = fan_in * max(high - zero, zero - low)
    return -reach, reach


# -- average pooling of the residual stream --------------------------------------------------------

POOL_KERNEL = 3
"""The skip of a downsampling block pools 3x3 windows with stride 2."""

POOL_UNIT = 36
"""A window's sum times 36/count is an integer for every count of 9, 6 and 4 pixels."""


def pool_weight(count: int) -> int:
    """36 / count for 9, 6 and 4 pixels: 4, 6 and 9, each one or two shifts and an addition."""
    if count not in (9, 6, 4):
        raise ValueError(f"count must be 9, 6 or 4, not {count}")
    return POOL_UNIT // count


def pool_counts(size: tuple[int, int], pads: Pads, count_padding: bool) -> Int:
    """Pixels that the mean of each output divides by, (H_out, W_out): 9, 6 or 4."""
    h, w = size
    h_out, w_out = pads.output_size(size, POOL_KERNEL, 2)
    if count_padding:
        return np.full((h_out, w_out), 9, dtype=np.int64)

    def inside(n: int, before: int, out: int) -> Int:
        first = 2 * np.arange(out) - before
        return np.minimum(first + POOL_KERNEL, n) - np.maximum(first, 0)

    return np.outer(inside(h, pads.top, h_out), inside(w, pads.left, w_out)).astype(np.int64)


def pool(r: Int, pads: Pads, count_padding: bool, right_shift: int) -> Int:
    """3x3 stride-2 mean of the residual stream, in units of ``unit * 2**right_shift / 36``.

    ``(N, C, H, W) -> (N, C, H_out, W_out)``: window sums times 36/count, then one rounding
    right shift. `pooled_unit` gives the unit of the answer.
    """
    n, c, h, w = r.shape
    h_out, w_out = pads.output_size((h, w), POOL_KERNEL, 2)
    padded = np.zeros((n, c, h + pads.top + pads.bottom, w + pads.left + pads.right), np.int64)
    padded[:, :, pads.top : pads.top + h, pads.left : pads.left + w] = r
    total = np.zeros((n, c, h_out, w_out), dtype=np.int64)
    for ky in range(POOL_KERNEL):
        for kx in range(POOL_KERNEL):
            total += padded[:, :, ky : ky + 2 * h_out - 1 : 2, kx : kx + 2 * w_out - 1 : 2]
    counts = pool_counts((h, w), pads, count_padding)
    weights = np.vectorize(pool_weight, otypes=[np.int64])(counts)
    return shift(total * weights, -right_shift)


def max_pool(q: Int, kernel: int, stride: int, pads: Pads) -> Int:
    """Largest q of each window, (N, C, H, W) -> (N, C, H_out, W_out); padding never is it.

    A staircase that rises may stand before the maximum or behind it: the answers are the same.
    """
    n, c, h, w = q.shape
    h_out, w_out = pads.output_size((h, w), kernel, stride)
    padded = np.zeros((n, c, h + pads.top + pads.bottom, w + pads.left + pads.right), np.int64)
    padded[:, :, pads.top : pads.top + h, pads.left : pads.left + w] = q
    best = np.zeros((n, c, h_out, w_out), dtype=np.int64)
    for ky in range(kernel):
        for kx in range(kernel):
            rows = slice(ky, ky + stride * (h_out - 1) + 1, stride)
            best = np.maximum(best, padded[:, :, rows, kx : kx + stride * (w_out - 1) + 1 : stride])
    return best


MAX_SHIFT = 5
"""Largest left shift of an addend that lowering asks for."""

POOL_SHIFTS = (3, 5)
"""Right shifts after pooling: at 5 a pooled stream is as wide as it was, at 3 two bits wider."""


def pooled_unit(unit: float, right_shift: int) -> float:
    """Unit of a pooled residual stream: ``unit / 36 * 2**right_shift``."""
    return unit / POOL_UNIT * 2.0**right_shift


# -- alignment of steps with the residual stream ---------------------------------------------------


def aligned_steps(aim: float, scale: float, unit: float) -> tuple[float, float]:
    """The greatest step up to ``aim`` with ``scale * step == unit * 2**j``, and its double."""
    base = unit / scale
    below = base * 2.0 ** math.floor(math.log2(aim / base))
    return below, 2 * below


def alignment_shift(scale: float, step: float, unit: float) -> int | None:
    """The whole j with ``scale * step == unit * 2**j``, or None where there is none.

    The three are floats computed along different ways, so equality is to one part in 10**6
    (trainers keep steps in float32).
    """
    exact = math.log2(scale * step / unit)
    j = round(exact)
    return j if abs(exact - j) < 1.5e-6 else None


# -- slices and packing ----------------------------------------------------------------------------


def num_slices(bits: int, slice_bits: int) -> int:
    """Passes an engine of ``slice_bits`` takes over a tensor of ``bits``."""
    return -(-bits // slice_bits)


def slices(q: Int, bits: int, slice_bits: int) -> list[Int]:
    """Digits of q in base ``2**slice_bits``, most significant first.

    ``q == sum(digit << slice_bits * (n - 1 - i))``; the engine adds a slice, shifts its
    accumulator left by ``slice_bits``, adds the next.
    """
    n = num_slices(bits, slice_bits)
    mask = (1 << slice_bits) - 1
    return [(q >> slice_bits * (n - 1 - i)) & mask for i in range(n)]


def recode_pairs(signs: NDArray[np.int8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Weights (..., 2n) of +-1 to the shared-sum selectors (..., n): ``same`` and ``negate``.

    A pair (w0, w1) contributes ``±(x0 + x1)`` where same, ``±(x0 - x1)`` where not, negated where
    w0 is -1. The hardware negates by one's complement, so each negated pair comes out 1 short:
    `pair_sum` is what it computes.
    """
    w0, w1 = signs[..., 0::2], signs[..., 1::2]
    return (w0 == w1).astype(np.uint8), (w0 < 0).astype(np.uint8)


def pair_sum(x: Int, same: NDArray[np.uint8], negate: NDArray[np.uint8], centre: int = 0) -> Int:
    """What the shared-sum datapath adds up in one step, over the last axis of x (..., 2n).

    Equals ``sum(x * weights)`` but for a constant of the weights: less ``count(negate)``, less
    ``centre`` for each pair that is added, and that much more for each that is subtracted. With the
    highest activation for a centre sums of two are no longer than differences.
    """
    x0, x1 = x[..., 0::2], x[..., 1::2]
    chosen = np.where(same == 1, x0 + x1 - centre, x0 - x1)
    return np.asarray(np.where(negate == 1, ~chosen, chosen).sum(axis=-1))
