"""Exact convolutions of signs and bytes on the 8-bit matrix units of a CPU.

Products and sums are integers throughout (int8 times int8, summed in int32), so exactness needs no
argument. `torch._int_mm` is the only road to those units from Python; torch is pinned to one
version, and `available` keeps away from it on CPUs where it is slower than floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from compiler.arith import Pads

LOW, HIGH = -128, 127


def available() -> bool:
    """Whether this CPU multiplies bytes faster than floats: four times with VNNI, more with AMX."""
    import torch

    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_vnni") or found.get("amx_int8"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread for each of ours: its own wait for cores that ours use."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def convolve(
    x: NDArray[np.int8], signs: NDArray[np.int8], stride: int, pads: Pads, padding: int
) -> NDArray[np.int32]:
    """Accumulators ``sum(signs * x)``, exact.

    Parameters
    ----------
    x : (N, H, W, C_in) int8
    signs : (C_out, C_in, K, K) int8, +1 and -1
    padding : int
        What stands around the map, `LOW` .. `HIGH`.

    Returns
    -------
    (N, H_out, W_out, C_out) int32
    """
    import torch

    n, h, w, c = x.shape
    c_out, kernel = signs.shape[0], signs.shape[-1]
    h_out, w_out = pads.output_size((h, w), kernel, stride)
    size = (n, h + pads.top + pads.bottom, w + pads.left + pads.right, c)
    padded = np.full(size, padding, np.int8)
    padded[:, pads.top : pads.top + h, pads.left : pads.left + w] = x
    rows = np.empty((n, h_out, w_out, kernel, kernel, c), np.int8)
    for ky in range(kernel):
        for kx in range(kernel):
            down = slice(ky, ky + stride * (h_out - 1) + 1, stride)
            across = slice(kx, kx + stride * (w_out - 1) + 1, stride)
            rows[:, :, :, ky, kx] = padded[:, down, across]
    matrix = np.ascontiguousarray(signs.transpose(2, 3, 1, 0)).reshape(-1, c_out)
    left, right = (torch.from_numpy(m) for m in (rows.reshape(-1, len(matrix)), matrix))
    product: NDArray[np.int32] = torch._int_mm(left, right).numpy()
    return product.reshape(n, h_out, w_out, c_out)
