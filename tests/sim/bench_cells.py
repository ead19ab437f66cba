"""Runs inside the simulator: each cell model against the behaviour its maker states."""

import random

import cocotb
from cocotb.triggers import FallingEdge, RisingEdge, Timer

from sim import bench

WORDS = 1 << 14


def nibbles(mask: int) -> int:
    """A MASKWREN as a mask of 16 bits."""
    return sum(0xF << 4 * bit for bit in range(4) if mask >> bit & 1)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def spram_random_access(dut):
    """Reads, masked writes and idle cycles at random, against a list.

    What a read gives and what an idle cycle keeps is compared; what stands after a write is not.
    """
    rng = random.Random(cocotb.RANDOM_SEED)
    bench.start_clock(dut.CLOCK)
    dut.STANDBY.value, dut.SLEEP.value, dut.POWEROFF.value = 0, 0, 1
    dut.CHIPSELECT.value = dut.WREN.value = 0
    await RisingEdge(dut.CLOCK)
    # Few addresses, so that most reads meet a write; the last word shows the address is whole.
    addresses = [*rng.sample(range(WORDS), 30), 0, WORDS - 1]
    model = {}
    for address in addresses:
        model[address] = rng.getrandbits(16)
        dut.mem[address].value = model[address]
    await RisingEdge(dut.CLOCK)
    expected, compared, scrambled = None, 0, 0
    written = None
    for _ in range(4000):
        address, select, write = rng.choice(addresses), rng.random() < 0.8, rng.random() < 0.4
        data, mask = rng.getrandbits(16), rng.getrandbits(4)
        dut.ADDRESS.value, dut.DATAIN.value, dut.MASKWREN.value = address, data, mask
        dut.CHIPSELECT.value, dut.WREN.value = select, write
        await RisingEdge(dut.CLOCK)
        got = int(dut.DATAOUT.value)  # of the access before this one
        if expected is not None:
            assert got == expected
            compared += 1
        elif written is not None:
            scrambled += got not in written
        if select and write:
            before = model[address]
            model[address] = before & ~nibbles(mask) | data & nibbles(mask)
            expected, written = None, (before, model[address], data)
        elif select:
            expected, written = model[address], None
    dut.CHIPSELECT.value = 0
    await RisingEdge(dut.CLOCK)
    for address in addresses:
        assert int(dut.mem[address].value) == model[address]
    bench.publish(compared=compared, scrambled=scrambled)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def spram_power(dut):
    """Standby keeps the contents and makes no access; power-off loses them and gives 0."""
    bench.start_clock(dut.CLOCK)
    dut.STANDBY.value, dut.SLEEP.value, dut.POWEROFF.value = 0, 0, 1
    dut.CHIPSELECT.value, dut.WREN.value, dut.MASKWREN.value = 1, 1, 0xF
    written = {address: 0x1234 + address for address in range(16)}
    for address, value in written.items():
        dut.ADDRESS.value, dut.DATAIN.value = address, value
        await RisingEdge(dut.CLOCK)
    dut.STANDBY.value, dut.DATAIN.value, dut.ADDRESS.value = 1, 0, 3
    await RisingEdge(dut.CLOCK)
    dut.STANDBY.value, dut.WREN.value = 0, 0
    await RisingEdge(dut.CLOCK)
    await RisingEdge(dut.CLOCK)
    assert int(dut.DATAOUT.value) == written[3]
    dut.POWEROFF.value = 0
    await RisingEdge(dut.CLOCK)
    await RisingEdge(dut.CLOCK)
    assert int(dut.DATAOUT.value) == 0
    if bench.parameters()["own"]:
        await RisingEdge(dut.CLOCK)
        assert any(int(dut.mem[a].value) != value for a, value in written.items())


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def clocks(dut):
    """PLLs and buffers hand their clock on; the oscillator is the bench's, while enabled."""
    for value in (0, 1, 0, 1):
        dut.reference.value = value
        await Timer(5, "ns")
        for name in ("pad_clock", "core_clock", "buffered", "pin_clock"):
            assert getattr(dut, name).value == value, name
    dut.pll_resetb.value = 0
    await Timer(5, "ns")
    assert dut.pad_lock.value == 0
    dut.pll_resetb.value = 1
    await Timer(5, "ns")
    assert dut.pad_lock.value == 1
    assert dut.core_lock.value == 1
    for enabled in (0, 1):
        dut.hf_enable.value = enabled
        for value in (0, 1, 0):
            dut.hf.oscillator.value = value
            await Timer(5, "ns")
            assert dut.hf_clock.value == (value & enabled)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def rgb(dut):
    """A pin is low where current, enable and input are all high."""
    for case in range(1 << 5):
        current, enable, levels = case & 1, case >> 1 & 1, case >> 2
        dut.current.value, dut.led_enable.value, dut.levels.value = current, enable, levels
        await Timer(5, "ns")
        expected = ~levels & 7 if current and enable else 7
        assert int(dut.rgb.value) == expected


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def pins_out(dut):
    """Simple outputs follow at once, registered ones at the edge, inverted ones turned over; double
    data rate is the one input as at the rising edge, then the other as at the falling one."""
    rng = random.Random(cocotb.RANDOM_SEED)
    bench.start_clocks(dut)
    await RisingEdge(dut.clk)
    value = 0
    for _ in range(100):
        await RisingEdge(dut.clk)
        before, value = value, rng.getrandbits(1)
        second = rng.getrandbits(1)
        dut.out.value, dut.other.value = value, second
        await Timer(1, "ns")
        assert dut.pin_simple.value == value
        assert dut.pin_registered.value == before
        assert dut.pin_inverted.value == 1 - before
        assert dut.pin_double.value == before
        await FallingEdge(dut.clk)
        dut.other.value = 1 - second
        await Timer(1, "ns")
        assert dut.pin_double.value == second


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def pins_in(dut):
    """Simple inputs follow at once, registered ones at the edge; a latched one holds."""
    rng = random.Random(cocotb.RANDOM_SEED)
    bench.start_clocks(dut)
    dut.hold.value = 0
    value = held = 0
    dut.pin_in.value = 0
    await RisingEdge(dut.clk)
    for _ in range(100):
        await RisingEdge(dut.clk)
        before, value, hold = value, rng.getrandbits(1), rng.getrandbits(1)
        dut.hold.value = hold
        await Timer(1, "ns")
        dut.pin_in.value = value
        await Timer(1, "ns")
        held = held if hold else value
        assert dut.in_simple.value == value
        assert dut.in_registered.value == before
        assert dut.in_latched.value == held


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def pins_both(dut):
    """A pin with an enable drives while enabled, and hears what others drive while not."""
    for enable, out, other in ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 1, 1)):
        dut.enable.value, dut.out.value, dut.other.value = enable, out, other
        await Timer(5, "ns")
        expected = out if enable else other
        assert dut.in_both.value == expected


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def logic(dut):
    """The look-up table is its table; the flip-flop moves at the edge."""
    bench.start_clocks(dut)
    for select in range(16):
        dut.select.value = select
        await RisingEdge(dut.clk)
        await Timer(1, "ns")
        assert dut.lut.value == 0xB3A6 >> select & 1
        assert dut.flop.value == select & 1
