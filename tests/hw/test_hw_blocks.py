"""What the blocks of the engine refuse, and that there is not a multiplier in any of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from compiler.image import Image
from compiler.schedule import schedule
from hw.divider import SerialDivider
from hw.engine import Engine
from hw.memory import ActivationMemory, MemoryArbiter
from hw.pool import Pool
from hw.reader import RomReader
from hw.top import Top
from sim.benches.networks import random_program
from sim.rtl import count_multipliers


@pytest.mark.parametrize("steps", [0, -1])
def test_divider_wrong_steps(steps):
    with pytest.raises(ValueError, match=rf"^steps must be at least 1, not {steps}$"):
        SerialDivider(8, 8, steps)


def test_reader_without_words():
    with pytest.raises(ValueError, match=r"^words must not be empty$"):
        RomReader([])


def test_memory_wrong_primitive():
    with pytest.raises(ValueError, match=r"^primitive must be 'inferred' or 'spram', not 'bram'$"):
        ActivationMemory(Geometry(), "bram")


def test_memory_too_deep_for_the_block():
    with pytest.raises(ValueError, match=r"^memory_depth must be at most 16384, not 32768$"):
        ActivationMemory(replace(Geometry(), memory_depth=32768), "spram")


def test_memory_as_deep_as_any_elsewhere():
    ActivationMemory(replace(Geometry(), memory_depth=32768))


def test_arbiter_wrong_kind():
    with pytest.raises(KeyError):
        MemoryArbiter(Geometry(), {"x": "erase"})


def test_pool_word_of_too_many_residuals():
    geometry = Geometry(input_lanes=4, output_lanes=16, word_channels=64)
    assert geometry.residual_lanes == 16
    with pytest.raises(ValueError, match=r"^residual_lanes must be at most 9, not 16$"):
        Pool(geometry)


# -- no multiplier ---------------------------------------------------------------------------------


class Flawed(wiring.Component):
    """An engine beside which a product of two signals was left standing."""

    def __init__(self) -> None:
        super().__init__({"a": In(4), "b": In(4), "product": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = Engine(Geometry())
        m.d.sync += self.product.eq(self.a * self.b)
        return m


def test_engine_has_no_multiplier():
    assert count_multipliers(Engine(Geometry())) == 0


def test_top_has_no_multiplier():
    image = Image.of(schedule(random_program(0), Geometry()))
    assert count_multipliers(Top(image, 24e6, 1_000_000, "spram")) == 0


def test_a_multiplier_would_be_found():
    assert count_multipliers(Flawed()) == 1
