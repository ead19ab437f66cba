"""ONNX in: by every exporter the same network, and for what cannot be read one clear error."""

from __future__ import annotations

import json
import os
import random
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compiler import (
    export_float,
    golden,
    networks,
    onnx_file,
    onnx_fold,
    onnx_read,
    onnx_run,
)
from compiler import graph as ir
from compiler.__main__ import main
from compiler.accuracy import program_of
from compiler.arith import Pads, conv_scale
from compiler.errors import CheckpointError, LoweringError, SignumError
from compiler.onnx_model import nearest_decimal
from compiler.onnx_view import NCHW, NHWC, Refused, View
from tests.conftest import ROOT
from tests.support.networks import random_checkpoint, random_images

DIGITS = ROOT / "train" / "zoo" / "digits-wrn8-1-a4.pt"
BREVITAS = Path(__file__).parent / "files" / "brevitas.onnx"
"""A residual block as Brevitas 0.13 exports it (QONNX by way of torch 2.13's exporter), stripped of
the stack traces in its metadata."""


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def assert_same_answers(graph: ir.Graph, path: Path, quantised: bool = False) -> None:
    """The Graph as it was read equals the file as onnxruntime runs it."""
    images = random_images(3, 6, graph.image.shape)
    found = onnx_run.run(onnx_file.load_proto(path), images)
    (scores,) = found.values()
    expected = ir.scores(graph, images, quantised)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores.reshape(expected.shape), expected, atol=2e-4, rtol=1e-4)


def assert_close_integers(graph: ir.Graph) -> None:
    """The Program at 8 bits comes near the Graph without quantisers."""
    images = random_images(4, 16, graph.image.shape)
    program = program_of(graph, 8, images)
    close = ir.scores(graph, images, quantised=False)
    scores = golden.run(program, images).scores * program.scores.step
    assert np.abs(scores - close).max() < 0.1 * np.ptp(close)


# -- our own files ---------------------------------------------------------------------------------

NETWORKS: list[dict[str, Any]] = [
    {},
    {"bits": None, "padding": "keras"},
    {"bits": 2, "padding": "matlab", "channel_scales": True, "learned": True},
    {"shape": (1, 7, 9), "padding": "keras", "skip": False},
    {"bits": 8, "input_relu": True, "shape": (2, 9, 6), "channel_scales": True},
    {"width": 1 / 16, "shape": (1, 7, 7)},
    {"depth": 14, "bits": None, "learned": True},
]


@pytest.mark.parametrize("options", NETWORKS, ids=str)
@pytest.mark.parametrize("quantised", [True, False], ids=["quantised", "plain"])
def test_what_we_wrote_lowers_to_the_identical_program(
    options: dict[str, Any], quantised: bool, tmp_path: Path
) -> None:
    graph = ir.build(random_checkpoint(5, **options))
    path = saved(export_float.to_onnx(graph, quantised), tmp_path / "x.onnx")
    again = onnx_read.read(path)
    bits = options.get("bits", 4)
    if not quantised or bits is None:
        steps = {q.name: None for q in graph.all(ir.Quantiser)}
        graph = graph.with_quantisers(steps, 8)  # type: ignore[arg-type]
        bits = 3
    images = random_images(5, 16, graph.image.shape)
    for calibration in (None, images):
        expected = program_of(graph, bits, calibration)
        assert program_of(again, bits, calibration).to_json() == expected.to_json()


def test_the_digits_survive_a_round_trip_by_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.onnx"
    assert main(["export", str(DIGITS), "-o", str(path), "--float"]) == 0
    assert main(["inspect", str(path), "--json"]) == 0
    found = capsys.readouterr().out
    assert main(["inspect", str(DIGITS), "--json"]) == 0
    assert capsys.readouterr().out == found
    answers = []
    for file in (path, DIGITS):
        assert main(["golden", str(file), "--dataset", "digits", "--images", "50", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["accuracy"])
    for key in ("images", "float", "golden", "golden_agrees_float"):
        assert answers[0][key] == answers[1][key]
    assert networks.graph_of(networks.load(path)).network == "wrn8-1"


def test_numbers_that_single_precision_does_not_hold_survive(tmp_path: Path) -> None:
    graph = ir.build(random_checkpoint(1))
    third = np.float64(1) / 3

    def finer(node: ir.Node) -> ir.Node:
        if isinstance(node, ir.BatchNorm):
            return replace(node, variance=node.variance + third, epsilon=1e-5 + 1e-12)
        return node

    graph = ir.Graph(graph.network, tuple(map(finer, graph.nodes)), graph.labels)
    again = onnx_read.read(saved(export_float.to_onnx(graph), tmp_path / "x.onnx"))
    assert [n.name for n in again.nodes] == [n.name for n in graph.nodes]
    for a, b in zip(graph.all(ir.BatchNorm), again.all(ir.BatchNorm), strict=True):
        np.testing.assert_array_equal(a.slope, b.slope)
        np.testing.assert_array_equal(a.intercept, b.intercept)


def test_channels_without_variance_survive(tmp_path: Path) -> None:
    graph = ir.build(random_checkpoint(1))

    def still(node: ir.Node) -> ir.Node:
        if isinstance(node, ir.BatchNorm) and node.name.endswith("bn2"):
            return replace(node, variance=node.variance * 0, epsilon=0.0)
        return node

    graph = ir.Graph(graph.network, tuple(map(still, graph.nodes)), graph.labels)
    path = saved(export_float.to_onnx(graph), tmp_path / "x.onnx")
    again = onnx_read.read(path)
    for a, b in zip(graph.all(ir.BatchNorm), again.all(ir.BatchNorm), strict=True):
        np.testing.assert_array_equal(a.slope, b.slope)
        np.testing.assert_array_equal(a.intercept, b.intercept)
    images = random_images(0, 3, graph.image.shape)
    found = onnx_run.run(onnx.load(path), images)["scores"]
    np.testing.assert_allclose(found, ir.scores(graph, images), atol=1e-4)


@pytest.mark.parametrize("value", [1e-5, 1e-3, 2e-5, 0.0, 0.5, 0.1])
def test_nearest_decimal(value: float) -> None:
    assert nearest_decimal(float(np.float32(value))) == value


# -- other people's torch networks -----------------------------------------------------------------


class Signs(nn.Module):
    """A 1-bit convolution or linear layer, its weights written in one of several ways."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, form: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel))
        self.stride, self.form = stride, form

    def forward(self, x: Tensor) -> Tensor:
        scale = conv_scale(self.weight[0].numel())
        signs = torch.where(self.weight >= 0, 1.0, -1.0)
        pad = self.weight.shape[-1] // 2
        if self.form == "where":
            weights = torch.where(self.weight >= 0, torch.tensor(scale), torch.tensor(-scale))
            return F.conv2d(x, weights, None, self.stride, pad)
        if self.form == "bwn":
            weights = self.weight.sign() * self.weight.abs().mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weights, None, self.stride, pad)
        return F.conv2d(F.pad(x, (pad,) * 4), signs, None, self.stride) * scale  # "behind"


class Residual(nn.Module):
    """A pre-activation residual network by somebody who has not read docs/checkpoint.md."""

    def __init__(self, form: str, skip: str, head: str, count: bool) -> None:
        super().__init__()
        self.skip, self.head, self.count = skip, head, count
        self.bn0, self.conv0 = nn.BatchNorm2d(3), Signs(3, 4, 3, 1, form)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), Signs(4, 8, 3, 2, form)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), Signs(8, 8, 3, 1, form)
        self.bn3, self.conv3 = nn.BatchNorm2d(8), Signs(8, 5, 1, 1, form)
        self.bn4 = nn.BatchNorm2d(5)
        self.linear = nn.Linear(8, 5)
        with torch.no_grad():
            self.linear.weight.copy_(self.linear.weight.sign() / 4)

    def shortcut(self, x: Tensor, like: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=self.count)
        if self.skip == "pad":
            return F.pad(x, (0, 0, 0, 0, 0, like.shape[1] - x.shape[1]))
        if self.skip == "cat":
            return torch.cat([x, torch.zeros_like(x)], 1)
        if self.skip == "zeros":
            return torch.cat([x, x.new_zeros(x.shape[0], 4, x.shape[2], x.shape[3])], 1)
        return torch.cat([x, x.mul(0)], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(self.bn0(x.float()))
        y = self.conv2(F.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))
        x = F.relu(self.bn3(self.shortcut(x, y) + y))
        if self.head == "linear":
            return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        x = self.bn4(self.conv3(x))
        if self.head == "mean":
            return x.mean((2, 3))
        if self.head == "means":
            return x.mean(-1).mean(-1)
        if self.head == "pool":
            return F.avg_pool2d(x, 4).reshape(x.shape[0], 5)
        return F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1).softmax(1)


class Plain(nn.Module):
    """Without skips, biases in its convolutions, its first fully connected layer over the map."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv0, self.conv1 = Signs(3, 8, 3, 1, form), Signs(8, 8, 3, 2, form)
        self.bias = nn.Parameter(torch.randn(8, 1, 1))
        self.bn0, self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm1d(16)
        self.fc1, self.fc2 = nn.Linear(128, 16, bias=False), nn.Linear(16, 5)
        with torch.no_grad():
            for layer in (self.fc1, self.fc2):
                layer.weight.copy_(layer.weight.sign() * conv_scale(layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.conv0(x.float()) + self.bias))
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc2(torch.relu(self.bn2(self.fc1(x.flatten(1)))))


def trained(network: nn.Module) -> nn.Module:
    """With the moments, scales and offsets of a network that has seen images."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.weight[::3] *= -1
                module.bias.uniform_(-0.3, 0.3, generator=generator)
    with torch.no_grad():
        network.train()(torch.from_numpy(random_images(9, 64, (3, 8, 8))))
    return network.eval()


def export(network: nn.Module, path: Path, dynamo: bool, opset: int | None = None) -> Path:
    images = torch.from_numpy(random_images(1, 2, (3, 8, 8)))
    batch = torch.export.Dim("N", min=1, max=64)
    shapes: dict[str, Any] = {"dynamic_shapes": ({0: batch},), "verbose": False}
    if not dynamo:
        shapes = {"dynamic_axes": {"x": {0: "N"}}, "input_names": ["x"]}
    torch.onnx.export(network, (images,), path, dynamo=dynamo, opset_version=opset, **shapes)
    return path


TORCH_WARNINGS = pytest.mark.filterwarnings("ignore")  # the exporters warn of their own parts


def forms(*choices: tuple[Any, ...]) -> list[Any]:
    """By both exporters; the dynamo one takes many seconds."""
    fast = [pytest.param(*choice, False, id=f"torchscript-{choice}") for choice in choices]
    slow = [
        pytest.param(*choice, True, id=f"dynamo-{choice}", marks=pytest.mark.slow)
        for choice in choices
    ]
    return fast + slow


@TORCH_WARNINGS
@pytest.mark.parametrize(
    ("form", "skip", "head", "count", "dynamo"),
    forms(
        ("bwn", "cat", "linear", False),
        ("where", "pad", "mean", True),
        ("behind", "zeros", "softmax", True),
        ("where", "mul", "means", False),
        ("behind", "cat", "pool", False),
    ),
)
def test_residual_networks_from_torch(
    form: str, skip: str, head: str, count: bool, dynamo: bool, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    path = export(trained(Residual(form, skip, head, count)), tmp_path / "net.onnx", dynamo)
    graph = onnx_read.read(path)
    assert graph.network == "net" and graph.image.shape == (3, 8, 8)
    (pool,) = graph.all(ir.AvgPool)
    assert (pool.channels, pool.count_padding) == (8, count)
    assert all(conv.binary for conv in graph.all(ir.Conv))
    assert [q.zero for q in graph.all(ir.Quantiser)] == [128, 0, 0, 0]
    if head != "softmax":  # which is left out
        assert_same_answers(graph, path)
    assert_close_integers(graph)


@TORCH_WARNINGS
@pytest.mark.parametrize(("form", "dynamo"), forms(("behind",), ("where",), ("bwn",)))
def test_plain_networks_from_torch(form: str, dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    path = export(trained(Plain(form)), tmp_path / "net.onnx", dynamo)
    graph = onnx_read.read(path)
    kernels = [conv.kernel for conv in graph.all(ir.Conv)]
    assert kernels == [3, 3, 4, 1]
    assert_same_answers(graph, path)
    assert_close_integers(graph)


class Vgg(nn.Module):
    """Maxima of every kind that torch has words for, and fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1 = Signs(3, 8, 3, 1, "where"), Signs(8, 8, 3, 1, "behind")
        self.conv2 = Signs(8, 16, 3, 1, "bwn")
        self.bn0, self.bn1 = nn.BatchNorm2d(3), nn.BatchNorm2d(8)
        self.bn2, self.bn3 = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.fc1, self.fc2 = nn.Linear(64, 16, bias=False), nn.Linear(16, 5)
        self.bn4 = nn.BatchNorm1d(16)
        with torch.no_grad():
            for layer in (self.fc1, self.fc2):
                layer.weight.copy_(layer.weight.sign() * conv_scale(layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(self.bn0(x.float()))
        x = F.relu(self.bn1(F.max_pool2d(x, 3, 1, 1)))  # of sums, padded
        x = F.relu(F.max_pool2d(self.bn2(self.conv1(x)), 3, 2, ceil_mode=True))
        x = F.max_pool2d(F.relu(self.bn3(self.conv2(x))), 2)  # of activations
        return self.fc2(F.dropout(F.relu(self.bn4(self.fc1(x.flatten(1)))), 0.5, self.training))


@TORCH_WARNINGS
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_vgg_from_torch(dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    path = export(trained(Vgg()), tmp_path / "net.onnx", dynamo)
    graph = onnx_read.read(path)
    pools = [(pool.kernel, pool.stride, pool.pads) for pool in graph.all(ir.MaxPool)]
    assert pools == [
        (3, 1, Pads(1, 1, 1, 1)),
        (3, 2, Pads(0, 0, 1, 1)),
        (2, 2, Pads(0, 0, 0, 0)),
    ]
    assert_same_answers(graph, path)
    assert_close_integers(graph)


@pytest.mark.parametrize(
    ("size", "pads", "kernel", "stride", "more"),
    [(8, 0, 3, 2, 1), (7, 0, 3, 2, 0), (8, 0, 2, 2, 0), (7, 0, 2, 2, 1), (2, 1, 2, 3, 0)],
)
def test_windows_over_the_edge(size: int, pads: int, kernel: int, stride: int, more: int) -> None:
    """Of ceil_mode, as torch has it: a window that begins behind the map is none."""
    x = torch.arange(float(size * size)).reshape(1, 1, size, size)
    expected = F.max_pool2d(x, kernel, stride, pads, ceil_mode=True)
    over = onnx_read.overhang(size, pads, pads, kernel, stride)
    assert over == more
    assert expected.shape[-1] == (size + 2 * pads + over - kernel) // stride + 1


@TORCH_WARNINGS
def test_a_skip_that_takes_every_second_pixel_is_refused_by_name(tmp_path: Path) -> None:
    class Strided(Residual):
        def shortcut(self, x: Tensor, like: Tensor) -> Tensor:
            return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, like.shape[1] - x.shape[1]))

    path = export(trained(Strided("where", "", "mean", True)), tmp_path / "net.onnx", False)
    message = r"\(Slice\): it takes every second pixel: .* must be the mean of 3x3 pixels, stride 2"
    with pytest.raises(LoweringError, match=message):
        onnx_read.read(path)


@TORCH_WARNINGS
@pytest.mark.parametrize("opset", [11, 12, 13, 14, 16, 18])
def test_every_opset_of_torch(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = trained(Residual("where", "pad", "mean", True))
    path = export(network, tmp_path / "net.onnx", dynamo=False, opset=opset)
    assert onnx_file.load(path).opset == opset
    assert_same_answers(onnx_read.read(path), path)


@pytest.mark.parametrize("opset", range(18, onnx.defs.onnx_opset_version() + 1))
def test_newer_opsets(opset: int, tmp_path: Path) -> None:
    graph = ir.build(random_checkpoint(0))
    model = onnx.version_converter.convert_version(export_float.to_onnx(graph), opset)
    path = saved(model, tmp_path / "x.onnx")
    assert onnx_file.load(path).opset == opset
    assert program_of(onnx_read.read(path)).to_json() == program_of(graph).to_json()


@TORCH_WARNINGS
def test_quantisers_of_torch_are_taken_over(tmp_path: Path) -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn0, self.conv0 = nn.BatchNorm2d(3), Signs(3, 8, 3, 1, "where")
            self.bn1, self.conv1 = nn.BatchNorm2d(8), Signs(8, 8, 3, 2, "where")
            self.bn2, self.conv2 = nn.BatchNorm2d(8), Signs(8, 5, 1, 1, "where")

        def forward(self, x: Tensor) -> Tensor:
            x = torch.clamp(torch.floor(self.bn0(x.float()) * 64 + 0.5), -128, 127) / 64
            x = torch.relu(self.bn1(self.conv0(x)))
            x = torch.clamp(torch.round(x / 0.25), 0, 15) * 0.25  # clipped behind
            x = torch.clamp(self.bn2(self.conv1(x)), 0, 3)
            x = torch.round(x * 5) / 5  # clipped before, as DoReFa does
            return self.conv2(x).mean((2, 3))

    torch.manual_seed(4)
    path = export(trained(Quantised()), tmp_path / "net.onnx", dynamo=False)
    graph = onnx_read.read(path)
    found = [(q.bits, q.zero, q.step) for q in graph.all(ir.Quantiser)]
    assert found == [(8, 128, 1 / 64), (4, 0, 0.25), (4, 0, pytest.approx(0.2))]
    assert_same_answers(graph, path, quantised=True)
    assert program_of(graph).activation_bits == 4


# -- QONNX -----------------------------------------------------------------------------------------


def test_brevitas() -> None:
    graph = onnx_read.read(BREVITAS)
    assert [(q.bits, q.zero) for q in graph.all(ir.Quantiser)] == [(8, 128), *[(4, 0)] * 3]
    assert all(conv.binary and conv.scale.ndim == 0 for conv in graph.all(ir.Conv))
    images = random_images(0, 16, (3, 8, 8))
    scores, program = ir.scores(graph, images), program_of(graph)
    assert program.activation_bits == 4
    found = golden.run(program, images).scores * program.scores.step
    assert np.abs(found - scores).max() < 0.05 * np.ptp(scores)


def qonnx(activation: dict[str, Any], weights: str = "BipolarQuant") -> onnx.ModelProto:
    """Image, quantiser of it, convolution, quantised activation, head."""
    rng = np.random.default_rng(0)
    domain = "onnx.brevitas" if weights == "BipolarQuant" else "qonnx.custom_op.general"
    constants = {
        "w": rng.normal(size=(4, 3, 3, 3)), "v": rng.normal(size=(5, 4, 1, 1)),
        "s": 0.25, "z": 0.0, "eight": 8.0, "one": 1.0, "b": activation.pop("bits", 4.0),
        "t": activation.pop("step", 0.5), "u": activation.pop("zero", 0.0),
        "ws": 1 / 8, "vs": np.full((5, 1, 1, 1), 0.25),
    }  # fmt: skip
    signed = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}

    def binary(name: str, scale: str) -> onnx.NodeProto:
        if weights == "BipolarQuant":
            return helper.make_node("BipolarQuant", [name, scale], [f"{name}q"], domain=domain)
        inputs = [f"{name}n", scale, "z", "one"]
        return helper.make_node(weights, inputs, [f"{name}q"], domain=domain, **signed)

    nodes = [
        helper.make_node("Cast", ["x"], ["xf"], to=1),
        helper.make_node("Mul", ["xf", "s"], ["xs"]),
        helper.make_node("Quant", ["xs", "s", "z", "eight"], ["xq"], domain=domain, signed=0),
        helper.make_node("Abs", ["w"], ["wa"]), helper.make_node("Neg", ["wa"], ["wn"]),
        helper.make_node("Abs", ["v"], ["va"]), helper.make_node("Neg", ["va"], ["vn"]),
        binary("w", "ws"), binary("v", "vs"),
        helper.make_node("Conv", ["xq", "wq"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node(
            "IntQuant", ["r", "t", "u", "b"], ["rq"], "act", domain=domain,
            **{"signed": 0, "narrow": 0, **activation},
        ),
        helper.make_node("GlobalAveragePool", ["rq"], ["g"]),
        helper.make_node("Conv", ["g", "vq"], ["o"]),
        helper.make_node("Squeeze", ["o", "hw"], ["y"]),
    ]  # fmt: skip
    initialisers = [
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in constants.items()
    ]
    initialisers.append(numpy_helper.from_array(np.array([2, 3]), "hw"))
    graph = helper.make_graph(
        nodes,
        "q",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        initialisers,
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_qonnx_operators(tmp_path: Path) -> None:
    graph = onnx_read.read(saved(qonnx({}), tmp_path / "x.onnx"))
    first, second = graph.all(ir.Conv)
    assert float(first.scale) == 1 / 8 and float(second.scale) == 0.25
    image, activation = graph.all(ir.Quantiser)
    assert (image.bits, image.zero, image.step) == (8, 0, 0.25)
    assert (activation.bits, activation.zero, activation.step) == (4, 0, 0.5)
    assert program_of(graph).activation_bits == 4


@pytest.mark.parametrize(
    ("activation", "reason"),
    [
        ({"bits": 1.0}, r"2\*\*2 .. 2\*\*8 levels, not 2"),
        ({"bits": 9.0}, r"levels, not 512"),
        ({"bits": 2.5}, "a width of 2.5 bits"),
        ({"narrow": 1}, "levels, not 15"),
        ({"rounding_mode": "FLOOR"}, "must round to nearest, not FLOOR"),
        ({"step": -1.0}, "step must be a positive number, not -1"),
        ({"step": np.inf}, "step must be a positive number, not inf"),
        ({"step": np.ones(4)}, "scale must be one constant number"),
        ({"zero": 3.0}, "the quantiser of a ReLU must start at 0, not at -3"),
        ({"zero": 0.5}, "zero point must be a whole number, not 0.5"),
        ({"signed": 1}, "the quantiser of a ReLU must start at 0, not at -8"),
    ],
    ids=str,
)
def test_quantisers_that_are_refused(
    activation: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = saved(qonnx(dict(activation)), tmp_path / "x.onnx")
    with pytest.raises(LoweringError, match=rf"act \(.*IntQuant\): .*{reason}"):
        onnx_read.read(path)


def test_one_bit_of_a_quant_is_no_sign(tmp_path: Path) -> None:
    """Quant to one signed bit gives -1 and 0; only BipolarQuant gives -1 and +1."""
    path = saved(qonnx({}, weights="Quant"), tmp_path / "x.onnx")
    with pytest.raises(LoweringError, match=r"channel 0 has sizes 0 to 0\.125"):
        onnx_read.read(path)


def pairs(activation_zero: int = 0) -> onnx.ModelProto:
    """The same with the standard's QuantizeLinear and DequantizeLinear, weights in int8."""
    rng = np.random.default_rng(5)
    constants: dict[str, Any] = {
        "s": np.float32(0.25), "t": np.float32(0.125), "z": np.uint8(0),
        "a": np.uint8(activation_zero), "wz": np.zeros(4, np.int8),
        "w": rng.choice(np.array([-3, 3], np.int8), (4, 3, 3, 3)),
        "ws": rng.uniform(0.01, 0.02, 4).astype(np.float32),
        "v": rng.choice(np.array([-1, 1], np.int8), (5, 4, 1, 1)), "vs": np.float32(0.5),
        "hw": np.array([2, 3]),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Cast", ["x"], ["xf"], to=1), node("Mul", ["xf", "s"], ["xs"]),
        node("QuantizeLinear", ["xs", "s", "z"], ["xi"]),
        node("DequantizeLinear", ["xi", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
        node("DequantizeLinear", ["v", "vs"], ["vq"]),
        node("Conv", ["xq", "wq"], ["c"]), node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "t", "a"], ["ri"], "act"),
        node("DequantizeLinear", ["ri", "t", "a"], ["rq"]),
        node("GlobalAveragePool", ["rq"], ["g"]), node("Conv", ["g", "vq"], ["o"]),
        node("Squeeze", ["o", "hw"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_quantize_linear_and_its_inverse(tmp_path: Path) -> None:
    path = saved(pairs(), tmp_path / "x.onnx")
    graph = onnx_read.read(path)
    found = [(q.bits, q.zero, q.step) for q in graph.all(ir.Quantiser)]
    assert found == [(8, 0, 0.25), (8, 0, 0.125)]
    first, second = graph.all(ir.Conv)
    assert first.scale.shape == (4,) and float(second.scale) == 0.5
    assert_same_answers(graph, path, quantised=True)
    assert program_of(graph).activation_bits == 8


def test_quantize_linear_that_is_refused(tmp_path: Path) -> None:
    path = saved(pairs(activation_zero=9), tmp_path / "x.onnx")
    with pytest.raises(LoweringError, match="quantiser of a ReLU must start at 0, not at -9"):
        onnx_read.read(path)
    model = pairs()
    node_of(model, "act").input[1] = "s"
    with pytest.raises(LoweringError, match="its scale and zero point must be those of rq"):
        onnx_read.read(saved(model, path))
    model = pairs()
    next(n for n in model.graph.node if n.output[0] == "g").input[0] = "ri"
    with pytest.raises(LoweringError, match="a DequantizeLinear must follow it"):
        onnx_read.read(saved(model, path))


# -- NHWC, as tf2onnx writes it --------------------------------------------------------------------


def keras_like(pool_first: bool) -> onnx.ModelProto:
    """A block with its image, its skip and its head in NHWC."""
    rng = np.random.default_rng(1)
    weights = {
        "w0": rng.choice([-0.25, 0.25], (4, 3, 3, 3)), "w1": rng.choice([-0.5, 0.5], (8, 4, 3, 3)),
        "w2": rng.choice([-0.5, 0.5], (8, 8, 3, 3)), "w3": rng.choice([-0.5, 0.5], (8, 5)),
    }  # fmt: skip
    constants: dict[str, Any] = {name: w.astype(np.float32) for name, w in weights.items()}
    constants |= {
        "s0": np.array([0.02, 0.01, 0.03], np.float32),
        "b0": np.array([[[[-1.0, -2.0, -0.5]]]], np.float32),
        "s1": rng.uniform(0.5, 1, (1, 1, 1, 4)).astype(np.float32),
        "b1": rng.normal(size=4).astype(np.float32),
        "s2": rng.uniform(0.1, 0.2, (1, 8, 1, 1)).astype(np.float32),
        "b2": rng.normal(size=(8, 1, 1)).astype(np.float32),
        "b3": rng.normal(size=5).astype(np.float32),
        "pads": np.array([0, 0, 0, 0, 0, 0, 0, 4]),
        "conv pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "axes": np.array([1, 2]),
    }
    to_nchw, to_nhwc = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}
    node = helper.make_node
    nodes = [
        node("Mul", ["x", "s0"], ["x1"]), node("Add", ["x1", "b0"], ["x2"]),
        node("Transpose", ["x2"], ["x3"], **to_nchw),
        node("Conv", ["x3", "w0"], ["c0"], "first", auto_pad="SAME_UPPER"),
        node("Transpose", ["c0"], ["c0t"], **to_nhwc),
        node("Mul", ["c0t", "s1"], ["n1"]), node("Add", ["n1", "b1"], ["n2"]),
        node("Relu", ["n2"], ["a1"]), node("Transpose", ["a1"], ["a1t"], **to_nchw),
        node("Pad", ["a1t", "conv pads"], ["a1p"]),
        node("Conv", ["a1p", "w1"], ["c1"], strides=[2, 2]),
        node("Mul", ["c1", "s2"], ["m1"]), node("Sub", ["m1", "b2"], ["m2"]),
        node("Max", ["m2", "zero"], ["a2"]),
        node("Conv", ["a2", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        *(
            [
                node("AveragePool", ["c0"], ["p0"], **pool),
                node("Transpose", ["p0"], ["p1"], **to_nhwc),
                node("Pad", ["p1", "pads"], ["p2"]),
            ]
            if pool_first
            else [
                node("Pad", ["c0t", "pads"], ["p0"]),
                node("Transpose", ["p0"], ["p1"], **to_nchw),
                node("AveragePool", ["p1"], ["p1p"], **pool),
                node("Transpose", ["p1p"], ["p2"], **to_nhwc),
            ]
        ),
        node("Transpose", ["c2"], ["c2t"], **to_nhwc), node("Add", ["c2t", "p2"], ["r"]),
        node("Relu", ["r"], ["a3"]),
        node("ReduceMean", ["a3"], ["g"], axes=[1, 2], keepdims=0),
        node("MatMul", ["g", "w3"], ["h"]), node("Add", ["h", "b3"], ["y"]),
    ]  # fmt: skip
    constants["zero"] = np.float32(0)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tf2onnx",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 8, 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 15)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("pool_first", [True, False])
def test_nhwc_as_tf2onnx_writes_it(pool_first: bool, tmp_path: Path) -> None:
    path = saved(keras_like(pool_first), tmp_path / "keras.onnx")
    graph = onnx_read.read(path)
    assert graph.network == "keras" and graph.image.shape == (3, 8, 8)
    (pool,) = graph.all(ir.AvgPool)
    assert (pool.pads, pool.count_padding, pool.channels) == (Pads(0, 0, 1, 1), False, 8)
    assert [conv.pads for conv in graph.all(ir.Conv)][:2] == [Pads(1, 1, 1, 1), Pads(0, 0, 1, 1)]
    assert_same_answers(graph, path)
    assert program_of(graph, 4, random_images(0, 8, (3, 8, 8))).network == "keras"


def test_axes_that_are_moved_about() -> None:
    x = View("n", (4, 2, 3), 5)
    assert x.transposed([0, 2, 3, 1]).axes == NHWC
    assert x.transposed([0, 2, 3, 1]).reshaped([5, -1]).axes == ("N", "HWC")
    assert x.reshaped([0, 4, 6]).axes == ("N", "C", "HW")
    assert x.reshaped([5, 4, 6, 1]).reshaped([5, 4, 2, 3]).axes == NCHW
    assert x.unsqueezed([2, 5]).axes == ("N", "C", "", "H", "W", "")
    assert x.unsqueezed([2]).squeezed([2]).ordered() == x
    with pytest.raises(
        Refused, match=r"must not part an axis: \[5, 4, 2, 3\] to \[5, 2, 2, 2, 3\]"
    ):
        x.reshaped([5, 2, 2, 2, 3])
    with pytest.raises(Refused, match="must keep the size"):
        x.reshaped([5, 23])
    with pytest.raises(Refused, match=r"must read \(N, C, H, W\), not \(N, H, W, C\)"):
        x.transposed([0, 2, 3, 1]).ordered()
    with pytest.raises(Refused, match="squeeze axes of size 1"):
        x.squeezed([1])
    with pytest.raises(Refused, match="permute 4 axes"):
        x.transposed([0, 1, 2, 2])


# -- what is refused -------------------------------------------------------------------------------


def edited(change: Callable[[onnx.ModelProto], None], path: Path, **options: Any) -> Path:
    """Our own float export with something about it changed."""
    model = export_float.to_onnx(ir.build(random_checkpoint(0, bits=None, **options)))
    change(model)
    return saved(model, path)


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def constant_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def attribute(name: str, value: Any, node: str = "conv0/Conv") -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        found = node_of(model, node)
        kept = [a for a in found.attribute if a.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def operator(name: str, kind: str, **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = node_of(model, name)
        node.op_type = kind
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())

    return change


def constant(name: str, array: Any) -> Callable[[onnx.ModelProto], None]:
    return lambda model: constant_of(model, name).CopyFrom(
        numpy_helper.from_array(np.asarray(array), name)
    )


def test_all_that_cannot_be_lowered_is_named_at_once(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        constant("conv0.weight", np.linspace(0.1, 1, 4 * 27, dtype=np.float32).reshape(4, 3, 3, 3))(
            model
        )
        operator("stage1.block1.bn1.relu", "Sigmoid")(model)
        attribute("momentum", 0.5, "stage1.block1.bn2")(model)
        operator("stage2.block1.bn1.relu", "LeakyRelu", alpha=0.1)(model)
        constant("head.conv.weight", np.arange(80, dtype=np.float32).reshape(5, 16, 1, 1))(model)

    path = edited(change, tmp_path / "bad.onnx")
    with pytest.raises(LoweringError) as caught:
        onnx_read.read(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 4 nodes cannot be lowered"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "conv0/Conv (Conv)",
        "stage1.block1.bn1.relu (Sigmoid)",
        "stage2.block1.bn1.relu (LeakyRelu)",
        "head.conv/Conv (Conv)",
    ]
    for line in (lines[1], lines[4]):
        assert "weights must be 1-bit" in line and "channel 0 has sizes" in line
    assert "no integer form" in lines[2] and "no integer form" in lines[3]


def test_a_baseline_of_32_bits_is_refused_layer_by_layer(tmp_path: Path) -> None:
    path = edited(lambda model: None, tmp_path / "x.onnx", weights="32bit")
    with pytest.raises(LoweringError, match="8 nodes cannot be lowered") as caught:
        onnx_read.read(path)
    assert str(caught.value).count("its weights must be 1-bit") == 8


BN = "stage1.block1.bn1"
RELU = "stage1.block1.bn1.relu"
POOL = "stage2.block1.pool/AveragePool"
ADD = "stage1.block1.r"


def swapped(node: str, index: int, other: str) -> Callable[[onnx.ModelProto], None]:
    """Another value at one of a node's inputs."""

    def change(model: onnx.ModelProto) -> None:
        node_of(model, node).input[index] = other

    return change


def appended(*inputs: str, kind: str, **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    """One more operator, its answer the output."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(kind, inputs, ["end"], "end", **attributes))
        model.graph.output[0].name = "end"

    return change


def both(*changes: Callable[[onnx.ModelProto], None]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for each in changes:
            each(model)

    return change


def zero_channels(count: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([0, 0, 0, 0, 0, count, 0, 0]), "many")
        )
        node_of(model, "stage2.block1.pool").input[1] = "many"

    return change


def still(model: onnx.ModelProto) -> None:
    """An addend that a batch norm makes constant."""
    zeros = {"g": np.zeros(4), "b": np.zeros(4), "m": np.zeros(4), "v": np.ones(4)}
    for name, value in zeros.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    at = next(i for i, node in enumerate(model.graph.node) if node.name == ADD)
    norm = helper.make_node("BatchNormalization", ["stage1.block1.conv2", *zeros], ["still"])
    model.graph.node.insert(at, norm)
    node_of(model, ADD).input[1] = "still"


uncounted = attribute("count_include_pad", 0, POOL)

REFUSALS: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (attribute("dilations", [2, 2]), "conv0/Conv .Conv.: it must have no dilation"),
    (attribute("group", 3), "it must be one group"),
    (attribute("strides", [1, 2]), r"its stride must be the same in both directions, not \[1, 2"),
    (attribute("strides", [0, 0]), "its stride must be the same"),
    (attribute("pads", [1, 1, 1, -1]), "it must have 4 pads of at least 0"),
    (attribute("pads", "x"), "do not suit it|4 pads"),
    (attribute("training_mode", 1, BN), "must use its kept moments"),
    (constant(f"{BN}.variance", -np.ones(4, np.float32)), "variances must not be negative"),
    (
        constant(f"{BN}.mean", np.full(4, np.nan, np.float32)),
        "numbers must be finite, and below 1e.18",
    ),
    (constant(f"{BN}.mean", np.zeros(3, np.float32)), "it must have 4 channels"),
    (constant("conv0.weight", np.ones((4, 2, 3, 3), np.float32)), "must read 2 channels, not 3"),
    (constant("conv0.weight", np.ones((4, 3, 3, 1), np.float32)), r"must be \(C_out, C_in, K, K"),
    (constant("conv0.weight", np.full((4, 3, 3, 3), np.inf, np.float32)), "must be 1-bit"),
    (swapped("conv0/Conv", 1, BN), "nodes must stand after what they read"),
    (swapped("conv0/Conv", 1, "image"), "its weights must be constant"),
    (operator(RELU, "Elu"), r"\(Elu\): this operator has no integer form here"),
    (operator(RELU, "Identity"), "a convolution must read a ReLU or a quantiser, not batch norm"),
    (operator("stage1.block1.bn2.relu", "Softmax"), "it must be the last operator"),
    (
        operator(POOL, "MaxPool", kernel_shape=[3, 3]),
        r"\(MaxPool\): a maximum must read sums or activations, not addition stage1.block1.r",
    ),
    (attribute("kernel_shape", [2, 2], POOL), r"a pool must be 3x3 with stride 2, or global"),
    (attribute("strides", [1, 1], POOL), r"not \[3, 3\] with \[1, 1\]"),
    (both(attribute("pads", [2] * 4, POOL), uncounted), "must hold 9, 6 or 4 pixels"),
    (swapped(POOL, 0, "stage2.block1.bn1.relu"), "a pool must read the residual stream, not Relu"),
    (attribute("pads", [1 << 40] * 4, POOL), "must have at most 16,777,216 pixels"),
    (attribute("pads", [1 << 40] * 4), "must have at most 16,777,216 pixels"),
    (attribute("kernel_shape", [9, 9], POOL), "a pool must be 3x3"),
    (zero_channels(1 << 40), "zero channels must be at most 65,536"),
    (still, "it adds nothing but constants"),
    (operator(ADD, "Mul"), "two maps may only be added"),
    (swapped(ADD, 0, RELU), "an addition must join the residual stream"),
    (swapped(ADD, 1, "input.q"), "it must add maps of one shape"),
    (appended("scores", kind="Sigmoid"), r"end \(Sigmoid\)"),
    (appended("head.relu", kind="Flatten"), r"output end: scores must be \(N, classes\)"),
    (appended("head.mean", kind="Relu"), "a ReLU must not follow global mean"),
    (appended("stage1.block1.r", kind="GlobalAveragePool"), "must read activations or scores"),
    (appended("head.bn1", kind="ReduceMean", axes=[2]), "mean over H alone"),
    (appended("head.bn1", kind="ReduceMean", axes=[1]), "the mean must be over pixels"),
    (appended("image", "image", kind="Concat", axis=1), "must put constant zeros behind a map"),
    (appended("scores", kind="Cast", to=7), "maps must stay floats"),
    (appended("scores", kind="NotAnOperator", domain="my.own"), r"end \(my.own.NotAnOperator\)"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_refusals(change: Callable[[onnx.ModelProto], None], reason: str, tmp_path: Path) -> None:
    with pytest.raises(SignumError, match=reason):
        onnx_read.read(edited(change, tmp_path / "x.onnx"))


def test_an_exported_program_is_no_float_network(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    assert main(["export", str(DIGITS), "-o", str(path)]) == 0
    with pytest.raises(LoweringError, match=r"in integers already") as caught:
        networks.load(path)
    assert "compare" in caught.value.hint


# -- damaged and hostile files ---------------------------------------------------------------------


def small() -> onnx.ModelProto:
    return export_float.to_onnx(ir.build(random_checkpoint(0, width=1 / 8, bits=4)))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(CheckpointError, match="must be a file, and there is none"):
        onnx_read.read(path)
    for content in (b"", b"\x00", b"not a protobuf at all", os.urandom(1000), b"\x0a" * 4000):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"ONNX file|graph of operators"):
            onnx_read.read(path)


def test_files_that_end_early(tmp_path: Path) -> None:
    whole, path = small().SerializeToString(), tmp_path / "x.onnx"
    for size in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            onnx_read.read(path)


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(small(), tmp_path / "x.onnx")
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="must be at most 1,000 bytes"):
        onnx_read.read(path)


def test_opsets_that_are_unknown(tmp_path: Path) -> None:
    for version in (1, 10, 10_000):
        model = small()
        model.opset_import[0].version = version
        with pytest.raises(CheckpointError, match=rf"opset must be 11 to \d+, not {version}"):
            onnx_read.read(saved(model, tmp_path / "x.onnx"))


def test_cycles(tmp_path: Path) -> None:
    model = small()
    nodes = model.graph.node
    nodes[0].input[0] = nodes[3].output[0]
    with pytest.raises(CheckpointError, match="without a cycle, but it reads"):
        onnx_read.read(saved(model, tmp_path / "x.onnx"))


def test_values_made_twice_or_never(tmp_path: Path) -> None:
    model = small()
    model.graph.node[5].output[0] = model.graph.node[4].output[0]
    with pytest.raises(CheckpointError, match="values must be made once"):
        onnx_read.read(saved(model, tmp_path / "x.onnx"))
    model = small()
    model.graph.output[0].name = "nothing"
    with pytest.raises(CheckpointError, match="output 'nothing' must be made"):
        onnx_read.read(saved(model, tmp_path / "x.onnx"))
    model = small()
    node_of(model, "input.bn").input[1] = "nothing"
    with pytest.raises(CheckpointError, match="made before they are read, but it reads 'nothing'"):
        onnx_read.read(saved(model, tmp_path / "x.onnx"))


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([1 << 40], "must have 4,398,046,511,104 bytes"),
        ([1 << 31, 1 << 31, 1 << 31], "must have .* bytes"),
        ([-1], "must have a shape"),
        ([1] * 100, "must have a shape"),
        ([5], "of shape .5. must have 20 bytes"),
    ],
    ids=str,
)
def test_shapes_that_lie(dims: list[int], message: str, tmp_path: Path) -> None:
    model = small()
    tensor = constant_of(model, "input.bn.mean")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    with pytest.raises(CheckpointError, match=message):
        onnx_read.read(saved(model, tmp_path / "x.onnx"))
    values = [0.0] * 3
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values)
    with pytest.raises(CheckpointError, match="must have"):
        onnx_read.read(saved(model, tmp_path / "x.onnx"))


def test_types_that_numpy_has_not(tmp_path: Path) -> None:
    for kind in (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.INT4, 0, 99):
        model = small()
        constant_of(model, "input.bn.mean").data_type = kind
        with pytest.raises(CheckpointError, match="must be of a type that numpy has"):
            onnx_read.read(saved(model, tmp_path / "x.onnx"))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two gigabytes more than this process has: what asks for terabytes fails."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def bomb(*nodes: onnx.NodeProto, **constants: Any) -> onnx.ModelProto:
    """A small network with constants that grow, added to its scores."""
    model = small()
    model.graph.node.extend(nodes)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.node.append(helper.make_node("Add", ["scores", nodes[-1].output[0]], ["end"]))
    model.graph.output[0].name = "end"
    return model


def doubling(count: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=0) for i in range(count)
    ]


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "model",
    [
        bomb(helper.make_node("ConstantOfShape", ["a"], ["b"]), a=[1 << 40]),
        bomb(helper.make_node("ConstantOfShape", ["a"], ["b"]), a=[1 << 20] * 3),
        bomb(helper.make_node("Expand", ["a", "s"], ["b"]), a=np.ones(1, np.float32), s=[1 << 40]),
        bomb(
            helper.make_node("Mul", ["a", "c"], ["b"]),
            a=np.ones((1 << 14, 1), np.float32),
            c=np.ones(1 << 14, np.float32),
        ),
        bomb(*doubling(60), v0=np.ones(8, np.float32)),
        bomb(helper.make_node("Gather", ["a", "i"], ["b"]), a=np.ones((1, 1 << 16)), i=[0] * 5000),
    ],
    ids=["shape", "cube", "expand", "outer", "doubling", "gather"],
)
def test_constants_that_explode(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = saved(model, tmp_path / "x.onnx")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(LoweringError, match=r"do not suit it|too much work|no integer form"):
        onnx_read.read(path)


def test_much_work_in_small_pieces_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_fold, "MAX_WORK", 1 << 24)
    nodes = [helper.make_node("ConstantOfShape", ["a"], ["v0"])]
    nodes += [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(40)]
    path = saved(bomb(*nodes, a=[1 << 16]), tmp_path / "x.onnx")
    with pytest.raises(LoweringError, match="the constants of the file are too much work"):
        onnx_read.read(path)


def external(tmp_path: Path, location: str, **entries: str) -> Path:
    """A model that keeps one constant in another file."""
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    model = small()
    tensor = constant_of(model, "input.bn.mean")
    (folder / "data").write_bytes(b"\0" * 8 + tensor.raw_data)
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "x.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    path = external(tmp_path, "data", offset="8", length="12")
    expected = onnx_read.read(saved(small(), tmp_path / "whole.onnx"))
    assert program_of(onnx_read.read(path)).to_json() == program_of(expected).to_json()
    images = random_images(0, 2, expected.image.shape)
    (found,) = onnx_run.run(onnx_file.load_proto(path), images).values()
    (same,) = onnx_run.run(small(), images).values()
    np.testing.assert_array_equal(found, same)
    assert networks.whole_file(path) == networks.whole_file(path) != path.read_bytes()


@pytest.mark.parametrize(
    ("location", "entries", "message"),
    [
        ("../secret", {}, "must be a file in the model's folder, not '../secret'"),
        ("/etc/passwd", {}, "must be a file in the model's folder"),
        ("a/../../secret", {}, "must be a file in the model's folder"),
        ("link", {}, "must be a file in the model's folder"),
        ("", {}, "must be a file in the model's folder"),
        (".", {}, "must be a file in the model's folder"),
        ("no such file", {}, "must be a file in the model's folder"),
        ("data\0", {}, "must be a file in the model's folder"),
        ("data", {"offset": "9"}, "must lie within data, 20 bytes long, not at 9 to 21"),
        ("data", {"offset": "-4"}, "offset of constant .* must be a whole number, not '-4'"),
        ("data", {"offset": "1e3"}, "must be a whole number"),
        ("data", {"offset": "9" * 30}, "must be a whole number"),
        ("data", {"length": "8"}, "must have 12 bytes, not 8"),
    ],
)
def test_external_data_that_escapes(
    location: str, entries: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = external(tmp_path, location, **entries)
    if location == "link":
        (path.parent / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=message):
        onnx_read.read(path)


def test_inputs_that_are_no_image(tmp_path: Path) -> None:
    for shape in ([1, 3], ["N", 3, "H", "W"], ["N", 3, 1 << 20, 1 << 20], None):
        model = small()
        model.graph.input[0].CopyFrom(
            helper.make_tensor_value_info("image", TensorProto.UINT8, shape)
        )
        with pytest.raises(LoweringError, match="of fixed size, not"):
            onnx_read.read(saved(model, tmp_path / "x.onnx"))
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.UINT8, [1]))
    with pytest.raises(LoweringError, match="one input and one output, not 2 and 1"):
        onnx_read.read(saved(model, tmp_path / "x.onnx"))


def refused(path: Path) -> bool:
    """Whether a file is refused by an error of ours, or else read and lowered; nothing else."""
    try:
        program_of(onnx_read.read(path), 4)
    except SignumError:
        return True
    return False


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """Bytes changed, moved, repeated or lost, as a broken disk or a fuzzer does it."""
    data = bytearray(whole)
    for _ in range(rng.randint(1, 8)):
        at, size = rng.randrange(len(data)), rng.randint(1, 64)
        match rng.randrange(5):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case _:
                other = rng.randrange(len(data))
                data[at : at + size] = data[other : other + size]
        data = data or bytearray(b"\0")
    return bytes(data)


def scrambled(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """Fields of a well-formed file changed for others': what a parser lets through."""
    graph = model.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)] + [""]
    kinds = [node.op_type for node in graph.node] + ["If", "Loop", "Quant", "Shape", "Expand"]
    numbers = [0, 1, -1, 2, 3, 7, 255, 1 << 20, 1 << 40, -(1 << 63), (1 << 63) - 1]
    for _ in range(rng.randint(1, 4)):
        node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
        match rng.randrange(9):
            case 0 if node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice(names)
            case 1 if node.output:
                node.output[0] = rng.choice(names)
            case 2:
                node.op_type = rng.choice(kinds)
            case 3 if node.attribute:
                attribute = rng.choice(node.attribute)
                attribute.i, attribute.f = rng.choice(numbers), float(rng.choice(numbers))
                if attribute.ints:
                    attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(numbers)
            case 4 if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
            case 5:
                tensor.data_type = rng.randrange(25)
            case 6 if tensor.raw_data:
                raw = bytearray(tensor.raw_data)
                raw[rng.randrange(len(raw))] = rng.choice([0, 127, 128, 255])
                tensor.raw_data = bytes(raw)
            case 7:
                graph.node.insert(rng.randrange(len(graph.node)), node)
            case _:
                dim = rng.choice(graph.input[0].type.tensor_type.shape.dim)
                dim.dim_value = rng.choice(numbers)
    return model


def fuzzed(count: int, path: Path, seed: int) -> None:
    rng = random.Random(seed)
    models = [small(), keras_like(pool_first=True), qonnx({}), onnx.load(BREVITAS)]
    refusals = 0
    for i in range(count):
        model = models[i // 2 % len(models)]
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if i % 2:
            path.write_bytes(scrambled(copy, rng).SerializeToString())
        else:
            path.write_bytes(mutated(copy.SerializeToString(), rng))
        refusals += refused(path)
    assert count / 2 < refusals < count


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutated moments overflow
def test_mutated_files_end_in_one_clear_error(tmp_path: Path) -> None:
    fuzzed(300, tmp_path / "x.onnx", seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_ten_thousand_mutated_files(tmp_path: Path) -> None:
    fuzzed(10_000, tmp_path / "x.onnx", seed=int(os.environ.get("SIGNUM_SEED", "1")))


@given(data=st.binary(max_size=400))
@settings(max_examples=200)
def test_any_bytes_end_in_one_clear_error(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    with pytest.raises(SignumError):
        onnx_read.read(path)
