"""What the clock and the pads of an iCE40 are made of, and how its pins are written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import ClockSignal, Const, Instance, IOPort, Module, Signal, Value

from boards.records import Board, Pin
from compiler.errors import UsageError

# PLL --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pll:
    """Settings of an SB_PLL40 with the SIMPLE feedback path (Lattice FPGA-TN-02052).

    output = input / (divr + 1) · (divf + 1) / 2**divq
    """

    input_hz: float
    divr: int
    divf: int
    divq: int

    @property
    def reference_hz(self) -> float:
        """What the phase detector compares."""
        return self.input_hz / (self.divr + 1)

    @property
    def oscillator_hz(self) -> float:
        return self.reference_hz * (self.divf + 1)

    @property
    def output_hz(self) -> float:
        return self.oscillator_hz / 2**self.divq

    @property
    def filter_range(self) -> int:
        """Setting of the loop filter for the reference's frequency."""
        bounds_mhz = (17, 26, 44, 66, 101)
        return 1 + sum(self.reference_hz >= bound * 1e6 for bound in bounds_mhz)

    @property
    def legal(self) -> bool:
        """Whether the phase detector and the oscillator are within their ranges."""
        return 10e6 <= self.reference_hz <= 133e6 and 533e6 <= self.oscillator_hz <= 1066e6


def pll(input_hz: float, wanted_hz: float) -> Pll:
    """The settings that come nearest to a frequency; of equal ones those of the highest reference.

    Raises
    ------
    UsageError
        If the frequency is outside of what the PLL can make (16 to 275 MHz).
    """
    if not 16e6 <= wanted_hz <= 275e6:
        raise UsageError(
            f"clock must be 16 to 275 MHz (the PLL's range), not {wanted_hz / 1e6:g} MHz"
        )
    settings = (
        Pll(input_hz, divr, divf, divq)
        for divr in range(16)
        for divf in range(128)
        for divq in range(1, 7)
    )
    legal = [setting for setting in settings if setting.legal]
    if not legal:
        raise UsageError(
            f"the PLL must be given 10 to 133 MHz, or a multiple, not {input_hz / 1e6:g} MHz"
        )
    return min(legal, key=lambda setting: round(abs(setting.output_hz - wanted_hz)))


def instance(
    settings: Pll, board: Board, pad: Value, clocks: Sequence[Value], lock: Signal
) -> Instance:
    """The PLL: in the pad of its clock where the board's oscillator has that pin, else beside.

    Of two clocks the second is twice as fast, with an edge at each of the first one's.
    """
    core, both = board.pll_input == "fabric", len(clocks) > 1
    outputs = {"o_PLLOUTGLOBAL": clocks[0]}
    if both:
        outputs = {
            "p_PLLOUT_SELECT_PORTA": "GENCLK",
            "p_PLLOUT_SELECT_PORTB": "GENCLK_HALF",
            "o_PLLOUTGLOBALA": clocks[1],
            "o_PLLOUTGLOBALB": clocks[0],
        }
    return Instance(
        f"SB_PLL40_{'2F_' * both}{'CORE' if core else 'PAD'}",
        p_FEEDBACK_PATH="SIMPLE",
        p_DIVR=settings.divr,
        p_DIVF=settings.divf,
        p_DIVQ=settings.divq,
        p_FILTER_RANGE=settings.filter_range,
        i_RESETB=1,
        i_BYPASS=0,
        o_LOCK=lock,
        **{"i_REFERENCECLK" if core else "i_PACKAGEPIN": pad},
        **outputs,
    )


# Pads -------------------------------------------------------------------------------------------


def drive(
    m: Module, located: Mapping[str, Pin], special: Mapping[str, tuple[Value, Value | None]]
) -> None:
    """Connect (port, pad) of the pins that the UltraPlus' LED driver owns."""
    channels: dict[str, object] = {}
    for name, (port, pad) in special.items():
        channel = located[name].led_driver
        channels |= {
            f"p_RGB{channel}_CURRENT": "0b000001",
            f"i_RGB{channel}PWM": port,
            f"o_RGB{channel}": pad,
        }
    if channels:
        # Half-current mode: 2 mA a channel, enough to see and kind to the eyes.
        m.submodules.led_driver = Instance(
            "SB_RGBA_DRV", p_CURRENT_MODE="0b1", i_CURREN=1, i_RGBLEDEN=1, **channels
        )


def pad_cell(pin: Pin, pad: IOPort, port: Any, come: Signal | None) -> Instance:
    """The cell of a pad that is driven at double data rate, or in both directions, and then what
    comes by it."""
    if pin.pulse:
        # A flip-flop for each half of the cycle: 0 in the first, the signal in the second.
        return Instance(
            "SB_IO",
            p_PIN_TYPE=Const(0b010001, 6),
            io_PACKAGE_PIN=pad,
            i_OUTPUT_CLK=ClockSignal(),
            i_D_OUT_0=Const(0, 1),
            i_D_OUT_1=port,
        )
    return Instance(
        "SB_IO",
        p_PIN_TYPE=Const(0b101001, 6),
        io_PACKAGE_PIN=pad,
        i_OUTPUT_ENABLE=port.oe,
        i_D_OUT_0=port.o,
        o_D_IN_0=come,
    )


def constraints(located: Mapping[str, Pin], clock_mhz: float) -> str:
    """Pins and the frequency of the one named ``clk``, in PCF."""
    lines = [_constraint(name, pin) for name, pin in located.items()]
    return "\n".join([*lines, f"set_frequency clk {clock_mhz:g}", ""])


def _constraint(name: str, pin: Pin) -> str:
    options = "-pullup yes " if pin.pull_up else ""
    return f"set_io {options}{name} {pin.location}"
