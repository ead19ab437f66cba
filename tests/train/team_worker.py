"""One process of a team; `test_train_team.py` starts two of it by torchrun.

Arguments: the folder of the run, and the changes to the small job as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import train.loop
from tests.train import small
from train.data import splits
from train.loop import Progress
from train.team import assembled


def main(out: str, changes: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    train.loop.MOMENTS_IMAGES = 100
    with assembled("cpu") as team:
        data = splits(small.dataset(), team.device)
        train.loop.train(small.job(**json.loads(changes)), data, Path(out), Progress(), team)


if __name__ == "__main__":
    main(*sys.argv[1:])
