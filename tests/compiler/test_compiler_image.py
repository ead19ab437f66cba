"""The Image as a file and as it lies in flash; maps and Image in one memory."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace

import pytest

from compiler.errors import CapacityError, ImageError
from compiler.geometry import MAGIC, Geometry
from compiler.image import Image, check_room, flash_bytes, flash_words, frame, pack, unpack
from compiler.schedule import schedule
from sim.benches.networks import PADDINGS, random_program

EXAMPLE = bytes.fromhex("4e474953 02000000 44332211 88776655 7e126476")
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


def test_frame_of_the_example():
    assert frame([0x11223344, 0x55667788], 32) == EXAMPLE
    assert flash_words(EXAMPLE, 32) == [0x11223344, 0x55667788]
    assert zlib.crc32(EXAMPLE[:-4]) == int.from_bytes(EXAMPLE[-4:], "little")


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("count", [1, 2, 77])
def test_frame_of_any_width(bits, count):
    rng = random.Random(bits * count)
    words = [rng.getrandbits(bits) for _ in range(count)]
    assert flash_words(frame(words, bits), bits) == words


def test_every_damaged_bit_is_found():
    for bit in range(8 * len(EXAMPLE)):
        damaged = bytearray(EXAMPLE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError):
            flash_words(bytes(damaged), 32)


@pytest.mark.parametrize("cut", [0, 3, 4, 11, 12, 16, 19])
def test_every_cut_is_found(cut):
    with pytest.raises(ImageError):
        flash_words(EXAMPLE[:cut], 32)


def test_words_of_another_width():
    with pytest.raises(ImageError, match="of 2 words must have 16 bytes of them, not 8"):
        flash_words(EXAMPLE, 64)


def test_room_to_the_last_word(laid_out):
    """Maps and Image may meet, and not overlap by a word."""
    image = Image.of(laid_out)
    maps = max(region.first + region.words for region in laid_out.regions)
    need = maps + len(image.words())
    for spare in (0, 1, 1000):
        check_room(image, replace(laid_out, geometry=_as_deep(need + spare)))
    with pytest.raises(CapacityError, match=r"^\S+: activation memory needs") as caught:
        check_room(image, replace(laid_out, geometry=_as_deep(need - 1)))
    said = str(caught.value)
    assert f"{maps:,} words for maps and {len(image.words()):,} for the Image" in said
    assert f"the engine has {need - 1:,}" in said
    assert caught.value.hint.startswith(f"an engine with memory_depth {_power(need)},")


def test_image_larger_than_all_memory(laid_out):
    image = Image.of(laid_out)
    with pytest.raises(CapacityError, match="but the engine has 256"):
        check_room(image, replace(laid_out, geometry=_as_deep(256)))


def _as_deep(depth: int) -> Geometry:
    """A geometry with a depth that is no power of two, to meet the limit exactly."""
    geometry = Geometry()
    object.__setattr__(geometry, "memory_depth", depth)
    return geometry


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
