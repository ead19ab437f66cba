"""The training run, from the first batch to the checkpoint.

Everything that a run depends on is in one `Job`. The run's state lies in one file, replaced
whole after each epoch, so a killed run continues bit for bit as if it had not been.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.checkpoint import save
from compiler.errors import CheckpointError
from compiler.steps import choose_steps
from train.data import WHOLE, Part, Share
from train.export import checkpoint_of, read_network
from train.folders import FolderSplit
from train.network import Network
from train.quantiser import STEP_REACH, learn_steps, observe, settle_steps
from train.recipe import Job, Recipe, ends_cycle, learning_rate
from train.record import record_session
from train.state import append_result, drop_results_after, load_state, results, save_state
from train.team import Team

CHECKPOINT = "checkpoint.pt"

CALIBRATION_BATCHES = 8
"""Batches on which the steps are chosen; each gives up to `train.quantiser.SAMPLES` values."""

MOMENTS_IMAGES = 20_000
"""Least number of images the final moments are taken over; a small set is passed several times."""

ALONE = Team(torch.device("cpu"))


@dataclass(slots=True)
class Progress:
    """What a run tells whoever watches it; both calls may do nothing."""

    step: Callable[[float], None] = lambda _: None  # after a batch: epochs done
    epoch: Callable[[dict[str, Any]], None] = lambda _: None  # after an epoch: its results


def train(
    job: Job,
    data: tuple[Part, Part],
    out: Path,
    progress: Progress,
    team: Team = ALONE,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Run or resume ``job`` in the folder ``out``; returns the last epoch's results.

    Leaves ``checkpoint.pt`` (written at the end of each cycle too), ``results.jsonl`` with a line
    an epoch, ``run.json`` with job, code and machine, and ``state.pt``.

    Parameters
    ----------
    data : (training, test)
        On the team's device.
    seconds : float
        No epoch is begun that would end later, going by the one before; the same call takes it up
        again. The first epoch of a session is always run, so that every session gets on.

    Raises
    ------
    UsageError
        ``out`` holds another job's state; the batch cannot be shared out among the team.
    """
    recipe, (training, test) = job.recipe, data
    team.share.of(min(recipe.batch, len(training)))
    runner = Runner(job, team)
    first = runner.resume(out)
    record = results(out)[-1] if first else {}
    if first < recipe.epochs and team.leads:
        record_session(out, job, first, team.device, team.share.count)
    started = time.monotonic()
    for epoch in range(first, recipe.epochs):
        spent = time.monotonic() - started
        if epoch > first and team.any(spent + record["seconds"] > seconds):
            break
        began = time.monotonic()
        if job.architecture.activation_bits is not None and epoch == recipe.quantise_from:
            calibrate(runner.network, training, recipe)
            runner.quantise()
        record = {"epoch": epoch + 1, "learning_rate": learning_rate(epoch, recipe)}
        record |= runner.train_epoch(epoch, training, progress)
        record |= _named("test", accuracy(runner.network, test, team))
        if ends_cycle(epoch + 1, recipe):
            record |= _named("deployed", deploy(job, runner.network, data, out, record, team))
        record["seconds"] = round(time.monotonic() - began, 2)
        if team.leads:
            append_result(out, record)
            save_state(out, job.described(), epoch + 1, runner.values())
        progress.epoch(record)
    team.wait()  # until the leader has written what the others may read
    return record


class Runner:
    """A network, its optimiser and the random numbers to come: all that an epoch changes."""

    def __init__(self, job: Job, team: Team) -> None:
        self.job, self.team, self.recipe = job, team, job.recipe
        self.network = _fresh_network(job).to(team.device)
        self.optimiser = torch.optim.SGD(
            self.network.parameters(),
            lr=job.recipe.peak_rate,
            momentum=job.recipe.momentum,
            weight_decay=job.recipe.weight_decay,
        )
        self.generator = torch.Generator(team.device).manual_seed(job.recipe.seed)
        self._octaves: list[nn.Parameter] = []  # of learned steps
        self._wrap()

    def quantise(self) -> None:
        """Learn the steps that the network has from now on, where the recipe says so."""
        if self.recipe.steps == "learned":
            self._octaves = learn_steps(self.network, self.network.bounds)
            if self._octaves:
                self.optimiser.add_param_group({"params": self._octaves, "weight_decay": 0.0})
                self._wrap()

    def _wrap(self) -> None:
        """The network as steps of descent call it; anew whenever it has got parameters."""
        self._forward = self.team.wrap(self.network)
        if self.job.execution.compile:
            self._forward = torch.compile(self._forward, dynamic=False)  # type: ignore[assignment]

    def train_epoch(self, epoch: int, training: Part, progress: Progress) -> dict[str, float]:
        """One pass; returns mean loss and accuracy on the augmented batches, as they went by."""
        recipe, team = self.recipe, self.team
        self.network.train()
        sums = torch.zeros(3, dtype=torch.float64, device=team.device)  # loss, right, images
        steps = max(1, len(training) // recipe.batch)
        batches = training.training_batches(
            recipe.batch, recipe.augmentation, self.generator, team.share
        )
        for step, (images, labels) in enumerate(batches):
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(epoch + step / steps, recipe)
            loss, right = self.step(images, labels)
            sums += torch.stack((loss * len(labels), right, torch.full_like(loss, len(labels))))
            progress.step(epoch + (step + 1) / steps)
        settle_steps(self.network)
        team.sum(sums)
        team.average(_moments(self.network))
        loss_sum, correct, seen = sums.tolist()
        return {"train_loss": loss_sum / seen, "train_accuracy": correct / seen}

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of descent on this process's share; its mean loss and right answers."""
        bf16 = self.job.execution.precision == "bf16"
        with torch.autocast(self.team.device.type, torch.bfloat16, enabled=bf16):
            scores = self._forward(images)
        if bf16:
            scores = scores.float()
        loss = F.cross_entropy(scores * self.recipe.score_gain, labels)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for octaves in self._octaves:  # averaged over the processes by now
            if octaves.grad is not None:
                octaves.grad.clamp_(-STEP_REACH, STEP_REACH)
        self.optimiser.step()
        return loss.detach(), (scores.detach().argmax(1) == labels).sum()

    def values(self) -> dict[str, Any]:
        """All that the next epoch depends on besides the job; `resume` is the inverse."""
        return {
            "network": self.network.state_dict(),
            "steps": self.network.steps,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }

    def resume(self, out: Path) -> int:
        """Take up the state in ``out`` if there is one; returns the epoch to go on with."""
        out.mkdir(parents=True, exist_ok=True)
        state = load_state(out, self.job.described())
        first: int = 0 if state is None else state["epoch"]
        if state is not None:
            self.network.steps = state["steps"]
            if state["steps"] is not None:
                self.quantise()
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.generator.set_state(state["generator"])
        if self.team.leads:
            drop_results_after(out, first)
        self.team.wait()
        return first


def deploy(
    job: Job,
    network: Network,
    data: tuple[Part, Part],
    out: Path,
    record: dict[str, Any],
    team: Team = ALONE,
) -> dict[str, float]:
    """Write the checkpoint of a copy with recomputed moments; returns its test accuracies."""
    training, test = data
    copied = copy.deepcopy(network)
    generator = torch.Generator(training.device).manual_seed(job.recipe.seed)
    recompute_moments(copied, _augmented(training, job.recipe, generator, team.share), team)
    result = accuracy(copied, test, team)
    about = {
        "dataset": job.dataset,
        "epochs": record["epoch"],
        "seed": job.recipe.seed,
        "test_images": len(test),
        "test_accuracy": result["accuracy"],
        "recipe": job.described()["recipe"],
        "init": job.init,
    }
    if team.leads:
        save(out / CHECKPOINT, checkpoint_of(copied, about))
    return result


def calibrate(network: Network, training: Part, recipe: Recipe) -> None:
    """Choose the steps on a few augmented training batches, with each batch's own moments.

    Every process of a team does the same on the same whole batches.
    """
    generator = torch.Generator(training.device).manual_seed(recipe.seed)
    batches = islice(_augmented(training, recipe, generator), CALIBRATION_BATCHES)
    network.train()
    network.steps = choose_steps(observe(network, batches, network.bounds))


@torch.no_grad()
def recompute_moments(network: Network, batches: Iterable[Tensor], team: Team = ALONE) -> None:
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
    team.average(_moments(network))
    network.eval()


@torch.no_grad()
def accuracy(network: Network, part: Part, team: Team = ALONE) -> dict[str, float]:
    """Shares of the images, with the running moments, float32.

    ``accuracy``: the highest score is the label's. ``top5_accuracy``, where there are more than
    ten classes: the label's score is among the five highest.
    """
    network.eval()
    places = 5 if network.architecture.classes > 10 else 1
    right = torch.zeros(places, dtype=torch.int64, device=team.device)
    for images, labels in part.batches(share=team.share):
        right += _places(network(images), labels, places)
    shares = _shares(right, part, team)
    return {"accuracy": shares[0]} | ({"top5_accuracy": shares[4]} if places == 5 else {})


@torch.no_grad()
def crops_accuracy(network: Network, part: FolderSplit, team: Team = ALONE) -> dict[str, float]:
    """As `accuracy`, by the mean of the softmax over each image's 25 crops."""
    network.eval()
    right = torch.zeros(5, dtype=torch.int64, device=team.device)
    for crops, labels in part.crops(share=team.share):
        chances = network(crops.flatten(0, 1)).softmax(1).unflatten(0, crops.shape[:2]).mean(1)
        right += _places(chances, labels, 5)
    shares = _shares(right, part, team)
    return {"accuracy": shares[0], "top5_accuracy": shares[4]}


def _places(scores: Tensor, labels: Tensor, places: int) -> Tensor:
    """How many labels have the highest score, the second highest ...; of equal ones the lowest
    class is first, as in the golden model."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :places]
    return (order == labels[:, None]).sum(0)


def _shares(right: Tensor, part: Part, team: Team) -> list[float]:
    """From the counts of `_places`, all processes together: the share within the first places."""
    return [count / len(part) for count in team.sum(right).cumsum(0).tolist()]


def _augmented(
    training: Part, recipe: Recipe, generator: torch.Generator, share: Share = WHOLE
) -> Iterator[Tensor]:
    """Augmented batches of whole epochs, at least `MOMENTS_IMAGES` images."""
    for _ in range(math.ceil(MOMENTS_IMAGES / len(training))):
        batches = training.training_batches(recipe.batch, recipe.augmentation, generator, share)
        for images, _ in batches:
            yield images


def _fresh_network(job: Job) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(job.recipe.seed)
        network = Network(job.architecture, job.execution.channels_last)
    if job.init:
        given = read_network(Path(job.init)).state_dict()
        wanted = {name: value.shape for name, value in network.state_dict().items()}
        if {name: value.shape for name, value in given.items()} != wanted:
            raise CheckpointError(f"{job.init} must have the layers of the network to be trained")
        network.load_state_dict(given)
    return network


def _moments(network: nn.Module) -> list[Tensor]:
    """The running moments of all batch norms."""
    norms = (m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    found = (moment for norm in norms for moment in (norm.running_mean, norm.running_var))
    return [moment for moment in found if moment is not None]


def _named(prefix: str, results: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in results.items()}
