"""Graph to Program: the float network becomes integers, additions and shifts.

Between two integer tensors a Graph has only affine functions (a convolution's scale, batch norm),
ReLU and a quantiser: together one staircase (`arith.staircase`). What takes a decision is the
residual stream, whose unit and width are chosen for each stage before anything is emitted:

1. Every addend of a stage is ``scale * step`` times its accumulator. Where these are one number
   times powers of two, the finest is the stage's unit and the additions are exact after a shift.
2. The pool in front of a stage fixes its unit up to powers of two: ``unit / 36 * 2**n``.
3. The stage's width holds what calibration images drive it to, and one bit more; without images
   what its batch norms' moments allow. Where that is wider than ``residual_bits`` addends are
   shifted right and rounded, and rare values saturate: the unit is that of least expected error.
4. An addend that no shift can align passes a signed division into the stage's unit.

A maximum stands behind the staircase that follows it: of activations it is cheap, and staircases
are monotone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from compiler import arith
from compiler import graph as ir
from compiler.arith import SCORE_BITS, Staircase
from compiler.calibrate import calibrate
from compiler.checkpoint import pack_signs
from compiler.errors import LoweringError
from compiler.graph import Float, Graph, Node
from compiler.program import (
    Add,
    Conv,
    Kind,
    MaxPool,
    Op,
    Pool,
    Program,
    Quantise,
    SumPixels,
    Tensor,
)

RESIDUAL_BITS = 16
"""Widest residual stream, unless told otherwise: the trained networks' are not rounded in it."""

DEVIATIONS = 8.0
"""Without images, a stream is taken to stay within so many standard deviations of its mean."""

SAMPLES = 1 << 18
"""Values kept of each node of a stream, to see how many would saturate."""

FAR = 30.0
"""Deviations beyond which a normal density is 0 for every purpose."""


def lower(
    graph: Graph,
    activation_bits: int | None = None,
    images: NDArray[np.uint8] | None = None,
    residual_bits: int | None = RESIDUAL_BITS,
) -> Program:
    """Lower a Graph to a verified Program.

    Parameters
    ----------
    activation_bits : int, optional
        2 .. 8. Steps are calibrated anew where the Graph has none, or has another width.
    images : (N, C, H, W) uint8, optional
        Calibration images (of the training set). They choose steps, where steps are to be chosen,
        and the widths of the residual streams.
    residual_bits : int, optional
        Upper bound of those widths; None for none.

    Raises
    ------
    LoweringError
        Naming the layer and what about it has no integer form.
    """
    graph = maxima_behind_staircases(quantised(graph, activation_bits, images))
    graph = mean_before_head(graph)
    emitter = _Emitter(graph, plan_streams(graph, images, residual_bits))
    for node in graph.nodes:
        emitter.emit(node)
    return emitter.program().verify()


def quantised(
    graph: Graph, activation_bits: int | None = None, images: NDArray[np.uint8] | None = None
) -> Graph:
    """The Graph whose quantisers `lower` uses: its own, or calibrated ones (see `lower`)."""
    own = [q for q in graph.all(ir.Quantiser) if not graph.reads_image(q)]
    complete = all(q.step is not None for q in graph.all(ir.Quantiser))
    if complete and activation_bits in (None, *{q.bits for q in own}):
        return graph
    if activation_bits is None:
        message = f"{graph.network} has float activations: their width must be chosen"
        raise LoweringError(message, "--activation-bits 4")
    if not 2 <= activation_bits <= 8:
        raise LoweringError(f"activation bits must be 2 to 8, not {activation_bits}")
    return calibrate(graph, activation_bits, images)


def rounded(graph: Graph, program: Program) -> Graph:
    """The Graph with its pools rounded too, in the units that lowering chose: nothing else is, in a
    residual stream that is wide enough."""
    units = {op.output: program[op.output].step for op in program.ops if isinstance(op, Pool)}
    return graph.with_pool_units(units)


def mean_before_head(graph: Graph) -> Graph:
    """Move a closing global mean in front of the 1x1 convolution and batch norms it follows.

    All are linear, so the scores are the same and the convolution is done once, not once a pixel.
    """
    mean = graph.nodes[-1]
    if not isinstance(mean, ir.GlobalMean):
        return graph
    tail: list[Node] = []
    node = graph[mean.source]
    while isinstance(node, ir.BatchNorm):
        tail.insert(0, node)
        node = graph[node.source]
    if not isinstance(node, ir.Conv):
        raise LoweringError(f"{mean.name}: the global mean must follow a convolution's batch norm")
    if (node.kernel, node.stride, node.pads) != (1, 1, arith.Pads(0, 0, 0, 0)):
        raise LoweringError(f"{node.name}: the head's convolution must be 1x1 without padding")
    moved = [replace(mean, source=node.source), replace(node, source=mean.name), *tail]
    names = {n.name for n in moved}
    kept = [n for n in graph.nodes if n.name not in names]
    return Graph(graph.network, (*kept, *moved), graph.labels)


def maxima_behind_staircases(graph: Graph) -> Graph:
    """Move every maximum behind the batch norms, the ReLU and the quantiser that follow it.

    All are monotone, so the answers are the same, if channels whose scale is negative take the
    smallest value. The maximum gets the quantiser's name, which is that of its answers.
    """
    for pool in graph.all(ir.MaxPool):
        if not isinstance(graph[pool.source], ir.Quantiser):
            graph = _maximum_last(graph, pool)
    return graph


def _maximum_last(graph: Graph, pool: ir.MaxPool) -> Graph:
    slope = np.ones(graph.shapes[pool.name][0])
    changed: dict[str, list[Node]] = {pool.name: []}
    node: Node = pool
    while not isinstance(node, ir.Quantiser):
        readers = graph.consumers(node.name)
        following = readers[0] if len(readers) == 1 else None
        if not isinstance(following, ir.BatchNorm | ir.Relu | ir.Quantiser):
            found = ", ".join(reader.name for reader in readers)
            raise LoweringError(
                f"{pool.name}: a quantiser must stand before or behind the maximum, "
                f"with a batch norm and a ReLU at most between them, not {found}"
            )
        if isinstance(following, ir.BatchNorm):
            slope = slope * following.slope
        source = pool.source if node is pool else node.name
        changed[following.name] = [replace(following, source=source)]
        node = following
    whole = replace(changed[node.name][0], name=f"{node.name}.whole")
    moved = replace(pool, name=node.name, source=whole.name, falling=slope < 0)
    changed[node.name] = [whole, moved]
    nodes = [n for old in graph.nodes for n in changed.get(old.name, [old])]
    return Graph(graph.network, tuple(nodes), graph.labels)


# -- affine functions between integer tensors ------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """``slope * root + intercept``, (C,) each: a float node in terms of the node ``root``.

    The root is a node that has an integer tensor of its own. For a convolution and a global mean
    slope includes everything up to their source's integer q.
    """

    root: str
    slope: Float
    intercept: Float
    relu: ir.Relu | None = None


def affine(graph: Graph, name: str) -> Affine:
    """Fold batch norms (and a ReLU behind them) back to the node that they are applied to.

    A root's own step is not in it, but for a `Conv`, whose slope is that of its accumulator.
    """
    node = graph[name]
    channels = graph.shapes[name][0]
    match node:
        case ir.BatchNorm():
            inner = affine(graph, node.source)
            if inner.relu:
                raise LoweringError(f"{node.name}: a batch norm must not follow a ReLU directly")
            slope = inner.slope * node.slope
            return Affine(inner.root, slope, inner.intercept * node.slope + node.intercept)
        case ir.Relu():
            return replace(affine(graph, node.source), relu=node)
        case ir.Conv():
            slope = np.broadcast_to(node.scale * source_step(graph, node), channels)
            return Affine(name, np.where(flipped(graph, node), -slope, slope), np.zeros(channels))
        case _:
            return Affine(name, np.ones(channels), np.zeros(channels))


def source_of(graph: Graph, conv: ir.Conv) -> tuple[ir.Quantiser, int]:
    """The quantiser whose integers a convolution reads, and of how many pixels it reads the sum."""
    source = graph.before_pools(conv.source)
    pixels = 1
    if isinstance(source, ir.GlobalMean):
        _, h, w = graph.shapes[source.source]
        pixels, source = h * w, graph.before_pools(source.source)
    if not isinstance(source, ir.Quantiser):
        raise LoweringError(f"{conv.name}: the input of a convolution must be quantised")
    return source, pixels


def source_step(graph: Graph, conv: ir.Conv) -> float:
    """Real value of one unit of the integers that a convolution reads."""
    quantiser, pixels = source_of(graph, conv)
    if quantiser.step is None:
        raise LoweringError(f"{quantiser.name}: a quantiser must have a step")
    return quantiser.step / pixels


def norms_behind(graph: Graph, conv: ir.Conv) -> list[ir.BatchNorm]:
    """The chain of batch norms that alone reads a convolution."""
    found: list[ir.BatchNorm] = []
    name = conv.name
    while len(readers := graph.consumers(name)) == 1 and isinstance(readers[0], ir.BatchNorm):
        found.append(readers[0])
        name = readers[0].name
    return found


def flipped(graph: Graph, conv: ir.Conv) -> NDArray[np.bool_]:
    """Output channels whose weights are negated, so that the staircase behind them rises."""
    sign = np.ones(graph.shapes[conv.name][0])
    for norm in norms_behind(graph, conv):
        sign = sign * norm.slope
    return sign < 0


# -- residual streams ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Normal:
    """Values of a stream node by mean and variance of each channel, (C,) each, in real units."""

    mean: Float
    variance: Float

    def beyond(self, half: float) -> Float:
        """Mean square of how far the values lie beyond ``-half .. half``, (C,)."""
        ends = np.stack([half - self.mean, half + self.mean]) / np.sqrt(self.variance)
        ends = np.clip(ends, -FAR, FAR)
        tail = np.vectorize(math.erfc, otypes=[float])(ends / math.sqrt(2)) / 2
        density = np.exp(-np.square(ends) / 2) / math.sqrt(2 * math.pi)
        squares = (1 + np.square(ends)) * tail - ends * density
        return np.asarray(self.variance * np.maximum(squares, 0).sum(axis=0), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Values of a stream node, (C, N), in real units."""

    values: NDArray[np.float32]

    @property
    def variance(self) -> Float:
        """Of each channel, (C,); above 0."""
        found = self.values.var(axis=1, dtype=np.float64)
        return np.asarray(np.maximum(found, np.finfo(np.float32).tiny))

    def beyond(self, half: float) -> Float:
        """As `Normal.beyond`."""
        over = np.maximum(np.abs(self.values) - half, 0)
        return np.asarray(np.square(over).mean(axis=1, dtype=np.float64))


@dataclass(slots=True)
class Stream:
    """The residual stream of one stage, while its unit and width are being chosen.

    Attributes
    ----------
    addends : dict
        Stream node (where a sum stands) to what is added there.
    pool : AvgPool or None
        Where the stream comes from; None for the first, which starts with its first addend.
    reach : float
        Largest absolute value that it has to hold, in real units.
    values : dict
        What its nodes hold, where that is known.
    """

    pool: ir.AvgPool | None
    addends: dict[str, Affine] = field(default_factory=dict)
    reach: float = 0.0
    values: dict[str, Normal | Sample] = field(default_factory=dict)
    unit: float = 1.0
    bits: int = 2
    right_shift: int = 0


def stream_starts(graph: Graph) -> set[str]:
    """The convolutions, and the activations, that a residual stream starts with."""
    streams = [n.source for n in graph.nodes if isinstance(n, ir.Add | ir.AvgPool)]
    found = {affine(graph, name).root for name in streams if not _is_stream(graph[name])}
    # Activations that are quantised again are a stream of their own.
    for node in graph.nodes:
        if isinstance(node, ir.BatchNorm | ir.Relu):
            source = graph[node.source]
            if isinstance(graph.before_pools(source.name), ir.Quantiser):
                found.add(source.name)
    return found


def _is_stream(node: Node) -> bool:
    return isinstance(node, ir.Add | ir.AvgPool)


def plan_streams(
    graph: Graph, images: NDArray[np.uint8] | None, residual_bits: int | None
) -> dict[str, Stream]:
    """Choose unit and width of every stage's stream; returns stream node to its Stream."""
    starts = stream_starts(graph)
    member: dict[str, Stream] = {}
    order: list[tuple[Stream, Stream | None]] = []
    for node in graph.nodes:
        if node.name in starts:
            member[node.name] = stream = Stream(None)
            stream.addends[node.name] = _start(graph, node)
            order.append((stream, None))
        elif isinstance(node, ir.AvgPool):
            member[node.name] = stream = Stream(node)
            order.append((stream, member[_stream_source(graph, node, member)]))
        elif isinstance(node, ir.Add):
            member[node.name] = stream = member[_stream_source(graph, node, member)]
            stream.addends[node.name] = _addend(graph, node)
    reaches, values = _promised(graph, member) if images is None else _seen(graph, member, images)
    for name, stream in member.items():
        stream.reach = max(stream.reach, reaches[name])
        if name in values:
            stream.values[name] = values[name]
    for stream, before in order:
        _choose_unit(stream, before)
        _fit(stream, before, residual_bits)
    return member


def _stream_source(graph: Graph, node: ir.Add | ir.AvgPool, member: dict[str, Stream]) -> str:
    if node.source not in member:
        kind = type(graph[node.source]).__name__
        raise LoweringError(
            f"{node.name}: a residual stream must start at a convolution or at activations, "
            f"not at {node.source} ({kind})"
        )
    return node.source


def _start(graph: Graph, node: Node) -> Affine:
    """What a stream begins with, in terms of its integers: accumulators, or activations."""
    value = affine(graph, node.name)
    source = graph.before_pools(node.name)
    if isinstance(source, ir.Quantiser) and source.step is not None:
        return replace(value, slope=value.slope * source.step)
    return value


def _addend(graph: Graph, node: ir.Add) -> Affine:
    addend = affine(graph, node.addend)
    if not isinstance(graph[addend.root], ir.Conv) or addend.relu:
        raise LoweringError(f"{node.name}: the addend must be a convolution, not {node.addend}")
    if not addend.slope.any():
        raise LoweringError(
            f"{node.name}: the addend {node.addend} must not be constant: "
            "the scales of all of its channels are 0",
            "leave the block out, and give its constants to the batch norms behind it",
        )
    return addend


Expected = tuple[dict[str, float], dict[str, Normal | Sample]]
"""Of stream nodes, in real units: the largest absolute value to hold, and what is known of all."""


def _seen(graph: Graph, member: dict[str, Stream], images: NDArray[np.uint8]) -> Expected:
    """What images drive the streams to: twice the largest value, and values thinned out evenly."""
    reaches = dict.fromkeys(member, 0.0)
    kept: dict[str, list[NDArray[np.float32]]] = {name: [] for name in member}
    for found in ir.batches(graph, images, names=member, dtype=np.float32):
        for name in member:
            values = np.asarray(found[name], np.float32)
            reaches[name] = max(reaches[name], 2.0 * float(np.abs(values).max()))
            by_channel = values.swapaxes(0, 1).reshape(values.shape[1], -1)
            # An odd stride, so that the samples meet every column of a map.
            stride = math.prod(graph.shapes[name]) * len(images) // SAMPLES | 1
            kept[name].append(by_channel[:, ::stride].copy())
    return reaches, {name: Sample(np.concatenate(parts, axis=1)) for name, parts in kept.items()}


def _promised(graph: Graph, member: dict[str, Stream]) -> Expected:
    """What holds for any image, or by the moments of the batch norms that read the streams.

    The reach is the smaller of the exact bound, which needs nothing in hand, and `_likely`.
    """
    bounds: dict[str, float] = {}
    values: dict[str, Normal | Sample] = {}
    for name, stream in member.items():
        node = graph[name]
        before = bounds[node.source] if isinstance(node, ir.Add | ir.AvgPool) else 0.0
        added = _bound(graph, stream.addends[name]) if name in stream.addends else 0.0
        bounds[name] = before + added
        if norms := _readers(graph, name):
            values[name] = Normal(norms[0].mean, norms[0].variance + norms[0].epsilon)
    return {name: min(bounds[name], _likely(graph, name)) for name in member}, values


def _bound(graph: Graph, addend: Affine) -> float:
    """Largest absolute value an addend can take."""
    root = graph[addend.root]
    if isinstance(root, ir.Conv):
        low, high = _accumulator_range(graph, root)
    elif isinstance(source := graph.before_pools(addend.root), ir.Quantiser):
        low, high = -source.zero, (1 << source.bits) - 1 - source.zero
    else:
        raise LoweringError(f"{addend.root}: an addend must be a convolution")
    reach = np.abs(addend.slope) * max(-low, high) + np.abs(addend.intercept)
    return float(reach.max())


def _accumulator_range(graph: Graph, conv: ir.Conv) -> tuple[int, int]:
    quantiser, pixels = source_of(graph, conv)
    top, zero = (1 << quantiser.bits) - 1, quantiser.zero
    if pixels == 1:
        return arith.accumulator_range(conv.fan_in, 0, top, zero)
    return arith.accumulator_range(conv.fan_in, -pixels * zero, pixels * (top - zero), 0)


def _likely(graph: Graph, name: str) -> float:
    """Twice `DEVIATIONS` from the mean, by the moments of the batch norms that read a node."""
    spans = [np.abs(n.mean) + DEVIATIONS * np.sqrt(n.variance) for n in _readers(graph, name)]
    return 2.0 * max((float(span.max()) for span in spans), default=math.inf)


def _readers(graph: Graph, name: str) -> list[ir.BatchNorm]:
    return [node for node in graph.consumers(name) if isinstance(node, ir.BatchNorm)]


def aligned(addend: Affine, unit: float) -> int | None:
    """The j with ``addend == accumulator * unit * 2**j``, or None where there is none."""
    slope = float(addend.slope[0])
    if (addend.slope != slope).any() or addend.intercept.any() or slope <= 0:
        return None
    return arith.alignment_shift(slope, 1.0, unit)


def _choose_unit(stream: Stream, before: Stream | None) -> None:
    """The finest addend that aligns; where none does, the coarsest step of those that cannot."""
    addends = list(stream.addends.values())
    slopes = [float(np.abs(a.slope).max()) for a in addends]
    if before is not None:
        family = arith.pooled_unit(before.unit, 0)
    else:  # the family most addends belong to
        family = max(slopes, key=lambda u: sum(aligned(a, u) is not None for a in addends))
    shifts = [j for a in addends if (j := aligned(a, family)) is not None]
    coarsest = math.ceil(math.log2(max(slopes, default=family) / family))
    finest = min(shifts, default=coarsest)
    if before is not None:  # pooling rounds: as finely as the addends' shifts allow
        least = max(shifts, default=coarsest) - arith.MAX_SHIFT
        finest = min(max(least, arith.POOL_SHIFTS[0]), arith.POOL_SHIFTS[1])
    stream.unit = family * 2.0**finest


def _fit(stream: Stream, before: Stream | None, residual_bits: int | None) -> None:
    """Double the unit until the stream's width is within ``residual_bits``.

    A pooled stream's is no coarser than the one before (`arith.POOL_SHIFTS`): what is too wide even
    so saturates. Where addends would be rounded, the unit is the one of least expected error.
    """
    pooled = None if before is None else arith.pooled_unit(before.unit, 0)
    units = [stream.unit]
    while residual_bits is not None and _bits(stream, units[-1]) > residual_bits:
        if pooled and _pool_shift(units[-1], pooled) == arith.POOL_SHIFTS[1]:
            break
        units.append(2 * units[-1])
    stream.unit, stream.bits = units[-1], _bits(stream, units[-1])
    if residual_bits is not None:
        stream.bits = min(stream.bits, residual_bits)
        if stream.values and _coarse(stream, stream.unit):
            if pooled:  # where rounding is inevitable, the last may be too fine
                units.append(2 * units[-1])
            stream.unit = min(units, key=lambda unit: _expected_error(stream, unit, residual_bits))
            stream.bits = residual_bits
    if pooled:
        stream.right_shift = _pool_shift(stream.unit, pooled)


def _bits(stream: Stream, unit: float) -> int:
    """Width that holds a stream's reach in a unit."""
    return max(2, _width(stream.reach / unit))


def _pool_shift(unit: float, pooled: float) -> int:
    return round(math.log2(unit / pooled))


def _coarse(stream: Stream, unit: float) -> bool:
    """Whether a unit leaves more of an addend out than what its alignment takes."""
    coarsest = max((float(np.abs(a.slope).max()) for a in stream.addends.values()), default=unit)
    shifts = [aligned(addend, unit) for addend in stream.addends.values()]
    return any(unit >= 2 * coarsest if j is None else j < 0 for j in shifts)


def _expected_error(stream: Stream, unit: float, bits: int) -> float:
    """Of a stream's values in such a unit, relative to their variances, summed over its nodes.

    Batch norm divides by a channel's deviation, and so its error. Errors of rounding add up along
    the stream, each uniform over a unit; a value beyond the width is saturated. No channel loses
    more than it has.
    """
    half, uniform = unit * 2.0 ** (bits - 1), unit**2 / 12
    shifts = {name: aligned(addend, unit) for name, addend in stream.addends.items()}
    rounds = {name: j is None or j < 0 for name, j in shifts.items()}
    if stream.pool:
        rounds = {stream.pool.name: True} | rounds
    noise = total = 0.0
    for name, inexact in rounds.items():
        noise += uniform * inexact
        if name in stream.values:
            values = stream.values[name]
            lost = (noise + values.beyond(half)) / values.variance
            total += float(np.minimum(lost, 1.0).mean())
    return total


def _width(reach: float) -> int:
    high = math.ceil(reach)
    return arith.bits_signed(-high, high)


# -- emission --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Emitter:
    """Operations and tensors in the order that the hardware runs them.

    An addition follows its convolution directly, and what requantises either follows it directly;
    a pool waits until the convolution whose addition needs it.
    """

    graph: Graph
    streams: dict[str, Stream]
    ops: list[Op] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Graph node to the Program's tensor."""
    activations: dict[str, str] = field(default_factory=dict)
    """The same of activations, where ``names`` has the stream that starts with them."""

    def emit(self, node: Node) -> None:
        """Emit the operations of one node; batch norms and ReLUs have none of their own."""
        match node:
            case ir.Input():
                self._tensor(node.name, node.name, "image", (0, 255))
            case ir.Quantiser():
                self._quantise(node)
            case ir.Conv():
                self._conv(node)
            case ir.Add():
                self._add(node)
            case ir.MaxPool():
                self._maximum(node)
            case ir.GlobalMean():
                self._sum(node)

    def program(self) -> Program:
        """Close with the scores and assemble the whole."""
        self._scores()
        graph = self.graph
        bits = {q.bits for q in graph.all(ir.Quantiser) if not graph.reads_image(q)}
        if len(bits) != 1:
            raise LoweringError(f"activations must be of one width, not {sorted(bits)}")
        tensors = tuple(self.tensors.values())
        return Program(graph.network, bits.pop(), tensors, tuple(self.ops), graph.labels)

    def _tensor(
        self,
        node: str,
        name: str,
        kind: Kind,
        bounds: tuple[int, int],
        zero: int = 0,
        step: float = 1.0,
        shape: tuple[int, int, int] | None = None,
    ) -> str:
        shape = shape or self.graph.shapes[node]
        self.tensors[name] = Tensor(name, kind, *shape, *bounds, zero, step)
        self.names[node] = name
        return name

    def _root(self, name: str) -> tuple[Tensor, Affine]:
        """A float node as an affine function of an integer tensor, slopes to its units."""
        value = affine(self.graph, name)
        tensor = self._written(self.graph[name], value.root)
        if tensor.kind == "activation":
            raise LoweringError(f"{name}: a batch norm must not follow a quantiser directly")
        if tensor.kind == "residual" and isinstance(self.graph[value.root], ir.Conv):
            # A stream's start: the slope of its accumulator is already in the stream's unit.
            value = replace(value, slope=value.slope / affine(self.graph, value.root).slope)
        if tensor.kind == "residual":
            value = replace(value, slope=value.slope * tensor.step)
        return tensor, value

    def _quantise(self, node: ir.Quantiser) -> None:
        source, value = self._root(node.source)
        if node.step is None:
            raise LoweringError(f"{node.name}: a quantiser must have a step")
        if value.relu and not math.isclose(node.zero * node.step, -value.relu.low, rel_tol=1e-5):
            low = f"{value.relu.low:g}"
            raise LoweringError(f"{node.name}: the quantiser of a ReLU must start at {low}")
        most = arith.INPUT_FRACTION_BITS if source.kind == "image" else arith.MAX_FRACTION_BITS
        domain = source.low, source.high
        steps = arith.staircase(
            value.slope, value.intercept, node.step, node.zero, node.bits, domain, most
        )
        for reader in self.graph.consumers(node.name):
            if isinstance(reader, ir.MaxPool) and reader.falling is not None:
                steps = steps.complemented(tuple(reader.falling.tolist()))
        bounds = (0, (1 << node.bits) - 1)
        self._tensor(node.name, node.name, "activation", bounds, node.zero, node.step)
        self.ops.append(Quantise(node.name, source.name, node.name, steps.restricted(*domain)))
        self._activated(node.name)

    def _maximum(self, node: ir.MaxPool) -> None:
        source = self._written(node, node.source)
        if source.kind != "activation":
            raise LoweringError(f"{node.name}: the maximum must read a quantised tensor")
        falls = np.zeros(source.channels, bool) if node.falling is None else node.falling
        bounds = (source.low, source.high)
        self._tensor(node.name, node.name, "activation", bounds, source.zero, source.step)
        self.ops.append(
            MaxPool(
                node.name,
                source.name,
                node.name,
                node.kernel,
                node.stride,
                node.pads,
                tuple(falls.tolist()),
            )
        )
        self._activated(node.name)

    def _activated(self, node: str) -> None:
        """Note activations, and start the residual stream that starts with them."""
        self.activations[node] = node
        if node in self.streams:
            self._residual(node, f"{node}.r", None)

    def _conv(self, node: ir.Conv) -> None:
        if not node.binary:
            message = f"{node.name}: weights must be 1-bit, not {node.weights.dtype}"
            raise LoweringError(message, "train with 1-bit weights")
        self._emit_pool_for(node)
        signs = np.where(flipped(self.graph, node)[:, None, None, None], -1, 1) * node.weights
        bounds = _accumulator_range(self.graph, node)
        value = affine(self.graph, node.name)
        step = float(np.abs(value.slope).mean())
        acc = self._tensor(node.name, f"{node.name}.acc", "accumulator", bounds, step=step)
        source = self.activations.get(node.source) or self._written(node, node.source).name
        weights = pack_signs(signs.astype(np.int8)).tobytes()
        scale = float(np.mean(node.scale))
        self.ops.append(
            Conv(node.name, source, acc, node.kernel, node.stride, node.pads, weights, scale)
        )
        if node.name in self.streams:
            self._residual(node.name, f"{node.name}.r", None)

    def _emit_pool_for(self, conv: ir.Conv) -> None:
        """The pool whose answer the addition behind a convolution needs."""
        norms = norms_behind(self.graph, conv)
        addend = norms[-1].name if norms else conv.name
        for node in self.graph.consumers(addend):
            if isinstance(node, ir.Add) and node.addend == addend:
                source = self.graph[node.source]
                if isinstance(source, ir.AvgPool) and source.name not in self.names:
                    self._pool(source)

    def _written(self, node: Node, name: str) -> Tensor:
        """The integer tensor of the node ``name`` that ``node`` reads."""
        if name not in self.names:
            kind = type(self.graph[name]).__name__
            raise LoweringError(f"{node.name}: {kind} {name} has no integer form here")
        return self.tensors[self.names[name]]

    def _add(self, node: ir.Add) -> None:
        self._residual(node.name, node.name, self._written(node, node.source).name)

    def _residual(self, node: str, name: str, residual: str | None) -> None:
        stream = self.streams[node]
        addend = stream.addends[node]
        acc = self.tensors[self.activations.get(addend.root, f"{addend.root}.acc")]
        j, division = aligned(addend, stream.unit), None
        if j is None:
            j, division = 0, _division(addend, acc, stream)
        half = 1 << (stream.bits - 1)
        self._tensor(node, name, "residual", (-half, half - 1), step=stream.unit)
        self.ops.append(Add(name, acc.name, residual, name, j, division))

    def _pool(self, node: ir.AvgPool) -> None:
        stream, source = self.streams[node.name], self._written(node, node.source)
        counts = arith.pool_counts((source.height, source.width), node.pads, node.count_padding)
        if not np.isin(counts, (9, 6, 4)).all():
            found = sorted(set(counts.ravel().tolist()) - {9, 6, 4})
            raise LoweringError(
                f"{node.name}: the pool's windows must hold 9, 6 or 4 pixels, not {found[0]}; "
                f"the map is {source.height}x{source.width}"
            )
        half = 1 << (stream.bits - 1)
        name = self._tensor(node.name, node.name, "residual", (-half, half - 1), step=stream.unit)
        self.ops.append(
            Pool(name, source.name, name, node.pads, node.count_padding, stream.right_shift)
        )

    def _sum(self, node: ir.GlobalMean) -> None:
        source = self._written(node, node.source)
        source = self.tensors[self.activations.get(node.source, source.name)]
        if source.kind != "activation":
            raise LoweringError(f"{node.name}: the global mean must read a quantised tensor")
        pixels = source.height * source.width
        bounds = (pixels * (source.low - source.zero), pixels * (source.high - source.zero))
        name = f"{node.name.removesuffix('.mean')}.sum"
        self._tensor(node.name, name, "sum", bounds, step=source.step / pixels)
        self.ops.append(SumPixels(name, source.name, name))

    def _scores(self) -> None:
        """Signed 16-bit scores around ``zero``, one step for all classes."""
        source, value = self._root(self.graph.output)
        if source.kind != "accumulator" or value.relu:
            raise LoweringError(f"{self.graph.output}: scores must come from a convolution")
        step = score_step(value, source)
        zero = 1 << (SCORE_BITS - 1)
        steps = arith.staircase(value.slope, value.intercept, step, zero, SCORE_BITS)
        steps = steps.restricted(source.low, source.high)
        bounds = (0, (1 << SCORE_BITS) - 1)
        self._tensor("scores", "scores", "score", bounds, zero, step, source.shape)
        self.ops.append(Quantise("scores", source.name, "scores", steps))


def _division(addend: Affine, acc: Tensor, stream: Stream) -> Staircase:
    """The signed staircase that takes an accumulator to the stream's unit.

    It clips nothing unless it is as wide as a score, which is what dividers are made for.
    """
    low, high = acc.low - acc.zero, acc.high - acc.zero
    reach = np.abs(addend.slope) * max(-low, high) + np.abs(addend.intercept)
    bits = min(_width(float(reach.max()) / stream.unit), max(stream.bits, SCORE_BITS))
    while True:
        zero = 1 << (bits - 1)
        steps = arith.staircase(addend.slope, addend.intercept, stream.unit, zero, bits)
        if bits >= SCORE_BITS or not steps.exceeds(low, high):
            return steps.restricted(low, high)
        bits += 1


def score_step(value: Affine, acc: Tensor) -> float:
    """The step of the scores: as fine as is of use, and no score can saturate.

    Rounding a score costs half a step; rounding its divisor (``2**F * step/slope``) costs up to
    ``reach * slope / (2 * 2**F * step)``. The sum of both is least where they are equal. Where all
    classes have one slope (a fully connected layer without a batch norm behind it), a step can be
    found whose divisor is whole: then only the first is left.
    """
    slope, reach = np.abs(value.slope), max(-acc.low, acc.high)
    highest = float((slope * reach + np.abs(value.intercept)).max())
    steepest = float(slope.max())
    balanced = math.sqrt(highest * steepest / (1 << arith.MAX_FRACTION_BITS))
    least = max(highest / ((1 << (SCORE_BITS - 1)) - 2), np.finfo(np.float64).tiny)
    unit = steepest / (1 << arith.MAX_FRACTION_BITS)
    if unit > 0 and (slope == steepest).all():
        return math.ceil(least / unit) * unit
    return max(balanced, least)
