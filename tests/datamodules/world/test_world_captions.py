"""Pictures of the world with captions: pure functions, new combinations in the held-out split."""

import numpy as np
import pytest

from datamodules.world.captions import caption_scene, make_caption
from datamodules.world.pair import make_pair
from datamodules.world.palette import HELDOUT_PAIRS, PLAIN_BACKGROUNDS
from datamodules.world.read import read_scene
from datamodules.world.scene import Thing
from emu_edit.errors import InputError
from emu_edit.tasks import CAPTION


def test_a_picture_is_a_function_of_seed_split_and_index() -> None:
    first, again = make_caption(3, 7), make_caption(3, 7)
    assert np.array_equal(first.target, again.target)
    assert (first.instruction, first.key) == (again.instruction, again.key)
    assert first.task == CAPTION
    keys = {
        make_caption(seed, i, split=s).key
        for seed in (0, 1)
        for i in (0, 1)
        for s in ("train", "heldout")
    }
    assert len(keys) == 8


def test_what_it_shows_does_not_depend_on_its_size() -> None:
    assert caption_scene(0, 5, size=16)[1] == caption_scene(0, 5, size=64)[1]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.slow
def test_captions_name_what_the_reader_sees(flat: bool) -> None:
    right = figures = 0
    for index in range(6):
        studio, scene = caption_scene(1, index, size=64, flat=flat)
        read = {
            found.figure.full_name
            for found in read_scene(studio.render(scene).transpose(2, 0, 1)).figures
        }
        named = [figure.full_name for figure in scene.figures]
        assert all(name in scene.caption for name in named)
        right += sum(name in read for name in named)
        figures += len(named)
    assert right >= 0.9 * figures


def test_flat_scenes_have_one_or_two_plain_figures_on_a_plain_backdrop() -> None:
    for index in range(30):
        scene = caption_scene(0, index)[1]
        assert len(scene.figures) in {1, 2}
        assert scene.background.name in PLAIN_BACKGROUNDS
        assert all(figure.full_name == figure.name for figure in scene.figures)
        assert scene.word is None


def test_half_of_the_flat_captions_tell_of_the_clip_that_would_follow() -> None:
    told = [make_caption(0, index, size=16).instruction for index in range(200)]
    scenes = [caption_scene(0, index, size=16)[1].caption for index in range(200)]
    moving = [caption for caption, scene in zip(told, scenes, strict=True) if caption != scene]
    assert 70 < len(moving) < 130
    assert all(
        caption == scene or caption.startswith(f"{scene}; ")
        for caption, scene in zip(told, scenes, strict=True)
    )
    assert any("moves to the left" in caption for caption in moving)
    assert any("nothing moves" in caption for caption in moving)
    assert all(";" not in make_caption(0, i, size=16, flat=False).instruction for i in range(9))


def test_only_the_heldout_split_has_heldout_colours_of_shapes() -> None:
    def combinations(split: str) -> list[bool]:
        scenes = (caption_scene(0, index, split=split)[1] for index in range(30))
        return [
            any((f.colour, f.shape) in HELDOUT_PAIRS for f in scene.figures) for scene in scenes
        ]

    assert not any(combinations("train"))
    assert all(combinations("heldout"))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="unknown split 'val'"):
        make_caption(0, 0, split="val")


@pytest.mark.parametrize("task", ["local", "remove", "add", "texture", "background", "pose"])
def test_edits_of_flat_scenes_are_of_one_or_two_plain_things_on_a_plain_backdrop(task: str) -> None:
    kept: set[str] = set()
    for index in range(12):
        pair = make_pair(5, index, task=task, size=32, flat=True)
        usual = make_pair(5, index, task=task, size=32)
        assert pair.scenes is not None
        for scene in pair.scenes:
            assert scene.background.name in PLAIN_BACKGROUNDS
        before, _ = pair.scenes
        things = [figure for figure in before.figures if isinstance(figure, Thing)]
        assert len(things) <= 2
        assert all(thing.texture == "plain" and thing.radius >= 0.16 for thing in things)
        assert bool(len(before.figures) - len(things)) == (task == "pose")
        assert pair.key != usual.key
        kept.add(pair.key)
    assert len(kept) == 12
