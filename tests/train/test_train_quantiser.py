"""Quantisers in the loop, and the choice of their steps under the alignment rule."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from compiler.arith import alignment_shift, conv_scale
from compiler.steps import choose_steps, verify_alignment
from train.network import Architecture, Network
from train.quantiser import (
    STEP_RATE,
    Quantiser,
    learn_steps,
    observe,
    quantisers,
    settle_steps,
)


def with_step(bits: int, step: float, signed: bool = False) -> Quantiser:
    quantiser = Quantiser(bits, signed)
    quantiser.step = step
    return quantiser


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_equals_numpy(bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    x = np.random.default_rng(bits).normal(0, 3, 5000)
    expected = np.clip(np.floor(x / 0.3 + 0.5), low, low + 2**bits - 1) * 0.3
    got = with_step(bits, 0.3, signed)(torch.from_numpy(x))
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)
    assert got.min() == pytest.approx(max(expected.min(), low * 0.3))


def test_ties_go_up() -> None:
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert with_step(3, 1.0, signed=True)(x).tolist() == [-1, 0, 1, 2, 3]


@pytest.mark.parametrize(("signed", "passing"), [(False, (0, 3)), (True, (-2, 1))])
def test_gradient_is_the_clips(signed: bool, passing: tuple[int, int]) -> None:
    x = torch.linspace(-4, 4, 81, dtype=torch.float64).add(0.01).requires_grad_()
    seed = torch.arange(1.0, 82.0, dtype=torch.float64)
    with_step(2, 1.0, signed)(x).backward(seed)
    inside = (x.detach() > passing[0]) & (x.detach() < passing[1])
    assert x.grad is not None
    assert torch.equal(x.grad, seed * inside)


@pytest.mark.parametrize(("bits", "signed"), [(2, False), (4, False), (8, True)])
def test_gradient_of_a_learned_step(bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    high = low + 2**bits - 1
    x = np.random.default_rng(bits).normal(0, 3 * high, (16, 3, 5, 5))
    seed = np.random.default_rng(1).normal(size=x.shape) * 1e-5
    quantiser = with_step(bits, 1.7, signed)
    quantiser.octaves = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    step = 1.7 * 2**0.3
    given = torch.from_numpy(x).requires_grad_()
    y = quantiser(given)
    np.testing.assert_allclose(y.detach(), np.clip(np.floor(x / step + 0.5), low, high) * step)
    y.backward(torch.from_numpy(seed))
    inside = (x > low * step) & (x < high * step)
    assert given.grad is not None and quantiser.octaves.grad is not None
    np.testing.assert_allclose(given.grad, seed * inside)
    # Esser et al., equation 3, of the images 0 and 8 for all sixteen; times d step / d octaves.
    q = np.clip(np.floor(x / step + 0.5), low, high)
    change = (seed * np.where(inside, q - x / step, q))[::8].sum() * 8
    grad = STEP_RATE * change / math.sqrt(3 * 5 * 5 * max(-low, high))
    assert quantiser.octaves.grad.item() == pytest.approx(grad * step * math.log(2))


def test_learned_steps_settle_and_stay_aligned() -> None:
    torch.manual_seed(3)
    network = Network(Architecture(8, 1, 10, (1, 8, 8), activation_bits=3)).train()
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    network.steps = chosen = choose_steps(observe(network, [images], network.bounds))
    learned = learn_steps(network, network.bounds)
    assert len(learned) == 1 + len(chosen) - len(network.bounds)
    assert {id(p) for p in learned} <= {id(p) for p in network.parameters()}
    with torch.no_grad():
        for k, octaves in enumerate(learned):
            octaves.fill_(0.1 * (k + 1))
    inside = network(images)
    settle_steps(network)
    assert network.steps is not None
    assert not any(octaves.item() for octaves in learned)
    torch.testing.assert_close(network(images), inside)
    with torch.no_grad():
        torch.testing.assert_close(network(images), inside)
    verify_alignment(network.steps, network.bounds)
    moved = [math.log2(network.steps[name] / step) for name, step in chosen.items()]
    assert moved[0] == pytest.approx(0.1) and max(moved) == pytest.approx(0.1 * len(learned))


def test_a_shifted_relus_steps_are_not_learned() -> None:
    network = Network(Architecture(8, 1, 10, (1, 8, 8), batch_norm="none", activation_bits=3))
    learned = learn_steps(network, network.bounds)
    assert [name for name, q in quantisers(network).items() if q.octaves is not None] == ["input"]
    assert len(learned) == 1


def test_without_a_step_it_is_a_relu_or_nothing() -> None:
    x = torch.randn(100)
    assert torch.equal(Quantiser(4)(x), torch.relu(x))
    assert torch.equal(Quantiser(8, signed=True)(x), x)


@pytest.mark.parametrize(("bits", "zero"), [(2, 1), (3, 2), (4, 5), (8, 60)])
def test_shifted_relu_counts_from_minus_one(bits: int, zero: int) -> None:
    quantiser = Quantiser(bits, shifted=True)
    x = torch.linspace(-3, 9, 1201, dtype=torch.float64)
    assert torch.equal(quantiser(x), x.clamp(min=-1))
    quantiser.step = 1 / zero
    q = np.clip(np.floor((x.numpy() + 1) * zero + 0.5), 0, 2**bits - 1)
    np.testing.assert_allclose(quantiser(x).numpy(), q / zero - 1, rtol=0, atol=1e-12)
    assert float(quantiser(torch.zeros(1))) == 0  # what the next convolution pads with


def test_shifted_steps_are_one_over_a_whole_number() -> None:
    torch.manual_seed(0)
    network = Network(Architecture(8, 1, 10, (1, 8, 8), batch_norm="none", activation_bits=3))
    sites = observe(
        network.train(), [torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)], network.bounds
    )
    steps = choose_steps(sites)
    for name in (n for n in steps if n != "input"):
        zero = round(1 / steps[name])
        assert 1 <= zero <= 7 and steps[name] == 1 / zero
        errors = [sites[name].error(1 / z) for z in range(1, 8)]
        assert errors[zero - 1] == min(errors)


def test_best_step_of_a_gaussian() -> None:
    # The upper half of a uniform quantiser of 15 and of 31 levels with one at 0, on N(0, 1):
    # 0.3534 and 0.1933 (J. Max, "Quantizing for minimum distortion", 1960).
    probability = (torch.arange(8192, dtype=torch.float64) + 0.5) / 8192
    normal = torch.erfinv(2 * probability - 1) * math.sqrt(2)
    assert Quantiser(3).site(normal, None).free_step() == pytest.approx(0.3534, rel=0.025)
    assert Quantiser(4).site(normal, None).free_step() == pytest.approx(0.1933, rel=0.025)


@pytest.mark.parametrize(("depth", "width", "bits"), [(8, 1, 4), (14, 1.5, 2), (20, 1, 3)])
def test_alignment_holds_for_every_pair(depth: int, width: float, bits: int) -> None:
    torch.manual_seed(depth)
    network = Network(Architecture(depth, width, 10, (1, 8, 8), activation_bits=bits)).train()
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    sites = observe(network, [images], network.bounds)
    steps = choose_steps(sites)
    assert steps.keys() == sites.keys() == quantisers(network).keys()
    addends = [("input", 1, conv_scale(9))]
    addends += [
        (f"stage{s}.block{k}.relu2", s, conv_scale(9 * round(16 * width * 2 ** (s - 1))))
        for s in (1, 2, 3)
        for k in range(1, (depth - 2) // 6 + 1)
    ]
    assert {name for name, *_ in addends} == network.bounds.keys()
    for (a, stage_a, scale_a), (b, stage_b, scale_b) in combinations(addends, 2):
        unit = scale_a * steps[a] / 9.0 ** (stage_b - stage_a)
        assert alignment_shift(scale_b, steps[b], unit) is not None, (a, b)
    for name, site in sites.items():
        free = site.error(site.free_step())
        if name not in network.bounds:
            assert site.error(steps[name]) == free
        else:
            assert site.error(steps[name]) < 2.2 * free + 1e-3, name


def test_base_is_the_best_of_the_octave() -> None:
    torch.manual_seed(1)
    network = Network(Architecture(8, 1, 10, (1, 8, 8), activation_bits=3)).train()
    sites = observe(network, [torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8)], network.bounds)
    steps = choose_steps(sites)

    def total(factor: float) -> float:
        """Error on the base times ``factor``, each addend on its best power of two."""
        return sum(
            min(sites[name].error(steps[name] * factor * 2.0**j) for j in (-1, 0, 1))
            for name in network.bounds
        )

    chosen = sum(sites[name].error(steps[name]) for name in network.bounds)
    assert chosen <= min(total(2.0 ** (k / 8)) for k in range(8)) * (1 + 1e-6)


def test_observed_are_the_values_that_leave_each_relu() -> None:
    torch.manual_seed(0)
    network = Network(Architecture(8, 1, 10, (1, 8, 8), activation_bits=4)).train()
    network.steps = dict.fromkeys(quantisers(network), 0.5)
    sites = observe(network, [torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8)], network.bounds)
    assert network.steps == dict.fromkeys(quantisers(network), 0.5)
    assert not any(m._forward_hooks for m in network.modules())
    for name, site in sites.items():  # of batch norm's output: mean 0, variance 1
        if name == "input":
            assert site.values.mean() == pytest.approx(0, abs=0.15)
            assert (site.low, site.high) == (-128, 127)
        else:
            assert (site.values >= 0).all() and (site.low, site.high) == (0, 15)
        power = 1 if name == "input" else 0.5
        assert float(np.square(site.values).mean()) == pytest.approx(power, abs=0.2), name
        assert site.bound == network.bounds.get(name)


def test_free_steps_where_no_rule_binds() -> None:
    network = Network(Architecture(8, 1, 10, (1, 8, 8), weights="32bit", activation_bits=4)).train()
    sites = observe(network, [torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8)], network.bounds)
    steps = choose_steps(sites)
    assert steps == {name: site.free_step() for name, site in sites.items()}
