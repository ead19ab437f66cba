"""The integer Program: a network as additions, subtractions, comparisons and shifts.

A Program is frozen, knows nothing of any chip, and means exactly what `compiler.golden` computes
from it. It is a list of operations in order of the flow; each names the tensors it reads and the
one it writes (single assignment). The operations call nothing but `compiler.arith`.

====================  ===================================  =====================================
operation             reads                                writes
====================  ===================================  =====================================
`Quantise`            image, accumulator or residual       activation (at the end: scores)
`Conv`                activation or sum                    accumulator
`Add`                 accumulator (and residual)           residual
`Pool`                residual                             residual
`MaxPool`             activation                           activation
`SumPixels`           activation                           sum
====================  ===================================  =====================================
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from compiler import arith
from compiler.arith import Pads, Staircase
from compiler.errors import ProgramError

FORMAT = "signum-program"
VERSION = 1

Kind = Literal["image", "activation", "accumulator", "residual", "sum", "score"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An integer tensor (channels, height, width), its exact range, and what one unit stands for.

    Attributes
    ----------
    low, high : int
        Every value lies in ``low .. high``: a static bound, or the declared saturation.
    zero : int
        The integer that stands for the real 0; also what padding is.
    step : float
        Real value of one unit: ``value = (integer - zero) * step``. Explains, never computes.
    """

    name: str
    kind: Kind
    channels: int
    height: int
    width: int
    low: int
    high: int
    zero: int = 0
    step: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def bits(self) -> int:
        """Width in bits: two's complement where low is negative, else unsigned."""
        if self.low < 0:
            return arith.bits_signed(self.low, self.high)
        return arith.bits_unsigned(self.high)


@dataclass(frozen=True, slots=True)
class Quantise:
    """A staircase: requantises to an activation, or turns the last accumulator into scores."""

    name: str
    source: str
    output: str
    staircase: Staircase


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution with weights of ±1; padding is the source's zero.

    Attributes
    ----------
    weights : bytes
        `numpy.packbits` of (C_out, C_in, K, K), a set bit being +1.
    scale : float
        The layer's constant s, kept exactly (the mean, where channels have their own); already
        part of the staircases and steps.
    """

    name: str
    source: str
    output: str
    kernel: int
    stride: int
    pads: Pads
    weights: bytes
    scale: float

    def signs(self, c_out: int, c_in: int) -> NDArray[np.int8]:
        """The weights as +1 and -1, (C_out, C_in, K, K)."""
        count = c_out * c_in * self.kernel**2
        bits = np.unpackbits(np.frombuffer(self.weights, np.uint8), count=count)
        return (bits.astype(np.int8) * 2 - 1).reshape(c_out, c_in, self.kernel, self.kernel)


@dataclass(frozen=True, slots=True)
class Add:
    """``r = saturate(residual + addend)``; without a residual, the start of a stream.

    The addend is the accumulator shifted by ``shift`` (see `arith.shift`), or, where no shift can
    align the two, the signed answer of ``division`` (its q less 2**(bits-1)). A stream may start
    with an activation, less its zero, in the place of an accumulator.
    """

    name: str
    source: str
    residual: str | None
    output: str
    shift: int
    division: Staircase | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """The skip of a downsampling block: `arith.pool`, saturated, then zero channels appended."""

    name: str
    source: str
    output: str
    pads: Pads
    count_padding: bool
    right_shift: int


@dataclass(frozen=True, slots=True)
class MaxPool:
    """`arith.max_pool`; in the channels that fall, ``2**bits - 1`` less it.

    Attributes
    ----------
    falling : tuple of bool
        One a channel: the source holds 2**bits - 1 less what it stands for, so that the largest
        there is the smallest activation. So a batch norm of negative scale may follow the maximum
        in a network, and its staircase stand before it here.
    """

    name: str
    source: str
    output: str
    kernel: int
    stride: int
    pads: Pads
    falling: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class SumPixels:
    """``sum(q - zero)`` over the map, (C, H, W) -> (C, 1, 1): global average pooling, undivided."""

    name: str
    source: str
    output: str


Op = Quantise | Conv | Add | Pool | MaxPool | SumPixels
_OPS = {cls.__name__: cls for cls in get_args(Op)}


def reads(op: Op) -> tuple[str, ...]:
    """Names of the tensors that an operation reads."""
    if isinstance(op, Add) and op.residual is not None:
        return op.source, op.residual
    return (op.source,)


@dataclass(frozen=True, slots=True)
class Program:
    """A whole network: image (uint8, C, H, W) in, scores out.

    Attributes
    ----------
    network : str
        For people: "wrn8-1".
    activation_bits : int
        b, 2 .. 8: width of every activation but the input's, which has `arith.INPUT_BITS`.
    tensors, ops : tuple
        In order of the flow. The first tensor is the image, the last the scores.
    labels : tuple of str
        Class names, or their numbers.
    """

    network: str
    activation_bits: int
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    labels: tuple[str, ...]
    _by_name: dict[str, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {t.name: t for t in self.tensors})

    def __getitem__(self, name: str) -> Tensor:
        return self._by_name[name]

    @property
    def image(self) -> Tensor:
        return self.tensors[0]

    @property
    def scores(self) -> Tensor:
        return self.tensors[-1]

    def signs(self, op: Conv) -> NDArray[np.int8]:
        """Weights of a convolution as +1 and -1, (C_out, C_in, K, K)."""
        return op.signs(self[op.output].channels, self[op.source].channels)

    def convs(self) -> Iterator[Conv]:
        """The convolutions, in order of the flow."""
        return (op for op in self.ops if isinstance(op, Conv))

    def addsub(self, op: Conv) -> int:
        """Additions of one convolution: C_in*C_out*K*K*H_out*W_out, border taps included."""
        out = self[op.output]
        return self[op.source].channels * out.channels * op.kernel**2 * out.height * out.width

    @property
    def addsub_per_image(self) -> int:
        """Additions and subtractions of all convolutions; the head's once, after pooling."""
        return sum(self.addsub(op) for op in self.convs())

    @property
    def weight_bits(self) -> int:
        return sum(
            self[op.source].channels * self[op.output].channels * op.kernel**2
            for op in self.convs()
        )

    def with_residual_bits(self, bits: int) -> Program:
        """The same operations with every residual stream declared ``bits`` wide.

        Where an engine keeps residuals in words of ``bits``, that is where they saturate.
        """
        half = 1 << (bits - 1)
        tensors = tuple(
            replace(t, low=-half, high=half - 1) if t.kind == "residual" else t
            for t in self.tensors
        )
        return Program(self.network, self.activation_bits, tensors, self.ops, self.labels).verify()

    # -- rules ---------------------------------------------------------------------------------

    def verify(self) -> Program:
        """Check every rule of the form; return self.

        Raises
        ------
        ProgramError
            Naming the operation or tensor, the field, and the value.
        """
        if not 2 <= self.activation_bits <= 8:
            raise ProgramError(f"activation_bits must be 2 to 8, not {self.activation_bits}")
        if len(self._by_name) != len(self.tensors):
            raise ProgramError("tensor names must be unique")
        if len(self.tensors) != len(self.ops) + 1 or not self.ops:
            raise ProgramError("every tensor but the image must be written by one operation")
        if self.image.kind != "image" or self.scores.kind != "score":
            raise ProgramError("the first tensor must be the image and the last the scores")
        if len(self.labels) != self.scores.channels:
            raise ProgramError(
                f"labels must be {self.scores.channels}, one a class, not {len(self.labels)}"
            )
        for tensor in self.tensors:
            if min(tensor.shape) < 1 or tensor.low > tensor.high:
                raise ProgramError(f"tensor {tensor.name} must have a shape and a range")
            if tensor.kind in ("image", "activation", "score") and not (
                tensor.low == 0 <= tensor.zero <= tensor.high
            ):
                raise ProgramError(f"tensor {tensor.name}: zero must be in range")
        known = {self.image.name}
        for op, expected in zip(self.ops, self.tensors[1:], strict=True):
            if op.output != expected.name:
                raise ProgramError(f"{op.name}: output must be {expected.name}, not {op.output}")
            for name in reads(op):
                if name not in known:
                    raise ProgramError(f"{op.name}: {name} must be written before it is read")
            known.add(op.output)
            self._verify_op(op)
        return self

    def _verify_op(self, op: Op) -> None:
        source, out = self[op.source], self[op.output]

        def rule(holds: bool, what: str) -> None:
            if not holds:
                raise ProgramError(f"{op.name}: {what}")

        def same_shape(a: Tensor, b: Tensor) -> None:
            rule(a.shape == b.shape, f"shapes must agree, not {a.shape} and {b.shape}")

        def sound(s: Staircase) -> None:
            rule(
                s.channels == len(s.divisors) == len(s.gains) == out.channels,
                f"staircase must have {out.channels} channels",
            )
            rule(all(d >= 1 for d in s.divisors), "divisors must be at least 1")
            rule(all(g in (-1, 0, 1) for g in s.gains), "gains must be -1, 0 or 1")
            most = arith.MAX_FRACTION_BITS
            if source.kind == "image":
                most = arith.INPUT_FRACTION_BITS
            rule(
                0 <= s.fraction_bits <= most,
                f"fraction_bits must be 0 to {most}, not {s.fraction_bits}",
            )

        match op:
            case Quantise(staircase=s):
                same_shape(source, out)
                rule(source.kind in ("image", "accumulator", "residual"), "source kind")
                rule(out.kind in ("activation", "score"), "output kind")
                sound(s)
                rule((out.low, out.high) == (0, (1 << s.bits) - 1), "range must be the staircase's")
            case Conv():
                rule(source.kind in ("activation", "sum"), "source kind")
                rule(out.kind == "accumulator", "output kind")
                rule(op.kernel >= 1 and op.stride >= 1, "kernel and stride must be at least 1")
                count = source.channels * out.channels * op.kernel**2
                rule(len(op.weights) == -(-count // 8), f"weights must be {count} bits")
                size = op.pads.output_size((source.height, source.width), op.kernel, op.stride)
                rule((out.height, out.width) == size, f"output size must be {size}")
                exact = arith.accumulator_range(
                    source.channels * op.kernel**2, source.low, source.high, source.zero
                )
                rule((out.low, out.high) == exact, f"range must be the exact bound {exact}")
            case Add():
                same_shape(source, out)
                starts = source.kind == "activation" and op.residual is None
                rule(source.kind == "accumulator" or starts, "source kind")
                rule(out.kind == "residual", "output kind")
                if op.residual is not None:
                    rule(self[op.residual].kind == "residual", "residual kind")
                    same_shape(self[op.residual], out)
                if op.division is not None:
                    rule(op.shift == 0, "shift must be 0 beside a division")
                    sound(op.division)
                rule(
                    (out.low, out.high) == (-(out.high + 1), (1 << (out.bits - 1)) - 1),
                    "range must be that of a two's complement width",
                )
            case Pool():
                rule(source.kind == out.kind == "residual", "kinds")
                rule(out.channels >= source.channels, "channels must not shrink")
                size = op.pads.output_size((source.height, source.width), arith.POOL_KERNEL, 2)
                rule((out.height, out.width) == size, f"output size must be {size}")
                rule(op.right_shift >= 0, "right_shift must be at least 0")
                counts = arith.pool_counts((source.height, source.width), op.pads, op.count_padding)
                rule(bool(np.isin(counts, (9, 6, 4)).all()), "windows must hold 9, 6 or 4 pixels")
                rule(
                    (out.low, out.high) == (-(out.high + 1), (1 << (out.bits - 1)) - 1),
                    "range must be that of a two's complement width",
                )
            case MaxPool():
                rule(source.kind == out.kind == "activation", "kinds")
                rule(out.channels == source.channels == len(op.falling), "channels must agree")
                size = op.pads.output_size((source.height, source.width), op.kernel, op.stride)
                rule((out.height, out.width) == size, f"output size must be {size}")
                before = max(op.pads.top, op.pads.left, op.pads.bottom, op.pads.right)
                rule(op.stride >= 1 and 0 <= before < op.kernel, "windows must meet the map")
                rule((out.low, out.high) == (source.low, source.high), "range must be the source's")
            case SumPixels():
                rule(source.kind == "activation" and out.kind == "sum", "kinds")
                rule(out.shape == (source.channels, 1, 1), "output must be one pixel")
                pixels = source.height * source.width
                exact = (
                    pixels * (source.low - source.zero),
                    pixels * (source.high - source.zero),
                )
                rule((out.low, out.high) == exact, f"range must be the exact bound {exact}")

    # -- files ---------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Canonical text: the same Program always gives the same bytes."""

        def plain(op: Op) -> dict[str, Any]:
            d = {"op": type(op).__name__, **asdict(op)}
            if isinstance(op, Conv):
                d["weights"] = base64.b64encode(op.weights).decode()
            return d

        document = {
            "format": FORMAT,
            "version": VERSION,
            "network": self.network,
            "activation_bits": self.activation_bits,
            "labels": list(self.labels),
            "tensors": [asdict(t) for t in self.tensors],
            "ops": [plain(op) for op in self.ops],
        }
        return json.dumps(document, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Program:
        """Exact inverse of `to_json`; the result is verified.

        Raises
        ------
        ProgramError
            For anything but a whole Program of this version.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT or document["version"] != VERSION:
                raise ProgramError(
                    f"format must be {FORMAT} version {VERSION}, "
                    f"not {document['format']} version {document['version']}"
                )
            program = cls(
                document["network"],
                document["activation_bits"],
                tuple(Tensor(**t) for t in document["tensors"]),
                tuple(_op_from_plain(dict(d)) for d in document["ops"]),
                tuple(document["labels"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProgramError(f"file must be a Program in JSON: {error!r}") from error
        return program.verify()


def _op_from_plain(d: dict[str, Any]) -> Op:
    cls = _OPS[d.pop("op")]
    for key in ("staircase", "division"):
        if d.get(key) is not None:
            fields = d[key]
            for name in ("offsets", "divisors", "gains"):
                fields[name] = tuple(fields[name])
            d[key] = Staircase(**fields)
    if "falling" in d:
        d["falling"] = tuple(d["falling"])
    if "pads" in d:
        d["pads"] = Pads(**d["pads"])
    if "weights" in d:
        d["weights"] = base64.b64decode(d["weights"], validate=True)
    op: Op = cls(**d)
    return op
