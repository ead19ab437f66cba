"""Every form of network that training or other people's files bring, on engines that have its unit.

Each is held to golden in every layer, and its cycles to the prediction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boards import records
from boards.build import grown, plan
from compiler import checkpoint
from compiler import graph as ir
from compiler.accuracy import program_of
from compiler.arith import Pads
from compiler.benchmark import ZOO, tinbinn
from compiler.geometry import Geometry, geometry_for
from compiler.lower import lower
from compiler.program import Add, MaxPool, Program
from compiler.schedule import schedule
from sim import check
from sim.benches.engine import engine
from sim.runner import Simulation
from tests.support.networks import random_images, random_program, random_vgg
from tests.train.test_train_export import trained
from train.export import checkpoint_of

pytestmark = pytest.mark.cocotb

TOLERANCE = 0.005

SHIPPED = Geometry(max_pool=True, addend_division=True)
"""The shipped engine with both units that it leaves out."""

WHOLE = replace(
    SHIPPED,
    residual_bits=16,
    max_left_shift=5,
    plain_input=True,
    pad_bits=2,
    window_depth=64,
    weight_depth=128,
    bias_bits=16,
    divisor_bits=24,
    offset_bits=34,
)
"""An engine that runs every form."""

PLAIN = Geometry(
    input_lanes=8,
    output_lanes=8,
    pixel_lanes=2,
    pumped_sums=False,
    activation_bits=8,
    word_channels=8,
    accumulator_bits=20,
    stream_bits=32,
    weight_depth=256,
    max_left_shift=0,
    plain_input=True,
    residuals=False,
    max_pool=True,
)
"""What the iCEBreaker gets for TinBiNN's network: 128 additions a cycle at 8 bits."""

IMAGENET = {"family": "wrn-imagenet", "depth": 10, "width": 1 / 16, "size": (20, 18)}

FORMS: dict[str, dict[str, Any]] = {
    "learned": {"batch_norm": "learned"},
    "plain": {"skip": False},
    "input relu": {"input_relu": True, "padding": "keras"},
    "26 deep": {"depth": 26, "width": 0.25},
    "scale a layer": {"weights": "bwn-layer"},
    "scale a channel": {"weights": "bwn-channel", "padding": "matlab"},
    "scale a channel, learned": {"weights": "bwn-channel", "batch_norm": "learned"},
    "shifted": {"batch_norm": "none"},
    "shifted plain": {"batch_norm": "none", "skip": False},
    "imagenet": IMAGENET,
    "imagenet learned": IMAGENET | {"batch_norm": "learned", "padding": "matlab"},
    "imagenet plain": IMAGENET | {"skip": False, "padding": "keras"},
    "imagenet shifted": IMAGENET | {"batch_norm": "none"},
    "imagenet scale a channel": IMAGENET | {"weights": "bwn-channel"},
}
"""All that `train.network.Architecture` can say, one by one; 32 bits are refused."""


def built(geometry: Geometry) -> Simulation:
    component, models = engine(geometry)
    return Simulation.build(component, "engine", sources=models)


def hold(simulation: Simulation, geometry: Geometry, program: Program, pictures: int = 1) -> None:
    plan = schedule(program.with_residual_bits(geometry.residual_bits), geometry)
    images = random_images(3, pictures, program.image.shape)
    run = check.run(simulation, [plan], [images])[0]
    check.compare(plan, images, run)
    stored = [t for t in program.tensors if t.kind == "activation"]
    assert {t.name for t in stored[1:]} <= set(run.tensors)
    print(f"{program.network}: predicted {plan.cycles:,}, simulated {run.cycles.tolist()}")
    assert run.cycles == pytest.approx(plan.cycles, rel=TOLERANCE)


def has(program: Program, kind: str) -> bool:
    """Whether a Program asks for the unit that an engine may leave out."""
    if kind == "maximum":
        return any(isinstance(op, MaxPool) and any(op.falling) for op in program.ops)
    return any(isinstance(op, Add) and op.division is not None for op in program.ops)


def test_maxima_and_divided_addends() -> None:
    """One network after the other; maxima fall in some channels, and overlap."""
    simulation = built(SHIPPED)
    pool = (3, 2, Pads(1, 1, 1, 1))
    vgg = lower(random_vgg(1, channels=(20, 33), dense=(40, 7), pool=pool))
    divided = random_program(
        0, SHIPPED.residual_bits, channel_scales=True, shape=(3, 5, 6), width=0.8, learned=True
    )
    assert has(vgg, "maximum") and has(divided, "division")
    hold(simulation, SHIPPED, vgg, pictures=2)
    hold(simulation, SHIPPED, divided)
    hold(simulation, SHIPPED, lower(random_vgg(2, shape=(3, 7, 7), channels=(3,), dense=(5,))))
    one_pixel = random_vgg(3, channels=(20,), dense=(5,), pool=(1, 1, Pads(0, 0, 0, 0)))
    hold(simulation, SHIPPED, lower(one_pixel))


def test_an_engine_without_a_residual_stream() -> None:
    """At 8 bits, two pixels at once, as TinBiNN's network has it; maxima fall in some channels."""
    geometry = replace(PLAIN, window_depth=64)
    simulation = built(geometry)
    vgg = lower(random_vgg(1, channels=(5, 18), dense=(9, 5), bits=8))
    assert has(vgg, "maximum")
    hold(simulation, geometry, vgg, pictures=2)
    pool = (3, 2, Pads(1, 1, 1, 1))
    hold(
        simulation, geometry, lower(random_vgg(2, channels=(20,), dense=(12, 7), bits=8, pool=pool))
    )


@pytest.mark.slow
def test_a_fully_connected_layer_longer_than_the_window_buffer() -> None:
    """Its window is read once, so the buffer need not hold it."""
    program = lower(random_vgg(0, shape=(3, 16, 16), channels=(20,), dense=(33, 20, 7)))
    plan = schedule(program.with_residual_bits(16), WHOLE)
    dense = next(layer for layer in plan.layers if layer.name == "dense1")
    assert dense.record["window_less"] + 1 == 128 > WHOLE.window_depth
    hold(built(WHOLE), WHOLE, program, pictures=2)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_training_writes(form: str) -> None:
    changes = {"size": (7, 6), "width": 0.2} | FORMS[form]
    network = trained(**changes)
    program = program_of(ir.build(checkpoint_of(network, {})), engine=WHOLE)
    assert (
        has(program, "division")
        == (network.architecture.weights.startswith("bwn") or "shifted" in form)
        * network.architecture.skip
    )
    hold(built(WHOLE), WHOLE, program)


@pytest.mark.slow
def test_a_residual_network_with_activations_in_its_stream() -> None:
    """Each block adds to the activations that the one before left: post-activation."""
    hold(built(WHOLE), WHOLE, lower(post_activation(0)))


def post_activation(seed: int) -> ir.Graph:
    """Two blocks ``relu(x + bn(conv(x)))``, steps of a quarter."""
    rng = np.random.default_rng([seed, 5])

    def conv(name: str, source: str, c_in: int) -> ir.Conv:
        signs = rng.choice(np.array([-1, 1], np.int8), (6, c_in, 3, 3))
        return ir.Conv(name, source, signs, np.asarray(1 / 16), 1, Pads(1, 1, 1, 1))

    def norm(name: str, source: str, c: int, gamma: float) -> ir.BatchNorm:
        mean = np.full(c, 120.0 if name == "bn" else 0.0)
        gammas = gamma * rng.uniform(0.5, 1.5, c)
        return ir.BatchNorm(name, source, mean, np.ones(c), gammas, rng.normal(0, 0.3, c), 0.0)

    nodes: list[ir.Node] = [
        ir.Input("image", (3, 6, 7)),
        norm("bn", "image", 3, 1 / 64),
        ir.Quantiser("q", "bn", 8, 128, 1 / 64),
        conv("conv0", "q", 3),
        ir.Relu("relu0", "conv0"),
        ir.Quantiser("q0", "relu0", 4, 0, 0.25),
    ]
    for i in (1, 2):
        nodes += [
            conv(f"conv{i}", f"q{i - 1}", 6),
            norm(f"bn{i}", f"conv{i}", 6, 1.0),
            ir.Add(f"r{i}", f"q{i - 1}", f"bn{i}"),
            ir.Relu(f"relu{i}", f"r{i}"),
            ir.Quantiser(f"q{i}", f"relu{i}", 4, 0, 0.25),
        ]
    head = rng.choice(np.array([-1, 1], np.int8), (5, 6, 1, 1))
    nodes += [
        ir.GlobalMean("mean", "q2"),
        ir.Conv("head", "mean", head, np.asarray(0.5), 1, Pads(0, 0, 0, 0)),
    ]
    return ir.Graph("post", tuple(nodes), tuple("abcde"))


@pytest.mark.slow
def test_tinbinns_network() -> None:
    """48-48-96-96-128-128 and 256-256-10 on 32x32: 71.5 million additions, at their full size."""
    program = program_of(tinbinn(checkpoint.load(ZOO / "cifar10-wrn20-1-a4.pt")), 8)
    assert program.addsub_per_image == 71_518_720
    usual = plan(records.find("icebreaker"), 8, (8, 8, 2))
    assert grown(program, usual).geometry == PLAIN
    hold(built(PLAIN), PLAIN, program)


@pytest.mark.slow
def test_two_bits_on_twice_the_lanes() -> None:
    """Memory words of 32 channels, whose mask has a bit for two; sums taken in halves; pointers
    that share a table."""
    wide = geometry_for(records.find("icebreaker").geometry, 2, (32, 16, 1))
    geometry = replace(wide, bias_bits=16, divisor_bits=24, offset_bits=34)
    component, models = engine(geometry, "spram")
    simulation = Simulation.build(component, "engine", sources=models)
    for seed, width in enumerate((1, 2, 3.5)):
        options = {"depth": 14, "shape": (3, 12 + seed, 9), "classes": 10, "bits": 2}
        hold(simulation, geometry, random_program(seed, 8, width=width, **options), pictures=2)


@pytest.mark.slow
def test_what_divided_addends_cost() -> None:
    """Of WRN 20-1 on 32x32, predicted: the divider's, where shifts do not do."""
    cycles = []
    for channel_scales in (False, True):
        program = random_program(
            0,
            SHIPPED.residual_bits,
            depth=20,
            width=1,
            shape=(3, 32, 32),
            classes=10,
            channel_scales=channel_scales,
        ).with_residual_bits(SHIPPED.residual_bits)
        cycles.append(schedule(program, SHIPPED).cycles)
    print(f"one scale a layer {cycles[0]:,} cycles, one a channel {cycles[1]:,}")
    assert 10 < cycles[1] / cycles[0] < 16


GEOMETRIES: dict[str, dict[str, Any]] = {
    "b2": {"activation_bits": 2, "divisor_bits": 26, "max_left_shift": 8, "shift_bits": 4},
    "b8": {"activation_bits": 8, "accumulator_bits": 21, "offset_bits": 38, "divisor_bits": 28},
    "in4": {"input_lanes": 4, "stream_bits": 32, "weight_depth": 512},
    "out16": {"output_lanes": 16},
    "residual20": {"residual_bits": 20, "max_left_shift": 9, "shift_bits": 4},
    "px2": {"pixel_lanes": 2, "addend_division": False},
    "pump1": {"pump": 1},
    "plain": {"residuals": False, "addend_division": False},
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry(name: str) -> None:
    """Engines of other shapes, with taps in the first layer and without."""
    for plain_input in (False, True):
        if plain_input and name == "plain":
            continue  # slices of the image would wait in the stream that it has not
        geometry = replace(WHOLE, plain_input=plain_input, **GEOMETRIES[name])
        bits, residual = geometry.activation_bits, geometry.residual_bits
        simulation = built(geometry)
        hold(simulation, geometry, lower(random_vgg(1, channels=(5, 18), dense=(9, 5), bits=bits)))
        if geometry.addend_division:
            options = {"channel_scales": True, "shape": (3, 5, 6), "width": 0.2, "bits": bits}
            hold(simulation, geometry, random_program(0, residual, **options))
