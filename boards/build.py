"""From a geometry to a board's bitstream: what fits, the Verilog, and the tools' steps.

A bitstream holds no network: it runs any Image of its geometry that lies in the board's flash. So
nothing from `make_verilog` on depends on the network, and the next one finds it all done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from boards.records import SOURCES, Board
from boards.toolchain import (
    FAMILIES,
    Build,
    Cells,
    Family,
    Netlist,
    Routing,
    RoutingOptions,
    SynthesisOptions,
    TimingError,
    Tool,
)
from boards.top import BoardTop, pll
from compiler.errors import BuildError, CapacityError, UsageError
from compiler.geometry import UNIT_CLOCKS, Geometry, geometry_for, lanes_name
from compiler.image import LEAST_RING, Image, check_room, flash_bytes
from compiler.program import Program
from compiler.schedule import Schedule, fitted, schedule, streamed
from compiler.stages import Result, Say, Stages, file_digest, silent, source_digest, write
from hw.flash import FlashReader
from hw.rom import RomReader
from hw.sdram import CLOCKS_HZ as SDRAM_CLOCKS_HZ
from hw.sdram import UNIT_BITS as SDRAM_BITS
from hw.sdram import SdramReader
from hw.sums import SumMemory
from hw.top import Top
from hw.uart import divisor_for

STAGES = ("verilog", "synthesis", "routing", "bitstream")
"""The steps of this file, in order."""


# -- choices ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built, whatever the network.

    Attributes
    ----------
    board : Board
    geometry : Geometry
    wanted_hz, clock_hz : float
        The clock that was asked for, and what the PLL makes of it.
    baud : int
        Of the serial link.
    seeds : tuple of int
        Of placement, tried in turn until timing is met.
    image_from : str
        What an Image that is not resident is read from, for each picture: of `SOURCES`.
    """

    board: Board
    geometry: Geometry
    wanted_hz: float
    clock_hz: float
    baud: int
    seeds: tuple[int, ...]
    image_from: str = "flash"

    @property
    def family(self) -> Family:
        """The tools for the board's device."""
        return FAMILIES[self.board.family]

    def top(self, content: bytes = b"") -> BoardTop:
        """The whole design; with what its bitstream is to hold of `compiler.image.flash_bytes`."""
        return BoardTop(
            self.board,
            lambda hz: Top(self.geometry, hz, self.baud, self.reader(content), self.board.memory),
            self.wanted_hz,
            self.geometry.pump,
        )

    def reader(self, content: bytes = b"") -> FlashReader | SdramReader | RomReader:
        """What reads the Image."""
        board = self.board
        if self.image_from == "bitstream":
            return RomReader(content, self.geometry.stream_bits // UNIT_CLOCKS)
        flash = FlashReader(
            *(self.clock_hz, board.flash.image_offset, board.flash_cycles, board.flash.lines),
            late=board.flash_late,
        )
        return SdramReader(self.clock_hz, flash) if self.image_from == "sdram" else flash


def plan(
    board: Board,
    activation_bits: int,
    lanes: tuple[int, int, int] | None = None,
    clock_hz: float | None = None,
    baud: int | None = None,
    seeds: int = 4,
    image_from: str = "flash",
) -> Plan:
    """A board's defaults and what is asked to differ from them.

    Raises
    ------
    UsageError
        Lanes that no engine can have, a clock that the PLL cannot make, a bit rate that the clock
        cannot be divided to, a source of the Image that the board does not have.
    """
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1, not {seeds}")
    wanted = clock_hz or board.clock_hz
    geometry = geometry_for(board.geometry, activation_bits, lanes)
    _, real = pll(board, geometry.pump, wanted)
    rate = baud or board.baud
    try:
        divisor_for(real, rate)
    except ValueError as error:
        raise UsageError(f"board {board.name!r}: {error}", _rates(real)) from error
    others = (seed for seed in range(1, 2 + seeds) if seed != board.first_seed)
    tried = (board.first_seed, *others)[:seeds]
    chosen = Plan(board, geometry, wanted, real, rate, tried, image_from)
    if image_from not in SOURCES:
        raise UsageError(f"image_from must be one of {', '.join(SOURCES)}, not {image_from!r}")
    if image_from == "sdram":
        _check_sdram(board, geometry)
    _check_clock(board, image_from, real)
    return chosen


def _check_sdram(board: Board, geometry: Geometry) -> None:
    """Hold a plan to what an SDRAM can do."""
    if not board.has_sdram:
        raise UsageError(f"board {board.name!r} must have an SDRAM", "--image-from flash")
    if geometry.stream_bits != SDRAM_BITS:
        raise UsageError(
            f"words of the Image must have {SDRAM_BITS} bits for SDRAM, which those of "
            f"{geometry.activation_bits}-bit activations have not",
            "--image-from flash, or --activation-bits 4 or 8",
        )


def _check_clock(board: Board, image_from: str, clock_hz: float) -> None:
    """Hold a clock to what the Image can be read at."""
    if image_from == "bitstream":
        return
    low, high = board.clocks_hz if image_from == "flash" else SDRAM_CLOCKS_HZ
    if not low <= clock_hz <= high:
        raise UsageError(
            f"clock must be {low / 1e6:g} to {high / 1e6:g} MHz with an Image from {image_from} on "
            f"{board.name!r}, not {clock_hz / 1e6:g} MHz",
            f"--clock {board.clock_hz / 1e6:g}",
        )


def _rates(clock_hz: float) -> str:
    usual = (3_000_000, 2_000_000, 1_500_000, 1_000_000, 921_600, 460_800, 230_400, 115_200)
    for rate in usual:
        try:
            divisor_for(clock_hz, rate)
        except ValueError:
            continue
        return f"--baud {rate}"
    return ""


# -- what fits -------------------------------------------------------------------------------------


def grown(program: Program, plan: Plan, say: Say = silent) -> Plan:
    """The plan with an engine that has what this network needs beyond the board's usual one.

    Units and widths grow as they must, and the tools say whether the device holds them; activation
    memory is what the board has. A network that lacks nothing, or what no engine brings, leaves the
    plan as it is.

    Where the bitstream holds the network it takes block RAM from the activation memory, as far as
    the maps allow.
    """
    try:
        laid_out = fitted(program, plan.geometry, fixed=("memory_depth",))
    except CapacityError:
        return plan
    geometry = laid_out.geometry
    if plan.image_from == "bitstream":
        geometry = _beside(laid_out, plan.board)
    if more := geometry.beyond(plan.geometry):
        say(f"{program.network} needs an engine of its own: {more}")
    return replace(plan, geometry=geometry)


def _beside(laid_out: Schedule, board: Board) -> Geometry:
    """The geometry with half the memory, or half of that, until its Image finds room beside it."""
    g, budget = laid_out.geometry, board.budget.bram
    used = g.memory_depth - laid_out.room + LEAST_RING
    held = -(-len(flash_bytes(Image.of(laid_out))) // BLOCK_BYTES[board.family])
    while board.memory == "inferred" and g.memory_depth >= 2 * used:
        if estimate(g, board).bram + held <= budget:
            break
        g = replace(g, memory_depth=g.memory_depth // 2)
    return g


def fit(program: Program, plan: Plan, smaller: Callable[[], str] = str) -> tuple[Schedule, Image]:
    """Lay a Program out for a board and make its Image.

    Parameters
    ----------
    smaller : callable
        Names a network that would fit, or nothing; called only where this one does not.

    Raises
    ------
    CapacityError
        Naming the layer, the need, the budget and what would fit.
    """
    board = plan.board
    try:
        laid_out = schedule(program, plan.geometry)
        image = Image.of(laid_out)
        check_room(image, laid_out)
        if image.streamed:
            laid_out = streamed(laid_out, image.room, plan.reader().pace)
    except CapacityError as error:
        name = smaller()
        # Where a network of this size would fit, it is not its size.
        hint = error.hint if name == program.network else _advice(name)
        raise CapacityError(f"{error} (board {board.name!r})", hint) from error
    return laid_out, image


def _advice(name: str) -> str:
    fits = f"{name} would fit; " if name else ""
    return f"{fits}`python -m sim accuracy FILE` simulates a network that fits no board"


# -- the most that fits ----------------------------------------------------------------------------

MARGIN = 1.15
"""How far an estimate may lie above the budget before the tools are not asked."""


@dataclass(frozen=True, slots=True)
class Price:
    """LUTs of an engine of 4-bit activations, measured: without lanes, and an adder of them."""

    fixed: float
    adder: float


BLOCK_BYTES = {"ice40": 512, "ecp5": 2048}
"""Of a block RAM, as words of 16 bits."""

PRICES = {"ice40": Price(2915, 9.4), "ecp5": Price(7560, 8.2)}
"""From the netlists of 128 and 256 adders on iCE40, of 1,024 on ECP5."""


def estimate(geometry: Geometry, board: Board) -> Cells:
    """LUTs and block RAMs of a geometry, before any tool has run."""
    g, price = geometry, PRICES[board.family]
    lut = price.fixed + price.adder * g.lanes / g.pump * (1 + (g.activation_bits - 4) / 8)
    wide, deep = (16, 256) if board.family == "ice40" else (36, 512)

    def blocks(bits: int, depth: int) -> int:
        return -(-bits // wide) * -(-depth // deep)

    bram = blocks(g.pass_weight_bits, g.weight_depth * g.pump)
    bram += g.pixel_lanes * blocks(g.word_bits, g.window_depth)
    bram += SumMemory(g, board.memory).num_blocks
    params = 2 * g.groups_at_once * g.output_lanes
    if board.family == "ice40" or params > 32:  # fewer stand in an ECP5's LUTs
        bram += -(-g.early_bits // wide) - g.early_bits // wide  # a block in both parts is a copy
        bram += blocks(g.param_bits, params)
    if board.memory == "spram":  # elsewhere strides stand in registers: see `hw.pointer`
        tables = (2 if g.split_sums else 3) if g.residuals else 1
        bram += tables * blocks(g.address_bits, len(g.stride_rows))
    if board.memory == "inferred":
        ecp5 = -(-g.word_bits // 4) * -(-g.memory_depth // 4096)  # a mask a nibble
        bram += blocks(g.word_bits, g.memory_depth) if board.family == "ice40" else ecp5
    return Cells(lut=round(lut), bram=bram)


def largest(
    stages: Stages,
    program: Program,
    board: Board,
    found: dict[str, Tool],
    *,
    clock_hz: float | None,
    baud: int | None,
    seeds: int,
    image_from: str,
) -> Plan:
    """The first of the board's geometries, from the largest, that the tools bring onto it in time.

    Why each larger one does not is told to ``stages.say``. What is hopeless is left out by its
    estimate; for the rest the tools have the word.

    Raises
    ------
    BuildError
        None does.
    """
    for lanes in board.candidates:
        name = lanes_name(lanes)
        try:
            usual = plan(board, program.activation_bits, lanes, clock_hz, baud, seeds, image_from)
            chosen = grown(program, usual, stages.say)
            _, image = fit(program, chosen)
            guess = estimate(chosen.geometry, board)
            for kind in ("lut", "bram"):
                need, budget = getattr(guess, kind), getattr(board.budget, kind)
                if need > budget * (MARGIN if kind == "lut" else 1):
                    raise CapacityError(f"about {need:,} {kind.upper()} of {budget:,}")
            stages.say(f"--lanes {name}: trying")
            make_verilog(stages, chosen, image, found)
            made = make_bitstream(stages, chosen, found)
        except (CapacityError, BuildError, UsageError) as error:
            stages.say(f"--lanes {name}: no; {str(error).splitlines()[0]}")
            continue
        stages.say(f"--lanes {name}: {made.fmax_mhz:.1f} MHz, {made.cells.lut:,} LUT")
        return chosen
    raise BuildError(f"board {board.name!r} must hold one of its geometries, and holds none")


# -- steps -----------------------------------------------------------------------------------------


def tools(board: Board) -> dict[str, Tool]:
    """The tools a build for a board needs, by name.

    Raises
    ------
    ToolchainError
        The first that is missing.
    """
    found = (requirement.find() for requirement in FAMILIES[board.family].requirements)
    return {tool.name: tool for tool in found}


@dataclass(frozen=True, slots=True)
class Made:
    """A board's bitstream and what is known of it.

    Attributes
    ----------
    cells : Cells
        Of the netlist.
    logic_cells : int
        That placement used, each a LUT with carry and flip-flop.
    fmax_mhz : float
        Of the slowest clock after routing.
    seed : int
        That met timing.
    bitstream : Path
    """

    cells: Cells
    logic_cells: int
    fmax_mhz: float
    seed: int
    bitstream: Path


def make_verilog(stages: Stages, plan: Plan, image: Image, found: dict[str, Tool]) -> Path:
    """Write ``top.v`` and the file of its pins, the same for every network but where the bitstream
    holds one."""
    path, pins = stages.folder / "top.v", plan.family.constraints
    content = flash_bytes(image) if plan.image_from == "bitstream" else b""

    def work() -> Result:
        top = plan.top(content)
        write(path, top.verilog())
        write(stages.folder / pins, top.constraints())
        return {}

    sources = source_digest("compiler", "hw", "boards")
    inputs = [plan, content.hex(), found["yosys"].version, sources]
    stages.run("verilog", inputs, ("top.v", pins), work, share=True)
    return path


def make_bitstream(
    stages: Stages,
    plan: Plan,
    found: dict[str, Tool],
    options: SynthesisOptions | None = None,
) -> Made:
    """Synthesise, place, route and pack what `make_verilog` wrote.

    Raises
    ------
    CapacityError
        The netlist has more cells than the device.
    BuildError
        A tool failed, or no seed met timing.
    """
    folder, board, family = stages.folder, plan.board, plan.family
    build = Build(folder, stages.say, family)
    chosen = options or SynthesisOptions()

    def synthesise() -> Result:
        (folder / "synthesis.json").unlink(missing_ok=True)
        netlist = build.synthesise(
            (folder / "top.v").read_text(), speed=board.speed, options=chosen
        )
        return asdict(netlist.cells)

    inputs: list[object] = [
        *(file_digest(folder / "top.v"), chosen.command(board.speed, family)),
        found["yosys"].version,
    ]
    cells = Cells(
        **stages.run("synthesis", inputs, ("netlist.json", "netlist.v"), synthesise, share=True)
    )
    check_cells(cells, plan)
    netlist = Netlist(folder / "netlist.json", folder / "netlist.v", cells)

    def route() -> Result:
        (folder / "routing.json").unlink(missing_ok=True)
        try:
            routing = build.place_and_route(
                netlist,
                (folder / family.constraints).read_text(),
                device=board.device,
                package=board.package,
                speed=board.speed,
                clock_hz=plan.clock_hz,
                options=RoutingOptions(plan.seeds),
            )
        except TimingError as error:
            raise BuildError(str(error), slower_clock(plan, error.achieved_mhz)) from error
        return routing.record

    inputs = [
        *(file_digest(netlist.json), file_digest(folder / family.constraints), plan.seeds),
        *(board.device, board.package, plan.clock_hz, found[family.router.name].version),
        family.route,
    ]
    result = stages.run("routing", inputs, (family.routed,), route, share=True)
    routing = Routing.of(folder / family.routed, result)

    def pack() -> Result:
        (folder / "packing.json").unlink(missing_ok=True)
        build.pack(routing)
        return {}

    inputs = [file_digest(routing.asc), found[family.packer.name].version]
    stages.run("bitstream", inputs, ("top.bin",), pack, share=True)
    used, _ = routing.utilisation.get(family.logic, (0, 0))
    return Made(cells, used, routing.fmax_mhz, routing.seed, folder / "top.bin")


def check_cells(cells: Cells, plan: Plan) -> None:
    """Hold a netlist to the device.

    Raises
    ------
    CapacityError
        Naming the kind of cell, the need and the budget.
    BuildError
        There is a multiplier in it.
    """
    if cells.dsp:
        kinds = " or ".join(plan.family.multipliers)
        raise BuildError(f"netlist must have no multiplier, but has {cells.dsp} {kinds}")
    board = plan.board
    for kind, title in (("lut", "LUTs"), ("bram", "block RAMs"), ("spram", "SPRAMs")):
        need, budget = getattr(cells, kind), getattr(board.budget, kind)
        if need > budget:
            raise CapacityError(
                f"the netlist needs {need:,} {title}, but board {board.name!r} has {budget:,}",
                fewer_lanes(plan.geometry) if kind == "lut" else "a smaller network",
            )


def slower_clock(plan: Plan, achieved_mhz: float) -> str:
    """A hint: the fastest clock that was within reach, that the PLL makes and the link can use."""
    board = plan.board
    for quarter in range(int(4 * achieved_mhz), 0, -1):
        try:
            _, real = pll(board, plan.geometry.pump, quarter * 0.25e6)
            divisor_for(real, plan.baud)
            _check_clock(board, plan.image_from, real)
        except (UsageError, ValueError):
            continue
        if real <= achieved_mhz * 1e6:
            return f"--clock {quarter / 4:g}; or more --seeds than {len(plan.seeds)}"
    return fewer_lanes(plan.geometry)


def fewer_lanes(geometry: Geometry) -> str:
    """A hint: half the lanes."""
    half = geometry.output_lanes // 2
    try:
        fewer = replace(geometry, output_lanes=half)
    except ValueError:
        return "a board with a larger device"
    return f"--lanes {lanes_name(fewer)}"


# -- figures ---------------------------------------------------------------------------------------


def finite(value: float) -> float | None:
    """A figure for JSON, which has no infinity."""
    return value if math.isfinite(value) else None


def figures(made: Made) -> dict[str, Any]:
    """What `report.json` says of a bitstream."""
    kinds: Sequence[str] = ("lut", "ff", "bram", "spram", "dsp")
    data = made.bitstream.read_bytes()
    return {
        "fmax_mhz": finite(made.fmax_mhz),
        "cells": {kind: getattr(made.cells, kind) for kind in kinds},
        "logic_cells": made.logic_cells,
        "seed": made.seed,
        "bitstream": {
            "path": str(made.bitstream),
            "bytes": len(data),
            "sha256": file_digest(made.bitstream),
        },
    }
