"""Clips in shards: nothing lost on the way, streamed in the order and by the rules of pictures."""

import json
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules.checks.folders import check_folder
from datamodules.clip import ClipDataModule
from datamodules.edit import EditDataModule
from datamodules.shards.clips import ClipRecord, decode_mp4, decode_strip, encode_mp4
from datamodules.shards.manifest import NEW_TASK, write_manifest
from datamodules.shards.writer import write_task_shards
from datamodules.world.clips.clip import ClipPair, make_clip
from datamodules.world.clips.sheet import flow_picture
from datamodules.world.clips.write import (
    EDITS_LIST,
    ClipWorld,
    record_of,
    write_clips,
    write_movies,
)
from datamodules.world.pair import make_pair
from emu_edit.batch import ClipBatch, ClipSample
from emu_edit.errors import BadImageError, InputError
from emu_edit.tasks import CAPTION, SIXTEEN

WORLD = ClipWorld(clips=16, seed=3, size=16, frames=6)
FEW = ClipWorld(clips=2, seed=3, size=16, frames=6)


@pytest.fixture(scope="module")
def made() -> dict[str, ClipPair]:
    return {clip.key: clip for clip in WORLD}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "train"
    write_clips(path, WORLD)
    return path


def module(folder: Path, **settings: int) -> ClipDataModule:
    options: dict[str, int] = {"image_size": 16, "frames": 6, "global_batch": 4, **settings}
    data = ClipDataModule(str(folder), str(folder), steps_per_epoch=4, **options)  # pyright: ignore[reportArgumentType]
    data.setup("fit")
    return data


def batches_of(data: ClipDataModule) -> Iterator[ClipBatch]:
    for batch in data.train_dataloader():
        assert isinstance(batch, ClipBatch)
        yield batch


def test_every_clip_comes_back_as_it_was_made(folder: Path, made: dict[str, ClipPair]):
    left = dict(made)
    for batch in module(folder).val_dataloader():
        assert isinstance(batch, ClipBatch)
        for i, key in enumerate(batch.key):
            clip = left.pop(key)
            np.testing.assert_array_equal(batch.source[i], clip.source)
            np.testing.assert_array_equal(batch.target[i], clip.target)
            np.testing.assert_array_equal(batch.mask[i], clip.mask)
            assert batch.source_caption[i] == clip.caption
            assert batch.target_caption[i] == clip.output_caption
            assert batch.instruction[i] == clip.instruction
            assert SIXTEEN.names[int(batch.task[i])] == clip.task
            assert batch.rate[i] == 8
    assert not left


def test_lossless_mp4s_hold_the_same_pixels_as_film_strips(
    tmp_path: Path, made: dict[str, ClipPair]
):
    write_clips(tmp_path / "movies", replace(WORLD, clips=3, movie=True))
    movies = module(tmp_path / "movies").val_dataloader()
    for batch in movies:
        assert isinstance(batch, ClipBatch)
        for key, source in zip(batch.key, batch.source, strict=True):
            np.testing.assert_array_equal(source, made[key].source)


@pytest.mark.parametrize("movie", [False, True])
def test_a_clip_may_be_longer_than_a_picture_may_be_thin(tmp_path: Path, movie: bool):
    # 24 square frames below each other are 1:24; pictures end at 1:20
    write_clips(tmp_path, replace(FEW, frames=24, movie=movie))
    for batch in module(tmp_path, frames=24).val_dataloader():
        assert batch.source.shape == (2, 24, 3, 16, 16)
        assert batch.mask.shape == (2, 24, 16, 16)
    assert not check_folder(tmp_path).errors


def test_a_clip_that_no_reader_would_take_is_not_written():
    strip = np.zeros((2100 * 8, 8, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="k: 2100 frames of 8x8 are more than a reader takes"):
        ClipRecord(
            key="k", source=strip, target=strip, instruction="i", task="add", frames=2100, rate=8
        )


def captioned(clip: ClipPair, *, movie: bool = False) -> ClipRecord:
    record = record_of(clip, rate=8, movie=movie)
    return replace(record, task=CAPTION, target=record.source, instruction=clip.caption, mask=None)


def test_a_clip_with_a_caption_has_frames_and_no_source(tmp_path: Path):
    records = [captioned(clip, movie=i == 1) for i, clip in enumerate(FEW)]
    entries = write_task_shards(tmp_path, CAPTION, records)
    write_manifest(tmp_path, entries, made_by={NEW_TASK: CAPTION})
    assert [name for record in records for name in record.members()] == [
        *("target.png", "json"),
        *("target.mp4", "json"),
    ]
    assert not check_folder(tmp_path).problems
    with pytest.raises(
        InputError, match=r"unknown task 'caption'\. Known are those of data\.tasks"
    ):
        module(tmp_path)
    data = ClipDataModule(
        str(tmp_path), str(tmp_path), 16, 6, global_batch=2, steps_per_epoch=1, tasks=[CAPTION]
    )
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert isinstance(batch, ClipBatch)
    assert batch.has_source.tolist() == [False, False]
    assert batch.instruction == tuple(clip.caption for clip in FEW)
    np.testing.assert_array_equal(batch.target, np.stack([clip.source for clip in FEW]))
    assert not batch.source.any()
    pictures = EditDataModule(str(tmp_path), global_batch=1, steps_per_epoch=1, tasks=[CAPTION])
    pictures.setup("fit")
    with pytest.raises(InputError, match="is a clip, its frames below each other"):
        next(iter(pictures.train_dataloader()))


def test_options_of_pictures_are_options_of_clips(folder: Path, made: dict[str, ClipPair]):
    noops = dict.fromkeys(SIXTEEN.names, 1.0)
    data = ClipDataModule(str(folder), None, 16, 6, 16, steps_per_epoch=1, flip=True, noops=noops)
    data.setup("fit")
    (batch,) = batches_of(data)
    assert torch.equal(batch.source, batch.target)
    assert not batch.mask.any()
    flipped = 0
    for key, target in zip(batch.key, batch.target.numpy(), strict=True):
        clip = made[key].target
        is_flipped = not np.array_equal(target, clip)
        np.testing.assert_array_equal(target, clip[..., ::-1] if is_flipped else clip)
        flipped += is_flipped
    assert 0 < flipped < 16


def test_a_config_of_clips_is_checked_and_explained_to_the_last_option(
    capsys: pytest.CaptureFixture[str],
):
    parser = ArgumentParser()
    parser.add_class_arguments(ClipDataModule, "data")
    needed = ["--data.train", "x"]
    assert parser.parse_args([*needed, "--data.window", "3"]).data.window == 3
    for wrong in (["--data.widow", "3"], ["--data.window", "many"]):
        with pytest.raises(SystemExit):
            parser.parse_args([*needed, *wrong])
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    for name in signature(EditDataModule.__init__).parameters.keys() - {"self"}:
        assert f"--data.{name} " in text
    assert "seconds without a batch after which training ends" in text


def test_clips_are_dealt_in_the_order_of_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch):
    # the same folder read as pictures would give the film strips, which only this test asks for
    monkeypatch.setattr("datamodules.stream.reader.CLIP", "nothing")
    pictures = EditDataModule(str(folder), image_size=16, global_batch=4, steps_per_epoch=4)
    pictures.setup("fit")
    keys = [batch.key for batch in pictures.train_dataloader()]
    assert [batch.key for batch in batches_of(module(folder))] == keys


def test_a_resumed_stream_goes_on_with_the_same_frames(folder: Path):
    whole = list(batches_of(module(folder, frames=4)))
    again = module(folder, frames=4)
    state = module(folder, frames=4).state_dict()
    again.load_state_dict({**state, "consumed": 8})
    for expected, batch in zip(whole[2:], batches_of(again), strict=False):
        assert batch.key == expected.key
        assert torch.equal(batch.source, expected.source)


def test_other_frames_are_other_data_to_a_checkpoint(folder: Path):
    with pytest.raises(InputError, match="frames"):
        module(folder, frames=4).load_state_dict(module(folder, frames=5).state_dict())


def test_a_window_lies_inside_a_shot_and_is_drawn_by_position(
    folder: Path, made: dict[str, ClipPair]
):
    starts = set()
    for batch in batches_of(module(folder, frames=2)):
        for key, source in zip(batch.key, batch.source, strict=True):
            clip = made[key]
            fitting = [t for t in range(5) if (clip.source[t : t + 2] == source.numpy()).all()]
            assert fitting
            assert any(t + 1 not in clip.cuts for t in fitting)
            starts.add(fitting[0])
    assert len(starts) > 2


def test_all_frames_are_cut_at_one_place(tmp_path: Path):
    # strips of wide frames: the square lies anywhere, but in every frame and role at the same place
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (16, 32, 3))
    record = record_of(make_clip(0, "train", 0, size=16, frames=4), rate=8)
    wide = replace(
        record, source=np.tile(ramp, (4, 1, 1)), target=np.tile(ramp, (4, 1, 1)), mask=None
    )
    write_manifest(tmp_path, write_task_shards(tmp_path, "local", [wide]), made_by={})
    data = module(tmp_path, frames=4)
    lefts = set()
    for batch in batches_of(data):
        assert not batch.has_mask.any()
        for source, target in zip(batch.source, batch.target, strict=True):
            assert (source == source[:1]).all()
            assert torch.equal(source, target)
            lefts.add(int(source[0, 0, 0, 0]))
    assert len(lefts) > 3


def test_a_clip_that_is_too_short_gives_its_place_to_another_and_is_named(tmp_path: Path):
    records = [
        record_of(make_clip(0, "train", i, task="local", size=16, frames=f), rate=8)
        for i, f in ((0, 6), (1, 2), (2, 6))
    ]
    write_manifest(tmp_path, write_task_shards(tmp_path, "local", records), made_by={})
    bad = [b for batch in batches_of(module(tmp_path)) for b in batch.bad]
    assert {b.key for b in bad} == {records[1].key}
    assert {b.kind for b in bad} == {"too_few_frames"}
    assert "has 2 frames, data.frames=6 are needed" in bad[0].reason


def test_frames_that_are_not_there_are_found(tmp_path: Path):
    pair = make_pair(0, 0, task="local", size=16)
    pair = replace(pair, extra={"clip": {"frames": 5, "rate": 8}})
    write_manifest(tmp_path, write_task_shards(tmp_path, "local", [pair]), made_by={})
    (problem,) = check_folder(tmp_path).problems
    assert problem.message.endswith("a strip of 16 rows does not have 5 frames")
    with pytest.raises(InputError, match="does not have 5 frames"):
        next(batches_of(module(tmp_path, frames=2, global_batch=1)))


def test_shards_of_pictures_are_no_clips(tmp_path: Path):
    pairs = [make_pair(0, i, task="local", size=16) for i in range(4)]
    write_manifest(tmp_path, write_task_shards(tmp_path, "local", pairs), made_by={})
    with pytest.raises(InputError, match="its json has no clip with frames and rate"):
        next(batches_of(module(tmp_path)))


def test_a_folder_of_clips_passes_the_checks_of_shards(tmp_path: Path):
    write_clips(tmp_path / "strips", FEW)
    write_clips(tmp_path / "movies", replace(FEW, movie=True))
    for name in ("strips", "movies"):
        report = check_folder(tmp_path / name)
        assert not [p for p in report.problems if p.is_error], report.problems


def test_the_same_world_gives_the_same_bytes(tmp_path: Path):
    for movie in (False, True):
        manifests = [
            write_clips(tmp_path / f"{movie}{i}", replace(FEW, clips=1, movie=movie))
            for i in range(2)
        ]
        assert manifests[0].entries == manifests[1].entries


def test_plain_movies_have_their_captions_beside_them(tmp_path: Path):
    write_movies(tmp_path, FEW)
    rows = [json.loads(row) for row in (tmp_path / EDITS_LIST).read_text().splitlines()]
    for row, clip in zip(rows, FEW, strict=True):
        assert (row["file"], row["instruction"], row["task"]) == (
            f"{clip.key}.mp4",
            clip.instruction,
            clip.task,
        )
        for role, frames, caption in (
            ("source", clip.source, clip.caption),
            ("target", clip.target, clip.output_caption),
        ):
            path = tmp_path / role / f"{clip.key}.mp4"
            assert path.with_suffix(".txt").read_text() == f"{caption}\n"
            np.testing.assert_array_equal(
                decode_mp4(path.read_bytes()).transpose(0, 3, 1, 2), frames
            )
    with pytest.raises(InputError, match=r"has instructions\.jsonl already"):
        write_movies(tmp_path, FEW)


def test_a_lossy_mp4_keeps_colours():
    # PyAV alone writes BT.601 pixels, which players show 14 grey levels off
    frames = np.full((2, 16, 16, 3), (200, 30, 30), dtype=np.uint8)
    assert np.abs(decode_mp4(encode_mp4(frames, 8, crf=1)).astype(int) - frames).max() <= 2


def test_what_is_no_movie_is_told_in_a_line():
    with pytest.raises(BadImageError, match=r"^here: cannot be decoded as video"):
        decode_strip(b"\0\0\0\x18ftypisom" + bytes(40), "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": 0}, "clips=0 must be at least 1"),
        ({"rate": 0}, "rate=0 frames a second"),
        ({"crf": 20}, "crf=20 is of mp4s"),
    ],
)
def test_what_makes_no_clips_is_refused(change: dict[str, int], message: str):
    with pytest.raises(InputError, match=message):
        replace(FEW, **change)
    with pytest.raises(InputError, match="crf=77 must be 1"):
        encode_mp4(np.zeros((1, 16, 16, 3), dtype=np.uint8), 8, crf=77)


def test_samples_of_other_lengths_are_no_batch():
    def sample(frames: int) -> ClipSample:
        clip = torch.zeros(frames, 3, 8, 8, dtype=torch.uint8)
        return ClipSample(
            key=f"k{frames}", instruction="i", task=0, source=clip, target=clip, rate=8.0
        )

    assert ClipBatch.collate([sample(2), sample(2)]).mask.shape == (2, 2, 8, 8)
    with pytest.raises(ValueError, match="one batch holds one length and size: k2"):
        ClipBatch.collate([sample(2), sample(3)])


def test_flow_is_coloured_by_direction():
    flow = np.zeros((2, 1, 4), dtype=np.float32)
    flow[0, 0, 1], flow[0, 0, 2] = 9, -9
    occluded = np.array([[False, False, False, True]])
    colours = flow_picture(flow, occluded)[0].tolist()
    assert colours[0] == [255, 255, 255]
    assert colours[1] == [255, 0, 0]
    assert colours[2][0] < 5 < 250 < min(colours[2][1:])
    assert colours[3] == [0, 0, 0]
