"""The Image as a file and as it lies in flash; maps and Image in one memory."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from amaranth.lib.crc import catalog

from compiler.errors import CapacityError, ImageError
from compiler.geometry import MAGIC, Geometry
from compiler.image import (
    LEAST_RING,
    Image,
    check_room,
    flash_bytes,
    flash_crc,
    flash_words,
    frame,
    pack,
    unpack,
)
from compiler.lower import lower
from compiler.schedule import fitted, schedule
from sim.benches.networks import PADDINGS, random_program
from tests.support.networks import random_vgg

EXAMPLE = bytes.fromhex("5349474e 00000001 0000003c 11223344 55667788 e4884c9d")
"""The worked example of `compiler.image`."""


@pytest.fixture(scope="module")
def laid_out():
    return schedule(random_program(0), Geometry())


@pytest.mark.parametrize("seed", range(len(PADDINGS)))
def test_file_and_stream_are_the_same_image(seed):
    image = Image.of(schedule(random_program(seed, padding=PADDINGS[seed]), Geometry()))
    assert unpack(pack(image)) == image
    assert flash_words(flash_bytes(image), Geometry().stream_bits) == image.words()
    assert image.words()[0] & 0xFFFF_FFFF == MAGIC


def test_maxima_and_pairs_of_groups_come_back():
    usual = Geometry(pixel_lanes=4, pump=1, paired_groups=True, weight_depth=512)
    vgg = fitted(lower(random_vgg(0, channels=(20, 32))), usual)
    wide = schedule(random_program(0, channels=(24, 24)), usual)
    assert any(layer.record["paired"] for layer in wide.layers)
    for laid_out in (vgg, wide):
        image = Image.of(laid_out)
        assert unpack(pack(image)) == image


def test_frame_of_the_example():
    assert frame([0x11223344, 0x55667788], 32, 10, 5) == EXAMPLE
    assert flash_words(EXAMPLE, 32) == [0x11223344, 0x55667788]


@pytest.mark.parametrize(("room", "size"), [(2, 2 * 30), (1, 2 * 31 + 1), (32, 2 * 30)])
def test_frame_tells_the_ring(room, size):
    """The address of its last word, and whether the Image is longer than it."""
    data = frame([0x11223344, 0x55667788], 32, room, 5)
    assert int.from_bytes(data[8:12], "big") == size
    assert flash_words(data, 32) == [0x11223344, 0x55667788]


def test_crc_is_that_of_the_hardware():
    data = random.Random(0).randbytes(77)
    crc = catalog.CRC32_MPEG_2(data_width=8)
    assert flash_crc(data) == crc.compute(data)
    assert flash_crc(b"123456789") == 0x0376E6E7  # the catalogue's check value


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("count", [1, 2, 77])
def test_frame_of_any_width(bits, count):
    rng = random.Random(bits * count)
    words = [rng.getrandbits(bits) for _ in range(count)]
    assert flash_words(frame(words, bits, 40, 6), bits) == words


def test_every_damaged_bit_is_found():
    for bit in range(8 * len(EXAMPLE)):
        damaged = bytearray(EXAMPLE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError):
            flash_words(bytes(damaged), 32)


@pytest.mark.parametrize("cut", [0, 3, 4, 11, 12, 16, 19, 23])
def test_every_cut_is_found(cut):
    with pytest.raises(ImageError):
        flash_words(EXAMPLE[:cut], 32)


def test_words_of_another_width():
    with pytest.raises(ImageError, match="of 2 words must have 16 bytes of them, not 8"):
        flash_words(EXAMPLE, 64)


def test_room_for_the_image(laid_out):
    """Maps and Image may meet, and not overlap by a word: one that does not fit is streamed."""
    words = len(Image.of(laid_out).words())
    maps = max(region.end for region in laid_out.regions)
    for depth, streamed in ((maps + words, False), (maps + words - 1, True)):
        fitted = replace(laid_out, geometry=_as_deep(depth))
        image = Image.of(fitted)
        check_room(image, fitted)
        assert image.room == depth - maps
        assert image.streamed == streamed


def test_too_little_room_to_read_ahead(laid_out):
    maps = max(region.end for region in laid_out.regions)
    need = maps + LEAST_RING
    fitted = replace(laid_out, geometry=_as_deep(need))
    assert Image.of(fitted).streamed
    check_room(Image.of(fitted), fitted)
    short = replace(laid_out, geometry=_as_deep(need - 1))
    with pytest.raises(CapacityError, match=r"^\S+: activation memory needs") as caught:
        check_room(Image.of(short), short)
    said = str(caught.value)
    assert f"{maps:,} words for maps and {LEAST_RING} for the Image" in said
    assert f"the engine has {need - 1:,}" in said
    assert caught.value.hint.startswith(f"an engine with memory_depth {_power(need)},")


def test_more_words_than_can_be_counted(laid_out, monkeypatch):
    image = Image.of(laid_out)
    count = len(image.words())
    monkeypatch.setattr("compiler.image.COUNT_BITS", count.bit_length() - 1)
    with pytest.raises(CapacityError, match=f"must have at most .* words of 64 bits, not {count}"):
        check_room(image, laid_out)


def _as_deep(depth: int) -> Geometry:
    """A geometry with a depth that is no power of two, to meet the limit exactly."""
    geometry = Geometry()
    object.__setattr__(geometry, "memory_depth", depth)
    return geometry


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
