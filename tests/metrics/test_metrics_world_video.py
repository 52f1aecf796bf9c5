"""The shipped network of world clips: what it knows, and what distances by it notice."""

import json

import pytest
import torch
from torch import Tensor

from benchmarks.world_video_network import (
    ANSWERS,
    DAMAGES,
    HELDOUT,
    Labelled,
    damaged,
    labelled_clip,
    pictures_of,
    shares_right,
)
from emu_edit.errors import InputError
from emu_edit.files import sha256_of
from emu_edit.metrics.frechet import Moments, frechet_distance
from emu_edit.metrics.world_video import (
    FEATURE,
    RECORD,
    WEIGHTS,
    frechet_of,
    load_world_video,
    prepared,
    world_features,
)

CLIPS = 100  # of each set
LEAST_RIGHT = 0.7  # of any kind of answer; a guess of a way is right in a fifth
NOTICED = 1.2  # times the distance of true clips
SEED = 1  # the network was trained on clips of another one


@pytest.fixture(scope="module")
def data() -> Labelled:
    return Labelled.drawn(SEED, 0, 2 * CLIPS)


@pytest.fixture(scope="module")
def true(data: Labelled) -> list[Tensor]:
    return list(data.clips[:CLIPS])


@pytest.fixture(scope="module")
def other(data: Labelled) -> list[Tensor]:
    return list(data.clips[CLIPS:])


@pytest.fixture(scope="module")
def apart(true: list[Tensor], other: list[Tensor]) -> float:
    """The distance of two sets of true clips, which is due to their number alone."""
    return frechet_of(true, other)


def test_the_network_tells_colours_and_ways_of_clips_it_has_not_seen(data: Labelled):
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["sha256"] == sha256_of(WEIGHTS)
    assert record["answers"] == {head: list(names) for head, names in ANSWERS.items()}
    assert str(HELDOUT) in record["right_of"]
    assert WEIGHTS.stat().st_size < 1_500_000
    right = shares_right(load_world_video(), data)
    for name, share in record["right"].items():
        assert right[name] == pytest.approx(share, abs=0.06)  # of fewer clips
    assert min(right.values()) > LEAST_RIGHT


def test_features_of_true_clips_have_mean_0_and_variance_1(true: list[Tensor]):
    features = world_features(true)
    assert features.shape == (CLIPS, FEATURE)
    assert features.mean(0).abs().max() < 0.5
    assert (features.var(0).mean() - 1).abs() < 0.25


@pytest.mark.parametrize("name", DAMAGES)
def test_the_distance_rises_with_every_damage(
    name: str, true: list[Tensor], other: list[Tensor], apart: float
):
    found = [frechet_of(true, damaged(other, DAMAGES[name], s)) for s in (0.33, 0.67, 1.0)]
    # colours halfway to others are grey, and further from true ones than exchanged ones are
    assert found == sorted(found) or name == "wrong colours"
    assert found[-1] > NOTICED * apart


def test_frames_in_another_order_are_seen_by_no_metric_of_pictures(
    true: list[Tensor], other: list[Tensor], apart: float
):
    shuffled = damaged(other, DAMAGES["frames in random order"], 1.0)
    pictures = Moments.of(world_features(pictures_of(true)))
    as_they_were, in_disorder = (
        frechet_distance(pictures, Moments.of(world_features(pictures_of(clips))))
        for clips in (other, shuffled)
    )
    assert in_disorder == pytest.approx(as_they_were, rel=1e-4)
    assert frechet_of(true, shuffled) > NOTICED * apart


def test_a_set_is_at_zero_from_itself(true: list[Tensor]):
    assert frechet_of(true, iter(true)) == pytest.approx(0, abs=1e-4)


def test_clips_of_other_sizes_and_lengths_are_brought_to_the_networks(
    cpu_generator: torch.Generator,
):
    clip, _ = labelled_clip(SEED, 0)
    large = clip.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (prepared(large) - prepared(clip)).abs().mean() < 0.05
    assert torch.equal(prepared(clip.repeat_interleave(2, 0)), prepared(clip))
    assert torch.equal(prepared(clip[:1]), prepared(clip[:1].expand(8, -1, -1, -1)))
    noise = torch.randint(0, 256, (3, 3, 50, 20), generator=cpu_generator, dtype=torch.uint8)
    assert prepared(noise).shape == (8, 3, 32, 32)
    with pytest.raises(InputError, match="a clip without frames has no feature"):
        world_features([clip[:0]])
    with pytest.raises(InputError, match="at least 2 clips in each, got 1"):
        frechet_of([clip], [clip, clip])
