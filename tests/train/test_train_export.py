"""Checkpoints: the schema, the way back, and a second implementation of what they describe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import train
from compiler.checkpoint import load, save
from compiler.datasets import read_digits
from compiler.errors import CheckpointError
from compiler.steps import choose_steps
from train.export import checkpoint_of, network_of
from train.network import Architecture, Network
from train.quantiser import observe

Float = NDArray[np.float64]


def trained(seed: int = 0, size: tuple[int, int] = (8, 8), **changes: Any) -> Network:
    """A network with random weights, moments of noise images, chosen steps, random BN scales."""
    torch.manual_seed(seed)
    settings = {"depth": 8, "width": 0.5, "classes": 5, "activation_bits": 4} | changes
    network = Network(Architecture(input=(2, *size), **settings)).train()
    images = torch.randint(256, (30, 2, *size), dtype=torch.uint8)
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.affine):
        torch.nn.init.uniform_(norm.weight, -1, 2)
        torch.nn.init.normal_(norm.bias)
    if network.architecture.activation_bits is not None:
        network.steps = choose_steps(observe(network, [images], network.bounds))
    with torch.no_grad():
        for _ in range(3):
            network(images)
    return network.eval()


# -- the second implementation: float64, numpy, from the dictionary and its documentation alone ----


def same(n: int, stride: int, kernel: int) -> tuple[int, int]:
    total = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
    return total // 2, total - total // 2


def padded(x: Float, stride: int, padding: str, kernel: int = 3, value: float = 0) -> Float:
    if kernel == 1:
        return x
    half = kernel // 2, kernel // 2
    rows = same(x.shape[2], stride, kernel) if padding == "keras" else half
    columns = same(x.shape[3], stride, kernel) if padding == "keras" else half
    return np.pad(x, ((0, 0), (0, 0), rows, columns), constant_values=value)


def windows(x: Float, kernel: int, stride: int) -> Float:
    """(N, C, H, W) to (N, C, H_out, W_out, K, K)."""
    view = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
    return view[:, :, ::stride, ::stride]


def reference(checkpoint: dict[str, Any], images: NDArray[np.uint8]) -> Float:
    """Scores that the documentation of the file format says the network has."""
    net = checkpoint["network"]
    tensors = {k: v.numpy() for k, v in checkpoint["tensors"].items()}
    quantiser = checkpoint["quantiser"]

    def bn(x: Float, name: str) -> Float:
        if net["batch_norm"] == "none" and name != "input.bn":
            return x
        mean, variance = (tensors[f"{name}.{k}"].astype(float) for k in ("mean", "variance"))
        y = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + net["epsilon"])
        if f"{name}.gamma" not in tensors:
            return y
        gamma, beta = (tensors[f"{name}.{k}"].astype(float) for k in ("gamma", "beta"))
        return y * gamma[:, None, None] + beta[:, None, None]

    def conv(x: Float, name: str, c_out: int, kernel: int, stride: int = 1) -> Float:
        weight = tensors[f"{name}.weight"]
        if net["weights"] == "1bit":
            shape = (c_out, x.shape[1], kernel, kernel)
            bits = np.unpackbits(weight)
            assert not bits[math.prod(shape) :].any()
            signs = 2.0 * bits[: math.prod(shape)].reshape(shape) - 1
            weight = signs * tensors[f"{name}.scale"].reshape(-1, 1, 1, 1)
        taps = windows(padded(x, stride, net["padding"], kernel), kernel, stride)
        return np.einsum("nchwij,ocij->nohw", taps, weight.astype(float))

    def relu(x: Float, name: str) -> Float:
        shifted = net["batch_norm"] == "none"
        if quantiser is None:
            return np.maximum(x, -1 if shifted else 0)
        step, top = quantiser["steps"][name], 2 ** quantiser["activation_bits"] - 1
        zero = round(1 / step) if shifted else 0
        return np.clip(np.floor(x / step + 0.5), -zero, top - zero) * step

    def skip(x: Float, c_out: int) -> Float:
        total = windows(padded(x, 2, net["padding"]), 3, 2).sum((4, 5))
        count = windows(padded(np.ones_like(x), 2, net["padding"]), 3, 2).sum((4, 5))
        mean = total / (9 if net["padding"] == "torch" else count)
        return np.pad(mean, ((0, 0), (0, c_out - x.shape[1]), (0, 0), (0, 0)))

    x = bn(images.astype(float), "input.bn")
    if quantiser is not None:
        low, high = (0, 255) if net["input_relu"] else (-128, 127)
        step = quantiser["steps"]["input"]
        x = np.clip(np.floor(x / step + 0.5), low, high) * step
    elif net["input_relu"]:
        x = np.maximum(x, 0)
    imagenet = net["family"] == "wrn-imagenet"
    stages, first = (4, 64) if imagenet else (3, 16)
    channels = [round(first * net["width"] * 2**s) for s in range(stages)]
    if imagenet:
        x = relu(bn(conv(x, "conv0", channels[0], 7, 2), "stem.bn"), "stem.relu")
        x = windows(padded(x, 2, net["padding"], value=-math.inf), 3, 2).max((4, 5))
    else:
        x = conv(x, "conv0", channels[0], 3)
    for s, c_out in enumerate(channels, 1):
        for k in range(1, (net["depth"] - 2) // (2 * stages) + 1):
            name, stride = f"stage{s}.block{k}", 2 if s > 1 and k == 1 else 1
            y = relu(bn(x, f"{name}.bn1"), f"{name}.relu1")
            y = relu(bn(conv(y, f"{name}.conv1", c_out, 3, stride), f"{name}.bn2"), f"{name}.relu2")
            y = conv(y, f"{name}.conv2", c_out, 3)
            x = y + (skip(x, c_out) if stride == 2 else x) if net["skip"] else y
    y = conv(relu(bn(x, "head.bn1"), "head.relu"), "head.conv", net["classes"], 1)
    return bn(y, "head.bn2").mean((2, 3))


IMAGENET = {"family": "wrn-imagenet", "depth": 10, "width": 1 / 16, "size": (36, 34)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"padding": "matlab"},
        {"padding": "keras"},
        {"padding": "keras", "size": (7, 6)},
        {"padding": "matlab", "size": (9, 6)},
        {"padding": "torch", "size": (7, 10)},
        {"depth": 14, "width": 0.8},
        {"activation_bits": 2},
        {"activation_bits": None},
        {"activation_bits": None, "input_relu": True, "weights": "32bit"},
        {"batch_norm": "learned", "epsilon": 1e-3},
        {"input_relu": True},
        {"skip": False},
        {"weights": "bwn-channel"},
        {"weights": "bwn-layer", "batch_norm": "learned"},
        {
            "batch_norm": "none",
            "weights": "bwn-layer",
        },  # the paper's scales would tie at half steps
        {"batch_norm": "none", "activation_bits": None, "skip": False},
        IMAGENET,
        IMAGENET | {"padding": "keras", "size": (31, 34), "batch_norm": "learned"},
        IMAGENET | {"padding": "matlab", "batch_norm": "none", "activation_bits": None},
        IMAGENET | {"activation_bits": None, "skip": False},
    ],
    ids=str,
)
def test_checkpoint_describes_the_network(changes: dict[str, Any], tmp_path: Path) -> None:
    network = trained(**changes)
    shape = (12, *network.architecture.input)
    images = torch.randint(256, shape, dtype=torch.uint8)
    save(tmp_path / "x.pt", checkpoint_of(network, {}))
    checkpoint = torch.load(tmp_path / "x.pt", weights_only=True)
    expected = reference(checkpoint, images.numpy())
    with torch.no_grad():
        got = network.double()(images).numpy()
        again = network_of(load(tmp_path / "x.pt")).double()(images).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.01


def test_schema(tmp_path: Path) -> None:
    save(tmp_path / "x.pt", checkpoint_of(trained(width=1), {"dataset": "noise", "epochs": 0}))
    checkpoint = torch.load(tmp_path / "x.pt", weights_only=True)
    assert checkpoint["format"] == "signum-checkpoint" and checkpoint["version"] == 1
    assert checkpoint["training"] == {"dataset": "noise", "epochs": 0}
    assert checkpoint["network"] == {
        "family": "wrn", "depth": 8, "width": 1, "classes": 5, "input": [2, 8, 8],
        "weights": "1bit", "batch_norm": "fixed", "input_relu": False, "skip": True,
        "epsilon": 1e-5, "padding": "torch",
    }  # fmt: skip
    assert checkpoint["quantiser"]["activation_bits"] == 4
    blocks = [f"stage{s}.block1.relu{i}" for s in (1, 2, 3) for i in (1, 2)]
    assert list(checkpoint["quantiser"]["steps"]) == ["input", *blocks, "head.relu"]
    tensors = checkpoint["tensors"]
    assert len(tensors) == 8 * 2 + 9 * 2
    assert tensors["conv0.weight"].dtype == torch.uint8
    assert tensors["conv0.weight"].shape == (16 * 2 * 9 // 8,)
    assert tensors["conv0.scale"].dtype == torch.float64 and tensors["conv0.scale"].shape == ()
    assert float(tensors["conv0.scale"]) == math.sqrt(2 / 18)
    assert tensors["input.bn.mean"].dtype == torch.float32
    assert tensors["head.bn2.variance"].shape == (5,)


def test_float_activations_have_no_quantiser() -> None:
    assert checkpoint_of(trained(activation_bits=None), {}).quantiser is None


def test_signs_are_those_of_the_weights_in_their_order() -> None:
    network = trained()
    layer = network.get_submodule("stage2.block1.conv1")
    assert isinstance(layer.weight, torch.nn.Parameter)
    with torch.no_grad():
        layer.weight[1, 2, 0, 1] = 0.0
    signs = checkpoint_of(network, {}).tensors["stage2.block1.conv1.weight"]
    assert signs.dtype == np.int8 and signs[1, 2, 0, 1] == 1
    assert np.array_equal(signs, np.where(layer.weight.detach().numpy() >= 0, 1, -1))


def test_a_checkpoint_is_a_copy() -> None:
    network = trained()
    checkpoint = checkpoint_of(network, {})
    before = checkpoint.tensors["head.bn1.mean"].copy()
    network.head.bn1.running_mean.fill_(7)
    assert np.array_equal(checkpoint.tensors["head.bn1.mean"], before)


def test_unaligned_steps_are_refused() -> None:
    network = trained()
    assert network.steps is not None
    network.steps = network.steps | {"stage2.block1.relu2": 0.2}
    with pytest.raises(CheckpointError, match=r"step of stage2.block1.relu2 must be aligned"):
        checkpoint_of(network, {})


def test_diverged_networks_are_refused() -> None:
    network = trained()
    network.head.bn1.running_var[0] = math.nan
    with pytest.raises(CheckpointError, match=r"head.bn1.variance must be finite"):
        checkpoint_of(network, {})


@pytest.mark.parametrize(("weights", "shape"), [("bwn-channel", (4,)), ("bwn-layer", ())])
def test_binary_weight_networks_keep_the_scales_they_ended_with(
    weights: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    network = trained(weights=weights, width=0.25)
    layer = network.get_submodule("stage1.block1.conv1")
    magnitude = np.abs(layer.weight.detach().numpy().astype(float))
    save(tmp_path / "x.pt", checkpoint_of(network, {}))
    tensors = load(tmp_path / "x.pt").tensors
    scale = tensors["stage1.block1.conv1.scale"]
    assert scale.shape == shape
    np.testing.assert_allclose(scale, magnitude.mean(axis=(1, 2, 3) if shape else None), rtol=1e-6)
    again = checkpoint_of(network_of(load(tmp_path / "x.pt")), {}).tensors
    for name in tensors:
        assert np.array_equal(again[name], tensors[name]), name


def test_the_zoos_digits_are_as_good_as_their_card_says() -> None:
    path = Path(train.__file__).parent / "zoo" / "digits-wrn8-1-a4.pt"
    digits = read_digits()
    scores = reference(torch.load(path, weights_only=True), digits.test_images)
    correct = int((scores.argmax(1) == digits.test_labels).sum())
    assert correct == 355
    assert f"{correct / 360:.2%}" in path.with_suffix(".md").read_text()
    with torch.no_grad():
        got = network_of(load(path)).double()(torch.from_numpy(digits.test_images))
    np.testing.assert_allclose(got.numpy(), scores, rtol=0, atol=1e-6)
