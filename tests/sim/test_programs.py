"""Random small whole programs on engines of every width of activations, held to golden.

A model is built once for each geometry and runs one program after another, without a reset: its
Images and pictures come on streams that are held up at random. Every layer of every program must be
golden's. A program is made from its number alone; one that fails is named with it, and
``SIGNUM_PROGRAM=NUMBER`` runs that one alone, in every pattern of stalls (the night's run itself is
repeated by its ``SIGNUM_SEED``).
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from compiler.errors import CapacityError, MismatchError
from compiler.geometry import Geometry
from compiler.program import Program
from compiler.schedule import Schedule, schedule
from sim import check
from sim.benches import networks
from sim.benches.engine import engine
from sim.runner import Simulation, default_seed
from tests.support.networks import random_images, random_program

pytestmark = pytest.mark.cocotb

IN_CI, AT_NIGHT = 5, 36
"""Programs of each width: 35 and 252 in all."""

STALLED = ("never", "random", "bursts")

PICTURES = 2


def small(bits: int, lanes: tuple[int, int, int], word_channels: int, **more: int) -> Geometry:
    """A geometry for small programs of ``bits``; wide parameters, so that most programs fit."""
    inputs, outputs, pixels = lanes
    sizes = {"memory_depth": 4096, "window_depth": 64, "weight_depth": 128, "accumulator_bits": 21}
    params = {"bias_bits": 16, "offset_bits": 34, "divisor_bits": 26}
    shifts = {"max_left_shift": 8, "shift_bits": 4}
    return Geometry(
        input_lanes=inputs,
        output_lanes=outputs,
        pixel_lanes=pixels,
        activation_bits=bits,
        word_channels=word_channels,
        **(sizes | params | shifts | more),
    )


PAIRED = {"two_ports": True, "planes_apart": True, "paired_groups": True}

GEOMETRIES = {
    2: small(2, (8, 16, 1), 32, split_sums=True, stream_bits=64),
    3: small(3, (4, 8, 1), 16, pump=1, residual_bits=16, stream_bits=16),
    4: small(4, (16, 8, 1), 16, stream_bits=64),
    5: small(5, (8, 8, 4), 8, pump=1, stream_bits=32, **PAIRED),
    6: small(6, (4, 4, 1), 8, stream_bits=8),
    7: small(7, (8, 4, 2), 8, stream_bits=16),
    8: small(8, (8, 8, 1), 8, pump=1, residual_bits=16, planes_apart=True, stream_bits=32),
}
"""By width: one, two and four pixels at once, one to four steps a memory word, memory of one port
and of two, planes that lie apart, two groups on a window, lanes as fast as the engine, with
residual streams of 16 bits and 8, and twice as fast; masks of memory words a bit for two channels,
and sums that are taken in halves."""


def drawn(number: int, geometry: Geometry) -> Program:
    """A program of the geometry's width; by its number it is trained and lowered, or drawn."""
    rng = np.random.default_rng([number, 7])
    most = min(geometry.tap_channels, geometry.output_lanes, 4)
    shape = (int(rng.integers(1, most + 1)), *(int(n) for n in rng.integers(5, 12, 2)))
    padding = str(rng.choice(networks.PADDINGS))
    skip, bits = bool(rng.random() < 0.8), geometry.activation_bits
    classes = int(rng.integers(2, 14))
    if rng.random() < 0.5:
        stages = int(rng.integers(1, 4))
        return networks.random_program(
            number,
            shape=shape,
            channels=tuple(sorted(int(n) for n in rng.integers(1, 20, stages))),
            classes=classes,
            bits=bits,
            residual_bits=geometry.residual_bits,
            padding=padding,
            signed_input=bool(rng.random() < 0.7),
            skip=skip,
            shift=int(rng.integers(0, 5)) - (16 - geometry.residual_bits) // 2,
            bias=float(rng.choice([0.0, 0.5, 1.0])),
        )
    return random_program(
        number,
        geometry.residual_bits,
        depth=8,
        width=float(rng.choice([1 / 16, 0.2, 0.35])),
        shape=shape,
        classes=classes,
        padding=padding,
        bits=bits,
        learned=bool(rng.random() < 0.5),
        input_relu=bool(rng.random() < 0.3),
        skip=skip,
    ).with_residual_bits(geometry.residual_bits)


def numbered(bits: int, count: int) -> list[tuple[int, Schedule]]:
    """The first programs of a width that its geometry can hold, each with its number.

    Numbers follow `default_seed`, so nights differ; ``SIGNUM_PROGRAM`` names a single one.
    """
    geometry = GEOMETRIES[bits]
    if "SIGNUM_PROGRAM" in os.environ:
        number = int(os.environ["SIGNUM_PROGRAM"])
        return (
            [(number, schedule(drawn(number, geometry), geometry))] if number % 10 == bits else []
        )
    found: list[tuple[int, Schedule]] = []
    for i in range(3 * count):
        number = default_seed() * 100_000 + 10 * i + bits
        try:
            found.append((number, schedule(drawn(number, geometry), geometry)))
        except CapacityError:
            continue
        if len(found) == count:
            break
    assert len(found) == count, f"{len(found)} of {3 * count} programs fit"
    return found


def run(bits: int, count: int) -> None:
    some = numbered(bits, count)
    component, models = engine(GEOMETRIES[bits])
    simulation = Simulation.build(component, "engine", sources=models)
    for at, stall in enumerate(STALLED):
        part = some[at :: len(STALLED)] if len(some) > 1 else some
        if not part:
            continue
        numbers, plans = [n for n, _ in part], [plan for _, plan in part]
        images = [random_images(n, PICTURES, p.program.image.shape) for n, p in part]
        print(f"{bits} bits, stalls {stall}: programs {numbers}")
        # The stalls' own seed is the first program's number.
        seed = numbers[0] % 10**9
        runs = check.run(simulation, plans, images, stall=stall, seed=seed)
        for number, plan, pictures, got in zip(numbers, plans, images, runs, strict=True):
            try:
                check.compare(plan, pictures, got)
            except MismatchError as error:
                pytest.fail(
                    f"program {number} ({plan.program.image.shape}, stalls {stall}, seed {seed}): "
                    f"{error}; SIGNUM_PROGRAM={number} runs it alone, "
                    f"SIGNUM_SEED={default_seed()} all again"
                )


@pytest.mark.parametrize("bits", GEOMETRIES)
def test_programs_do_not_divide_the_lanes(bits):
    """What makes these programs worth running: odd shapes, every padding, both ends."""
    some = [plan for _, plan in numbered(bits, IN_CI)]
    geometry = GEOMETRIES[bits]
    channels = [t.channels for plan in some for t in plan.program.tensors if t.kind == "activation"]
    assert any(c % geometry.output_lanes for c in channels)
    assert any(c % geometry.input_lanes for c in channels)
    assert len({plan.program.image.shape for plan in some}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("bits", GEOMETRIES)
def test_programs(bits):
    run(bits, IN_CI)


@pytest.mark.nightly
@pytest.mark.parametrize("bits", GEOMETRIES)
def test_programs_at_night(bits):
    run(bits, AT_NIGHT)
