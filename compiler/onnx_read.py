"""ONNX to Graph: other people's float networks of this family, by any exporter.

The file is worked through once, in order. A value is a constant (`onnx_fold` works it out), or a
`View` of the map of a Graph node, or unknown because what makes it was refused. Operators that only
move axes about give views; the others give nodes of the Graph (`onnx_nodes`). Whatever cannot be
lowered is noted and the reading goes on, so that one error names all of it.

What a network may contain, and how exporters write it: docs/onnx.md.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from compiler import graph as ir
from compiler import onnx_fold as constants
from compiler.arith import POOL_KERNEL, Pads, same_pads
from compiler.errors import LoweringError
from compiler.onnx_file import Node, OnnxFile, Value, load
from compiler.onnx_fold import Folder, Unfoldable
from compiler.onnx_nodes import Builder, factor
from compiler.onnx_quant import LARGEST, chain_levels, quant_levels, quantize_linear_levels
from compiler.onnx_view import NCHW, NHWC, NO_PADS, Refused, View

Array = NDArray[Any]

MAX_PIXELS = 1 << 24
"""Most values of an image that is read."""

MAX_PROBLEMS = 100
"""Most refused nodes that a message lists."""

NAMELESS = ("", "main_graph", "main", "torch_jit", "torch-jit-export", "tf2onnx")
"""Graph names that exporters give to every network."""

CUSTOM_DOMAINS = ("qonnx", "onnx.brevitas", "finn")
"""Beginnings of the domains that QONNX's operators have been in."""

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def read(path: str | os.PathLike[str]) -> ir.Graph:
    """The Graph of an ONNX file.

    The image is (N, C, H, W) or (N, H, W, C), raw pixels 0 .. 255 of any type; what scales them
    must be in the file. Where the file has no quantisers the Graph has them without steps, behind
    every ReLU that feeds a convolution and behind the image's batch norm.

    Raises
    ------
    CheckpointError
        The file is damaged or hostile (see `onnx_file.load`).
    LoweringError
        Some nodes cannot be lowered; all of them are named, with operator and reason.
    """
    path = Path(path)
    file = load(path)
    image = _image(file)
    network = path.stem if file.name in NAMELESS else file.name
    live, folder = live_nodes(file), Folder()
    values = folded(file, live, folder)
    # The order of the image's axes is nowhere said: it is the one that makes sense of the file.
    channels_first, channels_last = (
        _Reader(file, image, axes, live, dict(values), folder) for axes in (NCHW, NHWC)
    )
    graph = channels_first.read(network) or channels_last.read(network)
    if graph is None:
        further = max(channels_first, channels_last, key=lambda reader: len(reader.build.nodes))
        message = _said(path, further.problems)
        raise LoweringError(message, "docs/onnx.md says what is read")
    return graph


def _said(path: Path, problems: list[str]) -> str:
    count = len(problems)
    nodes = "1 node" if count == 1 else f"{count:,} nodes"
    more = [f"and {count - MAX_PROBLEMS:,} more"] if count > MAX_PROBLEMS else []
    lines = [f"{path}: {nodes} cannot be lowered", *problems[:MAX_PROBLEMS], *more]
    return "\n  ".join(lines)


def _image(file: OnnxFile) -> Value:
    """The one input, of a known shape."""
    if any(node.operator == "ConvInteger" for node in file.nodes):
        message = "a network must be in float, and this one is in integers already"
        raise LoweringError(message, "`python -m compiler compare` runs an exported Program")
    if len(file.inputs) != 1 or len(file.outputs) != 1:
        found = f"{len(file.inputs)} and {len(file.outputs)}"
        raise LoweringError(f"a network must have one input and one output, not {found}")
    image = file.inputs[0]
    shape = image.shape or ()
    sizes = [n or 0 for n in shape[1:]]
    if len(sizes) != 3 or min(sizes) < 1 or math.prod(sizes) > MAX_PIXELS:
        shown = "of no known shape" if image.shape is None else [n or "?" for n in shape]
        raise LoweringError(
            f"input {image.name} must be (N, C, H, W) or (N, H, W, C) of fixed size, not {shown}",
            "export the network with a fixed image size; the batch may be open",
        )
    return image


@dataclass(frozen=True, slots=True)
class _Unknown:
    """What a refused node would have made."""


UNKNOWN = _Unknown()
Known = View | Array | None
AnyValue = Known | _Unknown


def live_nodes(file: OnnxFile) -> list[Node]:
    """The nodes that the output depends on: exporters leave others behind."""
    wanted, found = {file.outputs[0].name}, []
    for node in reversed(file.nodes):
        if wanted.intersection(filter(None, node.outputs)):
            wanted.update(node.inputs)
            found.append(node)
    return found[::-1]


def folded(file: OnnxFile, nodes: list[Node], folder: Folder) -> dict[str, AnyValue]:
    """All constants: the file's, and those worked out of them; what fails is told later."""
    values: dict[str, AnyValue] = {**file.constants, "": None}
    for node in nodes:
        inputs = [values.get(name, UNKNOWN) for name in node.inputs]
        found = [x for x in inputs if x is None or isinstance(x, np.ndarray)]
        if len(found) == len(inputs) and known_domain(node):
            with contextlib.suppress(Unfoldable):
                values[node.outputs[0]] = folder.fold(node, found)
    return values


@dataclass(slots=True)
class _Reader:
    """Reads one file, its image in one order of axes.

    Attributes
    ----------
    live : list of Node
        Those to read.
    values : dict
        What is known by name: at first the constants.
    problems : list of str
        The refused nodes.
    """

    file: OnnxFile
    image: Value
    axes: tuple[str, ...]
    live: list[Node]
    values: dict[str, AnyValue]
    folder: Folder
    problems: list[str] = field(default_factory=list)
    build: Builder = field(default_factory=Builder)
    uses: Counter[str] = field(default_factory=Counter)
    reader_of: dict[str, Node] = field(default_factory=dict)

    def read(self, network: str) -> ir.Graph | None:
        """The Graph, or None where there are problems."""
        self.values[self.image.name] = self.input()
        self.count_uses()
        for node in self.live:
            if node.outputs[0] not in self.values:
                self.values |= dict.fromkeys(node.outputs[1:], UNKNOWN)
                self.values[node.outputs[0]] = self.value(node)
        return self.finish(network)

    def input(self) -> View:
        """The image."""
        sizes = dict(zip(self.axes, self.image.shape or (), strict=True))
        c, h, w = (sizes[x] or 1 for x in "CHW")
        batch = max(sizes["N"] or 1, 1)
        return self.build.image(self.image.name, View("", (c, h, w), batch, self.axes))

    def count_uses(self) -> None:
        """How many nodes compute with a value. Asking for its shape, or for 0 times it, is none."""
        for node in self.live:
            found = [self.values.get(name) for name in node.inputs]
            zero = any(isinstance(x, np.ndarray) and not x.any() for x in found)
            if node.operator != "Shape" and not (node.operator == "Mul" and zero):
                self.uses.update(filter(None, node.inputs))
                self.reader_of |= dict.fromkeys(node.inputs, node)
        self.uses[self.file.outputs[0].name] += 1

    def value(self, node: Node) -> AnyValue:
        """What a node makes, by its handler."""
        inputs = [self.seen(name) for name in node.inputs]
        handler = HANDLERS.get(node.operator) if known_domain(node) else None
        try:
            found = [x for x in inputs if not isinstance(x, _Unknown)]
            if len(found) == len(inputs) and not any(isinstance(x, View) for x in found):
                return self.folder.fold(node, [x for x in found if not isinstance(x, View)])
            if handler is None:
                raise Refused("this operator has no integer form here")
            if len(found) < len(inputs):
                return self.blind(node, inputs)
            return handler(self, node, found)
        except (Refused, Unfoldable) as reason:
            return self.refuse(str(node), str(reason))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            return self.refuse(str(node), f"its inputs or attributes do not suit it: {error}")

    def seen(self, name: str) -> AnyValue:
        """A value as one of its readers sees it."""
        value = self.values.get(name, UNKNOWN)
        if isinstance(value, View) and not self.alone(name):
            return replace(value, shared=True)
        return value

    def refuse(self, subject: str, reason: str) -> _Unknown:
        """Note a problem, and go on."""
        self.problems.append(f"{subject}: {reason}")
        return UNKNOWN

    def blind(self, node: Node, inputs: list[AnyValue]) -> _Unknown:
        """Behind a refused node: what can be said of this one without knowing its input."""
        if node.operator == "Conv" and isinstance(inputs[1], np.ndarray):
            factor(inputs[1])
        if node.operator in ("Gemm", "MatMul") and isinstance(inputs[1], np.ndarray):
            factor(matrix(node, inputs[1])[:, :, None, None])
        return UNKNOWN

    def finish(self, network: str) -> ir.Graph | None:
        """Close the Graph with the output."""
        name = self.file.outputs[0].name
        output = self.values[name]
        if isinstance(output, View):
            try:
                graph = self.build.graph(network, output)
                return None if self.problems else graph
            except Refused as reason:
                self.refuse(f"output {name}", str(reason))
        elif not self.problems:
            self.refuse(f"output {name}", "it must depend on the image")
        return None

    # -- what handlers ask ---------------------------------------------------------------------

    def alone(self, name: str) -> bool:
        """Whether one node only computes with a value."""
        return self.uses[name] == 1

    def following(self, node: Node, most: int = 6) -> list[Node]:
        """A node and those behind it, while each alone reads the one before."""
        found = [node]
        while len(found) < most and self.alone(name := found[-1].outputs[0]):
            if (reader := self.reader_of.get(name)) is None:
                break
            found.append(reader)
        return found

    def take(self, nodes: list[Node], value: View) -> View:
        """Let one value stand for all that some nodes in a row make."""
        self.values |= {name: value for node in nodes for name in node.outputs}
        return value


Handler = Callable[[_Reader, Node, list[Known]], AnyValue]


def known_domain(node: Node) -> bool:
    """Whether the operators of a node's domain are known here by name."""
    return not node.domain or node.domain.startswith(CUSTOM_DOMAINS)


def view(x: Known) -> View:
    """An input that must be a map."""
    if not isinstance(x, View):
        raise Refused("it must read a map here, not a constant")
    return x


def constant(inputs: list[Known], index: int, what: str) -> Array:
    """An input that must be a constant."""
    found = inputs[index] if index < len(inputs) else None
    if not isinstance(found, np.ndarray):
        raise Refused(f"its {what} must be constant")
    return found


def arrays(inputs: list[Known]) -> list[Array | None]:
    """The inputs behind the first, which must be constants if they are there."""
    return [None, *(None if x is None else constant([x], 0, "arguments") for x in inputs[1:])]


def argument(node: Node, inputs: list[Known], index: int, name: str) -> list[int] | None:
    """What is an input or, in earlier opsets, an attribute."""
    return constants.integers(node, arrays(inputs), index, name)


# -- what moves axes about -------------------------------------------------------------------------


def _same(_: _Reader, node: Node, inputs: list[Known]) -> View:
    x = view(inputs[0])
    return replace(x, alias=node.outputs[0]) if node.operator == "Identity" else x


def _cast(_: _Reader, node: Node, inputs: list[Known]) -> View:
    if node.attributes.get("to") not in FLOATS:
        raise Refused("maps must stay floats")
    return view(inputs[0])


def _transpose(_: _Reader, node: Node, inputs: list[Known]) -> View:
    return view(inputs[0]).transposed(node.attributes.get("perm"))


def _reshape(_: _Reader, node: Node, inputs: list[Known]) -> View:
    return view(inputs[0]).reshaped(argument(node, inputs, 1, "shape") or [])


def _flatten(_: _Reader, node: Node, inputs: list[Known]) -> View:
    x, axis = view(inputs[0]), int(node.attributes.get("axis", 1))
    sizes = x.sizes
    axis = axis + len(sizes) if axis < 0 else axis
    return x.reshaped([math.prod(sizes[:axis]), math.prod(sizes[axis:])])


def _squeeze(_: _Reader, node: Node, inputs: list[Known]) -> View:
    x, axes = view(inputs[0]), argument(node, inputs, 1, "axes")
    return x.squeezed(None if axes is None else constants.axes_of(axes, len(x.axes)))


def _unsqueeze(_: _Reader, node: Node, inputs: list[Known]) -> View:
    x, axes = view(inputs[0]), argument(node, inputs, 1, "axes") or []
    return x.unsqueezed(constants.axes_of(axes, len(x.axes) + len(axes)))


def _shape(_: _Reader, node: Node, inputs: list[Known]) -> Array:
    return constants.shape_part(node, view(inputs[0]).sizes)


def _slice(_: _Reader, node: Node, inputs: list[Known]) -> View:
    x = view(inputs[0])
    parts = constants.slices(node, arrays(inputs), len(x.axes))
    for axis, part in parts.items():
        size = x.sizes[axis]
        begin, end, step = part.indices(size)
        if step == 2 and x.axes[axis] in ("H", "W"):
            raise Refused(
                "it takes every second pixel: a downsampling block's skip must be the mean of "
                "3x3 pixels, stride 2 (AveragePool)"
            )
        if (begin, end, step) != (0, size, 1):
            raise Refused(f"it must take whole axes, not {part} of {size}: there is no such skip")
    return x


# -- zeros around and behind -----------------------------------------------------------------------


def _pad(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    x = view(inputs[0])
    value = inputs[2] if len(inputs) > 2 else np.array(node.attributes.get("value", 0.0))
    if node.attributes.get("mode", "constant") != "constant" or not isinstance(
        value, np.ndarray | None
    ):
        raise Refused("it must pad with zeros")
    if value is not None and value.any():
        raise Refused(f"it must pad with zeros, not {value}")
    rank = len(x.axes)
    axes = constants.axes_of(argument(node, inputs, 3, "axes") or list(range(rank)), rank)
    pads = argument(node, inputs, 1, "pads") or []
    if len(pads) != 2 * len(axes) or min(pads, default=0) < 0:
        raise Refused(f"it must have {2 * len(axes)} pads of at least 0, not {pads}")
    more, around = 0, {"H": (0, 0), "W": (0, 0)}
    for axis, before, behind in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        letter = x.axes[axis]
        if letter == "C" and not before:
            more = behind
        elif letter in around:
            around[letter] = before, behind
        elif before or behind:
            raise Refused("zeros must stand around the pixels or behind the channels")
    (top, bottom), (left, right) = around["H"], around["W"]
    p = x.pads
    pads_now = Pads(p.top + top, p.left + left, p.bottom + bottom, p.right + right)
    x = replace(x, pads=pads_now)
    return reader.build.zero_channels(node.name, x, more)


def _concat(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    x, *rest = inputs
    if not isinstance(x, View) or any(isinstance(part, View) for part in rest):
        raise Refused("it must put constant zeros behind a map, and nothing else together")
    axis = constants.axes_of([int(node.attributes["axis"])], len(x.axes))[0]
    if x.axes[axis] != "C":
        raise Refused(f"it must put zeros behind the channels, not along {x.axes[axis] or '1'}")
    more = 0
    for part in rest:
        if not isinstance(part, np.ndarray) or part.any():
            raise Refused("what stands behind the channels must be zeros")
        around = [n for i, n in enumerate(part.shape) if i != axis]
        if around != [n for i, n in enumerate(x.sizes) if i != axis]:
            raise Refused(f"zeros of {part.shape} must fit a map of {x.sizes}")
        more += part.shape[axis]
    return reader.build.zero_channels(node.name, x, more)


# -- arithmetic with constants ---------------------------------------------------------------------


def _arithmetic(reader: _Reader, node: Node, inputs: list[Known]) -> AnyValue:
    """Add, Sub, Mul, Div of a map and a constant; the addition of two maps; a quantiser's start."""
    if len(inputs) != 2:
        raise Refused(f"it must have 2 inputs, not {len(inputs)}")
    a, b = inputs
    if isinstance(a, View) and isinstance(b, View):
        if node.operator not in ("Add", "Sum"):
            raise Refused("two maps may only be added")
        return reader.build.add(node.name, a, b)
    x = view(a if isinstance(a, View) else b)
    if (found := _chain(reader, node, x)) is not None:
        return found
    other = constant([b if isinstance(a, View) else a], 0, "other operand")
    c = x.by_channel(other)
    one, none = np.ones(()), np.zeros(())
    match node.operator, isinstance(a, View):
        case "Mul", _ if not c.any():
            return np.broadcast_to(np.zeros(()), x.sizes)
        case "Mul", _:
            slope, offset = c, none
        case "Div", True if c.all():
            slope, offset = 1 / c, none
        case (("Add" | "Sum"), _):
            slope, offset = one, c
        case "Sub", first:
            slope, offset = (one, -c) if first else (-one, c)
        case _:
            raise Refused("nothing may be divided by a map, nor by 0")
    return reader.build.affine(node.name, x, slope, offset)


def _chain(reader: _Reader, node: Node, x: View) -> View | None:
    """A quantiser spelled out from here on."""
    nodes = reader.following(node)
    found = chain_levels(nodes, reader.values)
    if found is None:
        return None
    levels, length = found
    quantiser = reader.build.quantise(nodes[length - 1].name, x, levels)
    return reader.take(nodes[:length], quantiser)


def _neg(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    minus, none = -np.ones(()), np.zeros(())
    return reader.build.affine(node.name, view(inputs[0]), minus, none)


def _batch_norm(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    if node.attributes.get("training_mode", 0):
        raise Refused("it must use its kept moments, not those of the batch")
    x = view(inputs[0])
    gamma, beta, mean, variance = (
        np.asarray(constant(inputs, i, what), np.float64)
        for i, what in enumerate(("scale", "offset", "mean", "variance"), start=1)
    )
    if len(x.axes) < 2 or x.wide(x.axes[1]) not in ("C", ""):
        raise Refused(f"it must have the channels second, not {x.axes}")
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    norm = ir.BatchNorm("", "", mean, variance, gamma, beta, epsilon)
    return reader.build.batch_norm(node.name, x, norm)


def _relu(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    return reader.build.relu(node.name, view(inputs[0]))


def _clip(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    """A ReLU written as Clip or Max, or the start of a quantiser."""
    x = view(inputs[0])
    if (found := _chain(reader, node, x)) is not None:
        return found
    low = constant(inputs, 1, "lower end")
    high = inputs[2] if len(inputs) > 2 else None
    endless = high is None or (isinstance(high, np.ndarray) and bool((high > 1e30).all()))
    if low.size != 1 or not -LARGEST < low.item() <= 0 or not endless:
        raise Refused("it must be a ReLU, or what a quantiser clips before it rounds")
    return reader.build.relu(node.name, x, float(low.item()))


# -- layers ----------------------------------------------------------------------------------------


def _equal(values: list[int], what: str) -> int:
    """One number that stands for both directions."""
    if len(values) != 2 or values[0] != values[1] or values[0] < 1:
        raise Refused(f"its {what} must be the same in both directions, not {values}")
    return int(values[0])


def _window(node: Node, x: View, kernel: int) -> tuple[int, Pads]:
    """Stride and pads of a convolution or pool; dilations are refused."""
    if any(n != 1 for n in node.attributes.get("dilations", [])):
        raise Refused("it must have no dilation")
    stride = _equal(node.attributes.get("strides", [1, 1]), "stride")
    auto = node.attributes.get("auto_pad", "NOTSET")
    size = x.size("H"), x.size("W")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        p = same_pads(size, kernel, stride)
        return stride, p if auto == "SAME_UPPER" else Pads(p.bottom, p.right, p.top, p.left)
    pads = node.attributes.get("pads", [0] * 4) if auto == "NOTSET" else [0] * 4
    if len(pads) != 4 or min(pads) < 0:
        raise Refused(f"it must have 4 pads of at least 0, not {pads}")
    return stride, Pads(*pads)


def _conv(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    weights = constant(inputs, 1, "weights")
    factor(weights)  # its weights are what most networks are refused for: said first
    if node.attributes.get("group", 1) != 1:
        raise Refused("it must be one group")
    x = view(inputs[0]).ordered()
    stride, pads = _window(node, x, weights.shape[-1])
    bias = np.zeros(()) if len(inputs) < 3 or inputs[2] is None else constant(inputs, 2, "bias")
    return reader.build.convolve(node.name, x, weights, stride, pads, bias)


def matrix(node: Node, weights: Array) -> Array:
    """Of a Gemm or MatMul, (outputs, inputs)."""
    if weights.ndim != 2:
        raise Refused(f"its weights must be a matrix, not {weights.shape}")
    return weights if node.operator == "Gemm" and node.attributes.get("transB") else weights.T


def _dense(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    """Gemm or MatMul: a convolution whose window is the whole map."""
    x = view(inputs[0]).plain()
    weights = matrix(node, constant(inputs, 1, "weights"))
    factor(weights[:, :, None, None])
    if node.attributes.get("transA"):
        raise Refused("it must not transpose the map")
    weights = weights * float(node.attributes.get("alpha", 1.0))
    bias = np.zeros(())
    if len(inputs) > 2 and inputs[2] is not None:
        bias = constant(inputs, 2, "bias") * float(node.attributes.get("beta", 1.0))
        bias = bias.reshape(-1) if bias.size > 1 else np.broadcast_to(bias.ravel(), len(weights))
    c, h, w = x.shape
    seen = [x.wide(axis) for axis in x.axes]
    flat = seen[1] if len(seen) == 2 and seen[0] == "N" else "?"
    if flat not in (x.wide("CHW"), x.wide("HWC")) or h != w or weights.shape[1] != c * h * w:
        raise Refused(
            f"it must read a square map flattened to {weights.shape[1]}, not {x.sizes} of {x.shape}"
        )
    channels_first = flat == x.wide("CHW")
    kernel = weights.reshape(-1, c, h, w) if channels_first else weights.reshape(-1, h, w, c)
    kernel = kernel if channels_first else kernel.transpose(0, 3, 1, 2)
    made = reader.build.convolve(node.name, replace(x, axes=NCHW), kernel, 1, NO_PADS, bias)
    return replace(made, axes=("N", "C"))


def _average(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    x = view(inputs[0]).ordered()
    kernel = [int(n) for n in node.attributes["kernel_shape"]]
    size = [x.size("H"), x.size("W")]
    if kernel == size and not any(node.attributes.get("pads", [])):
        return reader.build.mean(node.name, x)
    if kernel != [POOL_KERNEL] * 2 or node.attributes.get("strides") != [2, 2]:
        stride = node.attributes.get("strides")
        raise Refused(f"a pool must be 3x3 with stride 2, or global, not {kernel} with {stride}")
    _, pads = _window(node, x, POOL_KERNEL)
    count_padding = bool(node.attributes.get("count_include_pad", 0))
    if node.attributes.get("ceil_mode", 0):
        over = [(n + a + b - POOL_KERNEL) % 2 for n, a, b in zip(size, *_ends(pads), strict=True)]
        if any(over) and count_padding:
            raise Refused("windows over the edge (ceil_mode) must not count their padding")
        pads = Pads(pads.top, pads.left, pads.bottom + over[0], pads.right + over[1])
    return reader.build.pool(node.name, x, pads, count_padding=count_padding)


def _ends(pads: Pads) -> tuple[tuple[int, int], tuple[int, int]]:
    return (pads.top, pads.left), (pads.bottom, pads.right)


def _maximum(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    x = view(inputs[0]).ordered()
    kernel = _equal([int(n) for n in node.attributes["kernel_shape"]], "kernel")
    if node.attributes.get("storage_order", 0) or len(node.outputs) > 1:
        raise Refused("where the largest values stand must not be asked for")
    stride, pads = _window(node, x, kernel)
    if node.attributes.get("ceil_mode", 0):
        (top, left), (bottom, right) = _ends(pads)
        bottom += overhang(x.size("H"), top, bottom, kernel, stride)
        right += overhang(x.size("W"), left, right, kernel, stride)
        pads = Pads(top, left, bottom, right)
    return reader.build.maximum(node.name, x, kernel, stride, pads)


def overhang(size: int, before: int, behind: int, kernel: int, stride: int) -> int:
    """Pixels beyond the padding that a last window (ceil_mode) reaches; it begins before them."""
    over = -(size + before + behind - kernel) % stride
    begin = size + before + behind + over - kernel
    return over if begin < size + before else 0


def _global_mean(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    return reader.build.mean(node.name, view(inputs[0]).ordered())


def _reduce_mean(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    x, axes = view(inputs[0]), argument(node, inputs, 1, "axes")
    if not axes:
        raise Refused("it must name the axes of the pixels")
    gone = constants.axes_of(axes, len(x.axes))
    meant = x.meant + x.wide("".join(x.axes[i] for i in gone))
    pixels = x.wide("HW")
    if set(meant) - set(pixels):
        raise Refused(f"the mean must be over pixels, not over axes {axes} of {x.sizes}")
    kept = [("" if i in gone else a) for i, a in enumerate(x.axes)]
    if not node.attributes.get("keepdims", 1):
        kept = [a for i, a in enumerate(x.axes) if i not in gone]
    if set(meant) == set(pixels):
        x = reader.build.mean(node.name, replace(x, meant=""))
        meant = ""
    return replace(x, axes=tuple(kept), meant=meant)


def _softmax(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    """Behind the scores it changes no answer, and is left out."""
    if node.outputs[0] != reader.file.outputs[0].name:
        raise Refused("it must be the last operator")
    return view(inputs[0])


# -- quantisers ------------------------------------------------------------------------------------


def _quant(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    levels = quant_levels(node, *inputs[1:4])
    return reader.build.quantise(node.name, view(inputs[0]), levels)


def _bipolar(*_: object) -> View:
    raise Refused("activations must have 2 to 8 bits, not 1")


def _quantize_linear(reader: _Reader, node: Node, inputs: list[Known]) -> View:
    """With the DequantizeLinear behind it."""
    nodes = reader.following(node, 2)
    if len(nodes) < 2 or nodes[1].operator != "DequantizeLinear":
        raise Refused("a DequantizeLinear must follow it, and nothing else")
    pairs = zip(inputs[1:], map(reader.values.get, nodes[1].inputs[1:]), strict=False)
    if any(not np.array_equal(a, b) for a, b in pairs if a is not None and b is not None):  # type: ignore[arg-type]
        raise Refused(f"its scale and zero point must be those of {nodes[1].name}")
    levels = quantize_linear_levels(inputs[1], inputs[2] if len(inputs) > 2 else None)
    return reader.take(nodes, reader.build.quantise(nodes[1].name, view(inputs[0]), levels))


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), _arithmetic),
    **dict.fromkeys(("Clip", "Max"), _clip),
    **dict.fromkeys(("Gemm", "MatMul"), _dense),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Quant", "IntQuant"), _quant),
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Shape": _shape,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concat,
    "Neg": _neg,
    "BatchNormalization": _batch_norm,
    "Relu": _relu,
    "Conv": _conv,
    "AveragePool": _average,
    "MaxPool": _maximum,
    "GlobalAveragePool": _global_mean,
    "ReduceMean": _reduce_mean,
    "BipolarQuant": _bipolar,
    "QuantizeLinear": _quantize_linear,
}
