"""The command line of the trainer: ``python -m train`` and ``python -m train evaluate``."""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from compiler import datasets
from compiler.checkpoint import load
from compiler.errors import SignumError, UsageError
from train.data import AUGMENTATION, splits
from train.export import network_of
from train.loop import CHECKPOINT, Job, Progress, Recipe, accuracy, cycle_of, train
from train.network import BATCH_NORM, PADDING, WEIGHTS, Architecture

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    evaluating = given[:1] == ["evaluate"]
    options = (_evaluate_parser() if evaluating else _train_parser()).parse_args(
        given[1:] if evaluating else given
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if options.threads:
            torch.set_num_threads(options.threads)
        if evaluating:
            evaluate_command(options)
        else:
            train_command(options, console)
    except SignumError as error:
        if options.verbose >= 2:
            traceback.print_exc()
        console.print(error.report(), markup=False)
        return error.exit_code
    except OSError as error:  # a full disk, a folder that may not be written
        if options.verbose >= 2:
            traceback.print_exc()
        console.print(f"error: {error}", markup=False)
        return SignumError.exit_code
    except KeyboardInterrupt:
        if options.verbose >= 2:
            traceback.print_exc()
        again = "" if evaluating else "; the same command resumes after the last whole epoch"
        console.print(f"interrupted{again}", markup=False)
        return INTERRUPTED
    return 0


def train_command(options: argparse.Namespace, console: Console) -> None:
    """Train or resume, with a bar on a terminal and a line an epoch everywhere."""
    dataset = datasets.load(options.dataset, options.data)
    job = _job(options, dataset)
    _announce(job, options.out, console)
    data = splits(dataset, _device(options.device))
    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Bars(*columns, console=console) as bars:
        task = bars.add_task("epochs", total=job.recipe.epochs)
        progress = Progress(
            step=lambda epochs: bars.update(task, completed=epochs),
            epoch=lambda record: console.print(_line(record), markup=False),
        )
        last = train(job, data, options.out, progress)
    print(json.dumps({"checkpoint": str(options.out / CHECKPOINT), **last}))


def evaluate_command(options: argparse.Namespace) -> None:
    """Print the float accuracy of a checkpoint (fake-quantised where it has steps)."""
    network = network_of(load(options.checkpoint))
    dataset = datasets.load(options.dataset, options.data)
    if network.architecture.input != dataset.image_shape:
        raise UsageError(
            f"network takes images of {network.architecture.input}, but data set "
            f"{dataset.name!r} has {dataset.image_shape}"
        )
    device = _device(options.device)
    _, test = splits(dataset, device)
    result = accuracy(network.to(device), test)
    print(json.dumps({"accuracy": {"images": len(test), "float": result}}))


def _job(options: argparse.Namespace, dataset: datasets.Dataset) -> Job:
    depth, width = _net(options.net)
    architecture = Architecture(
        depth=depth,
        width=width,
        classes=len(dataset.class_names),
        input=dataset.image_shape,
        weights=options.weights,
        batch_norm=options.batch_norm,
        input_relu=options.input_relu,
        skip=not options.plain,
        padding=options.padding,
        activation_bits=options.activation_bits,
    )
    augmentation = AUGMENTATION[dataset.name]
    recipe = Recipe(
        epochs=options.epochs,
        batch=options.batch,
        peak_rate=options.learning_rate,
        first_cycle=options.first_cycle,
        weight_decay=options.weight_decay,
        score_gain=options.score_gain,
        quantise_from=options.quantise_from_epoch,
        seed=options.seed,
        augmentation=replace(augmentation, cutout=options.cutout),
    )
    return Job(dataset.name, architecture, recipe, str(options.init or ""))


def _net(text: str) -> tuple[int, float]:
    """``"20-4"`` is depth 20, width 4."""
    match = re.fullmatch(r"(\d+)-(\d+(?:\.\d+)?)", text)
    if match is None:
        raise UsageError(f"--net must be DEPTH-WIDTH, not {text!r}", hint="--net 20-1")
    return int(match[1]), float(match[2])


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a GPU that PyTorch can use", hint="--device cpu")
    return torch.device(name)


def _announce(job: Job, out: Path, console: Console) -> None:
    net, recipe = job.architecture, job.recipe
    bits = "float" if net.activation_bits is None else f"{net.activation_bits}-bit"
    console.print(
        f"{job.dataset}: WRN {net.depth}-{net.width:g}, {net.num_weights:,} weights of "
        f"{net.weights}, {bits} activations, {recipe.epochs} epochs into {out}",
        markup=False,
    )
    start, length = cycle_of(recipe.epochs - 1, recipe.first_cycle)
    if start + length != recipe.epochs:
        console.print(
            f"note: {recipe.epochs} epochs stop in mid-cycle; cycles end after {start} and "
            f"{start + length}",
            markup=False,
        )


def _line(record: dict[str, Any]) -> str:
    text = (
        f"epoch {record['epoch']:3d}  loss {record['train_loss']:.4f}  "
        f"train {record['train_accuracy']:.2%}  test {record['test_accuracy']:.2%}  "
        f"{record['seconds']:.1f} s"
    )
    if "deployed_accuracy" in record:
        text += f"  checkpoint: {record['deployed_accuracy']:.2%}"
    return text


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    """What both commands take."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--dataset", required=True, choices=datasets.NAMES)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set's files")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="-vv: tracebacks")
    return parser


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = _parser("python -m train evaluate", "Float accuracy of a checkpoint, as JSON.")
    parser.add_argument("checkpoint", type=Path)
    return parser


def _train_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "python -m train",
        "Train a wide residual network; the same command again resumes it. "
        "'python -m train evaluate --help' for the other command.",
    )
    parser.add_argument("--net", required=True, metavar="DEPTH-WIDTH", help="such as 20-1")
    parser.add_argument("--epochs", type=int, required=True, help="2, 6, 14, 30, 62, 126, 254")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    network = parser.add_argument_group("network")
    network.add_argument("--weights", default="1bit", choices=WEIGHTS)
    network.add_argument(
        "--activation-bits", type=int, metavar="B", help="2 .. 8 (default: float activations)"
    )
    network.add_argument("--batch-norm", default="fixed", choices=BATCH_NORM)
    network.add_argument("--input-relu", action="store_true", help="ReLU after the input's BN")
    network.add_argument("--plain", action="store_true", help="no skips")
    network.add_argument("--padding", default="torch", choices=PADDING)
    recipe = parser.add_argument_group("recipe (defaults are the paper's)")
    recipe.add_argument("--batch", type=int, default=125, help="images")
    recipe.add_argument("--learning-rate", type=float, default=0.1, help="of a cycle's start")
    recipe.add_argument("--weight-decay", type=float, default=5e-4)
    recipe.add_argument("--first-cycle", type=int, default=2, help="epochs, then twice as many")
    recipe.add_argument("--score-gain", type=float, default=1.0, help="in the loss; narrow nets: 4")
    recipe.add_argument("--cutout", type=int, default=0, metavar="PIXELS", help="CIFAR-10: 18")
    recipe.add_argument("--quantise-from-epoch", type=int, default=0, metavar="E")
    recipe.add_argument("--seed", type=int, default=0)
    recipe.add_argument("--init", type=Path, metavar="CKPT", help="start from these weights")
    return parser


if __name__ == "__main__":
    sys.exit(main())
