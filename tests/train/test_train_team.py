"""Two processes against one: the same loss curve, and what happens where they cannot share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.checkpoint import load
from compiler.errors import UsageError
from tests.conftest import ROOT
from tests.train import small
from train.data import Share, splits
from train.loop import Progress, calibrate, train
from train.team import Team, assembled

CPU = torch.device("cpu")

BOUND = 1e-9
"""Relative, in float64: the two differ in the order of sums alone, 1e-16 at a time, and a step of
descent on 16 steps of this network multiplies that by less than a million."""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, on a port of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_two(out: Path, **changes: Any) -> list[dict[str, Any]]:
    done = torchrun("tests/train/team_worker.py", str(out), json.dumps(changes))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


class Halves(nn.BatchNorm2d):
    """Batch norm in one process as two processes have it: each half of a batch for itself."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        halves = x.chunk(2)
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            for running, moments in (
                (self.running_mean, [h.mean((0, 2, 3)) for h in halves]),
                (self.running_var, [h.var((0, 2, 3)) for h in halves]),
            ):
                running.lerp_(torch.stack(moments).mean(0), share)
        normal = [F.batch_norm(h, None, None, self.weight, self.bias, True) for h in halves]
        return torch.cat(normal)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_two_processes_are_one_with_half_batch_norms(
    tmp_path: Path, float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"batch": 24, "activation_bits": None, "quantise_from": 0}
    two = run_two(tmp_path / "two", **changes)
    monkeypatch.setattr("train.loop.MOMENTS_IMAGES", 100)
    data = splits(small.dataset(), CPU)
    train(small.job(**changes), data, tmp_path / "whole", Progress())
    monkeypatch.setattr("torch.nn.BatchNorm2d", Halves)
    train(small.job(**changes), data, tmp_path / "halves", Progress())
    one, whole = (
        [json.loads(x) for x in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        for name in ("halves", "whole")
    )
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=BOUND)
        for name in ("train_accuracy", "test_accuracy"):
            assert a[name] == b[name]
    assert one[-1]["deployed_accuracy"] == two[-1]["deployed_accuracy"]
    gap = abs(whole[-1]["train_loss"] / one[-1]["train_loss"] - 1)
    assert gap > 1e4 * BOUND  # halves matter: the bound would not hold by itself
    a, b = (load(tmp_path / name / "checkpoint.pt").tensors for name in ("two", "halves"))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)
    sessions = json.loads((tmp_path / "two/run.json").read_text())["sessions"]
    assert [s["machine"]["processes"] for s in sessions] == [2]


def test_two_processes_choose_the_steps_of_one(
    tmp_path: Path, float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"batch": 24, "quantise_from": 0, "epochs": 1}
    run_two(tmp_path / "two", **changes)
    monkeypatch.setattr("train.loop.MOMENTS_IMAGES", 100)
    train(small.job(**changes), splits(small.dataset(), CPU), tmp_path / "one", Progress())
    two, one = (torch.load(tmp_path / name / "state.pt")["steps"] for name in ("two", "one"))
    assert two == one


def test_two_processes_learn_the_steps_of_one(
    tmp_path: Path, float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every eighth image gives steps their gradient: of two halves of 24 the same as of 48.
    changes = {"batch": 48, "quantise_from": 1, "epochs": 3, "steps": "learned"}
    run_two(tmp_path / "two", **changes)
    monkeypatch.setattr("train.loop.MOMENTS_IMAGES", 100)
    plain, halves = nn.BatchNorm2d.forward, Halves.forward
    monkeypatch.setattr("torch.nn.BatchNorm2d", Halves)

    def whole(*arguments: Any) -> None:  # every process calibrates on whole batches
        monkeypatch.setattr(Halves, "forward", plain)
        calibrate(*arguments)
        monkeypatch.setattr(Halves, "forward", halves)

    monkeypatch.setattr("train.loop.calibrate", whole)
    found = [torch.load(tmp_path / "two" / "state.pt")["steps"]]
    for name, changed in (("one", {}), ("still", {"steps": "calibrated"})):
        job = small.job(**changes | changed)
        train(job, splits(small.dataset(), CPU), tmp_path / name, Progress())
        found.append(torch.load(tmp_path / name / "state.pt")["steps"])
    two, one, still = found
    assert two == pytest.approx(one, rel=1e-9)
    assert two != pytest.approx(still, rel=1e-4)


@pytest.mark.slow
def test_two_processes_resume_exactly(tmp_path: Path) -> None:
    for epochs in (1, 3):
        broken = run_two(tmp_path / "broken", batch=24, quantise_from=0, epochs=epochs)
    whole = run_two(tmp_path / "whole", batch=24, quantise_from=0, epochs=3)
    assert [r["train_loss"] for r in broken] == [r["train_loss"] for r in whole]


@pytest.mark.slow
def test_the_command_runs_on_two_processes(tmp_path: Path) -> None:
    flags = "--dataset digits --net 8-0.25 --epochs 1 --batch 128 --device cpu --threads 1"
    done = torchrun("-m", "train", *flags.split(), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] == 1  # one line: the leader's
    assert done.stderr.count("WRN 8-0.25") == 1
    assert load(tmp_path / "checkpoint.pt").training["epochs"] == 1


def test_a_batch_must_divide(tmp_path: Path) -> None:
    team = Team(CPU, Share(0, 2))
    with pytest.raises(UsageError, match="evenly among 2 processes, not 25 images") as caught:
        train(small.job(), splits(small.dataset(), CPU), tmp_path, Progress(), team)
    assert caught.value.hint == "--batch 24"


def test_shares_make_up_the_batch() -> None:
    training, test = splits(small.dataset(), CPU)

    def batches(share: Share) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(4)
        return list(
            training.training_batches(30, small.job().recipe.augmentation, generator, share)
        )

    parts = [batches(Share(i, 3)) for i in range(3)]
    for step, (images, labels) in enumerate(batches(Share())):
        assert torch.equal(images, torch.cat([part[step][0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[step][1] for part in parts]))
    seen = [labels for i in range(4) for _, labels in test.batches(3, Share(i, 4))]
    assert sorted(torch.cat(seen).tolist()) == sorted(test.labels.tolist())


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with assembled("cpu") as team:
        assert team == Team(CPU) and team.leads
        assert team.wrap(module := nn.Identity()) is module


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda needs a GPU"), assembled("cuda"):
        pass
