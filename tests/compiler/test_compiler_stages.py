"""Steps of a build: what runs again, what is believed, and what an interruption leaves."""

from __future__ import annotations

import json

import pytest

from compiler.errors import UsageError
from compiler.stages import SHARED_KEPT, STAMPS, Stages, digest, make_folder, write

NAMES = ("first", "second")


class Flow:
    """Two steps: a number is written, then doubled."""

    def __init__(self, folder):
        self.folder = make_folder(folder)

    def build(self, value=1, start=None, shared=None):
        self.stages = Stages(self.folder, NAMES, start, shared=shared)
        a, b = self.folder / "a.txt", self.folder / "b.txt"
        self.stages.run("first", [value], ("a.txt",), lambda: write(a, str(value)))
        self.stages.run("second", [a.read_text()], ("b.txt",), self._double, share=True)
        return b.read_text()

    def _double(self):
        a = (self.folder / "a.txt").read_text()
        write(self.folder / "b.txt", str(2 * int(a)))
        return {"of": a}


@pytest.fixture
def flow(tmp_path):
    return Flow(tmp_path / "made")


def test_runs_what_has_changed(flow):
    assert flow.build() == "2"
    assert flow.stages.ran == ["first", "second"]
    assert flow.build() == "2"
    assert flow.stages.ran == []
    assert flow.build(5) == "10"
    assert flow.stages.ran == ["first", "second"]


@pytest.mark.parametrize("change", ["product gone", "product damaged", "stamp gone", "stamp cut"])
def test_does_not_believe(flow, change):
    flow.build(3)
    stamp = flow.folder / STAMPS / "second.json"
    match change:
        case "product gone":
            (flow.folder / "b.txt").unlink()
        case "product damaged":
            (flow.folder / "b.txt").write_text("7")
        case "stamp gone":
            stamp.unlink()
        case "stamp cut":
            stamp.write_text(stamp.read_text()[:40])
    assert flow.build(3) == "6"
    assert flow.stages.ran == ["second"]


@pytest.fixture
def another(flow, tmp_path):
    """A second folder, and what it shares with the first."""
    flow.build(3, shared=tmp_path / "shared")
    return Flow(tmp_path / "another"), tmp_path / "shared"


def test_takes_over_what_is_shared(flow, another):
    """A step that is shared runs once for all folders; any other in each of them."""
    second, shared = another
    assert second.build(3, shared=shared) == "6"
    assert second.stages.ran == ["first"]
    assert second.stages.run("second", ["3"], ("b.txt",), list) == {"of": "3"}
    assert second.build(3) == "6"
    assert second.stages.ran == []
    assert second.build(4, shared=shared) == "8"
    assert second.stages.ran == ["first", "second"]


@pytest.mark.parametrize("change", ["product damaged", "product gone", "stamp cut", "stamp gone"])
def test_does_not_take_over_what_is_damaged(flow, another, change):
    second, shared = another
    (place,) = shared.iterdir()
    match change:
        case "product damaged":
            (place / "b.txt").write_text("7")
        case "product gone":
            (place / "b.txt").unlink()
        case "stamp cut":
            (place / "second.json").write_text("{")
        case "stamp gone":
            (place / "second.json").unlink()
    assert second.build(3, shared=shared) == "6"
    assert second.stages.ran == ["first", "second"]


def test_a_restart_takes_nothing_over(flow, another):
    second, shared = another
    second.build(3)
    assert second.build(3, start="second", shared=shared) == "6"
    assert second.stages.ran == ["second"]


def test_shares_no_more_than_it_may(flow, tmp_path):
    for value in range(SHARED_KEPT + 3):
        flow.build(value, shared=tmp_path / "shared")
    left = {(place / "b.txt").read_text() for place in (tmp_path / "shared").iterdir()}
    assert len(left) == SHARED_KEPT
    assert str(2 * (SHARED_KEPT + 2)) in left


def test_starts_from_what_stands_there(flow):
    flow.build(3)
    (flow.folder / "a.txt").write_text("50")
    assert flow.build(3, start="second") == "100"
    assert flow.stages.ran == ["second"]


def test_starts_from_what_is_not_there(flow):
    with pytest.raises(UsageError, match="needs the files of stage 'first'"):
        flow.build(3, start="second")


def test_start_must_be_known(flow):
    with pytest.raises(UsageError, match="one of first, second, not 'third'"):
        flow.build(start="third")


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_interrupted_step_leaves_no_stamp(flow, fault):
    flow.build(3)

    def interrupted():
        (flow.folder / "a.txt").write_text("ha")
        raise fault

    stages = Stages(flow.folder, NAMES)
    with pytest.raises(fault):
        stages.run("first", ["else"], ("a.txt",), interrupted)
    assert not (flow.folder / STAMPS / "first.json").exists()
    assert flow.build(3) == "6"
    assert flow.stages.ran == ["first"]


def test_result_and_seconds_are_kept(flow):
    flow.build(4)
    again = Stages(flow.folder, NAMES)
    assert again.run("second", ["4"], ("b.txt",), list) == {"of": "4"}
    assert set(again.seconds) == {"second"}
    assert json.loads((flow.folder / STAMPS / "second.json").read_text())["result"] == {"of": "4"}


def test_write_is_whole_or_not(tmp_path):
    path = tmp_path / "x"
    write(path, "old")
    with pytest.raises(TypeError):
        write(path, 5)
    with pytest.raises(UsageError, match="must be a folder"):
        write(tmp_path / "none" / "x", "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_folder_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="that can be written to") as caught:
        make_folder(tmp_path / "file" / "below")
    assert "--out" in caught.value.hint


def test_digest_tells_lists_apart():
    assert digest("a", "b") != digest("ab")
    assert digest("a", 1) == digest("a", "1")
