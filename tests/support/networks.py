"""Random networks whose activations are alive: what tests of every package run.

`random_checkpoint` draws weights and takes batch norm's moments, and the quantisers' steps, from
random images run through the network, as training would leave them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from compiler import graph as ir
from compiler.arith import Pads, conv_scale
from compiler.calibrate import calibrate
from compiler.checkpoint import (
    Checkpoint,
    Network,
    Quantiser,
    Tensors,
    batch_norms,
    has_learned_affine,
    layers,
    validate,
)
from compiler.lower import lower
from compiler.program import Program

Padding = Literal["torch", "matlab", "keras"]

PROGRAM_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 1000),
    "shape": st.tuples(st.integers(1, 4), st.integers(6, 11), st.integers(6, 11)),
    "width": st.sampled_from([1 / 16, 0.2, 0.35]),
    "padding": st.sampled_from(["torch", "matlab", "keras"]),
    "bits": st.integers(2, 8),
    "learned": st.booleans(),
    "channel_scales": st.booleans(),
    "skip": st.booleans(),
    "input_relu": st.booleans(),
    "residual_bits": st.sampled_from([None, 16, 7]),
    "saturated": st.sampled_from([None, 3, 5]),
}
"""What hypothesis draws for `random_program`, and how narrow (bits) a stream is to saturate."""


def random_images(seed: int, count: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(N, C, H, W) uint8: noise on a random level, with pixels at both ends of the range."""
    rng = np.random.default_rng([seed, 1])
    level = rng.integers(0, 256, (count, shape[0], 1, 1))
    noise = rng.normal(0, 60, (count, *shape))
    return np.clip(np.rint(level + noise), 0, 255).astype(np.uint8)


def random_checkpoint(
    seed: int = 0,
    depth: int = 8,
    width: float = 0.25,
    shape: tuple[int, int, int] = (3, 8, 8),
    classes: int = 5,
    padding: Padding = "torch",
    bits: int | None = 4,
    *,
    learned: bool = False,
    input_relu: bool = False,
    skip: bool = True,
    channel_scales: bool = False,
    weights: Literal["1bit", "32bit"] = "1bit",
) -> Checkpoint:
    """A well-scaled random network.

    Parameters
    ----------
    shape : (channels, height, width)
        Of the image.
    bits : int or None
        Activation bits; None for a checkpoint with float activations (no steps).
    learned : bool
        Batch norms with gamma and beta, some gammas negative and one in eight 0.
    channel_scales : bool
        A scale for each output channel, as in BWN: additions that no shift aligns.
    """
    network = Network(
        depth,
        width,
        classes,
        shape,
        weights=weights,
        batch_norm="learned" if learned else "fixed",
        input_relu=input_relu,
        skip=skip,
        padding=padding,
    )
    rng = np.random.default_rng([seed, 0])
    tensors = _weights(rng, network, channel_scales) | _affines(rng, network)
    images = random_images(seed, 32, shape)
    checkpoint = Checkpoint(network, tensors, None, {"seed": seed})
    graph = _with_moments(checkpoint, images)
    if bits is None:
        return validate(checkpoint)
    calibrated = calibrate(graph, bits, images)
    steps = {q.name.removesuffix(".q"): float(q.step or 0) for q in calibrated.all(ir.Quantiser)}
    return validate(replace(checkpoint, quantiser=Quantiser(bits, steps)))


def random_vgg(
    seed: int = 0,
    shape: tuple[int, int, int] = (3, 8, 8),
    channels: tuple[int, ...] = (6, 10),
    dense: tuple[int, ...] = (12, 5),
    bits: int | None = 4,
    *,
    pool: tuple[int, int, Pads] = (2, 2, Pads(0, 0, 0, 0)),
    pool_first: bool = True,
) -> ir.Graph:
    """A plain network in the manner of VGG and BinaryConnect, steps chosen from random images.

    Parameters
    ----------
    channels : of each stage: two 3x3 convolutions, and a maximum behind the second
    dense : outputs of the fully connected layers; the first reads the whole last map
    pool : (kernel, stride, pads) of the maxima
    pool_first : bool
        The maximum stands before the batch norm (some of whose scales are negative), else behind
        the ReLU.
    """
    rng = np.random.default_rng([seed, 4])
    images = random_images(seed, 32, shape)
    nodes: list[ir.Node] = [ir.Input("image", shape)]
    value = images.astype(np.float64)

    def add(node: ir.Node) -> None:
        nonlocal value
        nodes.append(node)
        value = ir.evaluate(node, [value], quantised=False)

    def norm(name: str) -> None:
        c, mean, variance = value.shape[1], value.mean(axis=(0, 2, 3)), value.var(axis=(0, 2, 3))
        gamma = rng.uniform(0.5, 1.5, c) * rng.choice([-1, 1], c, p=[0.3, 0.7])
        beta = rng.normal(0.2, 0.3, c)
        add(ir.BatchNorm(name, nodes[-1].name, mean, variance, gamma, beta, 1e-5))

    def conv(name: str, c_out: int, kernel: int, pads: Pads) -> None:
        signs = rng.choice(np.array([-1, 1], np.int8), (c_out, value.shape[1], kernel, kernel))
        scale = np.float64(conv_scale(signs[0].size, 4.0))
        add(ir.Conv(name, nodes[-1].name, signs, np.asarray(scale), 1, pads))

    def activation(name: str, maximum: bool = False) -> None:
        if maximum and pool_first:
            add(ir.MaxPool(f"{name}.pool", nodes[-1].name, *pool))
        norm(f"{name}.bn")
        add(ir.Relu(f"{name}.relu", f"{name}.bn"))
        if maximum and not pool_first:
            add(ir.MaxPool(f"{name}.pool", nodes[-1].name, *pool))
        add(ir.Quantiser(f"{name}.q", nodes[-1].name, 8, 0, None))

    norm("input.bn")
    add(ir.Quantiser("input.q", "input.bn", 8, 128, None))
    for stage, c in enumerate(channels, 1):
        for i in (1, 2):
            conv(f"conv{stage}.{i}", c, 3, Pads(1, 1, 1, 1))
            activation(f"conv{stage}.{i}", maximum=i == 2)
    for i, c in enumerate(dense, 1):
        conv(f"dense{i}", c, value.shape[-1], Pads(0, 0, 0, 0))
        if i < len(dense):
            activation(f"dense{i}")
    norm("scores.bn")
    name = "x".join(map(str, channels))
    graph = ir.Graph(f"vgg{name}", tuple(nodes), tuple(map(str, range(dense[-1]))))
    return graph if bits is None else calibrate(graph, bits, images)


def random_program(seed: int = 0, residual_bits: int | None = 16, **options: Any) -> Program:
    """The Program of `random_checkpoint`, lowered by the normal path with calibration images."""
    checkpoint = random_checkpoint(seed, **options)
    images = random_images(seed, 32, checkpoint.network.input)
    return lower(ir.build(checkpoint), None, images, residual_bits)


def _weights(rng: np.random.Generator, network: Network, channel_scales: bool) -> Tensors:
    tensors: Tensors = {}
    for layer in layers(network):
        shape = (layer.c_out, layer.c_in, layer.kernel, layer.kernel)
        scale = conv_scale(layer.fan_in)
        if network.weights == "32bit":
            tensors[f"{layer.name}.weight"] = rng.normal(0, scale, shape).astype(np.float32)
            continue
        tensors[f"{layer.name}.weight"] = rng.choice(np.array([-1, 1], np.int8), shape)
        spread = rng.uniform(0.5, 1.5, layer.c_out) if channel_scales else 1.0
        tensors[f"{layer.name}.scale"] = np.asarray(scale * spread)
    return tensors


def _affines(rng: np.random.Generator, network: Network) -> Tensors:
    """Batch norms: moments still to be measured, gamma and beta drawn where they are learned."""
    tensors: Tensors = {}
    for name, channels in batch_norms(network).items():
        tensors[f"{name}.mean"] = np.zeros(channels, np.float32)
        tensors[f"{name}.variance"] = np.ones(channels, np.float32)
        if has_learned_affine(network, name):
            gamma = rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels, p=[0.3, 0.7])
            gamma[rng.random(channels) < 1 / 8] = 0
            tensors[f"{name}.gamma"] = gamma.astype(np.float32)
            tensors[f"{name}.beta"] = rng.normal(0.2, 0.3, channels).astype(np.float32)
    return tensors


def _with_moments(checkpoint: Checkpoint, images: NDArray[np.uint8]) -> ir.Graph:
    """Measure every batch norm's moments in order of the flow, into the checkpoint's tensors."""
    tensors = checkpoint.tensors
    values: dict[str, ir.Float] = {}
    for node in ir.build(checkpoint).nodes:
        if isinstance(node, ir.Input):
            values[node.name] = images.astype(np.float64)
            continue
        x = values[node.source]
        if isinstance(node, ir.BatchNorm):
            mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
            node = replace(node, mean=mean, variance=variance)
            tensors[f"{node.name}.mean"][:] = mean
            tensors[f"{node.name}.variance"][:] = variance
        read = [values[name] for name in ir.sources(node)]
        values[node.name] = ir.evaluate(node, read, quantised=False)
    return ir.build(checkpoint)
