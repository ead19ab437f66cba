"""Floors, tables and baselines: a row without a build has no figure, and a loss is seen."""

from __future__ import annotations

import json

import pytest

from boards import records
from boards.build import MARGIN, estimate, fit, grown, largest, plan
from compiler import benchmark, checkpoint, graph, networks
from compiler.__main__ import _parser, main
from compiler.accuracy import program_of
from compiler.errors import BuildError, UsageError
from compiler.sizing import blank
from compiler.stages import Stages, make_folder

REPORT = {
    "board": "hx8k",
    "network": "wrn8-1",
    "lanes": {"input": 16, "output": 16, "pixels": 1},
    "addsub_per_cycle": {"peak": 256, "achieved": 3.8},
    "cells": {"lut": 5310, "ff": 3958, "bram": 32, "spram": 0, "dsp": 0},
    "budget": {"lut": 7680, "bram": 32, "spram": 0, "dsp": 0},
    "cycles_per_image": {"predicted": 9678, "simulated": 197448},
    "fmax_mhz": 61.35,
    "seed": 1,
    "clock_mhz": 60.0,
    "images_per_second": 304.0,
    "verilog": {"sha256": "0"},
    "tools": {"yosys": "Yosys 0.70", "signum": "0"},
}

HX8K_ROW = next(row for row in benchmark.ROWS if row.board == "hx8k")


def changed(**parts):
    return json.loads(json.dumps(REPORT)) | parts


def test_rows_name_what_there_is():
    for row in benchmark.ROWS:
        assert records.find(row.board).name == row.board
        assert (benchmark.ZOO / row.source).is_file()
    assert len({row.name for row in benchmark.ROWS}) == len(benchmark.ROWS)


def test_a_row_that_is_not_built_has_no_figure():
    (line,) = benchmark.table([(HX8K_ROW, "no room")]).splitlines()[2:]
    assert "not built: no room (at least: 256 additions, 85 MHz, no speed)" in line
    assert line.count("|") == len(benchmark.HEAD) + 1
    assert [cell.strip() for cell in line.split("|")[4:-1]] == [""] * (len(benchmark.HEAD) - 3)


def test_figures_stand_beside_their_floors():
    (line,) = benchmark.table([(HX8K_ROW, REPORT)]).splitlines()[2:]
    for cell in ("256 (256)", "61.4 (85), seed 1", "197,448", "304 (–)", "5,310 of 7,680"):
        assert f"| {cell} |" in line


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cells": REPORT["cells"] | {"lut": 5311}}, "cells lut: 5310 before, 5311 now"),
        (
            {"cycles_per_image": REPORT["cycles_per_image"] | {"predicted": 9679}},
            "cycles_per_image predicted: 9678 before, 9679 now",
        ),
        ({"fmax_mhz": 61.2}, "fmax_mhz: 61.35 before, 61.2 now"),
    ],
)
def test_a_loss_is_seen(change, told, tmp_path):
    assert benchmark.changes(HX8K_ROW, REPORT, tmp_path) == []  # nothing to compare with
    benchmark.write_baseline(HX8K_ROW, REPORT, tmp_path)
    assert benchmark.changes(HX8K_ROW, REPORT, tmp_path) == []
    assert benchmark.changes(HX8K_ROW, changed(fmax_mhz=70.0), tmp_path) == []
    assert benchmark.changes(HX8K_ROW, changed(**change), tmp_path) == [told]


def test_predicted_cycles_are_the_baselines(tmp_path):
    """What a change to the schedule costs is seen without a tool, in every row that has one."""
    for path in sorted(benchmark.BASELINES.glob("*.json")):
        baseline = json.loads(path.read_text())
        row = next(row for row in benchmark.ROWS if row.name == path.stem)
        source = networks.load(benchmark.source_of(row, tmp_path))
        board = records.find(row.board)
        program = program_of(networks.graph_of(source), row.activation_bits, engine=board.geometry)
        lanes = tuple(baseline["lanes"][name] for name in ("input", "output", "pixels"))
        usual = plan(board, row.activation_bits, lanes, image_from=row.image_from)
        laid_out, _ = fit(program, grown(program, usual))
        assert laid_out.cycles == baseline["cycles_per_image"]["predicted"]


def test_tinbinns_network_is_the_published_one(tmp_path):
    """Its layers and additions are the paper's, and its file is read as what it was made of."""
    row = next(row for row in benchmark.ROWS if row.made == "tinbinn")
    made = benchmark.tinbinn(checkpoint.load(benchmark.ZOO / row.source))
    program = program_of(made, row.activation_bits)
    channels = [program[op.output].channels for op in program.convs()]
    assert channels == [48, 48, 96, 96, 128, 128, 256, 256, 10]
    assert program.addsub_per_image == 71_518_720
    read = networks.graph_of(networks.load(benchmark.source_of(row, tmp_path)))
    assert program_of(read, row.activation_bits).ops == program.ops


def test_refuses_an_unknown_row(capsys):
    assert main(["benchmark", "--board", "nowhere"]) == 2
    assert "rows: icebreaker wrn20-2" in capsys.readouterr().err


# -- lanes -----------------------------------------------------------------------------------------


def test_lanes_auto_is_an_option():
    options = _parser().parse_args(["build", "x.pt", "--board", "hx8k", "--lanes", "auto"])
    assert options.lanes == "auto"


def test_estimates_are_those_of_the_netlists():
    """Within a few per cent of LUTs, and exactly the block RAMs, that Yosys found."""
    for name, lut, bram in (
        ("icebreaker", 4016, 28),
        ("hx8k", 5242, 32),
        ("ulx3s-25f", 15800, 51),
    ):
        board = records.find(name)
        guess = estimate(board.geometry, board)
        assert guess.lut == pytest.approx(lut, rel=MARGIN - 1)
        assert guess.bram == bram


def test_lanes_auto_says_why_not(tmp_path, monkeypatch):
    """The largest that fits is taken; each larger one is named with its reason."""
    from boards import build as boards_build

    board, said = records.find("hx8k"), []
    tried = []

    def make(stages, chosen, found):
        tried.append(chosen.geometry.lanes)
        if chosen.geometry.lanes > 128:
            raise BuildError("clock must be 60 MHz, but the best of 1 seeds reached 50")
        return boards_build.Made(boards_build.Cells(lut=1), 1, 61.0, 1, tmp_path)

    monkeypatch.setattr(boards_build, "make_verilog", lambda *arguments: None)
    monkeypatch.setattr(boards_build, "make_bitstream", make)
    network = checkpoint.Network(8, 1.0, 10, (1, 8, 8))
    program = program_of(graph.build(blank(network)), 4, engine=board.geometry)
    stages = Stages(make_folder(tmp_path), ("verilog",), say=said.append)
    chosen = largest(
        stages, program, board, {}, clock_hz=None, baud=None, seeds=1, image_from="flash"
    )
    assert chosen.geometry.lanes == 128
    assert tried == [256, 128]
    assert said[0] == "--lanes 16x16x2: no; about 36 BRAM of 32"
    assert "--lanes 16x16x1: no; clock must be 60 MHz" in said[2]
    monkeypatch.setattr(
        boards_build, "make_bitstream", lambda *a: (_ for _ in ()).throw(BuildError("no"))
    )
    with pytest.raises(BuildError, match="'hx8k' must hold one of its geometries"):
        largest(stages, program, board, {}, clock_hz=None, baud=None, seeds=1, image_from="flash")
    with pytest.raises(UsageError):
        plan(board, 4, seeds=0)
