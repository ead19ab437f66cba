"""The paper's tables: what they need, what was run, what is printed and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler.errors import DataError, SignumError, UsageError
from train.__main__ import main
from train.data import Split
from train.figures import EPOCHS, draw
from train.loop import Progress
from train.recipe import Execution
from train.reproduce import (
    MARK,
    Curve,
    by_epoch,
    found_in,
    gap,
    job_of,
    markdown,
    missing,
    plain,
    run_missing,
    write_report,
)
from train.sources import Source
from train.tables import TABLES, Cell, Run, Table
from train.team import Team

CPU = Team(torch.device("cpu"))


def source(name: str = "mnist") -> Source:
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.integers(0, 256, (40, 1, 28, 28)).astype(np.uint8))
    split = Split(images, torch.arange(40) % 10)
    return Source(name, (1, 28, 28), 10, split, split)


@pytest.fixture(autouse=True)
def few_images_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.loop.MOMENTS_IMAGES", 40)


def cells(*epochs: int, weights: str = "1bit") -> tuple[Cell, ...]:
    run = Run("mnist", "8-0.125", weights)  # type: ignore[arg-type]
    return tuple(Cell(run, e, (0.5,)) for e in epochs)


def reproduce(given: tuple[Cell, ...], out: Path, hours: float = 1.0, **changes: Any) -> list[str]:
    told: list[str] = []
    settings: dict[str, Any] = {"open_source": source, "watch": lambda _: Progress()}
    run_missing(
        given, out, hours, execution=Execution(), team=CPU, tell=told.append, **settings | changes
    )
    return told


def write(out: Path, run: Run, records: list[dict[str, float]], **about: Any) -> None:
    folder = out / run.name
    folder.mkdir(parents=True)
    lines = (json.dumps(record) + "\n" for record in records)
    (folder / "results.jsonl").write_text("".join(lines))
    machine = {"processor": "Abacus 9", "threads": 2} | about.pop("machine", {})
    document = {"seed": 0, "sessions": [{"machine": machine}] * 2} | about
    (folder / "run.json").write_text(json.dumps(document))


# -- the tables ------------------------------------------------------------------------------------


def published(table: str, **run: Any) -> list[tuple[float, ...]]:
    wanted = Run(**run)
    return [cell.published for cell in TABLES[table].cells if cell.run == wanted]


def test_published_figures() -> None:
    assert len(TABLES["1"].cells) == 6 * 4 + 2
    big = {"net": "20-10", "weights": "1bit"}
    assert published("1", dataset="cifar10", **big) == [(4.72,)]
    assert published("1", dataset="cifar10", cutout=True, **big) == [(3.92,)]
    assert published("1", dataset="cifar100", **big) == [(19.35,)]
    assert published("1", dataset="cifar100", cutout=True, **big) == [(18.51,)]
    assert published("2", dataset="imagenet32", **big) == [(44.27, 21.09)]
    imagenet = {"dataset": "imagenet", "net": "18-2.5", "weights": "32bit"}
    assert published("2", **imagenet) == [(26.92, 9.20), (22.99, 6.91)]
    assert [cell.crops for cell in TABLES["2"].cells if cell.run == Run(**imagenet)] == [1, 25]
    mnist = [(c.epochs, c.published) for c in TABLES["mnist"].cells if c.run.weights == "1bit"]
    assert mnist == [(1, (0.81,)), (6, (0.36,)), (14, (0.27,)), (1, ()), (6, ()), (14, ())]


@pytest.mark.parametrize(
    ("dataset", "net", "millions"),
    [
        ("cifar10", "20-4", 4.3),
        ("cifar10", "20-10", 26.8),
        ("cifar100", "20-10", 26.8),
        ("cifar100", "20-20", 107),
        ("imagenet", "18-2.5", 70),
    ],
)
def test_weights_are_as_many_as_the_paper_prints(dataset: str, net: str, millions: float) -> None:
    count = Run(dataset, net, "1bit").architecture.num_weights / 1e6
    assert count == pytest.approx(millions, rel=0.006)


def test_runs_are_told_apart_by_their_names() -> None:
    runs = {cell.run for table in TABLES.values() for cell in table.cells}
    assert len({run.name for run in runs}) == len(runs)
    assert Run("cifar10", "20-4", "1bit", cutout=True).name == "cifar10-wrn20-4-1bit-cutout"
    odd = Run("cifar100", "20-4", "32bit", False, "learned", "steps", True, seed=7)
    assert odd.name == "cifar100-wrn20-4-32bit-bn-learned-steps-plain-seed7"


def test_figures_share_the_runs_of_the_tables() -> None:
    assert {c.run for c in TABLES["fig1"].cells} == {
        c.run for name in ("1", "2") for c in TABLES[name].cells
    }
    assert {c.run for c in TABLES["fig5"].cells} < {c.run for c in TABLES["1"].cells}
    assert len({(c.run.schedule, c.run.batch_norm) for c in TABLES["fig6"].cells}) == 4
    assert {c.run.plain for c in TABLES["fig7"].cells} == {True, False}


def test_jobs_are_the_papers() -> None:
    cifar = job_of(Run("cifar10", "20-4", "1bit", cutout=True), 126, Execution())
    assert cifar.recipe.augmentation.cutout == 18 and cifar.recipe.augmentation.flip
    assert cifar.recipe.weight_decay == 5e-4 and cifar.recipe.batch == 125
    assert cifar.architecture.batch_norm == "fixed" and cifar.architecture.weights == "1bit"
    assert cifar.architecture.activation_bits is None and cifar.recipe.epochs == 126
    small = job_of(Run("imagenet32", "20-15", "32bit"), 30, Execution())
    assert small.recipe.weight_decay == 1e-4 and small.architecture.batch_norm == "learned"
    assert small.architecture.classes == 1000 and small.architecture.weights == "32bit"
    large = job_of(Run("imagenet", "18-2.5", "1bit"), 62, Execution())
    assert large.architecture.family == "wrn-imagenet" and large.recipe.augmentation.scale
    odd = job_of(
        Run("cifar100", "20-4", "1bit", False, "learned", "steps", True, seed=7), 9, Execution()
    )
    assert odd.recipe.schedule == "steps" and odd.recipe.seed == 7
    assert odd.architecture.batch_norm == "learned" and not odd.architecture.skip


def test_quantised_activations_are_a_table_of_ours() -> None:
    runs = [cell.run for cell in TABLES["bits"].cells]
    assert [(r.weights, r.activation_bits) for r in runs if r.net == "20-1"] == [
        *(("32bit", 0), ("1bit", 0), ("1bit", 4), ("1bit", 3), ("1bit", 2)),
        *(("1bit", 0), ("1bit", 2)),  # batch norm learned
        *[("1bit", 4)] * 3,
    ]
    learned = runs[6]
    assert learned.name == "cifar10-wrn20-1-1bit-bn-learned-a2-steps-learned-gain4"
    assert learned.description.endswith("2-bit activations, steps learned, score gain 4")
    assert job_of(learned, 14, Execution()).recipe.steps == "learned"
    assert job_of(learned, 14, Execution()).architecture.batch_norm == "learned"
    four = job_of(runs[2], 14, Execution())
    assert four.architecture.activation_bits == 4 and four.recipe.score_gain == 4
    assert job_of(runs[0], 14, Execution()).architecture.activation_bits is None
    assert runs[2].name == "cifar10-wrn20-1-1bit-a4-gain4"
    assert runs[2].description == "4-bit activations, score gain 4"
    assert job_of(runs[-1], 14, Execution()).recipe.score_gain == 1


def test_a_smaller_network_is_not_compared_with_the_papers_figure() -> None:
    cell = Cell(Run("mnist", "20-4", "1bit"), 14, (0.27,))
    assert cell.instead() == cell.instead("20-4", 20) == cell
    assert cell.instead("8-1").published == () and cell.instead("8-1").run.net == "8-1"
    assert cell.instead(epochs=6) == Cell(cell.run, 6)


# -- running ---------------------------------------------------------------------------------------


def test_what_is_missing_runs_once_the_cheapest_first(tmp_path: Path) -> None:
    given = cells(1, 3) + cells(2, weights="32bit")
    assert missing(given, tmp_path) == [
        (Run("mnist", "8-0.125", "32bit"), 2),
        (Run("mnist", "8-0.125", "1bit"), 3),
    ]
    told = reproduce(given, tmp_path)
    assert told == [
        "mnist-wrn8-0.125-32bit: up to 2 epochs",
        "mnist-wrn8-0.125-1bit: up to 3 epochs",
    ]
    assert missing(given, tmp_path) == [] and reproduce(given, tmp_path) == []
    assert all(len(found_in(tmp_path, cell).errors) == 1 for cell in given)
    longer = cells(6)
    assert found_in(tmp_path, longer[0]).epochs == 3
    reproduce(longer, tmp_path)
    lines = (tmp_path / longer[0].run.name / "results.jsonl").read_text().splitlines()
    found = [json.loads(line)["epoch"] for line in lines]
    assert found == [1, 2, 3, 4, 5, 6]  # resumed, not begun again


def test_the_budget_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reproduce(cells(1), tmp_path, hours=0.0) == ["out of time; the same command goes on"]
    assert not list(tmp_path.iterdir())
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def hour(_: float) -> None:  # one batch an epoch
        now[0] += 3600

    told = reproduce(
        cells(5) + cells(1, weights="32bit"), tmp_path, 3.5, watch=lambda _: Progress(step=hour)
    )
    assert told[-1].endswith("1bit: up to 5 epochs")
    assert found_in(tmp_path, cells(5)[0]).epochs == 2
    assert found_in(tmp_path, cells(1, weights="32bit")[0]).errors


def test_a_set_that_cannot_be_had_is_left_out(tmp_path: Path) -> None:
    def open_source(name: str) -> Source:
        if name == "cifar10":
            raise DataError("no such file", hint="get it")
        return source()

    given = (Cell(Run("cifar10", "8-0.1", "1bit"), 1), *cells(1))
    told = reproduce(given, tmp_path, open_source=open_source)
    assert "cifar10-wrn8-0.1-1bit is left out: no such file (get it)" in told
    assert not found_in(tmp_path, given[0]).errors and found_in(tmp_path, given[1]).errors


# -- what was found --------------------------------------------------------------------------------


def test_a_cycles_end_counts_with_recomputed_moments(tmp_path: Path) -> None:
    (one, two, six) = cells(1, 2, 6)
    write(
        tmp_path,
        one.run,
        [
            {"epoch": 1, "test_accuracy": 0.9},
            {"epoch": 2, "test_accuracy": 0.8, "deployed_accuracy": 0.95},
        ],
        seed=3,
    )
    assert found_in(tmp_path, one).errors == pytest.approx((10.0,))
    assert found_in(tmp_path, two).errors == pytest.approx((5.0,))
    assert found_in(tmp_path, six).errors == () and found_in(tmp_path, six).epochs == 2
    assert found_in(tmp_path, two).seed == 3
    assert found_in(tmp_path, two).machine == "Abacus 9, 2 threads"


def test_top_five_and_crops(tmp_path: Path) -> None:
    run = Run("imagenet", "18-2.5", "1bit")
    single, many = Cell(run, 2, (31.03, 11.51)), Cell(run, 2, (26.04, 8.48), crops=25)
    record = {"epoch": 2, "deployed_accuracy": 0.7, "deployed_top5_accuracy": 0.875}
    write(tmp_path, run, [record], machine={"gpu": "H200"})
    assert found_in(tmp_path, single).errors == pytest.approx((30.0, 12.5))
    assert found_in(tmp_path, many).errors == ()
    measured = {"epoch": 2, "accuracy": 0.75, "top5_accuracy": 0.9}
    (tmp_path / run.name / "crops.json").write_text(json.dumps(measured))
    assert found_in(tmp_path, many).errors == pytest.approx((25.0, 10.0))
    assert found_in(tmp_path, replace(many, epochs=6)).errors == ()
    assert found_in(tmp_path, many).machine == "H200"


def test_unrun_cells_say_so(tmp_path: Path) -> None:
    (two, six) = cells(2, 6)
    table = Table("Numbers", (two, six, replace(two, run=replace(two.run, weights="32bit"))))
    write(tmp_path, two.run, [{"epoch": 2, "test_accuracy": 0.8, "deployed_accuracy": 0.9931}])
    lines = markdown(table, tmp_path).splitlines()
    assert lines[0] == "## Numbers"
    assert lines[2] == "| weights | net | data | epochs | paper | ours | seed | machine |"
    assert lines[4:] == [
        "| 1bit | 8-0.125 | mnist | 2 | 0.50 | 0.69 | 0 | Abacus 9, 2 threads |",
        "| 1bit | 8-0.125 | mnist | 6 | 0.50 | 2 epochs so far |  |  |",
        "| 32bit | 8-0.125 | mnist | 2 | 0.50 | not run |  |  |",
    ]
    assert plain(table, tmp_path)[1:] == [
        {"run": "mnist-wrn8-0.125-1bit", "epochs": 6, "crops": 1, "paper": [0.5],
         "ours": None, "epochs_done": 2},
        {"run": "mnist-wrn8-0.125-32bit", "epochs": 2, "crops": 1, "paper": [0.5],
         "ours": None, "epochs_done": 0},
    ]  # fmt: skip


def test_reports_keep_cells_that_were_run_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    head = "## Nets\n\n| weights | net | data | epochs | paper | ours | seed | machine |\n"
    elsewhere = "| 1bit | 20-1 | digits | 2 | – | 9.00 | 0 | a CPU |\n"
    before = "| 1bit | 20-2 | digits | 2 | – | 8.00 | 0 | a CPU |\n"
    path.write_text(f"{MARK}\n{head}{elsewhere}{before}")
    so_far = "| 1bit | 20-1 | digits | 2 | – | 1 epochs so far |  |  |\n"
    again = "| 1bit | 20-2 | digits | 2 | – | 7.00 | 0 | a GPU |\n"
    missing = "| 1bit | 20-3 | digits | 2 | – | not run |  |  |\n"
    write_report(path, f"{head}{so_far}{again}{missing}")
    assert path.read_text() == f"{MARK}\n\n{head}{elsewhere}{again}{missing}"
    write_report(path, f"{head.replace('Nets', 'Others')}{so_far}")
    assert so_far in path.read_text(), "the same columns in another table are another cell"


def test_reports_keep_what_people_wrote(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    path.write_text(f"# Ours\n{MARK}\nold")
    write_report(path, "## New\n")
    assert path.read_text() == f"# Ours\n{MARK}\n\n## New\n"
    path.write_text("# Ours\n")
    with pytest.raises(SignumError, match="must hold the line"):
        write_report(path, "## New\n")
    assert path.read_text() == "# Ours\n"


# -- figures ---------------------------------------------------------------------------------------


def test_gap_is_what_one_bit_adds(tmp_path: Path) -> None:
    full, one = (
        Cell(Run("mnist", "8-1", "32bit"), 2, (4.0,)),
        Cell(Run("mnist", "8-1", "1bit"), 2, (5.5,)),
    )
    alone = Cell(Run("svhn", "8-1", "1bit"), 2, (9.0,))
    assert gap((full, one, alone), tmp_path) == [
        Curve("paper", (4.0,), (1.5,), paper=True), Curve("ours", (), ()),
    ]  # fmt: skip
    write(tmp_path, full.run, [{"epoch": 2, "deployed_accuracy": 0.9}])
    assert gap((full, one, alone), tmp_path)[1] == Curve("ours", (), ())
    write(tmp_path, one.run, [{"epoch": 2, "deployed_accuracy": 0.875}])
    ours = gap((full, one, alone), tmp_path)[1]
    assert ours.x == pytest.approx((10.0,)) and ours.y == pytest.approx((2.5,))


def test_curves_by_epoch(tmp_path: Path) -> None:
    restarts = Run("cifar100", "20-4", "1bit")
    steps = replace(restarts, schedule="steps")
    records = [
        {"epoch": 1, "test_accuracy": 0.3},
        {"epoch": 2, "test_accuracy": 0.4, "deployed_accuracy": 0.5},
    ]
    write(tmp_path, restarts, records)
    write(tmp_path, steps, records)
    given = [
        Cell(restarts, 2),
        Cell(restarts, 6),
        Cell(steps, 254),
        Cell(Run("mnist", "8-1", "1bit"), 2),
    ]
    curves = by_epoch(given, tmp_path)
    assert [(c.x, c.y) for c in curves] == [((2.0,), (50.0,)), ((1.0, 2.0), (70.0, 60.0)), ((), ())]
    assert curves[1].name == "cifar100, 20-4, 1bit, rate in steps, 85 and 170"


def test_figures_show_every_curve(tmp_path: Path) -> None:
    curves = [Curve("ours", (2.0, 6.0, 14.0), (9.0, 7.0, 6.0)), Curve("unrun", (), ())]
    png, svg = draw(tmp_path / "f", "fig5", "Errors", (EPOCHS, "test error, %"), curves)
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and len(png.read_bytes()) > 5000
    text = svg.read_text()
    for words in ("Errors", "epochs", "test error, %", "ours"):
        assert f"<!-- {words} -->" in text
    assert "<!-- unrun -->" not in text and "<!-- not run -->" not in text
    _, empty = draw(tmp_path, "fig1", "Nothing", ("x", "y"), curves[1:])
    assert "<!-- not run -->" in empty.read_text()


def test_figures_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="figures need matplotlib") as caught:
        draw(tmp_path, "fig1", "", ("x", "y"), [])
    assert caught.value.hint == "pip install matplotlib"


# -- command line ----------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def open_source(name: str, *_: Any) -> Source:
        names.append(name)
        return source(name)

    monkeypatch.setattr("train.__main__.open_source", open_source)
    return names


def test_command_runs_prints_and_reports(
    opened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "results.md"
    report.write_text(f"# Ours\n{MARK}\n")
    what = ["--table", "mnist", "--net", "8-0.125", "--epochs", "1"]
    command = ["reproduce", *what, "--device", "cpu", "--hours", "1"]
    flags = ["--out", str(tmp_path / "runs"), "--report", str(report)]
    assert main([*command, *flags]) == 0
    out, err = capsys.readouterr()
    assert opened == ["mnist"]  # read once for both runs
    assert err.count("epoch   1") == 2
    lines = [line for line in out.splitlines() if "| 8-0.125 | mnist | 1 | – | " in line]
    assert len(lines) == 2 and "not run" not in out  # cells that became equal are one
    assert report.read_text() == f"# Ours\n{MARK}\n\n{out}"
    assert main([*command, *flags]) == 0
    assert opened == ["mnist"]
    assert capsys.readouterr().out == out


def test_command_without_hours_trains_nothing(
    opened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "--table", "all", "--out", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    tables = json.loads(out)
    assert list(tables) == ["1", "2", "mnist", "fig1", "fig5", "fig6", "fig7", "bits"]
    assert all(cell["ours"] is None for table in tables.values() for cell in table)
    assert not opened and err.count("drawn: ") == 4
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"fig{n}.{kind}" for n in (1, 5, 6, 7) for kind in ("png", "svg")}


def test_command_refuses_a_net_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--table", "1", "--net", "wide"]) == 2
    assert "--net must be DEPTH-WIDTH, not 'wide'" in capsys.readouterr().err
