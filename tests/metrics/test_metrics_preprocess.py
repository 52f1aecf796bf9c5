"""What a picture goes through before a backbone sees it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from emu_edit.errors import InputError
from emu_edit.images import to_pil
from emu_edit.metrics.preprocess import (
    CLIP_MEAN,
    CLIP_PREPROCESS,
    CLIP_STD,
    DINO_PREPROCESS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    resample,
)

CUT = Preprocess(short_side=24, filter="bicubic", crop=16, mean=CLIP_MEAN, std=CLIP_STD)
# the margin above and to the left is the same under both rounding rules here
SIZES = [(24, 24), (48, 60), (60, 48), (20, 45), (64, 24), (9, 11), (16, 16)]


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_it_agrees_with_the_clip_processor_of_transformers(size: tuple[int, int]):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 16, "width": 16}
    )
    picture = noise(*size)
    theirs = processor(images=to_pil(picture), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(CUT(picture).float(), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_it_agrees_with_the_vit_processor_of_transformers(size: tuple[int, int]):
    processor = ViTImageProcessorPil(
        size={"shortest_edge": 24},
        resample=Image.Resampling.BICUBIC,
        do_center_crop=True,
        crop_size={"height": 16, "width": 16},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    ours = Preprocess(
        short_side=24, filter="bicubic", crop=16, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    picture = noise(*size)
    theirs = processor(images=to_pil(picture), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(ours(picture).float(), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("width", "left"), [(16, 0), (17, 0), (18, 1), (19, 2), (20, 2), (21, 2)])
def test_half_a_pixel_of_margin_is_rounded_to_even(width: int, left: int):
    cut = Preprocess(short_side=16, filter="bicubic", crop=16, mean=CLIP_MEAN, std=CLIP_STD)
    for picture, expected in (
        (noise(16, width), noise(16, width)[:, :, left : left + 16]),
        (noise(width, 16), noise(width, 16)[:, left : left + 16]),
    ):
        assert torch.equal(cut.centre(picture), expected)


def test_the_long_side_is_rounded_down():
    cut = Preprocess(short_side=10, filter="bicubic", crop=10, mean=CLIP_MEAN, std=CLIP_STD)
    picture = noise(12, 23)  # 10 * 23 / 12 = 19.17
    resized = np.asarray(to_pil(picture).resize((19, 10), Image.Resampling.BICUBIC))
    expected = torch.from_numpy(resized.copy()).permute(2, 0, 1)[:, :, 4:14]  # a margin of 4.5
    assert torch.equal(cut.centre(picture), expected)


def test_the_numbers_by_hand():
    cut = Preprocess(
        short_side=8, filter="bicubic", crop=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)
    )
    picture = torch.tensor([255, 51, 102], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    expected = torch.tensor([1.0, -0.2, 0.2], dtype=torch.float64)[:, None, None].expand(3, 8, 8)
    torch.testing.assert_close(cut(picture), expected, rtol=0, atol=1e-15)


def test_the_filter_is_anti_aliased_and_is_the_one_named():
    stripes = torch.zeros(3, 8, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    # sampled without a low pass, every column would be black or white
    assert set(resample(stripes, (8, 16), "bilinear").unique().tolist()) <= set(range(100, 156))
    results = [
        resample(noise(32, 32), (20, 12), name) for name in ("bicubic", "bilinear", "lanczos")
    ]
    assert not any(torch.equal(a, b) for a, b in pairwise(results))


def test_bicubic_is_what_pillow_takes_when_none_is_named():
    picture = noise(30, 20)
    default = np.asarray(to_pil(picture).resize((17, 13)))
    assert np.array_equal(resample(picture, (13, 17), "bicubic").permute(1, 2, 0), default)


def test_a_picture_of_the_wanted_size_is_not_touched():
    picture = noise(16, 20)
    assert resample(picture, (16, 20), "bicubic") is picture


def test_the_published_settings_are_those_of_the_authors():
    assert (CLIP_PREPROCESS.short_side, CLIP_PREPROCESS.crop) == (224, 224)
    assert (DINO_PREPROCESS.short_side, DINO_PREPROCESS.crop) == (256, 224)
    processor = CLIPImageProcessorPil()
    assert CLIP_PREPROCESS.mean == tuple(processor.image_mean)
    assert CLIP_PREPROCESS.std == tuple(processor.image_std)
    assert {CLIP_PREPROCESS.filter, DINO_PREPROCESS.filter} == {"bicubic"}


def test_settings_that_fit_no_picture_are_refused():
    with pytest.raises(InputError, match=r"preprocess.crop=25, needs 1 to short_side=24"):
        Preprocess(short_side=24, filter="bicubic", crop=25, mean=CLIP_MEAN, std=CLIP_STD)
    with pytest.raises(InputError, match=r"preprocess.std=.*needs positive numbers"):
        Preprocess(short_side=24, filter="bicubic", crop=24, mean=CLIP_MEAN, std=(1.0, 0.0, 1.0))
