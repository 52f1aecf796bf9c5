"""TGVE and TGVE+: read by section rows, edited, and scored by pinned networks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.evaluation_sets.tgve import load_tgve
from datamodules.shards.clips import encode_mp4
from emu_edit.cli.main import main
from emu_edit.errors import InputError
from emu_edit.images import save_png
from emu_edit.metrics.raft import FlowBackbone
from emu_edit.metrics.video import warp_errors
from emu_edit.metrics.video_score import CountedFrames, load_video_backbones, score_video
from emu_edit.video.io import open_video
from tests.evaluation.test_evaluation_model import predicting  # noqa: F401  a fixture
from tests.metrics.tiny_raft import FILE, FOLDER, write_raft
from tests.metrics.tiny_video import PROTOCOL, write_video_backbones

HEAD = (
    "Video name,Our GT caption,Style Change Caption,Object Change Caption,"
    "Background Change Caption,Multiple Changes Caption\n"
)
SHEET = (
    HEAD
    + "DAVIS Videos:,,,,,\n"
    + 'gold-fish,"goldfish, in a tank",goldfish in oil,sharks,a pond,all of it\n'
    + ",,,,,\n,,,,,\n"
    + "Youtube Videos:,,,,,\n"
    + "judo,two men,two men in clay,two cats,two men on a hill,cats on a hill\n"
    + "Videvo Videos:,,,,,\n"
    + "lotus,a lotus,a lotus in ink,a poppy,a lotus by night,a poppy by night\n"
)
VIDEOS = {"gold-fish": "DAVIS_480p", "judo": "youtube_480p", "lotus": "videvo_480p"}
KINDS = ("style", "object", "background", "multiple")


def frames(name: str, count: int = 4) -> np.ndarray:
    generator = np.random.default_rng(len(name))
    return generator.integers(0, 256, (count, 16, 24, 3), dtype=np.uint8)


@pytest.fixture
def tgve(tmp_path: Path) -> Path:
    folder = tmp_path / "tgve"
    for name, section in VIDEOS.items():
        if name == "judo":  # only its pictures were unpacked
            at = folder / section / "480p_frames" / name
            at.mkdir(parents=True)
            for number, frame in enumerate(frames(name)):
                save_png(at / f"{number:05d}.png", torch.from_numpy(frame).permute(2, 0, 1))
        else:
            at = folder / section / "480p_videos"
            at.mkdir(parents=True)
            (at / f"{name}.mp4").write_bytes(encode_mp4(frames(name), 8))
    (folder / "LOVEU-TGVE-2023_Dataset.csv").write_text(SHEET)
    return folder


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.json"
    words = {f"edit_{kind}": f"make it {kind}" for kind in KINDS}
    path.write_text(json.dumps(dict.fromkeys(VIDEOS, words)))
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_backbones(tmp_path_factory.mktemp("networks"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, quick_intervals: None) -> None:
    """The protocol asks for pictures of the tiny networks' size."""
    del quick_intervals
    monkeypatch.setattr("emu_edit.evaluation.video_scores.video_protocol", lambda _: PROTOCOL)


def submitted(folder: Path, frames_of: Callable[[str, str], np.ndarray]) -> Path:
    """Write results in the layout that TGVE's authors ask for."""
    for name, section in VIDEOS.items():
        for kind in KINDS:
            at = folder / section / name / kind
            at.mkdir(parents=True)
            for number, frame in enumerate(frames_of(name, kind)):
                save_png(at / f"{number:05d}.png", torch.from_numpy(frame).permute(2, 0, 1))
    return folder


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_a_video_belongs_to_the_section_row_before_it(tgve: Path, asked: Path) -> None:
    items = load_tgve(tgve, asked).items
    assert [item.key for item in items] == [f"{name}-{kind}" for name in VIDEOS for kind in KINDS]
    assert [item.place for item in items[::4]] == [
        f"{section}/{name}/style" for name, section in VIDEOS.items()
    ]
    first = items[0]
    assert (first.task, first.session, first.instruction) == ("style", "gold-fish", "make it style")
    assert (first.source_caption, first.target_caption) == (
        "goldfish, in a tank",
        "goldfish in oil",
    )
    assert [item.source().info.frames for item in items] == [4] * 12
    assert not any(item.instruction for item in load_tgve(tgve).items)


def test_an_export_of_tgve_plus_names_its_videos_without_sections(tgve: Path) -> None:
    (tgve / "LOVEU-TGVE-2023_Dataset.csv").unlink()
    row = {"video": "lotus.mp4", "task": "texture", "instruction": "make it of glass"}
    row |= {"input_caption": "a lotus", "output_caption": "a lotus of glass"}
    (tgve / "metadata.jsonl").write_text(json.dumps(row))
    benchmark = load_tgve(tgve)
    (item,) = benchmark.items
    assert (benchmark.split, item.key, item.place) == (
        "TGVE+",
        "lotus-texture",
        "videvo_480p/lotus/texture",
    )
    assert item.source().info.frames == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: (at / "LOVEU-TGVE-2023_Dataset.csv").unlink(), "has no LOVEU-TGVE-2023_Data"),
        (
            lambda at: (at / "LOVEU-TGVE-2023_Dataset.csv").write_text(
                HEAD + "judo,a,b,c,d,e\n" + SHEET.removeprefix(HEAD)
            ),
            "'judo' stands before any section",
        ),
        (
            lambda at: (at / "LOVEU-TGVE-2023_Dataset.csv").write_text(
                SHEET.replace("Videvo V", "Vimeo V")
            ),
            "unknown section 'Vimeo Videos:'; known: davis, youtube, videvo",
        ),
        (
            lambda at: (at / "LOVEU-TGVE-2023_Dataset.csv").write_text(
                SHEET.replace("Our GT caption", "Caption")
            ),
            "there is no column Our GT caption",
        ),
        (lambda at: shutil.rmtree(at / "videvo_480p"), r"1 of 3 videos are missing \(lotus\)"),
        (
            lambda at: (at / "metadata.jsonl").write_text('{"video": "a", "task": "add"}'),
            "no column instruction, input_caption, output_caption; it has video, task",
        ),
    ],
)
def test_what_is_not_tgve_is_refused(
    tgve: Path, change: Callable[[Path], object], message: str
) -> None:
    change(tgve)
    with pytest.raises(InputError, match=message):
        load_tgve(tgve)


@pytest.mark.usefixtures("small")
def test_a_submission_is_scored_by_the_networks_of_the_protocol(
    tgve: Path, networks: Path, tmp_path: Path
) -> None:
    made = submitted(tmp_path / "made", lambda name, kind: frames(name + kind, 5))
    out = tmp_path / "out"
    more = ["--data", str(tgve), "--backbones", str(networks), "-o", str(out)]
    assert main(["evaluate", str(made), "--benchmark", "tgve", *more]) == 0
    scores = {
        (line := json.loads(text))["key"]: line["scores"]
        for text in (out / "items.jsonl").read_text().splitlines()
    }
    loaded = load_video_backbones(networks, PROTOCOL)
    item = load_tgve(tgve).items[5]
    read = [item.source(), open_video(made / "youtube_480p" / "judo" / "object")]
    source, result = (
        CountedFrames((frame.pixels for frame in video.frames()), video.info.frames)
        for video in read
    )
    wanted = score_video(source, result, item.source_caption, item.target_caption, loaded)
    assert {name: scores[item.key][name] for name in wanted} == pytest.approx(wanted)
    assert scores[item.key]["colour_drift"] is None  # it has a frame more than its source
    found = results(out)
    assert found["data"]["split"] == "TGVE"
    rows = found["blocks"]["single edits"]["rows"]
    assert list(rows) == ["model", "copy-input"]
    assert set(rows["model"]["by_task"]) == set(KINDS)
    # a copy goes nowhere
    assert rows["copy-input"]["all"]["viclip_dir"]["mean"] == 0
    assert set(found["backbones"]) == {"clip", "pickscore", "viclip"}


@pytest.mark.usefixtures("small")
def test_raft_among_the_networks_adds_the_warp_error_along_the_flow_of_the_source(
    tgve: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / "networks"
    more.mkdir()
    for one in networks.iterdir():
        (more / one.name).symlink_to(one)
    write_raft(more / FOLDER, speed=0.002)
    longer = {"style": 5}
    made = submitted(tmp_path / "made", lambda name, kind: frames(name + kind, longer.get(kind, 4)))
    command = ["evaluate", str(made), "--benchmark", "tgve", "--data", str(tgve), "--limit", "2"]
    command += ["--backbones", str(more), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert "warp error ↓" in capsys.readouterr().out
    written = (tmp_path / "out" / "items.jsonl").read_text().splitlines()
    lines = [json.loads(text) for text in written]
    items = load_tgve(tgve).items[:2]
    source = [frame.pixels for frame in items[1].source().frames()]
    at = made / "DAVIS_480p" / "gold-fish" / "object"
    result = [frame.pixels for frame in open_video(at).frames()]
    flow = FlowBackbone.load(more / FOLDER, dtype=torch.float64)
    copied, edited = warp_errors([source, result], flow)
    assert flow(source[0], source[1]).abs().mean() > 0.1
    assert edited > 10
    # the first has a frame more than its source
    assert [line["scores"]["warp_error"] for line in lines] == [None, pytest.approx(edited)]
    found = results(tmp_path / "out")
    row = found["blocks"]["single edits"]["rows"]["copy-input"]["all"]["warp_error"]
    assert row["mean"] == pytest.approx(copied)
    assert found["backbones"][FOLDER] == flow.sha256
    assert found["protocol"]["flow"] == f"{FILE}, 12 updates"
    (more / FOLDER / FILE).unlink()
    assert main(command) == 2
    assert f"raft_large has no {FILE}" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_model_edits_tgve_by_the_instructions_of_a_json(
    predicting: Path,  # noqa: F811
    tgve: Path,
    asked: Path,
    networks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["evaluate", str(predicting), "--benchmark", "tgve", "--data", str(tgve)]
    command += ["--backbones", str(networks), "--limit", "5", "--size", "8", "-o", str(out)]
    assert main(command) == 2
    assert "does not say what to do in 12 edits" in capsys.readouterr().err
    assert main([*command, "--instructions", str(asked), "--compare", "published"]) == 0
    told = capsys.readouterr().out
    assert "Only 5 of 12 edits" in told
    assert "InsV2V" in told
    assert "not comparable" in told
    written = sorted(path.name for path in (out / "videos").iterdir())
    assert written == sorted(f"{item.key}.mp4" for item in load_tgve(tgve).items[:5])
    assert open_video(out / "videos" / "judo-style.mp4").info.size == (8, 12)
    assert results(out)["data"]["items"] == 5


def test_a_model_without_predictor_and_missing_networks_are_refused(
    model: Path, tgve: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(model), "--benchmark", "tgve", "--data", str(tgve)]
    more = ["--instructions", str(asked), "-o", str(tmp_path / "out")]
    assert main([*command, *more]) == 2
    assert "the model needs a task predictor" in capsys.readouterr().err
    made = submitted(tmp_path / "made", lambda name, _: frames(name))
    command[1] = str(made)
    assert main([*command, *more]) == 2
    assert "needs --backbones DIR" in capsys.readouterr().err
    assert main([*command, *more, "--backbones", str(tmp_path)]) == 2
    assert "hf download yuvalkirstain/PickScore_v1" in capsys.readouterr().err
