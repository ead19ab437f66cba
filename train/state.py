"""What a killed run leaves on disk, and how the next one takes it up.

One file of state, replaced whole after each epoch, and one line of results an epoch. The results
are written first: a line whose state did not follow is dropped when the run resumes.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compiler.errors import CheckpointError, UsageError

STATE = "state.pt"
RESULTS = "results.jsonl"

FORMAT = "signum-training-state 1"

UNREADABLE = (OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError)
"""What `torch.load` raises on files that are something else."""


def save_state(out: Path, job: Mapping[str, Any], epoch: int, values: Mapping[str, Any]) -> None:
    """Replace the folder's state: ``epoch`` epochs of ``job`` are done."""
    part = out / (STATE + ".part")
    with part.open("wb") as file:
        torch.save({"format": FORMAT, "job": job, "epoch": epoch, **values}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, out / STATE)


def load_state(out: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state in the folder, or None where there is none.

    Raises `UsageError` where it is another job's (the number of epochs may differ: the schedule
    does not depend on it, so a finished run may be prolonged), `CheckpointError` for other files.
    """
    path = out / STATE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} must be a state of training: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} must be a '{FORMAT}'")
    if difference := _difference(state["job"], job):
        raise UsageError(
            f"{path} belongs to a run with {difference}",
            hint="take another --out, or delete the folder to start afresh",
        )
    return state


def results(out: Path) -> list[dict[str, Any]]:
    """The results of the epochs done, oldest first."""
    path = out / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_result(out: Path, record: Mapping[str, Any]) -> None:
    """Add one epoch's line."""
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps(record) + "\n")


def drop_results_after(out: Path, epoch: int) -> None:
    """Keep the lines of the first ``epoch`` epochs."""
    part = out / (RESULTS + ".part")
    kept = (record for record in results(out) if record["epoch"] <= epoch)
    part.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(part, out / RESULTS)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> str:
    """The first setting but ``epochs`` in which two jobs differ, or an empty string."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            if found := _difference(old[key], value, f"{path}{key}."):
                return found
        elif key != "epochs" and old.get(key) != value:
            return f"{path}{key} = {old.get(key)!r}, not {value!r}"
    return ""
