"""`evaluate --benchmark world-video`: clips with exact truth, of a model and of anybody."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.world.clips.clip import ClipPair, make_clip
from emu_edit.cli.main import main
from emu_edit.evaluation import video_outputs
from emu_edit.evaluation.clips import ClipTruth
from emu_edit.images import save_png
from emu_edit.metrics.video import warp_error
from emu_edit.tasks import SIXTEEN
from emu_edit.video.io import open_video

SIZE, FRAMES, SEED = 16, 4, 3
PLACE = ["--pairs", "1", "--frames", str(FRAMES), "--seed", str(SEED), "--size", str(SIZE)]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame is read and few are shown: reading takes time, and has tests of its own below."""
    monkeypatch.setattr("emu_edit.evaluation.clips.read_right", lambda *_: frozenset())
    monkeypatch.setattr("emu_edit.evaluation.videos.MOST_SHOWN", 2)


def clips(size: int = SIZE) -> list[ClipPair]:
    return [
        make_clip(SEED, "heldout", 0, task=task, size=size, frames=FRAMES) for task in SIXTEEN.names
    ]


def command(results: Path, *more: str) -> list[str]:
    return ["evaluate", str(results), "--benchmark", "world-video", *PLACE, *more]


def written(folder: Path, frames: Callable[[ClipPair], np.ndarray]) -> Path:
    for clip in clips():
        (folder / clip.key).mkdir(parents=True)
        for number, frame in enumerate(frames(clip)):
            save_png(folder / clip.key / f"{number:05d}.png", torch.from_numpy(frame))
    return folder


def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    return told


@pytest.mark.usefixtures("unread", "quick_intervals")
@pytest.mark.slow
def test_the_truth_itself_is_scored_as_the_oracle_and_the_inputs_as_copies(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    assert (
        main(["evaluate", "--benchmark", "world-video", "--write-inputs", str(inputs), *PLACE]) == 0
    )
    lines = [json.loads(line) for line in (inputs / "inputs.jsonl").read_text().splitlines()]
    assert [line["instruction"] for line in lines] == [clip.instruction for clip in clips()]
    (inputs / "inputs.jsonl").unlink()
    right = written(tmp_path / "right", lambda clip: clip.target)
    for folder, row in ((inputs, "copy-input"), (right, "oracle")):
        out = tmp_path / f"{folder.name}-out"
        assert main(command(folder, "-o", str(out))) == 0
        rows = found(out)["blocks"]["single edits"]["rows"]
        assert rows["model"] == rows[row]
        assert rows["oracle"]["all"]["relative_error"]["mean"] == 0
        assert rows["oracle"]["all"]["clean"]["mean"] == 1
        assert rows["copy-input"]["all"]["relative_error"]["mean"] == pytest.approx(1)
        page = (out / "index.html").read_text()
        assert page.count('<video src="data:video/mp4;base64,') == 3 * 2


@pytest.mark.usefixtures("unread", "quick_intervals")
@pytest.mark.slow
def test_a_model_is_stopped_goes_on_and_is_scored_like_one_that_was_not(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = ["--steps", "1"]
    assert main(command(model, *sampling, "-o", str(tmp_path / "whole"))) == 0
    made: list[str] = []
    run = video_outputs.run

    def counted(job: Any, *rest: Any, **named: Any) -> Any:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(job.output.stem)
        return run(job, *rest, **named)

    monkeypatch.setattr(video_outputs, "run", counted)
    part = tmp_path / "part"
    assert main(command(model, *sampling, "-o", str(part))) == 130
    changed = part / "videos" / f"{made[2]}.png"
    shutil.copy(part / "videos" / f"{made[0]}.png", changed)
    kept = list(made)
    made.clear()
    monkeypatch.setattr(
        video_outputs, "run", lambda *a, **k: (made.append(a[0].output.stem), run(*a, **k))
    )
    assert main(command(model, *sampling, "-o", str(part))) == 0
    assert set(made) & set(kept) == {kept[2]}  # what somebody changed is edited again
    for name in ("blocks", "data"):
        assert found(part)[name] == found(tmp_path / "whole")[name]


@pytest.mark.usefixtures("unread", "quick_intervals")
def test_clips_of_another_size_than_the_models_are_edited_as_they_are(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    place = ["--pairs", "1", "--frames", "2", "--size", "24"]
    command = ["evaluate", str(model), "--benchmark", "world-video", *place, "-o", str(out)]
    assert main([*command, "--steps", "1"]) == 0
    assert {open_video(path).info.size for path in (out / "videos").iterdir()} == {(24, 24)}


@pytest.mark.usefixtures("unread", "quick_intervals")
def test_a_video_that_is_missing_counts_as_not_edited_only_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "made", lambda clip: clip.target)
    gone = clips()[0].key
    shutil.rmtree(folder / gone)
    out = ["-o", str(tmp_path / "out")]
    assert f"lacks 1 of 16 videos ({gone})" in refused(capsys, command(folder, *out))
    assert main(command(folder, *out, "--allow-missing")) == 1
    assert [one["key"] for one in found(tmp_path / "out")["failed"]] == [gone]
    items = [
        json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()
    ]
    assert {item["scores"]["relative_error"] for item in items if item["key"] == gone} == {1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: (at / "00003.png").unlink(), "has 3 frames of 16x16, "),
        (lambda at: shutil.copytree(at, at.with_suffix(".gif")), "has two videos of "),
        (lambda at: [each.unlink() for each in at.iterdir()], "no picture"),
    ],
)
def test_results_that_cannot_be_compared_are_refused_before_anything_is_scored(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    message: str,
) -> None:
    folder = written(tmp_path / "made", lambda clip: clip.target)
    change(folder / clips()[5].key)
    assert message in refused(capsys, command(folder, "-o", str(tmp_path / "out")))
    assert not (tmp_path / "out" / "scores.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "."], "--data is made, not read"),
        (["--drift"], "--drift belongs to --benchmark world"),
        (["--instructions", "a.json"], "--instructions belongs to --benchmark tgve"),
        (["--limit", "3"], "--limit belongs to"),
    ],
)
def test_options_that_say_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert message in refused(capsys, command(tmp_path, *more))


@pytest.mark.slow
def test_the_true_target_has_no_error_and_its_own_warp_error_is_that_of_its_own_flow() -> None:
    clip = make_clip(1, "heldout", 0, task="remove", size=32, frames=6)
    truth = ClipTruth.of(clip)
    right = truth.values(torch.from_numpy(clip.target))
    assert (right["relative_error"], right["clean"], right["flicker_error"]) == (0, 1, 0)
    target = torch.from_numpy(clip.target)
    assert right["warp_error"] == warp_error(target, truth.flow, truth.occluded)
    flow_of_the_source = warp_error(
        target, torch.from_numpy(clip.flow), torch.from_numpy(clip.occluded)
    )
    assert right["warp_error"] is not None
    assert right["warp_error"] < flow_of_the_source


@pytest.mark.slow
def test_a_figure_that_vanishes_in_one_frame_costs_that_share_of_identity() -> None:
    clip = make_clip(1, "heldout", 3, task="local", size=64, frames=12)
    truth = ClipTruth.of(clip)
    known = {frame: len(names) for frame, names in truth.readable.items()}
    assert known == {0: 2, 4: 2, 8: 2}
    result = torch.from_numpy(clip.target.copy())
    result[4] = result[4][:, :1, :1]  # one colour, nothing in it
    assert truth.values(result)["identity"] == pytest.approx(4 / 6)
