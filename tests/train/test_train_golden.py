"""The trained network in PyTorch against the integer one: the same q in every layer.

The PyTorch network in evaluation mode, in float64, never sees the golden model: its quantisers are
`train.quantiser`'s. It is told one thing that lowering chose: the units that pools round to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler import checkpoint, datasets, golden, graph
from compiler.accuracy import ENGINE, program_of
from compiler.lower import rounded
from compiler.program import Pool, Program
from tests.conftest import ROOT
from tests.train.test_train_export import trained
from train.data import splits
from train.export import checkpoint_of, network_of
from train.loop import accuracy
from train.network import Block, Network
from train.quantiser import quantisers

ZOO = ROOT / "train" / "zoo"
CHUNK = 500

EXACTLY = replace(ENGINE, residual_bits=16)
"""An engine whose residual stream rounds no addend of these networks."""


def in_hardware_units(network: Network, program: Program) -> Network:
    """The network in float64, its pools rounded as the program's are."""
    units = {op.output: program[op.output].step for op in program.ops if isinstance(op, Pool)}
    for name, block in network.named_modules():
        if isinstance(block, Block) and block.stride == 2 and block.architecture.skip:
            block.pool_unit = units[f"{name}.pool"]
    return network.double().eval()


def levels(network: Network, images: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The q of every quantiser, as docs/checkpoint.md counts them, and the scores."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, step: float) -> Any:
        return lambda m, i, o: found.update({name: np.rint(o.numpy() / step).astype(np.int64)})

    steps = network.steps
    assert steps is not None
    hooks = [
        q.register_forward_hook(keep(name, steps[name])) for name, q in quantisers(network).items()
    ]
    with torch.no_grad():
        scores = network(torch.from_numpy(images.copy())).numpy()
    for hook in hooks:
        hook.remove()
    return found, scores


def compare(source: checkpoint.Checkpoint, images: np.ndarray) -> tuple[int, int, float]:
    """Values that differ, values there are, and how far the scores are from agreeing on a class.

    That is the most that the class golden chose is below the best in float, in units of golden's
    scores: they are rounded to 16 bits, so where the best two are nearer than one unit either may
    win, and nothing else may.
    """
    program = program_of(graph.build(source), engine=EXACTLY)
    network = in_hardware_units(network_of(source), program)
    different, values, margin = 0, 0, 0.0
    for first in range(0, len(images), CHUNK):
        part = images[first : first + CHUNK]
        found, scores = levels(network, part)
        names = {name: "input.q" if name == "input" else name for name in found}
        answer = golden.run(program, part, names.values())
        assert not any(answer.saturations.values())
        for name, tensor in names.items():
            q = answer.tensors[tensor] - program[tensor].zero
            different += int((q != found[name]).sum())
            values += q.size
        chosen = np.take_along_axis(scores, answer.classes[:, None], axis=1)[:, 0]
        margin = max(margin, float((scores.max(axis=1) - chosen).max() / program.scores.step))
    return different, values, margin


def test_digits_all_of_them() -> None:
    """Every activation of all 360 test images, and every answer."""
    source = checkpoint.load(ZOO / "digits-wrn8-1-a4.pt")
    images = datasets.read_digits().test_images
    different, values, margin = compare(source, images)
    assert different == 0 and margin == 0
    pixels = (
        64 * 1 + 2 * 64 * 16 + 64 * 16 + 2 * 16 * 32 + 2 * 4 * 64
    )  # input, stages 1, 2, 3, head
    assert values == 360 * pixels


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset", "images"),
    [("mnist-wrn8-1-a4", "mnist", 2000), ("cifar10-wrn20-1-a4", "cifar10", 500)],
)
def test_image_sets(name: str, dataset: str, images: int, data_folder: Path) -> None:
    source = checkpoint.load(ZOO / f"{name}.pt")
    pictures = datasets.load(dataset, data_folder).test_images[:images]
    different, _, margin = compare(source, pictures)
    assert different == 0 and margin < 1


@pytest.mark.data
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["mnist-wrn8-1-a4", "cifar10-wrn20-1-a4"])
def test_whole_test_sets(name: str, data_folder: Path) -> None:
    """The accuracies are one number: golden's, and that of the network as it was trained."""
    source = checkpoint.load(ZOO / f"{name}.pt")
    data = datasets.load(name.partition("-")[0], data_folder)
    program = program_of(graph.build(source), engine=EXACTLY)
    network = in_hardware_units(network_of(source), program)
    right = sum(
        int((golden.run(program, data.test_images[i : i + CHUNK]).classes == labels).sum())
        for i in range(0, len(data.test_images), CHUNK)
        for labels in [data.test_labels[i : i + CHUNK]]
    )
    _, test = splits(data, torch.device("cpu"))
    images = round(accuracy(network, test)["accuracy"] * len(test))
    assert abs(images - right) <= 1  # the one whose best two scores are equal in 16 bits


def random_case(changes: dict[str, Any]) -> tuple[checkpoint.Checkpoint, np.ndarray]:
    """A network of random weights, and 40 pictures of noise."""
    network = trained(**changes)
    shape = (40, *network.architecture.input)
    images = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    return checkpoint_of(network, {}), images


EXACT = [
    {"activation_bits": 2},
    {"activation_bits": 3, "padding": "matlab"},
    {"padding": "keras", "size": (7, 6)},
    {"input_relu": True},
    {"depth": 14, "width": 1},
    {"batch_norm": "none", "weights": "bwn-channel", "skip": False},
]
"""Aligned forms whose streams fit 16 bits without rounding."""

ROUNDED = [
    {"activation_bits": 8},
    {"skip": False},
    {"weights": "bwn-channel"},
    {"weights": "bwn-layer"},
    {"batch_norm": "learned"},
    {"batch_norm": "none", "weights": "bwn-layer"},
    {"family": "wrn-imagenet", "depth": 10, "width": 1 / 16, "size": (32, 30)},
    {
        "family": "wrn-imagenet",
        "depth": 10,
        "width": 1 / 16,
        "size": (32, 30),
        "weights": "bwn-channel",
        "batch_norm": "learned",
    },
]
"""Forms in which lowering rounds what training does not: addends, divisors, narrow staircases."""


@pytest.mark.parametrize("changes", EXACT, ids=str)
def test_aligned_forms_are_exact(changes: dict[str, Any]) -> None:
    different, values, margin = compare(*random_case(changes))
    assert different == 0 and margin < 1 and values > 10_000


@pytest.mark.parametrize("changes", EXACT + ROUNDED, ids=str)
def test_every_form_has_the_activations_of_the_compilers_graph(changes: dict[str, Any]) -> None:
    source, images = random_case(changes)
    float_graph = graph.build(source)
    program = program_of(float_graph, engine=EXACTLY)
    network = in_hardware_units(network_of(source), program)
    found, _ = levels(network, images)
    names = {name: "input.q" if name == "input" else name for name in found}
    values = graph.run(rounded(float_graph, program), images, True, names.values())
    assert network.steps is not None
    for name, node in names.items():
        assert np.array_equal(np.rint(values[node] / network.steps[name]), found[name]), name


IMAGENET = {"family": "wrn-imagenet", "depth": 10, "width": 1 / 16, "size": (32, 30)}


@pytest.mark.parametrize(
    "changes", [IMAGENET, IMAGENET | {"batch_norm": "none"}, IMAGENET | {"skip": False}], ids=str
)
def test_a_stream_starts_with_the_stems_activations(changes: dict[str, Any]) -> None:
    """Exactly: less their zero, and in a unit that is their step times a power of two."""
    source, images = random_case(changes)
    float_graph = graph.build(source)
    program = program_of(float_graph, engine=EXACTLY)
    got = golden.run(program, images, ["stem", "stem.r"]).tensors
    zero = program["stem"].zero
    assert (zero > 0) == (source.network.batch_norm == "none") and got["stem"].max() > zero
    shift = np.log2(program["stem"].step / program["stem.r"].step)
    assert shift == round(shift) >= 0
    assert (got["stem.r"] == (got["stem"] - zero) << round(shift)).all()
    want = graph.run(float_graph, images, names=["stem"])["stem"]
    np.testing.assert_allclose(got["stem.r"] * program["stem.r"].step, want, atol=1e-9)


def test_steps_of_shifted_relus_are_chosen_as_parts_of_one() -> None:
    """By the compiler, of a network with float activations; -1 is then the integer 0."""
    source, images = random_case({"batch_norm": "none", "activation_bits": None})
    float_graph = graph.build(source)
    program = program_of(float_graph, 4, images)
    zeros = {t.name: t.zero for t in program.tensors if t.kind == "activation"}
    assert all(zero * program[name].step == pytest.approx(1) for name, zero in zeros.items()
               if name != "input.q")  # fmt: skip
    assert min(zeros.values()) >= 1
    answers = golden.run(program, images)
    wanted = graph.scores(float_graph, images, quantised=False)
    found = answers.scores * program.scores.step
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.8
