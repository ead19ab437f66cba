"""Choosing steps: least error, and the alignment rule."""

from __future__ import annotations

import numpy as np
import pytest

from compiler import arith
from compiler import graph as ir
from compiler.calibrate import calibrate
from compiler.errors import LoweringError
from compiler.graph import Graph, build
from compiler.steps import Site, choose_steps
from tests.support.networks import random_checkpoint, random_images


def half_normal() -> np.ndarray:
    return np.abs(np.random.default_rng(0).normal(size=20_000))


@pytest.mark.parametrize(("bits", "step"), [(2, 0.65), (3, 0.352), (4, 0.1955), (8, 0.0160)])
def test_free_steps_are_the_known_optima_of_a_normal(bits: int, step: float) -> None:
    # Uniform quantisers of a Gaussian, 2**(bits+1) - 1 levels (J. Max, 1960, between his even n).
    site = Site(half_normal(), 0, (1 << bits) - 1, None)
    assert site.free_step() == pytest.approx(step, rel=0.1)


def test_bound_steps_share_one_unit_and_lose_little() -> None:
    values = half_normal()
    sites = {str(k): Site(values * k, 0, 15, bound) for k, bound in ((1, 0.3), (2, 1.7), (5, 9.0))}
    steps = choose_steps(sites)
    unit = steps["1"] * 0.3
    for name, site in sites.items():
        assert arith.alignment_shift(site.bound or 0, steps[name], unit) is not None
        assert site.error(steps[name]) < 1.5 * site.error(site.free_step())


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_calibrated_networks_obey_the_alignment_rule(bits: int, with_images: bool) -> None:
    checkpoint = random_checkpoint(0, depth=14, bits=None, learned=True)
    images = random_images(1, 16, checkpoint.network.input) if with_images else None
    graph = calibrate(build(checkpoint), bits, images)
    steps = {q.name: q.step or 0.0 for q in graph.all(ir.Quantiser)}
    scale = {c.name: float(c.scale) for c in graph.all(ir.Conv)}
    unit = scale["conv0"] * steps["input.q"]
    for stage in (1, 2, 3):
        for block in (f"stage{stage}.block1", f"stage{stage}.block2"):
            addend = scale[f"{block}.conv2"], steps[f"{block}.relu2"]
            assert arith.alignment_shift(*addend, unit / 9 ** (stage - 1)) is not None
    widths = {q.name: q.bits for q in graph.all(ir.Quantiser)}
    assert widths.pop("input.q") == 8 and set(widths.values()) == {bits}


def test_calibration_beats_one_step_for_all() -> None:
    checkpoint = random_checkpoint(3, width=0.5, bits=None)
    images = random_images(4, 64, checkpoint.network.input)
    float_graph = build(checkpoint)
    want = ir.scores(float_graph, images)

    def loss(graph: Graph) -> float:
        return float(np.square(ir.scores(graph, images) - want).mean())

    def crude(step: float) -> float:
        steps = {q.name: step for q in float_graph.all(ir.Quantiser)} | {"input.q": 5 / 255}
        return loss(float_graph.with_quantisers(steps, 4))

    assert loss(calibrate(float_graph, 4, images)) < 0.8 * min(map(crude, (0.1, 0.2, 0.3, 0.5)))
    assert loss(calibrate(float_graph, 4)) < 0.5 * min(crude(0.05), crude(1.0))


def test_without_batch_norm_calibration_needs_images() -> None:
    checkpoint = random_checkpoint(0, bits=None)
    plain = build(checkpoint)
    nodes = [ir.Quantiser("input.q", "image", 8, 0, None) if n.name == "input.q" else n
             for n in plain.nodes if n.name != "input.bn"]  # fmt: skip
    graph = Graph("raw", tuple(nodes), plain.labels)
    with pytest.raises(LoweringError, match=r"input.q: .* needs calibration images"):
        calibrate(graph, 4)
    assert calibrate(graph, 4, random_images(0, 4, (3, 8, 8)))["input.q"] is not None
