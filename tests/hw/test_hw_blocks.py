"""What the blocks of the engine refuse, and that there is not a multiplier in any of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from hw.divider import SerialDivider
from hw.engine import Engine
from hw.flash import WAKE_SECONDS, FlashReader
from hw.memory import ActivationMemory, MemoryArbiter
from hw.pool import Pool
from hw.rom import RomReader
from hw.sdram import SdramReader
from hw.store import ImageStore
from hw.top import Top
from sim.rtl import count_multipliers


@pytest.mark.parametrize("steps", [0, -1])
def test_divider_wrong_steps(steps):
    with pytest.raises(ValueError, match=rf"^steps must be at least 1, not {steps}$"):
        SerialDivider(8, 8, steps)


@pytest.mark.parametrize("offset", [-1, 1 << 24])
def test_flash_wrong_offset(offset):
    with pytest.raises(ValueError, match=rf"^offset must be an address of 24 bits, not {offset}$"):
        FlashReader(18e6, offset)


@pytest.mark.parametrize("clock_hz", [0, 100.5e6])
def test_flash_wrong_clock(clock_hz):
    with pytest.raises(ValueError, match=r"^clock_hz must be at most 100 MHz, not"):
        FlashReader(clock_hz, 0)


@pytest.mark.parametrize("cycles", [0, 3])
def test_flash_wrong_clock_cycles(cycles):
    with pytest.raises(ValueError, match=rf"^clock_cycles must be 1 or 2, not {cycles}$"):
        FlashReader(18e6, 0, cycles)


@pytest.mark.parametrize("lines", [1, 3, 8])
def test_flash_wrong_lines(lines):
    with pytest.raises(ValueError, match=rf"^lines must be 2 or 4, not {lines}$"):
        FlashReader(18e6, 0, 1, lines)


@pytest.mark.parametrize(("lines", "commands"), [(2, 40), (4, 80)])
@pytest.mark.parametrize("cycles", [1, 2])
@pytest.mark.parametrize("clock_hz", [1e6, 16e6, 18e6, 33e6, 100e6])
def test_flash_waits_long_enough(clock_hz, cycles, lines, commands):
    """What lies between the end of the wake-up and the first bits: pause and commands."""
    clocks = FlashReader(clock_hz, 0, cycles, lines).start_cycles / cycles - 16 - commands - 3
    assert clocks * cycles / clock_hz >= WAKE_SECONDS


@pytest.mark.parametrize("clock_hz", [0, 74e6, 100.5e6])
def test_sdram_wrong_clock(clock_hz):
    with pytest.raises(ValueError, match=r"^clock_hz must be 75 to 100 MHz, not"):
        SdramReader(clock_hz, FlashReader(80e6, 0, lines=4))


def test_sdram_wrong_flash():
    with pytest.raises(ValueError, match=r"^flash must answer on 4 lines, not 2$"):
        SdramReader(80e6, FlashReader(80e6, 0))


@pytest.mark.parametrize("clock_hz", [75e6, 80e6, 90e6, 100e6])
def test_sdram_is_refreshed_in_time(clock_hz):
    """A row's units and the way to the next one, in 64 ms / 8,192."""
    pace = SdramReader(clock_hz, FlashReader(clock_hz, 0, lines=4)).pace
    cycles = pace.row_units * pace.unit_cycles + pace.row_cycles
    assert cycles / clock_hz <= 64e-3 / 8192


@pytest.mark.parametrize("lines", [4, 32])
def test_rom_wrong_lines(lines):
    with pytest.raises(ValueError, match=rf"^lines must be 8 or 16, not {lines}$"):
        RomReader(bytes(8), lines)


def test_rom_wrong_content():
    with pytest.raises(ValueError, match=r"^content must be of whole words of 16 bits$"):
        RomReader(bytes(7), 16)


def test_store_wrong_words():
    geometry = Geometry(activation_bits=2, pixel_lanes=1, stream_bits=64)
    with pytest.raises(
        ValueError, match=r"^stream_bits must be a multiple of 8 up to the memory's 32, not 64$"
    ):
        ImageStore(geometry)
    with pytest.raises(ValueError, match=r"^stream_bits must be a multiple of 16 up to the"):
        ImageStore(replace(geometry, stream_bits=8), lines=4)


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
        MemoryArbiter(Geometry(), [{"x": "erase"}])


def test_pool_word_of_too_many_residuals():
    geometry = Geometry(input_lanes=8, output_lanes=16, word_channels=64, residual_bits=16)
    assert geometry.residual_lanes == 16
    with pytest.raises(
        ValueError, match=r"^residual_lanes must be given in at most 9 cycles, not 16$"
    ):
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
    assert (
        count_multipliers(Top(Geometry(), 24e6, 1_000_000, FlashReader(24e6, 1 << 20), "spram"))
        == 0
    )


def test_a_multiplier_would_be_found():
    assert count_multipliers(Flawed()) == 1
