"""From a Program to what one engine does: fused layers, memory plan, parameters, cycles.

A layer of the engine is a convolution together with what finishes it (`Conv`, then `Add`, then
`Quantise`), a `Pool` or a `MaxPool`. The head's `SumPixels` is computed by its convolution, one
weight shared by all taps of a window as large as the map. The first convolution takes its window's
three rows from one memory word, where the input writer puts them.

Two things are done by convolutions that are none. A residual stream that starts with activations
reads each of them twice, with weights that cancel out for all channels but one, whose double they
leave. And a staircase that stands alone behind a residual stream (a pool, or an addend that was
divided) finishes a convolution over nothing but padding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray

from compiler import arith
from compiler.arith import Staircase
from compiler.cycles import Flash, FlashPace, layer_cycles, then_next
from compiler.errors import CapacityError
from compiler.geometry import (
    GAINS,
    MAGIC,
    MAX_IMAGE_CHANNELS,
    NO_CHANNEL,
    POOL_SHIFT,
    SUMMED_BITS,
    Geometry,
    groups_in,
    residuals_in,
)
from compiler.program import (
    Add,
    Conv,
    MaxPool,
    Pool,
    Program,
    Quantise,
    SumPixels,
    Tensor,
)


@dataclass(frozen=True, slots=True)
class Param:
    """Parameters of one output channel as the requantiser wants them (`Geometry.param_fields`)."""

    bias: int
    gain: int
    start: int
    divisor: int


@dataclass(frozen=True, slots=True)
class Region:
    """A tensor's place in activation memory: word ``first`` and how many ``words``.

    Activations: word ``first + (c // K) * H*W + y*W + x`` holds channels of pixel (x, y).
    Residuals: word ``first + (c // R) * H*T + y*T + x // P`` with T tiles a row.
    If not 0, ``apart`` is how far the second of two planes of activations lies from the first,
    in the place of H*W.
    """

    tensor: str
    first: int
    words: int
    apart: int = 0

    @property
    def extents(self) -> tuple[tuple[int, int], ...]:
        """(first, words) of each part that lies together, in order."""
        if not self.apart:
            return ((self.first, self.words),)
        half = self.words // 2
        return ((self.first, half), (self.first + self.apart, half))

    @property
    def end(self) -> int:
        """The first word behind all of it."""
        return max(first + words for first, words in self.extents)


@dataclass(frozen=True, slots=True)
class Layer:
    """One record of the Image, what follows it there, and what is known about it.

    Attributes
    ----------
    record : dict
        `Geometry.record_fields` by name.
    params : tuple
        output_lanes `Param` a group; empty for average pooling. Two groups that take a window in
        turn (``paired``) are one here and in the record's counts, with twice the `Param`.
    weights : bytes
        Signs packed from (groups, steps, output_lanes, input_lanes); empty for average pooling.
        Of a pair first all steps of the one, then of the other.
        A maximum has one step; the first signs of its last pass, an input pair each, say which
        channels fall.
    activation, residual : str or None
        Tensors that stand in memory when the layer is done.
    addsub, cycles : int
        Additions it needs; cycles it is predicted to take.
    """

    name: str
    record: Mapping[str, int]
    params: tuple[tuple[Param, ...], ...]
    weights: bytes
    activation: str | None
    residual: str | None
    addsub: int
    cycles: int = 0

    def signs(self, geometry: Geometry) -> NDArray[np.int8]:
        """Weights in the hardware's order, (groups, steps, output_lanes, input_lanes)."""
        shape = (
            len(self.params),
            self.record["weight_words"],
            geometry.output_lanes,
            geometry.input_lanes,
        )
        bits = np.unpackbits(np.frombuffer(self.weights, np.uint8), count=int(np.prod(shape)))
        return (bits.astype(np.int8) * 2 - 1).reshape(shape)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A Program laid out for a Geometry.

    ``streamed`` says that `Layer.cycles` are those of an Image that comes from flash meanwhile.
    """

    program: Program
    geometry: Geometry
    header: Mapping[str, int]
    input_params: tuple[Param, ...]
    layers: tuple[Layer, ...]
    regions: tuple[Region, ...]
    streamed: bool = False

    @property
    def room(self) -> int:
        """Words of activation memory behind all maps."""
        return self.geometry.memory_depth - max(r.end for r in self.regions)

    @property
    def cycles(self) -> int:
        """Predicted cycles from the first layer's start to the class."""
        return sum(layer.cycles for layer in self.layers)

    def region(self, tensor: str) -> Region:
        """Where a tensor stands in activation memory, once it is written."""
        return next(r for r in self.regions if r.tensor == tensor)


def schedule(program: Program, geometry: Geometry) -> Schedule:
    """Lay a Program out.

    Raises
    ------
    CapacityError
        Naming the layer, what it needs, what the geometry has, and what would fit.
    """
    if program.activation_bits != geometry.activation_bits:
        raise CapacityError(
            f"network {program.network} has {program.activation_bits}-bit activations, but the "
            f"engine takes {geometry.activation_bits}",
            f"--activation-bits {geometry.activation_bits}",
        )
    fused = _fuse(program)
    regions = _plan_memory(program, fused, geometry)
    builder = _Builder(program, geometry, {r.tensor: r for r in regions})
    quantise_input = program.ops[0]
    if not isinstance(quantise_input, Quantise):
        raise CapacityError("the engine's first operation must quantise the image")
    header = builder.header(quantise_input)
    # Cycles come last: they are played through, and what does not fit is found before.
    layers = tuple(layer for f in fused for layer in builder.layers(f))
    return Schedule(
        program,
        geometry,
        header,
        builder.input_params(quantise_input),
        _timed(layers, program, geometry),
        regions,
    )


def stream_bits(program: Program, geometry: Geometry) -> int:
    """Width that a network's residual stream has on its engine, made from a geometry (`fitted`).

    It is the geometry's, unless slices of the image are summed in the stream.
    """
    plain = program.image.channels > geometry.tap_channels or not _usual(next(program.convs()))
    engine = replace(geometry, plain_input=plain or geometry.plain_input)
    if engine.window_slices == engine.input_slices:
        return geometry.residual_bits
    return max(geometry.residual_bits, SUMMED_BITS)


def _usual(first: Conv) -> bool:
    """Whether a first convolution can take its rows from one memory word."""
    return (first.kernel, first.stride, first.pads) == (3, 1, arith.Pads(1, 1, 1, 1))


def fitted(program: Program, geometry: Geometry, fixed: Collection[str] = ()) -> Schedule:
    """Lay a Program out for a geometry, with as much more of what it lacks as that takes.

    An engine that has to be made for a network anyway has no residual stream if that has none.

    Parameters
    ----------
    fixed : collection of str
        Fields of the geometry that stay as they are.

    Raises
    ------
    CapacityError
        What it lacks is fixed, or no field brings it.
    """
    usual = geometry
    while True:
        try:
            laid_out = schedule(program, geometry)
            break
        except CapacityError as error:
            if not error.needs or not set(fixed).isdisjoint(error.needs):
                raise
            try:
                more = replace(geometry, **error.needs)  # type: ignore[arg-type]
            except ValueError:
                raise error from None
            if more == geometry:
                raise
            geometry = more
    if geometry == usual or geometry.addend_division or "residuals" in fixed:
        return laid_out
    try:
        return schedule(program, replace(geometry, residuals=False))
    except CapacityError:
        return laid_out


def streamed(laid_out: Schedule, room: int, pace: FlashPace) -> Schedule:
    """The same with the cycles it takes where words of the Image come from flash.

    The ring is full when a picture begins: pictures come more slowly than it fills.

    Parameters
    ----------
    room : int
        Words of the ring.
    pace : FlashPace
        Of the flash.
    """
    g, program = laid_out.geometry, laid_out.program
    words = 0
    for layer in laid_out.layers:
        steps = len(layer.params) * layer.record["weight_words"]
        words += g.record_words + sum(map(len, layer.params)) * g.param_words
        words += steps * g.weight_bits // g.stream_bits
    # The ring is full, and a unit waits for room; the first record is read faster than more come.
    pace = pace.in_units_of(g.stored_bits(pace.unit_bits))
    units, last = g.stream_bits // pace.unit_bits, pace.unit_cycles - 1
    flash = Flash(pace, units, room, room, words - room, cycle=last, waited=pace.spare_cycles)
    then_next(0, g, flash)
    layers = _timed(laid_out.layers, program, g, flash)
    return replace(laid_out, layers=layers, streamed=True)


def _timed(
    layers: tuple[Layer, ...], program: Program, g: Geometry, flash: Flash | None = None
) -> tuple[Layer, ...]:
    """Layers with the cycles that they take, one after the other."""
    classes = program.scores.channels
    return tuple(replace(x, cycles=layer_cycles(x.record, g, classes, flash)) for x in layers)


# -- fusing ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fused:
    """The operations of one engine layer and the tensors in memory it touches.

    Its ``op`` is an `Add` where a stream starts with activations, and a `Quantise` of a residual
    stream where that stands alone.
    """

    name: str
    op: Conv | Pool | MaxPool | Add | Quantise
    source: str
    first: bool = False
    summed: bool = False
    add: Add | None = None
    quantise: Quantise | None = None

    def reads(self) -> list[str]:
        """Tensors in memory that the layer reads."""
        return [self.source, *([self.add.residual] if self.add and self.add.residual else [])]

    def writes(self) -> list[str]:
        """Tensors in memory that the layer writes."""
        if isinstance(self.op, Pool | MaxPool):
            return [self.op.output]
        return [op.output for op in (self.add, self.quantise) if op is not None]


QUANTISE = ".quantise"
"""End of the name of a layer that quantises a residual stream and does nothing else; the rest is
the name of the layer before."""


def _fuse(program: Program) -> list[Fused]:
    fused: list[Fused] = []
    ops = list(program.ops[1:])
    summed: SumPixels | None = None
    image = program.ops[0].output
    while ops:
        op = ops.pop(0)
        if op.source == image and not isinstance(op, Conv):
            raise CapacityError(f"{op.name}: the engine convolves the image before anything else")
        if isinstance(op, SumPixels):
            summed = op
        elif isinstance(op, Pool | MaxPool):
            fused.append(Fused(op.name, op, op.source))
        elif isinstance(op, Quantise) and program[op.source].kind == "residual":
            fused.append(Fused(fused[-1].name + QUANTISE, op, op.source, quantise=op))
        elif isinstance(op, Conv | Add):
            add = op if isinstance(op, Add) else None
            quantise: Quantise | None = None
            last = op.output
            following = ops[0] if ops else None
            if isinstance(following, Add) and following.source == last:
                add, last = following, following.output
                del ops[0]
            following = ops[0] if ops else None
            divided = add is not None and add.division is not None
            if isinstance(following, Quantise) and following.source == last and not divided:
                quantise = following
                del ops[0]
            source = summed.source if summed else op.source
            first = op.source == image
            fused.append(Fused(op.name, op, source, first, summed is not None, add, quantise))
            summed = None
        else:
            raise CapacityError(
                f"{op.name}: the engine does this only directly behind a convolution"
            )
    return fused


# -- memory plan -----------------------------------------------------------------------------------


def _tiles(width: int, geometry: Geometry) -> int:
    return -(-width // geometry.pixel_lanes)


def _groups(channels: int, geometry: Geometry) -> int:
    """Groups of output lanes that fill whole memory words for whoever reads them."""
    unit = geometry.word_channels
    return -(-channels // unit) * unit // geometry.output_lanes


def _wider(geometry: Geometry, field: str) -> dict[str, int] | None:
    """What brings a field of the record another bit, if one size alone does."""
    g = geometry
    larger = {"map_bits": g.map_bits + 1, "channel_bits": g.channel_bits + 1}
    larger |= {"window_depth": 2 * g.window_depth, "weight_depth": 2 * g.weight_depth}
    width = dict(g.record_fields).get(field)
    if width is None:
        return None
    for name, value in larger.items():
        if dict(replace(g, **{name: value}).record_fields)[field] > width:  # type: ignore[arg-type]
            return {name: value}
    return None


def _wider_stream(geometry: Geometry, bits: int) -> dict[str, int]:
    """What brings a residual stream of so many bits: fewer pixels too, if a word has no room."""
    pixels = residuals_in(geometry.word_bits, bits)
    fewer = {"pixel_lanes": pixels} if pixels < geometry.pixel_lanes else {}
    return {"residual_bits": bits} | fewer


def _words(tensor: Tensor, first: bool, geometry: Geometry) -> int:
    if tensor.kind == "residual":
        planes = _groups(tensor.channels, geometry) * geometry.residual_words
        return planes * tensor.height * _tiles(tensor.width, geometry)
    if first:
        return tensor.height * tensor.width * geometry.input_slices
    return -(-tensor.channels // geometry.word_channels) * tensor.height * tensor.width


@dataclass(frozen=True, slots=True)
class _Part:
    """One of a tensor's planes of activations, or the whole tensor, in a `_Block`."""

    tensor: str
    plane: int
    offset: int


@dataclass(slots=True)
class _Block:
    """Words that are wanted for some layers, inclusive; the input from -1 on.

    ``at`` is where it has to lie, if anywhere.
    """

    where: str
    words: int
    start: int
    end: int
    parts: list[_Part]
    at: int | None = None
    first: int = 0

    def meets(self, other: _Block) -> bool:
        """Whether both are wanted at a time."""
        return self.start <= other.end and other.start <= self.end

    def follow(self, part: _Part, end: int) -> None:
        """Give it another part, for whose sake the others begin as much later as that earlier."""
        lag = -part.offset
        self.words, self.end = self.words + lag, end
        if self.at is not None:
            self.at -= lag
        self.parts = [replace(p, offset=p.offset + lag) for p in (*self.parts, part)]


def _plan_memory(program: Program, fused: list[Fused], geometry: Geometry) -> tuple[Region, ...]:
    """Each as low as it goes, in several orders of which the best is taken; a residual sum stays
    where its first addend was.

    With `Geometry.planes_apart` also with planes that follow their layer's input.
    """
    blocks, order = _Blocks(program, fused, geometry).all()
    plans = _placements(blocks)
    if geometry.planes_apart:
        plans += _following(program, fused, geometry)
    blocks = min(plans, key=_reach)
    farthest = max(blocks, key=lambda b: b.first + b.words)
    used = farthest.first + farthest.words
    if used > geometry.memory_depth:
        raise CapacityError(
            f"{farthest.where}: activation memory needs {used:,} words of {geometry.word_bits} "
            f"bits, but the engine has {geometry.memory_depth:,}",
            "a narrower network",
            {"memory_depth": 1 << (used - 1).bit_length()},
        )
    places: dict[str, dict[int, int]] = {}
    for block in blocks:
        for part in block.parts:
            places.setdefault(part.tensor, {})[part.plane] = block.first + part.offset
    return tuple(
        Region(name, at[0], words, at[1] - at[0] if 1 in at else 0)
        for name, words in order.items()
        for at in [places[name]]
    )


def _reach(blocks: list[_Block]) -> int:
    return max(b.first + b.words for b in blocks)


def _following(program: Program, fused: list[Fused], geometry: Geometry) -> list[list[_Block]]:
    """Plans in which planes follow their layer's input.

    Which of the input's planes is followed decides whose room is free next. Where all layers choose
    alike three places are taken in turn; with other choices the turns end elsewhere.
    """
    choices = chain.from_iterable(combinations(range(len(fused)), n) for n in (0, 1, 2))
    plans: list[list[_Block]] = []
    for swapped in choices:
        blocks, _ = _Blocks(program, fused, geometry, swapped).all()
        if len(swapped) > 1:  # only where it takes that, and where there can be room
            together = (
                sum(b.words for b in blocks if b.start <= i <= b.end) for i in range(len(fused))
            )
            fits = min(map(_reach, plans)) <= geometry.memory_depth
            if fits or max(together) > geometry.memory_depth:
                break
        plans += _placements(blocks)
    return plans


def _placements(blocks: list[_Block]) -> list[list[_Block]]:
    """The largest first, or the earliest; then whichever reached farthest is placed before all
    others, again and again, while that changes anything."""
    plans = [_placed(sorted(blocks, key=lambda b: (b.start, -b.words)))]
    order = sorted(blocks, key=lambda b: (-b.words, b.start))
    for _ in blocks:
        plans.append(_placed(order))
        farthest = max(plans[-1], key=lambda b: b.first + b.words)
        if farthest.at is not None or farthest.parts == order[0].parts:
            break
        order = [farthest, *(b for b in order if b.parts != farthest.parts)]
    return plans


def _placed(order: list[_Block]) -> list[_Block]:
    """Each behind those that are wanted with it, in the first gap that is wide enough; but first of
    all those that are told where."""
    placed: list[_Block] = []
    for block in sorted(order, key=lambda b: b.at is None):
        first = block.at or 0
        for other in sorted(filter(block.meets, placed), key=lambda b: b.first):
            if block.at is not None or first + block.words <= other.first:
                break
            first = max(first, other.first + other.words)
        placed.append(replace(block, first=first))
    return placed


class _Blocks:
    """What has to be placed.

    A window's rows move down the map as its layer's outputs do. So when the last output channels
    are computed, a plane of them may be written where a plane of the input was, a few rows behind
    the windows (`_lag`): the earlier output channels alone need room beside the input.

    Parameters
    ----------
    swapped : collection of int, or None
        Layers whose plane follows the other of their input's two: elsewhere it is the one that
        follows none itself. None: no plane follows any.
    """

    def __init__(
        self,
        program: Program,
        fused: list[Fused],
        geometry: Geometry,
        swapped: Collection[int] | None = None,
    ) -> None:
        self._program, self._fused, self._geometry = program, fused, geometry
        self._last_use = {name: i for i, f in enumerate(fused) for name in f.reads()}
        self._input = program.ops[0].output
        maxima = (f for f in fused if isinstance(f.op, MaxPool))
        pooled = {name for f in maxima for name in (f.source, f.op.output)}
        # Maps in one piece, that are neither split nor follow.
        self._whole = {self._input} | (set(self._last_use) if swapped is None else pooled)
        self._swapped = swapped or ()
        self._blocks: list[_Block] = []
        self._order: dict[str, int] = {}

    def all(self) -> tuple[list[_Block], dict[str, int]]:
        """Those, and the words of each tensor in the order in which they are written."""
        g, program = self._geometry, self._program
        self._add("input", -1, program[self._input])
        image = self._blocks[0]
        image.words, image.at = image.words + g.input_first, 0
        image.parts = [_Part(self._input, 0, g.input_first)]
        for i, f in enumerate(self._fused):
            if f.first and f.add is None and g.input_slices > g.window_slices:
                out = program[f.op.output]
                self._add(f.name, i, replace(out, name=f"{f.name}.slices", kind="residual"))
            for name in f.writes():
                old = f.add.residual if f.add and name == f.add.output else None
                if old is not None:
                    self._continue(f, i, name, old)
                elif name in self._last_use or program[name].kind == "residual":
                    self._add(f.name, i, program[name])
        return self._blocks, self._order

    def _continue(self, f: Fused, i: int, name: str, old: str) -> None:
        """A residual sum, in the place of its addend."""
        if self._last_use[old] != i:
            raise CapacityError(f"{f.name}: residual {old} must not be read again later")
        block = self._of(old)[0]
        block.follow(_Part(name, 0, 0), max(i, self._last_use.get(name, i)))
        self._order[name] = self._order[old]

    def _add(self, where: str, i: int, tensor: Tensor) -> None:
        words = _words(tensor, tensor.name == self._input, self._geometry)
        end = max(i, self._last_use.get(tensor.name, i))
        planes = self._planes(tensor)
        self._order[tensor.name] = words
        for plane in range(planes):
            part = _Part(tensor.name, plane, 0)
            if plane < planes - 1 or not self._follows(i, tensor, part, end):
                self._blocks.append(_Block(where, words // planes, i, end, [part]))

    def _splits(self, tensor: Tensor) -> bool:
        """Whether its planes, of which there are no more than two, may lie anywhere."""
        few = tensor.channels <= 2 * self._geometry.word_channels
        return few and tensor.kind == "activation" and tensor.name not in self._whole

    def _planes(self, tensor: Tensor) -> int:
        """How many blocks it has."""
        if not self._splits(tensor):
            return 1
        return -(-tensor.channels // self._geometry.word_channels)

    def _of(self, tensor: str) -> list[_Block]:
        """Blocks in which it is the last part, and so at the beginning."""
        return [b for b in self._blocks if b.parts[-1].tensor == tensor]

    def _follows(self, i: int, tensor: Tensor, part: _Part, end: int) -> bool:
        """Put a map's last plane where one of its layer's input was, if it may lie there."""
        if not self._splits(tensor):
            return False
        f, g = self._fused[i], self._geometry
        lag = self._lag(i)
        if lag is None:
            return False
        if f.source == self._input:  # it stays where it is
            at = g.input_first - lag
            if at < 0:
                return False
            words = tensor.height * tensor.width
            self._blocks.append(_Block(f.name, words, i + 1, end, [part], at))
            return True
        hosts = sorted(self._of(f.source), key=lambda b: len(b.parts), reverse=i in self._swapped)
        host = next((b for b in hosts if b.at is None or b.at >= lag), None)
        if host is None:
            return False
        host.follow(replace(part, offset=-lag), end)
        return True

    def _lag(self, i: int) -> int | None:
        """Words by which an output pixel has to lie before the input's that is as far in the map.

        A tile is written when its windows, and all that comes before in the map's columns, have
        been read, and each row of tiles reads its rows anew. None: it may not follow.
        """
        f, g = self._fused[i], self._geometry
        if not isinstance(f.op, Conv) or f.summed or self._last_use[f.source] != i:
            return None
        source, out = self._program[f.source], self._program[f.op.output]
        same = f.op.stride == 1 and (source.height, source.width) == (out.height, out.width)
        once = not f.first or g.input_slices == g.window_slices
        if not same or not once or g.output_lanes != g.word_channels:
            return None
        above = g.input_rows // 2 if f.first else 0  # rows that a word of the image holds
        return (f.op.pads.top - above) * source.width


# -- layers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Builder:
    program: Program
    geometry: Geometry
    regions: Mapping[str, Region]

    def header(self, op: Quantise) -> dict[str, int]:
        image, q = self.program.image, self.program[op.output]
        most = min(self.geometry.tap_channels, self.geometry.output_lanes, MAX_IMAGE_CHANNELS)
        possible = min(self.geometry.output_lanes, MAX_IMAGE_CHANNELS)
        if image.channels > most:
            raise CapacityError(
                f"input: the image has {image.channels} channels, but the engine takes {most}",
                needs={"plain_input": True} if image.channels <= possible else None,
            )
        plane, mask = q.height * q.width, (1 << self.geometry.address_bits) - 1
        back = (self.geometry.input_rows - 1) * q.width
        return {
            "magic": MAGIC,
            "geometry": self.geometry.digest,
            "classes": self.program.scores.channels,
            "channels": image.channels - 1,
            "spare": 0,
            "pixels": image.channels * image.height * image.width,
            "zero": q.zero,
            "height": image.height - 1,
            "width": image.width - 1,
            "step_slice": (plane + back) & mask,
            "step_back": (back - (self.geometry.input_slices - 1) * plane) & mask,
        }

    def input_params(self, op: Quantise) -> tuple[Param, ...]:
        return tuple(
            self.param(op.name, op.staircase, c, 0, self.geometry.input_fraction_bits)
            for c in range(op.staircase.channels)
        )

    def param(
        self,
        where: str,
        stairs: Staircase | None,
        channel: int,
        bias: int,
        fraction_bits: int | None = None,
    ) -> Param:
        """Parameters of a channel: its staircase at the engine's fraction bits, or others."""
        g = self.geometry
        if stairs is None:
            return self._checked(where, Param(bias, GAINS[0], 0, 1), g.offset_bits)
        serial = stairs.bits > g.activation_bits  # the serial divider takes wider dividends
        offset_bits = g.offset_bits if serial else g.activation_offset_bits
        wide = stairs.with_fraction_bits(fraction_bits or g.fraction_bits)
        offset, gain = wide.offsets[channel], wide.gains[channel]
        if gain < 0:  # the hardware negates by one's complement: -x = ~x + 1
            offset -= 1 << g.fraction_bits  # x as the hardware holds it
        # A dead channel's divisor is 1 at any F: scaling would only widen it.
        divisor = wide.divisors[channel]
        if gain == 0:
            offset, divisor = stairs.offsets[channel], stairs.divisors[channel]
        start = -offset
        if serial:  # nothing stands between a score's bias and its division, which has wider fields
            start, bias = start + (gain * bias << g.fraction_bits), 0
        return self._checked(where, Param(bias, GAINS[gain], start, divisor), offset_bits)

    def _checked(self, where: str, p: Param, offset_bits: int) -> Param:
        g = self.geometry
        for name, width, need in (
            ("bias", g.bias_bits, arith.bits_signed(p.bias, p.bias)),
            ("offset", offset_bits, arith.bits_signed(p.start, p.start)),
            ("divisor", g.divisor_bits, arith.bits_unsigned(p.divisor)),
        ):
            if need > width:
                raise CapacityError(
                    f"{where}: {name} needs {need} bits, but the engine has {width}",
                    needs={f"{name}_bits": need},
                )
        return p

    def layers(self, f: Fused) -> list[Layer]:
        """One, or for each slice of the input where windows do not hold them all.

        Sums of slices then meet in the residual stream.
        """
        slices = self.geometry.input_slices // self.geometry.window_slices if f.first else 1
        return [self._layer(f, i, slices) for i in range(slices)]

    def _pad(self, zero: int | NDArray[np.int64]) -> int:
        """A record's field of what stands for 0: a digit for each slice, or the same for all."""
        g = self.geometry
        digits = np.broadcast_to(zero, g.window_slices)
        return sum(int(d) << g.activation_bits * i for i, d in enumerate(digits))

    def _layer(self, f: Fused, i: int, slices: int) -> Layer:
        match f.op:
            case Pool():
                record = self._pool(f, f.op)
            case MaxPool():
                record = self._maximum(f, f.op)
            case Conv():
                record = self._conv(f, f.op, i, slices)
            case Add():
                record = self._start(f, f.op)
            case Quantise():
                record = self._quantise(f, f.op)
        for name, width in chain(*self.geometry.record_layouts):
            if not 0 <= record[name] < 1 << width:
                raise CapacityError(
                    f"{f.name}: {name} must fit {width} bits, not {record[name]:,}",
                    needs=_wider(self.geometry, name),
                )
        if isinstance(f.op, Pool):
            return Layer(f.name, record, (), b"", None, f.op.output, 0)
        signs = self._signs(f, record)
        params = self._params(f, record, signs)
        done = i == slices - 1
        written = f.quantise.output if record["requantise"] and f.quantise else None
        return Layer(
            f.name if slices == 1 else f"{f.name}.slice{i}",
            record,
            params,
            np.packbits(signs > 0).tobytes(),
            f.op.output if isinstance(f.op, MaxPool) else written,
            f.add.output if f.add and done else None,
            self.program.addsub(f.op) if done and isinstance(f.op, Conv) else 0,
        )

    def _blank(self) -> dict[str, int]:
        return {name: 0 for name, _ in chain(*self.geometry.record_layouts)}

    def _pool(self, f: Fused, op: Pool) -> dict[str, int]:
        g = self.geometry
        source, out = self.program[op.source], self.program[op.output]
        self._check_residuals(f)
        if op.pads.left > 1 or op.pads.top > 1:
            raise CapacityError(f"{f.name}: pads before the map must be 0 or 1, not {op.pads}")
        down = op.right_shift - POOL_SHIFT + g.max_left_shift
        most = POOL_SHIFT + (1 << g.shift_bits) - 1 - g.max_left_shift
        if not POOL_SHIFT <= op.right_shift <= most:
            wider = {"shift_bits": down.bit_length()} if op.right_shift > most else None
            raise CapacityError(
                f"{f.name}: the right shift must be {POOL_SHIFT} to {most}, not {op.right_shift}",
                needs=wider,
            )
        return (
            self._blank()
            | {
                "pool": 1,
                "residual": 1,
                "stride2": 1,
            }
            | self._short_edges(op, source)
            | {
                "down": down,
                "pad_top": op.pads.top,
                "pad_left": op.pads.left,
                "height_out_less": out.height - 1,
                "tiles_less": _tiles(out.width, g) - 1,
                "tail_less": (out.width - 1) % g.pixel_lanes,
                "groups_less": _groups(source.channels, g) * g.residual_words - 1,
                "pad": (1 << op.right_shift) >> 1,  # what rounds
                "res_first": self.regions[op.output].first,
                "res_plane": out.height * _tiles(out.width, g),
                "res_back": 1,
                "res_group": 1,
            }
            | self._walk(
                first=self.regions[op.source].first,
                size=(source.height, _tiles(source.width, g)),
                words=1,
                kernel=(arith.POOL_KERNEL, arith.POOL_KERNEL),
                pads=op.pads,
                stride=2,
                tiles=(out.height, _tiles(out.width, g)),
                pixels=1,
                next_plane=True,
            )
        )

    def _walk(
        self,
        first: int,
        size: tuple[int, int],
        words: int,
        kernel: tuple[int, int],
        pads: arith.Pads,
        stride: int,
        tiles: tuple[int, int],
        pixels: int,
        next_plane: bool = False,
        apart: tuple[int, int] | None = None,
    ) -> dict[str, int]:
        """How windows walk over a map: reads (`hw.fetch`) and the buffer's order (`hw.window`).

        Parameters
        ----------
        first : int
            Address of the map's first word.
        size, tiles : (rows, columns) of the map in words, and of tiles
        words : int
            Memory words a pixel has.
        pixels : int
            Neighbouring windows of a tile.
        next_plane : bool
            Each group walks over the next plane instead of the same words again.
        apart : (rows, words) or None
            How far a window's rows and a pixel's words lie apart in memory; None: a row and a map.
            Rows that are one and the same, 0 apart, have no padding.
        """
        (height, width), (rows, across), (lines, tiles_a_row) = size, kernel, tiles
        plane = height * width
        columns = (tiles_a_row * pixels - 1) * stride + across
        column_words = rows * words
        window = across * column_words
        # Each step is from the last word of what ends to the first of what follows.
        row, word = apart or (width, plane)
        row_step = row - (words - 1) * word
        column_step = row_step - rows * row + 1
        line_step = column_step - columns + stride * width
        group_step = line_step - lines * stride * width + (plane if next_plane else 0)
        memory, ring = (1 << self.geometry.address_bits), 2 * self.geometry.window_depth
        return {
            "pad_top": pads.top,
            "pad_left": pads.left,
            "kernel_h_less": rows - 1,
            "words_less": words - 1,
            "columns_less": columns - 1,
            "column_last": width + pads.left - 1,
            # Counted once for each row of a window; read twice, the last would lie outside.
            "row_last": height + pads.top - 1 + int(row == 0),
            "window_less": window - 1,
            "turn_less": window - 1,
            "step_window": (1 - window + pixels * stride * column_words) % ring,
            "step_pixel": stride * column_words if pixels > 1 else 0,
            "in_first": (first - pads.top * width - pads.left) % memory,
            "step_word": word % memory,
            "step_row": row_step % memory,
            "step_column": column_step % memory,
            "step_line": line_step % memory,
            "step_group": group_step % memory,
        }

    @staticmethod
    def _short_edges(op: Pool, source: Tensor) -> dict[str, int]:
        """Which edge rows and columns of the output have windows of two pixels."""
        if op.count_padding:
            return dict.fromkeys(("short_top", "short_bottom", "short_left", "short_right"), 0)
        h, w = op.pads.output_size((source.height, source.width), arith.POOL_KERNEL, 2)
        return {
            "short_top": int(op.pads.top > 0),
            "short_left": int(op.pads.left > 0),
            "short_bottom": int(2 * (h - 1) - op.pads.top + arith.POOL_KERNEL > source.height),
            "short_right": int(2 * (w - 1) - op.pads.left + arith.POOL_KERNEL > source.width),
        }

    def _maximum(self, f: Fused, op: MaxPool) -> dict[str, int]:
        g = self.geometry
        source, out = self.program[op.source], self.program[op.output]
        if not g.max_pool:
            raise CapacityError(
                f"{f.name}: the network takes a maximum of {op.kernel}x{op.kernel} pixels, but the "
                "engine has no unit for it",
                needs={"max_pool": True},
            )
        self._check_window(f, op)
        return (
            self._blank()
            | {"pool": 1, "maximum": 1, "stride2": int(op.stride == 2), "weight_words": 1}
            | {"height_out_less": out.height - 1, "tiles_less": out.width - 1}
            | {"groups_less": -(-source.channels // g.word_channels) - 1}
            | self._walk(
                first=self.regions[op.source].first,
                size=(source.height, source.width),
                words=1,
                kernel=(op.kernel, op.kernel),
                pads=op.pads,
                stride=op.stride,
                tiles=(out.height, out.width),
                pixels=1,
                next_plane=True,
            )
            | {"turn_less": 0, "out_first": self.regions[op.output].first}
        )

    def _start(self, f: Fused, op: Add) -> dict[str, int]:
        """A stream that starts with activations: each is read twice, see `_signs`."""
        g = self.geometry
        source, out = self.program[op.source], self.program[op.output]
        walk = self._walk(
            first=self.regions[op.source].first,
            size=(source.height, source.width),
            words=-(-source.channels // g.word_channels),
            kernel=(2, 1),
            pads=arith.Pads(0, 0, 0, 0),
            stride=1,
            tiles=(out.height, _tiles(out.width, g)),
            pixels=g.pixel_lanes,
            apart=(0, self._plane(op.source)),
        )
        record = (
            self._blank() | walk | {"pad": self._pad(source.zero)} | self._groups_of(f, out, walk)
        )
        return record | self._finish(f, out, 0, 1)

    def _quantise(self, f: Fused, op: Quantise) -> dict[str, int]:
        """The staircase of a stream that stands in memory, behind a window of nothing but padding.

        The stream is written back as it was read.
        """
        g, out = self.geometry, self.program[op.output]
        walk = self._walk(
            first=0,
            size=(out.height, out.width),
            words=1,
            kernel=(1, 1),
            pads=arith.Pads(0, 1, 0, 0),
            stride=1,
            tiles=(out.height, _tiles(out.width, g)),
            pixels=g.pixel_lanes,
        )
        walk["column_last"] = 0
        return self._blank() | walk | self._groups_of(f, out, walk) | self._finish(f, out, 0, 1)

    def _plane(self, tensor: str) -> int:
        """How far planes of activations lie apart."""
        out = self.program[tensor]
        return self.regions[tensor].apart or out.height * out.width

    def _groups_of(self, f: Fused, out: Tensor, walk: Mapping[str, int]) -> dict[str, int]:
        """How many tiles and groups of them a layer has, and their weights."""
        g = self.geometry
        words = (walk["turn_less"] + 1) * g.halves
        if words > g.weight_depth:
            raise CapacityError(
                f"{f.name}: a group of weights needs {words} words, but the engine's buffer has "
                f"{g.weight_depth}",
                needs={"weight_depth": 1 << (words - 1).bit_length()},
            )
        return {
            "height_out_less": out.height - 1,
            "tiles_less": _tiles(out.width, g) - 1,
            "tail_less": (out.width - 1) % g.pixel_lanes,
            "groups_less": _groups(out.channels, g) - 1,
            "weight_words": words,
        }

    def _check_residuals(self, f: Fused) -> None:
        if not self.geometry.residuals:
            raise CapacityError(
                f"{f.name}: the layer needs a residual stream, but the engine has none",
                needs={"residuals": True},
            )

    def _check_window(self, f: Fused, op: Conv | MaxPool) -> None:
        most = (1 << self.geometry.pad_bits) - 1
        if op.stride > 2:
            raise CapacityError(f"{f.name}: stride must be 1 or 2, not {op.stride}")
        if op.kernel < op.stride:  # the window's reader would get ahead of what has come
            raise CapacityError(
                f"{f.name}: windows of {op.kernel}x{op.kernel} pixels must not leave any out, but "
                f"their stride is {op.stride}"
            )
        if op.pads.left > most or op.pads.top > most:
            bits = max(op.pads.left, op.pads.top).bit_length()
            raise CapacityError(
                f"{f.name}: pads before the map must be 0 to {most}, not {op.pads}",
                needs={"pad_bits": bits},
            )

    def _conv(self, f: Fused, op: Conv, i: int, slices: int) -> dict[str, int]:
        g = self.geometry
        source, out = self.program[f.source], self.program[op.output]
        bits = out.bits if slices == 1 else self._slice_bits(source, op)
        if bits > g.accumulator_bits:
            raise CapacityError(
                f"{f.name}: accumulators need {bits} bits, but the engine has {g.accumulator_bits}",
                needs={"accumulator_bits": bits},
            )
        words = 1 if f.first else -(-source.channels // g.word_channels)
        record = self._blank() | self._window(f, op, source, out, words, i)
        digits = arith.slices(np.array(source.zero), source.bits, g.activation_bits)
        zero = np.array(digits) if record["sliced"] else digits[i]
        record |= {"pad": self._pad(zero)} | self._groups_of(f, out, record)
        record |= self._finish(f, out, i, slices)
        return record | (self._paired(record) if slices == 1 else {})

    def _paired(self, record: Mapping[str, int]) -> dict[str, int]:
        """What two groups that take each window in turn change, where they may and save something.

        They are one to whoever counts groups, with the weights of both behind one another.
        """
        g = self.geometry
        words, groups, readers = (
            record[name] for name in ("weight_words", "groups_less", "residual_groups")
        )
        possible = (
            g.paired_groups
            and g.output_lanes == g.word_channels
            and groups % 2 == 1
            and readers % 2 == 0
            and not (record["divide"] or record["last"] or record["shared"])
            and 4 * words <= g.weight_depth  # one pair's weights come while the other's are used
        )
        # Reads for a tile, of columns that are new and of residuals, against the steps.
        new = g.pixel_lanes * (1 + record["stride2"]) * (record["kernel_h_less"] + 1)
        reads = new * (record["words_less"] + 1) + g.residual_words * (readers > 0)
        steps = max(words, g.tiles_apart)
        if not possible or reads < steps:
            return {}
        more = {
            "paired": 1,
            "groups_less": groups // 2,
            "residual_groups": readers // 2,
            "weight_words": 2 * words,
            "turn_less": 2 * (record["turn_less"] + 1) - 1,
        }
        if record["residual"]:
            planes = 2 * g.residual_words
            back = 1 - (planes - 1) * record["res_plane"]
            more["res_back"] = back & ((1 << g.address_bits) - 1)
        return more

    def _slice_bits(self, source: Tensor, op: Conv) -> int:
        """Width of the accumulators of one slice, whichever."""
        digit = (1 << self.geometry.activation_bits) - 1
        return arith.bits_signed(
            *arith.accumulator_range(source.channels * op.kernel**2, 0, digit, 0)
        )

    def _window(
        self, f: Fused, op: Conv, source: Tensor, out: Tensor, words: int, i: int
    ) -> dict[str, int]:
        """How the window walks over the map."""
        g = self.geometry
        self._check_window(f, op)
        first = self.regions[f.source].first
        pads = op.pads
        height, width = (source.height, source.width) if f.summed else (op.kernel,) * 2
        if f.first:
            first += i * source.height * source.width
        if f.first and not g.plain_input:
            if not _usual(op):
                raise CapacityError(
                    f"{f.name}: the first convolution must be 3x3, stride 1, pads 1, not "
                    f"{op.kernel}x{op.kernel}, stride {op.stride}, {op.pads}",
                    needs={"plain_input": True},
                )
            height, pads = 1, arith.Pads(0, 1, 0, 1)
        apart = source.width, self._plane(f.source)
        sliced = f.first and g.window_slices > 1
        if sliced:
            apart, height = (source.height * source.width, 0), g.window_slices
        whole = f.summed or (out.height, out.width) == (1, 1)
        pixels = 1 if whole else g.pixel_lanes
        walk = self._walk(
            first=first,
            size=(source.height, source.width),
            words=words,
            kernel=(height, width),
            pads=pads,
            stride=op.stride,
            tiles=(out.height, _tiles(out.width, g)),
            pixels=pixels,
            apart=apart,
        )
        span = walk["window_less"] + 1 + (pixels - 1) * walk["step_pixel"]
        if span >= g.window_depth and not whole:  # its last place is never sure to be filled
            raise CapacityError(
                f"{f.name}: a window needs {span} words, but the engine's buffer holds "
                f"{g.window_depth - 1}",
                needs={"window_depth": 1 << span.bit_length()},
            )
        if f.summed:
            walk["turn_less"] = words - 1
        flags = {"shared": whole, "stride2": op.stride == 2, "sliced": sliced}
        return walk | {name: int(flag) for name, flag in flags.items()}

    def _finish(self, f: Fused, out: Tensor, i: int, slices: int) -> dict[str, int]:
        """What happens to the accumulators of slice i."""
        g = self.geometry
        finish: dict[str, int] = {"down": g.max_left_shift}
        done = i == slices - 1
        if f.quantise is not None and done:
            q = self.program[f.quantise.output]
            finish["last"] = int(q.kind == "score")
            finish["requantise"] = int(q.kind == "activation")
            if q.kind == "activation":
                finish["out_first"] = self.regions[q.name].first
                if g.scattered:
                    finish["out_plane"] = self._plane(q.name) & ((1 << g.address_bits) - 1)
        if f.add is None and slices == 1 and not isinstance(f.op, Quantise):
            return finish
        self._check_residuals(f)
        divided = f.add is not None and f.add.division is not None
        if divided and not g.addend_division:
            raise CapacityError(
                f"{f.name}: what it adds to the residual stream is no power of two times the "
                "stream's unit, and the engine cannot divide it",
                "a network of one scale a layer",
                {"addend_division": True} | ({"pixel_lanes": 1} if g.pixel_lanes > 1 else {}),
            )
        if f.add is not None or isinstance(f.op, Quantise):
            stream = f.add.output if f.add else f.source
            width = self.program[stream].bits
            if width != g.residual_bits:
                raise CapacityError(
                    f"{f.name}: the residual stream must be of the engine's {g.residual_bits} "
                    f"bits, not {width}",
                    "" if width > g.residual_bits else "a Program that is lowered for this engine",
                    _wider_stream(g, width) if width > g.residual_bits else None,
                )
        else:
            stream = f"{f.name}.slices"
        later = g.activation_bits * (slices - 1 - i)  # how far this slice stands above the last
        doubled = isinstance(f.op, Add) and not divided
        j = (f.add.shift if f.add else 0) + later - int(doubled)
        down = g.max_left_shift - j
        lowest = g.max_left_shift - (1 << g.shift_bits) + 1
        if not 0 <= down < 1 << g.shift_bits:
            highest = max(j, g.max_left_shift)
            raise CapacityError(
                f"{f.name}: an addend's shift must be {lowest} to {g.max_left_shift}, not {j}",
                needs={
                    "max_left_shift": highest,
                    "shift_bits": (highest - min(j, lowest)).bit_length(),
                },
            )
        if slices > 1:
            self._check_slices(f, f.add.shift if f.add else 0)
        residual = f.add.residual if f.add else stream
        reads = 0
        if i > 0:
            reads = out.channels
        elif residual is not None and (f.add or isinstance(f.op, Quantise)):
            reads = self._stored_channels(residual)
        plane = out.height * _tiles(out.width, g)
        return finish | {
            "residual": 1,
            "down": down,
            "divide": int(divided and done),
            "divide_sum": int(divided and done and slices > 1),
            "quotient_zero": self._quotient_zero(f) if done else 0,
            "residual_groups": _groups(reads, g) if reads else 0,
            "res_first": self.regions[stream].first,
            "res_plane": plane,
            "res_back": (1 - (g.residual_words - 1) * plane) & ((1 << g.address_bits) - 1),
            "res_group": 1,  # a group's last word is the last of its plane
        }

    def _quotient_zero(self, f: Fused) -> int:
        division = self._division(f, f.add) if f.add is not None else None
        return 0 if division is None else 1 << (division.bits - 1)

    def _check_slices(self, f: Fused, shift: int) -> None:
        """Slices are summed in the residual stream: exact only if nothing rounds or saturates."""
        out, bits = self.program[f.op.output], self.geometry.residual_bits
        reach = max(-out.low, out.high) << max(shift, 0)
        if shift < 0 or reach >= 1 << (bits - 1) or (f.add and f.add.residual):
            needed = max(SUMMED_BITS, arith.bits_signed(-reach, reach))
            raise CapacityError(
                f"{f.name}: sums of the input up to {reach:,} must fit the residual stream of "
                f"{bits} bits unrounded; the shift is {shift}",
                needs=_wider_stream(self.geometry, needed) if needed > bits else None,
            )

    def _stored_channels(self, stream: str) -> int:
        """Channels of a stream that were written: pooling leaves the appended zeros out."""
        for op in self.program.ops:
            if isinstance(op, Pool) and op.output == stream:
                return self.program[op.source].channels
        return self.program[stream].channels

    def _signs(self, f: Fused, record: Mapping[str, int]) -> NDArray[np.int8]:
        """Weights in the order of the engine's steps: column, row, memory word, lanes."""
        g = self.geometry
        match f.op:
            case Conv():
                signs = self.program.signs(f.op)
            case Add():  # x + y + ... and then x - y - ...: twice the one channel
                channels = self.program[f.source].channels
                signs = np.ones((channels, channels, 2, 1), np.int8)
                signs[:, :, 1, 0] = 2 * np.eye(channels, dtype=np.int8) - 1
            case MaxPool():
                flags = np.ones((record["groups_less"] + 1) * g.word_channels, np.int8)
                flags[: len(f.op.falling)] = np.where(f.op.falling, -1, 1)
                steps = np.ones((record["groups_less"] + 1, g.pump, g.pass_weight_bits), np.int8)
                steps[:, -1, : 2 * g.word_channels : 2] = flags.reshape(-1, g.word_channels)
                return steps.reshape(-1, 1, g.output_lanes, g.input_lanes)
            case _:
                signs = np.ones((1, 1, 1, 1), np.int8)
        if f.first:  # channels lie apart, and rows become lanes
            c_out, c_in, rows, columns = signs.shape
            taps = np.ones((c_out, g.input_rows, g.tap_lanes, rows, columns), np.int8)
            apart = g.mask_channels
            taps[:, :, 1::2] = -1
            taps[:, 0, : c_in * apart : apart] = signs
            if apart > 1:  # the lane beside it takes off the zero point, which it holds
                taps[:, 0, 1 : c_in * apart : apart] = -signs
            if not g.plain_input:
                taps = np.moveaxis(taps[:, 0], 2, 1)[:, :, :, None]
            signs = taps.reshape(c_out, -1, *taps.shape[3:])
        turns = groups_in(record)
        groups = (record["groups_less"] + 1) * turns
        words = record["words_less"] + 1
        c_out, c_in, rows, columns = signs.shape
        full = np.ones((groups * g.output_lanes, words * g.word_channels, rows, columns), np.int8)
        full[:, 1::2] = -1  # lanes that no channel uses hold the zero point: in pairs it cancels
        full[:c_out, :c_in] = signs
        split = full.reshape(
            groups, g.output_lanes, words, g.halves, g.input_lanes, rows, columns
        ).transpose(0, 6, 5, 2, 3, 1, 4)  # group, column, row, word, half, output, input
        slice_ = split.reshape(groups, -1, g.output_lanes, g.input_lanes)
        steps = np.concatenate([slice_] * self._slices_of(record), axis=1)
        return steps.reshape(groups // turns, -1, g.output_lanes, g.input_lanes)

    @staticmethod
    def _slices_of(record: Mapping[str, int]) -> int:
        """Slices of the input that a layer's windows hold."""
        return record["kernel_h_less"] + 1 if record["sliced"] else 1

    def _params(
        self, f: Fused, record: Mapping[str, int], signs: NDArray[np.int8]
    ) -> tuple[tuple[Param, ...], ...]:
        g = self.geometry
        channels = 0 if isinstance(f.op, MaxPool) else self.program[f.op.output].channels
        bias = self._biases(f, record, signs)
        zero, stairs = 0, None
        if record["divide"] and f.add is not None:
            stairs = self._division(f, f.add)
        elif f.quantise is not None and (record["requantise"] or record["last"]):
            stairs = f.quantise.staircase
            if record["requantise"]:
                zero = self.program[f.quantise.output].zero
        idle = Param(0, NO_CHANNEL, zero, 1)
        size = g.output_lanes * groups_in(record)
        return tuple(
            tuple(
                self.param(f.name, stairs, c, bias[c]) if c < channels else idle
                for c in range(group * size, (group + 1) * size)
            )
            for group in range(record["groups_less"] + 1)
        )

    def _division(self, f: Fused, add: Add) -> Staircase | None:
        """Of an addend, or of twice the activations that start a stream.

        The divider clips nothing below its own width; nor may what it divides reach further.
        """
        stairs = add.division
        if stairs is not None and stairs.bits > arith.SCORE_BITS:
            raise CapacityError(
                f"{f.name}: the division of its addend must be of the divider's "
                f"{arith.SCORE_BITS} bits, not {stairs.bits}"
            )
        source = self.program[add.source]
        ends = source.low - source.zero, source.high - source.zero
        if stairs is not None and stairs.bits < arith.SCORE_BITS and stairs.exceeds(*ends):
            raise CapacityError(
                f"{f.name}: the division of its addend must not clip below the divider's "
                f"{arith.SCORE_BITS} bits, but it has {stairs.bits}"
            )
        if stairs is None or isinstance(f.op, Conv):
            return stairs
        return replace(
            stairs,
            offsets=tuple(t << abs(g) for t, g in zip(stairs.offsets, stairs.gains, strict=True)),
            divisors=tuple(d << abs(g) for d, g in zip(stairs.divisors, stairs.gains, strict=True)),
        )

    def _biases(self, f: Fused, record: Mapping[str, int], signs: NDArray[np.int8]) -> list[int]:
        """What to add to each accumulator so that it is exact.

        A window that is all padding stands for 0, so the bias is the negative of what the datapath
        makes of one: that undoes the one's complement negations, the lanes no channel uses, and
        the zero point. Half of what a right shift drops is added for rounding.
        """
        g = self.geometry
        # A group each, also of those that share windows.
        groups = (record["groups_less"] + 1) * groups_in(record)
        signs = signs.reshape(groups, -1, *signs.shape[2:])
        acc = np.zeros((len(signs), g.output_lanes), np.int64)
        for i, part in enumerate(np.split(signs, self._slices_of(record), axis=1)):
            same, negate = arith.recode_pairs(part)
            digit = record["pad"] >> g.activation_bits * i & (1 << g.activation_bits) - 1
            x = np.full(part.shape, digit, np.int64)
            sums = arith.pair_sum(x, same, negate, g.pair_centre).sum(axis=1)
            acc = (acc << g.activation_bits) + sums
        if f.summed:  # the same weights for every pixel
            acc *= (record["window_less"] + 1) // (record["turn_less"] + 1)
        dropped = record["down"] - g.max_left_shift
        rounding = 1 << dropped >> 1 if dropped > 0 else 0
        return [int(rounding - a) for a in acc.reshape(-1)]
