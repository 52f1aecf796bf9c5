"""The maps are what they say: labels, an order of depth, unit normals, skeletons, outlines."""

import numpy as np
import pytest

from datamodules.world.maps import (
    BACK,
    CLASS_RGB,
    FLOOR,
    FRONT,
    RELIEF,
    depth,
    figure_nearness,
    normal,
    pose,
    segmap,
    sketch,
)
from datamodules.world.palette import SHAPES
from datamodules.world.render import coverage, draw_figure, quantise, render
from datamodules.world.scene import Background, Person, Pose, Scene, Thing
from datamodules.world.sprites import joints

SIZE = 64
NEAR = Thing("circle", "red", "plain", 0.5, 0.6, 0.18)
FAR = Thing("square", "blue", "striped", 0.4, 0.45, 0.18)
PERSON = Person("green", 0.7, 0.5, 0.7, Pose((1.0, 2.0), (2.0, 1.5), (0.3, 0.4), (0.1, 0.2)))
BOTH = Scene.of(Background("white"), (NEAR, FAR))


def test_a_scene_sorts_its_figures_from_far_to_near():
    assert BOTH.figures == (FAR, NEAR)


def test_the_nearer_figure_hides_the_farther_one():
    picture = quantise(render(BOTH, SIZE))
    row, column = round(0.5 * SIZE), round(0.48 * SIZE)  # inside both
    assert tuple(picture[row, column]) == (220, 40, 40)


def test_shares_of_a_pixel_sum_to_one():
    shares = coverage(Scene.of(Background("beach"), (NEAR, FAR, PERSON)), SIZE)
    total = shares.background + sum(shares.figures)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_labels_are_never_mixed_and_agree_with_who_is_seen():
    scene = Scene.of(Background("beach"), (NEAR, FAR, PERSON))
    labels = segmap(scene, SIZE)
    assert {tuple(c) for c in np.unique(labels.reshape(-1, 3), axis=0).tolist()} == {
        CLASS_RGB[name] for name in ("background", "circle", "square", "person")
    }
    shares = coverage(scene, SIZE)
    for figure in scene.figures:
        sure = shares.of(scene, figure) > 0.99
        assert (labels[sure] == CLASS_RGB[figure.shape]).all()


def test_every_class_has_a_colour_of_its_own():
    assert set(CLASS_RGB) == {"background", "person", *SHAPES}
    assert len(set(CLASS_RGB.values())) == len(CLASS_RGB)


def test_a_lower_base_is_nearer_and_every_figure_is_nearer_than_the_floor():
    assert figure_nearness(NEAR) > figure_nearness(FAR) > BACK > FLOOR
    assert FRONT + RELIEF <= 1


def test_depth_of_the_overlap_is_that_of_the_nearer_figure():
    shown = depth(BOTH, SIZE)[:, :, 0] / 255
    alone = depth(Scene.of(Background("white"), (NEAR,)), SIZE)[:, :, 0] / 255
    sure = coverage(BOTH, SIZE).of(BOTH, NEAR) > 0.99
    np.testing.assert_array_equal(shown[sure], alone[sure])
    assert shown[sure].min() >= figure_nearness(NEAR) - 1 / 255
    assert shown[sure].max() <= figure_nearness(NEAR) + RELIEF + 1 / 255


def test_depth_is_grey_and_the_floor_rises_towards_the_viewer():
    shown = depth(Scene.of(Background("white"), ()), SIZE)
    assert (shown == shown[:, :1, :1]).all()
    assert (np.diff(shown[:, 0, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_have_length_one_and_look_at_the_viewer(shape: str):
    scene = Scene.of(Background("white"), (Thing(shape, "red", "plain", 0.5, 0.5, 0.2), PERSON))
    decoded = normal(scene, SIZE).astype(float) / 127.5 - 1
    length = np.linalg.norm(decoded, axis=2)
    np.testing.assert_allclose(length, 1, atol=3**0.5 / 255)  # rounding moves each axis by 1/255
    assert (decoded[:, :, 2] > -1 / 255).all()


def test_normals_of_a_circle_point_outwards():
    thing = Thing("circle", "red", "plain", 0.5, 0.5, 0.2)
    decoded = normal(Scene.of(Background("white"), (thing,)), SIZE).astype(float) / 127.5 - 1
    middle = SIZE // 2
    left, right = middle - 11, middle + 10
    assert decoded[middle, left, 0] < -0.5 < 0.5 < decoded[middle, right, 0]
    assert decoded[left, middle, 1] > 0.5 > -0.5 > decoded[right, middle, 1]  # y points up


def test_the_background_faces_the_viewer():
    assert (normal(Scene.of(Background("white"), ()), 16) == (128, 128, 255)).all()


def test_a_skeleton_passes_through_its_joints_and_only_people_have_one():
    shown = pose(Scene.of(Background("white"), (PERSON, NEAR)), SIZE)
    for x, y in joints(PERSON):
        if 0 < x < 1 and 0 < y < 1:
            assert shown[int(y * SIZE), int(x * SIZE)].max() > 100
    assert not pose(BOTH, SIZE).any()


def test_a_person_is_drawn_around_its_skeleton():
    bones = pose(Scene.of(Background("white"), (PERSON,)), SIZE).max(axis=2) > 128
    layer = draw_figure(PERSON, SIZE)
    body = np.zeros((SIZE, SIZE), dtype=bool)
    body[layer.rows, layer.columns] = layer.alpha > 0
    assert not (bones & ~body).any()


def test_a_sketch_is_black_on_white_and_its_lines_are_the_outlines():
    paper = sketch(BOTH, SIZE)
    assert (paper == paper[:, :, :1]).all()
    assert (paper[0] == 255).all()
    inside = coverage(BOTH, SIZE).of(BOTH, NEAR) > 0.99
    layer = draw_figure(NEAR, SIZE)
    deep = np.zeros((SIZE, SIZE), dtype=bool)
    deep[layer.rows, layer.columns] = layer.distance < -0.03
    assert (paper[deep & inside] == 255).all()
    edge = np.zeros((SIZE, SIZE), dtype=bool)
    edge[layer.rows, layer.columns] = np.abs(layer.distance) < 0.004
    assert (paper[edge] == 0).all()
