"""Pairs that ask for what already holds."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.checks.folders import check_folder
from datamodules.world.data import WorldData
from datamodules.world.palette import COLOURS, HELDOUT_PAIRS, SHAPES
from datamodules.world.sessions import NOOPS, make_noop
from datamodules.world.write import Extras, write_world
from emu_edit.errors import InputError


@pytest.mark.parametrize("task", NOOPS)
def test_nothing_changes_and_the_mask_says_so(task: str):
    for index in range(50):
        pair = make_noop(0, index, task=task, size=32)
        assert np.array_equal(pair.source, pair.target)
        assert not pair.mask.any()
        assert pair.source_caption == pair.target_caption
        assert pair.task == task
        assert len(np.unique(pair.source.reshape(-1, 3), axis=0)) > 1


def test_what_is_asked_for_holds_already():
    for index in range(100):
        recoloured = make_noop(0, index, task="local", size=16)
        assert str(recoloured.extra["colour"]) == str(recoloured.extra["thing"]).split()[0]
        assert str(recoloured.extra["thing"]) in recoloured.source_caption
        removed = make_noop(0, index, task="remove", size=16)
        colour, shape = str(removed.extra["thing"]).split()
        assert colour in COLOURS
        assert shape in SHAPES
        assert shape not in removed.source_caption


def test_training_has_no_held_out_combination():
    for task in NOOPS:
        for index in range(100):
            pair = make_noop(0, index, task=task, size=16)
            told = f"{pair.instruction} {pair.source_caption}"
            assert not any(f"{colour} {shape}" in told for colour, shape in HELDOUT_PAIRS)


def test_a_pair_depends_on_its_arguments_only():
    first, again = (make_noop(3, 7, task="texture", size=16) for _ in range(2))
    other = make_noop(4, 7, task="texture", size=16)
    assert np.array_equal(first.source, again.source)
    assert first.instruction == again.instruction
    assert not np.array_equal(first.source, other.source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "add"}, "no-op pairs of local, remove, texture, not of 'add'"),
        ({"index": -1}, "index=-1 of a world pair is negative; give 0 or more"),
        ({"size": 8}, "size=8 is too small for the world; give 16 or more"),
    ],
)
def test_what_cannot_be_made_is_refused(changes: dict, words: str):
    with pytest.raises(InputError, match=words):
        make_noop(**{"seed": 0, "index": 0, "task": "local", **changes})


@pytest.mark.slow
def test_they_are_written_behind_the_pairs_of_their_tasks_and_pass_the_check(tmp_path: Path):
    plain = write_world(tmp_path / "plain", 32, size=16)
    more = write_world(tmp_path / "more", 32, size=16, extras=Extras(noops=3))
    counts = {task: sum(e.samples for e in more.of_task(task)) for task in more.tasks}
    assert counts == {task: 2 + 3 * (task in NOOPS) for task in plain.tasks}
    assert "noops" not in plain.made_by
    assert more.made_by["noops"] == 3
    report = check_folder(tmp_path / "more")
    assert report.is_good
    assert not [p for p in report.problems if "noop" in p.key]


@pytest.mark.slow
def test_a_folder_with_other_no_ops_is_refused(tmp_path: Path):
    WorldData(str(tmp_path / "world"), 32, noop_pairs=2, image_size=16).prepare_data()
    WorldData(str(tmp_path / "world"), 32, noop_pairs=2, image_size=16).prepare_data()
    with pytest.raises(InputError, match="was made with noops=2, needed is None"):
        WorldData(str(tmp_path / "world"), 32, image_size=16).prepare_data()
    with pytest.raises(InputError, match="noop_pairs=-1 must be at least 0"):
        WorldData(str(tmp_path / "other"), 32, noop_pairs=-1)
