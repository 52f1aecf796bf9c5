"""The promises of `make_clip`: pure, exact in every frame, and told truly."""

import re
from itertools import pairwise
from math import hypot

import numpy as np
import pytest

from datamodules.world.clips.clip import ClipPair, make_clip, make_flat_clip
from datamodules.world.clips.motion import DIRECTIONS, Camera, Motion, direction, seen_by
from datamodules.world.clips.write import record_of
from datamodules.world.maps import MAPS
from datamodules.world.palette import HELDOUT_PAIRS
from datamodules.world.render import quantise, render
from datamodules.world.scene import Figure, Person, Scene, Thing, View
from emu_edit.errors import InputError
from emu_edit.tasks import CAPTION, SIXTEEN

REGION = ("local", "remove", "add", "texture", "background", "text", "detect", "segment")
FRAMES, SIZE = 6, 32


@pytest.fixture(scope="module")
def clips() -> list[ClipPair]:
    return [make_clip(5, "train", i, size=SIZE, frames=FRAMES) for i in range(32)]


def bare(figure: Figure) -> tuple[str, str]:
    return figure.full_name, figure.shape


def shots_of(clip: ClipPair) -> list[range]:
    borders = [0, *clip.cuts, len(clip.scenes)]
    return [range(a, b) for a, b in pairwise(borders)]


def test_a_clip_depends_on_nothing_but_its_arguments(clips: list[ClipPair]):
    for i in (30, 2, 17):
        again = make_clip(5, "train", i, size=SIZE, frames=FRAMES)
        first = clips[i]
        assert (again.key, again.caption, again.instruction) == (
            first.key,
            first.caption,
            first.instruction,
        )
        assert again.scenes == first.scenes
        for name in ("source", "target", "mask", "flow", "occluded"):
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_seed_index_and_split_each_make_another_clip(clips: list[ClipPair]):
    base = clips[0]
    others = (make_clip(6, "train", 0), make_clip(5, "train", 16), make_clip(5, "heldout", 0))
    for other in others:
        assert other.task == base.task
        assert other.scenes[0] != base.scenes[0]


def test_the_index_deals_the_tasks_in_turn_and_a_larger_clip_shows_the_same(clips: list[ClipPair]):
    assert [clip.task for clip in clips] == list(SIXTEEN.names) * 2
    for i in (4, 8, 13):
        large = make_clip(5, "train", i, size=48, frames=FRAMES)
        assert (large.scenes, large.caption) == (clips[i].scenes, clips[i].caption)
        assert large.source.shape == (FRAMES, 3, 48, 48)


def test_nothing_changes_outside_the_mask_of_any_frame(clips: list[ClipPair]):
    for clip in clips:
        outside = np.broadcast_to(~clip.mask[:, None], clip.source.shape)
        np.testing.assert_array_equal(clip.source[outside], clip.target[outside])
        assert clip.mask.all() == (clip.task not in REGION)


def test_every_edit_can_be_seen_in_most_frames(clips: list[ClipPair]):
    for clip in clips:
        is_seen = (clip.source != clip.target).any(axis=1).sum(axis=(1, 2)) >= 3
        assert is_seen.mean() >= 0.5, clip.instruction


def test_each_frame_is_what_the_picture_code_draws_of_its_scene(clips: list[ClipPair]):
    for clip in clips:
        for t in (0, FRAMES - 1):
            scenes, kind = (clip.scenes[t], clip.output_scenes[t]), clip.extra["kind"]
            drawn = [quantise(render(scene, SIZE)) for scene in scenes]
            if kind == "from_map":
                drawn[0] = MAPS[clip.task](scenes[0], SIZE)
            if kind == "to_map":
                drawn[1] = MAPS[clip.task](scenes[1], SIZE)
            if kind != "sharpen":
                np.testing.assert_array_equal(clip.source[t], drawn[0].transpose(2, 0, 1))
            if clip.task not in {"global", "style", "color", "detect"} or kind == "sharpen":
                np.testing.assert_array_equal(clip.target[t], drawn[1].transpose(2, 0, 1))


def test_figures_keep_their_names_and_stay_in_the_picture(clips: list[ClipPair]):
    for clip in clips:
        for scenes in (clip.scenes, clip.output_scenes):
            cast = sorted(map(bare, scenes[0].figures))
            for scene in scenes:
                assert sorted(map(bare, scene.figures)) == cast
                bases = [figure.base for figure in scene.figures]
                assert bases == sorted(bases)  # nearer figures come later
                assert scene.word == scenes[0].word
                for figure in scene.figures:
                    assert 0.05 < figure.x < 0.95
                    assert 0.05 < figure.y < 0.95


def test_what_an_edit_leaves_alone_moves_alike_in_source_and_target(clips: list[ClipPair]):
    for clip in clips:
        kept = {f.full_name for f in clip.scenes[0].figures} & {
            f.full_name for f in clip.output_scenes[0].figures
        }
        if clip.extra["kind"] == "resize":
            kept -= {str(clip.extra["thing"])}
        for before, after in zip(clip.scenes, clip.output_scenes, strict=True):
            assert {f for f in before.figures if f.full_name in kept} <= set(after.figures)


def in_world(figure: Figure, view: View) -> Figure:
    """Return a figure as it is in the world, from how a view shows it."""
    return seen_by(figure, View(-view.left / view.side, -view.top / view.side, 1 / view.side))


def told(first: Scene, last: Scene, middle: Scene) -> dict[str, set[str]]:
    """Return what figures and camera did between two frames of a shot, measured."""
    did = {"the camera": of_camera(first.background.view, last.background.view)}
    for name in (figure.name for figure in first.figures):
        a, m, b = (in_world(s.named(name), s.background.view) for s in (first, middle, last))
        did[f"the {name}"] = of_figure(a, m, b)
    return {who: verbs for who, verbs in did.items() if verbs}


def of_figure(first: Figure, middle: Figure, last: Figure) -> set[str]:
    go = "walks" if isinstance(first, Person) else "moves"
    verbs = {f"{go} {way}" for way in ways(last.x - first.x, last.y - first.y)}
    if isinstance(first, Person) and isinstance(middle, Person):
        assert (first.pose.thighs != middle.pose.thighs) == bool(verbs)
        for side, arm in (("left", 0), ("right", 1)):
            if first.pose.forearms[arm] != middle.pose.forearms[arm]:
                verbs.add(f"waves the arm on the {side}")
    if isinstance(first, Thing) and isinstance(last, Thing):
        if last.angle != first.angle:
            verbs.add("turns clockwise" if last.angle > first.angle else "turns anticlockwise")
        if sign(last.radius - first.radius):
            verbs.add("grows" if last.radius > first.radius else "shrinks")
    return verbs


def of_camera(old: View, new: View) -> set[str]:
    x, y = (
        after + new.side / 2 - before - old.side / 2
        for before, after in ((old.left, new.left), (old.top, new.top))
    )
    verbs = {f"pans {way}" for way in ways(x, y)}
    if sign(new.side - old.side):
        verbs.add("zooms in" if new.side < old.side else "zooms out")
    return verbs


def ways(dx: float, dy: float) -> set[str]:
    return {words for words, step in DIRECTIONS.items() if step == (sign(dx), sign(dy))}


def sign(number: float) -> int:
    return 0 if abs(number) < 1e-6 else int(np.sign(number))


def read(words: str) -> dict[str, set[str]]:
    """Return what a caption says of a shot: who does what."""
    said: dict[str, set[str]] = {}
    verb = r"(?:moves|walks|turns|grows|shrinks|waves|pans|zooms)"
    for clause in re.split(r", (?=the )", words):
        if clause == "nothing moves":
            continue
        found = re.match(rf"(the \w+(?: \w+)?) ({verb}.*)", clause)
        assert found is not None, clause
        said[found[1]] = set(re.split(rf", (?={verb})| and (?={verb})", found[2]))
    return said


def test_captions_say_what_moves_where_and_nothing_else(clips: list[ClipPair]):
    verbs: set[str] = set()
    for clip in clips:
        captions = [(clip.caption, clip.scenes)]
        if clip.task != "segment":  # its target's caption goes on with the source's names
            captions.append((clip.output_caption, clip.output_scenes))
        for caption, scenes in captions:
            _, *stories = caption.split("; ")
            assert len(stories) == 1 + len(clip.cuts)
            for story, frames in zip(stories, shots_of(clip), strict=True):
                words = re.sub(r"^cut[^:]*: ", "", story)
                first, last = scenes[frames[0]], scenes[frames[-1]]
                assert read(words) == told(first, last, scenes[frames[1]]), caption
                verbs |= {v for said in read(words).values() for v in said}
    assert {v.split(" ")[0] for v in verbs} == {
        *("moves", "walks", "turns", "grows", "shrinks", "waves", "pans", "zooms")
    }


def test_after_a_cut_the_caption_says_where(clips: list[ClipPair]):
    cut = [clip for clip in clips if clip.cuts]
    assert 0.1 < len(cut) / len(clips) < 0.5
    for clip in cut:
        name = clip.scenes[-1].background.name
        if clip.extra["kind"] != "from_map":
            assert re.search(rf"; cut to a (plain )?{name}", clip.caption)


def test_a_training_clip_never_shows_a_held_out_combination(clips: list[ClipPair]):
    for clip in clips:
        for scene in (*clip.scenes, *clip.output_scenes):
            assert not HELDOUT_PAIRS & {(f.colour, f.shape) for f in scene.figures}


def test_one_frame_is_a_clip_and_few_frames_have_no_cut():
    for i in (0, 7, 14):
        assert make_clip(0, "train", i, size=16, frames=1).caption.endswith("; nothing moves")
        assert make_clip(0, "train", i, size=16, frames=1).flow.shape == (0, 2, 16, 16)
        assert make_clip(0, "train", i, size=16, frames=5).cuts == ()


def test_a_figure_at_rest_is_itself_and_one_seen_from_half_as_far_is_twice_as_large():
    thing = Thing("star", "red", "dotted", 0.3, 0.4, 0.15)
    assert seen_by(Motion().at(thing, 0.7), Camera().at(0.7)) == thing
    near = seen_by(thing, View(0.1, 0.2, 0.5))
    assert isinstance(near, Thing)
    assert (near.x, near.y, near.radius, near.grain) == pytest.approx((0.4, 0.4, 0.3, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames=0 of a world clip must be 1 to 1024"),
        ({"size": 8}, "size=8 is too small"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"task": "dance"}, "dance"),
    ],
)
def test_what_cannot_be_a_clip_is_refused(change: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        make_clip(0, **{"split": "train", "index": 0, **change})  # pyright: ignore[reportArgumentType]


def test_a_flat_clip_says_truly_what_its_figures_do_and_they_never_meet():
    said: set[str] = set()
    for index in range(40):
        clip = make_flat_clip(3, "train", index, size=16, frames=5)
        assert clip.task == CAPTION
        assert clip.instruction == clip.caption == clip.output_caption
        assert clip.target is clip.source
        first, last = clip.scenes[0], clip.scenes[-1]
        story = clip.caption.split("; ")[1]
        for figure in first.figures:
            end = last.named(figure.name)
            way = (end.x - figure.x, end.y - figure.y)
            if way == (0, 0):
                assert f"the {figure.name} moves" not in story
                continue
            said.add(direction(*way))
            assert f"the {figure.name} moves {direction(*way)}" in story
        for scene in clip.scenes:
            assert all(0.1 < f.x < 0.9 and 0.1 < f.y < 0.9 for f in scene.figures)
            if len(scene.figures) == 2:
                a, b = scene.figures
                assert isinstance(a, Thing)
                assert isinstance(b, Thing)
                assert hypot(a.x - b.x, a.y - b.y) > 0.8 * (a.radius + b.radius)
    assert said == set(list(DIRECTIONS)[:4])


def test_a_flat_clip_shows_the_same_at_every_size_and_begins_with_a_flat_picture():
    small, large = (make_flat_clip(0, "heldout", 7, size=size, frames=3) for size in (16, 32))
    assert small.scenes == large.scenes
    assert small.caption == large.caption
    focus = [(f.colour, f.shape) in HELDOUT_PAIRS for f in small.scenes[0].figures]
    assert any(focus)
    with pytest.raises(InputError, match="frames=0 of a world clip"):
        make_flat_clip(0, "train", 0, frames=0)


def test_a_record_says_how_much_moves_by_the_exact_flow():
    clip = next(c for i in range(30) if (c := make_clip(0, "train", i, size=16, frames=14)).cuts)
    motion = record_of(clip, 8).extra["motion"]
    steps = np.sqrt((clip.flow.astype(np.float64) ** 2).sum(1)).mean((1, 2)) / 16
    known = [step for i, step in enumerate(steps) if i + 1 not in clip.cuts]
    steps[clip.cuts[0] - 1] = np.mean(known)
    assert motion == pytest.approx(min(steps[i : i + 11].sum() for i in range(3)), abs=1e-4)
