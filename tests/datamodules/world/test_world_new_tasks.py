"""The tasks that no model is trained for: pure, exact, and none of the sixteen."""

import re
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from datamodules.checks.folders import check_folder
from datamodules.fewshot import FewShotSource, read_few_shot
from datamodules.shards.manifest import read_manifest
from datamodules.world.instructions import corpus
from datamodules.world.maps import sketch
from datamodules.world.new_tasks import (
    CONTOUR,
    DOT_RADIUS,
    HOLE_GREY,
    MAX_DOTS,
    NEW_TASKS,
    coarse,
    contours,
    count_dots,
    dots,
    make_new_pair,
)
from datamodules.world.palette import COLOURS, HELDOUT_PAIRS, MARKS, RGB, SHAPES
from datamodules.world.photographs import Photos
from datamodules.world.phrasings import NEW_PHRASINGS as PHRASINGS
from datamodules.world.scene import Background, Scene, Thing
from datamodules.world.write import write_new_task
from emu_edit.cli import shards
from emu_edit.errors import InputError
from emu_edit.tasks import SIXTEEN

FIGURE = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}|person)\b")
WHOLE_PICTURE = ("superres", "contour", "count")


def pairs_of(task: str, number: int, split: str = "train", size: int = 32):
    return [make_new_pair(5, i, task=task, size=size, split=split) for i in range(number)]


def circles(*places: tuple[float, float]) -> Scene:
    things = [
        Thing("circle", colour, "plain", x, y, 0.15)
        for colour, (x, y) in zip(COLOURS, places, strict=False)
    ]
    return Scene.of(Background("mint"), tuple(things))


def test_none_of_them_is_one_of_the_sixteen_or_asked_for_in_their_words():
    assert not set(NEW_TASKS) & set(SIXTEEN.names)
    assert set(PHRASINGS) == set(NEW_TASKS)
    sentences = [*PHRASINGS.values()]
    new = {text for phrasings in sentences for text in (*phrasings.train, *phrasings.heldout)}
    assert not new & {text for split in ("train", "heldout") for text, _ in corpus(split)}


@pytest.mark.parametrize("task", NEW_TASKS)
def test_a_pair_depends_on_nothing_but_its_arguments(task: str):
    first, again = (make_new_pair(1, 3, task=task, size=32) for _ in range(2))
    assert (again.key, again.instruction, again.extra) == (
        first.key,
        first.instruction,
        first.extra,
    )
    np.testing.assert_array_equal(again.source, first.source)
    np.testing.assert_array_equal(again.target, first.target)
    np.testing.assert_array_equal(again.mask, first.mask)
    changed = (
        make_new_pair(2, 3, task=task, size=32),
        make_new_pair(1, 4, task=task, size=32),
        make_new_pair(1, 3, task=task, size=32, split="heldout"),
    )
    assert all((other.source != first.source).any() for other in changed)


@pytest.mark.parametrize("task", NEW_TASKS)
def test_the_words_of_a_pair_do_not_depend_on_its_size(task: str):
    for index in range(5):
        small, large = (make_new_pair(0, index, task=task, size=size) for size in (32, 64))
        assert small.instruction == large.instruction
        assert small.source_caption == large.source_caption
        assert large.source.shape == (64, 64, 3)


@pytest.mark.parametrize("task", NEW_TASKS)
def test_a_split_has_its_own_phrasings_and_combinations(task: str):
    patterns = {
        side: [re.sub(r"\\{\w+\\}", ".+", re.escape(text)) for text in texts]
        for side, texts in (
            ("train", PHRASINGS[task].train),
            ("heldout", PHRASINGS[task].heldout),
        )
    }
    for split in ("train", "heldout"):
        for pair in pairs_of(task, 12, split, size=16):
            words = re.sub(r"\ban\b", "a", pair.instruction)
            assert any(re.fullmatch(pattern, words) for pattern in patterns[split])
            told = f"{pair.source_caption}; {pair.target_caption}; {pair.instruction}"
            assert bool(HELDOUT_PAIRS & set(FIGURE.findall(told))) == (split == "heldout")


@pytest.mark.parametrize("task", WHOLE_PICTURE)
def test_an_edit_of_the_whole_picture_has_a_full_mask(task: str):
    assert all(pair.mask.all() for pair in pairs_of(task, 5))


@pytest.mark.parametrize("task", ["inpaint", "add_detect"])
def test_nothing_changes_outside_the_mask(task: str):
    for pair in pairs_of(task, 25):
        np.testing.assert_array_equal(pair.source[~pair.mask], pair.target[~pair.mask])
        assert 0 < pair.mask.mean() < 0.5


@pytest.mark.parametrize("task", NEW_TASKS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_edit_can_be_seen(task: str, split: str):
    for pair in pairs_of(task, 20, split):
        assert (pair.source != pair.target).any(axis=2).sum() >= 4, pair.instruction


def test_a_coarse_picture_holds_nothing_but_the_means_of_four_by_four_pixels():
    pair = make_new_pair(0, 0, task="superres", size=32)
    np.testing.assert_array_equal(pair.source, coarse(pair.target))
    picture = pair.target.copy()
    # two halves of a block change places: its mean stays, and so the whole coarse picture
    picture[4:8, 4:8] = picture[4:8, 4:8][::-1]
    picture[8, 8], picture[11, 11] = pair.target[11, 11], pair.target[8, 8]
    np.testing.assert_array_equal(coarse(picture), pair.source)
    np.testing.assert_array_equal(coarse(np.full((18, 18, 3), 77, np.uint8)), 77)


def test_touching_figures_have_one_contour_but_two_sketches():
    touching = circles((0.43, 0.5), (0.57, 0.53))
    between = (slice(31, 35), slice(27, 37))  # where both are: inside the contour
    assert (contours(touching, 64)[between] == 255).all()
    assert (sketch(touching, 64)[between] < 100).any()


def test_a_contour_is_black_on_the_outline_and_twice_as_wide_as_a_sketch():
    scene = circles((0.5, 0.5))
    drawn = {name: f(scene, 64)[32, 32:, 0] for name, f in (("c", contours), ("s", sketch))}
    assert drawn["c"].min() == 0
    widths = {name: float((1 - row / 255).sum()) for name, row in drawn.items()}
    assert widths["c"] == pytest.approx(2 * CONTOUR * 64, abs=0.1)
    assert widths["c"] / widths["s"] == pytest.approx(2, abs=0.1)


def test_the_hole_is_grey_and_leaves_something_of_every_figure_to_be_seen():
    hidden = 0
    for pair in pairs_of("inpaint", 40, size=64):
        assert (pair.source[pair.mask] == HOLE_GREY).all()
        hole = pair.extra["hole"]
        assert isinstance(hole, list)
        x0, y0, x1, y1 = hole
        assert pair.mask[y0:y1, x0:x1].all()
        assert pair.mask.sum() == (x1 - x0) * (y1 - y0)
        for colour, _ in FIGURE.findall(pair.target_caption):
            is_its = (np.abs(pair.target.astype(int) - RGB[colour]) < 3).all(axis=2)
            assert (is_its & ~pair.mask).sum() > 8
            hidden += int((is_its & pair.mask).any())
    assert hidden > 10  # or there would be nothing to find but backgrounds


def test_there_are_as_many_dots_as_figures():
    numbers = set()
    for pair in pairs_of("count", 40):
        number = len(FIGURE.findall(pair.source_caption))
        assert count_dots(pair.target) == number == pair.extra["count"]
        numbers.add(number)
    assert numbers == set(range(1, MAX_DOTS + 1))


def test_dots_are_equal_and_in_a_row_from_the_left():
    picture = dots(3, 60)[:, :, 0]
    places = [picture[:, 12 * i : 12 * i + 12] for i in range(5)]
    for place in places[1:3]:
        np.testing.assert_allclose(place.astype(int), places[0].astype(int), atol=1)
    assert all((place == 255).all() for place in places[3:])
    darkness = float((1 - places[0] / 255).sum())
    assert darkness == pytest.approx(np.pi * (DOT_RADIUS * 60) ** 2, rel=0.03)
    assert count_dots(np.zeros((32, 32, 3), np.uint8)) == MAX_DOTS


def test_a_thing_is_added_in_a_box_of_the_stated_colour():
    for pair in pairs_of("add_detect", 20, size=64):
        assert list(MARKS[str(pair.extra["mark"])]) == pair.extra["mark_rgb"]
        box = pair.extra["box"]
        assert isinstance(box, list)
        x0, y0, x1, y1 = box
        edge = np.zeros_like(pair.mask)
        edge[y0:y1, x0:x1] = True
        edge[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = False
        assert (pair.target[edge] == pair.extra["mark_rgb"]).all()
        assert not pair.mask[:y0].any()
        added = FIGURE.findall(pair.instruction)[0]
        assert added not in FIGURE.findall(pair.source_caption)
        assert added in FIGURE.findall(pair.target_caption)
        assert (pair.target[pair.mask & ~edge] != pair.source[pair.mask & ~edge]).any()


def test_photographs_are_split_into_two_parts_that_share_none(tmp_path: Path):
    for number in range(7):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
        parts = Photos(tmp_path).split() if number else None
        if parts is not None:
            assert len(parts[0]) + len(parts[1]) == number + 1
            assert not {*parts[0].paths} & {*parts[1].paths}
            assert min(map(len, parts)) >= 1
    alone = tmp_path / "alone"
    alone.mkdir()
    Image.new("RGB", (20, 20)).save(alone / "one.png")
    with pytest.raises(InputError, match=r"alone' has one picture; .*, give at least two"):
        Photos(alone).split()


def test_on_photographs_the_photograph_alone_is_enlarged_and_completed(tmp_path: Path):
    with Image.open(Path(skimage.__file__).parent / "data" / "coffee.png") as photo:
        photo.reduce(3).save(tmp_path / "coffee.png")
    photos = Photos(tmp_path)
    for task in ("superres", "inpaint"):
        pair = make_new_pair(0, 0, task=task, size=32, photos=photos)
        assert pair.target_caption == "a photograph"
        assert len(np.unique(pair.target.reshape(-1, 3), axis=0)) > 500
    assert "on a photograph" in make_new_pair(0, 0, task="count", photos=photos).source_caption


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "contours"}, "unknown new task 'contours'; give .* Did you mean 'contour'"),
        ({"index": -1}, "index=-1 of a world pair is negative; give 0 or more"),
        ({"size": 8}, "size=8 is too small for the world; give 16 or more"),
        ({"split": "test"}, "unknown split 'test' of the world; give one of 'train', 'heldout'"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(changes: dict, words: str):
    with pytest.raises(InputError, match=words):
        make_new_pair(**{"seed": 0, "index": 0, "task": "count", **changes})


def test_written_as_shards_they_pass_the_check_and_can_be_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "contour"
    line = ["world", str(folder), "--new-task", "contour", "--pairs", "3", "--size", "16"]
    assert shards.run(line) == 0
    assert "wrote 3 pairs of 1 task " in capsys.readouterr().out
    assert (folder / "contact_sheet.png").is_file()
    assert read_manifest(folder).made_by["new_task"] == "contour"
    assert check_folder(folder).is_good
    read = read_few_shot(FewShotSource(folder, "contour"), image_size=16)
    assert [pair.name for pair in read] == [f"contour-train-0-{i:08d}" for i in range(3)]
    for index, pair in enumerate(read):
        made = make_new_pair(0, index, task="contour", size=16)
        assert pair.instruction == made.instruction
        np.testing.assert_array_equal(pair.target.permute(1, 2, 0).numpy(), made.target)
    with pytest.raises(InputError, match="holds shards already"):
        shards.run(line)


def test_an_unknown_new_task_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(InputError, match="unknown new task 'sketch'"):
        write_new_task("sketch", tmp_path / "folder", 3)
    assert not (tmp_path / "folder").exists()
