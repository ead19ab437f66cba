"""The engine against golden: every layer of several networks on one model, without a reset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from compiler import golden
from compiler.cycles import next_layer_cycles
from compiler.geometry import Geometry
from compiler.image import Image
from compiler.program import Add, Program
from compiler.schedule import Schedule, schedule
from sim import check
from sim.benches import networks
from sim.benches.engine import engine
from sim.rtl import counters
from sim.runner import Simulation
from tests.support.networks import random_images, random_program

pytestmark = pytest.mark.cocotb

TINY = 3000
"""Cycles below which a network is too short to judge its prediction."""

TOLERANCE = 0.01

PICTURES = 2


@dataclass(frozen=True)
class Case:
    """A network and the pictures to run it on."""

    name: str
    plan: Schedule
    images: np.ndarray


def case(name: str, program: Program, geometry: Geometry, seed: int = 3) -> Case:
    images = random_images(seed, PICTURES, program.image.shape)
    return Case(name, schedule(program, geometry), images)


NETWORKS = {
    "torch": {"depth": 14, "width": 0.5, "shape": (3, 9, 7), "classes": 10},
    "matlab": {"depth": 8, "width": 0.6875, "shape": (1, 10, 11), "learned": True},
    "keras": {"depth": 8, "width": 1, "shape": (2, 12, 7), "learned": True, "input_relu": True},
    "plain": {"depth": 8, "width": 0.5, "shape": (3, 7, 10), "skip": False, "classes": 17},
}
"""Two depths, odd and even sizes, 8, 11, 16, 22 … channels on 16 and 8 lanes."""


def lowered(seed: int, name: str, bits: int = 4, residual_bits: int = 8) -> Program:
    padding = "torch" if name == "plain" else name
    return random_program(
        seed, residual_bits, padding=padding, bits=bits, **NETWORKS[name]
    ).with_residual_bits(residual_bits)


def shifted(program: Program, shift: int) -> Program:
    """The same network with larger addends: its residual stream saturates."""
    ops = tuple(
        replace(op, shift=shift) if isinstance(op, Add) and op.residual else op
        for op in program.ops
    )
    return replace(program, ops=ops).verify()


@dataclass
class Built:
    """The one model, and how often things had been built when it was."""

    simulation: Simulation
    elaborations: int
    builds: int


@pytest.fixture(scope="module")
def built() -> Built:
    component, models = engine(Geometry(), "spram")
    simulation = Simulation.build(component, "engine", sources=models)
    return Built(simulation, counters.elaborations, counters.builds)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [case(name, lowered(i, name), Geometry()) for i, name in enumerate(NETWORKS)]


def hold(simulation: Simulation, some: list[Case], **options) -> list[check.Run]:
    runs = check.run(simulation, [c.plan for c in some], [c.images for c in some], **options)
    for c, run in zip(some, runs, strict=True):
        check.compare(c.plan, c.images, run)
    return runs


def table(c: Case, run: check.Run) -> str:
    lines = [f"{c.name}: predicted {c.plan.cycles:,}, simulated {run.cycles.tolist()}"]
    for layer, cycles in zip(c.plan.layers, run.layer_cycles.T, strict=True):
        lines.append(f"  {layer.name:<24}{layer.cycles:>8}{cycles.tolist()!s:>18}")
    return "\n".join(lines)


SPAN_ENDS = 2
"""Cycles of a predicted layer that stand outside the strobes between which one is counted."""


def pools_exactly(c: Case, run: check.Run) -> None:
    """Nothing in a pooling layer depends on what was before: its cycles are those predicted."""
    between = next_layer_cycles(c.plan.geometry) - SPAN_ENDS
    for layer, cycles in zip(c.plan.layers, run.layer_cycles.T, strict=True):
        if layer.record["pool"]:
            assert (cycles + between == layer.cycles).all(), f"{c.name}, {layer.name}: {cycles}"


def test_cases_are_worth_running(cases):
    """Every staircase has several answers, every network tells its pictures apart."""
    for c in cases:
        names = [t.name for t in c.plan.program.tensors if t.kind == "activation"]
        result = golden.run(c.plan.program, c.images, names)
        assert all(len(np.unique(q)) > 3 for q in result.tensors.values()), c.name
        assert (result.scores[0] != result.scores[1]).any(), c.name
    gains = {
        g
        for c in cases
        for op in c.plan.program.ops
        if hasattr(op, "staircase")
        for g in op.staircase.gains
    }
    assert gains == {-1, 0, 1}


def test_networks_one_after_another(built, cases):
    """No stalls: equal to golden, and as fast as predicted."""
    for c, run in zip(cases, hold(built.simulation, cases), strict=True):
        print(table(c, run))
        if c.plan.cycles > TINY:
            assert run.cycles == pytest.approx(c.plan.cycles, rel=TOLERANCE), c.name
        pools_exactly(c, run)
    assert (counters.elaborations, counters.builds) == (built.elaborations, built.builds)


@pytest.mark.parametrize("stall", ["random", "bursts"])
def test_networks_with_stalls_in_another_order(built, cases, stall):
    """All three streams held up at random; the order reversed, with nothing left of before."""
    hold(built.simulation, cases[::-1], stall=stall)
    assert (counters.elaborations, counters.builds) == (built.elaborations, built.builds)


def test_saturating_residuals(built):
    """The residual stream runs into both its ends, in additions and in pooling."""
    geometry = Geometry()
    some = [
        case("shifted", shifted(lowered(0, "matlab"), geometry.max_left_shift), geometry),
        *(
            case(
                f"biased{seed}",
                networks.random_program(
                    seed,
                    channels=(24, 24),
                    shift=geometry.max_left_shift,
                    bias=1.0,
                    padding=padding,
                ),
                geometry,
            )
            for seed, padding in enumerate(networks.PADDINGS)
        ),
    ]
    for c in some:
        residuals = [t.name for t in c.plan.program.tensors if t.kind == "residual"]
        result = golden.run(c.plan.program, c.images, residuals)
        print(c.name, result.saturations)
        assert sum(result.saturations.values()) > 0, c.name
    hold(built.simulation, some)


def test_refused_images(built, cases):
    """Garbage, or an Image for another geometry: an error, and nothing is computed."""
    small = cases[-1]
    parameters = check.parameters_of([small.plan], [small.images], layers=False)
    foreign = schedule(small.plan.program, replace(Geometry(), weight_depth=512))
    parameters["foreign"] = np.array(Image.of(foreign).words(), dtype=np.uint64)
    built.simulation.run("sim.benches.engine", test_filter="refuses", parameters=parameters)


# -- other geometries, at night --------------------------------------------------------------------

DEEP = {"max_left_shift": 8, "shift_bits": 4}

WIDE = {"residual_bits": 16, "max_left_shift": 5}
"""As on boards whose lanes take one pass; also where a word of residuals of 8 bits is too many."""

PAIRED = {"two_ports": True, "planes_apart": True, "paired_groups": True}
"""As on the ULX3S."""

GEOMETRIES = {
    "b2": {"activation_bits": 2, "divisor_bits": 21, **DEEP},
    "b2_wide": {
        "activation_bits": 2,
        "input_lanes": 32,
        "word_channels": 32,
        "bias_bits": 15,
        "divisor_bits": 21,
        **DEEP,
    },
    "b3": {"activation_bits": 3, **DEEP},
    "b5": {"activation_bits": 5, "accumulator_bits": 18, **DEEP},
    "b8": {
        "activation_bits": 8,
        **WIDE,
        "accumulator_bits": 21,
        "bias_bits": 16,
        "offset_bits": 32,
        "divisor_bits": 24,
    },
    "in4": {"input_lanes": 4, "weight_depth": 256, "stream_bits": 32},
    "in8": {"input_lanes": 8},
    "out4": {"output_lanes": 4, "stream_bits": 32, **WIDE},
    "out8": {"output_lanes": 8},
    "single8": {"output_lanes": 8, "pump": 1, **WIDE},
    "single16": {"pump": 1, **WIDE},
    "px2": {"pixel_lanes": 2},
    "px2_8x4": {"input_lanes": 8, "output_lanes": 4, "pixel_lanes": 2, "stream_bits": 16},
    "px4": {"pixel_lanes": 4},
    "px4_wide": {"input_lanes": 32, "pixel_lanes": 4, "word_channels": 32, "bias_bits": 15, **WIDE},
    "px4_one_pass": {"pixel_lanes": 4, "pump": 1},
    "two_ports": {"pixel_lanes": 4, "pump": 1, "two_ports": True},
    "paired": {"pixel_lanes": 4, "pump": 1, "weight_depth": 512, **PAIRED},
    "paired_px2": {"pixel_lanes": 2, "output_lanes": 8, "pump": 1, "weight_depth": 512, **PAIRED},
    "residual14": WIDE | {"residual_bits": 14},
    "residual16": WIDE,
    "residual20": WIDE | {"residual_bits": 20},
    "residual20_px2": WIDE | {"residual_bits": 20, "pixel_lanes": 2},
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry(name):
    """Engines of other shapes run what they can hold, and are equal to golden too."""
    geometry = Geometry(**GEOMETRIES[name])
    component, models = engine(geometry)
    simulation = Simulation.build(component, "engine", sources=models)
    bits = geometry.activation_bits
    some = [
        case(padding, lowered(i, padding, bits, geometry.residual_bits), geometry)
        for i, padding in enumerate(("matlab", "keras"))
    ]
    some += [
        case(
            f"biased{seed}",
            networks.random_program(
                seed,
                channels=(24, 24),
                shift=min(5, geometry.max_left_shift),
                bias=1.0,
                bits=bits,
                residual_bits=geometry.residual_bits,
            ),
            geometry,
        )
        for seed in range(2)
    ]
    pairs = any(layer.record["paired"] for c in some for layer in c.plan.layers)
    assert pairs == geometry.paired_groups
    for c, run in zip(some, hold(simulation, some), strict=True):
        print(table(c, run))
        pools_exactly(c, run)
    hold(simulation, some, stall="bursts")
