"""The commands that need no tools: inspect, golden, compare."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from compiler import checkpoint, graph
from compiler.__main__ import main
from compiler.accuracy import program_of
from compiler.program import Pool, Program, SumPixels
from compiler.report import memory
from tests.conftest import ROOT

DIGITS = str(ROOT / "train" / "zoo" / "digits-wrn8-1-a4.pt")


@pytest.fixture
def run(capsys):
    def command(*arguments, code=0):
        assert main(list(arguments)) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return command


@pytest.fixture(scope="module")
def program():
    return program_of(graph.build(checkpoint.load(DIGITS)))


@pytest.fixture
def program_file(program, tmp_path):
    path = tmp_path / "program.json"
    path.write_text(program.to_json())
    return path


def test_golden_prints_accuracy(run, tmp_path):
    out = ("--out", str(tmp_path))
    found = json.loads(run("golden", DIGITS, "--images", "100", "--json", *out))["accuracy"]
    assert found["images"] == 100
    assert found["golden"] >= 0.97
    assert found["golden_agrees_float"] >= 0.99
    assert {"images", "float", "golden", "golden_agrees_float"} <= set(found)
    said = run("golden", DIGITS, "--images", "100", *out)
    assert "100 test images of digits" in said
    assert re.search(r"golden model +[\d.]+ images/s", said)


def test_golden_at_another_width(run, tmp_path):
    options = ("--images", "60", "--activation-bits", "6", "--models", "golden", "--json")
    found = json.loads(run("golden", DIGITS, *options, "--out", str(tmp_path)))["accuracy"]
    assert found["golden"] >= 0.9
    assert found["float"] is None


def test_golden_keeps_answers_in_the_build_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run("golden", DIGITS, "--images", "20", "--json")
    kept = list((tmp_path / "build" / "digits-wrn8-1-a4" / "answers").glob("*/000000.json"))
    assert len(kept) == 3
    assert run("golden", DIGITS, "--images", "20", "--json") == first  # the rate too: it is kept


def test_golden_needs_images(run, monkeypatch):
    monkeypatch.delenv("SIGNUM_DATA", raising=False)
    said = run("golden", DIGITS, "--dataset", "mnist", code=2)
    assert "hint: --data DIR" in said


def test_golden_refuses_images_of_another_shape(run, tmp_path):
    from compiler.sizing import blank

    checkpoint.save(tmp_path / "x.pt", blank(checkpoint.Network(8, 0.25, 10, (3, 8, 8))))
    said = run("golden", str(tmp_path / "x.pt"), "--dataset", "digits", code=2)
    assert "must have images of (3, 8, 8), not (1, 8, 8)" in said


def test_inspect_lists_every_layer(run, program):
    found = json.loads(run("inspect", DIGITS, "--board", "ice40", "--json"))
    assert found["addsub_per_image"] == sum(layer["addsub"] for layer in found["layers"])
    assert found["weight_bits"] == sum(layer["weight_bits"] for layer in found["layers"])
    names = {layer["name"] for layer in found["layers"]}
    assert {op.name for op in program.ops if hasattr(op, "kernel") or isinstance(op, Pool)} <= names
    assert found["cycles"] == sum(layer["cycles"] or 0 for layer in found["layers"])
    by_name = {layer["name"]: layer for layer in found["layers"]}
    conv = by_name["stage1.block1.conv1"]
    assert conv["accumulator_bits"] == 13
    assert conv["thresholds"] == 16 * 15
    assert conv["cycles"] > 0
    assert conv["regions"]


def test_inspect_prints_a_table(run, program_file):
    text = run("inspect", str(program_file))
    assert "stage3.block1.conv2" in text
    assert "74,512 weights" in text
    assert "cycles" not in text
    assert "stage3.block1.conv2" in run("inspect", DIGITS, "--lanes", "8x4x2")


def test_inspect_refuses(run, tmp_path):
    assert "there is none" in run("inspect", str(tmp_path / "x.json"), code=2)
    (tmp_path / "x.json").write_text("{}")
    assert "must be a Program" in run("inspect", str(tmp_path / "x.json"), code=1)


def test_compare_of_float_and_golden(run, program_file):
    found = json.loads(run("compare", DIGITS, str(program_file), "--images", "8", "--json"))
    assert found["a"]["kind"] == "float"
    assert found["b"]["kind"] == "golden"
    assert found["agreement"] == 1.0
    names = [layer["name"] for layer in found["layers"]]
    assert names[0] == "input.q"
    assert names[-1] == "scores"
    assert all(layer["relative_error"] < 0.2 for layer in found["layers"])


def test_compare_finds_the_first_difference(run, program, program_file, tmp_path):
    same = json.loads(run("compare", str(program_file), str(program_file), "--json"))
    assert same["first_difference"] is None
    assert all(layer["relative_error"] == 0 for layer in same["layers"])

    document = json.loads(program.to_json())
    op = next(op for op in document["ops"] if op["name"] == "stage2.block1.relu1")
    op["staircase"]["offsets"][5] += 40
    other = tmp_path / "other.json"
    other.write_text(Program.from_json(json.dumps(document)).to_json())
    found = json.loads(run("compare", str(program_file), str(other), "--json"))
    assert found["first_difference"] == "stage2.block1.relu1"
    layer = next(x for x in found["layers"] if x["name"] == "stage2.block1.relu1")
    assert layer["first"][1] == 5
    assert layer["a"] != layer["b"]
    assert "first difference: stage2.block1.relu1" in run("compare", str(program_file), str(other))


@pytest.mark.cocotb
def test_compare_runs_the_simulated_engine(run, program, program_file, tmp_path):
    """Equal to golden; and where the engine's network is another, the layer is found."""
    picture = tmp_path / "compared.svg"
    same = json.loads(
        run("compare", f"{DIGITS}@golden", f"{DIGITS}@rtl", "--images", "2", "--json")
    )
    assert [same[side]["kind"] for side in "ab"] == ["golden", "rtl"]
    assert same["first_difference"] is None
    assert same["agreement"] == 1
    assert {layer["name"] for layer in same["layers"]} >= {
        t.name for t in program.tensors if t.kind == "activation" and t.name != "input.q"
    } - {"conv0.q"}
    assert same["layers"][-1]["name"] == "scores"

    document = json.loads(program.to_json())
    op = next(op for op in document["ops"] if op["name"] == "stage2.block1.relu1")
    op["staircase"]["offsets"][5] += 40
    other = tmp_path / "other.json"
    other.write_text(Program.from_json(json.dumps(document)).to_json())
    arguments = (str(program_file), f"{other}@rtl", "--picture", str(picture), "--json")
    found = json.loads(run("compare", *arguments))
    assert found["first_difference"] == "stage2.block1.relu1"
    drawn = picture.read_text()
    assert "<svg" in drawn
    assert "first difference: stage2.block1.relu1" in drawn  # matplotlib's comment on its paths


@pytest.mark.parametrize(
    ("a", "picture", "said"),
    [
        (f"{DIGITS}@hdl", "x.svg", "the model after @ must be one of float, golden, onnxruntime"),
        (f"{DIGITS}@onnxruntime", "x.svg", "onnxruntime must be given an ONNX file"),
        ("program.json@float", "x.svg", "float must be given a network file"),
        (DIGITS, "x.bmp", "a picture must end with one of .svg, .png, .pdf, not 'x.bmp'"),
        (DIGITS, "nowhere/x.svg", "the picture's folder must exist"),
    ],
)
def test_compare_refuses(run, tmp_path, a, picture, said):
    assert said in run("compare", a, DIGITS, "--picture", str(tmp_path / picture), code=2)


def test_a_picture_needs_matplotlib(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    text = run("compare", DIGITS, DIGITS, "--picture", "x.svg", code=2)
    assert "hint: pip install matplotlib" in text


def test_memory_counts_what_lives_together(program):
    found = memory(program, 8)
    assert found["weights_bits"] == 74512
    # Two maps of 16x8x8 at 4 bits: one read, one written.
    assert found["activations_bits"] == 2 * 16 * 64 * 4
    # The pool reads 16x8x8 and writes 32x4x4.
    assert found["residual_bits"] == 8 * (16 * 64 + 32 * 16)
    assert any(isinstance(op, SumPixels) for op in program.ops)
    assert np.all(np.array(list(found.values())) > 0)
