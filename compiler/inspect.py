"""A table of a Program's layers: shapes, scales, ranges, widths, and what each costs an engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from compiler.program import (
    Add,
    Conv,
    MaxPool,
    Op,
    Pool,
    Program,
    Quantise,
    SumPixels,
    Tensor,
)
from compiler.schedule import QUANTISE, Schedule

HEADS = (
    *("layer", "kind", "in", "out", "s", "Δ", "u", "j", "F", "range"),
    *("acc", "res", "thresholds", "weights", "additions"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One convolution with all that finishes it, one pool, or the start of a stream.

    Attributes
    ----------
    shape_in, shape_out : (channels, height, width)
    scale : float or None
        The layer's constant s.
    step : float or None
        Δ of the activations it writes: the real value of one unit.
    unit : float or None
        u of the residual stream it writes.
    shift : int or None
        j: the accumulator is added at ``2**j`` units; of a pool the right shift, negative.
    fraction_bits : int or None
        F of its staircase.
    low, high : int or None
        Range of its accumulator.
    accumulator_bits, residual_bits : int or None
        Widths of accumulator and residual stream.
    thresholds : int
        Steps of its staircases, over all channels.
    weight_bits : int
    addsub : int
        Additions an image.
    cycles : int or None
        Predicted; None without an engine.
    regions : tuple of str
        Where in activation memory its answers stand, "tensor first..last".
    """

    name: str
    kind: str
    shape_in: tuple[int, int, int]
    shape_out: tuple[int, int, int]
    scale: float | None = None
    step: float | None = None
    unit: float | None = None
    shift: int | None = None
    fraction_bits: int | None = None
    low: int | None = None
    high: int | None = None
    accumulator_bits: int | None = None
    residual_bits: int | None = None
    thresholds: int = 0
    weight_bits: int = 0
    addsub: int = 0
    cycles: int | None = None
    regions: tuple[str, ...] = ()


def rows(program: Program, laid_out: Schedule | None = None) -> list[Row]:
    """The layers, in order of the flow."""
    found: list[dict[str, Any]] = []
    for op in program.ops:
        source, out = program[op.source], program[op.output]
        match op:
            case Conv():
                found.append(_conv(program, op, source, out))
            case Pool():
                pooled = {"shift": -op.right_shift, "unit": out.step, "residual_bits": out.bits}
                found.append(_begin(op, "pool", source, out) | pooled)
            case MaxPool():
                kind = f"max {op.kernel}x{op.kernel}/{op.stride}"
                found.append(_begin(op, kind, source, out) | {"step": out.step})
            case SumPixels():
                found.append(_begin(op, "sum", source, out))
            case Add():
                if source.kind == "activation":
                    found.append(_begin(op, "stream", source, out))
                stream = {"unit": out.step, "residual_bits": out.bits}
                found[-1] |= stream | {"shift": None if op.division else op.shift}
            case Quantise():
                if source.kind == "image":
                    found.append(_begin(op, "input", source, out))
                stairs = op.staircase
                found[-1] |= {
                    "step": out.step,
                    "fraction_bits": stairs.fraction_bits,
                    # Scores have a step for each of their values: it is a division, no comparison.
                    "thresholds": 0 if out.kind == "score" else stairs.channels * out.high,
                }
    costs = _costs(laid_out) if laid_out else {}
    return [Row(**row | costs.get(row["name"], {})) for row in found]


def _begin(op: Op, kind: str, source: Tensor, out: Tensor) -> dict[str, Any]:
    return {"name": op.name, "kind": kind, "shape_in": source.shape, "shape_out": out.shape}


def _conv(program: Program, op: Conv, source: Tensor, out: Tensor) -> dict[str, Any]:
    return _begin(op, f"conv {op.kernel}x{op.kernel}/{op.stride}", source, out) | {
        "scale": op.scale,
        "low": out.low,
        "high": out.high,
        "accumulator_bits": out.bits,
        "weight_bits": source.channels * out.channels * op.kernel**2,
        "addsub": program.addsub(op),
    }


def _costs(laid_out: Schedule) -> dict[str, dict[str, Any]]:
    """Cycles and places, by row: slices, and a staircase that stands alone, with their layer's."""
    found: dict[str, dict[str, Any]] = {}
    for layer in laid_out.layers:
        row = layer.name.split(".slice")[0].split(QUANTISE)[0]
        entry = found.setdefault(row, {"cycles": 0, "regions": ()})
        entry["cycles"] += layer.cycles
        for tensor in (layer.residual, layer.activation):
            if tensor is not None:
                place = laid_out.region(tensor)
                where = (f"{first}..{first + words - 1}" for first, words in place.extents)
                shown = f"{tensor} {', '.join(where)}"
                if shown not in entry["regions"]:
                    entry["regions"] += (shown,)
    return found


def document(program: Program, laid_out: Schedule | None) -> dict[str, Any]:
    """The same for programs."""
    return {
        "network": program.network,
        "activation_bits": program.activation_bits,
        "addsub_per_image": program.addsub_per_image,
        "weight_bits": program.weight_bits,
        "cycles": laid_out.cycles if laid_out else None,
        "image": _place(laid_out) if laid_out else None,
        "lanes": laid_out.geometry.lanes if laid_out else None,
        "layers": [asdict(row) for row in rows(program, laid_out)],
    }


def show(program: Program, laid_out: Schedule | None, console: Console) -> None:
    """Print the layers."""
    table = Table(
        title=f"{program.network}, {program.activation_bits}-bit activations", title_justify="left"
    )
    for head in [*HEADS, *(["cycles", "memory words"] if laid_out else [])]:
        left = head in ("layer", "kind", "memory words")
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    for row in rows(program, laid_out):
        cells = [
            *(row.name, row.kind, _shape(row.shape_in), _shape(row.shape_out)),
            *(_real(row.scale), _real(row.step), _real(row.unit)),
            *(_number(row.shift), _number(row.fraction_bits)),
            "" if row.low is None else f"{row.low}..{row.high}",
            *(_number(row.accumulator_bits), _number(row.residual_bits)),
            *(_number(row.thresholds or None), _number(row.weight_bits or None)),
            _number(row.addsub or None),
        ]
        if laid_out:
            cells += [_number(row.cycles), "\n".join(row.regions)]
        table.add_row(*cells)
    console.print(table)
    total = f"{program.weight_bits:,} weights, {program.addsub_per_image:,} additions an image"
    cycles = ""
    if laid_out:
        cycles = f", {laid_out.cycles:,} cycles predicted at {laid_out.geometry.lanes} lanes"
        cycles += f", Image {_place(laid_out)}"
    console.print(total + cycles)


def _place(laid_out: Schedule) -> str:
    """Where the Image is while a picture is computed."""
    return "streamed from flash" if laid_out.streamed else "resident"


def _shape(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def _real(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
