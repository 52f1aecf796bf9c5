import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.testing import assert_close

from datamodules.world.pair import make_pair
from emu_edit.editing import upsampling
from emu_edit.editing.upsampling import with_change
from emu_edit.images import resize
from tests.editing.conftest import picture


def smooth(height: int, width: int, seed: int = 0) -> UInt8[Tensor, "3 h w"]:
    """Draw soft shapes with fine detail on them."""
    large = resize(picture(height // 8, width // 8, seed), (height, width))
    detail = picture(height, width, seed + 1) % 16
    return large // 2 + 40 + detail


def error(first: Tensor, second: Tensor) -> float:
    return (first.float() - second.float()).square().mean().item()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (61, 90), (17, 16), (40, 160)])
def test_where_nothing_was_edited_no_pixel_changes(height: int, width: int) -> None:
    source = picture(height, width)
    small = resize(source, (16, width * 16 // height))
    assert torch.equal(with_change(source, small, small), source)


def test_an_edit_of_one_place_leaves_the_rest_bit_for_bit() -> None:
    source = picture(128, 128)
    small = resize(source, (32, 32))
    edited = small.clone()
    edited[:, 8:12, 8:12] = 255 - edited[:, 8:12, 8:12]
    is_changed = (with_change(source, small, edited) != source).any(0)
    assert is_changed[32:48, 32:48].float().mean() > 0.9
    reach = 4 * (2 * upsampling.RADIUS + 1)  # two windows, and a pixel between two of the small
    is_changed[32 - reach : 48 + reach, 32 - reach : 48 + reach] = False
    assert not is_changed.any()


def test_an_affine_change_of_colours_is_made_with_all_detail() -> None:
    """Black and white, exactly: what the eye sees is in the large picture only."""
    source = smooth(128, 96)
    small = resize(source, (32, 24))
    grey = [
        one.float().mean(0, keepdim=True).round().byte().expand(3, -1, -1)
        for one in (source, small)
    ]
    made = with_change(source, small, grey[1])
    blurred = resize(grey[1], (128, 96))
    assert error(made, grey[0]) < 0.3 * error(blurred, grey[0])


def test_pictures_are_worked_on_in_strips_that_nobody_sees(monkeypatch) -> None:
    source = smooth(64, 48)
    small, edited = resize(source, (16, 12)), picture(16, 12, seed=5)
    whole = with_change(source, small, edited)
    monkeypatch.setattr(upsampling, "STRIP", 5 * 48)
    assert torch.equal(with_change(source, small, edited), whole)


@pytest.mark.parametrize(
    ("task", "times_better"),
    [
        ("local", 3),
        ("remove", 1.1),
        ("background", 4),
        ("segment", 4),
        ("depth", 3),
        ("normal", 1.5),
    ],
)
def test_true_edits_of_the_world_are_put_on_large_pictures_better_than_enlarged(
    task: str, times_better: float
) -> None:
    pair = make_pair(3, 0, task=task, size=128, split="heldout")
    source, target = (
        torch.from_numpy(np.ascontiguousarray(one)).permute(2, 0, 1)
        for one in (pair.source, pair.target)
    )
    small, edited = resize(source, (32, 32)), resize(target, (32, 32))
    change = torch.nn.functional.interpolate(
        (edited.float() - small.float())[None], size=(128, 128), mode="bicubic"
    )[0]
    plain = (source + change).clamp(0, 255)
    assert error(with_change(source, small, edited), target) * times_better < error(plain, target)


def test_what_no_transform_of_colours_says_is_added_too() -> None:
    source = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    small, edited = resize(source, (16, 16)), resize(source, (16, 16)).clone()
    edited[:, ::4] = 20  # lines on a flat ground: the colours of the source do not tell them
    made = with_change(source, small, edited)
    rows = made.float().mean((0, 2)).reshape(16, 4).mean(1)
    assert_close(rows, edited.float().mean((0, 2)), atol=48, rtol=0)
    assert rows[4] < 80 < 160 < rows[6]


def test_a_trace_of_unevenness_in_a_great_change_is_left_out() -> None:
    source = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    small = resize(source, (16, 16))
    rng = np.random.default_rng(0)
    uneven = torch.from_numpy(rng.integers(-6, 7, (3, 16, 16)))
    edited = (60 + uneven).to(torch.uint8)
    made = with_change(source, small, edited)
    assert made.float().std() < 0.5 * edited.float().std()
