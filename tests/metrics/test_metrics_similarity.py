"""Cosines, directions and distances, against numbers worked out by hand and by plain numpy."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cosine as cosine_distance

from emu_edit.metrics.similarity import clip_dir, cosine, l1, l2


def rows(*values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_features(generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_cosines_by_hand():
    a = rows((3, 4), (1, 0), (2, 2), (1, 2))
    b = rows((4, 3), (0, 7), (-1, -1), (10, 20))
    torch.testing.assert_close(cosine(a, b), torch.tensor([0.96, 0.0, -1.0, 1.0]).double())


def test_the_cosine_with_nothing_is_undefined():
    assert cosine(rows((0, 0), (1, 2)), rows((1, 2), (0, 0))).isnan().all()


def test_directions_by_hand():
    # unit vectors: the picture goes from (1, 0) to (0.6, 0.8), the caption from (0, 1) to (1, 0)
    score = clip_dir(rows((5, 0)), rows((3, 4)), rows((0, 0.1)), rows((2, 0)))
    step_image, step_text = (-0.4, 0.8), (1.0, -1.0)
    by_hand = (-0.4 - 0.8) / (math.hypot(*step_image) * math.hypot(*step_text))
    assert score.item() == pytest.approx(by_hand, abs=1e-15)
    assert by_hand == pytest.approx(-3 / math.sqrt(10), abs=1e-15)


def test_a_picture_that_moves_as_its_caption_does_scores_1_and_one_that_moves_back_minus_1():
    here, there = rows((1, 0), (0, 1)), rows((0, 1), (1, 0))
    assert clip_dir(here, there, here, there).tolist() == pytest.approx([1, 1])
    assert clip_dir(here, there, there, here).tolist() == pytest.approx([-1, -1])


def test_a_second_computation_in_numpy_agrees(cpu_generator: torch.Generator):
    image_in, image_out, text_in, text_out = random_features(cpu_generator)

    def unit(x: torch.Tensor) -> NDArray[np.float64]:
        return x.numpy() / np.sqrt((x.numpy() ** 2).sum(axis=1, keepdims=True))

    steps = zip(unit(image_out) - unit(image_in), unit(text_out) - unit(text_in), strict=True)
    directions = [1 - cosine_distance(a, b) for a, b in steps]
    ours = clip_dir(image_in, image_out, text_in, text_out)
    np.testing.assert_allclose(ours.numpy(), directions, rtol=0, atol=1e-12)
    pairs = zip(image_in.numpy(), image_out.numpy(), strict=True)
    cosines = [1 - cosine_distance(a, b) for a, b in pairs]
    np.testing.assert_allclose(cosine(image_in, image_out).numpy(), cosines, rtol=0, atol=1e-12)


def test_lengths_do_not_matter(cpu_generator: torch.Generator):
    features = random_features(cpu_generator)
    longer = [x * factor for x, factor in zip(features, (2, 3, 0.5, 40), strict=True)]
    torch.testing.assert_close(clip_dir(*longer), clip_dir(*features))
    torch.testing.assert_close(cosine(*longer[:2]), cosine(*features[:2]))


def test_a_copy_of_the_input_scores_0(cpu_generator: torch.Generator):
    image, _, text_in, text_out = random_features(cpu_generator)
    assert clip_dir(image, image, text_in, text_out).tolist() == [0.0] * 6
    # what two batches of one network may leave between equal pictures is no direction
    assert clip_dir(image, image * (1 + 1e-7), text_in, text_out).tolist() == [0.0] * 6
    assert clip_dir(image, image + 1e-3, text_in, text_out).abs().min() > 0


def test_equal_captions_have_no_direction(cpu_generator: torch.Generator):
    image_in, image_out, text, _ = random_features(cpu_generator)
    assert clip_dir(image_in, image_out, text, text).isnan().all()
    assert clip_dir(image_in, image_in, text, text).isnan().all()


def test_features_in_half_precision_are_compared_in_double(cpu_generator: torch.Generator):
    a, b, *_ = (x.bfloat16() for x in random_features(cpu_generator))
    assert cosine(a, b).dtype == torch.float64
    assert torch.equal(cosine(a, b), cosine(a.double(), b.double()))


def picture(*levels: int) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.uint8).view(3, 1, 2)


def test_distances_by_hand():
    a, b = picture(0, 255, 10, 20, 30, 40), picture(255, 255, 10, 71, 30, 40)
    assert l1(a, b) == pytest.approx((1 + 51 / 255) / 6, abs=1e-15)
    assert l2(a, b) == pytest.approx((1 + (51 / 255) ** 2) / 6, abs=1e-15)
    assert l1(a, a) == l2(a, a) == 0
    assert l1(b, a) == l1(a, b)


def test_black_and_white_are_as_far_apart_as_can_be():
    black, white = picture(*[0] * 6), picture(*[255] * 6)
    assert l1(black, white) == l2(black, white) == 1


def test_distances_agree_with_numpy(cpu_generator: torch.Generator):
    a, b = (
        torch.randint(0, 256, (3, 13, 17), generator=cpu_generator, dtype=torch.uint8)
        for _ in range(2)
    )
    difference = a.numpy().astype(float) / 255 - b.numpy().astype(float) / 255
    assert l1(a, b) == pytest.approx(np.abs(difference).mean(), abs=1e-12)
    assert l2(a, b) == pytest.approx((difference**2).mean(), abs=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (4, 5)])
def test_pictures_of_different_sizes_are_not_compared(size: tuple[int, int]):
    wide = torch.zeros(3, 4, 6, dtype=torch.uint8)
    other = torch.zeros(3, *size, dtype=torch.uint8)
    for distance in (l1, l2):
        with pytest.raises(ValueError, match=rf"pictures of {size[1]}x{size[0]} and 6x4 cannot be"):
            distance(other, wide)
