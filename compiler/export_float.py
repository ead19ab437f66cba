"""Graph to ONNX: the float network, for anyone's runtime, and back without a digit lost.

The file computes in float32, as the network was trained. What is known more exactly than that (a
layer's scale, a quantiser's step, moments of other people's files) is stored as float64 and cast:
`compiler.onnx_read` folds constants in float64, so a Graph that was written and read back lowers to
the identical Program.

A node of the Graph is the value of the same name. Quantisers with a step are Div, Add, Floor, Clip,
Mul; a quantiser without one is an Identity, which keeps its place and its name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.arith import POOL_KERNEL
from compiler.errors import LoweringError
from compiler.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Conv,
    GlobalMean,
    Graph,
    Input,
    MaxPool,
    Node,
    Quantiser,
    Relu,
    Shape,
    sources,
)
from compiler.onnx_model import Model, nearest_decimal, onnx_pads

SCORES = "scores"
"""Name of the output, (N, classes) float32."""


def to_onnx(graph: Graph, quantised: bool = True) -> onnx.ModelProto:
    """The Graph as a checked ONNX model: input (N, C, H, W) uint8, output `SCORES`.

    Parameters
    ----------
    quantised : bool
        False: as if no quantiser had a step.

    Raises
    ------
    LoweringError
        The Graph's pools are rounded (`compiler.lower.rounded`): that is the Program's doing.
    """
    model = Model(graph.network, {node.name for node in graph.nodes})
    writer = _Writer(model, graph.shapes, quantised)
    for node in graph.nodes:
        writer.write(node)
        model.declare(node.name, np.float32, graph.shapes[node.name])
    image = graph.image
    model.declare(image.name, np.uint8, image.shape)
    scores = SCORES if SCORES not in graph.shapes else f"{graph.output}.flat"
    model.node("Flatten", [graph.output], scores)
    model.declare(scores, np.float32, (len(graph.labels),))
    return model.finish(image.name, [scores], {"signum.labels": json.dumps(graph.labels)})


@dataclass(slots=True)
class _Writer:
    """Writes nodes of a Graph.

    Attributes
    ----------
    pixels : dict
        The image's name to that of its pixels as floats.
    """

    model: Model
    shapes: dict[str, Shape]
    quantised: bool
    pixels: dict[str, str] = field(default_factory=dict)

    def write(self, node: Node) -> None:
        """The operators of one node; the last of them writes the value of its name."""
        if isinstance(node, Input):
            cast = self.model.node("Cast", [node.name], to=onnx.TensorProto.FLOAT)
            self.pixels[node.name] = cast
            return
        x, *others = (self.pixels.get(name, name) for name in sources(node))
        match node:
            case BatchNorm():
                self._batch_norm(node, x)
            case Relu(low=0.0):
                self.model.node("Relu", [x], node.name)
            case Relu():
                self.model.node("Max", [x, self.model.number(node.low, np.float32)], node.name)
            case Quantiser():
                self._quantise(node, x)
            case Conv():
                self._convolve(node, x)
            case Add():
                self.model.node("Add", [x, *others], node.name)
            case AvgPool():
                self._average(node, x)
            case MaxPool():
                self.model.node(
                    "MaxPool",
                    [x],
                    node.name,
                    kernel_shape=[node.kernel] * 2,
                    strides=[node.stride] * 2,
                    pads=onnx_pads(node.pads),
                )
            case GlobalMean():
                self.model.node("GlobalAveragePool", [x], node.name)

    def _batch_norm(self, node: BatchNorm, x: str) -> None:
        """A channel without any variance is constant: ONNX has no such rule, so gamma says it."""
        variance, epsilon = node.variance, node.epsilon
        if nearest_decimal(epsilon) != epsilon:
            variance, epsilon = variance + epsilon, 0.0
        constant = variance + epsilon <= 0
        parts = {
            "gamma": np.where(constant, 0.0, node.gamma),
            "beta": node.beta,
            "mean": node.mean,
            "variance": np.where(constant, 1.0, variance),
        }
        values = [self._constant(f"{node.name}.{key}", array) for key, array in parts.items()]
        self.model.node("BatchNormalization", [x, *values], node.name, epsilon=epsilon)

    def _quantise(self, node: Quantiser, x: str) -> None:
        """The value ``(q - zero) * step``, rounded to nearest, ties upwards."""
        write = self.model.node
        if node.step is None or not self.quantised:
            write("Identity", [x], node.name)
            return
        step = self._constant(f"{node.name}.step", np.float64(node.step))
        ends = (-node.zero, (1 << node.bits) - 1 - node.zero)
        q = write("Add", [write("Div", [x, step]), self.model.number(0.5, np.float32)])
        low, high = (self.model.number(end, np.float32) for end in ends)
        q = write("Clip", [write("Floor", [q]), low, high])
        write("Mul", [q, step], node.name)

    def _convolve(self, node: Conv, x: str) -> None:
        """One-bit weights stay ±1, and the scale follows: it is one number, or one a channel."""
        one = node.scale.ndim == 0 and float(node.scale) == 1.0
        weights = self._constant(f"{node.name}.weight", node.weights)
        acc = self.model.node(
            "Conv",
            [x, weights],
            node.name if one else self.model.free(f"{node.name}/Conv"),
            kernel_shape=[node.kernel] * 2,
            strides=[node.stride] * 2,
            pads=onnx_pads(node.pads),
        )
        if not one:
            shape = (-1, 1, 1) if node.scale.ndim else ()
            scale = self._constant(f"{node.name}.scale", node.scale.reshape(shape))
            self.model.node("Mul", [acc, scale], node.name)

    def _average(self, node: AvgPool, x: str) -> None:
        if node.unit is not None:
            raise LoweringError(f"{node.name}: a rounded pool is the Program's, not the network's")
        channels = self.shapes[node.source][0]
        more = node.channels - channels
        pooled = self.model.node(
            "AveragePool",
            [x],
            self.model.free(f"{node.name}/AveragePool") if more else node.name,
            kernel_shape=[POOL_KERNEL] * 2,
            strides=[2, 2],
            pads=onnx_pads(node.pads),
            count_include_pad=int(node.count_padding),
        )
        if more:
            self.model.node("Pad", [pooled, self.model.vector([0] * 5 + [more, 0, 0])], node.name)

    def _constant(self, name: str, array: NDArray[Any] | np.float64) -> str:
        """A float32 constant; from a float64 one where float32 does not hold every digit."""
        single = np.asarray(array, np.float32)
        if np.array_equal(single, array):
            return self.model.constant(name, single)
        exact = self.model.constant(f"{name}.exact", np.asarray(array, np.float64))
        return self.model.node("Cast", [exact], name, to=onnx.TensorProto.FLOAT)
