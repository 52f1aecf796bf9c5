"""Means over the frames of a video: sums against loops over pairs; CLIP without a tokenizer."""

import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from emu_edit.errors import InputError
from emu_edit.metrics.backbones import ClipBackbone
from emu_edit.metrics.video_clip import FrameSums, consistency
from tests.metrics.tiny_backbones import CLIP_CUT, write_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("backbones") / "clip")


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipBackbone:
    return ClipBackbone.load(folder, CLIP_CUT, dtype=torch.float64)


def summed(features: torch.Tensor) -> FrameSums:
    sums = FrameSums()
    for feature in features:
        sums.add(feature)
    return sums


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("count", [2, 3, 8, 50])
def test_sums_are_the_means_over_all_pairs_and_neighbours(
    count: int, cpu_generator: torch.Generator
):
    features = torch.randn(count, 5, generator=cpu_generator, dtype=torch.float64) + 0.5
    text = torch.randn(5, generator=cpu_generator, dtype=torch.float64)
    rows, words = features.numpy(), text.numpy()
    pairs = [cosine(rows[i], rows[j]) for i in range(count) for j in range(count) if i != j]
    neighbours = [cosine(rows[i], rows[i + 1]) for i in range(count - 1)]
    sums = summed(features)
    assert sums.count == count
    assert sums.all_pairs() == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert sums.consecutive() == pytest.approx(sum(neighbours) / len(neighbours), abs=1e-12)
    texts = [cosine(row, words) for row in rows]
    assert sums.mean_cosine(text) == pytest.approx(sum(texts) / count, abs=1e-12)


def test_the_two_definitions_differ_and_lengths_of_features_do_not_matter(
    cpu_generator: torch.Generator,
):
    steps = torch.randn(30, 4, generator=cpu_generator).cumsum(0) + 20  # a slow change
    sums, scaled = summed(steps), summed(steps * torch.arange(1.0, 31.0)[:, None])
    assert 1 - sums.all_pairs() > 5 * (1 - sums.consecutive()) > 0
    assert scaled.all_pairs() == pytest.approx(sums.all_pairs(), abs=1e-6)
    assert scaled.consecutive() == pytest.approx(sums.consecutive(), abs=1e-6)


def test_one_frame_has_no_consistency_and_a_still_has_all_of_it():
    feature = torch.tensor([3.0, 4.0])
    alone = summed(feature[None])
    assert math.isnan(alone.all_pairs())
    assert math.isnan(alone.consecutive())
    assert alone.mean_cosine(torch.tensor([0.0, 9.0])) == pytest.approx(0.8)
    assert math.isnan(FrameSums().mean_cosine(feature))
    still = summed(feature.expand(9, 2))
    assert still.all_pairs() == pytest.approx(1, abs=1e-12)
    assert still.consecutive() == pytest.approx(1, abs=1e-12)


def test_the_scale_is_what_the_network_multiplies_a_cosine_with(folder: Path, clip: ClipBackbone):
    stored = load_file(folder / "model.safetensors")["logit_scale"].item()
    assert clip.logit_scale == pytest.approx(math.exp(stored), abs=1e-6)


def test_a_network_without_a_tokenizer_takes_that_of_another(
    folder: Path, clip: ClipBackbone, tmp_path: Path
):
    bare = tmp_path / "pickscore"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, bare / name)
    with pytest.raises(InputError, match=r"has no tokenizer.json or vocab.json"):
        ClipBackbone.load(bare, CLIP_CUT)
    loaded = ClipBackbone.load(bare, CLIP_CUT, dtype=torch.float64, tokenizer=folder)
    assert torch.equal(loaded.texts(["a cat"]), clip.texts(["a cat"]))
    with pytest.raises(InputError, match=r"pickscore has no tokenizer.json or vocab.json"):
        ClipBackbone.load(folder, CLIP_CUT, tokenizer=bare)


def test_frame_image_and_text_consistency_are_means_of_cosines(
    clip: ClipBackbone, cpu_generator: torch.Generator
):
    frames = torch.randint(0, 256, (5, 3, 32, 40), generator=cpu_generator, dtype=torch.uint8)
    picture = frames[0, :, :, :32]
    rows = clip.images(list(frames)).numpy()
    given, asked = clip.images([picture])[0].numpy(), clip.texts(["a cat"])[0].numpy()
    found = consistency(iter(frames), picture, "a cat", clip)
    pairs = [cosine(one, other) for one, other in pairwise(rows)]
    assert found.frames == pytest.approx(100 * sum(pairs) / 4, abs=1e-9)
    assert found.picture == pytest.approx(np.mean([100 * cosine(r, given) for r in rows]), abs=1e-9)
    assert found.text == pytest.approx(np.mean([100 * cosine(r, asked) for r in rows]), abs=1e-9)


def test_a_still_of_the_picture_is_wholly_consistent(
    clip: ClipBackbone, cpu_generator: torch.Generator
):
    picture = torch.randint(0, 256, (3, 32, 32), generator=cpu_generator, dtype=torch.uint8)
    found = consistency([picture] * 3, picture, "a dog", clip)
    assert (found.frames, found.picture) == pytest.approx((100, 100), abs=1e-9)
    assert math.isnan(consistency([picture], picture, "a dog", clip).frames)
    with pytest.raises(InputError, match="a video without frames"):
        consistency([], picture, "a dog", clip)
