"""Networks smaller than one that does not fit, to say what would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from compiler import graph
from compiler.accuracy import program_of
from compiler.arith import conv_scale
from compiler.checkpoint import Checkpoint, Network, Tensors, layers, tensor_shapes
from compiler.geometry import Geometry
from compiler.program import Program

PIXEL_MEAN, PIXEL_DEVIATION = 120.0, 65.0
"""Of usual pictures, 0 .. 255."""

WIDTHS = (4.0, 3.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.25)
"""Tried from the widest."""


def candidates(network: Network, activation_bits: int, engine: Geometry) -> Iterator[Program]:
    """Programs of this network and of ones with fewer weights for its task, the largest first.

    Their weights are blank: a Program's size does not depend on them.
    """
    depths = sorted({network.depth, 2 * network.stages + 2}, reverse=True)
    widths = [width for width in WIDTHS if width < network.width]
    shapes = [(depth, width) for width in [network.width, *widths] for depth in depths]
    for depth, width in shapes:
        smaller = replace(network, depth=depth, width=width)
        yield program_of(graph.build(blank(smaller)), activation_bits, engine=engine)


def blank(network: Network) -> Checkpoint:
    """An untrained checkpoint: weights +1, and moments like those that training ends with."""
    tensors: Tensors = {}
    for name, (dtype, shape) in tensor_shapes(network).items():
        fill = 0.0 if name.endswith((".mean", ".beta")) else 1.0
        tensors[name] = np.full(shape, fill, dtype)
    for layer in layers(network):
        if network.weights == "1bit":
            tensors[f"{layer.name}.scale"] = np.array(conv_scale(layer.fan_in))
    channels = network.input[0]
    tensors["input.bn.mean"] = np.full(channels, PIXEL_MEAN, np.float32)
    tensors["input.bn.variance"] = np.full(channels, PIXEL_DEVIATION**2, np.float32)
    return Checkpoint(network, tensors, None, {})
