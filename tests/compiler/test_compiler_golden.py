"""The two interpreters: the definition by hand, and the fast one equal to it everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from compiler import datasets, golden
from compiler.arith import Pads, Staircase
from compiler.checkpoint import load
from compiler.errors import ProgramError
from compiler.golden import run, run_reference
from compiler.graph import build, scores
from compiler.lower import lower
from compiler.program import Add, Conv, Program, Quantise, SumPixels, Tensor
from tests.support.networks import PROGRAM_OPTIONS, random_images, random_program


def assert_equal(program: Program, images: np.ndarray) -> golden.Result:
    names = [tensor.name for tensor in program.tensors]
    fast, slow = run(program, images, names), run_reference(program, images, names)
    for name in names:
        assert fast.tensors[name].dtype == np.int64
        np.testing.assert_array_equal(fast.tensors[name], slow.tensors[name], name)
        tensor = program[name]
        assert slow.tensors[name].min() >= tensor.low and slow.tensors[name].max() <= tensor.high
    np.testing.assert_array_equal(fast.scores, slow.scores)
    np.testing.assert_array_equal(fast.classes, slow.classes)
    assert fast.saturations == slow.saturations
    return slow


@given(**PROGRAM_OPTIONS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_fast_equals_reference(
    saturated: int | None, channel_scales: bool, residual_bits: int | None, **options: Any
) -> None:
    program = random_program(channel_scales=channel_scales, residual_bits=residual_bits, **options)
    if saturated:
        program = program.with_residual_bits(saturated)
    images = random_images(options["seed"] + 1, 3, options["shape"])
    images[0] = 255
    assert_equal(program, images)


def test_saturation_is_reached_counted_and_exact() -> None:
    program = random_program(0).with_residual_bits(5)
    images = random_images(1, 4, (3, 8, 8))
    result = assert_equal(program, images)
    assert min(result.saturations["conv0.r"], result.saturations["stage1.block1.r"]) > 0
    r = run(program, images, ["conv0.r"]).tensors["conv0.r"]
    assert (r.min(), r.max()) == (-16, 15)
    at_ends = np.count_nonzero((r == -16) | (r == 15))
    assert 0 < result.saturations["conv0.r"] <= at_ends


def test_every_thread_count_gives_the_same_in_order() -> None:
    program = random_program(0)
    images = random_images(2, 3 * golden.IMAGES_PER_CHUNK + 5, (3, 8, 8))
    want = run(program, images, ["conv0.r"], threads=1)
    for threads in (None, 3):
        got = run(program, images, ["conv0.r"], threads=threads)
        assert (got.scores == want.scores).all() and got.saturations == want.saturations
        assert (got.tensors["conv0.r"] == want.tensors["conv0.r"]).all()
    alone = run(program, images[-1:])
    assert (alone.scores == want.scores[-1:]).all()


def tiny(weights: tuple[int, int], scores: Staircase, shift: int = 0) -> Program:
    """One pixel, two classes: q = image, r = saturate(weights*(q - 128) << shift), a = r // 2."""
    pads = Pads(0, 0, 0, 0)
    signs = np.packbits((np.array(weights) > 0).astype(np.uint8)).tobytes()
    tensors = (
        Tensor("image", "image", 1, 1, 1, 0, 255),
        Tensor("q", "activation", 1, 1, 1, 0, 255, 128),
        Tensor("c.acc", "accumulator", 2, 1, 1, -128, 128),
        Tensor("r", "residual", 2, 1, 1, -8, 7),
        Tensor("a", "activation", 2, 1, 1, 0, 3),
        Tensor("sum", "sum", 2, 1, 1, 0, 3),
        Tensor("acc", "accumulator", 2, 1, 1, -6, 6),
        Tensor("scores", "score", 2, 1, 1, 0, (1 << scores.bits) - 1, 8),
    )
    halves = Staircase(2, 0, (0, 0), (2, 2), (1, 1))
    ones = np.packbits(np.array([1, 0, 0, 1], np.uint8)).tobytes()
    ops = (
        Quantise("q", "image", "q", Staircase(8, 0, (0,), (1,), (1,))),
        Conv("c", "q", "c.acc", 1, 1, pads, signs, 1.0),
        Add("r", "c.acc", None, "r", shift),
        Quantise("a", "r", "a", halves),
        SumPixels("sum", "a", "sum"),
        Conv("h", "sum", "acc", 1, 1, pads, ones, 1.0),
        Quantise("scores", "acc", "scores", scores),
    )
    return Program("tiny", 2, tensors, ops, ("a", "b")).verify()


AROUND_8 = Staircase(4, 0, (-8, -8), (1, 1), (1, 1))


@pytest.mark.parametrize(
    ("pixel", "r", "a", "scores"),
    [
        (128, (0, 0), (0, 0), (0, 0)),  # a tie: the lowest index
        (133, (5, -5), (2, 0), (2, -2)),
        (140, (7, -8), (3, 0), (3, -3)),  # both ends saturate
        (125, (-3, 3), (0, 1), (-1, 1)),
    ],
)
def test_a_program_by_hand(
    pixel: int, r: tuple[int, ...], a: tuple[int, ...], scores: tuple[int, ...]
) -> None:
    program = tiny((1, -1), AROUND_8)
    result = assert_equal(program, np.full((1, 1, 1, 1), pixel, np.uint8))
    assert tuple(result.tensors["r"].ravel()) == r
    assert tuple(result.tensors["a"].ravel()) == a
    assert tuple(result.scores[0]) == scores
    assert result.classes[0] == (0 if scores[0] >= scores[1] else 1)
    assert result.saturations == {"r": 2 if pixel == 140 else 0}


def test_quotients_next_to_an_integer_are_exact() -> None:
    """y / d one unit below a whole number, with y near the limit of each float type."""
    for bits, divisor in ((8, 65_521), (8, 4_194_301), (16, (1 << 33) + 17)):
        for k in (1, 100, (1 << bits) - 1):
            base = tiny((1, 1), AROUND_8)
            steps = Staircase(bits, 0, (5 - k * divisor,) * 2, (divisor,) * 2, (1, 1))
            scores = replace(base.scores, high=(1 << bits) - 1)
            last = replace(base.ops[-1], staircase=steps)
            program = replace(
                base, tensors=(*base.tensors[:-1], scores), ops=(*base.ops[:-1], last)
            )
            images = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
            assert_equal(program, images)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 8, 8), np.int64),
        np.zeros((1, 3, 8, 9), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 3, 8, 8), np.uint8),
    ],
)
def test_other_images_are_refused(images: Any) -> None:
    program = random_program(0)
    for interpreter in (run, run_reference):
        with pytest.raises(ProgramError, match="images must be"):
            interpreter(program, images)


def test_an_unknown_tensor_is_refused_by_name() -> None:
    with pytest.raises(ProgramError, match=r"not 'conv9.acc'"):
        run(random_program(0), random_images(0, 1, (3, 8, 8)), ["conv9.acc"])


@pytest.mark.parametrize(("shift", "r"), [(0, (5, -5)), (1, (7, -8)), (-1, (3, -2)), (-2, (1, -1))])
def test_shifts_of_an_addend_by_hand(shift: int, r: tuple[int, int]) -> None:
    """5 and -5, halved: 2.5 rounds to 3, -2.5 to -2."""
    result = assert_equal(tiny((1, -1), AROUND_8, shift), np.full((1, 1, 1, 1), 133, np.uint8))
    assert tuple(result.tensors["r"].ravel()) == r


def test_the_digits_network_answers_as_float_does() -> None:
    """The trained network of the zoo, over the whole data set; measured: 99.9 % the same."""
    data = datasets.load("digits")
    zoo = Path(__file__).parents[2] / "train" / "zoo"
    graph = build(load(zoo / "digits-wrn8-1-a4.pt"))
    result = run(lower(graph, None, data.train_images[:256]), data.test_images)
    same = result.classes == scores(graph, data.test_images).argmax(axis=1)
    assert same.mean() > 0.985
    assert (result.classes == data.test_labels).mean() > 0.97
    assert not any(result.saturations.values())
