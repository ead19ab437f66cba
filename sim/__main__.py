"""`python -m sim`: run the benches, and compare the accuracy of float, integers and RTL."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import pkgutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from compiler.arguments import count, lanes
from compiler.errors import SignumError, UsageError

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def benches() -> list[str]:
    """Names of the blocks that have a bench: the modules of `sim.benches` with a `design()`."""
    from sim import benches as package

    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [name for name in names if hasattr(_bench_module(name), "design")]


def _bench_module(name: str) -> ModuleType:
    return importlib.import_module(f"sim.benches.{name}")


def run(args: argparse.Namespace) -> int:
    """Build each named block (all without a name) and run its bench; the first failure stops."""
    from amaranth.hdl import UnusedElaboratable
    from rich.console import Console

    from sim.runner import Simulation, default_seed

    known = benches()
    if args.block and args.block not in known:
        raise UsageError(
            f"BLOCK must be one of {', '.join(known)}, not {args.block!r}",
            hint="python -m sim list",
        )
    # After a failure or Ctrl-C the designs not reached are never elaborated, which is no fault.
    warnings.filterwarnings("ignore", category=UnusedElaboratable)
    seed = default_seed() if args.seed is None else args.seed
    console = Console(stderr=args.json)
    report = {}
    for name in [args.block] if args.block else known:
        module = _bench_module(name)
        for case, (component, options, parameters) in module.design().items():
            label = f"{name} {case}".strip()
            with console.status(f"{label}: building"):
                started = time.monotonic()
                simulation = Simulation.build(component, name, waves=args.waves, **options)
                built_s = time.monotonic() - started
            with console.status(f"{label}: running, seed {seed}"):
                results = simulation.run(
                    module.__name__, parameters=parameters, seed=seed, timeout_s=args.timeout
                )
            passed = sum(outcome.passed for outcome in results.tests.values())
            report[label] = {
                "tests": passed,
                "seed": seed,
                "build_s": round(built_s, 2),
                "run_s": round(results.wall_s, 2),
                "folder": str(results.folder),
                "values": {k: v for k, v in results.values.items() if not hasattr(v, "shape")},
            }
            console.print(
                f"{label}: {passed} passed, seed {seed} "
                f"(built in {built_s:.1f} s, ran in {results.wall_s:.1f} s)",
                highlight=False,
            )
    if args.json:
        print(json.dumps(report, indent=1))
    return 0


def list_blocks(_args: argparse.Namespace) -> int:
    """Print the blocks that have a bench, with what it says of itself."""
    for name in benches():
        summary = (_bench_module(name).__doc__ or "").strip().splitlines()[0]
        print(f"{name:<16} {summary}")
    return 0


def accuracy(args: argparse.Namespace) -> int:
    """Float, golden and simulated RTL on the same test images, side by side."""
    import numpy as np
    from rich.console import Console

    from boards import records
    from compiler import accuracy as accuracies
    from compiler import networks
    from compiler.geometry import geometry_for
    from compiler.schedule import fitted, schedule
    from sim import accuracy as simulation

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(line, markup=False)

    board = records.find(args.board or "ice40")
    read = networks.load(args.file)
    data, missing = accuracies.open_data(read, args.dataset, args.data)
    if data is None:
        raise UsageError(f"there must be images to run: {missing}", "--dataset NAME --data DIR")
    needed = accuracies.needs_calibration(read, args.activation_bits)
    calibration = accuracies.calibration_of(data) if needed else None
    network = networks.graph_of(read)
    program = accuracies.program_of(network, args.activation_bits, calibration, board.geometry)
    geometry = geometry_for(board.geometry, program.activation_bits, args.lanes)
    laid_out = schedule(program, geometry) if args.board else fitted(program, geometry)
    if more := laid_out.geometry.beyond(geometry):
        say(f"{program.network} does not fit {board.name}: simulating an engine with {more}")
    images, labels = data.test_images[: args.images], data.test_labels[: args.images]
    measured = accuracies.measure(network, program, images, labels, calibration)
    done = simulation.on_engine(laid_out, images, layer_images=args.layers, say=say)
    run, seconds = done.run, done.seconds
    cycles = round(float(np.mean(run.cycles)))
    achieved = program.addsub_per_image / cycles
    report: dict[str, Any] = {
        "network": program.network,
        "activation_bits": program.activation_bits,
        "lanes": laid_out.geometry.lanes,
        "accuracy": measured.report()
        | {
            "rtl": float(np.mean(run.labels == labels)),
            "rtl_layer_images": min(args.layers, len(images)),
            "golden_equals_rtl": True,  # `on_engine` raises otherwise
        },
        "cycles_per_image": {"predicted": laid_out.cycles, "simulated": cycles},
        "utilisation": achieved / laid_out.geometry.lanes,
        "seconds": round(seconds, 1),
        "cycles_per_second": round(float(run.cycles.sum()) / seconds),
        "images_per_minute": round(60 * len(images) / seconds, 1),
    }
    if args.json:
        print(json.dumps(report, indent=1))
        return 0
    found = report["accuracy"]
    print(f"{program.network}, {len(images)} test images of {data.name}")
    for name in ("float_unquantised", "float", "golden", "rtl", "golden_agrees_float"):
        print(f"{name:20} {100 * found[name]:.2f} %")
    print(
        f"rtl equals golden: all scores of {len(images)} images, "
        f"every layer of {found['rtl_layer_images']}"
    )
    print(
        f"{cycles:,} cycles an image, {laid_out.cycles:,} predicted; "
        f"{100 * report['utilisation']:.1f} % of {laid_out.geometry.lanes} lanes busy"
    )
    print(
        f"simulated in {seconds:.1f} s: {report['cycles_per_second']:,} cycles a second, "
        f"{report['images_per_minute']:,} images a minute"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    top.add_argument("-v", "--verbose", action="count", default=0, help="say more; -vv: tracebacks")
    commands = top.add_subparsers(dest="command", required=True)

    command = commands.add_parser("run", help="run the bench of a block, or of all")
    command.add_argument("block", nargs="?", metavar="BLOCK", help="see `list`; all without one")
    command.add_argument("--seed", type=_seed, metavar="N", help="of every random choice")
    command.add_argument("--waves", action="store_true", help="record signals to dump.vcd")
    command.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="limit of a run in seconds"
    )
    command.add_argument("--json", action="store_true", help="results on standard output as JSON")
    command.set_defaults(function=run)

    command = commands.add_parser(
        "accuracy", help="float, golden and simulated RTL accuracy of a network"
    )
    command.add_argument("file", metavar="FILE", help="checkpoint, .mat or .onnx")
    command.add_argument("--images", type=count, default=4, metavar="N", help="how many")
    command.add_argument(
        "--layers", type=count, default=1, metavar="N", help="of how many every layer is compared"
    )
    command.add_argument(
        "--activation-bits", type=int, choices=range(2, 9), metavar="b", help="2 .. 8"
    )
    command.add_argument("--board", metavar="B", help="its engine, and no roomier one")
    command.add_argument("--lanes", type=lanes, metavar="INxOUTxPIX", help="default: the board's")
    command.add_argument("--dataset", metavar="NAME", help="default: what it was trained on")
    command.add_argument("--data", type=Path, metavar="DIR", help="default: $SIGNUM_DATA")
    command.add_argument("--json", action="store_true", help="results on standard output as JSON")
    command.set_defaults(function=accuracy)

    command = commands.add_parser("list", help="list the blocks that have a bench")
    command.set_defaults(function=list_blocks)
    return top


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"must be a number of at most nine digits, not {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code (see `compiler.errors`)."""
    args = parser().parse_args(arguments)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)]
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    function: Callable[[argparse.Namespace], int] = args.function
    try:
        return function(args)
    except SignumError as error:
        if args.verbose > 1:
            traceback.print_exc()
        print(error.report(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if args.verbose > 1:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
