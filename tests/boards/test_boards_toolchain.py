"""Finding tools, running them, what they cost, and what is kept of them."""

from __future__ import annotations

import signal
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from boards import toolchain
from boards.flash import PREAMBLES
from boards.records import ICEBREAKER
from boards.toolchain import (
    ICE40,
    YOSYS,
    Build,
    Cells,
    Requirement,
    RoutingOptions,
    SynthesisOptions,
)
from boards.top import BoardTop
from compiler.errors import BuildError, ToolchainError
from tests.boards.designs import Blink, Multiplier, Recorder


def script(folder: Path, name: str, text: str) -> Path:
    """An executable of a few lines of shell."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder that alone is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    for variable in ("YOSYS", "NEXTPNR_ICE40", "ICEPACK", "SIGNUM_TOOL"):
        monkeypatch.delenv(variable, raising=False)
    return folder


TOOL = Requirement("tool-x", "SIGNUM_TOOL", "yowasp-tool", (0, 40), "-V")


class TestFind:
    def test_native(self, path):
        found = script(path, "tool-x", 'echo "Tool 0.40+12 (git)"')
        assert TOOL.find() == toolchain.Tool("tool-x", str(found), "Tool 0.40+12 (git)")

    def test_native_too_old(self, path):
        script(path, "tool-x", "echo Tool 0.23")
        wheel = script(path, "yowasp-tool-x", "echo Tool 0.70")
        assert TOOL.find().command == str(wheel)

    def test_major_counts(self, path):
        script(path, "tool-x", "echo Tool 1.2")
        assert TOOL.find().version == "Tool 1.2"

    def test_variable(self, path, monkeypatch):
        script(path, "tool-x", "echo Tool 0.50")
        other = script(path, "other", "echo Tool 0.60")
        monkeypatch.setenv("SIGNUM_TOOL", str(other))
        assert TOOL.find().command == str(other)

    def test_variable_is_the_only_candidate(self, path, monkeypatch):
        script(path, "tool-x", "echo Tool 0.50")
        monkeypatch.setenv("SIGNUM_TOOL", "nowhere")
        with pytest.raises(ToolchainError, match="'nowhere' was not found"):
            TOOL.find()

    def test_missing(self, path):
        with pytest.raises(ToolchainError) as error:
            TOOL.find()
        assert str(error.value) == (
            "tool-x 0.40 or newer must be installed: 'tool-x' was not found, "
            "'yowasp-tool-x' was not found"
        )
        assert error.value.hint == "pip install yowasp-tool"
        assert error.value.exit_code == 3

    def test_too_old(self, path):
        old = script(path, "tool-x", "echo Tool 0.39")
        with pytest.raises(ToolchainError, match=f"{old} is 'Tool 0.39', 'yowasp-tool-x' was not"):
            TOOL.find()

    def test_does_not_tell(self, path):
        """Of a tool without version, its bytes are the version."""
        silent = Requirement("tool-x", "SIGNUM_TOOL", "yowasp-tool")
        script(path, "tool-x", "true")
        first = silent.find().version
        script(path, "tool-x", "false")
        assert first.startswith("sha256 ")
        assert silent.find().version != first


@pytest.mark.parametrize(
    ("options", "command"),
    [
        (SynthesisOptions(), "synth_ice40 -top top -device u -no-rw-check"),
        (SynthesisOptions(no_rw_check=False), "synth_ice40 -top top -device u"),
        (
            SynthesisOptions(dff=True, extra=("-spram",)),
            "synth_ice40 -top top -device u -dff -no-rw-check -spram",
        ),
    ],
)
def test_synthesis_options(options, command):
    assert options.command("u") == command


def test_cells():
    types = {"SB_LUT4": 7, "SB_DFF": 2, "SB_DFFESR": 3, "SB_CARRY": 4, "SB_RAM40_4KNR": 1}
    cells = Cells.of(types | {"SB_SPRAM256KA": 4, "SB_MAC16": 1, "SB_PLL40_PAD": 1})
    assert cells == Cells(lut=7, ff=5, carry=4, bram=1, spram=4, dsp=1)


class TestStep:
    """A step's bookkeeping, with a shell script in place of the tool."""

    @pytest.fixture
    def build(self, path, tmp_path, monkeypatch):
        script(
            path,
            "yosys",
            'case "$1" in -V) echo "Yosys 0.99"; exit;; esac\n'
            "echo x >> runs; echo working\n"
            'if grep -q bad top.v; then echo "ERROR: it is bad"; exit 1; fi\n'
            "if grep -q slow top.v; then echo start > started; sleep 60; fi\n"
            'echo \'{"modules": {"top": {"cells": {"a": {"type": "SB_LUT4"}}}}}\''
            " > netlist.json.new\n"
            "echo verilog > netlist.v.new",
        )
        return Build(tmp_path / "build")

    @staticmethod
    def runs(build):
        return len((build.folder / "runs").read_text().split())

    def test_cached(self, build):
        assert build.synthesise("module").cells == Cells(lut=1)
        assert build.synthesise("module").cells == Cells(lut=1)
        assert Build(build.folder).synthesise("module").cells == Cells(lut=1)
        assert self.runs(build) == 1

    @pytest.mark.parametrize("change", ["design", "options", "tool", "product", "stamp"])
    def test_run_again(self, build, path, change):
        build.synthesise("module")
        design, options = "module", SynthesisOptions()
        match change:
            case "design":
                design = "module 2"
            case "options":
                options = SynthesisOptions(dff=True)
            case "tool":
                tool = path / "yosys"
                tool.write_text(tool.read_text().replace("0.99", "0.98"))
            case "product":
                (build.folder / "netlist.v").write_text("edited")
            case "stamp":
                (build.folder / "synthesis.json").write_text("{")
        build.synthesise(design, options=options)
        assert self.runs(build) == 2

    def test_failure(self, build):
        build.synthesise("module")
        with pytest.raises(BuildError) as error:
            build.synthesise("bad")
        assert str(error.value).splitlines() == [
            f"yosys failed: it is bad; the log {build.folder / 'yosys.log'} ends",
            "  | working",
            "  | ERROR: it is bad",
        ]
        assert error.value.exit_code == 4
        assert not list(build.folder.glob("*.new"))
        assert not (build.folder / "synthesis.json").exists()

    def test_interrupt(self, build):
        """Ctrl-C ends the tool, and leaves neither half a product nor a stamp."""

        def interrupt():
            while not (build.folder / "started").exists():
                time.sleep(0.01)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            build.synthesise("slow")
        thread.join()
        assert time.monotonic() - begun < 30
        assert sorted(file.name for file in build.folder.iterdir()) == [
            *("runs", "started", "top.v", "yosys.log")
        ]


def test_no_seeds(tmp_path):
    netlist = toolchain.Netlist(tmp_path / "n.json", tmp_path / "n.v", Cells())
    with pytest.raises(ValueError, match="seeds must have at least one element"):
        Build(tmp_path).place_and_route(
            netlist, "", device="up5k", package="sg48", clock_hz=1, options=RoutingOptions(seeds=())
        )


def synthesise(tmp_path, component, options=None):
    """Netlist of a component on the iCEBreaker, with its build and its top."""
    top = BoardTop(ICEBREAKER, lambda clock_hz: component, 36e6)
    build = Build(tmp_path / "build")
    return build, top, build.synthesise(top.verilog(), options=options)


def route(build, top, netlist, clock_hz=None, constraints=None, **options):
    return build.place_and_route(
        netlist,
        top.constraints() if constraints is None else constraints,
        device=ICEBREAKER.device,
        package=ICEBREAKER.package,
        clock_hz=clock_hz or top.clock_hz,
        options=RoutingOptions(**options),
    )


@pytest.mark.synth
class TestBuild:
    """The real tools."""

    def test_found(self):
        assert "0." in YOSYS.find().version
        assert "nextpnr" in ICE40.router.find().version

    def test_bitstream(self, tmp_path):
        build, top, netlist = synthesise(tmp_path, Blink())
        assert netlist.cells.ff >= 12 + 1
        assert netlist.cells.dsp == 0
        assert "SB_PLL40_PAD" in netlist.verilog.read_text()
        routing = route(build, top, netlist)
        assert routing.seed == 1
        assert routing.critical.met
        assert routing.critical.wanted_mhz == pytest.approx(36, abs=0.01)
        assert routing.utilisation["ICESTORM_PLL"] == (1, 1)
        assert 30 < routing.utilisation["ICESTORM_LC"][0] < 100
        bitstream = build.pack(routing)
        assert PREAMBLES["ice40"] in bitstream.read_bytes()[:64]

        lines = []
        again = Build(build.folder, lines.append)
        assert again.synthesise(top.verilog()) == netlist
        assert route(again, top, netlist) == routing
        assert again.pack(routing) == bitstream
        assert [line for line in lines if "unchanged" in line] == [
            *("synthesis: unchanged", "routing: unchanged", "packing: unchanged")
        ]

    def test_memory_costs_no_logic(self, tmp_path):
        """A block RAM that is read and written costs nothing beside it, as the options promise."""
        _, _, plain = synthesise(tmp_path / "a", Recorder())
        _, _, emulated = synthesise(tmp_path / "b", Recorder(), SynthesisOptions(no_rw_check=False))
        assert plain.cells.bram == emulated.cells.bram == 1
        assert emulated.cells.ff - plain.cells.ff >= 40
        assert emulated.cells.lut - plain.cells.lut >= 20

    def test_no_multiplier(self, tmp_path):
        with pytest.raises(BuildError, match="netlist must have no multiplier, but 1 SB_MAC16"):
            synthesise(tmp_path, Multiplier(), SynthesisOptions(extra=("-dsp",)))

    def test_timing_missed(self, tmp_path):
        build, top, netlist = synthesise(tmp_path, Blink())
        pins = top.constraints().replace("set_frequency clk 12", "set_frequency clk 132")
        with pytest.raises(BuildError) as error:
            route(build, top, netlist, constraints=pins, seeds=(1, 2))
        assert "clock must be 39" in str(error.value)
        assert "the best of 2 seeds" in str(error.value)
        assert error.value.hint.startswith("a clock of ")
        assert not (build.folder / "top.asc").exists()
