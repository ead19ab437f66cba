"""Steps for a network that was trained with float activations.

Steps are chosen by `compiler.steps` on the values that enter each quantiser: those of calibration
images, or, without images, those that batch norm's own statistics promise (what leaves a batch norm
is about normal, with mean beta and deviation gamma).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compiler import arith
from compiler import graph as ir
from compiler.errors import LoweringError
from compiler.graph import Float, Graph
from compiler.steps import Site, bound_of, choose_steps

SAMPLES = 1 << 14
"""Values kept of each tensor: the error's own error is then below 1 %."""


def calibrate(graph: Graph, bits: int, images: NDArray[np.uint8] | None = None) -> Graph:
    """The same network with a step for every quantiser, activations of ``bits``.

    Parameters
    ----------
    images : (N, C, H, W) uint8, optional
        A calibration batch, of the training set; some hundred images.
    """
    sites = {q.name: _site(graph, q, bits) for q in graph.all(ir.Quantiser)}
    values = _observed(graph, images) if images is not None else _promised(graph)
    filled = {
        name: replace(site, values=_rectified(graph, name, values[name]))
        for name, site in sites.items()
    }
    return graph.with_quantisers(choose_steps(filled), bits)


def _site(graph: Graph, node: ir.Quantiser, bits: int) -> Site:
    width = arith.INPUT_BITS if graph.reads_image(node) else bits
    if lowest := graph.lowest(node.source):
        return Site(np.zeros(1), 0, (1 << width) - 1, None, lowest)
    bound = _bound(graph, node)
    return Site(np.zeros(1), -node.zero, (1 << width) - 1 - node.zero, bound)


def _bound(graph: Graph, node: ir.Quantiser | ir.MaxPool) -> float | None:
    """`Site.bound` of the addend that a quantiser feeds; None where nothing binds it."""
    for conv in graph.consumers(node.name):
        if isinstance(conv, ir.MaxPool):
            return _bound(graph, conv)
        if isinstance(conv, ir.Add | ir.AvgPool):  # a stream that starts with activations
            return bound_of(1.0, _pools_before(graph, conv.name))
        if isinstance(conv, ir.Conv) and conv.binary and conv.scale.ndim == 0:
            for reader in graph.consumers(conv.name):
                if isinstance(reader, ir.Add | ir.AvgPool):
                    return bound_of(float(conv.scale), _pools_before(graph, reader.name))
    return None


def _pools_before(graph: Graph, name: str) -> int:
    """Average pools that the residual stream has passed where ``name`` reads it."""
    pools = 0
    while isinstance(node := graph[name], ir.Add | ir.AvgPool):
        name = node.source
        pools += isinstance(graph[name], ir.AvgPool)
    return pools


def _rectified(graph: Graph, name: str, values: Float) -> Float:
    (source,) = ir.sources(graph[name])
    lowest = graph.lowest(source)
    return values if lowest is None else np.maximum(values, lowest)


def _observed(graph: Graph, images: NDArray[np.uint8]) -> dict[str, Float]:
    """What calibration images send into each quantiser, thinned out evenly."""
    sources = {q.name: q.source for q in graph.all(ir.Quantiser)}
    kept: dict[str, list[Float]] = {name: [] for name in sources}
    names = sources.values()
    for values in ir.batches(graph, images, quantised=False, names=names, dtype=np.float32):
        for name, source in sources.items():
            part = values[source].ravel()
            share = SAMPLES * len(values[source]) // len(images)
            # an odd stride, so that the samples meet every column of a map
            kept[name].append(part[:: max(1, len(part) // max(1, share)) | 1].astype(np.float64))
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def _promised(graph: Graph) -> dict[str, Float]:
    """What batch norm's parameters promise for each quantiser."""
    return {q.name: _normal_values(graph, q) for q in graph.all(ir.Quantiser)}


def _normal_values(graph: Graph, node: ir.Quantiser) -> Float:
    norm, draws = graph[node.source], 1
    while isinstance(norm, ir.Relu | ir.MaxPool):
        draws *= norm.kernel**2 if isinstance(norm, ir.MaxPool) else 1
        norm = graph[norm.source]
    if not isinstance(norm, ir.BatchNorm):
        message = f"{node.name}: without a batch norm in front its step needs calibration images"
        raise LoweringError(message)
    channels = np.arange(SAMPLES) % len(norm.gamma)
    normal = np.random.default_rng(0).normal(size=(draws, SAMPLES))
    values = (norm.gamma[channels] * normal + norm.beta[channels]).max(axis=0)
    if graph.reads_image(node):  # no pixel lies outside 0 .. 255
        ends = np.sort([norm.intercept, norm.intercept + 255 * norm.slope], axis=0)
        values = np.clip(values, ends[0][channels], ends[1][channels])
    return np.asarray(values)
