"""Networks smaller than one that does not fit, to say what would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from compiler import graph
from compiler.accuracy import program_of
from compiler.checkpoint import Checkpoint, Network, Tensors, tensor_shapes
from compiler.program import Program

WIDTHS = (4.0, 3.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.25)
"""Tried from the widest."""


def candidates(network: Network, activation_bits: int) -> Iterator[Program]:
    """Programs of networks for the same task with fewer weights, the largest first.

    Their weights are blank: a Program's size does not depend on them.
    """
    depths = sorted({network.depth, 8}, reverse=True)
    widths = [width for width in WIDTHS if width < network.width]
    shapes = [(depth, width) for width in [network.width, *widths] for depth in depths]
    for depth, width in shapes:
        if (depth, width) != (network.depth, network.width):
            smaller = replace(network, depth=depth, width=width)
            yield program_of(graph.build(blank(smaller)), activation_bits)


def blank(network: Network) -> Checkpoint:
    """A checkpoint with every weight +1 and batch norms that have seen mean 0, variance 1."""
    tensors: Tensors = {}
    for name, (dtype, shape) in tensor_shapes(network).items():
        fill = 0 if name.endswith((".mean", ".beta")) else 1
        tensors[name] = np.full(shape, fill, dtype)
    return Checkpoint(network, tensors, None, {})
