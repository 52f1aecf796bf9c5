"""CLIP over the frames of a video: sums against loops over pairs, features against numpy."""

import json
import math
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from emu_edit.errors import InputError
from emu_edit.metrics.backbones import ClipBackbone
from emu_edit.metrics.video_clip import FrameSums, frame_sums
from tests.metrics.tiny_backbones import CLIP_CUT, SIDE, clip_image, clip_text, write_clip


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


def test_one_frame_has_no_consistency_and_a_still_has_all_of_it(clip: ClipBackbone):
    frame = torch.full((3, 40, 30), 90, dtype=torch.uint8)
    alone = frame_sums([frame], clip)
    assert math.isnan(alone.all_pairs())
    assert math.isnan(alone.consecutive())
    assert math.isfinite(alone.mean_cosine(clip.texts(["a cat"])[0]))
    assert math.isnan(FrameSums().mean_cosine(clip.texts(["a cat"])[0]))
    still = frame_sums([frame] * 9, clip)
    assert still.all_pairs() == pytest.approx(1, abs=1e-12)
    assert still.consecutive() == pytest.approx(1, abs=1e-12)


def test_clip_frame_clip_text_and_pickscore_by_a_second_computation_in_numpy(
    folder: Path, clip: ClipBackbone, cpu_generator: torch.Generator
):
    frames = torch.randint(0, 256, (4, 3, 20, 36), generator=cpu_generator, dtype=torch.uint8)
    sums = frame_sums(frames, clip)
    rows = []
    for frame in frames:  # TGVE: a square of 480, no aspect kept, then CLIP's own transform
        square = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((480, 480))
        small = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = np.asarray(small, dtype=np.float64).transpose(2, 0, 1) / 255
        mean, std = (np.array(v).reshape(3, 1, 1) for v in (CLIP_CUT.mean, CLIP_CUT.std))
        rows.append(clip_image(folder, (pixels - mean) / std))
    words = json.loads((folder / "vocab.json").read_text())
    ids = [words[token] for token in ("<|startoftext|>", "a</w>", "cat</w>", "<|endoftext|>")]
    text = clip_text(folder, ids)
    scale = math.exp(load_file(folder / "model.safetensors")["logit_scale"].item())
    assert clip.logit_scale == pytest.approx(scale, abs=1e-6)
    score = clip.logit_scale * sums.mean_cosine(clip.texts(["a cat"])[0])
    assert score == pytest.approx(sum(scale * cosine(row, text) for row in rows) / 4, abs=1e-6)
    pairs = [cosine(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    assert sums.all_pairs() == pytest.approx(sum(pairs) / 12, abs=1e-9)
    assert max(pairs) < 1 - 1e-4  # the frames differ enough for the comparison to mean something
    assert frame_sums(frames, clip, size=None).all_pairs() != pytest.approx(sum(pairs) / 12)


def test_no_frame_is_kept(clip: ClipBackbone):
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def frames() -> Iterator[torch.Tensor]:
        nonlocal most
        for i in range(12):
            frame = torch.full((3, 32, 32), i, dtype=torch.uint8)
            alive.append(weakref.ref(frame))
            yield frame
            del frame
            most = max(most, sum(ref() is not None for ref in alive))

    assert frame_sums(frames(), clip, size=None).count == 12
    assert most <= 1


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
