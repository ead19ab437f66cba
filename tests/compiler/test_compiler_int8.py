"""Convolutions in bytes: equal to the definition, whatever the CPU has for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compiler import arith, golden, int8
from compiler.arith import Pads
from tests.support.networks import random_images, random_program


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "pads"), [(3, (1, 1, 1, 1)), (3, (0, 0, 1, 1)), (1, (0,) * 4)])
@pytest.mark.parametrize(
    ("low", "high", "padding"), [(-128, 128, 0), (-128, 128, -128), (0, 16, 0)]
)
def test_convolution_equals_the_definition(
    stride: int, kernel: int, pads: tuple[int, ...], low: int, high: int, padding: int
) -> None:
    rng = np.random.default_rng(0)
    around = Pads(*pads)
    x = rng.integers(low, high, (3, 8, 7, 5)).astype(np.int8)
    signs = rng.choice(np.array([-1, 1], np.int8), (6, 5, kernel, kernel))
    got = int8.convolve(x, signs, stride, around, padding)
    # zero = padding: what stands around the map is worth nothing there, so its share comes on top.
    maps = x.transpose(0, 3, 1, 2).astype(np.int64)
    want = arith.convolve(maps, signs.astype(np.int64), stride, around, padding)
    want += padding * signs.sum(axis=(1, 2, 3), dtype=np.int64)[:, None, None]
    assert got.dtype == np.int32
    assert (got.transpose(0, 3, 1, 2) == want).all()


def test_sums_reach_the_ends_of_their_range() -> None:
    x = np.full((1, 3, 3, 640), -128, np.int8)
    signs = -np.ones((2, 640, 3, 3), np.int8)
    got = int8.convolve(x, signs, 1, Pads(0, 0, 0, 0), 0)
    assert got.tolist() == [[[[9 * 640 * 128] * 2]]]


@pytest.fixture
def in_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Golden takes every program for a large one; the list grows with each convolution in bytes."""
    seen: list[int] = []
    convolve = int8.convolve

    def counted(*arguments: Any) -> Any:
        seen.append(len(arguments[0]))
        return convolve(*arguments)

    monkeypatch.setattr(golden, "MUCH_WORK", 0)
    monkeypatch.setattr(int8, "available", lambda: True)
    monkeypatch.setattr(int8, "convolve", counted)
    return seen


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "keras", "learned": True},
        {"padding": "matlab", "input_relu": True},
        {"shape": (1, 9, 7), "skip": False},
    ],
    ids=lambda options: "-".join(map(str, options)) or "plain",
)
def test_golden_in_bytes_equals_the_definition(
    in_bytes: list[int], bits: int, options: dict[str, Any]
) -> None:
    program = random_program(bits, bits=bits, **options)
    images = random_images(bits, 5, program.image.shape)
    names = [t.name for t in program.tensors]
    got, want = golden.run(program, images, names), golden.run_reference(program, images, names)
    # The head reads sums over the pixels, which are bytes where activations are narrow.
    assert in_bytes == [5] * (7 if bits > 6 else 8)
    for name in names:
        assert (got.tensors[name] == want.tensors[name]).all(), name
    assert (got.scores == want.scores).all() and got.saturations == want.saturations


def test_torch_keeps_its_threads(in_bytes: list[int]) -> None:
    before = torch.get_num_threads()
    golden.run(random_program(0), random_images(0, 1, (3, 8, 8)))
    assert in_bytes and torch.get_num_threads() == before


def test_small_runs_do_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "available", lambda: pytest.fail("nothing large is run here"))
    assert len(golden.run(random_program(0), random_images(0, 2, (3, 8, 8))).classes) == 2
