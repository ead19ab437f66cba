"""``python -m train reproduce``: our figures beside the paper's.

Every run has a folder; what is missing is run or resumed within a budget of hours, the cheapest
first, and tables are printed from what the folders hold, whoever ran them and wherever.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.errors import DataError, SignumError
from train.data import AUGMENTATION, CUTOUT
from train.export import read_network
from train.folders import FolderSplit
from train.loop import CHECKPOINT, Progress, crops_accuracy, train
from train.recipe import MANY_CLASSES, Execution, Job, Recipe
from train.record import RUN
from train.sources import Source
from train.state import results
from train.tables import Cell, Run, Table
from train.team import Team

CROPS_RESULT = "crops.json"

NOT_RUN = "not run"

MARK = "<!-- from here on: python -m train reproduce -->"
"""In a report, what follows it is replaced; what stands before it is for people to write."""

NO_MACHINE = "|  |"
"""How the line of a cell ends of which there is no error."""

COLUMNS = ("weights", "net", "data", "epochs", "paper", "ours", "seed", "machine")


@dataclass(frozen=True, slots=True)
class Found:
    """What a run's folder holds for one cell.

    ``errors`` are in per cent, (top-1,) or (top-1, top-5), empty where it has not come so far;
    ``epochs`` are those it has done.
    """

    errors: tuple[float, ...]
    epochs: int
    seed: int = 0
    machine: str = ""


def job_of(run: Run, epochs: int, execution: Execution) -> Job:
    """The job that a run of the paper is."""
    many = run.dataset in MANY_CLASSES
    augmentation = replace(AUGMENTATION[run.dataset], cutout=CUTOUT if run.cutout else 0)
    recipe = Recipe(
        epochs=epochs,
        schedule=run.schedule,
        weight_decay=1e-4 if many else 5e-4,
        score_gain=run.score_gain,
        steps=run.steps,
        seed=run.seed,
        augmentation=augmentation,
    )
    return Job(run.dataset, run.architecture, recipe, execution=execution)


def missing(cells: Iterable[Cell], out: Path) -> list[tuple[Run, int]]:
    """The runs that are not done and the epochs they need, those of least work first."""
    wanted: dict[Run, int] = {}
    for cell in cells:
        if not found_in(out, cell).errors:
            wanted[cell.run] = max(wanted.get(cell.run, 0), cell.epochs)
    return sorted(wanted.items(), key=lambda item: item[1] * item[0].architecture.num_weights)


def run_missing(
    cells: tuple[Cell, ...],
    out: Path,
    hours: float,
    open_source: Callable[[str], Source],
    execution: Execution,
    team: Team,
    tell: Callable[[str], None],
    watch: Callable[[Job], Progress],
) -> None:
    """Run or resume what is missing until the hours are over.

    A data set that cannot be had is told and its runs are left out.
    """
    ends = time.monotonic() + hours * 3600
    for run, epochs in missing(cells, out):
        left = ends - time.monotonic()
        if team.any(left <= 0):
            tell("out of time; the same command goes on")
            return
        try:
            source = open_source(run.dataset)
        except DataError as error:
            tell(f"{run.name} is left out: {error}{f' ({error.hint})' if error.hint else ''}")
            continue
        job = job_of(run, epochs, execution)
        tell(f"{run.name}: up to {epochs} epochs")
        data = source.training, source.test
        last = train(job, data, out / run.name, watch(job), team, left)
        many_crops = any(cell.crops > 1 for cell in cells if cell.run == run)
        if many_crops and last["epoch"] >= epochs and isinstance(source.test, FolderSplit):
            network = read_network(out / run.name / CHECKPOINT).to(team.device)
            measured = {"epoch": last["epoch"], **crops_accuracy(network, source.test, team)}
            if team.leads:
                (out / run.name / CROPS_RESULT).write_text(json.dumps(measured) + "\n")


def found_in(out: Path, cell: Cell) -> Found:
    """What the folder of a cell's run says about it.

    Of a cycle's last epoch it is the checkpoint's error, with recomputed moments; of any other the
    error with the running ones.
    """
    folder = out / cell.run.name
    records = {record["epoch"]: record for record in results(folder)}
    done = max(records, default=0)
    if cell.epochs not in records:
        return Found((), done)
    record = records[cell.epochs]
    prefix = "deployed_" if "deployed_accuracy" in record else "test_"
    if cell.crops > 1:
        path = folder / CROPS_RESULT
        record = json.loads(path.read_text()) if path.exists() else {}
        prefix = ""
        if record.get("epoch") != cell.epochs:
            return Found((), done)
    names = (f"{prefix}accuracy", f"{prefix}top5_accuracy")
    errors = tuple(100 * (1 - record[name]) for name in names if name in record)
    width = len(cell.published) or 1
    about = _about(folder)
    return Found(errors[:width], done, about.get("seed", cell.run.seed), _machine(about))


def markdown(table: Table, out: Path) -> str:
    """A table with a line a cell: the paper's error beside ours, or how far a run has come."""
    lines = [f"## {table.title}", "", _row(COLUMNS), _row(["---"] * len(COLUMNS))]
    lines += [_row(_cells(cell, found_in(out, cell))) for cell in table.cells]
    return "\n".join(lines) + "\n"


def plain(table: Table, out: Path) -> list[dict[str, Any]]:
    """The same for programs; errors are in per cent, None where there is none."""
    return [
        {
            "run": cell.run.name,
            "epochs": cell.epochs,
            "crops": cell.crops,
            "paper": list(cell.published) or None,
            "ours": list(found.errors) or None,
            "epochs_done": found.epochs,
        }
        for cell in table.cells
        for found in [found_in(out, cell)]
    ]


def write_report(path: Path, text: str) -> None:
    """Renew what stands behind `MARK` in a report; raises `SignumError` where that is not.

    A cell that was run elsewhere keeps its line while ``text`` has no error for it: folders of runs
    stay on the machine that made them.
    """
    before, mark, old = path.read_text().partition(MARK)
    if not mark:
        raise SignumError(f"{path} must hold the line {MARK}", hint="the tables go behind it")
    known = {cell: line for cell, line in _lines(old) if not line.endswith(NO_MACHINE)}
    lines = [
        known.get(cell, line) if line.endswith(NO_MACHINE) else line for cell, line in _lines(text)
    ]
    path.write_text("\n".join([f"{before}{MARK}", "", *lines, ""]))


def _lines(text: str) -> Iterable[tuple[tuple[str, ...], str]]:
    """Lines of tables, each with its title and the columns that say which cell it is."""
    title = ""
    for line in text.splitlines():
        title = line if line.startswith("## ") else title
        yield (title, *line.split(" | ")[: COLUMNS.index("paper")]), line


def _cells(cell: Cell, found: Found) -> list[str]:
    notes = [cell.run.description, f"{cell.crops} crops" if cell.crops > 1 else ""]
    data = ", ".join([cell.run.dataset, *filter(None, notes)])
    ours = _errors(found.errors)
    if not found.errors:
        ours = f"{found.epochs} epochs so far" if found.epochs else NOT_RUN
    where = [str(found.seed), found.machine] if found.errors else ["", ""]
    paper = _errors(cell.published) or "–"
    return [cell.run.weights, cell.run.net, data, str(cell.epochs), paper, ours, *where]


def _errors(errors: Iterable[float]) -> str:
    return " / ".join(f"{error:.2f}" for error in errors)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _about(folder: Path) -> dict[str, Any]:
    path = folder / RUN
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _machine(about: dict[str, Any]) -> str:
    """Those of all sessions, each once."""
    machines = [session["machine"] for session in about.get("sessions", [])]
    names = [m.get("gpu") or f"{m['processor']}, {m['threads']} threads" for m in machines]
    return "; ".join(dict.fromkeys(names))


# -- what the figures show -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """One line or cloud of points: a name, x and y; ``paper`` says whose they are."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    paper: bool = False


def gap(cells: Iterable[Cell], out: Path) -> list[Curve]:
    """Figure 1: for each network run at 32 bits and at 1, how much worse one bit is.

    x is the 32-bit top-1 error, y what one bit adds to it, in per cent.
    """
    pairs = list(_pairs(cells))
    curves = []
    for paper in (True, False):

        def error(cell: Cell, paper: bool = paper) -> float:
            errors = cell.published if paper else found_in(out, cell).errors
            return errors[0] if errors else math.nan

        points = [(error(full), error(one) - error(full)) for full, one in pairs]
        known = [(x, y) for x, y in points if not math.isnan(x + y)]
        xs, ys = tuple(x for x, _ in known), tuple(y for _, y in known)
        curves.append(Curve("paper" if paper else "ours", xs, ys, paper))
    return curves


def _pairs(cells: Iterable[Cell]) -> Iterable[tuple[Cell, Cell]]:
    """The same run at 32 bits and at one."""
    full = {(c.run, c.crops): c for c in cells if c.run.weights == "32bit"}
    for cell in cells:
        twin = full.get((replace(cell.run, weights="32bit"), cell.crops))
        if cell.run.weights == "1bit" and twin is not None:
            yield twin, cell


def by_epoch(cells: Iterable[Cell], out: Path) -> list[Curve]:
    """Figures 5, 6 and 7: top-1 error of each run, at every end of a cycle that it has reached.

    A run in steps has no cycles: all its epochs are shown.
    """
    curves = []
    for run in dict.fromkeys(cell.run for cell in cells):
        name = ", ".join(filter(None, (run.dataset, run.net, run.weights, run.description)))
        records = results(out / run.name)
        key = "deployed_accuracy" if run.schedule == "restarts" else "test_accuracy"
        points = [(r["epoch"], 100 * (1 - r[key])) for r in records if key in r]
        xs, ys = tuple(float(x) for x, _ in points), tuple(y for _, y in points)
        curves.append(Curve(name, xs, ys))
    return curves
