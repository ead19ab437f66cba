"""From an engine to the files a tool chain takes: ``top.v``, and the pins.

Around the engine go the PLL, the reset after power-on and the pads. Both texts depend on the
circuit alone: no source location, folder or tool's name, so their digests name the design. What a
family's clock and pads are made of is told by its module (`boards.ice40`, `boards.ecp5`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In

from boards import ecp5, ice40
from boards.records import Board
from boards.toolchain import to_verilog
from compiler.errors import UsageError

RESET_SECONDS = 16e-6
"""Least duration of the reset after the PLL has locked. Block RAMs of the iCE40 read zeros for some
microseconds after configuration, whatever their initial value (the warm-boot logic holds them)."""


class Pll(Protocol):
    """Settings of a family's PLL."""

    @property
    def output_hz(self) -> float:
        """What it makes."""


def pll(board: Board, wanted_hz: float | None = None) -> Pll:
    """The settings of a board's PLL that come nearest to a clock, its default if None.

    Raises
    ------
    UsageError
        The PLL cannot make it.
    """
    wanted = wanted_hz or board.clock_hz
    return _FAMILIES[board.family].pll(board.clock_mhz * 1e6, wanted)


_FAMILIES = {"ice40": ice40, "ecp5": ecp5}


class BoardTop(Elaboratable):
    """A component on a board: its clock, its reset and its pads.

    Every port of the component is a single bit, and goes to the pin of the same name in the board's
    record; pins without a port stay unused, but those that the record holds high. The component
    runs in the ``sync`` domain, from the PLL at `clock_hz`. Its reset is released at least
    `RESET_SECONDS` after the PLL has locked, and asserted again if the PLL loses its lock.

    Parameters
    ----------
    board : Board
    factory : callable
        Makes the component, given its clock in Hz: what the PLL really makes.
    clock_hz : float or None
        Wanted clock; the board's default if None.

    Raises
    ------
    UsageError
        The board is of an unknown family, the clock cannot be made, or the component has a port
        that the board has no pin for.
    """

    def __init__(
        self,
        board: Board,
        factory: Callable[[float], wiring.Component],
        clock_hz: float | None = None,
    ) -> None:
        if board.family not in _FAMILIES:
            raise UsageError(
                f"board must be of a family of {', '.join(_FAMILIES)}, not {board.family!r}"
            )
        self._board = board
        self._family = _FAMILIES[board.family]
        self._pll = pll(board, clock_hz)
        self._component = factory(self._pll.output_hz)
        self._inputs = _ports(self._component, board)
        self._located = {"clk": board.clock_pin}
        self._located |= {name: board.pins[name] for name in self._inputs}
        self._located |= board.held_high
        self._pads = {
            name: Signal(name=name) for name, pin in self._located.items() if not pin.config_clock
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
        return self._pll.output_hz

    @property
    def reset_cycles(self) -> int:
        """Cycles from lock to the release of reset."""
        return 1 << (int(RESET_SECONDS * self.clock_hz)).bit_length()

    def elaborate(self, platform: object) -> Module:  # noqa: ARG002 (Amaranth's interface)
        m = Module()
        m.submodules.component = self._component
        self._make_clock(m)
        special: dict[str, tuple[Value, Value | None]] = {}
        for name, is_input in self._inputs.items():
            pin, port = self._located[name], getattr(self._component, name)
            if is_input:
                m.d.comb += port.eq(self._pads[name] ^ pin.inverted)
            elif pin.config_clock or pin.led_driver is not None:
                special[name] = (port, self._pads.get(name))
            else:
                m.d.comb += self._pads[name].eq(port ^ pin.inverted)
        for name in self._board.held_high:
            m.d.comb += self._pads[name].eq(1)
        self._family.drive(m, self._located, special)
        return m

    def _make_clock(self, m: Module) -> None:
        """Domains ``sync`` and, without reset, ``start``, both from the PLL."""
        m.domains.sync = sync = ClockDomain()
        m.domains.start = ClockDomain(reset_less=True)
        lock, locked = Signal(), Signal()
        m.submodules.pll = self._family.instance(
            self._pll, self._board, self._pads["clk"], ClockSignal("start"), lock
        )
        m.submodules.lock = FFSynchronizer(lock, locked, o_domain="start")
        count = Signal(range(self.reset_cycles + 1))
        with m.If(~locked):
            m.d.start += count.eq(0)
        with m.Elif(~count[-1]):
            m.d.start += count.eq(count + 1)
        m.d.comb += [sync.clk.eq(ClockSignal("start")), sync.rst.eq(~count[-1])]

    def constraints(self) -> str:
        """Pins and the oscillator's frequency; nextpnr derives the PLL's from it."""
        located = {name: self._located[name] for name in self._pads}
        return self._family.constraints(located, self._board.clock_mhz)

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


def _ports(component: wiring.Component, board: Board) -> dict[str, bool]:
    """Names of a component's ports and whether each is an input."""
    ports = {}
    for path, member, value in component.signature.flatten(component):
        name = "__".join(map(str, path))
        if name not in board.pins:
            raise UsageError(
                f"port {name!r} must have a pin, but board {board.name!r} has none of that name",
                hint=f"its pins: {', '.join(board.pins)}",
            )
        if len(value) != 1:
            raise UsageError(f"port {name!r} must be one bit wide, not {len(value)}")
        ports[name] = member.flow == In
    return ports
