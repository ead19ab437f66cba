"""The float Graph against an independent network of torch's own functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compiler import graph as ir
from compiler.arith import Pads
from compiler.checkpoint import Checkpoint, blocks
from compiler.errors import LoweringError
from compiler.graph import Graph, build
from tests.support.networks import random_checkpoint, random_images


class Reference:
    """The network of docs/checkpoint.md in float64 by torch, sharing no code with `graph`."""

    def __init__(self, checkpoint: Checkpoint, quantised: bool) -> None:
        self.t = {k: torch.from_numpy(v).double() for k, v in checkpoint.tensors.items()}
        self.network = checkpoint.network
        self.quantiser = checkpoint.quantiser if quantised else None

    def norm(self, name: str, x: Tensor) -> Tensor:
        t = self.t
        affine = t.get(f"{name}.gamma"), t.get(f"{name}.beta")
        moments = t[f"{name}.mean"], t[f"{name}.variance"]
        return F.batch_norm(x, *moments, *affine, eps=self.network.epsilon)

    def quantise(self, name: str, x: Tensor, low: int, high: int) -> Tensor:
        if self.quantiser is None:
            return x
        step = self.quantiser.steps[name]
        return torch.clamp(torch.floor(x / step + 0.5), low, high) * step

    def relu(self, bn: str, name: str, x: Tensor) -> Tensor:
        top = (1 << self.quantiser.activation_bits) - 1 if self.quantiser else 0
        return self.quantise(name, F.relu(self.norm(bn, x)), 0, top)

    def pad(self, x: Tensor, stride: int) -> Tensor:
        if self.network.padding != "keras":
            return F.pad(x, (1, 1, 1, 1))
        near = [1 if n % 2 or stride == 1 else 0 for n in x.shape[:1:-1]]
        return F.pad(x, (near[0], 1, near[1], 1))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.t[f"{name}.weight"]
        scale = self.t.get(f"{name}.scale", torch.ones(()))
        weight = weight * scale.expand(len(weight)).view(-1, 1, 1, 1)
        return F.conv2d(self.pad(x, stride) if weight.shape[-1] == 3 else x, weight, stride=stride)

    def shrink(self, x: Tensor, channels: int) -> Tensor:
        total = F.avg_pool2d(self.pad(x, 2), 3, 2, divisor_override=1)
        count = F.avg_pool2d(self.pad(torch.ones_like(x), 2), 3, 2, divisor_override=1)
        mean = total / (9 if self.network.padding == "torch" else count)
        return F.pad(mean, (0, 0, 0, 0, 0, channels - x.shape[1]))

    def __call__(self, images: Tensor) -> Tensor:
        x = self.norm("input.bn", images.double())
        relu = self.network.input_relu
        x = F.relu(x) if relu else x
        x = self.quantise("input", x, *((0, 255) if relu else (-128, 127)))
        x = self.conv("conv0", x)
        for block, _, channels, stride in blocks(self.network):
            y = self.conv(f"{block}.conv1", self.relu(f"{block}.bn1", f"{block}.relu1", x), stride)
            y = self.conv(f"{block}.conv2", self.relu(f"{block}.bn2", f"{block}.relu2", y))
            if not self.network.skip:
                x = y
            else:
                x = y + (x if stride == 1 else self.shrink(x, channels))
        x = self.conv("head.conv", self.relu("head.bn1", "head.relu", x))
        return self.norm("head.bn2", x).mean((2, 3))


NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "deep": {"depth": 14, "bits": 3},
    "learned": {"learned": True, "input_relu": True},
    "plain": {"skip": False},
    "channel scales": {"channel_scales": True},
    "32bit": {"weights": "32bit", "bits": None},
    "matlab even": {"padding": "matlab"},
    "matlab odd": {"padding": "matlab", "shape": (1, 9, 11)},
    "keras even": {"padding": "keras"},
    "keras odd": {"padding": "keras", "shape": (2, 9, 7)},
    "torch odd": {"shape": (2, 7, 10)},
}


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_graph_equals_torch(name: str, quantised: bool) -> None:
    checkpoint = random_checkpoint(2, **NETWORKS[name])
    images = random_images(3, 40, checkpoint.network.input)  # more than one chunk
    want = Reference(checkpoint, quantised)(torch.from_numpy(images)).numpy()
    got = ir.scores(build(checkpoint), images, quantised)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_run_gives_the_nodes_asked_for() -> None:
    graph = build(random_checkpoint(0))
    images = random_images(0, 3, (3, 8, 8))
    got = ir.run(graph, images, names=["image", "stage2.block1.pool"])
    assert got.keys() == {"image", "stage2.block1.pool", graph.output}
    assert (got["image"] == images).all()
    assert got["stage2.block1.pool"].shape == (3, *graph.shapes["stage2.block1.pool"])


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 8, 8), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 1, 8, 8), np.uint8),
        np.zeros((0, 3, 8, 8), np.uint8),
    ],
)
def test_run_refuses_other_images(images: Any) -> None:
    with pytest.raises(LoweringError, match="images must be"):
        ir.run(build(random_checkpoint(0)), images)


# -- rules of the form -----------------------------------------------------------------------------

SIGNS = np.ones((2, 1, 3, 3), np.int8)
IMAGE = ir.Input("image", (1, 4, 4))
CONV = ir.Conv("conv", "image", SIGNS, np.float64(1.0), 1, Pads(1, 1, 1, 1))
MEAN = ir.GlobalMean("mean", "conv")
ONE = np.ones(1)

BROKEN = {
    "names of a graph's nodes must be unique": (IMAGE, CONV, CONV, MEAN),
    "first node must be the image": (CONV, MEAN),
    "must have one input": (IMAGE, replace(IMAGE, name="second"), CONV, MEAN),
    "conv: image2 must stand before": (IMAGE, replace(CONV, source="image2"), MEAN),
    "idle: a graph must have one output": (IMAGE, CONV, replace(MEAN, name="idle"), MEAN),
    "mean: scores must have shape": (IMAGE, replace(MEAN, source="image")),
    "convolution must read 1 channels, not 2": (
        IMAGE,
        replace(CONV, weights=np.ones((2, 2, 3, 3), np.int8)),
        MEAN,
    ),
    "scale must be": (IMAGE, replace(CONV, scale=np.ones(3)), MEAN),
    "kernel must be square": (IMAGE, replace(CONV, weights=np.ones((2, 1, 1, 3), np.int8)), MEAN),
    "must not be smaller than the kernel": (
        IMAGE,
        replace(CONV, weights=np.ones((2, 1, 7, 7), np.int8), pads=Pads(1, 1, 1, 1)),
        MEAN,
    ),
    "batch norm must have 2 channels": (
        IMAGE,
        CONV,
        ir.BatchNorm("bn", "conv", ONE, ONE, ONE, ONE, 0.0),
        replace(MEAN, source="bn"),
    ),
    "shapes must agree": (
        IMAGE,
        CONV,
        ir.Add("add", "conv", "image"),
        replace(MEAN, source="add"),
    ),
    "channels must be at least 2": (
        IMAGE,
        CONV,
        ir.AvgPool("pool", "conv", Pads(1, 1, 1, 1), True, 1),
        replace(MEAN, source="pool"),
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_graph_is_refused_by_name(message: str) -> None:
    assert Graph("sound", (IMAGE, CONV, MEAN), ("0", "1")).shapes["mean"] == (2, 1, 1)
    with pytest.raises(LoweringError, match=message):
        Graph("broken", BROKEN[message], ("0", "1"))
