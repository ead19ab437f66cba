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
    ("depth", "width", "classes", "count"),
    [
        (8, 1, 10, 74_800),
        (14, 1, 10, 171_568),
        (20, 1, 10, 268_336),
        (20, 2, 10, 1_071_200),
        # The networks of the paper's tables: CIFAR-10 and SVHN, CIFAR-100, ImageNet32.
        (20, 4, 10, 4_280_512),
        (20, 10, 10, 26_737_120),
        (26, 10, 10, 36_413_920),
        (20, 4, 100, 4_303_552),
        (20, 10, 100, 26_794_720),
        (26, 10, 100, 36_471_520),
        (20, 20, 100, 107_042_240),
        (20, 4, 1000, 4_533_952),
        (20, 10, 1000, 27_370_720),
        (20, 15, 1000, 61_100_880),
        (26, 10, 1000, 37_047_520),
    ],
)
def test_number_of_weights(depth: int, width: int, classes: int, count: int) -> None:
    net = architecture(depth=depth, width=width, input=(3, 32, 32), classes=classes)
    assert net.num_weights == formula(depth, width, 3, classes) == count
    assert net.num_weights == sum(layer.num_weights for layer in layers(net.description))


def imagenet(**changes: object) -> Architecture:
    settings: dict[str, object] = {
        "depth": 18, "width": 2.5, "classes": 1000, "input": (3, 224, 224),
        "family": "wrn-imagenet",
    }  # fmt: skip
    return architecture(**(settings | changes))


def test_number_of_weights_of_the_imagenet_form() -> None:
    stages = sum(9 * (before * c + 3 * c * c) for before, c in ((160, 160), (160, 320)))
    stages += sum(9 * (before * c + 3 * c * c) for before, c in ((320, 640), (640, 1280)))
    assert imagenet().num_weights == 49 * 3 * 160 + stages + 1280 * 1000 == 69_962_720
    small = imagenet(width=0.1, classes=7)
    assert sum(p.numel() for p in Network(small).parameters()) == small.num_weights


def test_parameters_are_the_weights() -> None:
    net = architecture(depth=14, width=0.5)
    assert sum(p.numel() for p in Network(net).parameters()) == net.num_weights
    assert [net.channels(s) for s in (1, 2, 3)] == [8, 16, 32]
    assert [imagenet().channels(s) for s in (1, 2, 3, 4)] == [160, 320, 640, 1280]
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


@pytest.mark.parametrize(("weights", "axes"), [("bwn-channel", (1, 2, 3)), ("bwn-layer", None)])
def test_binary_weight_networks_scale_by_the_mean_magnitude(
    weights: str, axes: tuple[int, ...] | None
) -> None:
    layer = Convolution(3, 5, 3, 1, architecture(weights=weights))
    with torch.no_grad():
        layer.weight[1] *= 7
        layer.weight[2, 0, 0, 0] = 0
    w = layer.weight.detach().numpy()
    scale = np.abs(w).mean(axis=axes, keepdims=True)
    x, seed = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 6, 6)
    binary = torch.from_numpy(arith.sign(w) * scale).float().requires_grad_()
    torch.testing.assert_close(layer(x), F.conv2d(x, binary, padding=1))
    layer(x).backward(seed)
    F.conv2d(x, binary, padding=1).backward(seed)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, binary.grad)  # straight through, scale and all


@pytest.mark.parametrize(
    "form",
    [
        {"weights": "bwn-channel"},
        {"weights": "bwn-layer"},
        {"weights": "32bit"},
        {"skip": False},
        {"batch_norm": "none"},
    ],
    ids=str,
)
def test_only_the_papers_form_has_steps_to_align(form: dict[str, object]) -> None:
    assert Network(architecture(**form)).bounds == {}
    assert len(Network(architecture()).bounds) == 4


def test_shifted_relu_stands_for_batch_norm_and_relu() -> None:
    network = Network(architecture(batch_norm="none")).eval()
    norms = [n for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == ["input.bn"] and network.input.bn.affine
    block = network.get_submodule("stage1.block1")
    x = torch.randn(2, 16, 5, 5) * 3
    hidden = F.conv2d(x.clamp(min=-1), block.conv1.effective_weight(), padding=1)
    expected = x + F.conv2d(hidden.clamp(min=-1), block.conv2.effective_weight(), padding=1)
    torch.testing.assert_close(block(x), expected)
    last = torch.randn(2, 64, 3, 3)
    scores = F.conv2d(last.clamp(min=-1), network.head.conv.effective_weight()).mean((2, 3))
    torch.testing.assert_close(network.head(last), scores)


def test_imagenet_form() -> None:
    network = Network(imagenet(width=0.125, classes=7, input=(3, 64, 64))).eval()
    names = [n for n, m in network.named_modules() if isinstance(m, Convolution)]
    blocks = [f"stage{s}.block{k}" for s in (1, 2, 3, 4) for k in (1, 2)]
    assert names == ["conv0", *(f"{b}.conv{i}" for b in blocks for i in (1, 2)), "head.conv"]
    shapes = {}
    for name in ("conv0", "stem", "stage1", "stage2", "stage3", "stage4"):
        network.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: shapes.update({name: tuple(o.shape[1:])})
        )
    assert network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 7)
    assert shapes == {
        "conv0": (8, 32, 32), "stem": (8, 16, 16), "stage1": (8, 16, 16),
        "stage2": (16, 8, 8), "stage3": (32, 4, 4), "stage4": (64, 2, 2),
    }  # fmt: skip
    x = torch.randn(2, 8, 7, 6)
    norm = F.batch_norm(x, network.stem.bn.running_mean, network.stem.bn.running_var)
    torch.testing.assert_close(network.stem(x), F.max_pool2d(norm.relu(), 3, 2, 1))


def test_the_imagenet_forms_stream_begins_behind_the_stem() -> None:
    network = Network(imagenet(width=0.125))
    bounds = network.bounds
    assert next(iter(bounds)) == "stem.relu" and bounds["stem.relu"] == 1.0
    assert "input" not in bounds and len(bounds) == 1 + 8
    scale = network.get_submodule("stage4.block2.conv2").scale
    assert math.log2(bounds["stage4.block2.relu2"] / (scale * 9**3)).is_integer()  # three pools


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
    torch_, matlab, keras = (architecture(padding=p) for p in ("torch", "matlab", "keras"))
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
    assert network.bounds == {}
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
        ({"weights": "2bit"}, "weights must be one of 1bit, 32bit, bwn-channel, bwn-layer, not"),
        ({"batch_norm": "all"}, "batch_norm must be one of fixed, learned, none, not 'all'"),
        ({"family": "vgg"}, "family must be one of wrn, wrn-imagenet, not 'vgg'"),
        ({"family": "wrn-imagenet"}, "depth must be 8n"),
        ({"padding": "same"}, "padding must be one of torch, matlab, keras, not 'same'"),
        ({"activation_bits": 1}, "activation bits must be 2 .. 8, not 1"),
        ({"activation_bits": 9}, "activation bits must be 2 .. 8, not 9"),
    ],
)
def test_illegal_architectures(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        architecture(**wrong)
