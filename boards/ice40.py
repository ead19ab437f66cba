"""From an engine to the files an iCE40 tool chain takes: ``top.v`` and ``top.pcf``.

Around the engine go the PLL, the reset after power-on and the pads. Both texts depend on the
circuit alone: no source location, folder or tool's name, so their digests name the design.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import (
    ClockDomain,
    ClockSignal,
    Const,
    Elaboratable,
    Instance,
    IOPort,
    Module,
    Signal,
)
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import Flow, In

from boards.records import Board, Pin
from boards.toolchain import to_verilog
from compiler.errors import UsageError

RESET_SECONDS = 16e-6
"""Least duration of the reset after the PLL has locked. Block RAMs read zeros for some microseconds
after configuration, whatever their initial value (they are held by the warm-boot logic)."""


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


# Top level --------------------------------------------------------------------------------------


class BoardTop(Elaboratable):
    """A component on a board: its clock, its reset and its pads.

    Every port of the component is a single bit, or such a bit in both directions (members ``o``,
    ``oe`` and ``i``), and goes to the pin of the same name in the board's record; pins without a
    port
    stay unused. The component runs in the ``sync`` domain, from the PLL
    at `clock_hz`. Its reset is released at least `RESET_SECONDS` after the PLL has locked, and
    asserted again if the PLL loses its lock.

    Parameters
    ----------
    board : Board
        Of family "ice40".
    factory : callable
        Makes the component, given its clock in Hz: what the PLL really makes.
    clock_hz : float or None
        Wanted clock; the board's default if None.
    pump : int
        1, or 2 for a domain ``fast`` of twice the clock (`hw.pump`).

    Raises
    ------
    UsageError
        The board is of another family, the clock cannot be made, or the component has a port that
        the board has no pin for.
    """

    def __init__(
        self,
        board: Board,
        factory: Callable[[float], wiring.Component],
        clock_hz: float | None = None,
        pump: int = 1,
    ) -> None:
        if board.family != "ice40":
            raise UsageError(f"board must be of family 'ice40', not {board.family!r}")
        self._board = board
        self._pump = pump
        self._pll = pll(board.clock_mhz * 1e6, pump * (clock_hz or board.clock_hz))
        self._component = factory(self.clock_hz)
        self._ports = _ports(self._component, board)
        self._pads = {"clk": Signal(name="clk")} | {
            name: IOPort(1, name=name) if self._has_cell(name) else Signal(name=name)
            for name in self._ports
        }

    @property
    def board(self) -> Board:
        return self._board

    @property
    def component(self) -> wiring.Component:
        return self._component

    @property
    def clock_hz(self) -> float:
        """The clock of the component: what the PLL makes, near to what was wanted."""
        return self._pll.output_hz / self._pump

    @property
    def reset_cycles(self) -> int:
        """Cycles from lock to the release of reset."""
        return 1 << (int(RESET_SECONDS * self.clock_hz)).bit_length()

    def elaborate(self, platform: object) -> Module:  # noqa: ARG002 (Amaranth's interface)
        m = Module()
        m.submodules.component = self._component
        self._make_clock(m)
        led_driver: dict[str, object] = {}
        for name, direction in self._ports.items():
            pin, pad, port = (
                self._board.pins[name],
                self._pads[name],
                getattr(self._component, name),
            )
            if self._has_cell(name):
                m.submodules[f"{name}_pad"] = _pad_cell(pin, pad, port)
            elif direction is In:
                m.d.comb += port.eq(pad ^ pin.inverted)
            elif pin.led_driver is not None:
                led_driver |= {
                    f"p_RGB{pin.led_driver}_CURRENT": "0b000001",
                    f"i_RGB{pin.led_driver}PWM": port,
                    f"o_RGB{pin.led_driver}": pad,
                }
            else:
                m.d.comb += pad.eq(port ^ pin.inverted)
        if led_driver:
            # Half-current mode: 2 mA a channel, enough to see and kind to the eyes.
            m.submodules.led_driver = Instance(
                "SB_RGBA_DRV", p_CURRENT_MODE="0b1", i_CURREN=1, i_RGBLEDEN=1, **led_driver
            )
        return m

    def _has_cell(self, name: str) -> bool:
        """Whether the pad does more than a wire."""
        return self._board.pins[name].pulse or self._ports[name] is None

    def _make_clock(self, m: Module) -> None:
        """Domains ``sync`` and, without reset, ``start``, from the PLL; so is ``fast``."""
        m.domains.sync = sync = ClockDomain()
        m.domains.start = ClockDomain(reset_less=True)
        lock, locked = Signal(), Signal()
        outputs: dict[str, object] = {"o_PLLOUTGLOBAL": ClockSignal("start")}
        if self._pump == 2:
            m.domains.fast = fast = ClockDomain()
            m.d.comb += fast.rst.eq(sync.rst)
            outputs = {
                "p_PLLOUT_SELECT_PORTA": "GENCLK",
                "p_PLLOUT_SELECT_PORTB": "GENCLK_HALF",
                "o_PLLOUTGLOBALA": fast.clk,
                "o_PLLOUTGLOBALB": ClockSignal("start"),
            }
        m.submodules.pll = Instance(
            "SB_PLL40_2F_PAD" if self._pump == 2 else "SB_PLL40_PAD",
            p_FEEDBACK_PATH="SIMPLE",
            p_DIVR=self._pll.divr,
            p_DIVF=self._pll.divf,
            p_DIVQ=self._pll.divq,
            p_FILTER_RANGE=self._pll.filter_range,
            i_PACKAGEPIN=self._pads["clk"],
            i_RESETB=1,
            i_BYPASS=0,
            o_LOCK=lock,
            **outputs,
        )
        m.submodules.lock = FFSynchronizer(lock, locked, o_domain="start")
        count = Signal(range(self.reset_cycles + 1))
        with m.If(~locked):
            m.d.start += count.eq(0)
        with m.Elif(~count[-1]):
            m.d.start += count.eq(count + 1)
        m.d.comb += [sync.clk.eq(ClockSignal("start")), sync.rst.eq(~count[-1])]

    def constraints(self) -> str:
        """Pins and the oscillator's frequency, in PCF; nextpnr derives the PLL's from it."""
        located = {"clk": self._board.clock_pin} | {n: self._board.pins[n] for n in self._ports}
        lines = [_constraint(name, pin) for name, pin in located.items()]
        return "\n".join([*lines, f"set_frequency clk {self._board.clock_mhz:g}", ""])

    def verilog(self) -> str:
        """The design as Verilog with the top module ``top``.

        Raises
        ------
        ToolchainError
            No Yosys.
        BuildError
            Yosys cannot write the design.
        """
        return to_verilog(
            rtlil.convert(self, "top", ports=list(self._pads.values()), emit_src=False)
        )


def _pad_cell(pin: Pin, pad: IOPort, port: Any) -> Instance:
    """The cell of a pad that is driven at double data rate, or in both directions."""
    if (
        pin.pulse
    ):  # a flip-flop for each half of the cycle: 0 in the first, the signal in the second
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
        o_D_IN_0=port.i,
    )


def _ports(component: wiring.Component, board: Board) -> dict[str, Flow | None]:
    """Names of a component's ports and the direction of each; None for both."""
    ports: dict[str, Flow | None] = {}
    for path, member, value in component.signature.flatten(component):
        both = len(path) > 1 and path[-1] in ("o", "oe", "i")
        name = "__".join(map(str, path[:-1] if both else path))
        if name not in board.pins:
            raise UsageError(
                f"port {name!r} must have a pin, but board {board.name!r} has none of that name",
                hint=f"its pins: {', '.join(board.pins)}",
            )
        if len(value) != 1:
            raise UsageError(f"port {name!r} must be one bit wide, not {len(value)}")
        ports[name] = None if both else member.flow
    return ports


def _constraint(name: str, pin: Pin) -> str:
    options = "-pullup yes " if pin.pull_up else ""
    return f"set_io {options}{name} {pin.location}"
