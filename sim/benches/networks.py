"""Programs drawn at random, without training or lowering: what the benches of blocks run.

They go where lowered networks do not: staircases of every sign, dead channels, residual streams
that saturate, thresholds anywhere in the range.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from compiler import arith
from compiler.arith import Pads, Staircase
from compiler.program import Add, Conv, Kind, Op, Pool, Program, Quantise, SumPixels, Tensor

PADDINGS = ("torch", "matlab", "keras")


def random_program(
    seed: int,
    *,
    shape: tuple[int, int, int] = (3, 7, 9),
    channels: tuple[int, ...] = (5, 12),
    classes: int = 5,
    bits: int = 4,
    residual_bits: int = 8,
    padding: str = "torch",
    signed_input: bool = True,
    skip: bool = True,
    shift: int = -2,
    bias: float = 0.0,
) -> Program:
    """A network of one block a stage.

    Parameters
    ----------
    shape : (channels, height, width) of the image
    channels : of each stage; a pool stands between two
    padding : one of `PADDINGS`
    shift : int
        Of the addends.
    bias : float, 0 .. 1
        How far from even the signs of a channel's weights are: towards 1 sums grow, and saturate.
    """
    half = 1 << (residual_bits - 1)
    draw = _Draw(np.random.default_rng([seed, 2]), bits, (-half, half - 1), padding, bias)
    image = draw.tensor("image", "image", shape, 0, 255)
    zero = arith.SIGNED_INPUT_ZERO if signed_input else 0
    source = draw.quantise("input", image, zero, arith.INPUT_BITS, spread=300.0)
    draw.shift = min(max(shift, 0), 1)
    acc = draw.conv("conv0", source, channels[0], 3, 1)
    stream = draw.add("conv0", acc, None) if skip else acc
    a = draw.quantise("conv0.q", stream, 0, bits)
    draw.shift = shift
    for stage, c in enumerate(channels):
        name, stride = f"stage{stage + 1}", 2 if stage else 1
        h = draw.quantise(f"{name}.q1", draw.conv(f"{name}.conv1", a, c, 3, stride), 0, bits)
        if skip and stage:
            stream = draw.pool(f"{name}.pool", stream, c)
        acc = draw.conv(f"{name}.conv2", h, c, 3, 1)
        stream = draw.add(f"{name}.add", acc, stream) if skip else acc
        a = draw.quantise(f"{name}.q2", stream, 0, bits)
    pixels = a.height * a.width
    total = draw.tensor("sum", "sum", (a.channels, 1, 1), 0, pixels * a.high)
    draw.ops.append(SumPixels("sum", a.name, "sum"))
    acc = draw.conv("head", total, classes, 1, 1)
    draw.quantise("scores", acc, 1 << (arith.SCORE_BITS - 1), arith.SCORE_BITS, kind="score")
    labels = tuple(map(str, range(classes)))
    name = f"random{seed}"
    return Program(name, bits, tuple(draw.tensors), tuple(draw.ops), labels).verify()


@dataclass
class _Draw:
    """Writes tensors and operations in order of the flow."""

    rng: np.random.Generator
    bits: int
    residual: tuple[int, int]
    padding: str
    bias: float
    shift: int = 0
    tensors: list[Tensor] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def tensor(self, name, kind: Kind, shape, low: int, high: int, zero: int = 0) -> Tensor:
        c, h, w = shape
        self.tensors.append(Tensor(name, kind, c, h, w, low, high, zero))
        return self.tensors[-1]

    def pads(self, source: Tensor, kernel: int, stride: int) -> Pads:
        if self.padding == "keras":
            return arith.same_pads((source.height, source.width), kernel, stride)
        return Pads(*[kernel // 2] * 4)

    def conv(self, name: str, source: Tensor, c_out: int, kernel: int, stride: int) -> Tensor:
        p = 0.5 + self.bias * self.rng.uniform(-0.5, 0.5, (c_out, 1, 1, 1))
        shape = (c_out, source.channels, kernel, kernel)
        weights = np.packbits(self.rng.random(shape) < p).tobytes()
        pads = self.pads(source, kernel, stride)
        size = pads.output_size((source.height, source.width), kernel, stride)
        fan_in = source.channels * kernel**2
        reach = arith.accumulator_range(fan_in, source.low, source.high, source.zero)
        output = f"{name}.acc"
        self.ops.append(Conv(name, source.name, output, kernel, stride, pads, weights, 1.0))
        return self.tensor(output, "accumulator", (c_out, *size), *reach)

    def add(self, name: str, acc: Tensor, residual: Tensor | None) -> Tensor:
        output = f"{name}.r"
        addend = residual.name if residual is not None else None
        self.ops.append(Add(output, acc.name, addend, output, self.shift))
        return self.tensor(output, "residual", acc.shape, *self.residual)

    def pool(self, name: str, source: Tensor, c_out: int) -> Tensor:
        pads = self.pads(source, arith.POOL_KERNEL, 2)
        size = pads.output_size((source.height, source.width), arith.POOL_KERNEL, 2)
        right = int(self.rng.integers(*arith.POOL_SHIFTS, endpoint=True))
        self.ops.append(Pool(name, source.name, name, pads, self.padding == "torch", right))
        return self.tensor(name, "residual", (c_out, *size), *self.residual)

    def quantise(
        self,
        name: str,
        source: Tensor,
        zero: int,
        bits: int,
        spread=None,
        kind: Kind = "activation",
    ) -> Tensor:
        if spread is None:
            spread = max(-source.low, source.high) / 6
            if source.kind == "residual":
                spread = min(spread, 600.0 * 2**self.shift, 8000.0)  # a divisor has 19 bits
        stairs = random_staircase(self.rng, source.channels, bits, spread, zero)
        self.ops.append(Quantise(name, source.name, name, stairs))
        return self.tensor(name, kind, source.shape, 0, (1 << bits) - 1, zero)


def random_staircase(
    rng: np.random.Generator, channels: int, bits: int, spread: float, zero: int = 0
) -> Staircase:
    """Steps of about ``spread / 2**bits``, one channel in eight dead, one in three falling."""
    fraction_bits = int(rng.integers(0, arith.MAX_FRACTION_BITS, endpoint=True))
    width = spread * 2.0**fraction_bits
    divisors = np.maximum(1, rng.uniform(0.3, 2.0, channels) * width / 2**bits).astype(np.int64)
    centre = rng.uniform(-0.4, 0.4, channels) * width
    offsets = np.rint(centre - (zero or 1 << bits - 2) * divisors).astype(np.int64)
    gains = rng.choice([1, -1, 0], channels, p=[13 / 24, 1 / 3, 1 / 8])
    dead = gains == 0
    offsets[dead] = -rng.integers(0, 1 << bits, int(dead.sum()))
    divisors[dead] = 1
    return Staircase(
        bits,
        fraction_bits,
        *(tuple(int(v) for v in values) for values in (offsets, divisors, gains)),
    )
