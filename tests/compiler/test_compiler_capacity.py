"""What an engine cannot run is refused by the name of the layer, and of the field that would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from compiler import graph as ir
from compiler.accuracy import program_of
from compiler.arith import Pads
from compiler.errors import CapacityError
from compiler.geometry import Geometry, geometry_for
from compiler.lower import lower
from compiler.program import Add, Pool, Program
from compiler.schedule import fitted, schedule
from sim.benches import networks
from tests.support.networks import random_checkpoint, random_program, random_vgg
from tests.train.test_train_export import IMAGENET, trained
from train.export import checkpoint_of

WIDE = {"residual_bits": 16, "max_left_shift": 5}
"""An engine whose residual stream rounds nothing of the networks below."""


def imagenet() -> Program:
    return program_of(ir.build(checkpoint_of(trained(**IMAGENET), {})), engine=Geometry(**WIDE))


CASES: dict[str, tuple[Callable[[], Program], dict[str, Any], str, dict[str, Any]]] = {
    "maximum": (
        lambda: lower(random_vgg(0)),
        {},
        "conv1.2.q: the network takes a maximum of 2x2 pixels",
        {"max_pool": True},
    ),
    "pads of a maximum": (
        lambda: lower(random_vgg(0, pool=(3, 1, Pads(2, 2, 0, 0)))),
        {"max_pool": True},
        "conv1.2.q: pads before the map must be 0 to 1",
        {"pad_bits": 2},
    ),
    "weights of a fully connected layer": (
        lambda: lower(random_vgg(0, shape=(3, 32, 32), channels=(4, 16), dense=(8, 5))),
        {"max_pool": True, "weight_depth": 32, "window_depth": 32},
        "dense1: a group of weights needs 64 words",
        {"weight_depth": 64},
    ),
    "residual stream": (
        lambda: random_program(0),
        {"residuals": False},
        "conv0: the layer needs a residual stream, but the engine has none",
        {"residuals": True},
    ),
    "division": (
        lambda: random_program(0, channel_scales=True),
        {},
        "conv0: what it adds to the residual stream is no power of two times",
        {"addend_division": True},
    ),
    "channels of the image": (
        lambda: random_program(0, shape=(6, 8, 8)),
        {},
        "input: the image has 6 channels, but the engine takes 5",
        {"plain_input": True},
    ),
    "first convolution": (
        imagenet,
        {"max_pool": True, "pad_bits": 2},
        "conv0: the first convolution must be 3x3, stride 1, pads 1, not 7x7, stride 2",
        {"plain_input": True},
    ),
}
"""A Program, fields of the engine that has not enough, what is said, and what is enough."""


@pytest.mark.parametrize("name", CASES)
def test_the_hint_is_what_helps(name: str) -> None:
    make, fields, message, enough = CASES[name]
    program = make().with_residual_bits(16)
    with pytest.raises(CapacityError) as caught:
        schedule(program, Geometry(**WIDE | fields))
    assert message in str(caught.value)
    ((field, value),) = enough.items()
    assert caught.value.hint.startswith(f"an engine with {field} {value}")
    assert schedule(program, Geometry(**WIDE | fields | enough)).cycles > 0


def test_nine_channels_are_beyond_any_engine() -> None:
    program = random_program(0, shape=(9, 8, 8)).with_residual_bits(16)
    with pytest.raises(CapacityError, match="the image has 9 channels, but the engine takes 8"):
        schedule(program, Geometry(plain_input=True, **WIDE))


def test_windows_that_leave_pixels_out_are_refused() -> None:
    program = lower(random_vgg(0, pool=(1, 2, Pads(0, 0, 0, 0)))).with_residual_bits(16)
    with pytest.raises(CapacityError, match="windows of 1x1 pixels must not leave any out"):
        schedule(program, Geometry(max_pool=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"max_pool": True, "input_lanes": 4, "output_lanes": 4, "stream_bits": 16} | WIDE,
            r"input_lanes \* output_lanes / pump must be at least 32 where max_pool is True, not 8",
        ),
        (
            {"addend_division": True, "pixel_lanes": 2},
            "pixel_lanes must be 1 where addend_division is True, not 2",
        ),
        (
            {"addend_division": True, "residuals": False},
            "residuals must be True where addend_division is True, not False",
        ),
    ],
    ids=["max_pool", "addend_division", "residuals"],
)
def test_geometries_that_have_no_room_for_a_unit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(**fields)


def test_a_division_wider_than_the_divider() -> None:
    program = random_program(0, residual_bits=None, channel_scales=True)
    ops = list(program.ops)
    at = next(i for i, op in enumerate(ops) if getattr(op, "division", None) is not None)
    ops[at] = replace(ops[at], division=replace(ops[at].division, bits=17))  # type: ignore[arg-type]
    wide = replace(program, ops=tuple(ops)).with_residual_bits(16)
    with pytest.raises(CapacityError, match="must be of the divider's 16 bits, not 17"):
        schedule(wide, Geometry(addend_division=True, **WIDE))


def test_a_division_that_clips_early() -> None:
    program = random_program(0, channel_scales=True)
    ops = list(program.ops)
    at = next(i for i, op in enumerate(ops) if getattr(op, "division", None) is not None)
    ops[at] = replace(ops[at], division=replace(ops[at].division, bits=2))  # type: ignore[arg-type]
    narrow = replace(program, ops=tuple(ops)).with_residual_bits(16)
    with pytest.raises(CapacityError, match="must not clip below the divider's 16 bits"):
        schedule(narrow, Geometry(addend_division=True, **WIDE))


# -- an engine of its own --------------------------------------------------------------------------


def test_an_engine_grows_by_what_a_network_lacks() -> None:
    """And by no more: with less of any of it the network is refused."""
    program = lower(random_vgg(0, shape=(3, 32, 32), channels=(4, 16), dense=(8, 5)))
    usual = Geometry(weight_depth=32, window_depth=32, accumulator_bits=9, map_bits=4)
    grown = fitted(program, usual).geometry
    assert "max_pool True" in grown.beyond(usual)
    assert "map_bits 5" in grown.beyond(usual)
    assert schedule(program, grown).cycles > 0
    smaller = {"max_pool": False, "map_bits": 4, "accumulator_bits": grown.accumulator_bits - 1}
    for name, less in (smaller | {"weight_depth": 32}).items():
        with pytest.raises(CapacityError):
            schedule(program, replace(grown, **{name: less}))  # type: ignore[arg-type]


def test_an_engine_of_its_own_has_no_stream_that_its_network_lacks() -> None:
    """The usual engine stays as it is: its bitstream runs other networks too."""
    plain = lower(random_vgg(0))
    assert not fitted(plain, Geometry()).geometry.residuals
    assert fitted(plain, Geometry(), fixed=("residuals",)).geometry.residuals
    usual = Geometry(max_pool=True)
    assert fitted(plain, usual).geometry == usual
    residual = random_program(0, shape=(6, 8, 8)).with_residual_bits(16)
    grown = fitted(residual, Geometry()).geometry
    assert grown.plain_input and grown.residuals


def test_what_is_fixed_stays() -> None:
    program = random_program(0, shape=(3, 32, 32)).with_residual_bits(16)
    with pytest.raises(CapacityError, match="activation memory needs") as caught:
        fitted(program, Geometry(memory_depth=256), fixed=("memory_depth",))
    assert caught.value.needs.keys() == {"memory_depth"}
    assert "an engine with memory_depth" in caught.value.hint
    assert fitted(program, Geometry(memory_depth=256)).geometry.memory_depth > 256


def test_what_no_field_brings_is_refused() -> None:
    """Addends cannot be divided for several pixels at once."""
    program = random_program(0, channel_scales=True).with_residual_bits(16)
    usual = Geometry(pixel_lanes=2, **WIDE)
    with pytest.raises(CapacityError, match="no power of two times"):
        fitted(program, usual, fixed=("pixel_lanes",))
    assert fitted(program, usual).geometry == Geometry(addend_division=True, **WIDE)


# -- the width of the residual stream --------------------------------------------------------------


def test_a_wider_stream_makes_a_wider_engine() -> None:
    """With the shifts that its addends need; a narrower one is refused."""
    program = random_program(0).with_residual_bits(16)
    usual = Geometry()
    with pytest.raises(CapacityError, match="must be of the engine's 8 bits, not 16") as caught:
        schedule(program, usual)
    assert caught.value.needs == {"residual_bits": 16}
    grown = fitted(program, usual).geometry
    assert grown.residual_bits == 16
    assert grown.max_left_shift >= max(op.shift for op in program.ops if isinstance(op, Add))
    with pytest.raises(CapacityError, match="must be of the engine's 16 bits, not 8") as caught:
        fitted(random_program(0, 8).with_residual_bits(8), Geometry(**WIDE))
    assert "lowered for this engine" in caught.value.hint


@pytest.mark.parametrize("shift", [-9, -7, 2, 4])
def test_shifts_beyond_the_engine_s(shift: int) -> None:
    """The grown engine shifts as far, and as far the other way as before."""
    program = networks.random_program(0, shift=shift)
    usual = Geometry()
    with pytest.raises(CapacityError, match=f"an addend's shift must be -6 to 1, not {shift}"):
        schedule(program, usual)
    grown = fitted(program, usual).geometry
    lowest = grown.max_left_shift - (1 << grown.shift_bits) + 1
    assert lowest <= min(shift, -6)
    assert grown.max_left_shift == max(shift, 1)


def test_a_pool_s_shift_beyond_the_engine_s() -> None:
    program = networks.random_program(0)
    ops = tuple(replace(op, right_shift=6) if isinstance(op, Pool) else op for op in program.ops)
    usual = Geometry(max_left_shift=5)
    with pytest.raises(CapacityError, match="the right shift must be 3 to 5, not 6") as caught:
        schedule(replace(program, ops=ops), usual)
    assert caught.value.needs == {"shift_bits": 4}
    assert fitted(replace(program, ops=ops), usual).geometry.shift_bits == 4


@pytest.mark.parametrize(
    ("options", "engine", "width"),
    [
        ({}, {}, 8),
        ({}, {"pump": 1}, 8),
        ({}, {"pump": 1, "residual_bits": 16, "max_left_shift": 5}, 16),
        ({"shape": (6, 12, 12), "bits": 2}, {"pump": 1, "pixel_lanes": 4}, 16),
        ({}, {"plain_input": True}, 16),
        ({"shape": (6, 8, 8)}, {}, 16),
        ({"bits": 8, "shape": (2, 8, 8)}, {"plain_input": True}, 8),
        ({"bits": 5}, {}, 16),
    ],
    ids=[
        "usual",
        "one pass",
        "summed",
        "fewer pixels",
        "plain input",
        "six channels",
        "one slice",
        "five bits",
    ],
)
def test_slices_of_the_image_widen_the_stream(
    options: dict[str, Any], engine: dict[str, Any], width: int
) -> None:
    """The Program is lowered for the engine that it gets: its first addends are not rounded."""
    graph = ir.build(random_checkpoint(0, **options))
    program = program_of(graph, engine=Geometry(**engine))
    streams = {t.bits for t in program.tensors if t.kind == "residual"}
    assert streams == {width}
    usual = geometry_for(Geometry(**engine), program.activation_bits)
    laid_out = fitted(program, usual)
    assert laid_out.program == program
    assert laid_out.geometry.residual_bits == width


def test_sums_of_slices_that_a_narrow_stream_cannot_hold() -> None:
    """Of a plain network the engine's stream holds nothing else, so a wider one will do."""
    program = program_of(ir.build(random_checkpoint(0, skip=False)))
    with pytest.raises(CapacityError, match="must fit the residual stream of 8 bits") as caught:
        schedule(program, Geometry(plain_input=True, max_left_shift=5))
    assert caught.value.needs == {"residual_bits": 16}
    assert fitted(program, Geometry(plain_input=True)).geometry.residual_bits == 16
