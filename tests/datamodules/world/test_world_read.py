"""The scene reader says what is in a picture of the world, and doubts what is not of it."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.scene_reader import measure
from datamodules.world.find import box_of, overlap
from datamodules.world.read import Reading, read_scene
from datamodules.world.render import quantise, render
from datamodules.world.scene import AT_REST, Background, Person, Pose, Scene, Thing, View, Word
from emu_edit.errors import InputError

SIZE = 64
CIRCLE = Thing("circle", "blue", "dotted", 0.22, 0.3, 0.15)
STAR = Thing("star", "red", "plain", 0.75, 0.72, 0.17)
PERSON = Person("orange", 0.5, 0.5, 0.7, Pose((1.2, 2.0), (0.4, 2.4), (0.3, 0.4), (0.1, 0.2)))


def pixels_of(scene: Scene, size: int = SIZE) -> np.ndarray:
    return quantise(render(scene, size)).transpose(2, 0, 1)


SCENE = Scene.of(Background("beach"), (CIRCLE, STAR), Word("CAT", "white", "bottom"))


@pytest.fixture(scope="module")
def reading() -> Reading:
    return read_scene(pixels_of(SCENE))


def test_figures_background_and_word_are_read_back_and_no_more(reading: Reading):
    assert [read.figure.full_name for read in reading.figures] == ["dotted blue circle", "red star"]
    assert (reading.background, reading.word) == ("beach", SCENE.word)
    assert reading.doubt < 0.02
    assert all(read.doubt < 0.2 for read in reading.figures)


def test_a_thing_is_placed_to_a_tenth_of_a_pixel(reading: Reading):
    for read, truth in zip(reading.figures, SCENE.figures, strict=True):
        assert isinstance(read.figure, Thing)
        assert isinstance(truth, Thing)
        for value in ("x", "y", "radius"):
            assert abs(getattr(read.figure, value) - getattr(truth, value)) < 0.1 / SIZE
        assert overlap(read.box, box_of(truth)) > 0.95


def test_the_reading_rendered_is_the_picture_again(reading: Reading):
    assert reading.scene is not None
    difference = pixels_of(reading.scene).astype(int) - pixels_of(SCENE)
    assert np.abs(difference).mean() < 0.5


def test_a_person_is_read_in_its_pose():
    (read,) = read_scene(pixels_of(Scene.of(Background("grey"), (PERSON,)))).figures
    assert read.figure.full_name == "orange person"
    assert overlap(read.box, box_of(PERSON)) > 0.8


def test_a_half_hidden_figure_is_read_whole():
    behind = Thing("square", "green", "plain", 0.45, 0.45, 0.17)
    front = Thing("circle", "purple", "plain", 0.6, 0.6, 0.16)
    reading = read_scene(pixels_of(Scene.of(Background("white"), (behind, front))))
    assert [read.figure.name for read in reading.figures] == ["green square", "purple circle"]
    assert overlap(reading.figures[0].box, box_of(behind)) > 0.9


@pytest.mark.parametrize(
    ("thing", "symmetry"),
    [
        (Thing("heart", "red", "plain", 0.4, 0.55, 0.17, 1.1), 2 * np.pi),
        (Thing("square", "red", "striped", 0.4, 0.55, 0.2, 1.1, 1.3), np.pi),
        (Thing("circle", "red", "checkered", 0.4, 0.55, 0.15, 0.6, 0.8), np.pi / 2),
    ],
)
def test_a_turned_thing_is_read_with_its_angle_and_grain(thing: Thing, symmetry: float):
    (read,) = read_scene(pixels_of(Scene.of(Background("white"), (thing,)))).figures
    assert isinstance(read.figure, Thing)
    assert read.figure.full_name == thing.full_name
    off = (read.figure.angle - thing.angle + symmetry / 2) % symmetry - symmetry / 2
    assert abs(off) < 0.03
    if thing.texture != "plain":
        assert abs(read.figure.grain - thing.grain) < 0.03
    assert overlap(read.box, box_of(thing)) > 0.9


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("beach", View(0.1, 0.14, 0.8)),
        ("brick wall", View(0.1, 0.1, 0.8)),
        ("night sky", View(0.12, 0.0, 1.0)),
    ],
)
def test_what_the_camera_shows_is_read_off_the_background(name: str, view: View):
    star = Thing("star", "yellow", "plain", 0.75, 0.72, 0.17)
    reading = read_scene(pixels_of(Scene.of(Background(name, view=view), (star,))))
    assert reading.background == name
    assert [read.figure.full_name for read in reading.figures] == ["yellow star"]
    assert abs(reading.view.side - view.side) < 0.02
    assert abs(reading.view.top - view.top) < 0.02
    if name in ("brick wall", "night sky"):  # the others are the same in all columns
        assert abs(reading.view.left - view.left) < 0.02


@pytest.mark.parametrize("name", ["meadow", "brick wall"])
def test_a_camera_at_rest_is_read_as_such(name: str):
    assert read_scene(pixels_of(Scene.of(Background(name), (CIRCLE,)))).view == AT_REST


def test_a_larger_picture_reads_as_the_small_one(reading: Reading):
    larger = read_scene(pixels_of(SCENE, 3 * SIZE))
    assert [read.figure.full_name for read in larger.figures] == [
        read.figure.full_name for read in reading.figures
    ]
    assert (larger.background, larger.word) == (reading.background, reading.word)


def test_a_figure_smeared_beyond_words_is_doubted_more_than_a_sharp_one():
    picture = pixels_of(Scene.of(Background("white"), (STAR,)))
    image = Image.fromarray(picture.transpose(1, 2, 0)).filter(ImageFilter.GaussianBlur(4))
    smeared = read_scene(np.asarray(image).transpose(2, 0, 1))
    assert all(read.doubt > 0.4 for read in smeared.figures)
    assert smeared.doubt > 0.02


@pytest.mark.parametrize("kind", ["noise", "grey", "gradient"])
def test_what_is_no_scene_is_doubted(kind: str):
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 255, SIZE)
    picture = {
        "noise": generator.integers(0, 256, (3, SIZE, SIZE)),
        "grey": np.full((3, SIZE, SIZE), 100),
        "gradient": np.stack([
            np.tile(ramp, (SIZE, 1)),
            np.tile(ramp, (SIZE, 1)).T,
            np.full((SIZE, SIZE), 90),
        ]),
    }[kind].astype(np.uint8)
    assert read_scene(picture).doubt > 0.2


def test_a_picture_that_is_not_square_is_refused():
    with pytest.raises(InputError, match=r"64 rows and 32 columns"):
        read_scene(np.zeros((3, 64, 32), dtype=np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "least"),
    [
        ("true", 0.99),
        ("JPEG 75", 0.95),
        ("blur 1 px", 0.95),
        ("noise 3", 0.95),
        ("all three", 0.9),
        ("moving, true", 0.95),
        ("moving, all three", 0.85),
    ],
)
def test_of_the_heldout_figures_so_many_are_right(row: str, least: float):
    tally = measure(row, seed=1, pictures=30, size=SIZE)
    assert tally.right >= least * tally.figures
    assert tally.background >= least * tally.pictures
    assert tally.word >= least * tally.pictures
    assert tally.spurious <= 0.05 * tally.figures
