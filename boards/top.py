"""From an engine to the files a tool chain takes: ``top.v``, and the pins.

Around the engine go the PLL, the reset after power-on and the pads. Both texts depend on the
circuit alone: no source location, folder or tool's name, so their digests name the design. What a
family's clock and pads are made of is told by its module (`boards.ice40`, `boards.ecp5`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, IOPort, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import Flow, In

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


def pll(board: Board, pump: int, wanted_hz: float | None = None) -> tuple[Pll, float]:
    """The settings of a board's PLL, and the engine's clock in Hz that they make.

    They come nearest to the wanted clock, the board's default if None; the PLL itself runs at
    ``pump`` times the engine's clock.

    Raises
    ------
    UsageError
        The PLL cannot make it.
    """
    wanted = pump * (wanted_hz or board.clock_hz)
    try:
        settings = _FAMILIES[board.family].pll(board.clock_mhz * 1e6, wanted)
    except UsageError as error:
        whose = "" if pump == 1 else f" for lanes at {pump} times the engine's clock"
        raise UsageError(f"{error}{whose}", error.hint) from error
    return settings, settings.output_hz / pump


_FAMILIES = {"ice40": ice40, "ecp5": ecp5}


class BoardTop(Elaboratable):
    """A component on a board: its clock, its reset and its pads.

    Every port of the component is a single bit, or such a bit in both directions (members ``o``,
    ``oe`` and ``i``), and goes to the pin of the same name in the board's record; pins without a
    port stay unused, but those that the record holds high. The component runs in the ``sync``
    domain, from the PLL at `clock_hz`. Its reset is released at least `RESET_SECONDS` after the PLL
    has locked, and asserted again if the PLL loses its lock.

    Parameters
    ----------
    board : Board
    factory : callable
        Makes the component, given its clock in Hz: what the PLL really makes.
    clock_hz : float or None
        Wanted clock; the board's default if None.
    pump : int
        1, or 2 for a domain ``fast`` of twice the clock (`hw.pump`).

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
        pump: int = 1,
    ) -> None:
        if board.family not in _FAMILIES:
            raise UsageError(
                f"board must be of a family of {', '.join(_FAMILIES)}, not {board.family!r}"
            )
        self._board = board
        self._family = _FAMILIES[board.family]
        self._pump = pump
        self._pll, self._clock_hz = pll(board, pump, clock_hz)
        self._component = factory(self._clock_hz)
        self._ports = _ports(self._component, board)
        self._located = {"clk": board.clock_pin}
        self._located |= {name: board.pins[name] for name in self._ports}
        self._located |= board.held_high
        self._pads = {
            name: IOPort(1, name=name) if self._has_cell(name) else Signal(name=name)
            for name, pin in self._located.items()
            if not pin.config_clock
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
        return self._clock_hz

    @property
    def reset_cycles(self) -> int:
        """Cycles from lock to the release of reset."""
        return 1 << (int(RESET_SECONDS * self.clock_hz)).bit_length()

    def elaborate(self, platform: object) -> Module:  # noqa: ARG002 (Amaranth's interface)
        m = Module()
        m.submodules.component = self._component
        self._make_clock(m)
        special: dict[str, tuple[Value, Value | None]] = {}
        for name, direction in self._ports.items():
            pin, port = self._located[name], getattr(self._component, name)
            if self._has_cell(name):
                come = self._come(m, name, port.i) if direction is None else None
                cell = self._family.pad_cell(pin, self._pads[name], port, come)
                m.submodules[f"{name}_pad"] = cell
            elif direction is In:
                come = self._come(m, name, port)
                m.d.comb += come.eq(self._pads[name] ^ pin.inverted)
            elif pin.config_clock or pin.led_driver is not None:
                special[name] = (port, self._pads.get(name))
            else:
                m.d.comb += self._pads[name].eq(port ^ pin.inverted)
        for name in self._board.held_high:
            m.d.comb += self._pads[name].eq(1)
        self._family.drive(m, self._located, special)
        return m

    def _come(self, m: Module, name: str, port: Value) -> Value:
        """What a pad has to say for a port to be told."""
        if not self._located[name].falling:
            return port
        come = Signal(name=f"{name}_come")
        m.d.falling += port.eq(come)
        return come

    def _has_cell(self, name: str) -> bool:
        """Whether the pad does more than a wire."""
        pin = self._located[name]
        pulse = pin.pulse and not pin.config_clock
        return name in self._ports and (pulse or self._ports[name] is None)

    def _make_clock(self, m: Module) -> None:
        """Domains ``sync`` and, without reset, ``start``, from the PLL; so is ``fast``. For pads
        there may be ``falling``, of the same clock's other edges.

        The reset is a register's, for in ``fast`` it has half a cycle to get everywhere. It comes a
        cycle late: flip-flops begin with what configuration gives them.
        """
        m.domains.sync = sync = ClockDomain()
        m.domains.start = ClockDomain(reset_less=True)
        if any(pin.falling or (pin.config_clock and pin.pulse) for pin in self._located.values()):
            m.domains.falling = falling = ClockDomain(clk_edge="neg", reset_less=True)
            m.d.comb += falling.clk.eq(ClockSignal("start"))
        lock, locked, reset = Signal(), Signal(), Signal()
        clocks = [ClockSignal("start")]
        if self._pump == 2:
            m.domains.fast = fast = ClockDomain()
            m.d.comb += fast.rst.eq(sync.rst)
            clocks.append(fast.clk)
        m.submodules.pll = self._family.instance(
            self._pll, self._board, self._pads["clk"], clocks, lock
        )
        m.submodules.lock = FFSynchronizer(lock, locked, o_domain="start")
        count = Signal(range(self.reset_cycles + 1))
        with m.If(~locked):
            m.d.start += count.eq(0)
        with m.Elif(~count[-1]):
            m.d.start += count.eq(count + 1)
        m.d.start += reset.eq(~count[-1])
        m.d.comb += [sync.clk.eq(ClockSignal("start")), sync.rst.eq(reset)]

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
