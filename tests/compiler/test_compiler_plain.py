"""Networks in the manner of VGG: maxima and fully connected layers, in float and in integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compiler import export_float, export_integer, golden, inspect, onnx_read, report
from compiler import graph as ir
from compiler.accuracy import program_of
from compiler.arith import Pads
from compiler.calibrate import calibrate
from compiler.errors import LoweringError, ProgramError
from compiler.geometry import Geometry
from compiler.lower import lower
from compiler.program import Conv, MaxPool, Program
from compiler.schedule import schedule
from tests.support.networks import random_images, random_vgg

POOLS = {
    "halving": (2, 2, Pads(0, 0, 0, 0)),
    "overlapping": (3, 2, Pads(1, 1, 1, 1)),
    "far end": (3, 2, Pads(0, 0, 1, 1)),
}

IMAGES = random_images(9, 12, (3, 8, 8))

NO_PADS = Pads(0, 0, 0, 0)


def compared(graph: ir.Graph, program: Program) -> list[str]:
    """Activations that are nodes of the Graph too."""
    return [t.name for t in program.tensors if t.kind == "activation" and t.name in graph.shapes]


# -- lowering --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("first", [True, False], ids=["sums", "activations"])
@pytest.mark.parametrize("bits", [2, 4])
def test_every_activation_equals_the_float_networks(
    pool: tuple[int, int, Pads], first: bool, bits: int
) -> None:
    """Before the batch norm (of which every third falls) or behind the ReLU: the same integers."""
    graph = random_vgg(3, pool=pool, pool_first=first, bits=bits)
    program = lower(graph)
    maxima = [op for op in program.ops if isinstance(op, MaxPool)]
    assert len(maxima) == 2
    assert all(any(op.falling) == first for op in maxima)
    names = compared(graph, program)
    assert len(names) == 6 and {op.output for op in maxima} < set(names)
    got = golden.run(program, IMAGES, names)
    reference = golden.run_reference(program, IMAGES, names)
    want = ir.run(graph, IMAGES, names=names)
    for name in names:
        tensor = program[name]
        assert len(np.unique(got.tensors[name])) > 3, name
        assert (got.tensors[name] == reference.tensors[name]).all(), name
        q = np.rint(want[name] / tensor.step)
        assert (got.tensors[name] - tensor.zero == q).all(), name


def test_a_fully_connected_layer_is_a_window_as_large_as_the_map() -> None:
    program = lower(random_vgg(0))
    kernels = [(op.kernel, program[op.output].shape) for op in program.ops if isinstance(op, Conv)]
    assert kernels[-2:] == [(2, (12, 1, 1)), (1, (5, 1, 1))]


def test_a_program_with_maxima_survives_its_file() -> None:
    program = lower(random_vgg(0))
    assert Program.from_json(program.to_json()) == program


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"falling": ()}, "channels must agree"),
        ({"stride": 1}, r"output size must be \(7, 7\)"),
        ({"pads": Pads(2, 2, 0, 0)}, "output size|windows must meet the map"),
    ],
    ids=str,
)
def test_maxima_that_are_no_program(change: dict[str, object], message: str) -> None:
    program = lower(random_vgg(0))
    ops = list(program.ops)
    at = next(i for i, op in enumerate(ops) if isinstance(op, MaxPool))
    ops[at] = replace(ops[at], **change)  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match=message):
        replace(program, ops=tuple(ops)).verify()


def test_a_maximum_that_nothing_quantises_is_named() -> None:
    graph = random_vgg(0, pool_first=True)
    nodes = []
    for node in graph.nodes:  # two readers of one maximum: which staircase is it to stand behind?
        nodes.append(node)
        if node.name == "conv1.2.bn":
            assert isinstance(node, ir.BatchNorm)
            nodes.append(replace(node, name="other"))
        if node.name == "conv1.2.relu":
            nodes.append(ir.Relu("other.relu", "other"))
        if node.name == "conv1.2.q":
            nodes += [ir.Quantiser("other.q", "other.relu", 4, 0, 0.3)]
        if node.name == "conv2.1":
            nodes += [replace(node, name="other.conv", source="other.q")]  # type: ignore[type-var]
            nodes += [ir.Add("sum", "conv2.1", "other.conv")]
    nodes = [
        replace(n, source="sum") if n.name == "conv2.1.bn" else n  # type: ignore[call-arg]
        for n in nodes
    ]
    with pytest.raises(LoweringError, match=r"conv1.2.pool: a quantiser must .* conv1.2.bn, other"):
        lower(ir.Graph(graph.network, tuple(nodes), graph.labels))


def test_steps_without_images_know_that_a_maximum_is_large() -> None:
    graph = random_vgg(1, bits=None, pool_first=False, pool=POOLS["overlapping"])
    found = [
        {q.name: q.step or 0 for q in calibrate(graph, 4, images).all(ir.Quantiser)}
        for images in (None, random_images(1, 40, (3, 8, 8)))
    ]
    for name in ("conv1.2.q", "conv2.2.q"):
        assert found[0][name] == pytest.approx(found[1][name], rel=0.1)


# -- ONNX ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("first", [True, False], ids=["sums", "activations"])
def test_the_exported_integers_are_goldens(pool: tuple[int, int, Pads], first: bool) -> None:
    program = lower(random_vgg(5, pool=pool, pool_first=first))
    session = onnxruntime.InferenceSession(
        export_integer.to_onnx(program, every_layer=True).SerializeToString()
    )
    outputs = [output.name for output in session.get_outputs()]
    found = dict(zip(outputs, session.run(None, {"image": IMAGES}), strict=True))
    names = [t.name for t in program.tensors[1:-1]]
    expected = golden.run(program, IMAGES, names)
    for name in names:
        assert (found[name] == expected.tensors[name]).all(), name
    assert (found["class"] == expected.classes).all()


@pytest.mark.parametrize("first", [True, False], ids=["sums", "activations"])
@pytest.mark.parametrize("bits", [4, None])
def test_a_round_trip_lowers_to_the_identical_program(
    first: bool, bits: int | None, tmp_path: Path
) -> None:
    graph = random_vgg(2, pool=POOLS["overlapping"], pool_first=first, bits=bits)
    onnx.save(export_float.to_onnx(graph), tmp_path / "x.onnx")
    again = onnx_read.read(tmp_path / "x.onnx")
    for calibration in (None, IMAGES):
        expected = program_of(graph, 4, calibration)
        assert program_of(again, 4, calibration).to_json() == expected.to_json()


# -- what people see -------------------------------------------------------------------------------


def test_inspect_shows_every_layer() -> None:
    program = lower(random_vgg(0))
    laid_out = schedule(program, Geometry(max_pool=True))
    rows = {row.name: row for row in inspect.rows(program, laid_out)}
    assert rows["conv1.2.q"].kind == "max 2x2/2"
    assert rows["conv1.2.q"].shape_in == (6, 8, 8) and rows["conv1.2.q"].shape_out == (6, 4, 4)
    assert rows["dense1"].kind == "conv 2x2/1"
    assert sum(row.cycles or 0 for row in rows.values()) == laid_out.cycles
    assert report.memory(program, 16)["activations_bits"] > 0
