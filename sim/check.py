"""Runs networks on a simulated engine and compares every layer with the golden model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import arith, golden
from compiler.errors import MismatchError
from compiler.geometry import Geometry
from compiler.image import Image
from compiler.program import Pool, Program, Tensor
from compiler.schedule import Region, Schedule
from sim.runner import Simulation

Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Run:
    """What a simulated engine did with some pictures.

    Attributes
    ----------
    scores : (N, classes)
    labels : (N,)
    cycles : (N,) from the first layer's start to the class
    layer_cycles : (N, layers)
    tensors : dict of name to (M, C, H, W), those that stand in memory between layers
        Of the first M <= N pictures.
    """

    scores: Int
    labels: Int
    cycles: Int
    layer_cycles: Int
    tensors: dict[str, Int]

    def part(self, which: slice) -> Run:
        """Some of the pictures; tensors where there are any of them."""
        tensors = {name: maps[which] for name, maps in self.tensors.items()}
        return Run(
            *(self.scores[which], self.labels[which], self.cycles[which], self.layer_cycles[which]),
            {name: maps for name, maps in tensors.items() if len(maps)},
        )


def pixels_of(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, C, H, W) to the engine's byte order, (N, H*W*C)."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)).reshape(len(images), -1)


def watched(schedule: Schedule) -> list[list[str]]:
    """Tensors that each layer leaves in memory."""
    return [
        [name for name in (layer.residual, layer.activation) if name is not None]
        for layer in schedule.layers
    ]


def extents(schedule: Schedule) -> list[list[tuple[int, int]]]:
    """(first, words) of what lies together in memory, for each layer's `watched` in order."""
    return [
        [e for name in layer for e in schedule.region(name).extents] for layer in watched(schedule)
    ]


def decode(schedule: Schedule, name: str, bits: NDArray[np.uint8]) -> Int:
    """A region's words, (words, bits), to its tensor, (C, H, W)."""
    geometry, tensor = schedule.geometry, schedule.program[name]
    if tensor.kind == "residual":
        return _residuals(tensor, bits, geometry)
    values = _fields(bits, geometry.activation_bits, geometry.word_channels)
    planes = -(-tensor.channels // geometry.word_channels)
    shape = (planes, tensor.height, tensor.width, geometry.word_channels)
    maps = values.reshape(shape).transpose(0, 3, 1, 2)
    return maps.reshape(-1, tensor.height, tensor.width)[: tensor.channels]


def _fields(bits: NDArray[np.uint8], width: int, count: int) -> Int:
    split = bits[:, : width * count].reshape(len(bits), count, width).astype(np.int64)
    return np.asarray((split << np.arange(width)).sum(axis=-1))


def _residuals(tensor: Tensor, bits: NDArray[np.uint8], geometry: Geometry) -> Int:
    width, lanes = geometry.residual_bits, geometry.pixel_lanes
    values = _fields(bits, width, geometry.residual_lanes)
    values = np.where(values >> (width - 1), values - (1 << width), values)
    tiles = -(-tensor.width // lanes)
    shape = (-1, tensor.height, tiles, geometry.residual_channels, lanes)
    maps: Int = values.reshape(shape).transpose(0, 3, 1, 2, 4)
    maps = maps.reshape(-1, tensor.height, tiles * lanes)
    return np.asarray(maps[: tensor.channels, :, : tensor.width])


def parameters_of(
    schedules: Sequence[Schedule],
    images: Sequence[NDArray[np.uint8]],
    *,
    layers: bool = True,
    stall: str = "never",
) -> dict[str, Any]:
    """What `sim.benches.engine` needs to run networks one after another, each on its pictures."""
    parameters: dict[str, Any] = {
        "geometry": asdict(schedules[0].geometry),
        "networks": [],
        "stall": stall,
    }
    longest = 0
    for i, (schedule, pictures) in enumerate(zip(schedules, images, strict=True)):
        regions = [list(map(list, layer if layers else [])) for layer in extents(schedule)]
        parameters["networks"].append(
            {"classes": schedule.program.scores.channels, "regions": regions}
        )
        parameters[f"words{i}"] = np.array(Image.of(schedule).words(), dtype=np.uint64)
        parameters[f"pixels{i}"] = pixels_of(pictures)
        longest = max(longest, schedule.cycles + schedule.header["pixels"] * 64)
    parameters["timeout_us"] = max(100, longest // 100 * 20)
    return parameters


def run(
    simulation: Simulation,
    schedules: Sequence[Schedule],
    images: Sequence[NDArray[np.uint8]],
    *,
    layers: bool = True,
    stall: str = "never",
    seed: int | None = None,
    timeout_s: float = 1800.0,
) -> list[Run]:
    """Run several networks one after another on one engine, each on its own pictures."""
    results = simulation.run(
        "sim.benches.engine",
        test_filter="computes",
        parameters=parameters_of(schedules, images, layers=layers, stall=stall),
        seed=seed,
        timeout_s=timeout_s,
    )
    return [
        collect(results.values, i, s, len(pictures) if layers else 0)
        for i, (s, pictures) in enumerate(zip(schedules, images, strict=True))
    ]


def collect(values: Mapping[str, Any], i: int, schedule: Schedule, layer_images: int) -> Run:
    """The Run of network ``i`` of what a simulation left.

    Parameters
    ----------
    values : mapping of
        ``answers<i>`` (N, classes): the engine's words; ``spans<i>`` (N * layers, 2): the cycles in
        which a layer started and was done; ``classes<i>`` (N,): those in which a class came;
        ``memory<i>_<k>`` (words, bits): the k-th region, picture by picture.
    layer_images : int
        Pictures of which there are regions.
    """
    answers = np.asarray(values[f"answers{i}"], dtype=np.int64)
    pictures = len(answers)
    scores = answers & ((1 << arith.SCORE_BITS) - 1)
    scores = np.where(scores >> (arith.SCORE_BITS - 1), scores - (1 << arith.SCORE_BITS), scores)
    labels = answers[:, -1] >> arith.SCORE_BITS & 0xFF
    spans = np.asarray(values[f"spans{i}"]).reshape(pictures, -1, 2)
    count = layer_images * sum(map(len, extents(schedule)))
    tensors = tensors_of(schedule, [np.asarray(values[f"memory{i}_{n}"]) for n in range(count)])
    return Run(
        scores,
        labels,
        np.asarray(values[f"classes{i}"]) - spans[:, 0, 0],
        spans[:, :, 1] - spans[:, :, 0],
        tensors,
    )


def tensors_of(schedule: Schedule, memory: Sequence[NDArray[np.uint8]]) -> dict[str, Int]:
    """Each watched tensor, (N, C, H, W), of `extents` as (words, bits), picture by picture."""
    names = [name for layer in watched(schedule) for name in layer]
    maps: dict[str, list[Int]] = {}
    at = 0
    while at < len(memory):
        for name in names:
            parts = len(schedule.region(name).extents)
            words = np.concatenate(memory[at : at + parts])
            maps.setdefault(name, []).append(decode(schedule, name, words))
            at += parts
    return {name: np.stack(values) for name, values in maps.items()}


def compare(schedule: Schedule, images: NDArray[np.uint8], got: Run) -> None:
    """Hold a run to the golden model, layer by layer in the order of the flow.

    Raises
    ------
    MismatchError
        At the first tensor that differs: which, how many values, and the first of them.
    """
    program = schedule.program
    if not len(images):
        return
    names = list(got.tensors)
    expected = golden.run(program, images, names)
    for name in names:
        stored = stored_channels(program, name)
        _hold(name, expected.tensors[name][:, :stored], got.tensors[name][:, :stored])
    _hold("scores", expected.scores, got.scores)
    _hold("class", expected.classes, got.labels)


def stored_channels(program: Program, name: str) -> int:
    """Channels of a tensor in memory: those that a pool appends are 0 without standing there."""
    op = next(op for op in program.ops if op.output == name)
    return program[op.source if isinstance(op, Pool) else name].channels


def _hold(name: str, expected: Int, got: Int) -> None:
    wrong = np.argwhere(expected != got)
    if len(wrong):
        shown = "; ".join(
            f"{tuple(int(v) for v in at)}: expected {expected[tuple(at)]}, got {got[tuple(at)]}"
            for at in wrong[:4]
        )
        raise MismatchError(
            f"{name}: simulation must equal the golden model, but {len(wrong):,} of "
            f"{expected.size:,} values differ, at (image, channel, y, x) {shown}"
        )


__all__ = [
    "Region",
    "Run",
    "collect",
    "compare",
    "decode",
    "extents",
    "pixels_of",
    "run",
    "stored_channels",
    "tensors_of",
    "watched",
]
