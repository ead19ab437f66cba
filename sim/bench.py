"""What a bench calls inside the simulator: its parameters, its results, clock and reset.

A bench is a module of cocotb tests. `runner.Simulation.run` hands it parameters and takes back
values, both through files named by the environment, so any mix of JSON values and arrays passes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARAMETERS_VARIABLE = "SIGNUM_BENCH"
"""Environment variable: the JSON file of parameters; `arrays.npz` beside it holds the arrays."""

VALUES_VARIABLE = "SIGNUM_BENCH_VALUES"
"""Environment variable: the JSON file to write results to; its `.npz` twin holds the arrays."""


def save(path: Path, values: Mapping[str, Any]) -> None:
    """Write values to `path` (JSON) and arrays, if there are any, to its `.npz` twin."""
    arrays = {key: value for key, value in values.items() if hasattr(value, "__array_interface__")}
    arrays = {key: value for key, value in arrays.items() if value.shape}
    plain = {key: value for key, value in values.items() if key not in arrays}
    path.write_text(json.dumps(plain, indent=1, default=_plain))
    if arrays:
        import numpy as np  # a bench without arrays starts faster without numpy

        np.savez(path.with_suffix(".npz"), **arrays)


def load(path: Path) -> dict[str, Any]:
    """Read back what `save` wrote; an absent file reads as nothing."""
    if not path.exists():
        return {}
    values: dict[str, Any] = json.loads(path.read_text())
    if path.with_suffix(".npz").exists():
        import numpy as np

        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            values.update(arrays)
    return values


def _plain(value: object) -> object:
    if hasattr(value, "__array_interface__") and hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"a bench parameter must be JSON or an array, not {type(value).__name__} {value!r}"
    )


def parameters() -> dict[str, Any]:
    """The parameters of this run, as given to `Simulation.run`; empty without any."""
    return load(Path(os.environ[PARAMETERS_VARIABLE])) if PARAMETERS_VARIABLE in os.environ else {}


def publish(**values: Any) -> None:
    """Add values to what `Simulation.run` returns; a later value of a name replaces an earlier."""
    path = Path(os.environ[VALUES_VARIABLE])
    save(path, {**load(path), **values})


def period_ps(frequency_mhz: float) -> int:
    """Of a clock that `start_clock` drives, and an even number, as its halves are whole."""
    return 2 * round(500_000 / frequency_mhz)


def start_clock(signal: Any, frequency_mhz: float = 100.0, *, high: bool = False) -> None:
    """Drive a clock from compiled code, not from Python, with the level that it begins with."""
    from cocotb.clock import Clock  # importable in a simulator only

    Clock(signal, period_ps(frequency_mhz), unit="ps", impl="gpi").start(start_high=high)


def start_clocks(dut: Any, frequency_mhz: float = 100.0) -> None:
    """Drive ``dut.clk`` and, where there is one, ``dut.fast_clk`` of twice its frequency.

    They rise together: `clk` half a period from now, and the other then for the second time.
    """
    start_clock(dut.clk, frequency_mhz)
    if hasattr(dut, "fast_clk"):
        start_clock(dut.fast_clk, 2 * frequency_mhz, high=True)


async def reset(dut: Any, cycles: int = 2) -> None:
    """Hold the resets high over some rising edges of `dut.clk`, then return just after one."""
    from cocotb.triggers import RisingEdge  # importable in a simulator only

    resets = [getattr(dut, name) for name in ("rst", "fast_rst") if hasattr(dut, name)]
    for signal in resets:
        signal.value = 1
    for _ in range(cycles):
        await RisingEdge(dut.clk)
    for signal in resets:
        signal.value = 0
