"""The integer arithmetic against direct formulas and against Python's own unbounded integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler import arith
from compiler.arith import Pads, Staircase

ints = st.integers(-(1 << 40), 1 << 40)


@given(ints, st.integers(1, 1 << 20), st.integers(1, 16))
@settings(max_examples=2000, deadline=None)
def test_restoring_division_is_a_clipped_floor(y: int, d: int, bits: int) -> None:
    assert arith.restoring_division(y, d, bits) == min(max(y // d, 0), (1 << bits) - 1)


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("d", [1, 2, 3, 255, 256])
def test_restoring_division_at_every_edge(d: int, bits: int) -> None:
    top = (1 << bits) - 1
    for k in (-1, 0, 1, top - 1, top, top + 1, 2 * top + 5):
        for y in (k * d - 1, k * d, k * d + 1):
            assert arith.restoring_division(y, d, bits) == min(max(y // d, 0), top)


def direct(x: int, slope: float, intercept: float, step: float, zero: int, bits: int) -> int:
    """The quantiser in rational numbers: floor(value/step + 1/2) + zero, clipped."""
    value = Fraction(slope) * x + Fraction(intercept)
    q = math.floor(value / Fraction(step) + Fraction(1, 2)) + zero
    return min(max(q, 0), (1 << bits) - 1)


@pytest.mark.parametrize(("bits", "zero"), [(2, 0), (4, 0), (8, 0), (8, 128)])
@pytest.mark.parametrize("sign", [1, -1])
def test_staircase_is_the_direct_formula_over_all_inputs(bits: int, zero: int, sign: int) -> None:
    # A step of a whole number of inputs: t and d are exact, so every answer is.
    slope, intercept, step = sign * 0.25, 0.3125, 5.0
    steps = arith.staircase(np.array([slope]), np.array([intercept]), step, zero, bits)
    x = np.arange(-6000, 6000)
    want = [direct(int(v), slope, intercept, step, zero, bits) for v in x]
    assert steps(x[None, :, None, None], axis=0).ravel().tolist() == want


@given(
    st.floats(1e-3, 10), st.booleans(), st.floats(-20, 20), st.floats(0.01, 3), st.integers(2, 8)
)
@settings(max_examples=60, deadline=None)
def test_staircase_is_never_further_off_than_its_divisors_rounding(
    slope: float, negative: bool, intercept: float, step: float, bits: int
) -> None:
    slope = -slope if negative else slope
    steps = arith.staircase(np.array([slope]), np.array([intercept]), step, 0, bits)
    x = np.arange(-500, 500)
    got = steps(x[None, :, None, None], axis=0).ravel()
    value = (slope * x + intercept) / step + 0.5
    slack = (1 << bits) / (2 * steps.divisors[0]) + 2.0**-steps.fraction_bits * abs(slope) / step
    top = (1 << bits) - 1
    assert (got >= np.clip(np.floor(value - slack - 1e-9), 0, top)).all()
    assert (got <= np.clip(np.floor(value + slack + 1e-9), 0, top)).all()


def test_staircase_does_not_move_the_threshold_below_zero() -> None:
    # A slope of 0.0001 and 16 bits: rounding d alone would move the middle by hundreds of steps.
    steps = arith.staircase(np.array([0.9973]), np.array([0.0]), 1.9, 1 << 15, 16)
    assert steps(np.zeros((1, 1, 1), np.int64)).item() == 1 << 15


def test_staircase_takes_the_smallest_fraction_with_wide_divisors() -> None:
    for width in (0.4, 1.0, 20.0, 31.6, 64.0, 1000.0):
        steps = arith.staircase(np.array([1.0, 0.5]), np.zeros(2), width, 0, 4)
        wide = 1 << (4 + arith.DIVISOR_MARGIN)
        assert min(steps.divisors) >= wide or steps.fraction_bits == arith.MAX_FRACTION_BITS
        if steps.fraction_bits:
            assert round(width * 2 ** (steps.fraction_bits - 1)) < wide


@pytest.mark.parametrize("seed", range(20))
def test_staircase_is_exact_for_every_integer_of_its_domain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slope = rng.uniform(0.02, 0.3, 8) * rng.choice([-1.0, 1.0], 8)
    intercept = rng.normal(0.0, 1.0, 8)
    x = np.arange(-700, 701)
    steps = arith.staircase(slope, intercept, 0.21, 0, 4, (-700, 700))
    expected = np.clip(np.floor((slope[:, None] * x + intercept[:, None]) / 0.21 + 0.5), 0, 15)
    got = steps(x[None, None, :] + np.zeros((8, 1, 1), np.int64))[:, 0]
    assert np.array_equal(got, expected)


def test_staircase_of_a_dead_channel_is_its_constant() -> None:
    slopes, intercepts = np.array([0.0, 1e-12, -1e-12, 1.0]), np.array([2.6, -9.0, 99.0, 0.0])
    steps = arith.staircase(slopes, intercepts, 1.0, 0, 4)
    assert steps.gains == (0, 0, 0, 1)
    x = np.array([-9999, 0, 9999])[None, None, :] + np.zeros((4, 1, 1), np.int64)
    assert steps(x)[:3, 0].tolist() == [[3] * 3, [0] * 3, [15] * 3]


@given(
    st.lists(
        st.tuples(st.integers(-3000, 3000), st.integers(1, 4000), st.sampled_from([-1, 0, 1])),
        min_size=1,
        max_size=6,
    ),
    st.integers(2, 8),
    st.integers(0, 4),
    st.integers(-90, 40),
    st.integers(0, 90),
)
@settings(max_examples=300, deadline=None)
def test_restricted_answers_alike_within_its_range_and_is_small(
    channels: list[tuple[int, int, int]], bits: int, fraction: int, low: int, span: int
) -> None:
    t, d, g = zip(*channels, strict=True)
    steps = Staircase(bits, fraction, t, d, g)
    small = steps.restricted(low, low + span)
    x = np.arange(low, low + span + 1) + np.zeros((len(channels), 1, 1), np.int64)
    assert (small(x) == steps(x)).all()
    reach = (span + 1) << fraction
    assert all(d <= max(2 * reach, 1) for d in small.divisors)


@given(st.integers(0, 6))
def test_more_fraction_bits_change_nothing(k: int) -> None:
    steps = Staircase(4, 2, (-37, 11), (13, 29), (1, -1))
    x = np.arange(-200, 200) + np.zeros((2, 1, 1), np.int64)
    assert (steps.with_fraction_bits(2 + k)(x) == steps(x)).all()
    with pytest.raises(ValueError, match="fraction_bits must be at least 2"):
        steps.with_fraction_bits(1)


@given(st.integers(-(1 << 30), 1 << 30), st.integers(-12, 12))
def test_shift_rounds_to_nearest_with_ties_upwards(x: int, j: int) -> None:
    assert int(arith.shift(x, j)) == math.floor(Fraction(x) * Fraction(2) ** j + Fraction(1, 2))


@given(st.integers(-(1 << 20), 1 << 20), st.integers(-(1 << 20), 1 << 20), st.integers(2, 18))
def test_add_residual_saturates_after_the_addition_and_counts(r: int, acc: int, bits: int) -> None:
    got, count = arith.add_residual(np.array([r]), np.array([acc]), -1, bits)
    exact = r + (acc + 1) // 2
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    assert int(got[0]) == min(max(exact, low), high)
    assert count == (not low <= exact <= high)


@given(st.integers(-(1 << 40), 0), st.integers(0, 1 << 40))
def test_bits_signed_is_the_smallest_width(low: int, high: int) -> None:
    bits = arith.bits_signed(low, high)
    assert -(1 << (bits - 1)) <= low and high < 1 << (bits - 1)
    if bits > 1:
        half = 1 << (bits - 2)
        assert low < -half or high >= half


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_same_pads_give_the_ceiling(size: int, kernel: int, stride: int) -> None:
    pads = arith.same_pads((size, size + 1), kernel, stride)
    want = (-(-size // stride), -(-(size + 1) // stride))
    assert pads.output_size((size, size + 1), kernel, stride) == want
    assert 0 <= pads.bottom - pads.top <= 1


def test_same_pads_put_the_odd_one_at_the_far_end() -> None:
    assert arith.same_pads((8, 9), 3, 2) == Pads(0, 1, 1, 1)


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
@pytest.mark.parametrize("padding", ["torch", "matlab", "keras"])
@pytest.mark.parametrize("right_shift", [0, 5])
def test_pool_is_the_rounded_mean(size: tuple[int, int], padding: str, right_shift: int) -> None:
    pads = arith.same_pads(size, 3, 2) if padding == "keras" else Pads(1, 1, 1, 1)
    rng = np.random.default_rng(0)
    r = rng.integers(-4000, 4000, (2, 3, *size))
    got = arith.pool(r, pads, padding == "torch", right_shift)
    for n, c, y, x in np.ndindex(*got.shape):
        rows = [i for i in range(2 * y - pads.top, 2 * y - pads.top + 3) if 0 <= i < size[0]]
        cols = [i for i in range(2 * x - pads.left, 2 * x - pads.left + 3) if 0 <= i < size[1]]
        count = 9 if padding == "torch" else len(rows) * len(cols)
        total = int(r[n, c][np.ix_(rows, cols)].sum())
        mean = Fraction(36 * total, count * 2**right_shift)
        assert got[n, c, y, x] == math.floor(mean + Fraction(1, 2))


def test_pool_weight_refuses_other_windows() -> None:
    with pytest.raises(ValueError, match="count must be 9, 6 or 4, not 3"):
        arith.pool_weight(3)


def test_convolve_one_pixel_by_hand() -> None:
    q = np.array([[[[1, 2], [3, 4]]]])
    weights = np.ones((1, 1, 3, 3), np.int64)
    weights[0, 0, 0, 0] = -1  # meets only padding and the pixel left above
    got = arith.convolve(q, weights, 1, Pads(1, 1, 1, 1), zero=1)
    assert got.tolist() == [[[[6, 6], [6, 6]]]]  # values 0 1 2 3; pixel left above is 0


@given(st.floats(1e-4, 1e4), st.integers(-20, 20), st.floats(0.001, 10))
def test_alignment_shift_finds_aligned_steps_and_no_others(
    unit: float, j: int, scale: float
) -> None:
    step = unit / scale * 2.0**j
    assert arith.alignment_shift(scale, step, unit) == j
    assert arith.alignment_shift(scale, float(np.float32(step)), unit) == j
    assert arith.alignment_shift(scale, step * 1.0001, unit) is None
    below, above = arith.aligned_steps(step * 1.3, scale, unit)
    assert below == pytest.approx(step) and above == 2 * below
    assert arith.alignment_shift(scale, below, unit) == j


@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 255))
def test_slices_are_digits(bits: int, slice_bits: int, value: int) -> None:
    q = value % (1 << bits)
    digits = [int(d) for d in arith.slices(np.array(q), bits, slice_bits)]
    assert len(digits) == math.ceil(bits / slice_bits)
    total = 0
    for digit in digits:
        total = (total << slice_bits) + digit
    assert total == q and all(0 <= d < 1 << slice_bits for d in digits)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pair_sum_is_the_dot_product_but_for_what_the_weights_say(bits: int) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.integers(0, 1 << bits, (500, 16)), rng.choice(np.array([-1, 1], np.int8), (500, 16))
    same, negate = (part.astype(np.int64) for part in arith.recode_pairs(w))
    centre = (1 << bits) - 1
    short = same * (1 - 2 * negate)
    want = (x * w).sum(axis=1) - negate.sum(axis=1)
    assert (arith.pair_sum(x, same, negate) == want).all()
    want -= centre * short.sum(axis=1)
    assert (arith.pair_sum(x, same, negate, centre) == want).all()
    one = arith.pair_sum(x[:, :2], same[:, :1], negate[:, :1], centre)
    assert -(1 << bits) <= one.min() and one.max() < 1 << bits


def test_the_sign_of_zero_is_plus() -> None:
    assert arith.sign(np.array([-0.5, -0.0, 0.0, 2.0])).tolist() == [-1, 1, 1, 1]


# -- maxima, and staircases before them ------------------------------------------------------------

staircases = st.builds(
    lambda bits, f, t, d, g: Staircase(bits, f, (t,), (d,), (g,)),
    st.integers(1, 8),
    st.integers(0, 8),
    st.integers(-(1 << 20), 1 << 20),
    st.integers(1, 1 << 14),
    st.sampled_from([-1, 0, 1]),
)


@given(staircases, st.integers(-(1 << 14), 1 << 14))
@settings(max_examples=500, deadline=None)
def test_a_complemented_staircase_is_the_rest_to_the_top(s: Staircase, x: int) -> None:
    at = np.array([x])
    assert s.complemented((True,))(at, 0)[0] == (1 << s.bits) - 1 - s(at, 0)[0]
    assert s.complemented((False,)) == s


@given(staircases, st.integers(-3000, 3000), st.integers(0, 500))
@settings(max_examples=500, deadline=None)
def test_a_staircase_exceeds_its_bits_where_one_more_bit_would_say_so(
    s: Staircase, low: int, length: int
) -> None:
    wider = Staircase(s.bits + 1, s.fraction_bits, s.offsets, s.divisors, s.gains)
    answers = wider(np.arange(low, low + length + 1)[None, :], 0)
    assert s.exceeds(low, low + length) == bool((answers >= 1 << s.bits).any())


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        (2, 2, Pads(0, 0, 0, 0)),
        (3, 2, Pads(1, 1, 1, 1)),
        (3, 2, Pads(0, 0, 1, 1)),
        (3, 1, Pads(0, 2, 0, 0)),
    ],
)
def test_max_pool_is_the_largest_of_each_window(kernel: int, stride: int, pads: Pads) -> None:
    q = np.random.default_rng(0).integers(0, 16, (2, 3, 6, 7))
    got = arith.max_pool(q, kernel, stride, pads)
    h, w = pads.output_size((6, 7), kernel, stride)
    assert got.shape == (2, 3, h, w)
    for y in range(h):
        for x in range(w):
            top, left = y * stride - pads.top, x * stride - pads.left
            rows = slice(max(top, 0), top + kernel)
            window = q[:, :, rows, max(left, 0) : left + kernel]
            assert (got[:, :, y, x] == window.max(axis=(2, 3))).all()
