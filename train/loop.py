"""The training run, from the first batch to the checkpoint.

Everything that a run depends on is in one `Job`. The run's state lies in one file, replaced
whole after each epoch, so a killed run continues bit for bit as if it had not been.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.checkpoint import load, save
from compiler.errors import CheckpointError, UsageError
from train.data import Augmentation, Split
from train.export import checkpoint_of, network_of
from train.network import Architecture, Network
from train.quantiser import choose_steps, observe
from train.state import append_result, drop_results_after, load_state, results, save_state

CHECKPOINT = "checkpoint.pt"

CALIBRATION_BATCHES = 8
"""Batches on which the steps are chosen; each gives up to `train.quantiser.SAMPLES` values."""

MOMENTS_IMAGES = 20_000
"""Least number of images the final moments are taken over; a small set is passed several times."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained; the defaults are the paper's.

    The last batch norm gives scores of variance 1 over images and pixels, so with ten classes the
    loss cannot fall below about 0.3, and a narrow network spends itself on that. ``score_gain``
    lifts the bound; it cannot change which score is highest.
    """

    epochs: int  # passes over the training set
    batch: int = 125  # images
    peak_rate: float = 0.1  # learning rate at the start of each cycle
    final_rate: float = 1e-4  # and at its end
    first_cycle: int = 2  # epochs; each cycle is twice as long as the one before
    momentum: float = 0.9
    weight_decay: float = 5e-4  # of every parameter
    score_gain: float = 1.0  # scores are multiplied by it in the loss, and nowhere else
    quantise_from: int = 0  # epoch that chooses the steps; activations are float before it
    seed: int = 0  # of the weights, the order and the augmentation
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "first_cycle"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.quantise_from < self.epochs:
            last = self.epochs - 1
            raise UsageError(f"quantise_from must be 0 .. {last}, not {self.quantise_from}")
        if not 0 <= self.final_rate <= self.peak_rate:
            raise UsageError(f"final rate must be 0 .. {self.peak_rate:g}, not {self.final_rate:g}")


@dataclass(frozen=True, slots=True)
class Job:
    """One run: data set, network, recipe. Two equal jobs give the same weights on one machine."""

    dataset: str
    architecture: Architecture
    recipe: Recipe
    init: str = ""  # checkpoint whose weights it starts from, empty: random ones

    def described(self) -> dict[str, Any]:
        """As nested plain values, for files."""
        description: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return description


@dataclass(slots=True)
class Progress:
    """What a run tells whoever watches it; both calls may do nothing."""

    step: Callable[[float], None] = lambda _: None  # after a batch: epochs done
    epoch: Callable[[dict[str, Any]], None] = lambda _: None  # after an epoch: its results


def cycle_of(epoch: int, first_cycle: int) -> tuple[int, int]:
    """First epoch and length of the restart cycle that ``epoch`` lies in."""
    start, length = 0, first_cycle
    while epoch >= start + length:
        start, length = start + length, 2 * length
    return start, length


def learning_rate(epochs: float, recipe: Recipe) -> float:
    """Cosine with warm restarts, at a time counted in epochs."""
    start, length = cycle_of(math.floor(epochs), recipe.first_cycle)
    height = (1 + math.cos(math.pi * (epochs - start) / length)) / 2
    return recipe.final_rate + (recipe.peak_rate - recipe.final_rate) * height


def train(job: Job, data: tuple[Split, Split], out: Path, progress: Progress) -> dict[str, Any]:
    """Run or resume ``job`` in the folder ``out``; returns the last epoch's results.

    Leaves ``checkpoint.pt`` (written at the end of each cycle too), ``results.jsonl`` with a line
    an epoch, and ``state.pt``. Raises `UsageError` where ``out`` holds another job's state.
    """
    recipe, (training, test) = job.recipe, data
    network = _fresh_network(job).to(training.images.device)
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=recipe.peak_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    generator = torch.Generator(training.images.device).manual_seed(recipe.seed)
    first = _resume(out, job, network, optimiser, generator)
    if first >= recipe.epochs:
        return results(out)[-1]
    for epoch in range(first, recipe.epochs):
        began = time.monotonic()
        if job.architecture.activation_bits is not None and epoch == recipe.quantise_from:
            calibrate(network, training, recipe)
        record = {"epoch": epoch + 1, "learning_rate": learning_rate(epoch, recipe)}
        record |= _train_epoch(epoch, network, optimiser, training, recipe, generator, progress)
        record["test_accuracy"] = accuracy(network, test)
        start, length = cycle_of(epoch, recipe.first_cycle)
        if epoch + 1 in (start + length, recipe.epochs):
            record["deployed_accuracy"] = deploy(job, network, data, out / CHECKPOINT, record)
        record["seconds"] = round(time.monotonic() - began, 2)
        append_result(out, record)
        save_state(out, job.described(), epoch + 1, _values(network, optimiser, generator))
        progress.epoch(record)
    return record


def deploy(
    job: Job, network: Network, data: tuple[Split, Split], path: Path, record: dict[str, Any]
) -> float:
    """Write the checkpoint of a copy with recomputed moments; returns its test accuracy."""
    training, test = data
    copied = copy.deepcopy(network)
    generator = torch.Generator(training.images.device).manual_seed(job.recipe.seed)
    recompute_moments(copied, _augmented(training, job.recipe, generator))
    result = accuracy(copied, test)
    about = {
        "dataset": job.dataset,
        "epochs": record["epoch"],
        "seed": job.recipe.seed,
        "test_images": len(test),
        "test_accuracy": result,
        "recipe": job.described()["recipe"],
        "init": job.init,
    }
    save(path, checkpoint_of(copied, about))
    return result


def calibrate(network: Network, training: Split, recipe: Recipe) -> None:
    """Choose the steps on a few augmented training batches, with each batch's own moments."""
    generator = torch.Generator(training.images.device).manual_seed(recipe.seed)
    batches = islice(_augmented(training, recipe, generator), CALIBRATION_BATCHES)
    network.train()
    network.steps = choose_steps(observe(network, batches), network.addends)


@torch.no_grad()
def recompute_moments(network: Network, batches: Iterable[Tensor]) -> None:
    """Set each batch norm's moments to the average over the batches of each batch's moments.

    Variances are the unbiased ones of a batch. Quantisers stay on, so the moments are those that
    the quantised network sees. Leaves the network in evaluation mode.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for the plain average of all batches
    network.train()
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


@torch.no_grad()
def accuracy(network: Network, split: Split) -> float:
    """Fraction of images whose highest score is their label's, with the running moments."""
    network.eval()
    correct = [(network(images).argmax(1) == labels).sum() for images, labels in split.batches()]
    return int(sum(correct)) / len(split)


def _train_epoch(
    epoch: int,
    network: Network,
    optimiser: torch.optim.Optimizer,
    training: Split,
    recipe: Recipe,
    generator: torch.Generator,
    progress: Progress,
) -> dict[str, float]:
    """One pass; returns mean loss and accuracy on the augmented batches, as they went by."""
    network.train()
    device = training.images.device
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    seen, steps = 0, max(1, len(training) // recipe.batch)
    batches = training.training_batches(recipe.batch, recipe.augmentation, generator)
    for step, (images, labels) in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(epoch + step / steps, recipe)
        scores = network(images)
        loss = F.cross_entropy(scores * recipe.score_gain, labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        seen += len(labels)
        loss_sum += loss.detach() * len(labels)
        correct += (scores.detach().argmax(1) == labels).sum()
        progress.step(epoch + (step + 1) / steps)
    return {"train_loss": float(loss_sum) / seen, "train_accuracy": float(correct) / seen}


def _augmented(training: Split, recipe: Recipe, generator: torch.Generator) -> Iterator[Tensor]:
    """Augmented batches of whole epochs, at least `MOMENTS_IMAGES` images."""
    for _ in range(math.ceil(MOMENTS_IMAGES / len(training))):
        for images, _ in training.training_batches(recipe.batch, recipe.augmentation, generator):
            yield images


def _fresh_network(job: Job) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(job.recipe.seed)
        network = Network(job.architecture)
    if job.init:
        given = network_of(load(Path(job.init))).state_dict()
        wanted = {name: value.shape for name, value in network.state_dict().items()}
        if {name: value.shape for name, value in given.items()} != wanted:
            raise CheckpointError(f"{job.init} must have the layers of the network to be trained")
        network.load_state_dict(given)
    return network


def _values(
    network: Network, optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    """All that the next epoch depends on besides the job; `_resume` is the inverse."""
    return {
        "network": network.state_dict(),
        "steps": network.steps,
        "optimiser": optimiser.state_dict(),
        "generator": generator.get_state(),
    }


def _resume(
    out: Path,
    job: Job,
    network: Network,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Take up the state in ``out`` if there is one; returns the epoch to go on with."""
    out.mkdir(parents=True, exist_ok=True)
    state = load_state(out, job.described())
    first: int = 0 if state is None else state["epoch"]
    if state is not None:
        network.load_state_dict(state["network"])
        network.steps = state["steps"]
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
    drop_results_after(out, first)
    return first
