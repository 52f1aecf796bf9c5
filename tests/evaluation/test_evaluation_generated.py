"""`evaluate --benchmark world-clips`: what a model's videos show, by what the scene reader sees."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.evaluation_sets.videos import DrawnVideo
from datamodules.world.find import box_of
from datamodules.world.read import ReadFigure, Reading
from datamodules.world.scene import Background, Figure, Scene, Thing
from emu_edit.cli.main import main
from emu_edit.editing.animate import animate, load_animator
from emu_edit.editing.generate import draw_pictures, load_generator
from emu_edit.evaluation import generated
from emu_edit.evaluation.edits import seed_of
from emu_edit.evaluation.generated import MovingScenes, first_of
from emu_edit.evaluation.generated_scores import (
    READ,
    GeneratedScorer,
    Shown,
    read_at,
    truth_of,
    values,
)
from emu_edit.evaluation.world import Scenes
from emu_edit.images import read_image, save_png
from emu_edit.training.video_module import VideoModule
from emu_edit.video.io import open_video
from tests.training.video_stage import FRAMES, SPEC, module, write_base

CIRCLE = Thing("circle", "red", "plain", 0.25, 0.3, 0.15)
STAR = Thing("star", "blue", "plain", 0.6, 0.7, 0.15)
SIZE, SEED, CLIPS = 16, 3, 2
PLACE = ["--pairs", str(CLIPS), "--seed", str(SEED), "--size", str(SIZE)]
Change = Callable[[Figure, int], Figure]
quick = pytest.mark.usefixtures("quick_intervals", "glanced_at")


def scenes(change: Change = lambda figure, _: figure, *more: Figure, on: str = "white") -> list:
    """A red circle goes to the right and a blue star stays, but for what is changed."""
    return [
        Scene.of(
            Background(on),
            (change(replace(CIRCLE, x=0.25 + 0.1 * n), n), change(STAR, n), *more),
        )
        for n in range(READ)
    ]


def seen(frames: list[Scene]) -> Shown:
    """What a reader who is never wrong would say."""
    return Shown.of([
        Reading(
            tuple(ReadFigure(f, box_of(f), 0.0) for f in scene.figures),
            scene.background.name,
            None,
            0.0,
        )
        for scene in frames
    ])


def scored(frames: list[Scene]) -> dict[str, float | None]:
    return {**values(truth_of(scenes()), seen(frames), 0.0)}


def of_the(shape: str, change: Change) -> Change:
    return lambda figure, n: change(figure, n) if figure.shape == shape else figure


def test_a_true_video_is_right_in_all() -> None:
    found = scored(scenes())
    assert found.pop("first_frame") == 0
    assert found.pop("way") == pytest.approx(0.15)  # 0.3 and 0
    assert set(found.values()) == {1.0}


def test_a_still_is_right_but_for_what_moves() -> None:
    found = scored([scenes()[0]] * READ)
    assert (found["right"], found["moves"]) == (0, 0)
    assert found["way"] == pytest.approx(0, abs=1e-9)
    same = ("figures", "colours", "shapes", "number", "background", "stays", "kept")
    assert {found[name] for name in same} == {1.0}


@pytest.mark.parametrize(
    ("frames", "wrong"),
    [
        (scenes(of_the("circle", lambda f, _: replace(f, colour="green"))), "figures colours"),
        (scenes(of_the("circle", lambda f, _: replace(f, shape="heart"))), "figures shapes"),
        (scenes(of_the("circle", lambda f, _: replace(f, texture="striped"))), "figures"),
        (scenes(of_the("circle", lambda f, _: replace(f, x=0.8 - f.x))), "moves"),
        (scenes(of_the("circle", lambda f, _: replace(f, x=0.5, y=f.x))), "moves"),
        (scenes(of_the("star", lambda f, n: replace(f, y=0.7 - 0.1 * n))), "stays"),
        (
            scenes(of_the("star", lambda f, n: replace(f, colour="green") if n == 3 else f)),
            "kept",
        ),
        (scenes(lambda f, _: f, Thing("cross", "pink", "plain", 0.8, 0.2, 0.15)), "number"),
        (scenes(on="mint"), "background"),
    ],
)
def test_what_is_wrong_lowers_its_own_column_and_no_other(frames: list[Scene], wrong: str) -> None:
    found, names = scored(frames), wrong.split()
    lowered = [name for name, value in found.items() if value == 0.5 or value == 0]
    assert sorted(lowered) == sorted({"right", "first_frame", *names})
    assert found["right"] == 0


def test_a_figure_that_is_missing_lowers_all_that_is_asked_of_it() -> None:
    bare = [scene.without(scene.named("red circle")) for scene in scenes()]
    found = scored(bare)
    assert (found["figures"], found["moves"], found["stays"], found["kept"]) == (0.5, 0, 1, 0.5)
    assert found["number"] == 0


def test_a_figure_is_there_if_it_is_in_half_of_the_frames() -> None:
    for gone, figures in ((2, 1.0), (3, 0.5)):
        frames = [s if n >= gone else s.without(s.figures[0]) for n, s in enumerate(scenes())]
        found = scored(frames)
        assert (found["figures"], found["kept"]) == (figures, 0.5), gone


def test_what_nobody_asked_for_is_not_defined() -> None:
    asked = truth_of([scenes()[0]] * READ)  # nothing moves
    found = values(asked, asked, None)
    assert (found["right"], found["moves"], found["stays"]) == (1, None, 1)
    assert found["first_frame"] is None


def test_a_failure_is_wrong_in_all() -> None:
    found = values(truth_of(scenes()), None, None)
    assert (found.pop("first_frame"), found.pop("way")) == (None, None)
    assert set(found.values()) == {0.0}


def test_few_frames_are_read_from_the_first_to_the_last() -> None:
    for frames in (1, 2, 3, 8, 16, 37):
        numbers = read_at(frames)
        assert (numbers[0], numbers[-1]) == (0, frames - 1)
        assert len(numbers) == min(frames, READ)
        steps = np.diff(numbers)
        assert frames < 4 or steps.max() - steps.min() <= 1


@pytest.mark.slow
def test_true_clips_are_read_as_their_captions_say_and_stills_do_not_move() -> None:
    items = MovingScenes(Scenes(seed=5, size=32), 2, 4).benchmark(16, 8).items
    scorer = GeneratedScorer(first_of, {})
    for item in items:
        assert item.clip is not None
        clip = item.clip()
        assert clip.source.shape == (4, 3, 32, 32)
        brighter = torch.from_numpy(clip.source // 2 + 3)
        brighter[1:] = torch.from_numpy(clip.source[1:])
        rows = scorer.score(item, DrawnVideo(item.key, brighter))
        assert rows["oracle"]["right"] == 1
        assert rows["still"]["moves"] in {0, None}
        assert rows["still"]["way"] == pytest.approx(0, abs=1e-9)
        given = torch.from_numpy(clip.source[0])
        error = (brighter[0].double() - given.double()).abs().mean().item()
        assert rows["model"]["first_frame"] == pytest.approx(error)
    assert GeneratedScorer(lambda _: None, {}).score(items[0], None)["oracle"]["first_frame"] == 0


@pytest.fixture(scope="module")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    module(write_base(folder / "base")).eval().animator().save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def glanced_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are read at once, by their brightness: reading takes time, and has its tests above."""

    def glance(picture: np.ndarray) -> Reading:
        figure = replace(CIRCLE, x=float(picture.mean() / 255))
        return Reading((ReadFigure(figure, box_of(figure), 0.0),), "white", None, 0.0)

    monkeypatch.setattr("emu_edit.evaluation.generated_scores.read_scene", glance)


def command(path: Path, out: Path, *more: str) -> list[str]:
    place = ["--benchmark", "world-clips", *PLACE, "-o", str(out)]
    return ["evaluate", str(path), *place, *more]


def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def rows_of(folder: Path) -> dict[str, Any]:
    return {
        name: row["all"] for name, row in found(folder)["blocks"]["single edits"]["rows"].items()
    }


@quick
@pytest.mark.parametrize("first_frame", ["drawn", "given"])
def test_a_model_draws_what_generate_draws_and_goes_on_where_it_stopped(
    video_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_frame: str
) -> None:
    call = command(video_model, tmp_path / "out", "--steps", "1", "--first-frame", first_frame)
    assert main(call) == 0
    drawer = load_generator(video_model)
    animator = load_animator(drawer, video_model)
    items = MovingScenes(Scenes(seed=SEED, size=SIZE), CLIPS).benchmark(SIZE, FRAMES).items
    for item in items:
        seed = seed_of(item.key)
        given = first_of(item)
        if first_frame == "drawn":
            (given,) = draw_pictures(drawer, [item.instruction], [seed], size=(SIZE, SIZE))
            assert torch.equal(read_image(tmp_path / "out" / "pictures" / f"{item.key}.png"), given)
        settings = replace(animator.video.settings, num_steps=1)
        wanted = animate(animator, given, item.instruction, seed=seed, settings=settings)
        made = open_video(tmp_path / "out" / "videos" / f"{item.key}.png").frames()
        assert torch.equal(torch.stack([frame.pixels for frame in made]), wanted)
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"{CLIPS} of {CLIPS} videos, the worst and the best" in page
    assert " edits" not in (tmp_path / "out" / "table.md").read_text()
    assert page.count("<figcaption>drawn</figcaption>") == CLIPS
    assert page.count('<video src="data:video/mp4;base64,') == 2 * CLIPS
    before = rows_of(tmp_path / "out")
    assert before["model"]["first_frame"]["mean"] > 0  # it has learnt nothing
    drawn: list[str] = []
    monkeypatch.setattr(
        generated, "animate", lambda *a, **k: (drawn.append(a[2]), animate(*a, **k))[1]
    )
    (tmp_path / "out" / "videos" / f"{items[1].key}.png").unlink()
    assert main(call) == 0
    assert drawn == [items[1].instruction]
    assert rows_of(tmp_path / "out") == before


def written(folder: Path) -> Path:
    """Write the true clips as somebody's videos."""
    for item in MovingScenes(Scenes(seed=SEED, size=SIZE), CLIPS).benchmark(64, 8).items:
        assert item.target is not None
        (folder / item.key).mkdir(parents=True)
        for number, frame in enumerate(item.target().frames()):
            save_png(folder / item.key / f"{number:05d}.png", frame.pixels)
    return folder


@quick
def test_the_truth_itself_is_scored_as_the_oracle(tmp_path: Path) -> None:
    folder, out = written(tmp_path / "made"), tmp_path / "out"
    assert main(command(folder, out, "--first-frame", "given")) == 0
    rows = rows_of(out)
    assert list(rows) == ["model", "still", "oracle"]
    assert rows["model"] == rows["oracle"]
    assert found(out)["protocol"]["first_frame"] == "given"
    assert main(command(folder, tmp_path / "other")) == 0  # what they began with is not known
    assert rows_of(tmp_path / "other")["model"]["first_frame"]["mean"] is None


@quick
def test_a_video_that_is_missing_is_all_wrong_where_that_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = written(tmp_path / "made"), tmp_path / "out"
    gone = sorted(folder.iterdir())[0]
    shutil.rmtree(gone)
    assert main(command(folder, out)) == 2
    assert f"lacks 1 of {CLIPS} videos ({gone.name})" in capsys.readouterr().err
    assert not out.exists()
    assert main(command(folder, out, "--allow-missing")) == 1
    assert f"1 failed and counts as all wrong, first {gone.name}" in (out / "table.md").read_text()
    lines = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    (scores,) = [line["scores"] for line in lines if line["key"] == gone.name]
    assert {scores[name] for name in ("figures", "kept", "background", "right")} == {0}
    assert [row["editor"] for row in found(out)["distances"]] == [
        "still",
        "oracle",
    ]  # one is no set


def test_clips_are_flat_unless_all_that_scenes_may_have_is_asked_for(tmp_path: Path) -> None:
    inputs = ["evaluate", "--benchmark", "world-clips", "--size", "16", "--pairs", "12"]
    assert main([*inputs, "--write-inputs", str(tmp_path / "flat")]) == 0
    assert main([*inputs, "--write-inputs", str(tmp_path / "full"), "--full"]) == 0
    words = {name: (tmp_path / name / "inputs.jsonl").read_text() for name in ("flat", "full")}
    for word in ("camera", "clockwise", "striped"):
        assert word in words["full"]
        assert word not in words["flat"]
    assert words["flat"].count("on a plain") == 2 * 12  # instruction and target caption


def test_captions_and_first_frames_are_written_for_any_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["evaluate", "--benchmark", "world-clips", *PLACE, "--write-inputs"]
    assert main([*inputs, str(tmp_path / "inputs")]) == 0
    assert "draw a video of 8 frames of 16x16 of each caption" in capsys.readouterr().out
    lines = (tmp_path / "inputs" / "inputs.jsonl").read_text().splitlines()
    items = MovingScenes(Scenes(seed=SEED, size=SIZE), CLIPS).benchmark(64, 8).items
    for item, line in zip(items, map(json.loads, lines), strict=True):
        assert (line["key"], line["instruction"]) == (item.key, item.instruction)
        assert torch.equal(read_image(tmp_path / "inputs" / line["file_name"]), first_of(item))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "."], "--data is made, not read; leave it out"),
        (["--drift"], "--drift belongs to --benchmark world; leave it out"),
        (["--limit", "3"], "--limit belongs to --benchmark emu-edit"),
        (["--photos", "."], "--photos: the moving world has no photographs"),
        (["--frames", "4"], "frames=4: this model was trained on clips of 3 and takes no"),
    ],
)
def test_options_that_say_nothing_are_refused_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    spec = replace(SPEC, picture_condition=False)
    direct = VideoModule(str(write_base(tmp_path / "base")), spec, frames=FRAMES)
    direct.eval().animator().save_pretrained(tmp_path / "model")
    assert main(command(tmp_path / "model", tmp_path / "out", *more)) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_of_pictures_and_options_of_this_benchmark_elsewhere_are_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(model, tmp_path / "out")) == 2
    assert "edits pictures and was not trained to draw" in capsys.readouterr().err
    for benchmark in ("world", "world-video", "world-captions", "tgve", "emu-edit"):
        call = ["evaluate", str(model), "--benchmark", benchmark, "--first-frame", "given"]
        assert main(call) == 2
        assert "--first-frame belongs to --benchmark world-clips" in capsys.readouterr().err
    assert main(["evaluate", str(model), "--full"]) == 2
    assert "--full belongs to --benchmark world-captions or" in capsys.readouterr().err
