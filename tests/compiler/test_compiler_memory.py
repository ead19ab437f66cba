"""Where maps lie: each word that a layer reads is still the one that was written for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from compiler.geometry import Geometry, groups_in
from compiler.lower import lower
from compiler.program import Conv, MaxPool, Program, SumPixels
from compiler.schedule import Layer, Schedule, fitted, schedule
from tests.support.networks import random_program, random_vgg

APART = Geometry(pixel_lanes=4, pump=1, two_ports=True, planes_apart=True, memory_depth=8192)
PAIRED = replace(APART, paired_groups=True, weight_depth=512)


def wide(depth: int, width: float, shape: tuple[int, int, int], skip: bool = True) -> Program:
    return random_program(0, 8, depth=depth, width=width, shape=shape, classes=10, skip=skip)


def behind(laid_out: Schedule) -> int:
    """The first word that no map has."""
    return laid_out.geometry.memory_depth - laid_out.room


class Replay:
    """Memory in which each word is what it holds: a tensor's name, and which word of it.

    Words are written where a layer's record says, group by group and row by row, and before each
    row those that its windows hold must be there.
    """

    def __init__(self, laid_out: Schedule) -> None:
        self.laid_out, self.held = laid_out, {}
        self.fill(laid_out.regions[0].tensor)
        for layer in laid_out.layers:
            self.play(layer)

    def places(self, name: str) -> list[int]:
        extents = self.laid_out.region(name).extents
        return [first + i for first, count in extents for i in range(count)]

    def fill(self, name: str) -> None:
        self.held.update((at, (name, i)) for i, at in enumerate(self.places(name)))

    def expect(self, name: str, words: range) -> None:
        places = self.places(name)
        for i in words:
            assert self.held[places[i]] == (name, i)

    def expect_all(self, name: str) -> None:
        self.expect(name, range(len(self.places(name))))

    def play(self, layer: Layer) -> None:
        program, record = self.laid_out.program, layer.record
        op = next(op for op in program.ops if op.name == layer.name)
        sums = {other.output: other.source for other in program.ops if isinstance(other, SumPixels)}
        source = sums.get(op.source, op.source)
        if layer.residual is not None:
            self.fill(layer.residual)
        if not isinstance(op, Conv | MaxPool) or layer.activation is None:
            self.expect_all(source)
            return
        out = program[layer.activation]
        for planes in self.groups(layer):
            for y in range(out.height):
                self.expect_rows(source, y * op.stride - op.pads.top, op.kernel)
                for plane in planes:
                    first = record["out_first"] + plane * self.apart(layer, out.height * out.width)
                    for x in range(out.width):
                        word = (plane * out.height + y) * out.width + x
                        at = (first + y * out.width + x) % self.laid_out.geometry.memory_depth
                        self.held[at] = (layer.activation, word)
        self.expect_all(layer.activation)

    def groups(self, layer: Layer) -> Iterator[range]:
        """The planes that are written in each walk over the input."""
        turns = groups_in(layer.record)
        for group in range(layer.record["groups_less"] + 1):
            yield range(group * turns, (group + 1) * turns)

    @staticmethod
    def apart(layer: Layer, plane: int) -> int:
        """How far the engine writes planes apart: a maximum's one behind the other."""
        return plane if layer.record["maximum"] else layer.record["out_plane"]

    def expect_rows(self, source: str, first: int, rows: int) -> None:
        g, tensor = self.laid_out.geometry, self.laid_out.program[source]
        width, words = tensor.width, self.laid_out.region(source).words
        is_image = source == self.laid_out.regions[0].tensor
        if is_image:  # a word holds the rows above and below it too
            first, rows = first + g.input_rows // 2, rows - g.input_rows + 1
        begin, end = max(0, first), min(tensor.height, first + rows)
        for start in range(0, words, tensor.height * width):
            self.expect(source, range(start + begin * width, start + end * width))


@pytest.mark.parametrize(
    ("depth", "width", "shape", "skip"),
    [
        (8, 0.2, (1, 10, 6), True),
        (14, 1, (3, 14, 10), False),
        (20, 1, (3, 32, 32), True),
        (20, 2, (3, 32, 32), True),
    ],
)
@pytest.mark.parametrize("geometry", [APART, PAIRED], ids=["apart", "paired"])
def test_no_map_is_written_over_before_it_is_read(
    depth: int, width: float, shape: tuple[int, int, int], skip: bool, geometry: Geometry
) -> None:
    Replay(schedule(wide(depth, width, shape, skip), geometry))


@pytest.mark.parametrize("channels", [(20, 32), (32, 32), (24, 24, 24), (32, 32, 64)])
def test_a_maximum_s_map_is_in_one_piece(channels: tuple[int, ...]) -> None:
    graph = random_vgg(0, shape=(3, 16, 16), channels=channels, dense=(16, 5))
    Replay(fitted(lower(graph), APART, ("memory_depth",)))


def test_the_last_plane_of_a_map_takes_the_place_of_one_of_its_input() -> None:
    """WRN 20-2 in the memory of a ULX3S, with room for its Image."""
    program = wide(20, 2, (3, 32, 32))
    assert behind(schedule(program, APART)) == 7296
    without = replace(APART, planes_apart=False, memory_depth=16384)
    assert behind(schedule(program, without)) == 8192


@pytest.mark.parametrize(("depth", "words"), [(8, 7296), (14, 7296)])
def test_there_is_a_plan_whatever_the_depth(depth: int, words: int) -> None:
    """Which place is free at a stage's end depends on the number of layers."""
    laid_out = schedule(wide(depth, 2, (3, 32, 32)), PAIRED)
    assert behind(laid_out) == words
    Replay(laid_out)


def test_digests_tell_engines_apart() -> None:
    flags = {"planes_apart", "paired_groups"}
    engines = [
        replace(PAIRED, **{name: name in chosen for name in flags})
        for chosen in ((), ("planes_apart",), ("paired_groups",), flags)
    ]
    assert len({engine.digest for engine in engines}) == 4
