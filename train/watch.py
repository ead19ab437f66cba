"""What the user sees of a run: a bar, a line an epoch, and TensorBoard where asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from compiler.errors import UsageError
from train.loop import Progress
from train.recipe import Job, cycle_of


def announce(job: Job, out: Path, console: Console) -> None:
    """Say what is about to be trained, and what may surprise about it."""
    net, recipe = job.architecture, job.recipe
    bits = "float" if net.activation_bits is None else f"{net.activation_bits}-bit"
    console.print(
        f"{job.dataset}: {net.name}, {net.num_weights:,} weights of {net.weights}, "
        f"{bits} activations, {recipe.epochs} epochs into {out}",
        markup=False,
    )
    start, length = cycle_of(recipe.epochs - 1, recipe.first_cycle)
    if recipe.schedule == "restarts" and start + length != recipe.epochs:
        console.print(
            f"note: {recipe.epochs} epochs stop in mid-cycle; cycles end after {start} and "
            f"{start + length}",
            markup=False,
        )


@contextmanager
def watching(job: Job, console: Console, tensorboard: Path | None) -> Iterator[Progress]:
    """A `Progress` with a bar on a terminal and a line an epoch everywhere."""
    total = job.recipe.epochs
    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Bars(*columns, console=console) as bars, _board(tensorboard) as board:
        task = bars.add_task("epochs", total=total)

        def epoch(record: dict[str, Any]) -> None:
            console.print(line(record, total), markup=False)
            board(record)

        yield Progress(step=lambda epochs: bars.update(task, completed=epochs), epoch=epoch)


def line(record: dict[str, Any], total: int) -> str:
    """One epoch's results in a line, with the time left at its pace."""
    text = (
        f"epoch {record['epoch']:3d}  loss {record['train_loss']:.4f}  "
        f"train {record['train_accuracy']:.2%}  test {record['test_accuracy']:.2%}  "
        f"{record['seconds']:.1f} s"
    )
    if "deployed_accuracy" in record:
        text += f"  checkpoint: {record['deployed_accuracy']:.2%}"
    left = timedelta(seconds=round(record["seconds"] * (total - record["epoch"])))
    return text + (f"  {left} left" if left else "")


@contextmanager
def _board(folder: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes an epoch's numbers as scalars over epochs, or nothing without a folder."""
    if folder is None:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs TensorBoard, which is not installed",
            hint="pip install tensorboard",
        ) from error
    writer = SummaryWriter(str(folder))

    def write(record: dict[str, Any]) -> None:
        for name in record.keys() - {"epoch"}:
            writer.add_scalar(name, record[name], record["epoch"])
        writer.flush()

    try:
        yield write
    finally:
        writer.close()
