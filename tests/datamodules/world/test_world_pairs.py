"""The promises of `make_pair`: pure, exact, unambiguous, and true to its split."""

import re

import numpy as np
import pytest

from datamodules.shards.writer import PairRecord
from datamodules.world.pair import EDITS, make_pair
from datamodules.world.palette import (
    COLOURS,
    HELDOUT_PAIRS,
    HELDOUT_WORDS,
    MARKS,
    RGB,
    SHAPES,
    Split,
)
from emu_edit.errors import InputError
from emu_edit.tasks import SIXTEEN

WHOLE_PICTURE = ("global", "style", "color", "sketch", "depth", "normal", "pose", "segmap")
MAPS = ("sketch", "depth", "normal", "pose", "segmap")
REGION = ("local", "remove", "add", "texture", "background", "text", "detect", "segment")
FIGURE = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}|person)\b")


def pairs_of(task: str, number: int, split: Split = "train", size: int = 32):
    return [make_pair(5, i, task=task, size=size, split=split) for i in range(number)]


def test_every_task_has_an_edit_in_the_order_of_the_table():
    assert tuple(EDITS) == SIXTEEN.names


def test_a_pair_depends_on_nothing_but_its_arguments():
    before = [make_pair(1, i) for i in range(16)]
    for i in reversed(range(40)):
        make_pair(2, i)
    for i, first in enumerate(before):
        again = make_pair(1, i)
        assert (again.key, again.instruction, again.extra) == (
            first.key,
            first.instruction,
            first.extra,
        )
        np.testing.assert_array_equal(again.source, first.source)
        np.testing.assert_array_equal(again.target, first.target)
        np.testing.assert_array_equal(again.mask, first.mask)


def test_seed_index_and_split_each_make_another_pair():
    base = make_pair(0, 0)
    for other in (make_pair(1, 0), make_pair(0, 16), make_pair(0, 0, split="heldout")):
        assert other.task == base.task
        assert (other.source != base.source).any()


def test_the_index_deals_the_tasks_in_turn():
    assert [make_pair(0, i, size=16).task for i in range(32)] == list(SIXTEEN.names) * 2


@pytest.mark.parametrize("task", SIXTEEN.names)
def test_the_words_of_a_pair_do_not_depend_on_its_size(task: str):
    small, large = (make_pair(0, 3, task=task, size=size) for size in (32, 64))
    assert small.instruction == large.instruction
    assert large.source.shape == (64, 64, 3)


@pytest.mark.parametrize("task", REGION)
def test_nothing_changes_outside_the_mask(task: str):
    for pair in pairs_of(task, 25, size=64):
        np.testing.assert_array_equal(pair.source[~pair.mask], pair.target[~pair.mask])
        assert 0 < pair.mask.mean() < 1


@pytest.mark.parametrize("task", ["remove", "add", "background", "segment", "detect"])
def test_the_mask_holds_hardly_a_pixel_that_stays(task: str):
    pairs = pairs_of(task, 25, size=64)
    changed = sum(int((p.source != p.target).any(axis=2).sum()) for p in pairs)
    # a fringe of less than half a grey level, or a background of the same colour, may stay
    assert changed > 0.93 * sum(int(p.mask.sum()) for p in pairs)


@pytest.mark.parametrize("task", WHOLE_PICTURE)
def test_an_edit_of_the_whole_picture_has_a_full_mask(task: str):
    assert all(pair.mask.all() for pair in pairs_of(task, 8))


@pytest.mark.parametrize("task", SIXTEEN.names)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_edit_can_be_seen(task: str, split: Split):
    for pair in pairs_of(task, 20, split):
        assert (pair.source != pair.target).any(axis=2).sum() >= 4, pair.instruction


@pytest.mark.parametrize("task", MAPS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_both_directions_of_a_map_task_occur_and_are_recorded(task: str, split: Split):
    directions = {pair.extra["direction"] for pair in pairs_of(task, 20, split)}
    assert directions == {"to_map", "from_map"}


@pytest.mark.parametrize("task", MAPS)
def test_from_a_map_the_instruction_tells_the_whole_picture(task: str):
    for pair in pairs_of(task, 20, size=64):
        if pair.extra["direction"] != "from_map":
            continue
        assert pair.target_caption in pair.instruction
        told = {RGB[colour] for colour, _ in FIGURE.findall(pair.instruction)}
        shapes = [shape for _, shape in FIGURE.findall(pair.instruction)]
        assert len(set(shapes)) == len(shapes) >= 1
        # plain colours: what is told, the background, and nothing else but anti-aliased edges
        colours, counts = np.unique(pair.target.reshape(-1, 3), axis=0, return_counts=True)
        common = {tuple(c) for c in colours[np.argsort(counts)[-len(shapes) - 1 :]].tolist()}
        assert len(common & told) == len(told)


@pytest.mark.parametrize("task", ["local", "remove", "texture", "detect", "segment"])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_figure_an_instruction_names_occurs_once(task: str, split: Split):
    for pair in pairs_of(task, 40, split):
        colour, shape = str(pair.extra["thing"]).split()
        assert f"{colour} {shape}" in pair.instruction
        assert FIGURE.findall(pair.source_caption).count((colour, shape)) == 1


@pytest.mark.parametrize("task", ["local", "add"])
def test_names_are_unique_after_the_edit_too(task: str):
    for pair in pairs_of(task, 40):
        names = FIGURE.findall(pair.target_caption)
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("task", SIXTEEN.names)
def test_training_never_shows_or_names_a_held_out_combination(task: str):
    for pair in pairs_of(task, 60):
        text = f"{pair.source_caption}; {pair.target_caption}; {pair.instruction}"
        assert not HELDOUT_PAIRS & set(FIGURE.findall(text))
        for ink, word in HELDOUT_WORDS:
            assert f"the {ink} word {word}" not in text


@pytest.mark.parametrize("task", [t for t in SIXTEEN.names if t not in {"add", "text"}])
def test_held_out_scenes_have_exactly_one_held_out_figure(task: str):
    for pair in pairs_of(task, 40, "heldout"):
        caption = pair.target_caption if pair.extra["kind"] == "from_map" else pair.source_caption
        found = [name for name in FIGURE.findall(caption) if name in HELDOUT_PAIRS]
        assert len(found) == 1
        if "thing" in pair.extra:
            assert str(pair.extra["thing"]) == " ".join(found[0])


def test_held_out_additions_and_words_are_held_out_combinations():
    for pair in pairs_of("add", 20, "heldout"):
        assert HELDOUT_PAIRS & set(FIGURE.findall(pair.instruction))
    for pair in pairs_of("text", 20, "heldout"):
        text = f"{pair.source_caption} {pair.target_caption}"
        assert any(f"the {ink} word {word}" in text for ink, word in HELDOUT_WORDS)


def test_a_detection_is_a_frame_in_the_stated_colour_around_all_of_the_figure():
    for index in range(20):
        pair = make_pair(9, index, task="detect", size=64)
        assert list(MARKS[str(pair.extra["mark"])]) == pair.extra["mark_rgb"]
        assert (pair.target[pair.mask] == pair.extra["mark_rgb"]).all()
        rows, columns = np.flatnonzero(pair.mask.any(1)), np.flatnonzero(pair.mask.any(0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert box == pair.extra["box"]


def test_a_segmentation_paints_the_figure_flat_and_the_mask_is_its_area():
    for index in range(20):
        pair = make_pair(9, index, task="segment", size=64)
        painted = (pair.target == pair.extra["mark_rgb"]).all(axis=2)
        assert painted[~pair.mask].sum() == 0
        assert painted.sum() > 0.4 * pair.mask.sum()  # a thin person is half fringe


def test_sharpening_undoes_a_blur():
    pair = next(p for p in pairs_of("color", 60, size=64) if p.extra["kind"] == "sharpen")
    detail = [np.abs(np.diff(x.astype(float), axis=1)).max() for x in (pair.source, pair.target)]
    assert detail[0] < 0.7 * detail[1]


def test_a_record_for_the_shard_writer_holds_all_of_the_pair():
    pair = make_pair(0, 8, size=32)
    assert isinstance(pair, PairRecord)
    assert (pair.key, pair.task) == ("detect-train-0-00000008", "detect")
    assert pair.extra["kind"] == "detect"
    assert pair.mask.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": -1}, "index=-1 of a world pair is negative; give 0 or more"),
        ({"size": 8}, "size=8 is too small for the world; give 16 or more"),
        ({"split": "test"}, "unknown split 'test' of the world; give one of 'train', 'heldout'"),
        ({"task": "locale"}, "unknown task 'locale'.*Did you mean 'local'"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(arguments: dict, message: str):
    index = arguments.pop("index", 0)
    with pytest.raises(InputError, match=message):
        make_pair(0, index, **arguments)
