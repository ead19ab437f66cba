"""The paper's tables and figures as data: which runs they need, and what it published.

A `Run` is a training run; a `Cell` is its error after some epochs. The learning rate does not
depend on how long a run will be, so one run of 126 epochs holds the cells after 2, 6, 14, 30, 62
and 126, and runs are shared among tables.

Source: M. D. McDonnell, ICLR 2018 (arXiv 1802.08530), top-1 and top-5 error in per cent. Where the
paper shows a curve and no number, ``published`` is empty; what it does not say is our choice, and
said to be so here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from train.network import Architecture
from train.recipe import MANY_CLASSES, STEPS

SHAPES = {
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "svhn": ((3, 32, 32), 10),
    "imagenet32": ((3, 32, 32), 1000),
    "imagenet": ((3, 224, 224), 1000),
}
"""Images (C, H, W) and classes, so that tables can be printed where the data is not."""


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """One training run by what distinguishes it; everything else is the paper's default."""

    dataset: str
    net: str
    weights: Literal["1bit", "32bit"]
    cutout: bool = False
    batch_norm: Literal["", "learned"] = ""  # empty: the paper's for the data set
    schedule: Literal["restarts", "steps"] = "restarts"
    plain: bool = False
    activation_bits: int = 0  # 0: float
    steps: Literal["calibrated", "learned"] = "calibrated"  # of activations
    score_gain: float = 1.0
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        marks = {
            "cutout": self.cutout,
            f"bn-{self.batch_norm}": self.batch_norm,
            self.schedule: self.schedule != "restarts",
            "plain": self.plain,
            f"a{self.activation_bits}": self.activation_bits,
            f"steps-{self.steps}": self.steps != "calibrated",
            f"gain{self.score_gain:g}": self.score_gain != 1,
            f"seed{self.seed}": self.seed,
        }
        parts = (self.dataset, f"wrn{self.net}", self.weights, *(m for m in marks if marks[m]))
        return "-".join(parts)

    @property
    def description(self) -> str:
        """What is not in the columns of a table, for people."""
        marks = {
            "cutout": self.cutout,
            f"batch norm {self.batch_norm}": self.batch_norm,
            f"rate in steps, {STEPS[0]} and {STEPS[1]}": self.schedule == "steps",
            "no skips": self.plain,
            f"{self.activation_bits}-bit activations": self.activation_bits,
            f"steps {self.steps}": self.steps != "calibrated",
            f"score gain {self.score_gain:g}": self.score_gain != 1,
        }
        return ", ".join(mark for mark in marks if marks[mark])

    @property
    def architecture(self) -> Architecture:
        """The network that it trains."""
        depth, _, width = self.net.partition("-")
        shape, classes = SHAPES[self.dataset]
        learned = self.batch_norm == "learned" or self.dataset in MANY_CLASSES
        return Architecture(
            depth=int(depth),
            width=float(width),
            classes=classes,
            input=shape,
            weights=self.weights,
            batch_norm="learned" if learned else "fixed",
            skip=not self.plain,
            family="wrn-imagenet" if self.dataset == "imagenet" else "wrn",
            activation_bits=self.activation_bits or None,
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """The error of a run after ``epochs``, and the paper's: (top-1,) or (top-1, top-5)."""

    run: Run
    epochs: int
    published: tuple[float, ...] = ()
    crops: int = 1  # views of a test image, ImageNet alone

    def instead(self, net: str = "", epochs: int = 0) -> Cell:
        """The same with a smaller network or fewer epochs, which the paper does not have."""
        run = replace(self.run, net=net or self.run.net)
        fewer = min(epochs or self.epochs, self.epochs)
        same = run == self.run and fewer == self.epochs
        return Cell(run, fewer, self.published if same else (), self.crops)


@dataclass(frozen=True, slots=True)
class Table:
    """A table or the runs behind a figure."""

    title: str
    cells: tuple[Cell, ...]


def _cifar() -> tuple[Cell, ...]:
    rows: tuple[tuple[Literal["1bit", "32bit"], str, int, tuple[float | None, ...]], ...] = (
        ("32bit", "20-4", 126, (5.02, 21.53, 4.39, 20.48)),
        ("32bit", "20-10", 254, (4.22, 18.76, 3.46, 17.19)),
        ("32bit", "26-10", 254, (4.23, 18.63, 3.54, 17.22)),
        ("32bit", "20-20", 126, (None, 18.14, None, None)),
        ("1bit", "20-4", 126, (6.13, 23.87, 5.34, 23.74)),
        ("1bit", "20-10", 254, (4.72, 19.35, 3.92, 18.51)),
        ("1bit", "26-10", 254, (4.46, 18.94, 3.41, 18.50)),
        ("1bit", "20-20", 126, (None, 18.81, None, None)),
    )
    columns = (("cifar10", False), ("cifar100", False), ("cifar10", True), ("cifar100", True))
    return tuple(
        Cell(Run(dataset, net, weights, cutout), epochs, (error,))
        for weights, net, epochs, errors in rows
        for (dataset, cutout), error in zip(columns, errors, strict=True)
        if error is not None
    )


def _larger() -> tuple[Cell, ...]:
    """SVHN, ImageNet32 and ImageNet; 30 epochs where our notes of the paper do not say 62."""
    return (
        Cell(Run("svhn", "20-4", "32bit"), 30, (1.75,)),
        Cell(Run("svhn", "20-4", "1bit"), 30, (1.93,)),
        Cell(Run("imagenet32", "20-4", "32bit"), 30, (46.61, 22.91)),
        Cell(Run("imagenet32", "20-4", "1bit"), 30, (56.08, 30.88)),
        Cell(Run("imagenet32", "20-10", "32bit"), 30, (39.96, 17.89)),
        Cell(Run("imagenet32", "20-10", "1bit"), 30, (44.27, 21.09)),
        Cell(Run("imagenet32", "20-15", "32bit"), 30, (38.90, 17.03)),
        Cell(Run("imagenet32", "20-15", "1bit"), 30, (41.26, 19.08)),
        Cell(Run("imagenet32", "26-10", "1bit"), 62, (41.36, 18.93)),
        Cell(Run("imagenet", "18-2.5", "32bit"), 62, (26.92, 9.20)),
        Cell(Run("imagenet", "18-2.5", "1bit"), 62, (31.03, 11.51)),
        Cell(Run("imagenet", "18-2.5", "32bit"), 62, (22.99, 6.91), crops=25),
        Cell(Run("imagenet", "18-2.5", "1bit"), 62, (26.04, 8.48), crops=25),
    )


def _mnist() -> tuple[Cell, ...]:
    """Four times wide, no augmentation. The paper names no depth: 20 is ours, and width 1."""
    one, full = Run("mnist", "20-4", "1bit"), Run("mnist", "20-4", "32bit")
    narrow = Run("mnist", "20-1", "1bit")
    return (
        Cell(one, 1, (0.81,)),
        Cell(one, 6, (0.36,)),
        Cell(one, 14, (0.27,)),
        Cell(full, 1, (0.71,)),
        Cell(full, 6, (0.28,)),
        *(Cell(narrow, epochs) for epochs in (1, 6, 14)),
    )


CYCLE_ENDS = (2, 6, 14, 30, 62, 126, 254)


def _cycles() -> tuple[Cell, ...]:
    """The error at the end of each cycle."""
    runs = (
        Run(dataset, "20-10", weights)
        for dataset in ("cifar10", "cifar100")
        for weights in ("32bit", "1bit")
    )
    return tuple(Cell(run, epochs) for run in runs for epochs in CYCLE_ENDS)


def _ablation() -> tuple[Cell, ...]:
    """Warm restarts or steps, learned batch norm or not, on CIFAR-100; width 4 is ours."""
    return tuple(
        Cell(Run("cifar100", "20-4", weights, batch_norm=norm, schedule=schedule), 254)
        for weights in ("32bit", "1bit")
        for schedule in ("restarts", "steps")
        for norm in ("", "learned")
    )


def _plain() -> tuple[Cell, ...]:
    """With and without skips; width 4 and 126 epochs are ours."""
    return tuple(
        Cell(Run(dataset, "20-4", weights, plain=plain), 126)
        for dataset in ("cifar10", "cifar100")
        for weights in ("32bit", "1bit")
        for plain in (False, True)
    )


NARROW_SCORE_GAIN = 4.0
"""For widths 1 and 2; see `train.recipe.Recipe`."""


def _bits() -> tuple[Cell, ...]:
    """What quantised activations cost at 20-1, and what small networks reach with 4 bits."""
    forms: tuple[tuple[Literal["1bit", "32bit"], int], ...] = (
        ("32bit", 0),
        ("1bit", 0),
        ("1bit", 4),
        ("1bit", 3),
        ("1bit", 2),
    )

    def run(net: str, weights: Literal["1bit", "32bit"], bits: int) -> Run:
        gain = NARROW_SCORE_GAIN if net in ("20-1", "20-2") else 1.0
        return Run("cifar10", net, weights, activation_bits=bits, score_gain=gain)

    costs = tuple(Cell(run("20-1", weights, bits), 14) for weights, bits in forms)
    learned = replace(run("20-1", "1bit", 0), batch_norm="learned")
    costs += (Cell(learned, 14), Cell(replace(learned, activation_bits=2, steps="learned"), 14))
    longer = tuple(Cell(run("20-1", "1bit", 4), epochs) for epochs in (30, 62, 126))
    wider = tuple(Cell(run(net, "1bit", 4), 126) for net in ("20-2", "20-4"))
    return costs + longer + wider


TABLES = {
    "1": Table("Table 1: CIFAR-10 and CIFAR-100", _cifar()),
    "2": Table("Table 2: SVHN, ImageNet32 and ImageNet", _larger()),
    "mnist": Table("MNIST", _mnist()),
    "fig1": Table(
        "Figure 1: what one bit costs, against the 32-bit error",
        tuple(cell for cell in _cifar() + _larger() if cell.crops == 1),
    ),
    "fig5": Table("Figure 5: the error after each cycle", _cycles()),
    "fig6": Table("Figure 6: warm restarts and learned batch norm on CIFAR-100", _ablation()),
    "fig7": Table("Figure 7: networks without skips", _plain()),
    "bits": Table("Quantised activations (ours: no paper has them)", _bits()),
}
