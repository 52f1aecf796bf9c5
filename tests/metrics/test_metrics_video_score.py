"""Scores of an edited video against numpy; one reading, missing networks, undefined numbers."""

import json
import math
import re
import shlex
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.metrics.protocols import METRICS
from emu_edit.metrics.video_protocols import (
    TGVE,
    TGVE_INTERNVID,
    TGVE_METRICS,
    video_protocol,
)
from emu_edit.metrics.video_score import (
    CountedFrames,
    VideoNetworks,
    load_video_backbones,
    score_features,
    score_video,
    video_features,
)
from tests.metrics.tiny_backbones import CLIP_CUT, SIDE, clip_image, clip_text
from tests.metrics.tiny_viclip import text_feature, viclip_weights, video_feature
from tests.metrics.tiny_video import PROTOCOL, place, vocabulary, write_video_backbones

CAPTIONS = ("a cat", "a dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="module")
def networks(folder: Path) -> VideoNetworks:
    return load_video_backbones(folder, PROTOCOL)


@pytest.fixture
def videos(cpu_generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A source of ten frames and a result of nine."""
    shape = (19, 3, 20, 36)
    both = torch.randint(0, 256, shape, generator=cpu_generator, dtype=torch.uint8)
    return both[:10], both[10:]


def counted(frames: Tensor) -> CountedFrames:
    return CountedFrames(frames, len(frames))


def scored(videos: tuple[Tensor, Tensor], networks: VideoNetworks) -> dict[str, float | None]:
    source, result = videos
    return score_video(counted(source), counted(result), *CAPTIONS, networks)


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def unit(a: NDArray[np.float64]) -> NDArray[np.float64]:
    return a / math.sqrt(a @ a)


def test_all_six_metrics_agree_with_a_second_computation(
    folder: Path, networks: VideoNetworks, videos: tuple[Tensor, Tensor]
):
    source, result = videos
    words = vocabulary(place(folder, TGVE, "clip"))
    marks = words["<|startoftext|>"], words["<|endoftext|>"]
    ids = [[marks[0], *(words[f"{w}</w>"] for w in text.split()), marks[1]] for text in CAPTIONS]
    expected = {}
    for name, metric in (("pickscore", "pickscore"), ("clip", "clip_text")):
        where = place(folder, TGVE, name)
        rows = [clip_image(where, tgve_pixels(frame)) for frame in result]
        scale = math.exp(load_file(where / "model.safetensors")["logit_scale"].item())
        text = clip_text(where, ids[1])
        expected[metric] = sum(scale * cosine(row, text) for row in rows) / len(rows)
    pairs = [cosine(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    expected["clip_frame_all"] = sum(pairs) / len(pairs)
    neighbours = [cosine(a, b) for a, b in pairwise(rows)]
    expected["clip_frame_next"] = sum(neighbours) / len(neighbours)
    weights = viclip_weights(len(words))
    viclip = networks.viclip
    assert viclip is not None
    before, after = (
        video_feature(weights, np.stack([viclip.prepared(frames[i]).numpy() for i in chosen]))
        for frames, chosen in (
            (source, (0, 1, 2, 3, 5, 6, 7, 8)),
            (result, range(8)),
        )
    )
    start, end = (text_feature(weights, one) for one in ids)
    expected["viclip_out"] = cosine(after, end)
    expected["viclip_dir"] = cosine(unit(after) - unit(before), unit(end) - unit(start))
    scores = scored(videos, networks)
    assert tuple(scores) == TGVE_METRICS
    assert scores == pytest.approx(expected, abs=1e-6)
    assert len({round(value, 3) for value in expected.values()}) == 6


def tgve_pixels(frame: Tensor) -> NDArray[np.float64]:
    """As TGVE's script: a square of 480, no aspect kept, then CLIP's own transform."""
    square = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((480, 480))
    small = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, dtype=np.float64).transpose(2, 0, 1) / 255
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (CLIP_CUT.mean, CLIP_CUT.std))
    return (pixels - mean) / std


def test_a_video_is_read_once_and_its_frames_are_not_kept(networks: VideoNetworks):
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def frames() -> Iterator[Tensor]:
        nonlocal most
        for i in range(12):
            frame = torch.full((3, 32, 32), i, dtype=torch.uint8)
            alive.append(weakref.ref(frame))
            yield frame
            del frame
            most = max(most, sum(ref() is not None for ref in alive))

    one = video_features(CountedFrames(frames(), 12), networks)
    assert (len(alive), most) == (12, 1)
    again = video_features(counted(torch.stack(list(frames()))), networks)
    assert one.viclip is not None
    assert again.viclip is not None
    assert torch.equal(one.viclip, again.viclip)
    assert score_features(one, one, *CAPTIONS, networks) == score_features(
        again, again, *CAPTIONS, networks
    )


def test_a_copy_went_nowhere_and_what_is_not_defined_is_none(
    networks: VideoNetworks, videos: tuple[Tensor, Tensor]
):
    source, result = (video_features(counted(frames), networks) for frames in videos)
    copied = score_features(source, source, *CAPTIONS, networks)
    assert copied["viclip_dir"] == 0
    assert None not in copied.values()
    same = score_features(source, result, "a cat", "a cat", networks)
    assert [name for name, value in same.items() if value is None] == ["viclip_dir"]
    untold = score_features(source, result, " ", "a cat", networks)
    assert [name for name, value in untold.items() if value is None] == ["viclip_dir"]
    unsaid = score_features(source, result, "a cat", "", networks)
    named = [name for name, value in unsaid.items() if value is None]
    assert named == ["pickscore", "clip_text", "viclip_dir", "viclip_out"]


def test_one_frame_has_no_consistency(networks: VideoNetworks, videos: tuple[Tensor, Tensor]):
    one = counted(videos[1][:1])
    scores = score_video(counted(videos[0]), one, *CAPTIONS, networks)
    undefined = [name for name, value in scores.items() if value is None]
    assert undefined == ["clip_frame_all", "clip_frame_next"]


def test_another_number_of_frames_than_said_is_refused(
    networks: VideoNetworks, videos: tuple[Tensor, Tensor]
):
    for said in (9, 11):
        with pytest.raises(InputError, match=f"said to have {said} frames has 10; its file may"):
            video_features(CountedFrames(videos[0], said), networks)
    with pytest.raises(InputError, match="a video without frames cannot be scored"):
        video_features(CountedFrames([], 0), networks)


def test_only_the_networks_of_the_metrics_asked_for_are_loaded(
    folder: Path, networks: VideoNetworks, videos: tuple[Tensor, Tensor]
):
    some = load_video_backbones(folder, PROTOCOL, ["pickscore", "viclip_dir"])
    assert some.clip is None
    assert set(some.hashes) == {"pickscore", "viclip"}
    scores = scored(videos, some)
    whole = scored(videos, networks)
    assert scores == {name: whole[name] for name in ("pickscore", "viclip_dir")}
    assert whole["viclip_dir"] is not None
    assert networks.count_cut([" ".join("b" * 40)]) == {"clip": 0, "pickscore": 0, "viclip": 1}


def test_missing_networks_are_named_with_commands_that_get_them(tmp_path: Path, folder: Path):
    with pytest.raises(InputError) as caught:
        load_video_backbones(tmp_path, PROTOCOL)
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path} lacks 3 networks of the protocol tgve; get them with: hf"
    )
    commands = [shlex.split(one) for one in message.split("with: ")[1].split(" && ")]
    assert [one[2] for one in commands] == [
        "openai/clip-vit-large-patch14",
        "yuvalkirstain/PickScore_v1",
        "OpenGVLab/VBench_Used_Models",
    ]
    for name, command in zip(("clip", "pickscore", "viclip"), commands, strict=True):
        assert command[:2] == ["hf", "download"]
        assert command[-2:] == ["--local-dir", str(place(tmp_path, TGVE, name))]
        # what the command fetches is what is read
        source = place(folder, TGVE, name)
        target = place(tmp_path, TGVE, name)
        target.mkdir()
        for file in command[3:-2]:
            if (source / file).is_file():
                shutil.copy(source / file, target / file)
    fetched = load_video_backbones(tmp_path, PROTOCOL)
    assert fetched.hashes == load_video_backbones(folder, PROTOCOL).hashes
    assert fetched.missing == ()


def test_what_is_missing_may_be_left_out_by_name(
    tmp_path: Path, folder: Path, videos: tuple[Tensor, Tensor]
):
    none = load_video_backbones(tmp_path, PROTOCOL, allow_missing=True)
    assert (none.metrics, len(none.missing)) == ((), 3)
    assert scored(videos, none) == {}
    shutil.copytree(place(folder, TGVE, "clip"), place(tmp_path, TGVE, "clip"))
    with pytest.raises(InputError, match="lacks 1 network of the protocol tgve; get it with: hf"):
        load_video_backbones(tmp_path, PROTOCOL, ["viclip_out"])
    some = load_video_backbones(tmp_path, PROTOCOL, allow_missing=True)
    assert some.missing == ("yuvalkirstain/PickScore_v1", "OpenGVLab/VBench_Used_Models")
    assert some.metrics == ("clip_frame_all", "clip_frame_next", "clip_text")
    scores = scored(videos, some)
    assert tuple(scores) == some.metrics
    shutil.rmtree(place(tmp_path, TGVE, "clip"))
    shutil.copytree(place(folder, TGVE, "viclip"), place(tmp_path, TGVE, "viclip"))
    blind = load_video_backbones(tmp_path, PROTOCOL, allow_missing=True)  # nothing reads a text
    assert blind.metrics == ()


def test_the_protocols_say_everything_that_can_be_written_down():
    assert video_protocol(None) is TGVE
    assert video_protocol("tgve-internvid") is TGVE_INTERNVID
    with pytest.raises(
        InputError, match=r"unknown protocol 'tgv'; .* tgve, tgve-internvid\..*tgve"
    ):
        video_protocol("tgv")
    written = json.loads(json.dumps(asdict(TGVE)))
    assert written["frame_size"] == [480, 480]
    assert written["viclip_input"]["name"] == "viclip-vbench"
    assert replace(TGVE_INTERNVID, name="tgve", source=TGVE.source) == replace(
        TGVE, viclip_input=TGVE_INTERNVID.viclip_input
    )
    assert set(TGVE_METRICS) <= METRICS.keys()
    assert re.fullmatch(r"CLIPFrame \(all pairs\) ↑", str(METRICS["clip_frame_all"]))
