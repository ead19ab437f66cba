"""``run.json``: what a run was, and on which code and machine each of its sessions ran."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from train.recipe import Job

RUN = "run.json"


def record_session(out: Path, job: Job, first_epoch: int, device: torch.device, count: int) -> None:
    """Add this session to the folder's ``run.json``: it resumes after ``first_epoch`` epochs."""
    path = out / RUN
    sessions = json.loads(path.read_text())["sessions"] if path.exists() else []
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "after_epoch": first_epoch,
        "execution": asdict(job.execution),
        "commit": git_commit(),
        "versions": versions(),
        "machine": machine(device, count),
    }
    document = {"job": job.described(), "seed": job.recipe.seed, "sessions": [*sessions, session]}
    part = out / (RUN + ".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(part, path)


def versions() -> dict[str, str]:
    """Of everything that decides a result's last bit."""
    names = ("torch", "numpy")
    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    return {"python": platform.python_version(), **{n: version(n) for n in names}, **cuda}


def machine(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """The processor, the threads PyTorch uses of it, and the GPU where one is used."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def git_commit() -> str:
    """The commit that this file is of, with ``+changes`` where the tree has some; or "unknown"."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    """The model's name; `platform.processor` knows it on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
