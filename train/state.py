"""What a killed run leaves on disk, and how the next one takes it up.

One file of state, replaced whole after each epoch, and one line of results an epoch. The results
are written first: a line whose state did not follow is dropped when the run resumes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compiler.errors import CheckpointError, UsageError

STATE = "state.pt"
RESULTS = "results.jsonl"

FORMAT = "signum-training-state 3"

MAY_DIFFER = ("epochs", "execution")
"""Settings of a job that a resumed run may have otherwise."""


def replace_file(path: Path, document: Mapping[str, Any]) -> None:
    """Write plain values and tensors, whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(dict(document), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_plain(path: Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`; nothing in it is run.

    Raises `CheckpointError` for anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint must be a file, and there is none at {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged files
        raise CheckpointError(f"{path} must be a whole torch file of plain data") from error
    return found if isinstance(found, dict) else {}


def save_state(out: Path, job: Mapping[str, Any], epoch: int, values: Mapping[str, Any]) -> None:
    """Replace the folder's state: ``epoch`` epochs of ``job`` are done."""
    replace_file(out / STATE, {"format": FORMAT, "job": job, "epoch": epoch, **values})


def load_state(out: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state in the folder, or None where there is none.

    Raises `UsageError` where it is another job's, `CheckpointError` for other files. Two things may
    differ: the number of epochs, on which the schedule does not depend, so that a finished run may
    be prolonged; and how it is computed, so that a run may go on on another machine.
    """
    path = out / STATE
    if not path.exists():
        return None
    state = read_plain(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} must be a '{FORMAT}'",
            hint="it is damaged, or of another release: delete the folder to start afresh",
        )
    if difference := _difference(state["job"], job):
        raise UsageError(
            f"{path} belongs to a run with {difference}",
            hint="take another --out, or delete the folder to start afresh",
        )
    return state


def results(out: Path) -> list[dict[str, Any]]:
    """The results of the epochs done, oldest first.

    A line that a kill cut short is none: it has no state either. Raises `CheckpointError` for a
    file that holds anything else but records.
    """
    path = out / RESULTS
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise CheckpointError(
            f"{path} must hold a JSON record a line",
            hint="it is damaged: delete the folder to start afresh",
        ) from error


def append_result(out: Path, record: Mapping[str, Any]) -> None:
    """Add one epoch's line."""
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def drop_results_after(out: Path, epoch: int) -> None:
    """Keep the lines of the first ``epoch`` epochs."""
    part = out / (RESULTS + ".part")
    kept = (record for record in results(out) if record["epoch"] <= epoch)
    part.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(part, out / RESULTS)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> str:
    """The first setting in which two jobs differ, but for `MAY_DIFFER`, or an empty string."""
    for key, value in new.items():
        if key in MAY_DIFFER:
            continue
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            if found := _difference(old[key], value, f"{path}{key}."):
                return found
        elif old.get(key) != value:
            return f"{path}{key} = {old.get(key)!r}, not {value!r}"
    return ""
