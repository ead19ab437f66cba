"""A Graph while it is being made of another format's operators: what each of them may read.

Every method takes `View`s of maps that are already there and gives the view of a new one, or says
in a `Refused` what about it `compiler.lower` could not lower. Lowering itself stops at the first
fault; here each operator is judged by itself, so that all faults can be told at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compiler import graph as ir
from compiler.arith import INPUT_BITS, POOL_KERNEL, SIGNED_INPUT_ZERO, Pads, pool_counts
from compiler.checkpoint import MAX_CHANNELS
from compiler.onnx_quant import LARGEST, Levels
from compiler.onnx_view import NO_PADS, Refused, View

Array = NDArray[Any]

SPREAD = 1e-5
"""Weights of a channel are ±one constant if their sizes agree to this: exporters fold batch norms
into them in single precision."""

SAME = 1e-6
"""Scales of a layer's channels are one number if they agree to this."""

MAX_MAP = 1 << 24
"""Most pixels of a map."""

COUNTS = (9, 6, 4)
"""Pixels that a pool's window may hold: the others have no exact sum of shifts."""

RESERVED = ("scores",)
"""Names that the Program gives to tensors of its own."""

AFFINE = (ir.Input, ir.Conv, ir.BatchNorm, ir.Add, ir.AvgPool)
"""What a batch norm can be applied to: nothing that has been through a ReLU or a quantiser, but
for the activations that a residual stream starts with."""

STREAM = (ir.Conv, ir.Add, ir.AvgPool)
"""What a residual stream consists of."""


class Line(NamedTuple):
    """A chain of batch norms as one: ``slope * root + intercept``, (C,) each."""

    slope: ir.Float
    intercept: ir.Float


@dataclass(slots=True)
class Builder:
    """A Graph under construction.

    Attributes
    ----------
    nodes : dict
        By name, in order of the flow.
    marks : dict
        Quantisers without a step, by the node that they stand behind.
    """

    nodes: dict[str, ir.Node] = field(default_factory=dict)
    marks: dict[str, ir.Quantiser] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _lines: dict[str, Line] = field(default_factory=dict)

    def graph(self, network: str, output: View) -> ir.Graph:
        """Close with the scores, and leave out what they do not depend on.

        Raises
        ------
        Refused
            The output is not one score a class, from a convolution.
        """
        classes, *size = output.plain().shape
        if size != [1, 1] or "".join(map(output.wide, output.axes)).strip("NC"):
            raise Refused(f"scores must be (N, classes), not {output.sizes}")
        last = self._root(output.node)
        if isinstance(last, ir.GlobalMean) and output.node == last.name:  # of every pixel's scores
            last = self._root(last.source)
            if isinstance(last, ir.Conv) and (last.kernel, last.stride, last.pads) != (
                1,
                1,
                NO_PADS,
            ):
                raise Refused("a mean of scores must be that of a 1x1 convolution")
        if not isinstance(last, ir.Conv):
            raise Refused(f"scores must come from a convolution, not from {_said(last)}")
        wanted, kept = {output.node}, []
        for node in reversed(list(self._ordered())):
            if node.name in wanted:
                wanted.update(ir.sources(node))
                kept.append(node)
        return ir.Graph(network, tuple(reversed(kept)), tuple(map(str, range(classes))))

    def _ordered(self) -> Iterator[ir.Node]:
        """All nodes, each mark behind its node."""
        for node in self.nodes.values():
            yield node
            if node.name in self.marks:
                yield self.marks[node.name]

    # -- nodes ---------------------------------------------------------------------------------

    def image(self, name: str, view: View) -> View:
        """The input; `view` has its shape, batch and order of axes."""
        name = self._name(name)
        self.nodes[name] = ir.Input(name, view.shape)
        return replace(view, node=name)

    def batch_norm(self, name: str, x: View, norm: ir.BatchNorm) -> View:
        """A batch norm; name and source of ``norm`` are set here.

        Refused on values that have been through a ReLU or a quantiser, or that are not finite.
        """
        source = self._before_pools(x.plain().node)
        starts = isinstance(source, ir.Quantiser) and x.shared
        if not isinstance(source, AFFINE) and not starts:
            raise Refused(f"batch norms, scales and offsets must not follow {_said(source)}")
        parts = (norm.mean, norm.variance, norm.gamma, norm.beta)
        if any(part.shape != x.shape[:1] for part in parts):
            found = [part.shape for part in parts]
            raise Refused(f"it must have {x.shape[0]} channels, not {found}")
        if (norm.variance + norm.epsilon < 0).any():
            raise Refused("its variances must not be negative")
        before = self._lines.get(x.node, Line(np.ones(()), np.zeros(())))
        with np.errstate(all="ignore"):
            slope = before.slope * norm.slope
            line = Line(slope, before.intercept * norm.slope + norm.intercept)
        if not all(np.abs(part).max() < LARGEST for part in line):  # nor is a NaN
            raise Refused(f"its numbers must be finite, and below {LARGEST:g}")
        out = self._append(name, x, lambda n: replace(norm, name=n, source=x.node))
        self._lines[out.node] = line
        return out

    def affine(self, name: str, x: View, slope: Array, offset: Array) -> View:
        """``slope * x + offset``, each () or (C,): a layer's scale, or a batch norm taken apart.

        A positive factor of a convolution that nothing else reads is its scale.
        """
        node = self.nodes[x.plain().node]
        if isinstance(node, ir.Conv) and not x.shared and not offset.any() and (slope > 0).all():
            scale = np.asarray(node.scale * slope, np.float64)
            if not _sensible(scale).all():
                raise Refused(f"its scale must be {1 / LARGEST:g} to {LARGEST:g}")
            return self._replaced(name, x, lambda n: replace(node, name=n, scale=scale))
        channels = x.shape[0]
        gamma, beta = (np.broadcast_to(part, channels).copy() for part in (slope, offset))
        zeros, ones = np.zeros(channels), np.ones(channels)
        return self.batch_norm(name, x, ir.BatchNorm("", "", zeros, ones, gamma, beta, 0.0))

    def relu(self, name: str, x: View, low: float = 0.0) -> View:
        """A ReLU; one more behind another, or behind an unsigned quantiser, is none.

        Parameters
        ----------
        low : float
            What it leaves at least, at most 0: the shifted ReLU's is negative.
        """
        source = self._before_pools(x.plain().node)
        if (isinstance(source, ir.Relu) and source.low >= low) or (
            isinstance(source, ir.Quantiser) and not source.zero
        ):
            return x
        if not isinstance(source, AFFINE):
            raise Refused(f"a ReLU must not follow {_said(source)}")
        return self._append(name, x, lambda n: ir.Relu(n, x.node, low))

    def quantise(self, name: str, x: View, levels: Levels) -> View:
        """A quantiser with a step."""
        source = self._before_pools(x.plain().node)
        quantiser = ir.Quantiser("", x.node, levels.bits, -levels.low, levels.step)
        if isinstance(source, ir.Quantiser):
            if replace(quantiser, name=source.name, source=source.source) != source:
                raise Refused(f"it must not quantise what {source.name} already has")
            return x
        lowest = levels.low * levels.step
        if isinstance(source, ir.Relu) and not math.isclose(lowest, source.low, rel_tol=SPREAD):
            steps = f" steps of {levels.step:g}" if source.low else ""
            raise Refused(
                f"the quantiser of a ReLU must start at {source.low:g}, not at {levels.low}{steps}"
            )
        if not isinstance(source, (*AFFINE, ir.Relu)):
            raise Refused(f"a quantiser must not follow {_said(source)}")
        return self._append(name, x, lambda n: replace(quantiser, name=n))

    def convolve(
        self, name: str, x: View, weights: Array, stride: int, pads: Pads, bias: Array
    ) -> View:
        """A convolution of (N, C, H, W); its bias, and channels without weights, become a norm.

        Parameters
        ----------
        weights : (C_out, C_in, K, K)
            ±one constant, of the layer or of each output channel.
        bias : () or (C_out,)
        """
        signs, scale, dead = factor(weights)
        if x.more:
            raise Refused("zero channels must follow a pool, not go into a convolution")
        outputs, inputs, kernel, _ = signs.shape
        if inputs != x.shape[0]:
            raise Refused(f"it must read {inputs} channels, not {x.shape[0]}")
        pads = _joined(pads, x.pads)
        size = _output_size(x, pads, kernel, stride)
        source = self._quantised(x)
        shape = (outputs, *size)

        def make(n: str) -> ir.Node:
            return ir.Conv(n, source, signs, scale, stride, pads)

        bare = replace(x, pads=NO_PADS)
        out = self._append(name, bare, make, shape)
        if not dead.any() and not bias.any():
            return out
        if bias.shape not in ((), (1,), (outputs,)) or not np.isfinite(bias).all():
            raise Refused(f"its bias must be {outputs} finite numbers, not {bias.shape}")
        live = replace(out, shared=True)  # a bias alone is no scale
        return self.affine(f"{name}.bias", live, np.where(dead, 0.0, 1.0), bias)

    def pool(self, name: str, x: View, pads: Pads, *, count_padding: bool) -> View:
        """The skip of a downsampling block: 3x3 means, stride 2; zero channels go through it."""
        source = self.nodes[x.node]
        if not isinstance(source, STREAM):
            raise Refused(f"a pool must read the residual stream, not {_said(source)}")
        if x.pads != NO_PADS:  # zeros that are pixels to the pool
            if pads != NO_PADS and not count_padding:
                raise Refused("a pool must count all of its padding, or none")
            count_padding = True
        pads = _joined(pads, x.pads)
        size = _output_size(x, pads, POOL_KERNEL, 2)
        if not np.isin(pool_counts(x.shape[1:], pads, count_padding), COUNTS).all():
            raise Refused(f"windows over a map of {x.shape[1:]} must hold 9, 6 or 4 pixels")
        channels = x.shape[0] + x.more
        bare = replace(x, pads=NO_PADS, more=0)
        return self._append(
            name,
            bare,
            lambda n: ir.AvgPool(n, x.node, pads, count_padding, channels),
            (channels, *size),
        )

    def maximum(self, name: str, x: View, kernel: int, stride: int, pads: Pads) -> View:
        """The largest of each window, of sums or of activations."""
        source = self._before_pools(x.node)
        if not isinstance(source, ir.Conv | ir.BatchNorm | ir.Relu | ir.Quantiser) or x.more:
            raise Refused(f"a maximum must read sums or activations, not {_said(source)}")
        if x.pads != NO_PADS:  # zeros are values to it, and none is smaller behind a ReLU
            if not self._unsigned(source):
                raise Refused("a maximum may have zeros around its map behind a ReLU only")
            pads = _joined(pads, x.pads)
        size = _output_size(x, pads, kernel, stride)
        if max(pads.top, pads.left, pads.bottom, pads.right) >= kernel:
            raise Refused(f"every window of {kernel}x{kernel} must hold a pixel, pads are {pads}")
        bare = replace(x, pads=NO_PADS)
        return self._append(
            name, bare, lambda n: ir.MaxPool(n, x.node, kernel, stride, pads), (x.shape[0], *size)
        )

    def _unsigned(self, node: ir.Node) -> bool:
        """Whether no value of a node is below 0."""
        if isinstance(node, ir.Quantiser):
            return not node.zero
        return isinstance(node, ir.Relu) and node.low >= 0

    def zero_channels(self, name: str, x: View, count: int) -> View:
        """Zero channels behind those of x; where x is a pool's, they are part of it."""
        node = self.nodes[x.node]
        if not count:
            return x
        if count > MAX_CHANNELS:
            raise Refused(f"zero channels must be at most {MAX_CHANNELS:,}, not {count:,}")
        if not isinstance(node, ir.AvgPool) or x.shared:
            return replace(x, more=x.more + count)
        channels = node.channels + count
        shape = (channels, *x.shape[1:])
        return self._replaced(name, x, lambda n: replace(node, name=n, channels=channels), shape)

    def mean(self, name: str, x: View) -> View:
        """The mean over all pixels, of activations or of scores."""
        source = self._before_pools(x.plain().node)
        read = self._mark(x) if isinstance(source, ir.Relu) else x.node
        if not isinstance(source, ir.Relu | ir.Quantiser | ir.Conv | ir.BatchNorm):
            raise Refused(f"the global mean must read activations or scores, not {_said(source)}")
        return self._append(name, x, lambda n: ir.GlobalMean(n, read), (x.shape[0], 1, 1))

    def add(self, name: str, a: View, b: View) -> View:
        """A residual addition, its operands in any order."""
        a, b = a.plain(), b.plain()
        if a.shape != b.shape or a.axes != b.axes:
            raise Refused(f"it must add maps of one shape, not {a.sizes} and {b.sizes}")
        found = [self.nodes[x.node] for x in (a, b)]
        order = {n: i for i, n in enumerate(self.nodes)}
        # Of two convolutions the earlier one is the stream: the block adds to what was there.
        pairs = sorted(
            [(a, b), (b, a)],
            key=lambda pair: (isinstance(self.nodes[pair[0].node], ir.Conv), order[pair[0].node]),
        )
        fitting = [
            (stream.node, addend.node)
            for stream, addend in pairs
            if isinstance(self._before_pools(stream.node), STREAM + (ir.Quantiser,))
            and isinstance(self._root(addend.node), ir.Conv)
        ]
        if not fitting:
            raise Refused(
                "an addition must join the residual stream (a convolution, pool or addition) with "
                f"a convolution and its batch norm, not {_said(found[0])} with {_said(found[1])}"
            )
        line = self._lines.get(fitting[0][1])
        if line is not None and not line.slope.any():
            raise Refused("it adds nothing but constants: the batch norm in front has no scale")
        return self._append(name, a, lambda n: ir.Add(n, *fitting[0]))

    # -- quantisers that the file lacks --------------------------------------------------------

    def _quantised(self, x: View) -> str:
        """The node that a convolution reads; a quantiser is marked where it has to stand."""
        source = self._before_pools(x.node)
        if isinstance(source, ir.Quantiser):
            return x.node
        if isinstance(source, ir.GlobalMean):
            marked = any(mark.name == source.source for mark in self.marks.values())
            if marked or isinstance(self._before_pools(source.source), ir.Quantiser):
                return x.node
            raise Refused("the mean that it reads must be that of activations, not of scores")
        if isinstance(source, ir.Relu | ir.Input) or self._of_image(source):
            return self._mark(x)
        raise Refused(f"a convolution must read a ReLU or a quantiser, not {_said(source)}")

    def _mark(self, x: View) -> str:
        """A quantiser behind a node. Pixels as they come are their own integers."""
        if x.node not in self.marks:
            source = self._before_pools(x.node)
            signed = isinstance(source, ir.BatchNorm)
            self.marks[x.node] = ir.Quantiser(
                self._name(x.alias or f"{x.node}.q"),
                x.node,
                INPUT_BITS,
                SIGNED_INPUT_ZERO if signed else 0,
                1.0 if isinstance(source, ir.Input) else None,
            )
        return self.marks[x.node].name

    def _of_image(self, node: ir.Node) -> bool:
        """Whether a node is the image's batch norm."""
        return isinstance(node, ir.BatchNorm) and isinstance(self._root(node.name), ir.Input)

    def _before_pools(self, name: str) -> ir.Node:
        """The node itself, or what stands before the maximum that it is."""
        while isinstance(node := self.nodes[name], ir.MaxPool):
            name = node.source
        return node

    # -- bookkeeping ---------------------------------------------------------------------------

    def _root(self, name: str) -> ir.Node:
        """The node below a chain of batch norms."""
        marked = {mark.name: mark for mark in self.marks.values()}
        node = marked[name] if name in marked else self.nodes[name]
        while isinstance(node, ir.BatchNorm):
            node = self.nodes[node.source]
        return node

    def _name(self, text: str) -> str:
        """A name for a node: the file's, made unique."""
        clean = text.strip("/").replace("/", ".") or "node"
        found, count = clean, 1
        while found in self._names or found in RESERVED:
            count += 1
            found = f"{clean}_{count}"
        self._names.add(found)
        return found

    def _append(
        self, name: str, x: View, make: Callable[[str], ir.Node], shape: ir.Shape | None = None
    ) -> View:
        """A new node; its map is seen in the order of axes that x is."""
        made = make(self._name(name))
        self.nodes[made.name] = made
        return replace(x, node=made.name, shape=shape or x.shape, alias="", shared=False)

    def _replaced(
        self, name: str, x: View, make: Callable[[str], ir.Node], shape: ir.Shape | None = None
    ) -> View:
        """A node in the place of that of x, which it takes in."""
        del self.nodes[x.node]
        self._names.discard(x.node)
        return self._append(name, x, make, shape)


# -- weights ---------------------------------------------------------------------------------------


def factor(weights: Array) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.bool_]]:
    """Weights as ±1 times a scale: of the layer if it is one number, else of each output channel.

    Parameters
    ----------
    weights : (C_out, C_in, K, K)

    Returns
    -------
    signs : int8, as weights
    scale : float64, () or (C_out,)
    dead : bool, (C_out,)
        Channels whose weights are all 0; their signs and scale mean nothing.

    Raises
    ------
    Refused
        A channel has weights of two sizes, or the kernel is not square.
    """
    if weights.ndim != 4 or weights.shape[2] != weights.shape[3] or not weights.size:
        raise Refused(f"its weights must be (C_out, C_in, K, K), not {weights.shape}")
    sizes = np.abs(weights.reshape(len(weights), -1))
    low, high = sizes.min(axis=1).astype(np.float64), sizes.max(axis=1).astype(np.float64)
    dead = high == 0
    with np.errstate(invalid="ignore"):  # of infinite weights, which are uneven too
        uneven = ~(high - low <= SPREAD * high) | (~_sensible(high) & ~dead)
    if uneven.any():
        worst = int(np.argmax(uneven))
        raise Refused(
            "its weights must be 1-bit, ±one constant a layer or a channel; of "
            f"{np.count_nonzero(uneven)} channels they are not, channel {worst} has sizes "
            f"{low[worst]:.6g} to {high[worst]:.6g}"
        )
    scale = np.where(dead, 1.0, (low + high) / 2)
    live = scale[~dead]
    if len(live) and np.ptp(live) <= SAME * live.max():
        scale = np.asarray(live[0] if np.ptp(live) == 0 else live.mean())
    return np.where(weights < 0, -1, 1).astype(np.int8), scale, dead


def _sensible(numbers: Array) -> NDArray[np.bool_]:
    """Which of some positive numbers lowering can compute with."""
    return (numbers > 1 / LARGEST) & (numbers < LARGEST)


def _output_size(x: View, pads: Pads, kernel: int, stride: int) -> tuple[int, int]:
    """Of a window's answers over a map; refused where there are none, or more than one can hold."""
    h, w = pads.output_size(x.shape[1:], kernel, stride)
    if h < 1 or w < 1:
        raise Refused(f"a map of {x.shape[1]}x{x.shape[2]} must hold its {kernel}x{kernel} window")
    if h * w > MAX_MAP:
        raise Refused(f"its map must have at most {MAX_MAP:,} pixels, not {h:,}x{w:,}")
    return h, w


def _joined(a: Pads, b: Pads) -> Pads:
    """Zeros around zeros."""
    return Pads(a.top + b.top, a.left + b.left, a.bottom + b.bottom, a.right + b.right)


def _said(node: ir.Node) -> str:
    """A node for people."""
    kinds = {ir.Input: "the image", ir.Conv: "convolution", ir.BatchNorm: "batch norm"}
    kinds |= {ir.Add: "addition", ir.AvgPool: "pool", ir.GlobalMean: "global mean"}
    kind = kinds.get(type(node), type(node).__name__)
    return kind if isinstance(node, ir.Input) else f"{kind} {node.name}"
