"""The processes that train one network together, one a GPU: ``torchrun -m train ...``.

Every process draws the same random numbers and computes its share of each batch; gradients are
averaged by `DistributedDataParallel`. Batch norms take each share's own statistics; their running
moments are averaged before anything is measured or written, so all processes always agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compiler.errors import UsageError
from train.data import WHOLE, Share


@dataclass(frozen=True, slots=True)
class Team:
    """This process among those of its run; one that is alone communicates with nobody."""

    device: torch.device
    share: Share = WHOLE

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.share.index == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place; the answer is the same everywhere."""
        if self.share.count > 1:
            dist.all_reduce(values)
        return values

    def average(self, values: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        for value in values:
            self.sum(value).div_(self.share.count)

    def any(self, flag: bool) -> bool:
        """Whether it holds in some process: a clock may be over in one and not in another."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self.share.count > 1:
            dist.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """The module whose backward pass averages gradients over the processes."""
        if self.share.count == 1:
            return network
        index = [self.device.index] if self.device.type == "cuda" else None
        # Running moments are averaged by `train.loop` when they are needed, not at every step.
        return DistributedDataParallel(network, device_ids=index, broadcast_buffers=False)


@contextmanager
def assembled(device: str = "auto") -> Iterator[Team]:
    """The team that ``torchrun`` has started this process in, or this process alone.

    ``device`` is "auto" (a GPU where there is one), "cuda" or "cpu". Raises `UsageError` for a GPU
    that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a GPU that PyTorch can use", hint="--device cpu")
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # maps keep their sizes: try what is fastest once
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Team(torch.device(device))
        return
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Team(place, Share(dist.get_rank(), dist.get_world_size()))
    finally:
        dist.destroy_process_group()
