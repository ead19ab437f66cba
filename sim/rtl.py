"""From an Amaranth component to RTLIL and Verilog, and what may not be found on the way.

The text that comes out depends on the circuit alone: no source locations, no temporary names. So
its digest names the circuit, and everything built from it can be cached under that digest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable

from boards import toolchain

MULTIPLIER_CELLS = frozenset(
    {"$mul", "$macc", "$macc_v2", "$div", "$divfloor", "$mod", "$modfloor", "$pow"}
)
"""RTLIL cells that stand for more than additions, comparisons and shifts."""


@dataclass
class Counters:
    """How often this process did the expensive things; tests hold caching to account with it."""

    elaborations: int = 0
    conversions: int = 0
    builds: int = 0
    runs: int = 0


counters = Counters()


def to_rtlil(component: Elaboratable, name: str = "top", *, ports: Mapping | None = None) -> str:
    """Elaborate a component to RTLIL text, the same text for the same circuit.

    Parameters
    ----------
    component : Elaboratable
        A `wiring.Component`, or anything else if `ports` is given.
    name : str
        Of the top module.
    ports : mapping of str to (Value, PortDirection), or None
        Only for what has no signature.
    """
    counters.elaborations += 1
    return rtlil.convert(component, name, ports=ports, emit_src=False)


def rtlil_to_verilog(text: str) -> str:
    """Convert RTLIL to Verilog that runs fast (see `boards.toolchain.to_verilog`)."""
    counters.conversions += 1
    return toolchain.to_verilog(text, attributes=False)


def to_verilog(component: Elaboratable, name: str = "top", *, ports: Mapping | None = None) -> str:
    """Elaborate a component to Verilog (see `to_rtlil` and `rtlil_to_verilog`)."""
    return rtlil_to_verilog(to_rtlil(component, name, ports=ports))


def count_cells(text: str) -> Counter[str]:
    """Number of cells of each type in RTLIL text, over all modules as written (not instances)."""
    return Counter(re.findall(r"^\s*cell \\?(\S+)", text, re.MULTILINE))


def count_multipliers(component: Elaboratable, *, ports: Mapping | None = None) -> int:
    """Number of multiplier, divider and power cells a component elaborates to; must be 0 in hw."""
    cells = count_cells(to_rtlil(component, ports=ports))
    return sum(number for kind, number in cells.items() if kind in MULTIPLIER_CELLS)
