"""From a Program to what one engine does: fused layers, memory plan, parameters, cycles.

A layer of the engine is a convolution together with what finishes it (`Conv`, then `Add`, then
`Quantise`), or a `Pool`. The head's `SumPixels` is computed by its convolution, one weight shared
by all taps of a window as large as the map. The first convolution takes its window's three columns
from one memory word, where the input writer puts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compiler import arith
from compiler.arith import Staircase
from compiler.cycles import layer_cycles
from compiler.errors import CapacityError
from compiler.geometry import GAINS, MAGIC, NO_CHANNEL, POOL_SHIFT, Geometry
from compiler.program import Add, Conv, Pool, Program, Quantise, SumPixels, Tensor


@dataclass(frozen=True, slots=True)
class Param:
    """Parameters of one output channel as the requantiser wants them (`Geometry.param_fields`)."""

    bias: int
    gain: int
    offset: int
    divisor: int


@dataclass(frozen=True, slots=True)
class Region:
    """A tensor's place in activation memory: word ``first`` and how many ``words``.

    Activations: word ``first + (c // K) * H*W + y*W + x`` holds channels of pixel (x, y).
    Residuals: word ``first + (c // R) * H*T + y*T + x // P`` with T tiles a row.
    """

    tensor: str
    first: int
    words: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One record of the Image, what follows it there, and what is known about it.

    Attributes
    ----------
    record : dict
        `Geometry.record_fields` by name.
    params : tuple
        output_lanes `Param` a group; empty for pooling.
    weights : bytes
        Signs packed from (groups, steps, output_lanes, input_lanes); empty for pooling.
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
    cycles: int

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
    """A Program laid out for a Geometry."""

    program: Program
    geometry: Geometry
    header: Mapping[str, int]
    input_params: tuple[Param, ...]
    layers: tuple[Layer, ...]
    regions: tuple[Region, ...]

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
    layers = tuple(layer for f in fused for layer in builder.layers(f))
    quantise_input = program.ops[0]
    if not isinstance(quantise_input, Quantise):
        raise CapacityError("the engine's first operation must quantise the image")
    return Schedule(
        program,
        geometry,
        builder.header(quantise_input),
        builder.input_params(quantise_input),
        layers,
        regions,
    )


# -- fusing
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fused:
    """The operations of one engine layer and the tensors in memory it touches."""

    name: str
    op: Conv | Pool
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
        if isinstance(self.op, Pool):
            return [self.op.output]
        return [op.output for op in (self.add, self.quantise) if op is not None]


def _fuse(program: Program) -> list[Fused]:
    fused: list[Fused] = []
    ops = list(program.ops[1:])
    summed: SumPixels | None = None
    while ops:
        op = ops.pop(0)
        if isinstance(op, SumPixels):
            summed = op
        elif isinstance(op, Pool):
            fused.append(Fused(op.name, op, op.source))
        elif isinstance(op, Conv):
            add: Add | None = None
            quantise: Quantise | None = None
            last = op.output
            following = ops[0] if ops else None
            if isinstance(following, Add) and following.source == last:
                add, last = following, following.output
                del ops[0]
            following = ops[0] if ops else None
            if isinstance(following, Quantise) and following.source == last:
                quantise = following
                del ops[0]
            source = summed.source if summed else op.source
            first = op.source == program.ops[0].output
            fused.append(Fused(op.name, op, source, first, summed is not None, add, quantise))
            summed = None
        else:
            raise CapacityError(
                f"{op.name}: the engine does this only directly behind a convolution"
            )
    return fused


# -- memory plan
# -------------------------------------------------------------------------------------


def _tiles(width: int, geometry: Geometry) -> int:
    return -(-width // geometry.pixel_lanes)


def _groups(channels: int, geometry: Geometry) -> int:
    """Groups of output lanes that fill whole memory words for whoever reads them."""
    unit = geometry.word_channels
    return -(-channels // unit) * unit // geometry.output_lanes


def _input_plane(tensor: Tensor) -> int:
    """Words of one slice of the input: every pixel, and two of guard at either end."""
    return tensor.height * tensor.width + 4


def _words(tensor: Tensor, first: bool, geometry: Geometry) -> int:
    if tensor.kind == "residual":
        planes = _groups(tensor.channels, geometry) * geometry.residual_words
        return planes * tensor.height * _tiles(tensor.width, geometry)
    if first:
        return _input_plane(tensor) * arith.num_slices(tensor.bits, geometry.activation_bits)
    return -(-tensor.channels // geometry.word_channels) * tensor.height * tensor.width


@dataclass(slots=True)
class _Block:
    """Words that tensors have to themselves for some layers, inclusive; the input from -1 on."""

    where: str
    words: int
    start: int
    end: int
    tensors: list[str]
    first: int = 0

    def meets(self, other: _Block) -> bool:
        """Whether both are wanted at a time."""
        return self.start <= other.end and other.start <= self.end


def _plan_memory(program: Program, fused: list[Fused], geometry: Geometry) -> tuple[Region, ...]:
    """The largest first, each as low as it goes; a residual sum stays where its first addend was.

    The input comes before all: `hw.writer` puts it at address 0.
    """
    blocks, order = _blocks(program, fused, geometry)
    placed: list[_Block] = []
    for block in sorted(blocks, key=lambda b: (b.start >= 0, -b.words, b.start)):
        for other in sorted(filter(block.meets, placed), key=lambda b: b.first):
            if block.first + block.words <= other.first:
                break
            block.first = max(block.first, other.first + other.words)
        placed.append(block)
    farthest = max(blocks, key=lambda b: b.first + b.words)
    used = farthest.first + farthest.words
    if used > geometry.memory_depth:
        raise CapacityError(
            f"{farthest.where}: activation memory needs {used:,} words of {geometry.word_bits} "
            f"bits, but the engine has {geometry.memory_depth:,}",
            f"an engine with memory_depth {1 << (used - 1).bit_length()}, or a narrower network",
        )
    place = {name: block for block in blocks for name in block.tensors}
    return tuple(Region(name, place[name].first, place[name].words) for name in order)


def _blocks(
    program: Program, fused: list[Fused], geometry: Geometry
) -> tuple[list[_Block], list[str]]:
    """What has to be placed, and the tensors in the order in which they are written."""
    last_use = {name: i for i, f in enumerate(fused) for name in f.reads()}
    input_name = program.ops[0].output
    input_slices = arith.num_slices(program[input_name].bits, geometry.activation_bits)
    blocks: list[_Block] = []
    order: list[str] = []

    def add(where: str, i: int, tensor: Tensor) -> None:
        words = _words(tensor, tensor.name == input_name, geometry)
        end = max(i, last_use.get(tensor.name, i))
        blocks.append(_Block(where, words, i, end, [tensor.name]))
        order.append(tensor.name)

    add("input", -1, program[input_name])
    for i, f in enumerate(fused):
        if f.first and f.add is None and input_slices > 1:
            out = program[f.op.output]
            add(f.name, i, replace(out, name=f"{f.name}.slices", kind="residual"))
        for name in f.writes():
            old = f.add.residual if f.add and name == f.add.output else None
            if old is not None:
                if last_use[old] != i:
                    raise CapacityError(f"{f.name}: residual {old} must not be read again later")
                block = next(b for b in blocks if old in b.tensors)
                block.tensors.append(name)
                block.end = max(i, last_use.get(name, i))
                order.append(name)
            elif name in last_use or program[name].kind == "residual":
                add(f.name, i, program[name])
    return blocks, order


# -- layers
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Builder:
    program: Program
    geometry: Geometry
    regions: Mapping[str, Region]

    def header(self, op: Quantise) -> dict[str, int]:
        image, q = self.program.image, self.program[op.output]
        most = min(self.geometry.tap_lanes, self.geometry.output_lanes)
        if image.channels > most:
            raise CapacityError(
                f"input: the image has {image.channels} channels, but the engine takes {most}",
                f"an engine with word_channels of at least {3 * image.channels}",
            )
        plane, mask = _input_plane(q), (1 << self.geometry.address_bits) - 1
        slices = arith.num_slices(q.bits, self.geometry.activation_bits)
        return {
            "magic": MAGIC,
            "geometry": self.geometry.digest,
            "pixels": image.channels * image.height * image.width,
            "classes": self.program.scores.channels,
            "channels": image.channels - 1,
            "zero": q.zero,
            "height": image.height - 1,
            "width": image.width - 1,
            "step_slice": (plane - 2) & mask,
            "step_back": (-(slices - 1) * plane - 2) & mask,
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
        p = Param(bias, GAINS[gain], offset, divisor)
        return self._checked(where, p, offset_bits)

    def _checked(self, where: str, p: Param, offset_bits: int) -> Param:
        g = self.geometry
        for name, width, need in (
            ("bias", g.bias_bits, arith.bits_signed(p.bias, p.bias)),
            ("offset", offset_bits, arith.bits_signed(p.offset, p.offset)),
            ("divisor", g.divisor_bits, arith.bits_unsigned(p.divisor)),
        ):
            if need > width:
                raise CapacityError(
                    f"{where}: {name} needs {need} bits, but the engine has {width}",
                    f"an engine with {name}_bits {need}",
                )
        return p

    def layers(self, f: Fused) -> list[Layer]:
        """One layer, or one for each slice of the input: their sums meet in the residual stream."""
        slices = self._num_slices(f)
        return [self._layer(f, i, slices) for i in range(slices)]

    def _num_slices(self, f: Fused) -> int:
        if not f.first:
            return 1
        return arith.num_slices(self.program[f.source].bits, self.geometry.activation_bits)

    def _layer(self, f: Fused, i: int, slices: int) -> Layer:
        if isinstance(f.op, Pool):
            record = self._pool(f, f.op)
        else:
            record = self._conv(f, f.op, i, slices)
        for name, width in self.geometry.record_fields:
            if not 0 <= record[name] < 1 << width:
                raise CapacityError(f"{f.name}: {name} must fit {width} bits, not {record[name]:,}")
        if isinstance(f.op, Pool):
            return Layer(
                f.name,
                record,
                (),
                b"",
                None,
                f.op.output,
                0,
                layer_cycles(record, self.geometry, 0),
            )
        signs = self._signs(f, f.op, record)
        params = self._params(f, f.op, record, signs)
        done = i == slices - 1
        return Layer(
            f.name if slices == 1 else f"{f.name}.slice{i}",
            record,
            params,
            np.packbits(signs > 0).tobytes(),
            f.quantise.output if record["requantise"] and f.quantise else None,
            f.add.output if f.add and done else None,
            self.program.addsub(f.op) if done else 0,
            layer_cycles(record, self.geometry, self.program[f.op.output].channels),
        )

    def _blank(self) -> dict[str, int]:
        return {name: 0 for name, _ in self.geometry.record_fields}

    def _pool(self, f: Fused, op: Pool) -> dict[str, int]:
        g = self.geometry
        source, out = self.program[op.source], self.program[op.output]
        if op.pads.left > 1 or op.pads.top > 1:
            raise CapacityError(f"{f.name}: pads before the map must be 0 or 1, not {op.pads}")
        down = op.right_shift - POOL_SHIFT + g.max_left_shift
        most = POOL_SHIFT + (1 << g.shift_bits) - 1 - g.max_left_shift
        if not POOL_SHIFT <= op.right_shift <= most:
            raise CapacityError(
                f"{f.name}: the right shift must be {POOL_SHIFT} to {most}, not {op.right_shift}"
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
                "rounding": (1 << op.right_shift) >> 1,
                "res_first": self.regions[op.output].first,
                "res_plane": out.height * _tiles(out.width, g),
                "res_back": 1,
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
    ) -> dict[str, int]:
        """How windows walk over a map: reads (`hw.fetch`) and the buffer's order (`hw.window`).

        Parameters
        ----------
        first : int
            Address of the map's first word.
        size, tiles : (rows, columns) of the map in words, and of tiles
        words : int
            Memory words a pixel has; they lie a map apart.
        pixels : int
            Neighbouring windows of a tile.
        next_plane : bool
            Each group walks over the next plane instead of the same words again.
        """
        (height, width), (rows, across), (lines, tiles_a_row) = size, kernel, tiles
        plane = height * width
        columns = (tiles_a_row * pixels - 1) * stride + across
        column_words = rows * words
        window = across * column_words
        # Each step is from the last word of what ends to the first of what follows.
        row_step = width - (words - 1) * plane
        column_step = row_step - rows * width + 1
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
            "row_last": height + pads.top - 1,
            "window_less": window - 1,
            "turn_less": window - 1,
            "step_window": (1 - window + pixels * stride * column_words) % ring,
            "step_pixel": stride * column_words if pixels > 1 else 0,
            "in_first": (first - pads.top * width - pads.left) % memory,
            "step_word": plane % memory,
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

    def _conv(self, f: Fused, op: Conv, i: int, slices: int) -> dict[str, int]:
        g = self.geometry
        source, out = self.program[f.source], self.program[op.output]
        if f.add is not None and f.add.division is not None:
            raise CapacityError(
                f"{f.name}: its addend needs a division a channel, which the engine does not have",
                "train with one scale a layer",
            )
        bits = out.bits if slices == 1 else self._slice_bits(source, op)
        if bits > g.accumulator_bits:
            raise CapacityError(
                f"{f.name}: accumulators need {bits} bits, but the engine has {g.accumulator_bits}",
                f"an engine with accumulator_bits {bits}",
            )
        channels = 3 * g.tap_lanes if f.first else source.channels
        words = -(-channels // g.word_channels)
        record = self._blank() | self._window(f, op, source, out, words, i)
        digits = arith.slices(np.array(source.zero), source.bits, g.activation_bits)
        record |= {
            "pad": int(digits[i]),
            "height_out_less": out.height - 1,
            "tiles_less": _tiles(out.width, g) - 1,
            "tail_less": (out.width - 1) % g.pixel_lanes,
            "groups_less": _groups(out.channels, g) - 1,
            "weight_words": (record["turn_less"] + 1) * g.halves,
        }
        if record["weight_words"] > g.weight_depth:
            raise CapacityError(
                f"{f.name}: a group of weights needs {record['weight_words']} words, but the "
                f"engine's buffer has {g.weight_depth}",
                f"an engine with weight_depth {1 << (record['weight_words'] - 1).bit_length()}",
            )
        return record | self._finish(f, out, i, slices)

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
        if op.stride > 2:
            raise CapacityError(f"{f.name}: stride must be 1 or 2, not {op.stride}")
        if op.pads.left > 1 or op.pads.top > 1:
            raise CapacityError(f"{f.name}: pads before the map must be 0 or 1, not {op.pads}")
        first = self.regions[f.source].first
        pads = op.pads
        height, width = (source.height, source.width) if f.summed else (op.kernel,) * 2
        if f.first:
            if (op.kernel, op.stride, op.pads) != (3, 1, arith.Pads(1, 1, 1, 1)):
                raise CapacityError(
                    f"{f.name}: the first convolution must be 3x3, stride 1, pads 1"
                )
            first += 2 + i * _input_plane(source)
            width, pads = 1, arith.Pads(1, 0, 1, 0)
        pixels = 1 if f.summed else g.pixel_lanes
        walk = self._walk(
            first=first,
            size=(source.height, source.width),
            words=words,
            kernel=(height, width),
            pads=pads,
            stride=op.stride,
            tiles=(out.height, _tiles(out.width, g)),
            pixels=pixels,
        )
        span = walk["window_less"] + 1 + (pixels - 1) * walk["step_pixel"]
        if span > g.window_depth and not f.summed:
            raise CapacityError(
                f"{f.name}: a window needs {span} words, but the engine's buffer has "
                f"{g.window_depth}",
                f"an engine with window_depth {1 << (span - 1).bit_length()}",
            )
        if f.summed:
            walk["turn_less"] = words - 1
        return walk | {"shared": int(f.summed), "stride2": int(op.stride == 2)}

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
        if f.add is None and slices == 1:
            return finish
        if f.add is not None:
            stream = f.add.output
            width = self.program[stream].bits
            if width != g.residual_bits:
                raise CapacityError(
                    f"{f.name}: the residual stream must be of the engine's {g.residual_bits} "
                    f"bits, not {width}"
                )
        else:
            stream = f"{f.name}.slices"
        later = g.activation_bits * (slices - 1 - i)  # how far this slice stands above the last
        j = (f.add.shift if f.add else 0) + later
        down = g.max_left_shift - j
        lowest = g.max_left_shift - (1 << g.shift_bits) + 1
        if not 0 <= down < 1 << g.shift_bits:
            raise CapacityError(
                f"{f.name}: an addend's shift must be {lowest} to {g.max_left_shift}, not {j}"
            )
        if slices > 1:
            self._check_slices(f, f.add.shift if f.add else 0)
        reads = self._pooled_channels(f.add) if f.add and f.add.residual else 0
        if i > 0:
            reads = out.channels
        plane = out.height * _tiles(out.width, g)
        return finish | {
            "residual": 1,
            "down": down,
            "residual_groups": _groups(reads, g) if reads else 0,
            "res_first": self.regions[stream].first,
            "res_plane": plane,
            "res_back": (1 - (g.residual_words - 1) * plane) & ((1 << g.address_bits) - 1),
        }

    def _check_slices(self, f: Fused, shift: int) -> None:
        """Slices are summed in the residual stream: exact only if nothing rounds or saturates."""
        out = self.program[f.op.output]
        reach = max(-out.low, out.high) << max(shift, 0)
        if (
            shift < 0
            or reach >= 1 << (self.geometry.residual_bits - 1)
            or (f.add and f.add.residual)
        ):
            raise CapacityError(
                f"{f.name}: sums of the input up to {reach:,} must fit the residual stream of "
                f"{self.geometry.residual_bits} bits unrounded; the shift is {shift}"
            )

    def _pooled_channels(self, add: Add) -> int:
        """Channels of the skip that were written: pooling leaves the appended zeros out."""
        for op in self.program.ops:
            if isinstance(op, Pool) and op.output == add.residual:
                return self.program[op.source].channels
        return self.program[add.output].channels

    def _signs(self, f: Fused, op: Conv, record: Mapping[str, int]) -> NDArray[np.int8]:
        """Weights in the order of the engine's steps: column, row, memory word, lanes."""
        g = self.geometry
        signs = self.program.signs(op)
        if f.first:  # columns become lanes
            c_out, c_in, rows, columns = signs.shape
            taps = np.ones((c_out, g.word_channels, rows, 1), np.int8)
            for x in range(columns):
                taps[:, x * g.tap_lanes : x * g.tap_lanes + c_in, :, 0] = signs[:, :, :, x]
            signs = taps
        groups, words = record["groups_less"] + 1, record["words_less"] + 1
        c_out, c_in, rows, columns = signs.shape
        full = np.ones((groups * g.output_lanes, words * g.word_channels, rows, columns), np.int8)
        full[:c_out, :c_in] = signs
        split = full.reshape(
            groups, g.output_lanes, words, g.halves, g.input_lanes, rows, columns
        ).transpose(0, 6, 5, 2, 3, 1, 4)  # group, column, row, word, half, output, input
        return split.reshape(groups, -1, g.output_lanes, g.input_lanes)

    def _params(
        self, f: Fused, op: Conv, record: Mapping[str, int], signs: NDArray[np.int8]
    ) -> tuple[tuple[Param, ...], ...]:
        g = self.geometry
        channels = self.program[op.output].channels
        bias = self._biases(f, record, signs)
        zero, stairs = 0, None
        if f.quantise is not None and (record["requantise"] or record["last"]):
            stairs = f.quantise.staircase
            if record["requantise"]:
                zero = self.program[f.quantise.output].zero
        idle = Param(0, NO_CHANNEL, -zero, 1)
        return tuple(
            tuple(
                self.param(f.name, stairs, c, bias[c]) if c < channels else idle
                for c in range(group * g.output_lanes, (group + 1) * g.output_lanes)
            )
            for group in range(record["groups_less"] + 1)
        )

    def _biases(self, f: Fused, record: Mapping[str, int], signs: NDArray[np.int8]) -> list[int]:
        """What to add to each accumulator so that it is exact.

        A window that is all padding stands for 0, so the bias is the negative of what the datapath
        makes of one: that undoes the one's complement negations, the lanes no channel uses, and
        the zero point. Half of what a right shift drops is added for rounding.
        """
        g = self.geometry
        same, negate = arith.recode_pairs(signs)
        x = np.full(signs.shape, record["pad"], np.int64)
        acc = arith.pair_sum(x, same, negate).sum(axis=1)
        if f.summed:  # the same weights for every pixel
            acc *= (record["window_less"] + 1) // (record["turn_less"] + 1)
        dropped = record["down"] - g.max_left_shift
        rounding = 1 << dropped >> 1 if dropped > 0 else 0
        return [int(rounding - a) for a in acc.reshape(-1)]
