"""Export: the integer Program equals golden in every tensor, the float network equals torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from compiler import checkpoint, datasets, export_float, export_integer, golden, onnx_read, onnx_run
from compiler import graph as ir
from compiler.__main__ import main
from compiler.accuracy import program_of
from compiler.arith import Pads, Staircase, accumulator_range
from compiler.errors import CheckpointError, LoweringError, UsageError
from compiler.lower import rounded
from compiler.program import Add, Conv, Program, Quantise, SumPixels, Tensor
from tests.conftest import ROOT
from tests.support.networks import PROGRAM_OPTIONS, random_checkpoint, random_images, random_program
from train.export import network_of

DIGITS = ROOT / "train" / "zoo" / "digits-wrn8-1-a4.pt"


def assert_equal_everywhere(program: Program, images: np.ndarray) -> golden.Result:
    """Every tensor of the Program, the scores and the class, in onnxruntime as in golden."""
    names = [tensor.name for tensor in program.tensors[1:]]
    expected = golden.run(program, images, names)
    found = onnx_run.run(export_integer.to_onnx(program, every_layer=True), images)
    assert set(found) == {*names, export_integer.CLASSES}
    for name in names:
        assert found[name].dtype.kind in "iu", name
        np.testing.assert_array_equal(found[name], expected.tensors[name], name)
    np.testing.assert_array_equal(found[export_integer.CLASSES], expected.classes)
    return expected


# -- integers --------------------------------------------------------------------------------------


@given(**PROGRAM_OPTIONS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_integers_equal_golden(
    saturated: int | None, channel_scales: bool, residual_bits: int | None, **options: Any
) -> None:
    program = random_program(channel_scales=channel_scales, residual_bits=residual_bits, **options)
    if saturated:
        program = program.with_residual_bits(saturated)
    images = random_images(options["seed"] + 1, 3, options["shape"])
    images[0], images[1] = 255, 0
    assert_equal_everywhere(program, images)


def test_integers_equal_golden_where_they_saturate() -> None:
    program = random_program(3, bits=3, padding="keras", shape=(3, 9, 12)).with_residual_bits(3)
    result = assert_equal_everywhere(program, random_images(1, 6, (3, 9, 12)))
    assert sum(result.saturations.values()) > 100


def test_integers_equal_golden_on_every_digit() -> None:
    program = program_of(ir.build(checkpoint.load(DIGITS)))
    assert_equal_everywhere(program, datasets.load("digits").test_images)


def hand_made(kernel: int, pads: Pads, stride: int, division: Staircase | None) -> Program:
    """One of everything that networks do not have: zeros inside sums, wide taps, odd strides."""
    size = pads.output_size((4, 5), kernel, stride)
    acc = accumulator_range(2 * kernel**2, 0, 7, 3)
    total = -3 * size[0] * size[1], 4 * size[0] * size[1]
    head = accumulator_range(3 * 9, *total, 0)
    weights = np.packbits(np.random.default_rng(kernel).integers(0, 2, 3 * 2 * kernel**2))
    head_weights = np.packbits(np.random.default_rng(9).integers(0, 2, 4 * 3 * 9))
    return Program(
        "hand",
        3,
        (
            Tensor("pixels", "image", 2, 4, 5, 0, 255),
            Tensor("q", "activation", 2, 4, 5, 0, 7, zero=3),
            Tensor("acc", "accumulator", 3, *size, *acc),
            Tensor("r", "residual", 3, *size, -32, 31),
            Tensor("q2", "activation", 3, *size, 0, 7, zero=3),
            Tensor("sum", "sum", 3, 1, 1, *total),
            Tensor("head", "accumulator", 4, 1, 1, *head),
            Tensor("out", "score", 4, 1, 1, 0, 255, zero=128),
        ),
        (
            Quantise("a", "pixels", "q", Staircase(3, 1, (-5, 90), (60, 77), (1, -1))),
            Conv("b", "q", "acc", kernel, stride, pads, weights.tobytes(), 1.0),
            Add("c", "acc", None, "r", 0 if division else -2, division),
            Quantise("d", "r", "q2", Staircase(3, 2, (-40, 0, 3), (9, 5, 1), (1, -1, 0))),
            SumPixels("e", "q2", "sum"),
            Conv("f", "sum", "head", 3, 1, Pads(1, 1, 1, 1), head_weights.tobytes(), 1.0),
            Quantise("g", "head", "out", Staircase(8, 0, (-640,) * 4, (5, 3, 2, 7), (1,) * 4)),
        ),
        tuple("abcd"),
    ).verify()


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("pads", [Pads(0, 0, 0, 0), Pads(0, 2, 1, 0), Pads(2, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    "division", [None, Staircase(4, 1, (-80, -100, 7), (10, 3, 40), (1, -1, 1))], ids=["", "div"]
)
def test_every_operation_equals_golden(
    kernel: int, pads: Pads, stride: int, division: Staircase | None
) -> None:
    program = hand_made(kernel, pads, stride, division)
    assert_equal_everywhere(program, random_images(kernel, 5, (2, 4, 5)))


def test_integers_have_no_floats_and_their_tensors_are_stated() -> None:
    program = random_program(0, channel_scales=True)
    model = export_integer.to_onnx(program)
    assert {entry.domain for entry in model.opset_import} == {""}
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.value_info, *inferred.output, *inferred.input]
    kinds = {v.name: v.type.tensor_type.elem_type for v in values}
    assert not set(kinds.values()) & {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
    assert {t.name for t in program.tensors} <= set(kinds)
    meaning = json.loads({e.key: e.value for e in model.metadata_props}[export_integer.TENSORS])
    for tensor in program.tensors:
        assert meaning[tensor.name] == {
            "kind": tensor.kind, "zero": tensor.zero, "step": tensor.step,
        }  # fmt: skip


def test_the_class_of_equal_scores_is_the_lowest() -> None:
    program = hand_made(1, Pads(0, 0, 0, 0), 1, None)
    *ops, last = program.ops
    flat = Quantise("g", "head", "out", Staircase(8, 0, (-1, -9, -9, -3), (1,) * 4, (0,) * 4))
    assert isinstance(last, Quantise)
    level = Program("flat", 3, program.tensors, (*ops, flat), program.labels).verify()
    images = random_images(0, 2, (2, 4, 5))
    found = onnx_run.run(export_integer.to_onnx(level), images)
    assert found[export_integer.CLASSES].tolist() == [1, 1]


# -- floats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "keras", "shape": (2, 9, 6)},
        {"padding": "matlab", "shape": (1, 7, 7), "learned": True},
        {"skip": False, "input_relu": True},
        {"weights": "32bit"},
        {"width": 1 / 16},
    ],
    ids=str,
)
def test_floats_equal_torch(options: dict[str, Any]) -> None:
    read = random_checkpoint(2, bits=None, **options)
    images = random_images(1, 20, read.network.input)
    with torch.no_grad():
        expected = network_of(read)(torch.from_numpy(images)).numpy()
    found = onnx_run.run(export_float.to_onnx(ir.build(read)), images)[export_float.SCORES]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_floats_equal_torch_on_every_digit() -> None:
    read = checkpoint.load(DIGITS)
    images = datasets.load("digits").test_images
    network = network_of(read)
    network.steps = None
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    model = export_float.to_onnx(ir.build(read), quantised=False)
    found = onnx_run.run(model, images)[export_float.SCORES]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_quantised_floats_equal_the_graph_but_for_what_lies_between_two_steps() -> None:
    """Single precision may round a value on the border of two steps the other way."""
    graph = ir.build(checkpoint.load(DIGITS))
    images = datasets.load("digits").test_images
    found = onnx_run.run(export_float.to_onnx(graph), images)[export_float.SCORES]
    expected = ir.scores(graph, images)
    far = np.abs(found - expected).max(axis=1) > 1e-4
    assert far.sum() <= 4
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_quantised_floats_equal_the_graph_layer_by_layer(bits: int) -> None:
    graph = ir.build(random_checkpoint(bits, bits=bits, channel_scales=True, learned=True))
    images = random_images(7, 8, graph.image.shape)
    names = [node.name for node in graph.nodes[1:]]
    expected = ir.run(graph, images, names=names)
    found = onnx_run.run(export_float.to_onnx(graph), images, names)
    for name in names:
        assert found[name].shape == expected[name].shape
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)


def test_rounded_pools_are_not_exported() -> None:
    program = random_program(0)
    graph = rounded(ir.build(random_checkpoint(0)), program)
    with pytest.raises(LoweringError, match="a rounded pool is the Program's"):
        export_float.to_onnx(graph)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["keras", "matlab"])
def test_the_published_networks_go_out_and_come_back(
    name: str, data_folder: Path, tmp_path: Path
) -> None:
    file = data_folder / "published" / f"mcdonnell_wrn20-10_cifar10_{name}.mat"
    graph = ir.build(checkpoint.load(file))
    onnx.save(export_float.to_onnx(graph), tmp_path / "x.onnx")
    program = program_of(graph, 4)
    assert program_of(onnx_read.read(tmp_path / "x.onnx"), 4).to_json() == program.to_json()
    assert_equal_everywhere(program, random_images(0, 2, graph.image.shape))


# -- running ---------------------------------------------------------------------------------------


def test_a_value_that_is_not_there_cannot_be_run() -> None:
    model = export_integer.to_onnx(random_program(0))
    with pytest.raises(UsageError, match="one of the model's, not 'nothing'"):
        onnx_run.run(model, random_images(0, 1, (3, 8, 8)), ["nothing"])


def test_images_of_another_size_cannot_be_run() -> None:
    model = export_integer.to_onnx(random_program(0))
    with pytest.raises(UsageError, match=r"onnxruntime must run wrn8-0\.25, but says"):
        onnx_run.run(model, random_images(0, 1, (3, 9, 9)))


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path: Path) -> dict[str, Path]:
    paths = {form: tmp_path / f"{form}.onnx" for form in ("integer", "float", "unquantised")}
    for form, path in paths.items():
        assert main(["export", str(DIGITS), "-o", str(path), f"--{form}"]) == 0
    return paths


def test_export_writes_what_it_is_asked_for(exported: dict[str, Path]) -> None:
    operators = {
        form: {node.op_type for node in onnx.load(path).graph.node}
        for form, path in exported.items()
    }
    assert "ConvInteger" in operators["integer"] and "Conv" not in operators["integer"]
    assert {"Conv", "Floor"} <= operators["float"]
    assert "Conv" in operators["unquantised"] and "Floor" not in operators["unquantised"]


def test_export_takes_integers_by_default_and_all_layers_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    assert main(["export", str(DIGITS), "-o", str(path)]) == 0
    assert len(onnx.load(path).graph.output) == 2
    assert main(["export", str(DIGITS), "-o", str(path), "--layers"]) == 0
    program = program_of(ir.build(checkpoint.load(DIGITS)))
    assert len(onnx.load(path).graph.output) == len(program.tensors)


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["compare", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_compare_asks_onnxruntime(
    exported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = program_of(ir.build(checkpoint.load(DIGITS)))
    path = tmp_path / "program.json"
    path.write_text(program.to_json())
    found = compared(capsys, str(path), str(exported["integer"]))
    assert (found["a"]["kind"], found["b"]["kind"]) == ("golden", "onnxruntime")
    assert found["first_difference"] is None and found["agreement"] == 1
    kinds = ("activation", "residual", "score")
    assert len(found["layers"]) == sum(t.kind in kinds for t in program.tensors)
    found = compared(capsys, str(DIGITS), str(exported["float"]))
    assert found["first_difference"] is None and found["agreement"] == 1
    assert found["layers"][-1]["name"] == "scores" and len(found["layers"]) > 10
    # Without quantisers the first activation is where the two part.
    found = compared(capsys, str(DIGITS), str(exported["unquantised"]))
    assert found["first_difference"] == "input.q"


def test_compare_finds_the_layer_that_is_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = random_program(0)
    ops = list(program.ops)
    at = next(i for i, op in enumerate(ops) if op.name == "stage2.block1.conv1")
    conv = ops[at]
    assert isinstance(conv, Conv)
    ops[at] = replace(conv, weights=bytes([conv.weights[0] ^ 0x80]) + conv.weights[1:])
    other = Program(program.network, 4, program.tensors, tuple(ops), program.labels).verify()
    (tmp_path / "a.json").write_text(program.to_json())
    onnx.save(export_integer.to_onnx(other), tmp_path / "b.onnx")
    found = compared(capsys, str(tmp_path / "a.json"), str(tmp_path / "b.onnx"))
    assert found["first_difference"] == "stage2.block1.relu2"


def test_compare_refuses_metadata_that_lies(tmp_path: Path) -> None:
    model = export_integer.to_onnx(random_program(0))
    onnx.helper.set_model_props(model, {export_integer.TENSORS: '{"x": 1}'})
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(CheckpointError, match=r"metadata 'signum\.tensors'"):
        onnx_run.opinion(tmp_path / "b.onnx")
