"""The float Graph: a network as its author means it, whatever file it came from.

A Graph is a frozen list of generic nodes in order of the flow: the first is the image, the last
the scores, and each names the nodes it reads. `build` makes one from a checkpoint; readers of other
formats make theirs of the same nodes. `run` interprets it in float64 and is the reference that the
integer Program is compared with.

Maps are (N, C, H, W).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from compiler import checkpoint as schema
from compiler.arith import INPUT_BITS, POOL_KERNEL, SIGNED_INPUT_ZERO, Pads, pool_counts
from compiler.checkpoint import Checkpoint
from compiler.errors import LoweringError

Float = NDArray[np.float64]
Shape = tuple[int, int, int]
Answer = TypeVar("Answer")

CHUNK_BYTES = 1 << 22
"""Size of the patches a convolution gathers at once: about what a core's cache holds."""

IMAGES_PER_CHUNK = 32
"""Images interpreted together: bounds memory, large enough to hide Python."""


# -- nodes -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Input:
    """The image: raw pixels, 0 .. 255."""

    name: str
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class BatchNorm:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta``, all (C,) float64."""

    name: str
    source: str
    mean: Float
    variance: Float
    gamma: Float
    beta: Float
    epsilon: float

    @property
    def slope(self) -> Float:
        """What the input is multiplied by; 0 where gamma is, whatever the variance."""
        deviation = np.sqrt(self.variance + self.epsilon)
        safe = np.where(deviation > 0, deviation, np.inf)
        return np.asarray(self.gamma / safe, dtype=np.float64)

    @property
    def intercept(self) -> Float:
        return np.asarray(self.beta - self.slope * self.mean, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Relu:
    """``max(x, low)``; a shifted ReLU's low is negative."""

    name: str
    source: str
    low: float = 0.0


@dataclass(frozen=True, slots=True)
class Quantiser:
    """``q = clip(floor(x/step + 1/2) + zero, 0, 2**bits - 1)``; its value is ``(q - zero)*step``.

    With ``step`` None it marks where a quantiser is to stand, and changes nothing.
    """

    name: str
    source: str
    bits: int
    zero: int
    step: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """A convolution without bias; its weights are ``weights * scale``.

    Attributes
    ----------
    weights : (C_out, C_in, K, K)
        int8 of +1 and -1 for 1-bit layers, else float.
    scale : float64, () or (C_out,)
    """

    name: str
    source: str
    weights: NDArray[Any]
    scale: Float
    stride: int
    pads: Pads

    @property
    def binary(self) -> bool:
        return self.weights.dtype == np.int8

    @property
    def kernel(self) -> int:
        return int(self.weights.shape[-1])

    @property
    def fan_in(self) -> int:
        return int(np.prod(self.weights.shape[1:]))


@dataclass(frozen=True, slots=True)
class Add:
    """Residual addition: ``source`` is the stream, ``addend`` what a block adds to it."""

    name: str
    source: str
    addend: str


@dataclass(frozen=True, slots=True)
class AvgPool:
    """3x3 stride-2 mean, then channels of zeros appended up to ``channels``.

    Quantised, it is rounded to multiples of ``unit``, the residual stream's; None leaves it as it
    is.
    """

    name: str
    source: str
    pads: Pads
    count_padding: bool
    channels: int
    unit: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MaxPool:
    """Largest value of each window; what lies outside the map is none.

    Attributes
    ----------
    falling : (C,) bool, or None
        Channels that take the smallest value instead: lowering puts the maximum behind batch norms
        whose scale is negative.
    """

    name: str
    source: str
    kernel: int
    stride: int
    pads: Pads
    falling: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class GlobalMean:
    """Mean over the pixels, (C, H, W) -> (C, 1, 1)."""

    name: str
    source: str


Node = Input | BatchNorm | Relu | Quantiser | Conv | Add | AvgPool | MaxPool | GlobalMean
NodeType = TypeVar("NodeType", BatchNorm, Quantiser, Conv, Add, AvgPool, MaxPool)


def sources(node: Node) -> tuple[str, ...]:
    """Names of the nodes that ``node`` reads."""
    if isinstance(node, Input):
        return ()
    return (node.source, node.addend) if isinstance(node, Add) else (node.source,)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A whole network in float.

    Attributes
    ----------
    network : str
        For people: "wrn8-1".
    nodes : tuple of Node
        In order of the flow; the first is the only `Input`, the last the scores (classes, 1, 1).
    labels : tuple of str
        Class names, or their numbers.
    shapes : dict
        (C, H, W) of every node, derived.

    Raises
    ------
    LoweringError
        Names taken twice, nodes read before they stand, two inputs or outputs, shapes that
        contradict each other; the message names the node.
    """

    network: str
    nodes: tuple[Node, ...]
    labels: tuple[str, ...]
    shapes: dict[str, Shape] = field(init=False, repr=False)
    _by_name: dict[str, Node] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {node.name: node for node in self.nodes})
        object.__setattr__(self, "shapes", _checked_shapes(self))

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @property
    def image(self) -> Input:
        """The first node: what the network reads."""
        first = self.nodes[0]
        if not isinstance(first, Input):
            raise LoweringError(f"the first node must be the image, not {first.name}")
        return first

    @property
    def output(self) -> str:
        """Name of the node that is the scores."""
        return self.nodes[-1].name

    def all(self, kind: type[NodeType]) -> Iterator[NodeType]:
        """The nodes of one kind, in order of the flow."""
        return (node for node in self.nodes if isinstance(node, kind))

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read ``name``."""
        return tuple(node for node in self.nodes if name in sources(node))

    def with_quantisers(self, steps: dict[str, float], bits: int) -> Graph:
        """The same network with every quantiser's step, and width (but for the input's), set."""

        def renewed(node: Node) -> Node:
            if not isinstance(node, Quantiser):
                return node
            width = node.bits if self.reads_image(node) else bits
            step, zero = steps[node.name], node.zero
            if low := self.lowest(node.source):
                zero = round(-low / step)
            return replace(node, bits=width, zero=zero, step=step)

        return Graph(self.network, tuple(map(renewed, self.nodes)), self.labels)

    def with_pool_units(self, units: dict[str, float]) -> Graph:
        """The same network with its pools rounded as the residual streams behind them are."""
        nodes = tuple(
            replace(node, unit=units[node.name]) if isinstance(node, AvgPool) else node
            for node in self.nodes
        )
        return Graph(self.network, nodes, self.labels)

    def before_pools(self, name: str) -> Node:
        """The node itself, or what stands before the maximum that it is."""
        while isinstance(node := self[name], MaxPool):
            name = node.source
        return node

    def lowest(self, name: str) -> float | None:
        """The least value that a ReLU leaves of a node; None where there is no ReLU."""
        node = self.before_pools(name)
        return node.low if isinstance(node, Relu) else None

    def reads_image(self, node: Quantiser) -> bool:
        """Whether a quantiser stands behind the image's batch norm: it has 8 bits always."""
        return isinstance(self[_before_affine(self, node)], Input)


def _before_affine(graph: Graph, node: Node) -> str:
    """Name of the node whose batch norm (and ReLU) a quantiser quantises."""
    name = sources(node)[0]
    while isinstance(before := graph[name], BatchNorm | Relu):
        name = before.source
    return name


# -- rules -----------------------------------------------------------------------------------------


def _checked_shapes(graph: Graph) -> dict[str, Shape]:
    """Shape of every node; refuses what is no Graph."""
    if not graph.nodes or len(graph._by_name) != len(graph.nodes):
        raise LoweringError("the names of a graph's nodes must be unique")
    shapes: dict[str, Shape] = {graph.image.name: graph.image.shape}
    read = set()
    for node in graph.nodes[1:]:
        if isinstance(node, Input):
            raise LoweringError(f"{node.name}: a graph must have one input, not two")
        for name in sources(node):
            if name not in shapes:
                raise LoweringError(f"{node.name}: {name} must stand before it is read")
            read.add(name)
        shapes[node.name] = _shape(node, shapes)
    idle = [node.name for node in graph.nodes[:-1] if node.name not in read]
    if idle:
        raise LoweringError(f"{idle[0]}: a graph must have one output, but nothing reads this node")
    if shapes[graph.output] != (len(graph.labels), 1, 1):
        wanted = (len(graph.labels), 1, 1)
        raise LoweringError(
            f"{graph.output}: scores must have shape {wanted}, not {shapes[graph.output]}"
        )
    return shapes


def _shape(node: Node, shapes: dict[str, Shape]) -> Shape:
    """Shape of a node from those it reads."""

    def rule(holds: bool, what: str) -> None:
        if not holds:
            raise LoweringError(f"{node.name}: {what}")

    c, h, w = source = shapes[sources(node)[0]]
    match node:
        case BatchNorm():
            for part in (node.mean, node.variance, node.gamma, node.beta):
                rule(part.shape == (c,), f"batch norm must have {c} channels, not {part.shape}")
        case Conv():
            _, c_in, *kernel = node.weights.shape
            rule(c_in == c, f"convolution must read {c} channels, not {c_in}")
            rule(kernel == [node.kernel] * 2, f"kernel must be square, not {kernel}")
            rule(node.scale.shape in ((), node.weights.shape[:1]), "scale must be () or (C_out,)")
            size = node.pads.output_size((h, w), node.kernel, node.stride)
            rule(min(size) >= 1, f"a map of {h}x{w} must not be smaller than the kernel")
            return (node.weights.shape[0], *size)
        case Add():
            other = shapes[node.addend]
            rule(source == other, f"shapes must agree, not {source} and {other}")
        case AvgPool():
            rule(node.channels >= c, f"channels must be at least {c}, not {node.channels}")
            size = node.pads.output_size((h, w), POOL_KERNEL, 2)
            rule(min(size) >= 1, f"a map of {h}x{w} must not be smaller than the pool's window")
            return (node.channels, *size)
        case MaxPool():
            size = node.pads.output_size((h, w), node.kernel, node.stride)
            rule(min(size) >= 1, f"a map of {h}x{w} must not be smaller than the pool's window")
            around = (node.pads.top, node.pads.left, node.pads.bottom, node.pads.right)
            rule(max(around) < node.kernel, "every window must hold a pixel")
            return (c, *size)
        case GlobalMean():
            return (c, 1, 1)
    return source


# -- from a checkpoint -----------------------------------------------------------------------------


def build(checkpoint: Checkpoint) -> Graph:
    """The Graph of a checkpoint, in the order of docs/checkpoint.md.

    Quantisers stand in it whether or not the checkpoint has steps (`calibrate` fills them in).
    A downsampling block's pool stands before its second convolution: where its answer is needed.
    """
    network = checkpoint.network
    nodes: list[Node] = [Input("image", network.input)]

    def add(node: Node) -> str:
        nodes.append(node)
        return node.name

    def activation(source: str, batch_norm: str, relu: str) -> str:
        if network.shifted_relu:
            name = add(Relu(f"{batch_norm}.relu", source, -1.0))
        else:
            name = add(_batch_norm(checkpoint, batch_norm, source))
            name = add(Relu(f"{batch_norm}.relu", name))
        return add(_quantiser(checkpoint, relu, name))

    name = add(_batch_norm(checkpoint, "input.bn", "image"))
    if network.input_relu:
        name = add(Relu("input.bn.relu", name))
    name = add(_quantiser(checkpoint, "input", name))
    convs = {layer.name: layer for layer in schema.layers(network)}
    stream = add(_conv(checkpoint, convs["conv0"], name))
    if network.stem:
        name = activation(stream, "stem.bn", "stem.relu")
        pads = network.pads(convs["conv0"].size_out, POOL_KERNEL, 2)
        stream = add(MaxPool("stem", name, POOL_KERNEL, 2, pads))
    for block, _, c_out, stride in schema.blocks(network):
        first, second = convs[f"{block}.conv1"], convs[f"{block}.conv2"]
        name = activation(stream, f"{block}.bn1", f"{block}.relu1")
        name = add(_conv(checkpoint, first, name))
        name = activation(name, f"{block}.bn2", f"{block}.relu2")
        if network.skip and stride == 2:
            pads = network.pads(first.size_in, POOL_KERNEL, 2)
            pool = AvgPool(f"{block}.pool", stream, pads, network.count_padding, c_out)
            stream = add(pool)
        name = add(_conv(checkpoint, second, name))
        stream = add(Add(f"{block}.r", stream, name)) if network.skip else name
    name = activation(stream, "head.bn1", "head.relu")
    name = add(_conv(checkpoint, convs["head.conv"], name))
    if not network.shifted_relu:
        name = add(_batch_norm(checkpoint, "head.bn2", name))
    add(GlobalMean("head.mean", name))
    return Graph(network.name, tuple(nodes), tuple(map(str, range(network.classes))))


def _conv(checkpoint: Checkpoint, layer: schema.Layer, source: str) -> Conv:
    weights = checkpoint.tensors[f"{layer.name}.weight"]
    scale = checkpoint.tensors.get(f"{layer.name}.scale", np.float64(1.0))
    return Conv(layer.name, source, weights, np.asarray(scale), layer.stride, layer.pads)


def _batch_norm(checkpoint: Checkpoint, name: str, source: str) -> BatchNorm:
    t = checkpoint.tensors
    mean = t[f"{name}.mean"].astype(np.float64)
    gamma = t.get(f"{name}.gamma", np.ones_like(mean)).astype(np.float64)
    beta = t.get(f"{name}.beta", np.zeros_like(mean)).astype(np.float64)
    variance = t[f"{name}.variance"].astype(np.float64)
    return BatchNorm(name, source, mean, variance, gamma, beta, checkpoint.network.epsilon)


def _quantiser(checkpoint: Checkpoint, name: str, source: str) -> Quantiser:
    """``input`` is always 8 bits, signed unless a ReLU precedes it; its node is ``input.q``."""
    q = checkpoint.quantiser
    step = q.steps[name] if q else None
    if name == "input":
        zero = 0 if checkpoint.network.input_relu else SIGNED_INPUT_ZERO
        return Quantiser("input.q", source, INPUT_BITS, zero, step)
    zero = round(1 / step) if checkpoint.network.shifted_relu and step else 0
    return Quantiser(name, source, q.activation_bits if q else 8, zero, step)


# -- the interpreter -------------------------------------------------------------------------------


def run(
    graph: Graph,
    images: NDArray[np.uint8],
    quantised: bool = True,
    names: Iterable[str] = (),
    dtype: type[np.floating[Any]] = np.float64,
) -> dict[str, Float]:
    """Interpret a Graph, in float64 unless told otherwise.

    Parameters
    ----------
    images : (N, C, H, W) uint8
    quantised : bool
        False: as if no quantiser stood in the network.
    names : iterable of str
        Nodes whose values are wanted beside the scores.
    dtype : float64 or float32
        What every node's value is rounded to. In float32 convolutions take half the time, and
        scores differ in their sixth digit.

    Returns
    -------
    dict
        Node name to (N, C, H, W) of ``dtype``: ``names`` and ``graph.output``.
    """
    check_images(images, graph.image.shape)
    wanted = {*names, graph.output}

    def one(chunk: NDArray[np.uint8]) -> dict[str, Float]:
        return _run_chunk(graph, chunk, quantised, wanted, dtype)

    parts = in_chunks(one, images, IMAGES_PER_CHUNK)
    return {name: np.concatenate([part[name] for part in parts]) for name in wanted}


def batches(
    graph: Graph,
    images: NDArray[np.uint8],
    quantised: bool = True,
    names: Iterable[str] = (),
    dtype: type[np.floating[Any]] = np.float64,
) -> Iterator[dict[str, Float]]:
    """`run` over a few images at a time: for maps of many images, which would fill the memory."""
    wanted, size = tuple(names), IMAGES_PER_CHUNK * cores()
    for i in range(0, max(len(images), 1), size):
        yield run(graph, images[i : i + size], quantised, wanted, dtype)


def scores(
    graph: Graph,
    images: NDArray[np.uint8],
    quantised: bool = True,
    dtype: type[np.floating[Any]] = np.float64,
) -> Float:
    """Class scores, (N, classes)."""
    return run(graph, images, quantised, dtype=dtype)[graph.output].reshape(len(images), -1)


def check_images(images: NDArray[np.uint8], shape: Shape) -> None:
    """Refuse images a network cannot read; `LoweringError` says what they must be."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        found = f"{images.dtype} {images.shape}"
        raise LoweringError(f"images must be uint8 (N, {', '.join(map(str, shape))}), not {found}")
    if not len(images):
        raise LoweringError("images must be at least one, not 0")


def in_chunks(
    function: Callable[[NDArray[np.uint8]], Answer],
    images: NDArray[np.uint8],
    size: int,
    threads: int | None = None,
) -> list[Answer]:
    """``function`` of every ``size`` images, in order, by ``threads`` (default: one a core).

    The matrix library is kept to one thread meanwhile: its own threads are slower on matrices of
    this size, and a hundred times slower where they wait for cores that others use.
    """
    chunks = [images[i : i + size] for i in range(0, len(images), size)]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads or cores()) as pool:
        return list(pool.map(function, chunks))


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_chunk(
    graph: Graph,
    images: NDArray[np.uint8],
    quantised: bool,
    wanted: set[str],
    dtype: type[np.floating[Any]],
) -> dict[str, Float]:
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in sources(node)}
    values: dict[str, Float] = {}
    for i, node in enumerate(graph.nodes):
        if isinstance(node, Input):
            values[node.name] = images.astype(dtype)
            continue
        read = [values[name] for name in sources(node)]
        values[node.name] = evaluate(node, read, quantised).astype(dtype, copy=False)
        for name in sources(node):
            if last_use[name] == i and name not in wanted:
                del values[name]
    return {name: values[name] for name in wanted}


def evaluate(node: Node, read: list[Float], quantised: bool) -> Float:
    """Value of one node from the values of those it reads, (N, C, H, W) each."""
    x = read[0]
    match node:
        case BatchNorm():
            return x * node.slope[:, None, None] + node.intercept[:, None, None]
        case Relu():
            return np.maximum(x, node.low)
        case Quantiser():
            return _quantise(x, node) if quantised and node.step is not None else x
        case Conv():
            return _convolve(x, node)
        case Add():
            return x + read[1]
        case AvgPool():
            return _average(x, node, quantised)
        case MaxPool():
            return _largest(x, node)
        case GlobalMean():
            return np.asarray(x.mean(axis=(2, 3), keepdims=True))
    raise LoweringError(f"{node.name}: a graph must have one input, not two")


def _quantise(x: Float, node: Quantiser) -> Float:
    step = node.step or 1.0
    q = np.floor(x / step + 0.5)
    low, high = -node.zero, (1 << node.bits) - 1 - node.zero
    return np.asarray(np.clip(q, low, high) * step)


def padded(x: NDArray[Any], pads: Pads) -> NDArray[Any]:
    """Maps with zeros around them."""
    n, c, h, w = x.shape
    out = np.zeros((n, c, h + pads.top + pads.bottom, w + pads.left + pads.right), x.dtype)
    out[:, :, pads.top : pads.top + h, pads.left : pads.left + w] = x
    return out


def patches(x: NDArray[Any], kernel: int, stride: int, size: tuple[int, int]) -> NDArray[Any]:
    """Windows of padded maps as columns: (N, C, H, W) -> (N, C*K*K, H_out*W_out), weight order."""
    n, c, _, _ = x.shape
    h, w = size
    columns = np.empty((n, c, kernel, kernel, h, w), x.dtype)
    for ky in range(kernel):
        for kx in range(kernel):
            rows = slice(ky, ky + stride * (h - 1) + 1, stride)
            columns[:, :, ky, kx] = x[:, :, rows, kx : kx + stride * (w - 1) + 1 : stride]
    return columns.reshape(n, c * kernel * kernel, h * w)


def convolve(x: NDArray[Any], weights: NDArray[Any], stride: int, pads: Pads) -> NDArray[Any]:
    """Convolution in the type of ``x``, zero padding, one matrix product an image.

    The patches are gathered for a few images at a time, so that they stay in the cache.
    """
    n, _, h, w = x.shape
    c_out, kernel = weights.shape[0], weights.shape[-1]
    size = pads.output_size((h, w), kernel, stride)
    matrix = weights.reshape(c_out, -1).astype(x.dtype)
    out = np.empty((n, c_out, size[0] * size[1]), x.dtype)
    at_once = max(1, CHUNK_BYTES // (matrix.shape[1] * size[0] * size[1] * x.itemsize))
    for i in range(0, n, at_once):
        columns = patches(padded(x[i : i + at_once], pads), kernel, stride, size)
        np.matmul(matrix, columns, out=out[i : i + at_once])
    return out.reshape(n, c_out, *size)


def _convolve(x: Float, node: Conv) -> Float:
    scale = np.broadcast_to(node.scale, node.weights.shape[:1])
    return np.asarray(convolve(x, node.weights, node.stride, node.pads) * scale[:, None, None])


def _largest(x: Float, node: MaxPool) -> Float:
    n, c, h, w = x.shape
    size = node.pads.output_size((h, w), node.kernel, node.stride)
    turn = np.ones((c, 1, 1)) if node.falling is None else 1.0 - 2 * node.falling[:, None, None]
    p = node.pads
    around = np.pad(
        x * turn, ((0, 0), (0, 0), (p.top, p.bottom), (p.left, p.right)), constant_values=-np.inf
    )
    windows = patches(around, node.kernel, node.stride, size)
    best = windows.reshape(n, c, node.kernel**2, *size).max(axis=2)
    return np.asarray(best * turn)


TIE = 1e-6
"""Pooled sums are whole parts of a unit: what is this near to a tie is one, and goes upwards."""


def _average(x: Float, node: AvgPool, quantised: bool) -> Float:
    n, c, h, w = x.shape
    size = node.pads.output_size((h, w), POOL_KERNEL, 2)
    windows = patches(padded(x, node.pads), POOL_KERNEL, 2, size)
    total = windows.reshape(n, c, POOL_KERNEL**2, *size).sum(axis=2)
    out = np.zeros((n, node.channels, *size))
    mean = total / pool_counts((h, w), node.pads, node.count_padding)
    if quantised and node.unit is not None:
        mean = np.floor(mean / node.unit + (0.5 + TIE)) * node.unit
    out[:, :c] = mean
    return out
