"""The flags of ``python -m train``, and the `Job` that they mean."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compiler.checkpoint import FAMILIES
from compiler.errors import UsageError
from train.data import AUGMENTATION
from train.network import BATCH_NORM, PADDING, WEIGHTS, Architecture
from train.recipe import (
    MANY_CLASSES,
    PRECISIONS,
    SCHEDULES,
    SHIFTED_RELU_SCORE_GAIN,
    STEPS_ARE,
    Execution,
    Job,
    Recipe,
)
from train.sources import NAMES, Source


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command takes."""
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="-vv: tracebacks")


def add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Which pictures, and where they lie."""
    parser.add_argument("--dataset", required=required, choices=NAMES)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set's files")
    parser.add_argument(
        "--workers", type=int, default=8, metavar="N", help="processes that decode ImageNet"
    )


def add_execution(parser: argparse.ArgumentParser) -> None:
    """How it is computed."""
    group = parser.add_argument_group("execution (rounding and speed alone)")
    group.add_argument(
        "--precision", default="auto", choices=("auto", *PRECISIONS), help="auto: bf16 on a GPU"
    )
    group.add_argument("--compile", action="store_true", help="by torch.compile")
    group.add_argument(
        "--contiguous", action="store_true", help="maps in NCHW order, not channels-last"
    )


def add_job(parser: argparse.ArgumentParser) -> None:
    """Network and recipe; flags left out are the paper's choice for the data set."""
    parser.add_argument("--net", required=True, metavar="DEPTH-WIDTH", help="such as 20-1")
    parser.add_argument("--epochs", type=int, required=True, help="2, 6, 14, 30, 62, 126, 254")
    network = parser.add_argument_group("network")
    network.add_argument("--weights", default="1bit", choices=WEIGHTS)
    network.add_argument(
        "--activation-bits", type=int, metavar="B", help="2 .. 8 (default: float activations)"
    )
    network.add_argument(
        "--batch-norm",
        choices=BATCH_NORM,
        help="none: shifted ReLU instead (default: fixed, learned for imagenet32 and imagenet)",
    )
    network.add_argument("--input-relu", action="store_true", help="ReLU after the input's BN")
    network.add_argument("--plain", action="store_true", help="no skips")
    network.add_argument("--padding", default="torch", choices=PADDING)
    network.add_argument(
        "--family", choices=tuple(FAMILIES), help="default: wrn-imagenet for imagenet, else wrn"
    )
    recipe = parser.add_argument_group("recipe (defaults are the paper's)")
    recipe.add_argument("--batch", type=int, default=125, help="images, of all processes together")
    recipe.add_argument("--schedule", default="restarts", choices=SCHEDULES)
    recipe.add_argument("--learning-rate", type=float, default=0.1, help="of a cycle's start")
    recipe.add_argument("--weight-decay", type=float, help="default: 5e-4, ImageNet 1e-4")
    recipe.add_argument("--first-cycle", type=int, default=2, help="epochs, then twice as many")
    recipe.add_argument(
        "--score-gain", type=float, help="in the loss (default: 1, 0.04 without batch norm)"
    )
    recipe.add_argument("--cutout", type=int, default=0, metavar="PIXELS", help="CIFAR: 18")
    recipe.add_argument("--quantise-from-epoch", type=int, default=0, metavar="E")
    recipe.add_argument(
        "--steps", default="calibrated", choices=STEPS_ARE, help="learned: moved by descent"
    )
    recipe.add_argument("--seed", type=int, default=0)
    recipe.add_argument("--init", type=Path, metavar="CKPT", help="start from these weights")


def job_of(options: argparse.Namespace, source: Source, device: torch.device) -> Job:
    """The job that flags mean for a data set; raises `UsageError` for what does not exist."""
    depth, width = net_of(options.net)
    many = source.name in MANY_CLASSES
    batch_norm: Any = options.batch_norm or ("learned" if many else "fixed")
    family: Any = options.family or ("wrn-imagenet" if source.name == "imagenet" else "wrn")
    architecture = Architecture(
        depth=depth,
        width=width,
        classes=source.classes,
        input=source.shape,
        weights=options.weights,
        batch_norm=batch_norm,
        input_relu=options.input_relu,
        skip=not options.plain,
        padding=options.padding,
        family=family,
        activation_bits=options.activation_bits,
    )
    gain = SHIFTED_RELU_SCORE_GAIN if batch_norm == "none" else 1.0
    recipe = Recipe(
        epochs=options.epochs,
        batch=options.batch,
        schedule=options.schedule,
        peak_rate=options.learning_rate,
        first_cycle=options.first_cycle,
        weight_decay=_given(options.weight_decay, 1e-4 if many else 5e-4),
        score_gain=_given(options.score_gain, gain),
        quantise_from=options.quantise_from_epoch,
        steps=options.steps,
        seed=options.seed,
        augmentation=replace(AUGMENTATION[source.name], cutout=options.cutout),
    )
    init = str(options.init or "")
    return Job(source.name, architecture, recipe, init, execution_of(options, device))


def execution_of(options: argparse.Namespace, device: torch.device) -> Execution:
    """How to compute on a device."""
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "float32"
    return Execution(precision, options.compile, not options.contiguous)


def net_of(text: str) -> tuple[int, float]:
    """``"20-4"`` is depth 20, width 4."""
    match = re.fullmatch(r"(\d+)-(\d+(?:\.\d+)?)", text)
    if match is None:
        raise UsageError(f"--net must be DEPTH-WIDTH, not {text!r}", hint="--net 20-1")
    return int(match[1]), float(match[2])


def _given(value: Any, default: float) -> float:
    return default if value is None else float(value)
