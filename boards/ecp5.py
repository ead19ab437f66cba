"""What the clock and the pads of an ECP5 are made of, and how its pins are written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import ClockSignal, Const, Elaboratable, Instance, IOPort, Module, Signal, Value

from boards.records import Board, Pin
from compiler.errors import UsageError

# PLL --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pll:
    """Settings of an EHXPLLL whose feedback is its second output (Lattice FPGA-TN-02200).

    oscillator = input / clki · clkfb · clkos, output = oscillator / clkop
    """

    input_hz: float
    clki: int
    clkfb: int
    clkos: int
    clkop: int

    @property
    def reference_hz(self) -> float:
        """What the phase detector compares."""
        return self.input_hz / self.clki

    @property
    def oscillator_hz(self) -> float:
        return self.reference_hz * self.clkfb * self.clkos

    @property
    def output_hz(self) -> float:
        return self.oscillator_hz / self.clkop

    @property
    def legal(self) -> bool:
        """Whether the phase detector and the oscillator are within their ranges."""
        return 10e6 <= self.reference_hz <= 400e6 and 400e6 <= self.oscillator_hz <= 800e6


DIVIDER = 128
"""Most that any of the dividers divides by."""


def pll(input_hz: float, wanted_hz: float) -> Pll:
    """The settings that come nearest to a frequency; of equal ones those of the highest reference,
    and then of the oscillator nearest to the middle of its range.

    Raises
    ------
    UsageError
        If the frequency is outside of what the PLL can make (10 to 400 MHz).
    """
    if not 10e6 <= wanted_hz <= 400e6:
        raise UsageError(
            f"clock must be 10 to 400 MHz (the PLL's range), not {wanted_hz / 1e6:g} MHz"
        )
    legal = []
    for clki in range(1, DIVIDER + 1):
        for times in range(1, DIVIDER + 1):
            # The product alone counts; the second output's clock is as low as may be.
            clkos = next((n for n in range(8, 1, -1) if times % n == 0), 1)
            for clkop in range(1, DIVIDER + 1):
                setting = Pll(input_hz, clki, times // clkos, clkos, clkop)
                if setting.legal:
                    legal.append(setting)
        if input_hz / clki < 10e6:
            break
    if not legal:
        raise UsageError(f"the PLL must be given 10 to 400 MHz, not {input_hz / 1e6:g} MHz")
    return min(
        legal,
        key=lambda s: (
            round(abs(s.output_hz - wanted_hz)),
            -s.reference_hz,
            abs(s.oscillator_hz - 600e6),
        ),
    )


def instance(
    settings: Pll,
    board: Board,
    pad: Value,
    clocks: Sequence[Value],
    lock: Signal,
) -> Instance:
    """The PLL, with one clock.

    Raises
    ------
    UsageError
        Two clocks are asked for: the second output is the feedback.
    """
    if len(clocks) > 1:
        raise UsageError(
            f"lanes must run at the engine's clock on {board.name}, not at a faster one"
        )
    feedback = Signal(name="pll_feedback")
    return Instance(
        "EHXPLLL",
        a_ICP_CURRENT="12",
        a_LPF_RESISTOR="8",
        p_PLLRST_ENA="DISABLED",
        p_INTFB_WAKE="DISABLED",
        p_STDBY_ENABLE="DISABLED",
        p_DPHASE_SOURCE="DISABLED",
        p_FEEDBK_PATH="CLKOS",
        p_CLKI_DIV=settings.clki,
        p_CLKFB_DIV=settings.clkfb,
        p_CLKOP_ENABLE="ENABLED",
        p_CLKOP_DIV=settings.clkop,
        p_CLKOP_CPHASE=settings.clkop - 1,
        p_CLKOP_FPHASE=0,
        p_CLKOS_ENABLE="ENABLED",
        p_CLKOS_DIV=settings.clkos,
        p_CLKOS_CPHASE=settings.clkos - 1,
        p_CLKOS_FPHASE=0,
        i_CLKI=pad,
        i_CLKFB=feedback,
        i_RST=0,
        i_STDBY=0,
        i_PHASESEL0=0,
        i_PHASESEL1=0,
        i_PHASEDIR=1,
        i_PHASESTEP=1,
        i_PHASELOADREG=1,
        i_PLLWAKESYNC=0,
        i_ENCLKOP=0,
        i_ENCLKOS=0,
        o_CLKOP=clocks[0],
        o_CLKOS=feedback,
        o_LOCK=lock,
    )


# Pads -------------------------------------------------------------------------------------------


def drive(
    m: Module,
    located: Mapping[str, Pin],
    special: Mapping[str, tuple[Value, Value | None]],
) -> None:
    """Connect the one port whose pin is the configuration clock's, which has no pad of its own.

    A pulse is made of two flip-flops, of which one turns with each edge of the clock: the LUT that
    compares them has one input changing at a time, and no glitch.
    """
    for name, (port, _) in special.items():
        driven = port
        if located[name].pulse:
            # Neither is reset: then a reset does not end a pulse early.
            whole, half = Signal(name="clock_whole", reset_less=True), Signal(name="clock_half")
            m.d.sync += whole.eq(half)
            m.d.falling += half.eq(whole ^ port)
            driven = whole ^ half
        m.submodules.usrmclk = Instance("USRMCLK", i_USRMCLKI=driven, i_USRMCLKTS=0)


def pad_cell(pin: Pin, pad: IOPort, port: Any, come: Signal | None) -> Elaboratable:
    """The cell of a pad that is driven at double data rate, or in both directions, and then what
    comes by it."""
    if pin.pulse:
        m, pulse = Module(), Signal(name="pulse")
        # A flip-flop for each half of the cycle: 0 in the first, the signal in the second. It comes
        # some cycles late, which a clock that never rests does not tell.
        m.submodules.register = Instance(
            "ODDRX1F", i_D0=Const(0, 1), i_D1=port, i_SCLK=ClockSignal(), i_RST=0, o_Q=pulse
        )
        m.submodules.pad = Instance("OB", i_I=pulse, o_O=pad)
        return m
    return Instance("BB", i_I=port.o, i_T=~port.oe, o_O=come, io_B=pad)


def constraints(located: Mapping[str, Pin], clock_mhz: float) -> str:
    """Pins and the frequency of the one named ``clk``, in LPF."""
    lines = [line for name, pin in located.items() for line in _constraint(name, pin)]
    return "\n".join([*lines, f'FREQUENCY PORT "clk" {clock_mhz:g} MHZ;', ""])


def _constraint(name: str, pin: Pin) -> tuple[str, str]:
    pull = "UP" if pin.pull_up else "NONE"
    edges = " SLEWRATE=FAST" if pin.fast else ""
    return (
        f'LOCATE COMP "{name}" SITE "{pin.location}";',
        f'IOBUF PORT "{name}" IO_TYPE=LVCMOS33 PULLMODE={pull}{edges};',
    )
