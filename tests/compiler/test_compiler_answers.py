"""Answers that are kept: a run goes on where it stopped, and never takes another's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler import accuracy, answers
from compiler import graph as ir
from compiler.accuracy import measure, program_of
from compiler.answers import MODELS, collect, content_digest
from compiler.errors import UsageError
from compiler.lower import quantised, rounded
from tests.support.networks import random_checkpoint, random_images

IMAGES = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "CHUNK", 4)


class Recorder:
    """Answers an image by its pixel, and notes which images it was asked."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.fail_at = fail_at

    def __call__(self, images: answers.Images) -> tuple[answers.Classes, int]:
        pixels = images.ravel().tolist()
        if self.fail_at in pixels:
            raise KeyboardInterrupt
        self.asked += pixels
        return images.ravel().astype(np.int64), len(pixels)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first, second, third = Recorder(fail_at=8), Recorder(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        collect("net", "key", first, IMAGES, tmp_path)
    found = collect("net", "key", second, IMAGES, tmp_path)
    assert (first.asked, second.asked) == ([*range(8)], [8, 9])
    assert found.classes.tolist() == [*range(10)]
    assert found.saturations == 10
    again = collect("net", "key", third, IMAGES, tmp_path)
    assert third.asked == []
    assert (again.classes == found.classes).all() and again.saturations == 10
    assert again.seconds == pytest.approx(found.seconds, abs=0.01)


def test_a_longer_run_takes_over_a_shorter_ones_answers(tmp_path: Path) -> None:
    collect("net", "key", Recorder(), IMAGES[:8], tmp_path)
    longer = Recorder()
    assert collect("net", "key", longer, IMAGES, tmp_path).classes.tolist() == [*range(10)]
    assert longer.asked == [8, 9]


def test_other_networks_and_other_images_have_their_own_answers(tmp_path: Path) -> None:
    collect("net", "key", Recorder(), IMAGES, tmp_path)
    for key, images in (("other", IMAGES), ("key", IMAGES + 1)):
        asked = Recorder()
        found = collect("net", key, asked, images, tmp_path)
        assert asked.asked == images.ravel().tolist() == found.classes.tolist()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"images": 1}',
        None,  # cut off
        {"classes": [0, 1, 2]},
        {"classes": [[0, 1, 2, 3]]},
        {"classes": ["a", 1, 2, 3]},
        {"classes": [10**30, 1, 2, 3]},
        {"saturations": None},
        {"images": "of others"},
    ],
)
def test_a_damaged_file_is_computed_anew(tmp_path: Path, content: Any) -> None:
    collect("net", "key", Recorder(), IMAGES, tmp_path)
    path = tmp_path / "net-key" / "000004.json"
    whole = path.read_text()
    if isinstance(content, dict):
        content = json.dumps(json.loads(whole) | content)
    path.write_text(whole[:-20] if content is None else content)
    asked = Recorder()
    assert collect("net", "key", asked, IMAGES, tmp_path).classes.tolist() == [*range(10)]
    assert asked.asked == [4, 5, 6, 7]
    assert path.read_text() != content


def test_progress_is_told_with_a_rate(tmp_path: Path) -> None:
    said: list[str] = []
    collect("net", "key", Recorder(), IMAGES, tmp_path, said.append)
    assert [line.split(",")[0] for line in said] == [
        f"net: {count} of 10 images" for count in (4, 8, 10)
    ]
    assert all(line.endswith("images/s") for line in said)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="must be a folder that can be made"):
        collect("net", "key", Recorder(), IMAGES, tmp_path / "file")


def test_digests_tell_contents_apart() -> None:
    graph = ir.build(random_checkpoint(0))
    assert content_digest(graph.nodes) == content_digest(ir.build(random_checkpoint(0)).nodes)
    others = [
        ir.build(random_checkpoint(1)).nodes,
        graph.nodes[:-1],
        graph.with_pool_units({n.name: 1.0 for n in graph.all(ir.AvgPool)}).nodes,
    ]
    assert len({content_digest(nodes) for nodes in (graph.nodes, *others)}) == 4
    a = np.arange(4)
    assert len({content_digest(x) for x in (a, a.reshape(2, 2), a.astype(np.int8), [0, 1])}) == 4


# -- what is measured with them --------------------------------------------------------------------


def test_measured_shares_are_those_of_the_answers(tmp_path: Path) -> None:
    graph = quantised(ir.build(random_checkpoint(2, bits=None)), 3)
    program = program_of(graph)
    images = random_images(0, 10, graph.image.shape)
    labels = ir.scores(rounded(graph, program), images).argmax(axis=1)
    labels[:3] += 1
    found = measure(graph, program, images, labels, folder=tmp_path)
    assert found.float_ == 0.7
    assert found.images == 10
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == set(MODELS)
    unkept = measure(graph, program, images, labels)
    names = ("float_", "float_unquantised", "golden", "golden_agrees_float", "saturations")
    assert [getattr(found, n) for n in names] == [getattr(unkept, n) for n in names]


def test_what_is_not_asked_for_is_not_measured() -> None:
    graph = ir.build(random_checkpoint(2))
    program = program_of(graph)
    images = random_images(0, 5, graph.image.shape)
    found = measure(graph, program, images, np.zeros(5, np.int64), models=["golden"]).report()
    known = {name for name, value in found.items() if value is not None}
    assert known == {"images", "golden", "saturations", "golden_images_per_second"}
    assert found.keys() == accuracy.nothing_measured().keys()


def test_networks_that_differ_only_in_steps_share_their_unquantised_answers(tmp_path: Path) -> None:
    plain = ir.build(random_checkpoint(2, bits=None))
    images = random_images(0, 5, plain.image.shape)
    for bits in (3, 4):
        graph = quantised(plain, bits)
        measure(graph, program_of(graph), images, np.zeros(5, np.int64), folder=tmp_path)
    folders = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert folders == ["float", "float", "float_unquantised", "golden", "golden"]
