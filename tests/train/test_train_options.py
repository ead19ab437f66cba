"""The flags of the command line, and the job that they mean for each data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.errors import UsageError
from tests.train.test_train_folders import CPU, generator, small
from train.__main__ import COMMANDS, main
from train.data import Augmentation, Share, Split
from train.export import read_network
from train.loop import Progress, crops_accuracy, train
from train.network import Architecture
from train.options import execution_of, job_of
from train.recipe import Execution, Job, Recipe
from train.sources import NAMES, Source, open_source

NOTHING = Split(torch.zeros(0, 1, 1, 1), torch.zeros(0))


def source(name: str = "cifar10", shape: Any = (3, 32, 32), classes: int = 10) -> Source:
    return Source(name, shape, classes, NOTHING, NOTHING)


def parsed(*flags: str) -> argparse.Namespace:
    needed = ["--dataset", "cifar10", "--net", "20-4", "--epochs", "62", "--out", "x"]
    return COMMANDS[""].parser().parse_args([*needed, *flags])


def job(*flags: str, of: Source | None = None) -> Job:
    return job_of(parsed(*flags), of or source(), CPU)


def test_defaults_are_the_papers_on_cifar() -> None:
    found = job()
    assert found.architecture == Architecture(20, 4, 10, (3, 32, 32))
    assert found.recipe == Recipe(62, augmentation=Augmentation(flip=True, pad=4))
    assert (found.recipe.batch, found.recipe.peak_rate, found.recipe.final_rate) == (125, 0.1, 1e-4)
    assert (found.recipe.momentum, found.recipe.weight_decay) == (0.9, 5e-4)
    assert found.execution == Execution() and found.init == ""


def test_defaults_are_the_papers_on_imagenet() -> None:
    small_ = job(of=source("imagenet32", classes=1000))
    assert small_.architecture.batch_norm == "learned" and small_.recipe.weight_decay == 1e-4
    assert small_.architecture.family == "wrn"
    large = job("--net", "18-2.5", of=source("imagenet", (3, 224, 224), 1000))
    assert large.architecture.family == "wrn-imagenet" and large.architecture.stages == 4
    assert large.architecture.batch_norm == "learned" and large.recipe.weight_decay == 1e-4
    assert large.recipe.augmentation.scale == (256, 480)
    fixed = job("--batch-norm", "fixed", of=source("imagenet32", classes=1000))
    assert fixed.architecture.batch_norm == "fixed"


@pytest.mark.parametrize(
    ("flags", "level", "field", "value"),
    [
        ("--weights 32bit", "architecture", "weights", "32bit"),
        ("--weights bwn-channel", "architecture", "weights", "bwn-channel"),
        ("--weights bwn-layer", "architecture", "weights", "bwn-layer"),
        ("--activation-bits 3", "architecture", "activation_bits", 3),
        ("--batch-norm learned", "architecture", "batch_norm", "learned"),
        ("--batch-norm none", "architecture", "batch_norm", "none"),
        ("--batch-norm none", "recipe", "score_gain", 0.04),
        ("--batch-norm none --score-gain 2", "recipe", "score_gain", 2.0),
        ("--input-relu", "architecture", "input_relu", True),
        ("--plain", "architecture", "skip", False),
        ("--padding keras", "architecture", "padding", "keras"),
        ("--schedule steps", "recipe", "schedule", "steps"),
        ("--cutout 18", "recipe", "augmentation", Augmentation(flip=True, pad=4, cutout=18)),
        ("--weight-decay 0", "recipe", "weight_decay", 0.0),
        ("--quantise-from-epoch 6", "recipe", "quantise_from", 6),
        ("--seed 9", "recipe", "seed", 9),
        ("--first-cycle 4", "recipe", "first_cycle", 4),
        ("--precision bf16", "execution", "precision", "bf16"),
        ("--compile", "execution", "compile", True),
        ("--contiguous", "execution", "channels_last", False),
    ],
)
def test_every_line_of_the_paper_has_a_flag(
    flags: str, level: str, field: str, value: object
) -> None:
    assert getattr(getattr(job(), level), field) != value
    assert getattr(getattr(job(*flags.split()), level), field) == value


def test_a_gpu_computes_in_bf16_unless_told() -> None:
    assert execution_of(parsed(), torch.device("cuda")).precision == "bf16"
    assert execution_of(parsed("--precision", "float32"), torch.device("cuda")) == Execution()
    assert execution_of(parsed(), CPU).precision == "float32"


def test_sources() -> None:
    assert set(NAMES) == {
        "digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "svhn-core",
        "imagenet32", "imagenet",
    }  # fmt: skip
    digits = open_source("digits", None, CPU)
    assert (digits.shape, digits.classes, len(digits.test)) == ((1, 8, 8), 10, 360)
    with pytest.raises(UsageError, match="'imagenet' needs a folder"):
        open_source("imagenet", None, CPU)


@pytest.mark.parametrize("command", ["evaluate", "reproduce", "benchmark"])
def test_help_names_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert command in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"python -m train {command}" in capsys.readouterr().out


def test_crops_are_for_imagenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset", "digits", "--net", "8-0.25", "--epochs", "1", "--out", str(tmp_path)]
    assert main([*flags, "--device", "cpu"]) == 0
    capsys.readouterr()
    checkpoint = str(tmp_path / "checkpoint.pt")
    assert main(["evaluate", checkpoint, "--dataset", "digits", "--crops", "25"]) == 2
    assert "--crops 25 is for imagenet, not 'digits'" in capsys.readouterr().err


def test_imagenets_form_trains_on_its_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One epoch of the whole way: files, scale, crop, flip, network, single and 25 crops."""
    monkeypatch.setattr("train.loop.MOMENTS_IMAGES", 5)
    training, test = small(folder, side=32)
    architecture = Architecture(
        10, 0.0625, 12, (3, 32, 32), batch_norm="learned", family="wrn-imagenet"
    )
    augmentation = Augmentation(flip=True, scale=(34, 40))
    given = Job("imagenet", architecture, Recipe(2, batch=5, augmentation=augmentation))
    out = tmp_path / "run"
    last = train(given, (training, test), out, Progress())
    assert 0 <= last["deployed_accuracy"] <= last["deployed_top5_accuracy"] <= 1
    network = read_network(out / "checkpoint.pt")
    found = crops_accuracy(network, test)
    assert 0 <= found["accuracy"] <= found["top5_accuracy"] <= 1
    shown = [x for x, _ in training.training_batches(4, augmentation, generator(), Share(1, 2))]
    assert shown[0].shape == (2, 3, 32, 32)
