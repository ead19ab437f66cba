"""The Image: what an engine reads of a network, as a stream of words and as a file.

Stream, in words of `Geometry.stream_bits`, each field's least significant bit first, a layout's
first field lowest (`Geometry.header_fields` …), every piece padded to whole words::

    header
    parameters of the input, one `param_fields` a channel
    for each layer:   the rows of its strides, and the rest of its record
      for each group:   parameters of its output lanes, then its steps of weights

A pooling layer has no groups in the stream. A step of weights is input_lanes * output_lanes bits:
for output lane o and input pair i, bit ``2*(o*pairs + i)`` is `same` and the next one `negate` (see
`arith.recode_pairs`).

Worked example: 4 input lanes, one output lane with weights (+1, -1, -1, -1): the first pair differs
and starts with +1 (same 0, negate 0), the second is alike and starts with -1 (same 1, negate 1):
bits 0b1100.

The stream repeats for every image; whatever stands behind the engine's reader only has to send it
again and again. On a board that is `hw.store.ImageStore`, which keeps it in the activation memory,
behind the maps, or reads it from flash for each picture where there is no room for all of it.

File: one line of JSON (name, geometry, layers, CRC-32 of each section) and a zero byte, then the
stream, little-endian. `unpack` is the exact inverse of `pack`.

Flash: magic, number of stream words less one, ring, the words, CRC; the first three and the last in
four bytes, everything with its most significant byte first, as SPI sends bits. The ring's last word
lies at address A of activation memory (its first at the end): the field is 2A, plus 1 if the Image
is longer than the ring. The CRC is CRC-32/MPEG-2, of all before. `flash_words` is the inverse of
`frame`. Worked example: two words of 32 bits, 0x11223344 and 0x55667788, in a memory of 32 words,
of which there is room for ten::

    53 49 47 4e  00 00 00 01  00 00 00 3c  11 22 33 44  55 66 77 88  e4 88 4c 9d
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from compiler import arith
from compiler.errors import CapacityError, ImageError
from compiler.geometry import COUNT_BITS, IMAGE_VERSION, MAGIC, Geometry, groups_in
from compiler.schedule import Param, Schedule

FORMAT = "signum-image"
FRAME_BYTES = 4
"""Of each of magic, number of words, ring and CRC in flash."""

HEAD_BYTES = 3 * FRAME_BYTES
"""Before the words."""

MAGIC_BYTES = MAGIC.to_bytes(FRAME_BYTES, "big")

LEAST_RING = 16
"""Words of activation memory that a network must leave for an Image longer than that: with less,
the flash would stop at each of the loader's rests."""

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

Layout = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """A layer as it stands in the Image; fields as in `compiler.schedule.Layer`."""

    name: str
    record: Mapping[str, int]
    params: tuple[tuple[Param, ...], ...]
    weights: bytes


@dataclass(frozen=True, slots=True)
class Image:
    """All that an engine of one geometry needs to know of one network.

    ``room`` is the number of words that its maps leave at the end of activation memory.
    """

    network: str
    geometry: Geometry
    room: int
    header: Mapping[str, int]
    input_params: tuple[Param, ...]
    layers: tuple[ImageLayer, ...]

    @classmethod
    def of(cls, schedule: Schedule) -> Image:
        """The Image of a scheduled Program."""
        layers = tuple(ImageLayer(x.name, x.record, x.params, x.weights) for x in schedule.layers)
        return cls(
            schedule.program.network,
            schedule.geometry,
            schedule.room,
            schedule.header,
            schedule.input_params,
            layers,
        )

    def sections(self) -> Iterator[tuple[str, list[int]]]:
        """(name, words) of each piece of the stream, in order."""
        g = self.geometry
        words = _encode(self.header, g.header_fields, g)
        for p in self.input_params:
            words += _encode(asdict(p), g.param_fields, g)
        yield "input", words
        for layer in self.layers:
            words = []
            for layout in g.record_layouts:
                words += _encode(layer.record, layout, g)
            steps = _weight_words(layer, g)
            for group, params in enumerate(layer.params):
                for p in params:
                    words += _encode(asdict(p), g.param_fields, g)
                words += steps[group]
            yield layer.name, words

    def words(self) -> list[int]:
        """The stream, once."""
        return [word for _, section in self.sections() for word in section]

    @property
    def streamed(self) -> bool:
        """Whether a board reads it from flash for each picture, having no room to keep it."""
        return len(self.words()) > self.room


def pack(image: Image) -> bytes:
    """The file's bytes; equal Images give equal bytes."""
    g = image.geometry
    sections, stream = [], b""
    for name, words in image.sections():
        data = np.array(words, dtype=_dtype(g)).tobytes()
        sections.append({"name": name, "words": len(words), "crc32": zlib.crc32(data)})
        stream += data
    head = {
        "format": FORMAT,
        "version": IMAGE_VERSION,
        "network": image.network,
        "geometry": asdict(g),
        "room": image.room,
        "sections": sections,
    }
    text = json.dumps(head, sort_keys=True).encode()
    return text + b"\0" + stream


def unpack(data: bytes) -> Image:
    """Exact inverse of `pack`.

    Raises
    ------
    ImageError
        For anything but a whole Image: naming the section whose CRC is wrong, or what is missing.
    """
    text, zero, stream = data.partition(b"\0")
    try:
        head = json.loads(text)
        if head["format"] != FORMAT or head["version"] != IMAGE_VERSION or not zero:
            raise ImageError(f"file must be a {FORMAT} of version {IMAGE_VERSION}")
        geometry = Geometry(**head["geometry"])
        sections = [(str(s["name"]), int(s["words"]), int(s["crc32"])) for s in head["sections"]]
        network, room = str(head["network"]), int(head["room"])
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"file must be an Image: {error}") from error
    size = geometry.stream_bits // 8
    if len(stream) != size * sum(words for _, words, _ in sections):
        raise ImageError(
            f"Image must have {size * sum(w for _, w, _ in sections):,} bytes of stream, "
            f"not {len(stream):,}",
            "build it again",
        )
    reader = _Reader(np.frombuffer(stream, _dtype(geometry)), geometry)
    for name, words, crc in sections:
        if zlib.crc32(stream[size * reader.at : size * (reader.at + words)]) != crc:
            raise ImageError(f"section {name} must have CRC-32 {crc:08x}", "build it again")
        reader.at += words
    reader.at = 0
    header = reader.fields(geometry.header_fields)
    if header["magic"] != MAGIC or header["geometry"] != geometry.digest:
        raise ImageError("stream must belong to the geometry its file names")
    input_params = tuple(reader.param() for _ in range(header["channels"] + 1))
    layers = tuple(reader.layer(name) for name, _, _ in sections[1:])
    if reader.at != len(reader.words):
        raise ImageError(f"stream must end after {reader.at:,} words, not {len(reader.words):,}")
    return Image(network, geometry, room, header, input_params, layers)


# -- flash -----------------------------------------------------------------------------------------


def flash_bytes(image: Image) -> bytes:
    """What a board's flash holds at its Image's offset."""
    g = image.geometry
    return frame(image.words(), g.stream_bits, image.room, g.address_bits)


def frame(words: Sequence[int], bits: int, room: int, address_bits: int) -> bytes:
    """Stream words of ``bits`` bits, a multiple of 8, as they lie in flash.

    ``room`` is how many of them activation memory holds at most, at its end.
    """
    ring = -min(len(words), room) % (1 << address_bits)
    fields = (MAGIC, len(words) - 1, 2 * ring + (len(words) > room))
    head = b"".join(value.to_bytes(FRAME_BYTES, "big") for value in fields)
    body = head + b"".join(word.to_bytes(bits // 8, "big") for word in words)
    return body + flash_crc(body).to_bytes(FRAME_BYTES, "big")


def flash_crc(data: bytes) -> int:
    """CRC-32/MPEG-2: zlib's of mirrored bits, mirrored, without the complement at the end."""
    return int(f"{~zlib.crc32(data.translate(_MIRRORED)) & 0xFFFF_FFFF:032b}"[::-1], 2)


def flash_words(data: bytes, bits: int) -> list[int]:
    """The words that `frame` was given; what follows the CRC in flash must not be given.

    Raises
    ------
    ImageError
        For anything but a whole, undamaged Image of words of ``bits`` bits.
    """
    check_frame(data)
    body, size = data[HEAD_BYTES:-FRAME_BYTES], bits // 8
    count = int.from_bytes(data[FRAME_BYTES : 2 * FRAME_BYTES], "big") + 1
    if len(body) != count * size:
        raise ImageError(
            f"flash content of {count:,} words must have {count * size:,} bytes of them, not "
            f"{len(body):,}"
        )
    return [int.from_bytes(body[i : i + size], "big") for i in range(0, len(body), size)]


def check_frame(data: bytes) -> None:
    """Hold bytes to be what `flash_bytes` makes, of whatever geometry.

    Raises
    ------
    ImageError
        They do not begin with the magic or do not end with their CRC.
    """
    if len(data) <= HEAD_BYTES + FRAME_BYTES or not data.startswith(MAGIC_BYTES):
        raise ImageError(
            f"an Image in flash must begin with {MAGIC_BYTES.hex()}, "
            f"not {data[:FRAME_BYTES].hex() or 'nothing'}",
            "the build's image.bin is one",
        )
    crc, told = flash_crc(data[:-FRAME_BYTES]), int.from_bytes(data[-FRAME_BYTES:], "big")
    if crc != told:
        raise ImageError(
            f"an Image in flash must end with its CRC-32 {crc:08x}, not {told:08x}",
            "build it again",
        )


def check_room(image: Image, laid_out: Schedule) -> None:
    """Hold maps and Image to the one memory that both share on a board.

    The maps stand at its beginning, where the Schedule put them; at its end the Image, or as much
    of it as is read ahead.

    Raises
    ------
    CapacityError
        The Image has more words than can be counted; or naming the first layer that leaves too few
        for reading ahead, both needs, the budget, and what would fit.
    """
    depth, words = laid_out.geometry.memory_depth, len(image.words())
    if words > 1 << COUNT_BITS:
        raise CapacityError(
            f"{image.network}: an Image must have at most {1 << COUNT_BITS:,} words of "
            f"{laid_out.geometry.stream_bits} bits, not {words:,}",
            "a network with fewer weights",
        )
    need = min(words, LEAST_RING)
    if image.room >= need:
        return
    reach = next(r for r in laid_out.regions if need + r.end > depth)
    most = depth - image.room
    raise CapacityError(
        f"{reach.tensor}: activation memory needs {most:,} words for maps and {need:,} for the "
        f"Image, but the engine has {depth:,}",
        f"an engine with memory_depth {1 << (most + need - 1).bit_length()}, or a narrower network",
    )


# -- words -----------------------------------------------------------------------------------------


def _dtype(geometry: Geometry) -> np.dtype:
    """A word of the stream."""
    return np.dtype(f"<u{geometry.stream_bits // 8}")


def _encode(values: Mapping[str, int], layout: Layout, geometry: Geometry) -> list[int]:
    number, at = 0, 0
    for name, width in layout:
        number |= (values[name] & ((1 << width) - 1)) << at
        at += width
    mask = (1 << geometry.stream_bits) - 1
    return [number >> geometry.stream_bits * i & mask for i in range(geometry.words(layout))]


def _weight_words(layer: ImageLayer, geometry: Geometry) -> list[list[int]]:
    """Stream words of each group's weights."""
    if not layer.params:
        return []
    shape = (
        len(layer.params),
        layer.record["weight_words"],
        geometry.output_lanes,
        geometry.input_lanes,
    )
    count = int(np.prod(shape))
    bits = np.unpackbits(np.frombuffer(layer.weights, np.uint8), count=count)
    same, negate = arith.recode_pairs((bits.astype(np.int8) * 2 - 1).reshape(shape))
    coded = np.stack([same, negate], axis=-1).reshape(len(layer.params), -1)
    words = np.packbits(coded, axis=1, bitorder="little").view(_dtype(geometry))
    return [[int(w) for w in group] for group in words]


def _signs_of(coded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Inverse of `arith.recode_pairs` on (..., pairs, 2) bits: (..., 2 * pairs) of 0 and 1."""
    same, negate = coded[..., 0], coded[..., 1]
    first = 1 - negate
    second = np.where(same == 1, first, 1 - first)
    return np.stack([first, second], axis=-1).reshape(*coded.shape[:-2], -1).astype(np.uint8)


@dataclass(slots=True)
class _Reader:
    """Takes pieces off a stream of words."""

    words: NDArray[np.unsignedinteger]
    geometry: Geometry
    at: int = 0

    def take(self, count: int) -> NDArray[np.unsignedinteger]:
        if self.at + count > len(self.words):
            raise ImageError(f"stream must not end within a record, at word {len(self.words):,}")
        self.at += count
        return self.words[self.at - count : self.at]

    def fields(self, layout: Layout, signed: tuple[str, ...] = ()) -> dict[str, int]:
        number = sum(
            int(w) << self.geometry.stream_bits * i
            for i, w in enumerate(self.take(self.geometry.words(layout)))
        )
        values = {}
        for name, width in layout:
            value = number & ((1 << width) - 1)
            if name in signed and value >> (width - 1):
                value -= 1 << width
            values[name] = value
            number >>= width
        return values

    def param(self) -> Param:
        return Param(**self.fields(self.geometry.param_fields, ("bias", "start")))

    def layer(self, name: str) -> ImageLayer:
        g = self.geometry
        record: dict[str, int] = {}
        for layout in g.record_layouts:
            record |= self.fields(layout)
        if record["pool"] and not record["maximum"]:
            return ImageLayer(name, record, (), b"")
        params, signs = [], []
        for _ in range(record["groups_less"] + 1):
            channels = g.output_lanes * groups_in(record)
            params.append(tuple(self.param() for _ in range(channels)))
            words = self.take(record["weight_words"] * g.weight_bits // g.stream_bits)
            coded = np.frombuffer(words.tobytes(), np.uint8)
            bits = np.unpackbits(coded, bitorder="little")
            signs.append(_signs_of(bits.reshape(-1, g.output_lanes, g.input_lanes // 2, 2)))
        return ImageLayer(name, record, tuple(params), np.packbits(np.stack(signs)).tobytes())
