"""The command line of the trainer: ``python -m train`` and its other commands.

``python -m train --dataset ... --net ... --epochs ... --out DIR`` trains or resumes;
``evaluate`` measures a trained network, ``reproduce`` fills the paper's tables, ``benchmark`` times
training steps. Each has ``--help``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from compiler.errors import SignumError, UsageError
from train.export import read_network
from train.folders import FolderSplit
from train.loop import CHECKPOINT, Progress, accuracy, crops_accuracy, train
from train.options import (
    add_common,
    add_data,
    add_execution,
    add_job,
    execution_of,
    job_of,
    net_of,
)
from train.recipe import Job
from train.record import machine
from train.reproduce import MARK, by_epoch, gap, markdown, plain, run_missing, write_report
from train.sources import Source, open_source
from train.tables import TABLES, Table
from train.team import Team, assembled
from train.watch import announce, line, watching

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its flags, what it does, and what to say when it is interrupted."""

    parser: Callable[[], argparse.ArgumentParser]
    run: Callable[[argparse.Namespace, Console], None]
    interrupted: str = "interrupted"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    name = given[0] if given[:1] and given[0] in COMMANDS else ""
    command = COMMANDS[name]
    options = command.parser().parse_args(given[1:] if name else given)
    console = _console()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        command.run(options, console)
    except (SignumError, OSError, KeyboardInterrupt) as error:
        if options.verbose >= 2:
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            console.print(command.interrupted, markup=False)
            return INTERRUPTED
        if isinstance(error, OSError):  # a full disk, a folder that may not be written
            error = SignumError(str(error))
        console.print(error.report(), markup=False)
        return error.exit_code
    return 0


def train_command(options: argparse.Namespace, console: Console) -> None:
    """Train or resume, with a bar on a terminal and a line an epoch everywhere."""
    with assembled(options.device) as team:
        source = open_source(options.dataset, options.data, team.device, options.workers)
        job = job_of(options, source, team.device)
        announce(job, options.out, console)
        board = options.tensorboard if team.leads else None
        seconds = options.hours * 3600
        with watching(job, console, board) as progress:
            data = (source.training, source.test)
            last = train(job, data, options.out, progress, team, seconds)
        if not team.leads:
            return
        if last["epoch"] < job.recipe.epochs:
            console.print("out of time; the same command goes on", markup=False)
        print(json.dumps({"checkpoint": str(options.out / CHECKPOINT), **last}))


def evaluate_command(options: argparse.Namespace, _: Console) -> None:
    """Print the float accuracy of a network (fake-quantised where it has steps)."""
    network = read_network(options.checkpoint)
    with assembled(options.device) as team:
        source = open_source(options.dataset, options.data, team.device, options.workers)
        if network.architecture.input != source.shape:
            raise UsageError(
                f"network takes images of {network.architecture.input}, but data set "
                f"{source.name!r} has {source.shape}"
            )
        network.to(team.device)
        if options.crops == 1:
            found = accuracy(network, source.test, team)
        elif isinstance(source.test, FolderSplit):
            found = crops_accuracy(network, source.test, team)
        else:
            raise UsageError(f"--crops 25 is for imagenet, not {source.name!r}")
        result = {"images": len(source.test), "float": found.pop("accuracy")} | found
        if team.leads:
            print(json.dumps({"accuracy": result}))


def reproduce_command(options: argparse.Namespace, console: Console) -> None:
    """Run what is missing within the hours, then print the tables and draw the figures."""
    if options.net:
        net_of(options.net)
    chosen = list(TABLES) if options.table == "all" else [options.table]
    tables = {
        name: Table(
            TABLES[name].title,
            tuple(
                dict.fromkeys(c.instead(options.net, options.epochs) for c in TABLES[name].cells)
            ),
        )
        for name in chosen
    }
    if options.hours > 0:
        with assembled(options.device) as team:
            _run_missing(tables, options, team, console)
            if not team.leads:
                return
    text = "\n".join(markdown(table, options.out) for table in tables.values())
    if options.json:
        print(json.dumps({name: plain(table, options.out) for name, table in tables.items()}))
    else:
        print(text, end="")
    if options.report:
        write_report(options.report, text)
    for name in (name for name in tables if name.startswith("fig")):
        paths = _figure(name, tables[name], options)
        console.print(f"drawn: {', '.join(map(str, paths))}", markup=False)


def benchmark_command(options: argparse.Namespace, _: Console) -> None:
    """Print a table of images a second."""
    from train.benchmark import benchmark

    with assembled(options.device) as team:
        execution = execution_of(options, team.device)
        nets = [(net, *net_of(net)) for net in options.nets]
        found = benchmark(nets, team, execution, options.batch, options.seconds)
        about = {"machine": machine(team.device), "execution": asdict(execution)}
    if options.json:
        print(json.dumps({"speed": [speed.report() for speed in found], **about}))
        return
    print(f"images a second of a training step, batch {options.batch}, {about}\n")
    print("| net | weights | step | with loading | plain | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for s in found:
        rates = f"{s.step:,.0f} | {s.epoch:,.0f} | {s.plain:,.0f} | {s.ratio:.2f}"
        print(f"| {s.net} | {s.weights:,} | {rates} |")


def _run_missing(
    tables: dict[str, Table], options: argparse.Namespace, team: Team, console: Console
) -> None:
    @lru_cache(maxsize=1)  # runs on one data set mostly follow each other
    def source(name: str) -> Source:
        return open_source(name, options.data, team.device, options.workers)

    def watch(job: Job) -> Progress:
        def epoch(record: dict[str, Any]) -> None:
            console.print(line(record, job.recipe.epochs), markup=False)

        return Progress(epoch=epoch)

    run_missing(
        tuple(cell for table in tables.values() for cell in table.cells),
        options.out,
        options.hours,
        source,
        execution_of(options, team.device),
        team,
        lambda text: console.print(text, markup=False),
        watch,
    )


def _figure(name: str, table: Table, options: argparse.Namespace) -> list[Path]:
    from train.figures import EPOCHS, draw

    folder = options.figures or options.out / "figures"
    if name == "fig1":
        axes = ("32-bit error, %", "what one bit adds, %")
        return draw(folder, name, table.title, axes, gap(table.cells, options.out))
    axes = (EPOCHS, "test error, %")
    return draw(folder, name, table.title, axes, by_epoch(table.cells, options.out))


def _console() -> Console:
    """Standard error, but for the processes of a team that do not lead."""
    silent = int(os.environ.get("RANK", "0")) > 0
    file = io.StringIO() if silent else sys.stderr
    return Console(file=file, highlight=False, soft_wrap=True)


def _train_parser() -> argparse.ArgumentParser:
    others = ", ".join(name for name in COMMANDS if name)
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train a wide residual network; the same command again resumes it. "
        "'torchrun --nproc-per-node N -m train ...' trains it on N GPUs. "
        f"Other commands: {others}.",
    )
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--hours", type=float, default=float("inf"), metavar="H", help="stop before, to be resumed"
    )
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write scalars there too")
    add_job(parser)
    add_execution(parser)
    add_common(parser)
    return parser


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train evaluate", description="Float accuracy of a network, as JSON."
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt")
    add_data(parser)
    parser.add_argument(
        "--crops", type=int, default=1, choices=(1, 25), help="25: ImageNet, softmax averaged"
    )
    add_common(parser)
    return parser


def _reproduce_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train reproduce",
        description="Our figures beside the paper's. Without --hours nothing is trained, and what "
        "was run before is shown.",
    )
    parser.add_argument("--table", required=True, choices=(*TABLES, "all"))
    parser.add_argument("--hours", type=float, default=0.0, metavar="H", help="train so long")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets' files")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="decode ImageNet")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR")
    parser.add_argument("--net", default="", metavar="DEPTH-WIDTH", help="instead of the paper's")
    parser.add_argument("--epochs", type=int, default=0, metavar="E", help="at most so many")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="default: OUT/figures")
    parser.add_argument("--report", type=Path, metavar="FILE", help=f"replaces what follows {MARK}")
    parser.add_argument("--json", action="store_true")
    add_execution(parser)
    add_common(parser)
    return parser


def _benchmark_parser() -> argparse.ArgumentParser:
    from train.benchmark import NETS

    parser = argparse.ArgumentParser(
        prog="python -m train benchmark",
        description="Images a second of a training step, against a plain formulation.",
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), metavar="DEPTH-WIDTH")
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each form of each net")
    parser.add_argument("--json", action="store_true")
    add_execution(parser)
    add_common(parser)
    return parser


COMMANDS = {
    "": Command(
        _train_parser,
        train_command,
        "interrupted; the same command resumes after the last whole epoch",
    ),
    "evaluate": Command(_evaluate_parser, evaluate_command),
    "reproduce": Command(
        _reproduce_parser, reproduce_command, "interrupted; the same command goes on"
    ),
    "benchmark": Command(_benchmark_parser, benchmark_command),
}


if __name__ == "__main__":
    sys.exit(main())
