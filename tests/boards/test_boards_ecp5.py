"""The ECP5's PLL, its constraints, and the flash clock that has no pad."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from boards.ecp5 import pll
from boards.flash import PREAMBLES
from boards.records import ULX3S_25F
from boards.toolchain import ECP5, Build, Cells, multipliers_in
from boards.top import BoardTop
from compiler.errors import BuildError, UsageError
from tests.boards.designs import Blink, Flashing, Multiplier


def top(component=None, clock_hz=None):
    return BoardTop(ULX3S_25F, lambda clock_hz: component or Blink(), clock_hz)


@pytest.mark.parametrize("wanted_mhz", [10, 33.3, 60, 75, 80, 100, 400])
def test_pll(wanted_mhz):
    settings = pll(25e6, wanted_mhz * 1e6)
    assert settings.legal
    assert settings.output_hz == pytest.approx(wanted_mhz * 1e6, rel=0.01)
    assert settings.output_hz * settings.clkop == settings.oscillator_hz
    assert all(1 <= n <= 128 for n in (settings.clki, settings.clkfb, settings.clkos))


@pytest.mark.parametrize("wanted_hz", [9.9e6, 400.1e6])
def test_pll_wrong_clock(wanted_hz):
    with pytest.raises(UsageError, match="clock must be 10 to 400 MHz"):
        pll(25e6, wanted_hz)


def test_constraints():
    lines = top(Flashing()).constraints().splitlines()
    assert 'LOCATE COMP "clk" SITE "G2";' in lines
    assert 'IOBUF PORT "rx" IO_TYPE=LVCMOS33 PULLMODE=UP;' in lines
    assert 'LOCATE COMP "wifi_gpio0" SITE "L2";' in lines
    assert 'FREQUENCY PORT "clk" 25 MHZ;' in lines
    assert not any("flash_clk" in line for line in lines)


@pytest.mark.synth
def test_verilog_clocks_the_flash_through_its_primitive():
    text = top(Flashing()).verilog()
    instance = re.search(r"USRMCLK usrmclk \((.*?)\);", text, re.DOTALL)[1]
    assert ".USRMCLKTS(1'h0)" in instance
    assert not re.search(r"output flash_clk;\s.*\bmodule top", text, re.DOTALL)


def test_cells():
    types = {"LUT4": 10, "CCU2C": 3, "TRELLIS_FF": 5, "DP16KD": 2, "TRELLIS_DPR16X4": 1}
    cells = Cells.of(types | {"MULT18X18D": 1, "EHXPLLL": 1, "PFUMX": 4}, ECP5)
    assert cells == Cells(lut=10 + 6 + 6, ff=5, carry=3, bram=2, dsp=1)


def test_multipliers_of_every_family():
    types = ["LUT4", "MULT18X18D", "ALU54B", "SB_MAC16", "$mul", "MULT9X9D", "SB_LUT4"]
    assert multipliers_in(types) == ["$mul", "ALU54B", "MULT18X18D", "MULT9X9D", "SB_MAC16"]


@pytest.mark.synth
class TestBuild:
    """The real tools."""

    def test_bitstream(self, tmp_path):
        """nextpnr finds the PLL's clock by itself: it is the one that was wanted."""
        made = top(clock_hz=60e6)
        build = Build(tmp_path / "build", family=ECP5)
        netlist = build.synthesise(made.verilog(), speed=ULX3S_25F.speed)
        routing = build.place_and_route(
            netlist,
            made.constraints(),
            device=ULX3S_25F.device,
            package=ULX3S_25F.package,
            speed=ULX3S_25F.speed,
            clock_hz=1e6,
        )
        assert routing.critical.wanted_mhz == pytest.approx(60, abs=0.01)
        assert routing.critical.met
        assert routing.utilisation["EHXPLLL"][0] == 1
        bitstream = build.pack(routing)
        assert PREAMBLES["ecp5"] in bitstream.read_bytes()[:64]
        unpacked = tmp_path / "build" / "unpacked.config"
        subprocess.run(
            [Path(sys.executable).with_name("yowasp-ecpunpack"), bitstream.name, unpacked.name],
            cwd=bitstream.parent,
            check=True,
        )
        assert "CLKOP_DIV" in unpacked.read_text()

    def test_no_multiplier(self, tmp_path):
        build = Build(tmp_path / "build", family=ECP5)
        with pytest.raises(BuildError, match="no multiplier, but 1 MULT18X18D were inferred"):
            build.synthesise(top(Multiplier()).verilog(), speed=ULX3S_25F.speed)
