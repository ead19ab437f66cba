"""The network: sizes, names, one-bit weights, padding conventions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compiler import arith
from compiler.checkpoint import batch_norms, layers
from compiler.errors import UsageError
from train.network import Architecture, Binarise, Convolution, Network, shrink


def architecture(**changes: object) -> Architecture:
    settings: dict[str, object] = {"depth": 8, "width": 1, "classes": 10, "input": (1, 8, 8)}
    return Architecture(**(settings | changes))  # type: ignore[arg-type]


def formula(depth: int, k: int, inputs: int, classes: int) -> int:
    n = (depth - 2) // 6
    stages = sum(
        9 * c * before + (2 * n - 1) * 9 * c * c
        for before, c in ((16 * k, 16 * k), (16 * k, 32 * k), (32 * k, 64 * k))
    )
    return 9 * inputs * 16 * k + stages + 64 * k * classes


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(20, 1, "0.268"), (20, 2, "1.071"), (20, 4, "4.281"), (20, 10, "26.737"), (26, 10, "36.414")],
)
def test_number_of_weights(depth: int, width: int, millions: str) -> None:
    net = architecture(depth=depth, width=width, input=(3, 32, 32))
    assert net.num_weights == formula(depth, width, 3, 10)
    assert f"{net.num_weights / 1e6:.3f}" == millions


def test_parameters_are_the_weights() -> None:
    net = architecture(depth=14, width=0.5)
    assert sum(p.numel() for p in Network(net).parameters()) == net.num_weights
    assert [net.channels(s) for s in (1, 2, 3)] == [8, 16, 32]
    assert [architecture(width=1.3).channels(s) for s in (1, 2, 3)] == [21, 42, 83]


def test_names_in_order_of_the_flow() -> None:
    network = Network(architecture(depth=14))
    names = [n for n, m in network.named_modules() if isinstance(m, Convolution)]
    blocks = [f"stage{s}.block{k}" for s in (1, 2, 3) for k in (1, 2)]
    assert names == ["conv0", *(f"{b}.conv{i}" for b in blocks for i in (1, 2)), "head.conv"]
    assert names == [layer.name for layer in layers(network.architecture.description)]
    norms = [n for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == list(batch_norms(network.architecture.description))
    assert norms[:3] == ["input.bn", "stage1.block1.bn1", "stage1.block1.bn2"]


@pytest.mark.parametrize(("skip", "gain"), [(True, 2.0), (False, 4.0)])
def test_scale_of_each_layer(skip: bool, gain: float) -> None:
    network = Network(architecture(depth=14, input=(3, 8, 8), skip=skip))
    for described in layers(network.architecture.description):
        layer = network.get_submodule(described.name)
        assert isinstance(layer, Convolution)
        scale = math.sqrt(gain / (described.kernel**2 * described.c_in))
        assert layer.scale == pytest.approx(scale, rel=1e-15)
        kernel = described.kernel
        assert tuple(layer.weight.shape) == (described.c_out, described.c_in, kernel, kernel)
        if layer.weight.numel() > 4000:
            assert float(layer.weight.detach().std()) == pytest.approx(scale, rel=0.05)


def test_scale_multiplies_the_weights() -> None:
    layer = Convolution(3, 5, 3, 1, architecture())
    x = torch.randn(2, 3, 6, 6)
    signs = torch.from_numpy(arith.sign(layer.weight.detach().numpy())).float()
    expected = F.conv2d(x, signs, padding=1) * math.sqrt(2 / 27)
    torch.testing.assert_close(layer(x), expected)


def test_sign_of_zero_is_plus_one() -> None:
    weight = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3.0, -3.0])
    binary = Binarise.apply(weight, 0.25)
    assert binary.tolist() == [0.25, 0.25, 0.25, -0.25, 0.25, -0.25]
    assert np.array_equal(binary.numpy() / 0.25, arith.sign(weight.numpy()))


def test_gradient_passes_the_sign_unchanged() -> None:
    layer = Convolution(2, 3, 3, 1, architecture())
    x, seed = torch.randn(4, 2, 5, 5), torch.randn(4, 3, 5, 5)
    layer(x).backward(seed)
    binary = Binarise.apply(layer.weight.detach(), layer.scale).requires_grad_()
    F.conv2d(x, binary, padding=1).backward(seed)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, binary.grad)


def test_weights_of_32_bits_are_used_as_they_are() -> None:
    layer = Convolution(2, 3, 1, 1, architecture(weights="32bit"))
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight))


@pytest.mark.parametrize(
    ("batch_norm", "input_relu", "learned"),
    [("fixed", False, []), ("fixed", True, ["input.bn"]), ("learned", False, None)],
)
def test_which_batch_norms_learn(
    batch_norm: str, input_relu: bool, learned: list[str] | None
) -> None:
    network = Network(architecture(batch_norm=batch_norm, input_relu=input_relu))
    norms = {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    expected = list(norms) if learned is None else learned
    assert [n for n, m in norms.items() if m.affine] == expected
    assert network.input.signed is not input_relu


def test_skip_averages_and_appends_zero_channels() -> None:
    x = torch.ones(1, 2, 4, 4)
    torch_, matlab, keras = (
        architecture(padding=p).description for p in ("torch", "matlab", "keras")
    )
    counted, not_counted = shrink(x, 3, torch_), shrink(x, 3, matlab)
    assert counted[0, 0].flatten().tolist() == pytest.approx([4 / 9, 6 / 9, 6 / 9, 1])
    assert not_counted[0, :2].flatten().tolist() == [1.0] * 8
    assert float(counted[0, 2].abs().sum()) == 0
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert shrink(ramp, 1, keras)[0, 0, 0].tolist() == [1.0, 2.5]  # columns 0..2 and 2..3


@pytest.mark.parametrize("padding", ["torch", "matlab", "keras"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (28, 28)])
def test_maps_halve_upwards(padding: str, size: tuple[int, int]) -> None:
    network = Network(architecture(padding=padding, input=(1, *size))).eval()
    shapes = {}
    for stage in (1, 2, 3):
        layer = network.get_submodule(f"stage{stage}")
        layer.register_forward_hook(
            lambda m, i, o, stage=stage: shapes.update({stage: tuple(o.shape[-2:])})
        )
    assert network(torch.zeros(2, 1, *size, dtype=torch.uint8)).shape == (2, 10)
    half = (-(-size[0] // 2), -(-size[1] // 2))
    assert shapes == {1: size, 2: half, 3: (-(-half[0] // 2), -(-half[1] // 2))}


def test_plain_network_has_no_skip_and_no_alignment() -> None:
    network = Network(architecture(skip=False))
    assert network.addends == {}
    block = network.get_submodule("stage1.block1").eval()
    with torch.no_grad():
        network.get_submodule("stage1.block1.conv2").scale = 0.0
        assert float(block(torch.randn(1, 16, 4, 4)).abs().max()) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 10}, "depth must be 6n"),
        ({"depth": 2}, "depth must be 6n"),
        ({"width": 0}, "width must be a positive"),
        ({"weights": "2bit"}, "weights must be one of 1bit, 32bit, not '2bit'"),
        ({"padding": "same"}, "padding must be one of torch, matlab, keras, not 'same'"),
        ({"activation_bits": 1}, "activation bits must be 2 .. 8, not 1"),
        ({"activation_bits": 9}, "activation bits must be 2 .. 8, not 9"),
    ],
)
def test_illegal_architectures(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        architecture(**wrong)
