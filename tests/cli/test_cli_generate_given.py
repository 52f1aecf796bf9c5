"""Videos from videos on the command line: what goes on, what comes between, what is refused."""

import json
import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from emu_edit.cli.main import main
from emu_edit.images import save_png
from emu_edit.models.given import Given, GivenFrames
from emu_edit.training.export import export_model
from emu_edit.video.io import open_video
from emu_edit.video.write import write_clip
from tests.training.test_training_video import moved
from tests.training.video_stage import SIZE, make_clip, module, write_base


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of captions, and one of each kind of given frames on it."""
    folder = tmp_path_factory.mktemp("models")
    base = write_base(folder / "base")
    for name, given, frames in (
        ("first", GivenFrames(), 3),
        ("past", GivenFrames(Given.past), 4),
        ("between", GivenFrames(Given.interleaved, 4, 250, 100), 13),
    ):
        export_model(moved(module(base, given=given, frames=frames)), folder / name, ema=None)
    return folder


@pytest.fixture
def clip(workplace: Path) -> Path:
    """A lossless video of 5 frames, 5 a second."""
    write_clip(workplace / "in.apng", make_clip(0, 5).target, Fraction(5))
    return Path("in.apng")


def frames_of(path: Path | str) -> torch.Tensor:
    return torch.stack([frame.pixels for frame in open_video(path).frames()])


def test_a_video_is_followed_by_new_frames_at_its_rate(
    models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a square", "--extend", str(clip), "--steps", "1", "--json"]
    for kind, usual in (("past", 2), ("first", 2)):
        model = ["--model", str(models / kind)]
        assert main([*command, "-o", "a.apng", *model]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        told = json.loads(captured.out)
        assert (told["frames"], told["rate"]) == (5 + usual, 5)
        assert torch.equal(frames_of("a.apng")[:5], frames_of(clip))
        assert main([*command, "-o", "b.apng", "--frames", "5", *model]) == 0
        capsys.readouterr()
        assert open_video("b.apng").info.rate == 5
        longer = frames_of("b.apng")
        assert len(longer) == 10
        assert torch.equal(longer[: 5 + usual], frames_of("a.apng"))


def test_frames_come_between_at_so_many_times_the_rate(
    models: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["interpolate", str(clip), "--steps", "1", "--model", str(models / "between")]
    assert main([*command, "-o", "a.apng", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"output": "a.apng", "caption": "", "seed": 0, "frames": 25, "rate": 20}
    drawn, given = frames_of("a.apng"), frames_of(clip)
    assert len(drawn) == 4 * 6 + 1
    assert torch.equal(drawn[4:-1:4], given)
    assert open_video("a.apng").info.rate == 20
    half = [*command, "--factor", "2", "--same-length", "--caption", "a square"]
    assert main([*half, "-o", "b.apng"]) == 0
    assert capsys.readouterr().out == "b.apng: a square\n"
    info = open_video("b.apng").info
    assert (info.frames, info.rate, info.seconds) == (10, 10, 1)
    assert torch.equal(frames_of("b.apng")[::2], given)
    assert main([*half, "-o", "c.apng", "--redraw"]) == 0
    assert not torch.equal(frames_of("c.apng")[::2], given)


def write_uneven(path: Path) -> list[int]:
    """Write a video with sound and uneven times; return them in milliseconds."""
    times = [0, 100, 250, 300]
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = SIZE
        stream.pix_fmt, stream.time_base = "bgr0", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("flac", rate=8000)
        assert isinstance(sound, av.AudioStream)
        for number, time in enumerate(times):
            pixels = np.full((SIZE, SIZE, 3), 40 * number, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 3200), np.int16), "s16", "mono")
        tone.sample_rate, tone.pts = 8000, 0
        container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
    return times


def test_uneven_times_and_sound_are_kept(
    models: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = write_uneven(workplace / "in.mkv")
    assert list(open_video("in.mkv").info.times) == times
    asked = ["interpolate", "in.mkv", "--steps", "1", "--model", str(models / "between")]
    assert main([*asked, "-o", "a.mkv", "--same-length", "--factor", "4"]) == 0
    info = open_video("a.mkv").info
    assert info.has_others
    assert info.frames == 16
    ideal = [a + k * (b - a) / 4 for a, b in pairwise(times) for k in range(4)]
    for time, exact in zip(info.times, ideal, strict=False):  # to the file's millisecond
        assert abs(time * info.time_base * 1000 - exact) <= 0.5
    assert main([*asked, "-o", "b.mkv"]) == 0
    assert "in.mkv: sound left out; to keep it: --same-length" in capsys.readouterr().err
    assert not open_video("b.mkv").info.has_others
    extension = ["generate", "a square", "--extend", "in.mkv", "--steps", "1", "--frames", "2"]
    assert main([*extension, "-o", "c.mkv", "--model", str(models / "past")]) == 0
    info = open_video("c.mkv").info
    assert list(info.times[:4]) == times
    assert info.has_others
    assert info.frames == 6


def test_frames_of_another_size_are_said_and_resized_on_request(
    models: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(workplace / "wide.apng", make_clip(0, 4).target[:, :, :13, :11], Fraction(5))
    model = ["--model", str(models / "between"), "--steps", "1"]
    assert main(["interpolate", "wide.apng", "-o", "a.apng", *model]) == 0
    said = "wide.apng is 11x13, the model was trained at 16x16; to resize it: --size 16\n"
    assert capsys.readouterr().err == said
    assert open_video("a.apng").info.size == (13, 11)
    assert main(["interpolate", "wide.apng", "-o", "b.apng", *model, "--size", "16"]) == 0
    assert capsys.readouterr().err == ""
    assert open_video("b.apng").info.size == (19, 16)


@pytest.mark.slow
def test_what_cannot_be_drawn_is_refused_in_one_line(
    models: Path, clip: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in workplace.iterdir()}

    def refused(*arguments: str, model: str = "past") -> str:
        command = [*arguments, "-o", "out.mp4", "--model", str(models / model), "--steps", "1"]
        assert main(command) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        left = {path.name for path in workplace.iterdir()}
        assert left - {"one.png", "broken.mp4", "one"} == before
        return line

    extend = ("generate", "a square", "--extend")
    assert "missing.mp4: No such file" in refused(*extend, "missing.mp4")
    Path("broken.mp4").write_bytes(bytes(100))
    assert "broken.mp4: is no video that can be read" in refused(*extend, "broken.mp4")
    Path("one").mkdir()
    save_png("one/a.png", make_clip(0).target[0])
    assert "one: has 1 frames, this model goes on from 2; give a longer video" in refused(
        *extend, "one"
    )
    assert "--extend and --rate exclude each other" in refused(*extend, str(clip), "--rate", "3")
    assert "--extend and --image exclude each other" in refused(*extend, str(clip), "--image", "a")
    assert "frames=4097 of a video" in refused(*extend, str(clip), "--frames", "4097")
    long = " ".join(["a"] * 900)
    assert "tokens" in refused("generate", long, "--extend", str(clip))
    assert "the caption is empty" in refused("generate", " ", "--extend", str(clip))
    assert "draws frames between" in refused(*extend, str(clip), model="between")
    assert "goes on from a video" in refused("generate", "a square")
    assert "begins with a picture" in refused("interpolate", str(clip), model="first")
    assert "factor 3: this model draws 4 times" in refused(
        "interpolate", str(clip), "--factor", "3", model="between"
    )
    assert "one: has 1 frame, and frames between need 2" in refused(
        "interpolate", "one", model="between"
    )
    assert "draws pictures and no videos" in refused("interpolate", str(clip), model="base")
    assert main([*extend, str(clip), "-o", str(clip), "--model", str(models / "past")]) == 2
    assert "is the source itself" in capsys.readouterr().err
    assert main([*extend, str(clip), "-o", "a.png", "--model", str(models / "past")]) == 2
    assert "--extend is of videos and -o a.png is none" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "vae"])
@pytest.mark.usefixtures("workplace")
def test_a_base_that_lacks_a_part_is_refused_by_its_name(
    part: str, stable_diffusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stable_diffusion, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / part)
    command = ["generate", "a square", "-o", "a.mp4", "--model", str(tmp_path / "base")]
    assert main(command) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert part in line
    assert not Path("a.mp4").exists()
