"""Geometry of an engine, and the layout of what an Image tells it.

The geometry is fixed when the engine is elaborated; networks are data. The record layouts below are
read by the Image packer and by the hardware's loader, so the two cannot drift apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import count, zip_longest
from typing import Any

from compiler import arith
from compiler.errors import UsageError

MAGIC = 0x5349_474E
"""First word of every Image stream: "SIGN"."""

IMAGE_VERSION = 4
"""Of what an Image means to an engine, layouts apart: which takes none of another version."""

COUNT_BITS = 16
"""Of the number of an Image's stream words, less one."""

UNIT_CLOCKS = 4
"""Clocks of a board's flash in which it sends what is stored at once: a byte on two lines, two on
four."""

GAINS = {0: 3, 1: 1, -1: 2}
"""How a channel's parameters say what its accumulators are multiplied by."""

GAIN_BITS = 2
"""Of a gain among a channel's parameters."""

NO_CHANNEL = 0
"""In the place of a gain: the output lane lies beyond the layer's channels."""

STRIDES = {
    "fetch": ("in_first", "step_word", "step_row", "step_column", "step_line", "step_group"),
    "residual": ("res_first", "res_plane", "res_back", "res_group"),
}
"""What each kind of pointer adds to its address, row by row of a table (`hw.pointer`). The first
row is where it begins."""

INPUT_COLUMNS = 3
"""Columns of the first convolution's windows, where their rows stand together in a word."""

MAX_IMAGE_CHANNELS = 8
"""What the header can say."""

PLACE_BITS = 8
"""Of what a slot that waits has to be told apart by, about."""

SUMMED_BITS = 16
"""Width of a residual stream in which slices of the image are summed: exact, so as wide as they."""

KERNEL_STEPS = 9
"""Memory words of the smallest window that matters: a 3x3 one."""

ROUNDING_BITS = 6
"""Of half of what a pool's right shift drops."""

POOL_SHIFT = 3
"""Part of the right shift of pooled sums that is wired; a record says the rest."""

WORD_BITS = 64
"""Most that a word of activation memory has: what the four single-port RAMs of an UP5K give."""

MASKED_BITS = 4
"""Of these, that one bit of those RAMs' write masks is for."""

PUMPED_BITS = 4
"""Up to so many bits of an activation sums are taken at the lanes' clock."""

MOST_WEIGHT_BITS = 128
"""Of a pass, that leave an UP5K enough block RAMs (eight take them) for sums that are not split."""

SPLIT_SIZES: dict[str, Any] = {
    "accumulator_bits": 16,
    "offset_bits": 28,
    "divisor_bits": 15,
    "window_depth": 64,
}
"""Of an engine of 2 bits with `split_sums`: what WRN 20-2 needs. A remainder is short enough for
one adder then."""

CENTRED_BITS = 4
"""Up to so many bits of an activation sums of pairs are centred: each bit more makes a bias, which
takes the centres off again, a bit longer, and saves less of a lane."""

BLOCK_SUMS = 8
"""Of a pass, that block RAMs of the UP5K choose from: LUTs need over half a cycle for it."""

WIDE_BITS = 6
"""Up to so many bits of an activation addends are shifted alike; each bit more is a shift less."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Lanes, widths and memories of one engine.

    Attributes
    ----------
    input_lanes, output_lanes, pixel_lanes : int
        Input channels, output channels and neighbouring output pixels worked on in one cycle: their
        product is the peak of additions a cycle. Powers of two.
    pump : int
        Passes of the lanes in one cycle of the engine: their own clock is so many times faster, and
        each pass takes a part of the output lanes. 1 or 2.
    pumped_sums : bool
        The requantiser takes a sum in each cycle of the lanes' clock; else in each of the engine's
        (or several side by side, see `slot_abreast`).
    split_sums : bool
        A pass's sums are taken from the lanes in two halves, for which each tile leaves a step
        idle. That halves the block RAMs they wait in; and pointers of the residual stream share
        theirs.
    activation_bits : int
        b, 2 .. 8. Wider tensors are taken in slices of b bits.
    word_channels : int
        Channels of one pixel in a word of activation memory; a multiple of both channel lanes.
    window_depth : int
        Words that the window buffer holds: a window of all a layer's channels, and what is read
        ahead.
    accumulator_bits, residual_bits : int
        Widths of an accumulator and of a value of the residual stream.
    memory_depth : int
        Words (of word_channels * activation_bits) of activation memory.
    two_ports : bool
        It is read and written in the same cycle, different words of it, as block RAMs can be.
    planes_apart : bool
        The second plane of a map of activations may lie anywhere; so the last plane of a map is
        written where one of its input was.
    paired_groups : bool
        Two groups of output channels may take each window in turn, which so is fetched once. Only
        where a group writes whole words.
    weight_depth : int
        Steps of weights (input_lanes * output_lanes bits each) the ring buffer holds.
    map_bits, channel_bits : int
        Maps have a height and width, and layers a number of channels, below two to the power of
        these.
    offset_bits, divisor_bits, bias_bits, fraction_bits : int
        Fields of a channel's parameters; every staircase is brought to `fraction_bits`.
    max_left_shift, shift_bits : int
        An addend is shifted left by max_left_shift, then right by what shift_bits can say.
    stream_bits : int
        Width of a word of the Image stream.
    plain_input : bool
        The image lies one pixel a word, and the first convolution is any; else three rows of a
        column a word, for a 3x3 one.
    pad_bits : int
        Maps have fewer than two to the power of it rows and columns of padding in front.
    residuals : bool
        There is a residual stream, to be added to and pooled (`hw.pool`). Plain networks have none,
        but where windows do not hold all slices of the image its sums wait there.
    max_pool : bool
        There is a unit for maxima (`hw.maximum`).
    addend_division : bool
        Addends of the residual stream may pass the serial divider: their scales may be anything.
    """

    input_lanes: int = 16
    output_lanes: int = 16
    pixel_lanes: int = 1
    pump: int = 2
    pumped_sums: bool = True
    split_sums: bool = False
    activation_bits: int = 4
    word_channels: int = 16
    accumulator_bits: int = 18
    residual_bits: int = 8
    memory_depth: int = 16384
    window_depth: int = 256
    weight_depth: int = 128
    map_bits: int = 6
    channel_bits: int = 8
    offset_bits: int = 29
    divisor_bits: int = 19
    bias_bits: int = 14
    fraction_bits: int = arith.MAX_FRACTION_BITS
    max_left_shift: int = 1
    shift_bits: int = 3
    stream_bits: int = 64
    plain_input: bool = False
    pad_bits: int = 1
    two_ports: bool = False
    planes_apart: bool = False
    paired_groups: bool = False
    residuals: bool = True
    max_pool: bool = False
    addend_division: bool = False

    def __post_init__(self) -> None:
        powers = (
            "input_lanes",
            "output_lanes",
            "pixel_lanes",
            "pump",
            "memory_depth",
            "window_depth",
            "weight_depth",
        )
        for name in powers:
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, not {value!r}")
        if not 2 <= self.activation_bits <= 8:
            raise ValueError(f"activation_bits must be 2 to 8, not {self.activation_bits!r}")
        if self.pump > 2 or self.output_lanes < self.pump:
            raise ValueError(
                f"pump must be 1 or 2 and at most output_lanes, not {self.pump!r} with "
                f"{self.output_lanes} output lanes"
            )
        if self.split_sums and (self.pump < 2 or self.pass_sums % 2 or self.two_ports):
            raise ValueError(
                f"split_sums must be False with pump {self.pump!r}, {self.pass_sums} sums a pass "
                f"and two_ports {self.two_ports!r}"
            )
        if self.input_lanes < 2:
            raise ValueError(f"input_lanes must be at least 2, not {self.input_lanes!r}")
        for name in ("input_lanes", "output_lanes"):
            if self.word_channels % getattr(self, name):
                raise ValueError(
                    f"word_channels must be a multiple of {name}, not {self.word_channels!r}"
                )
        if self.output_lanes % self.mask_channels:
            raise ValueError(
                f"output_lanes must be a multiple of the {self.mask_channels} channels that are "
                f"written together, not {self.output_lanes!r}"
            )
        if self.word_bits // self.residual_bits < self.pixel_lanes:
            raise ValueError(
                f"a memory word of {self.word_bits} bits must hold a residual of "
                f"{self.residual_bits} bits for each of {self.pixel_lanes} pixel lanes"
            )
        if self.residual_lanes > self.output_lanes * self.pixel_lanes:
            raise ValueError(
                f"a tile of {self.output_lanes} x {self.pixel_lanes} outputs must fill a memory "
                f"word of {self.residual_lanes} residuals"
            )
        self._check_units()
        if self.stream_bits not in (8, 16, 32, 64):
            raise ValueError(f"stream_bits must be 8, 16, 32 or 64, not {self.stream_bits!r}")
        if self.pass_weight_bits % self.stream_bits:
            raise ValueError(
                f"input_lanes * output_lanes / pump must be a multiple of stream_bits "
                f"({self.stream_bits}), not {self.pass_weight_bits}"
            )

    def _check_units(self) -> None:
        for name, needed in (("residuals", True), ("pixel_lanes", 1)):
            value = getattr(self, name)
            if self.addend_division and value != needed:
                raise ValueError(
                    f"{name} must be {needed} where addend_division is True, not {value!r}"
                )
        if self.max_pool and 2 * self.word_channels > self.pass_weight_bits:
            raise ValueError(
                f"input_lanes * output_lanes / pump must be at least {2 * self.word_channels} "
                f"where max_pool is True, not {self.pass_weight_bits}"
            )

    # -- derived sizes -----------------------------------------------------------------------------

    @property
    def lanes(self) -> int:
        """Peak additions a cycle."""
        return self.input_lanes * self.output_lanes * self.pixel_lanes

    def stored_bits(self, unit_bits: int) -> int:
        """Of the Image, that are written to activation memory at once, of a flash that sends units
        of so many: these, or a whole word where they end in the midst of what a mask bit is for."""
        masked = self.mask_channels * self.activation_bits
        return self.stream_bits if unit_bits % masked else unit_bits

    @property
    def word_bits(self) -> int:
        return self.word_channels * self.activation_bits

    @property
    def mask_channels(self) -> int:
        """Channels of a memory word that are written together, or not, by one bit of its mask: two
        of 2 bits, where there is no room for a nibble each, which is what an UP5K's RAM masks."""
        nibbles = WORD_BITS // MASKED_BITS
        return max(1, self.word_channels // nibbles) if self.activation_bits <= 2 else 1

    @property
    def mask_bits(self) -> int:
        """Of a memory word's write mask."""
        return self.word_channels // self.mask_channels

    @property
    def weight_bits(self) -> int:
        """Weight bits of one step (two selector bits for a pair of weights: one a weight)."""
        return self.input_lanes * self.output_lanes

    @property
    def pass_lanes(self) -> int:
        """Output lanes of one pass: those that there are in hardware."""
        return self.output_lanes // self.pump

    @property
    def pass_sums(self) -> int:
        """Sums that one pass makes."""
        return self.pass_lanes * self.pixel_lanes

    @property
    def sums_at_once(self) -> int:
        """Of these, that are taken at once."""
        return self.pass_sums // 2 if self.split_sums else self.pass_sums

    @property
    def pair_centre(self) -> int:
        """What sums of two activations are short of (`arith.pair_sum`)."""
        b = self.activation_bits
        return (1 << b) - 1 if b <= CENTRED_BITS else 0

    @property
    def pass_weight_bits(self) -> int:
        return self.weight_bits // self.pump

    @property
    def halves(self) -> int:
        """Steps the input lanes take over one memory word."""
        return self.word_channels // self.input_lanes

    @property
    def residual_lanes(self) -> int:
        """Residuals in a memory word: pixel_lanes pixels of some channels, channel by channel."""
        return residuals_in(self.word_bits, self.residual_bits)

    @property
    def residual_channels(self) -> int:
        """Channels in a memory word of residuals."""
        return self.residual_lanes // self.pixel_lanes

    @property
    def residual_words(self) -> int:
        """Memory words of residuals that one tile (all output lanes) has."""
        return self.output_lanes // self.residual_channels

    @property
    def input_rows(self) -> int:
        """Rows of the image in one memory word."""
        return 1 if self.plain_input else 3

    @property
    def scattered(self) -> bool:
        """Whether a record says how far planes of activations lie apart."""
        return self.planes_apart or self.paired_groups

    @property
    def groups_at_once(self) -> int:
        """Groups of output channels whose parameters a bank holds."""
        return 2 if self.paired_groups else 1

    @property
    def input_first(self) -> int:
        """Address of the image. A plane may take its place; below is the row by which the plane
        that takes that one's is ahead of it."""
        follows = self.planes_apart and self.output_lanes == self.word_channels
        return 1 << self.map_bits if follows else 0

    @property
    def input_slices(self) -> int:
        """Slices in which the input lies in memory."""
        return arith.num_slices(arith.INPUT_BITS, self.activation_bits)

    @property
    def window_slices(self) -> int:
        """Slices of the input that a window holds: all, or one, which is then a layer of its own.

        Between two of them the accumulators are shifted left. That costs nothing where they stand
        in a ring, whose second register has a LUT to spare, and else a LUT a bit, which is paid
        where the residual stream is too narrow for sums of slices. It takes windows of one row.
        """
        summed = self.pump == 1 and self.residual_bits >= SUMMED_BITS
        return 1 if summed or self.plain_input else self.input_slices

    @property
    def tap_channels(self) -> int:
        """Channels that a row of the image may have in a memory word."""
        return self.mask_bits // self.input_rows

    @property
    def tap_lanes(self) -> int:
        """Lanes of one row of the image in a memory word; each `mask_channels` of them are for a
        channel, which is in the first."""
        return self.tap_channels * self.mask_channels

    @property
    def input_shift(self) -> int:
        """How far a pixel is shifted left before its staircase, which so has finer steps."""
        return arith.INPUT_FRACTION_BITS - arith.MAX_FRACTION_BITS

    @property
    def pixel_bits(self) -> int:
        """Of a pixel that is shifted so, with a sign."""
        return arith.INPUT_BITS + self.input_shift + 1

    @property
    def input_fraction_bits(self) -> int:
        return self.fraction_bits + self.input_shift

    @property
    def kernel_bits(self) -> int:
        """Of a window's height less one; the head's is a whole map, twice halved."""
        return max(2, self.map_bits - 2)

    @property
    def window_bits(self) -> int:
        """Of an address in the window buffer."""
        return (self.window_depth - 1).bit_length()

    @property
    def activation_offset_bits(self) -> int:
        """Width of the offsets of activations: their dividends must reach no further."""
        reach = self.residual_bits + 1 if self.residuals else self.pixel_bits
        return max(self.accumulator_bits, reach) + self.fraction_bits

    @property
    def param_bits(self) -> int:
        """Bits of one channel's parameters."""
        return sum(width for _, width in self.param_fields)

    @property
    def param_words(self) -> int:
        """Stream words of one channel's parameters."""
        return -(-self.param_bits // self.stream_bits)

    @property
    def slot_ticks(self) -> int:
        """Values that follow one another at the requantiser's data in a cycle of the engine.

        One a cycle of the lanes' clock, if `pumped_sums` and a memory word has room for as many
        residuals; else one.
        """
        room = not self.residuals or self.residual_lanes >= self.pump
        return self.pump if self.pumped_sums and room else 1

    @property
    def slot_abreast(self) -> int:
        """Values that stand side by side there, each in a data path of its own: a tile's pixels,
        where the lanes take one pass."""
        return self.pixel_lanes if self.pump == 1 else 1

    @property
    def slot_values(self) -> int:
        """Values that the requantiser takes in a cycle of the engine."""
        return self.slot_ticks * self.slot_abreast

    @property
    def slot_cycles(self) -> int:
        """Cycles the requantiser spends on a slot: values of a tile that are taken together.

        So many that in the time of one memory word of residuals four accesses fit (read, write, an
        activation, and one for the window), or two by each of two ports.
        """
        accesses = 2 if self.two_ports else 4
        return (
            max(1, -(-accesses * self.slot_values // self.residual_lanes)) if self.residuals else 1
        )

    @property
    def slot_pixels(self) -> int:
        """Pixel lanes in a slot."""
        return min(self.slot_values, self.pixel_lanes)

    @property
    def slot_channels(self) -> int:
        """Output lanes in a slot."""
        return self.slot_values // self.slot_pixels

    @property
    def channel_cycles(self) -> int:
        """Cycles of the slots that hold an output lane's values."""
        return self.pixel_lanes // self.slot_pixels * self.slot_cycles

    @property
    def pixel_apart(self) -> int:
        """Cycles from a pixel's turn to write its activations to the next one's.

        The pixels of a slot share its cycles.
        """
        return max(1, self.slot_cycles // self.slot_pixels)

    @property
    def turn_cycles(self) -> int:
        """From a tile's last slot to the turn of its last pixel, where the first's is at once."""
        return (self.pixel_lanes - 1) * self.pixel_apart - (self.channel_cycles - self.slot_cycles)

    @property
    def value_cycles(self) -> int:
        """From the cycle in which a slot's place is known to that in which it may be written."""
        return 3 + self.slot_ticks

    @property
    def residual_cycles(self) -> int:
        """From the cycle in which a value's place is known to that in which it is written."""
        return self.value_cycles + _holds(self)[0]

    @property
    def activation_cycles(self) -> int:
        """From the cycle in which a value's place is known to that of its activation."""
        return self.value_cycles + self.division_cycles + _holds(self)[1]

    @property
    def division_cycles(self) -> int:
        """Cycles that an activation's division takes, and its way into the word."""
        return self.activation_bits + 1

    @property
    def accesses(self) -> tuple[list[int], list[int], list[int]]:
        """When a tile reads residuals, writes them, and writes activations.

        In cycles from that in which the place of its first value is known. No two of `booked` are
        the same.
        """
        return _accesses(self, *_holds(self))

    @property
    def booked(self) -> list[int]:
        """Those of them that share a port: `hw.requantise` starts no tile whose own would meet
        those of the one before. Reads alone never do."""
        return _sharing(self, *self.accesses)

    @property
    def written_behind(self) -> int:
        """Of a tile whose addends are divided, when its last residuals are written.

        As in `accesses`, had another tile begun in the cycle in which this one's last value ends.
        """
        return self.residual_cycles - self.lane_cycles + 1 - self.channel_cycles

    @property
    def tree_levels(self) -> int:
        """Adders one behind another, from the terms of an output lane to their sum."""
        return max(1, (self.input_lanes // 2 - 1).bit_length())

    @property
    def lane_cycles(self) -> int:
        """Cycles from a step to that in which the first of its sums may be addressed.

        One for the pair sums, then the lanes' own: terms, the tree, accumulators, and as they come
        out pass by pass, the first one's memory.
        """
        return 1 + (1 + self.pump + self.tree_levels) // self.pump + self.sums_wait

    @property
    def sums_wait(self) -> int:
        """1 where a tile's sums come in the middle of a cycle and wait for the next one.

        At the engine's clock a sum is read a cycle behind its address, so it is there in time.
        """
        return (1 + self.tree_levels) % self.pump if self.slot_ticks > 1 else 0

    @property
    def tile_cycles(self) -> int:
        """Cycles the requantiser spends on a tile."""
        return self.output_lanes // self.slot_channels * self.channel_cycles

    @property
    def sums_in_blocks(self) -> bool:
        """Whether block RAMs can choose among a pass's sums, where there are such (`hw.sums`)."""
        return self.pump > 1 and self.pass_sums == BLOCK_SUMS

    @property
    def tiles_apart(self) -> int:
        """Fewest cycles between two tiles: the requantiser's, or the turns of their pixels to write
        activations; and one more where sums wait, for meanwhile the next tile's would replace the
        last of them."""
        turns = self.pixel_lanes * self.pixel_apart
        return max(self.tile_cycles, turns) + self.sums_wait

    @property
    def address_bits(self) -> int:
        return (self.memory_depth - 1).bit_length()

    def beyond(self, other: Geometry) -> str:
        """Where it differs from another, in words: "no residuals, max_pool True"."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return ", ".join(
            f"no {name}" if mine is False else f"{name} {mine}"
            for name, mine, its in pairs
            if mine != its
        )

    @property
    def digest(self) -> int:
        """32 bits that tell one geometry, and its layouts, from another; an Image carries them."""
        told = {"planes_apart", "paired_groups"}  # by the record's layout
        if self.paired_groups and not self.planes_apart:
            told = {"paired_groups"}
        if not self.split_sums:  # an engine without it is what it was before there was such a thing
            told = told | {"split_sums"}
        names = [f.name for f in fields(self) if f.name not in told]
        text = ",".join(f"{name}={getattr(self, name)}" for name in names)
        text += repr((IMAGE_VERSION, self.header_fields, self.param_fields, self.record_layouts))
        return zlib.crc32(text.encode())

    # -- layouts: (field, width), the first in the least significant bits --------------------------

    @property
    def param_fields(self) -> tuple[tuple[str, int], ...]:
        """One channel's parameters.

        bias (signed) is added to the accumulator; gain is one of `GAINS`; start (signed) is the
        dividend of 0, the staircase's offset negated; divisor is the staircase's.
        """
        return (("bias", self.bias_bits), ("gain", GAIN_BITS), *self.stairs_fields)

    @property
    def early_bits(self) -> int:
        """Of a channel's parameters, those that are wanted first: bias and gain."""
        return self.bias_bits + GAIN_BITS

    @property
    def stairs_fields(self) -> tuple[tuple[str, int], ...]:
        """Those of them that are wanted last."""
        return (("start", self.offset_bits), ("divisor", self.divisor_bits))

    @property
    def header_fields(self) -> tuple[tuple[str, int], ...]:
        """What stands in front of the layers: magic, geometry, and how to take in an image.

        The latter has words of its own: `hw.loader` keeps them where the record of the first layer
        will stand, once the image is in.
        """
        kept = (
            ("magic", 32),
            ("geometry", 32),
            ("classes", 8),
            ("channels", 3),  # of the image, less one
        )
        rest = -sum(width for _, width in kept) % self.stream_bits
        return (*kept, ("spare", rest), *self.intake_fields)

    @property
    def intake_fields(self) -> tuple[tuple[str, int], ...]:
        """Those fields of the header that only an image's way in needs."""
        a, size = self.address_bits, self.map_bits
        return (
            ("pixels", 2 * size + 3),  # bytes an image
            ("zero", arith.INPUT_BITS),
            ("height", size),  # of the image, less one
            ("width", size),
            ("step_slice", a),  # from a pixel's last word of one slice to its first of the next
            ("step_back", a),  # and from its last word of all to its first
        )

    @property
    def record_fields(self) -> tuple[tuple[str, int], ...]:
        """One layer, but for its strides. Sizes named ..._less are less one.

        The last ones, from `intake_from` on, hold something else while an image comes in.
        """
        size = self.map_bits
        groups = self.channel_bits - (self.output_lanes - 1).bit_length()
        words = max(1, self.channel_bits - (self.word_channels - 1).bit_length())
        planes = self.channel_bits - (self.residual_channels - 1).bit_length()
        return (
            ("last", 1),  # the head: no activations, scores
            ("pool", 1),  # average pooling of the residual stream; else a convolution
            ("maximum", int(self.max_pool)),  # with pool: maxima of activations
            ("divide", int(self.addend_division)),  # the addend passes its channel's division;
            ("divide_sum", int(self.addend_division)),  # what is read is added to it before
            ("quotient_zero", arith.SCORE_BITS if self.addend_division else 0),  # stands for 0
            ("residual", 1),  # the result is (added to and) written to the residual stream
            ("requantise", 1),  # activations are written
            ("shared", 1),  # the window is the whole map: each word is used once
            ("stride2", 1),
            ("short_top", 1),  # pooling: the first / last row / column has two pixels, not three
            ("short_bottom", 1),
            ("short_left", 1),
            ("short_right", 1),
            ("down", self.shift_bits),  # right shift after the fixed left shift
            # the activation that stands for 0, slice by slice; pooling: half of what the right
            # shift drops
            ("pad", max(self.window_slices * self.activation_bits, ROUNDING_BITS)),
            # the first layer: what are rows of a window elsewhere are slices, which come in turn
            ("sliced", int(self.window_slices > 1)),
            ("pad_top", self.pad_bits),
            ("pad_left", self.pad_bits),
            ("kernel_h_less", self.kernel_bits),
            ("words_less", words),  # memory words a pixel
            # Counted from the padding's first; pooling: columns of memory words.
            ("columns_less", size + 1),  # that a row of tiles needs
            ("column_last", size + 1),  # the last that lies in the map
            ("row_last", size + 1),
            ("height_out_less", size),
            ("tiles_less", size),  # tiles a row
            ("tail_less", (self.pixel_lanes - 1).bit_length()),  # pixels of a row's last tile
            ("groups_less", max(groups, planes)),  # pooling: planes of residuals
            ("residual_groups", groups + 1),  # groups that read the residual stream
            ("weight_words", (self.weight_depth).bit_length()),  # steps of weights a group
            ("window_less", self.window_bits + 2),  # words of a window; the head's may be longer
            # words after which the weights begin again
            ("turn_less", max(self.window_bits, (self.weight_depth - 1).bit_length())),
            (
                "step_window",
                self.window_bits + 1,
            ),  # from a window's last word to the next one's first
            ("step_pixel", self.window_bits if self.pixel_lanes > 1 else 0),  # to the next lane's
            ("out_first", self.address_bits),  # of activations
            # from a plane of them to the next
            *((("out_plane", self.address_bits),) if self.scattered else ()),
            # each window is taken by a group and by the next: a group here is both
            *((("paired", 1),) if self.paired_groups else ()),
        )

    @property
    def intake_from(self) -> int:
        """Stream word of a layer's record, without its strides, from which on an image's way in
        does not mind what stands there."""
        names = [name for name, _ in self.record_fields]
        return self.words(self.record_fields[: names.index("kernel_h_less")])

    @property
    def stride_words(self) -> int:
        """Stream words of a row of `STRIDES`: a power of two, so that a counter tells the rows."""
        least = -(-len(STRIDES) * self.address_bits // self.stream_bits)
        return 1 << (least - 1).bit_length()

    @property
    def stride_rows(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """Layouts of the rows of `STRIDES`, each with the strides of all pointers side by side.

        Fetching: in_first is the address of the first window word, and so on to a pixel's next
        memory word, to the column's next row, to the next column, row of tiles, group. Residuals:
        res_first, then from one memory word of a tile's residuals to the next, from a tile's last
        to the next tile's first, and to the next group's.
        """
        a = self.address_bits
        rest = self.stride_words * self.stream_bits - len(STRIDES) * a
        rows = zip_longest(*STRIDES.values(), fillvalue="spare")
        return tuple((*((name, a) for name in row), ("spare", rest)) for row in rows)

    @property
    def record_layouts(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """Of all that the Image says of one layer, in its order."""
        return (*self.stride_rows, self.record_fields)

    @property
    def record_words(self) -> int:
        """Stream words of all that."""
        return len(self.stride_rows) * self.stride_words + self.words(self.record_fields)

    def words(self, layout: tuple[tuple[str, int], ...]) -> int:
        """Stream words that a layout takes."""
        return -(-sum(width for _, width in layout) // self.stream_bits)


def groups_in(record: Mapping[str, int]) -> int:
    """Groups of output channels that take each window in turn: a record counts them as one."""
    return 1 + record.get("paired", 0)


def residuals_in(word_bits: int, residual_bits: int) -> int:
    """How many residuals a memory word holds: a power of two; 1 where none fits, which no geometry
    may have."""
    return 1 << max(word_bits // residual_bits, 1).bit_length() - 1


def geometry_for(
    default: Geometry, activation_bits: int, lanes: tuple[int, int, int] | None = None
) -> Geometry:
    """A geometry with other lanes and activations of another width.

    A word of activation memory stays within what the memory blocks give in one cycle: lanes of up
    to four bits stand in nibbles, wider ones in bytes. The default takes no more pixels at once
    than a word has residuals of. A word of the Image fits it, and fills a step of weights in whole
    parts. Sums of wide activations are fine beside the residual stream, and shifted left less; they
    are taken one a cycle, for twice as fast each bit costs twice the registers; so are those from
    which no block RAM chooses.

    More input lanes than the default's words have channels make the words wider, if narrow
    activations leave them room. Where weights then take most of the block RAMs sums are split, and
    they and the parameters are as wide as WRN 20-2 needs (`SPLIT_SIZES`).

    Raises
    ------
    UsageError
        No engine has such lanes.
    """
    nibbles = -(-activation_bits // MASKED_BITS)
    across = min(default.word_channels, WORD_BITS // (MASKED_BITS * nibbles))
    if lanes and default.pump > 1 and across < lanes[0] <= WORD_BITS // activation_bits:
        across = lanes[0]
    inputs, outputs, pixels = lanes or (
        min(default.input_lanes, across),
        min(default.output_lanes, across),
        min(default.pixel_lanes, residuals_in(across * activation_bits, default.residual_bits)),
    )
    weights = inputs * outputs // default.pump
    fitting = (n for n in (64, 32, 16) if n <= across * activation_bits and weights % n == 0)
    try:
        chosen = replace(
            default,
            input_lanes=inputs,
            output_lanes=outputs,
            pixel_lanes=pixels,
            activation_bits=activation_bits,
            pumped_sums=default.pumped_sums and activation_bits <= PUMPED_BITS,
            word_channels=across,
            paired_groups=default.paired_groups and outputs == across,
            stream_bits=next(fitting, 8),
            max_left_shift=max(0, default.max_left_shift - max(0, activation_bits - WIDE_BITS)),
        )
        if chosen.pump > 1 and not chosen.sums_in_blocks:
            chosen = replace(chosen, pumped_sums=False)
        if chosen.sums_in_blocks and chosen.pass_weight_bits > MOST_WEIGHT_BITS:
            chosen = replace(chosen, split_sums=True, **SPLIT_SIZES)
    except ValueError as error:
        shown = lanes_name(lanes) if lanes else "the board's"
        raise UsageError(
            f"lanes must make an engine of {activation_bits}-bit activations, not {shown}: {error}",
            f"--lanes {lanes_name(default)}",
        ) from error
    return chosen


def lanes_name(lanes: Geometry | tuple[int, int, int]) -> str:
    """Such as 8x8x2: what ``--lanes`` takes."""
    if isinstance(lanes, Geometry):
        lanes = lanes.input_lanes, lanes.output_lanes, lanes.pixel_lanes
    return "x".join(map(str, lanes))


def _accesses(
    g: Geometry, residual: int, activation: int
) -> tuple[list[int], list[int], list[int]]:
    """`Geometry.accesses`, if residuals and activations are held for so many cycles."""
    word = g.residual_lanes // g.slot_values * g.slot_cycles
    filled = word - g.slot_cycles + g.value_cycles + residual
    last = g.tile_cycles - g.channel_cycles + g.value_cycles + g.division_cycles + activation
    return (
        [k * word for k in range(g.residual_words)],
        [k * word + filled for k in range(g.residual_words)],
        [last + p * g.pixel_apart for p in range(g.pixel_lanes)],
    )


def _sharing(g: Geometry, *accesses: list[int]) -> list[int]:
    """Of reads, writes and writes of activations those that share a port."""
    return [cycle for kind in accesses[int(g.two_ports) :] for cycle in kind]


@cache
def _holds(g: Geometry) -> tuple[int, int]:
    """How many cycles residuals and activations wait before they are written.

    So many that no two accesses of a tile meet; that tiles follow one another as fast as can be
    without a meeting, of the first layer and of windows of one memory word a pixel and of two; and
    else as few flip-flops as can be.
    """
    if not g.residuals:
        return 0, 0

    def cost(holds: tuple[int, int]) -> tuple[int, int]:
        reads, writes, activations = _accesses(g, *holds)
        cycles = _sharing(g, reads, writes, activations)
        # Where each value is divided a word's write must not meet the read of the next one either.
        meets = g.addend_division and g.value_cycles + holds[0] == g.channel_cycles + 1
        if len(set(cycles)) < len(cycles) or writes[-1] > activations[0] or meets:
            return len(apart) * (max(apart) + max(cycles) + 1), 0
        gaps = {b - a for a in cycles for b in cycles if b > a}
        paces = sum(
            next(n for n in count(least) if all(gap % n for gap in gaps)) for least in apart
        )
        widths = (
            g.slot_values * bits + PLACE_BITS for bits in (g.residual_bits, g.activation_bits)
        )
        return paces, sum(cycles * bits for cycles, bits in zip(holds, widths, strict=True))

    words = KERNEL_STEPS, 2 * KERNEL_STEPS, g.window_slices * INPUT_COLUMNS
    apart = {max(g.tiles_apart, n * g.halves + g.split_sums) for n in words}
    choices = [(r, a) for r in range(4) for a in range(4 + g.pixel_lanes)]
    return min(choices, key=cost)
