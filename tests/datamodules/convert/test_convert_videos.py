"""Videos of a user become clips: cut at cuts, streamed with their captions, nothing lost unsaid."""

import json
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pytest
from jaxtyping import UInt8

from datamodules.checks.folders import check_folder
from datamodules.checks.leaks import LeakGuard
from datamodules.clip import ClipDataModule
from datamodules.convert.cutting import Cutting
from datamodules.convert.gates import Gates
from datamodules.convert.run import ConvertSettings, Part, convert
from datamodules.shards.clips import decode_mp4, encode_mp4
from datamodules.shards.manifest import read_manifest
from datamodules.world.clips.write import ClipWorld, write_movies
from emu_edit.batch import ClipBatch
from emu_edit.cli.main import main
from emu_edit.errors import BadDataError, InputError
from emu_edit.tasks import CAPTION
from tests.datamodules.convert.sets import before, quarantine, save
from tests.datamodules.convert.shards import read_back

Frames = UInt8[np.ndarray, "f h w 3"]


def shot(seed: int, frames: int) -> Frames:
    """Return a picture that moves to the right by a pixel a frame, for 24 x 32 pixels."""
    return np.stack([np.roll(before(seed), t, axis=1) for t in range(frames)])


def write(path: Path, *shots: Frames, caption: str | None = None, rate: int = 8) -> Frames:
    frames = np.concatenate(shots)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_mp4(frames, rate))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return frames


def write_lines(path: Path, *rows: Mapping[str, object]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))


def clips(out: Path) -> dict[str, tuple[dict, Frames]]:
    """Return json and frames of every clip by its place in the videos."""
    texts = [(json.loads(each["json"]), each["target.mp4"]) for each in read_back(out)]
    return {text["origin"]: (text, decode_mp4(movie)) for text, movie in texts}


def run(root: Path, cutting: Cutting, **settings: object) -> dict[str, tuple[dict, Frames]]:
    out = root.parent / "out"
    convert("clips", root, out, ConvertSettings(cutting=cutting, **settings))  # pyright: ignore[reportArgumentType]
    return clips(out)


def reasons(out: Path) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in quarantine(out)}


def test_shots_become_clips_with_the_caption_of_their_video(tmp_path: Path):
    root = tmp_path / "in"
    frames = write(
        root / "deep" / "a.mp4", shot(1, 7), shot(2, 2), shot(3, 3), caption="it moves\n"
    )
    found = run(root, Cutting(frames=3))
    assert list(found) == [f"deep/a.mp4, frames {n} to {n + 2}" for n in (0, 3, 9)]
    for text, movie in found.values():
        first = int(text["origin"].split()[2])
        np.testing.assert_array_equal(movie, frames[first : first + 3])
        assert (text["instruction"], text["target_caption"]) == ("it moves", "it moves")
        assert text["clip"] == {"frames": 3, "rate": 8, "cuts": []}
    assert reasons(tmp_path / "out") == {"deep/a.mp4, frames 7 to 8": "shot too short"}


def test_clips_with_captions_are_streamed_and_pass_the_checks(tmp_path: Path):
    root, out = tmp_path / "in", tmp_path / "out"
    frames = {
        f"{n} moves": write(root / f"{n}.mp4", shot(n, 4), caption=f"{n} moves") for n in (1, 2)
    }
    assert main(["shards", "convert", "clips", str(root), str(out), "--frames", "4"]) == 0
    assert not check_folder(out).problems
    data = ClipDataModule(
        str(out), str(out), 24, 4, global_batch=2, steps_per_epoch=1, tasks=[CAPTION]
    )
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert isinstance(batch, ClipBatch)
    for text, target in zip(batch.instruction, batch.target, strict=True):
        square = frames[text][:, :, 4:28].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(target, square)
    (trained,) = data.train_dataloader()
    assert isinstance(trained, ClipBatch)
    assert not trained.has_source.any()


def test_a_list_names_files_captions_and_cuts(tmp_path: Path):
    root = tmp_path / "in"
    write(root / "a.mp4", shot(1, 4))
    write(root / "clips" / "b.mp4", shot(2, 4))
    write(root / "c.mp4", shot(3, 4))
    rows = (
        {"file": "a.mp4", "caption": "one", "cuts": [2]},
        {"file_name": "clips/b.mp4", "text": "two"},
    )
    write_lines(root / "metadata.jsonl", *rows)
    found = run(root, Cutting(frames=4, least=2))
    assert {place: text["instruction"] for place, (text, _) in found.items()} == {
        "metadata.jsonl:1, frames 0 to 1": "one",
        "metadata.jsonl:1, frames 2 to 3": "one",
        "metadata.jsonl:2, frames 0 to 3": "two",
    }
    assert reasons(tmp_path / "out") == {"c.mp4": "named by no line"}


@pytest.mark.parametrize("options", [("--no-cuts",), ("--least", "1")])
def test_plain_clips_of_the_world_come_back_frame_by_frame(
    tmp_path: Path, options: tuple[str, ...]
):
    world = ClipWorld(clips=6, seed=3, size=16, frames=6)
    write_movies(tmp_path / "in", world)
    arguments = ["shards", "convert", "clips", str(tmp_path / "in"), str(tmp_path / "out")]
    assert main([*arguments, "--frames", "6", *options]) == 0
    samples = read_back(tmp_path / "out")
    found = {
        text["origin"]: (text, each) for each in samples for text in [json.loads(each["json"])]
    }
    has_cut = False
    for number, clip in enumerate(world, 1):
        starts = (0, *clip.cuts) if options[0] == "--least" else (0,)
        has_cut |= len(starts) > 1
        for first, end in zip(starts, (*starts[1:], 6), strict=True):
            text, each = found.pop(f"instructions.jsonl:{number}, frames {first} to {end - 1}")
            assert (text["instruction"], text["task"]) == (clip.instruction, clip.task)
            captions = (text["source_caption"], text["target_caption"])
            assert captions == (clip.caption, clip.output_caption)
            for role, made in (("source", clip.source), ("target", clip.target)):
                movie = decode_mp4(each[f"{role}.mp4"]).transpose(0, 3, 1, 2)
                np.testing.assert_array_equal(movie, made[first:end])
    assert not found
    assert has_cut == (options[0] == "--least")


def test_frames_are_taken_when_they_are_due(tmp_path: Path):
    root = tmp_path / "in"
    frames = write(root / "a.mp4", shot(1, 24), caption="c", rate=24)
    (text, movie), *_ = run(root, Cutting(frames=4, rate=8)).values()
    np.testing.assert_array_equal(movie, frames[0:12:3])
    assert text["clip"]["rate"] == 8


def test_a_rate_above_the_videos_takes_no_frame_twice(tmp_path: Path):
    root = tmp_path / "in"
    frames = write(root / "a.mp4", shot(1, 4), caption="c", rate=5)
    ((text, movie),) = run(root, Cutting(frames=4, rate=8)).values()
    np.testing.assert_array_equal(movie, frames)
    assert text["clip"]["rate"] == 5


def test_a_variable_rate_comes_out_even(tmp_path: Path):
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.txt").write_text("c")
    frames, times = shot(1, 6), (0, 10, 100, 110, 200, 300)  # in milliseconds
    with av.open(root / "a.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "bgr0"
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    ((_, movie),) = run(root, Cutting(frames=4, rate=10)).values()
    np.testing.assert_array_equal(movie, frames[[0, 2, 4, 5]])


def test_large_frames_are_made_smaller_and_squares_are_cut_out(tmp_path: Path):
    root = tmp_path / "in"
    frames = write(root / "a.mp4", shot(1, 2), caption="c")
    ((_, wide),) = run(root, Cutting(frames=2, size=12)).values()
    assert wide.shape == (2, 12, 16, 3)
    convert("clips", root, tmp_path / "b", ConvertSettings(cutting=Cutting(frames=2, square=True)))
    ((_, square),) = clips(tmp_path / "b").values()
    np.testing.assert_array_equal(square, frames[:, :, 4:28])


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path):
    root, out = tmp_path / "in", tmp_path / "out"
    write(root / "good.mp4", shot(1, 3), caption="c")
    write(root / "silent.mp4", shot(2, 3))
    write(root / "empty.mp4", shot(3, 3), caption=" ")
    write(root / "short.mp4", shot(4, 2), caption="c")
    write(root / "twice.mp4", shot(5, 3), caption="c")
    write(root / "twice.mov", shot(5, 3))
    write(root / "still.mp4", np.zeros((3, 24, 32, 3), dtype=np.uint8), caption="c")
    write(root / "copy.mp4", shot(1, 3), caption="c")
    (root / "text.txt").write_text("c")
    (root / "notes.pdf").touch()
    (root / "broken.mp4").write_bytes(b"no video at all")
    (root / "broken.txt").write_text("c")
    whole = (root / "good.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "cut.txt").write_text("c")
    with av.open(root / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode(None)])
    (root / "sound.txt").write_text("c")
    report = convert("clips", root, out, ConvertSettings(cutting=Cutting(frames=3)))
    assert report.summary().startswith("1 clip written (caption 1); 11 left out: ")
    assert report.listed == 12
    assert reasons(out) == {
        "silent.mp4": "missing caption",
        "empty.mp4": "empty caption",
        "short.mp4, frames 0 to 1": "shot too short",
        "twice.mov": "ambiguous name",
        "still.mp4, frames 0 to 2": "blank picture",
        "good.mp4, frames 0 to 2": "duplicate",
        "text.txt": "text for no video",
        "notes.pdf": "no file of a pair",
        "broken.mp4": "unreadable video",
        "cut.mp4": "unreadable video",
        "sound.mp4": "unreadable video",
    }


def test_lines_that_cannot_be_used_are_left_out_and_named(tmp_path: Path):
    root, out = tmp_path / "in", tmp_path / "out"
    write(root / "source" / "a.mp4", shot(1, 3))
    write(root / "target" / "a.mp4", 255 - shot(1, 3))
    write(root / "target" / "long.mp4", shot(1, 4))
    write(root / "target" / "large.mp4", shot(1, 3).repeat(2, axis=1))
    edit = {"file": "a.mp4", "instruction": "invert it", "task": "color"}
    write_lines(
        root / "instructions.jsonl",
        edit,
        {**edit, "file": "gone.mp4"},
        {"source": "a.mp4", "target": "long.mp4", "instruction": "i"},
        {"source": "a.mp4", "target": "large.mp4", "instruction": "i"},
        {"source": "a.mp4", "target": "source/a.mp4", "instruction": "i"},
        {**edit, "file": "../a.mp4"},
        {**edit, "cuts": [9]},
        {**edit, "cuts": "9"},
        {**edit, "file": 3},
        {"instruction": "i"},
        {"source": "a.mp4", "target": "a.mp4", "caption": "a caption has one video"},
    )
    settings = ("--frames", "3", "--task", "local", "--gate", "blank=off")
    assert main(["shards", "convert", "clips", str(root), str(out), *settings]) == 0
    assert [row["reason"] for row in quarantine(out)] == [
        "missing target",
        "lengths differ",
        "sizes differ",
        "near-identical pair",
        "unsafe name",
        *["bad line"] * 4,
    ]
    assert read_manifest(out).made_by["written"] == {"color": 1, CAPTION: 1}


def test_parts_and_groups_never_divide_a_video(tmp_path: Path):
    root = tmp_path / "in"
    for n in range(8):
        write(root / f"{n}.mp4", shot(n, 6), caption="c")
    videos = []
    for name in ("train", "heldout"):
        settings = ConvertSettings(cutting=Cutting(frames=2), part=Part(name, 0.5), per_group=2)
        convert("clips", root, tmp_path / name, settings)
        places = list(clips(tmp_path / name))
        videos.append({place.split(",")[0] for place in places})
        assert len(places) == 2 * len(videos[-1])
    assert videos[0].isdisjoint(videos[1])
    assert len(videos[0] | videos[1]) == 8


def test_a_frame_of_a_benchmark_leaves_its_clip_out(tmp_path: Path):
    root = tmp_path / "in"
    write(root / "a.mp4", shot(1, 2), shot(2, 2), caption="c")
    save(tmp_path / "benchmark.png", shot(2, 2)[1])
    guard = LeakGuard.of([tmp_path / "benchmark.png"])
    assert list(run(root, Cutting(frames=2), guard=guard)) == ["a.mp4, frames 0 to 1"]
    assert reasons(tmp_path / "out") == {"a.mp4, frames 2 to 3": "evaluation leak"}
    convert("clips", root, tmp_path / "all", ConvertSettings(cutting=Cutting(frames=2)))
    (problem,) = check_folder(tmp_path / "all", guard=guard).problems
    assert problem.message.startswith("the target shows the evaluation picture")


def test_the_gate_of_sides_measures_frames(tmp_path: Path):
    root = tmp_path / "in"
    write(root / "a.mp4", shot(1, 3), caption="c")
    with pytest.raises(BadDataError, match="no clip is left to write: 1 left out: 1 too small"):
        run(root, Cutting(frames=3), gates=Gates(min_side=25))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("folder", "--frames", "3"), "folder makes no clips; --frames and the like are for clips"),
        (("clips", "--least", "17"), "least=17 frames of a clip are more than its frames=16"),
        (("clips", "--crf", "60"), "crf=60 must be 1 (best) to 51"),
        (
            ("clips", "--source", "a", "--target", "b", "--instruction", "c"),
            "knows what its fields",
        ),
        (("clips",), "in: has no video (.mp4, .m4v, "),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
):
    (tmp_path / "in").mkdir()
    kind, *others = options
    out = tmp_path / "out"
    assert main(["shards", "convert", kind, str(tmp_path / "in"), str(out), *others]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not out.exists()


def test_a_folder_of_two_lists_or_a_file_that_is_none_is_refused(tmp_path: Path):
    movie = tmp_path / "in" / "a.mp4"
    write(movie, shot(1, 2))
    with pytest.raises(InputError, match=r"a\.mp4: is a file of another kind; give a folder"):
        convert("clips", movie, tmp_path / "out")
    for name in ("instructions.jsonl", "metadata.jsonl"):
        write_lines(movie.with_name(name), {"file": "a.mp4"})
    with pytest.raises(InputError, match="give the one that is meant itself"):
        convert("clips", movie.parent, tmp_path / "out")


def test_clips_in_which_little_moves_are_left_out_and_the_report_says_how_scores_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root, out = tmp_path / "in", tmp_path / "out"
    for speed in (0, 1, 3):
        frames = np.stack([np.roll(before(speed), speed * t, axis=1) for t in range(12)])
        write(root / f"{speed}.mp4", frames, caption="it moves")
    every = run(root, Cutting(frames=12))
    scores = {name[0]: text["motion"] for name, (text, _) in every.items()}
    assert scores["0"] == 0
    assert scores["1"] == pytest.approx(11 / 24, rel=0.1)
    assert scores["3"] == pytest.approx(33 / 24, rel=0.1)
    command = ["shards", "convert", "clips", str(root), str(tmp_path / "fast"), "--frames", "12"]
    assert main([*command, f"--min-motion={(scores['1'] + scores['3']) / 2}"]) == 0
    (name,) = clips(tmp_path / "fast")
    assert name.startswith("3.mp4")
    assert {*reasons(tmp_path / "fast").values()} == {"too little motion"}
    said = capsys.readouterr().out
    assert "motion of 3 clips: least 0, a quarter below 0" in said
    assert float(said.rpartition("most ")[2]) == pytest.approx(scores["3"], rel=0.05)
    assert read_manifest(out).num_samples == 3
    for options, message in (
        (["folder", str(root), str(tmp_path / "x"), "--min-motion=1"], "folder has pictures, whic"),
        (["clips", str(root), str(tmp_path / "x"), "--min-motion=-1"], "--min-motion -1 must be"),
    ):
        assert main(["shards", "convert", *options]) == 2
        assert message in capsys.readouterr().err


def test_a_video_named_for_both_sides_is_one_that_is_to_be_edited(tmp_path: Path) -> None:
    frames = write(tmp_path / "raw" / "a.mp4", shot(3, 6))
    row = {
        "file": "a.mp4",
        "instruction": "make it snow",
        "target_caption": "snow",
        "task": "global",
    }
    write_lines(tmp_path / "raw" / "instructions.jsonl", row)
    with pytest.raises(BadDataError, match="near-identical pair"):
        run(tmp_path / "raw", Cutting(frames=6))
    (tmp_path / "out" / "quarantine.jsonl").unlink()
    made = run(tmp_path / "raw", Cutting(frames=6), gates=Gates(near_identical=None))
    ((text, target),) = made.values()
    assert (text["instruction"], text["target_caption"]) == ("make it snow", "snow")
    assert np.array_equal(target, frames)
    (member,) = read_back(tmp_path / "out")
    assert np.array_equal(decode_mp4(member["source.mp4"]), frames)
