"""Lowering: the form it gives, how close to float it stays, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compiler import arith, golden
from compiler import graph as ir
from compiler import lower as lowering
from compiler.arith import Pads
from compiler.checkpoint import Checkpoint
from compiler.errors import LoweringError
from compiler.geometry import Geometry
from compiler.graph import Graph, build
from compiler.lower import (
    RESIDUAL_BITS,
    Affine,
    Normal,
    Sample,
    Stream,
    lower,
    mean_before_head,
    quantised,
)
from compiler.program import Add, Conv, Op, Pool, Program, Quantise, SumPixels, Tensor
from compiler.schedule import fitted, schedule
from tests.support.networks import random_checkpoint, random_images, random_program

NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "learned": {"learned": True, "input_relu": True},
    "plain": {"skip": False, "learned": True},
    "channel scales": {"channel_scales": True},
    "matlab odd": {"padding": "matlab", "shape": (1, 9, 11)},
    "keras even": {"padding": "keras"},
    "keras odd": {"padding": "keras", "shape": (2, 9, 7)},
    "torch odd": {"shape": (2, 7, 10)},
    "deep": {"depth": 14},
}


def residual_bits(program: Program) -> set[int]:
    return {t.bits for t in program.tensors if t.kind == "residual"}


# -- form ------------------------------------------------------------------------------------------


def test_names_and_order_of_a_small_network() -> None:
    program = random_program(0)
    assert [(type(op).__name__, op.output) for op in program.ops] == [
        ("Quantise", "input.q"),
        ("Conv", "conv0.acc"),
        ("Add", "conv0.r"),
        ("Quantise", "stage1.block1.relu1"),
        ("Conv", "stage1.block1.conv1.acc"),
        ("Quantise", "stage1.block1.relu2"),
        ("Conv", "stage1.block1.conv2.acc"),
        ("Add", "stage1.block1.r"),
        ("Quantise", "stage2.block1.relu1"),
        ("Conv", "stage2.block1.conv1.acc"),
        ("Quantise", "stage2.block1.relu2"),
        ("Pool", "stage2.block1.pool"),
        ("Conv", "stage2.block1.conv2.acc"),
        ("Add", "stage2.block1.r"),
        ("Quantise", "stage3.block1.relu1"),
        ("Conv", "stage3.block1.conv1.acc"),
        ("Quantise", "stage3.block1.relu2"),
        ("Pool", "stage3.block1.pool"),
        ("Conv", "stage3.block1.conv2.acc"),
        ("Add", "stage3.block1.r"),
        ("Quantise", "head.relu"),
        ("SumPixels", "head.sum"),
        ("Conv", "head.conv.acc"),
        ("Quantise", "scores"),
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_finishes_a_convolution_follows_it(name: str) -> None:
    ops = random_program(1, **NETWORKS[name]).ops
    for i, op in enumerate(ops):
        if isinstance(op, Conv):
            after: tuple[Op, ...] = ops[i + 1 : i + 3]
            assert isinstance(after[0], Add | Quantise) and after[0].source == op.output
            if isinstance(after[0], Add):
                assert isinstance(after[1], Quantise) and after[1].source == after[0].output
        if isinstance(op, Pool):
            assert isinstance(ops[i + 1], Conv) and getattr(ops[i + 2], "residual", 0) == op.output


def test_a_plain_network_has_no_residual_stream() -> None:
    kinds = {type(op) for op in random_program(0, skip=False).ops}
    assert kinds == {Quantise, Conv, SumPixels}


def test_steps_explain_the_integers() -> None:
    program = random_program(0, bits=8)
    checkpoint = random_checkpoint(0, bits=8)
    images = random_images(5, 8, checkpoint.network.input)
    names = [t.name for t in program.tensors if t.kind in ("activation", "residual")]
    integers = golden.run(program, images, names).tensors
    floats = ir.run(build(checkpoint), images, names=[n.replace("conv0.r", "conv0") for n in names])
    for name in names:
        value = (integers[name] - program[name].zero) * program[name].step
        want = floats[name.replace("conv0.r", "conv0")]
        assert np.abs(value - want).mean() < 0.05 * want.std()


def test_negative_slopes_flip_weights_where_a_convolution_alone_feeds_them() -> None:
    checkpoint = random_checkpoint(2, learned=True)
    program = lower(build(checkpoint))
    staircases = [op for op in program.ops if isinstance(op, Quantise)]
    behind = [op for op in staircases if program[op.source].kind == "accumulator"]
    assert min(g for op in behind for g in op.staircase.gains) >= 0
    flipped = checkpoint.tensors["stage1.block1.bn2.gamma"] < 0
    conv = next(op for op in program.convs() if op.name == "stage1.block1.conv1")
    own = checkpoint.tensors["stage1.block1.conv1.weight"]
    assert flipped.any()
    assert (program.signs(conv) == np.where(flipped[:, None, None, None], -own, own)).all()


def test_negative_slopes_behind_a_stream_are_gains() -> None:
    checkpoint = random_checkpoint(2, width=1, learned=True)
    staircases = {op.output: op for op in lower(build(checkpoint)).ops if isinstance(op, Quantise)}
    for stage in (1, 2, 3):
        gamma = checkpoint.tensors[f"stage{stage}.block1.bn1.gamma"]
        gains = np.array(staircases[f"stage{stage}.block1.relu1"].staircase.gains)
        assert (gains[gains != 0] == np.sign(gamma)[gains != 0]).all()
        assert (gains[gamma == 0] == 0).all() and (gains == -1).any()


def test_aligned_additions_are_shifts_of_the_finest_addend() -> None:
    program = random_program(0, bits=4)
    adds = [op for op in program.ops if isinstance(op, Add)]
    assert all(op.division is None and op.shift >= 0 for op in adds)
    first = [op.shift for op in adds if op.output in ("conv0.r", "stage1.block1.r")]
    assert min(first) == 0


def test_channel_scales_pass_a_division() -> None:
    program = random_program(0, channel_scales=True)
    adds = [op for op in program.ops if isinstance(op, Add)]
    assert adds and all(op.division is not None and op.shift == 0 for op in adds)


def test_an_addend_of_nothing_is_named() -> None:
    graph = build(random_checkpoint(0))
    nodes: list[ir.Node] = []
    for node in graph.nodes:
        if isinstance(node, ir.Conv) and node.name == "stage2.block1.conv2":
            node = replace(node, scale=np.zeros(8))
        nodes.append(node)
    with pytest.raises(
        LoweringError, match=r"stage2.block1.r: the addend stage2.block1.conv2 must not be constant"
    ):
        lower(Graph(graph.network, tuple(nodes), graph.labels))


def test_channels_without_a_scale_add_nothing() -> None:
    graph = build(random_checkpoint(0, channel_scales=True))
    nodes: list[ir.Node] = []
    for node in graph.nodes:
        if isinstance(node, ir.Conv) and node.name == "stage1.block1.conv2":
            node = replace(node, scale=np.where(np.arange(4) == 2, 0.0, node.scale))
        nodes.append(node)
    images = random_images(3, 4, (3, 8, 8))
    program = lower(Graph(graph.network, tuple(nodes), graph.labels))
    tensors = golden.run(program, images, ["conv0.r", "stage1.block1.r"]).tensors
    before, behind = tensors["conv0.r"], tensors["stage1.block1.r"]
    same = (before == behind).all(axis=(0, 2, 3))
    assert same.tolist() == [False, False, True, False]


def test_divisions_clip_nothing_below_a_scores_width() -> None:
    """Whatever rounding makes of the divisors: the hardware clips at a score's width alone."""
    narrow = 0
    for seed in range(4):
        program = random_program(seed, channel_scales=True, learned=True)
        for op in program.ops:
            if isinstance(op, Add) and op.division is not None:
                source = program[op.source]
                assert op.division.bits <= arith.SCORE_BITS
                assert not op.division.exceeds(source.low, source.high)
                narrow += op.division.bits < arith.SCORE_BITS
    assert narrow > 8


def test_a_division_is_a_bit_wider_where_a_rounded_divisor_makes_it_reach_further() -> None:
    """2,050 at 1/1.0015 of a unit each are 2,046.9; d is 256, and they become 2,050 units."""
    acc = Tensor("x.acc", "accumulator", 1, 1, 1, -2050, 2050)
    addend = Affine("x", np.array([2046.9 / 2050]), np.zeros(1))
    division = lowering._division(addend, acc, Stream(None, unit=1.0, bits=16))
    assert (division.divisors, division.bits) == ((256,), 13)
    ends = division(np.array([[[-2050, 2050]]])) - (1 << 12)
    assert ends.ravel().tolist() == [-2050, 2050]


def test_misaligned_steps_pass_a_division_too() -> None:
    checkpoint = random_checkpoint(0)
    assert checkpoint.quantiser is not None
    steps = dict(checkpoint.quantiser.steps) | {"stage3.block1.relu2": 0.2345}
    other = replace(checkpoint, quantiser=replace(checkpoint.quantiser, steps=steps))
    adds = {op.output: op for op in lower(build(other)).ops if isinstance(op, Add)}
    assert adds["stage3.block1.r"].division is not None
    assert adds["stage2.block1.r"].division is None


def test_a_batch_norm_in_front_of_an_addition_passes_a_division() -> None:
    graph = build(random_checkpoint(0, bits=8))
    rng = np.random.default_rng(0)
    norm = ir.BatchNorm(
        "stage2.block1.bn3",
        "stage2.block1.conv2",
        rng.normal(0, 0.1, 8),
        np.ones(8),
        np.tile([1.0, -1.0], 4),
        rng.normal(0, 0.5, 8),
        0.0,
    )
    nodes: list[ir.Node] = []
    for node in graph.nodes:
        if isinstance(node, ir.Add) and node.name == "stage2.block1.r":
            nodes += [norm, replace(node, addend=norm.name)]
        else:
            nodes.append(node)
    changed = Graph(graph.network, tuple(nodes), graph.labels)
    images = random_images(3, 32, (3, 8, 8))
    program = lower(changed, None, images)
    adds = {op.output: op for op in program.ops if isinstance(op, Add)}
    assert adds["stage2.block1.r"].division is not None
    got = golden.run(program, images, ["stage2.block1.r"]).tensors["stage2.block1.r"]
    want = ir.run(changed, images, names=["stage2.block1.r"])["stage2.block1.r"]
    error = got * program["stage2.block1.r"].step - want
    assert np.sqrt(np.square(error).mean()) < 0.03 * want.std()


def test_constants_are_no_wider_than_their_input_needs() -> None:
    checkpoint = random_checkpoint(3, learned=True, width=1)
    checkpoint.tensors["stage1.block1.bn2.beta"][0] = 1e6  # whatever comes, the answer is the top
    program = lower(build(checkpoint))
    for op in program.ops:
        if isinstance(op, Quantise):
            s, source = op.staircase, program[op.source]
            reach = (source.high - source.low + 1) << s.fraction_bits
            assert max(s.divisors) <= reach
            assert max(map(abs, s.offsets)) <= reach * ((1 << s.bits) + 1)
            ends = np.array([[[source.low, source.high]]] * source.channels)
            still = np.ptp(s(ends), axis=(1, 2)) == 0
            assert (still == (np.array(s.gains) == 0)).all()


# -- widths ----------------------------------------------------------------------------------------


def test_width_is_the_smallest_without_saturation_plus_one_bit() -> None:
    checkpoint = random_checkpoint(1)
    images = random_images(1, 32, checkpoint.network.input)
    program = lower(build(checkpoint), None, images)
    names = ["conv0.r", "stage1.block1.r"]
    result = golden.run(program, images, names)
    assert not any(result.saturations.values())
    values = np.concatenate([result.tensors[n].ravel() for n in names])
    assert program["conv0.r"].bits == arith.bits_signed(int(values.min()), int(values.max())) + 1


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("bound", [8, 12, RESIDUAL_BITS])
def test_width_stays_within_the_bound(bits: int, with_images: bool, bound: int) -> None:
    """What has to be rounded for it may saturate too, though rarely."""
    checkpoint = random_checkpoint(4, bits=bits, learned=True)
    images = random_images(4, 32, checkpoint.network.input)
    calibration = images if with_images else None
    program, free = (lower(build(checkpoint), None, calibration, b) for b in (bound, None))
    assert max(residual_bits(program)) <= bound
    values = len(images) * sum(math.prod(t.shape) for t in program.tensors if t.kind == "residual")
    saturated = sum(golden.run(program, images).saturations.values())
    assert saturated <= (values / 200 if bound < max(residual_bits(free)) else 0)


def test_narrow_streams_round_their_addends() -> None:
    wide, narrow = random_program(4, residual_bits=None), random_program(4, residual_bits=8)
    assert min(op.shift for op in wide.ops if isinstance(op, Add)) == 0
    assert min(op.shift for op in narrow.ops if isinstance(op, Add)) < 0
    assert max(residual_bits(narrow)) <= 8 < max(residual_bits(wide))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_images", [False, True])
def test_streams_that_fit_are_not_touched(seed: int, with_images: bool) -> None:
    checkpoint = random_checkpoint(seed, bits=4)
    images = random_images(seed, 32, checkpoint.network.input) if with_images else None
    free = lower(build(checkpoint), None, images, None)
    widest = max(residual_bits(free))
    assert lower(build(checkpoint), None, images, widest) == free
    assert lower(build(checkpoint), None, images, widest - 1) != free


def stream_error(program: Program, graph: Graph, images: np.ndarray) -> float:
    """Mean square of a first stage's error, relative to each channel's variance."""
    names = ["conv0.r", "stage1.block1.r"]
    got = golden.run(program, images, names).tensors
    want = ir.run(graph, images, names=["conv0", "stage1.block1.r"])
    error = 0.0
    for name in names:
        exact = want[name if name in want else "conv0"]
        lost = np.square(got[name] * program[name].step - exact).mean(axis=(0, 2, 3))
        error += float((lost / exact.var(axis=(0, 2, 3))).mean())
    return error


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("bound", [6, 8])
def test_the_unit_is_that_of_least_error(
    monkeypatch: pytest.MonkeyPatch, seed: int, with_images: bool, bound: int
) -> None:
    """Twice and half of it do worse on the images, or hardly better."""
    checkpoint = random_checkpoint(seed, width=0.5)
    graph, images = build(checkpoint), random_images(seed, 32, checkpoint.network.input)
    fit = lowering._fit

    def error(factor: float) -> float:
        def scaled(stream: Stream, before: Stream | None, bits: int | None) -> None:
            fit(stream, before, bits)
            if before is None:
                stream.unit *= factor

        monkeypatch.setattr(lowering, "_fit", scaled)
        calibration = images if with_images else None
        program = lower(graph, None, calibration, bound).with_residual_bits(bound)
        return stream_error(program, graph, images)

    chosen = error(1.0)
    assert chosen <= 1.15 * min(error(2.0), error(0.5))
    assert chosen < 0.7 * max(error(2.0), error(0.5))


def test_what_lies_beyond() -> None:
    """Of normal values by their moments, as of a sample of them; a constant channel has none."""
    mean, deviation = np.array([0.0, 30.0, -80.0]), np.array([20.0, 10.0, 40.0])
    draws = np.random.default_rng(0).normal(size=(3, 1 << 18)) * deviation[:, None]
    sample = Sample((draws + mean[:, None]).astype(np.float32))
    normal = Normal(mean, np.square(deviation))
    for half in (10.0, 40.0, 60.0):
        np.testing.assert_allclose(normal.beyond(half), sample.beyond(half), rtol=0.1)
    np.testing.assert_allclose(sample.variance, normal.variance, rtol=0.02)
    still = Normal(np.zeros(1), np.array([1e-12]))
    assert still.beyond(1.0) < 1e-100
    assert Sample(np.ones((1, 4), np.float32)).variance > 0


@pytest.mark.parametrize("seed", range(6))
def test_narrow_pools_shift_as_far_as_an_engine_can(seed: int) -> None:
    program = random_program(seed, residual_bits=8)
    shifts = {op.right_shift for op in program.ops if isinstance(op, Pool)}
    assert shifts <= set(range(arith.POOL_SHIFTS[0], arith.POOL_SHIFTS[1] + 2))
    assert schedule(program.with_residual_bits(8), fitted(program, Geometry()).geometry)


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_never_saturate(name: str) -> None:
    checkpoint = random_checkpoint(5, **NETWORKS[name])
    program = lower(build(checkpoint))
    last = program.ops[-1]
    assert isinstance(last, Quantise)
    source = program[last.source]
    ends = np.array([[[source.low, source.high]]] * source.channels)
    q = last.staircase(ends)
    assert q.min() > 0 and q.max() < (1 << arith.SCORE_BITS) - 1


# -- closeness -------------------------------------------------------------------------------------


def distances(program: Program, graph: Graph, images: np.ndarray) -> dict[str, float]:
    """For each quantiser its largest distance from float, in steps, given its integer input."""
    tensors = golden.run(program, images, [t.name for t in program.tensors]).tensors
    worst: dict[str, float] = {}
    for node in graph.all(ir.Quantiser):
        relu = graph[node.source]
        norm = graph[relu.source] if isinstance(relu, ir.Relu) else relu
        assert isinstance(norm, ir.BatchNorm)
        op = next(op for op in program.ops if op.output == node.name)
        source = program[op.source]
        slope = norm.slope * source.step
        if source.kind == "accumulator":
            slope = np.abs(slope)  # the weights in front are flipped
        value = tensors[op.source] * slope[:, None, None] + norm.intercept[:, None, None]
        exact = np.clip(value / (node.step or 1.0) + node.zero, 0, (1 << node.bits) - 1)
        worst[node.name] = float(np.abs(tensors[node.name] - exact).max())
    return worst


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "channel scales"])
def test_every_staircase_is_float_within_its_stated_bound(name: str, bits: int) -> None:
    # Half a step of rounding, and a quarter by which a rounded divisor moves the last threshold
    # (more only where F has reached its ceiling: the input's few raw pixels a step).
    checkpoint = random_checkpoint(6, bits=bits, **NETWORKS[name])
    graph = build(checkpoint)
    program = lower(graph)
    images = random_images(7, 8, checkpoint.network.input)
    staircases = {op.output: op.staircase for op in program.ops if isinstance(op, Quantise)}
    for output, off in distances(program, graph, images).items():
        s = staircases[output]
        live = [d for d, g in zip(s.divisors, s.gains, strict=True) if g]
        bound = 0.5 + ((1 << s.bits) + 2) / (2 * min(live, default=1))
        assert off <= bound + 1e-6
        if s.fraction_bits < arith.MAX_FRACTION_BITS:
            assert off <= 0.85


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_the_quantised_graph(name: str) -> None:
    """8 bits: the integers answer as the float64 Graph does, to 6 % of the scores' spread."""
    checkpoint = random_checkpoint(6, bits=8, **NETWORKS[name])
    graph = build(checkpoint)
    images = random_images(8, 64, checkpoint.network.input)
    program = lower(graph, None, images)
    want = ir.scores(graph, images)
    result = golden.run(program, images)
    error = result.scores * program.scores.step - want
    assert np.sqrt(np.square(error).mean()) < 0.06 * want.std()
    assert (result.classes == want.argmax(axis=1)).mean() > 0.9


def test_mean_before_head_changes_no_score() -> None:
    graph = build(random_checkpoint(1))
    images = random_images(1, 4, (3, 8, 8))
    moved = mean_before_head(graph)
    np.testing.assert_allclose(ir.scores(moved, images), ir.scores(graph, images), rtol=1e-9)
    assert mean_before_head(moved) is moved


# -- choosing the width of activations -----------------------------------------------------------


def test_float_activations_need_a_width() -> None:
    graph = build(random_checkpoint(0, bits=None))
    with pytest.raises(LoweringError, match="their width must be chosen") as caught:
        lower(graph)
    assert caught.value.hint == "--activation-bits 4"
    with pytest.raises(LoweringError, match="activation bits must be 2 to 8, not 9"):
        lower(graph, 9)
    assert lower(graph, 3).activation_bits == 3


def test_trained_steps_are_kept_unless_another_width_is_asked_for() -> None:
    graph = build(random_checkpoint(0, bits=4))
    assert quantised(graph) is graph and quantised(graph, 4) is graph
    assert lower(graph, 2).activation_bits == 2


# -- refusals --------------------------------------------------------------------------------------


def edited(checkpoint: Checkpoint, name: str, **changes: Any) -> Graph:
    graph = build(checkpoint)
    nodes = tuple(replace(n, **changes) if n.name == name else n for n in graph.nodes)
    return Graph(graph.network, nodes, graph.labels)


def test_float_weights_are_refused_by_name() -> None:
    with pytest.raises(LoweringError, match="conv0: weights must be 1-bit, not float32"):
        lower(build(random_checkpoint(0, weights="32bit")))


def test_pools_over_too_small_a_map_are_refused_by_name() -> None:
    checkpoint = random_checkpoint(0, padding="matlab", shape=(3, 2, 8))
    with pytest.raises(LoweringError, match=r"stage3.block1.pool: .* 9, 6 or 4 pixels"):
        lower(build(checkpoint))


def test_a_wide_head_is_refused_by_name() -> None:
    graph = edited(random_checkpoint(0), "head.conv", pads=Pads(1, 1, 1, 1))
    with pytest.raises(LoweringError, match=r"head.conv: .* must be 1x1 without padding"):
        lower(graph)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero": 3}, "stage1.block1.relu1: the quantiser of a ReLU must start at 0"),
        ({"bits": 5}, r"activations must be of one width, not \[4, 5\]"),
    ],
)
def test_quantisers_without_an_integer_form_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoweringError, match=message):
        lower(edited(random_checkpoint(0), "stage1.block1.relu1", **changes))


def test_an_unquantised_convolution_is_refused_by_name() -> None:
    graph = build(random_checkpoint(0))
    nodes = tuple(
        replace(n, source="stage1.block1.bn2.relu") if n.name == "stage1.block1.conv2" else n
        for n in graph.nodes
        if n.name != "stage1.block1.relu2"
    )
    with pytest.raises(LoweringError, match=r"conv2: the input of a convolution must be quant"):
        lower(Graph(graph.network, nodes, graph.labels))


def test_scores_of_one_slope_are_as_fine_as_16_bits_are() -> None:
    """Classes that differ by one accumulator, or by a 30th of the intercept, are told apart."""
    acc = Tensor("x.acc", "accumulator", 5, 1, 1, -480, 480)
    one = Affine("x", np.full(5, 0.3), np.array([0.0, 0.01, -0.01, 5.0, 0.0]))
    step = lowering.score_step(one, acc)
    stairs = arith.staircase(one.slope, one.intercept, step, 1 << 15, arith.SCORE_BITS)
    x = np.tile(np.arange(-480, 481), (5, 1))
    scores = (stairs(x, 0) - (1 << 15)) * step
    assert np.abs(scores - (0.3 * x + one.intercept[:, None])).max() <= step / 2 * 1.0001
    assert step < 0.3 / 50
    several = Affine("x", np.linspace(0.2, 0.3, 5), one.intercept)
    assert lowering.score_step(several, acc) > 0.3  # rounded divisors are the larger error
