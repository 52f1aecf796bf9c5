"""`evaluate --benchmark world-clips`: drawn clips as a set beside true ones, and CLIP's numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from emu_edit.cli.main import main
from emu_edit.evaluation.generated import MovingScenes, first_of, load_clip
from emu_edit.evaluation.results import table_of
from emu_edit.evaluation.sets import FLAT_ONLY, FLOOR, NO_FVD, world_distances
from emu_edit.evaluation.world import Scenes
from emu_edit.images import save_png
from emu_edit.metrics.video_clip import consistency
from emu_edit.metrics.world_video import frechet_of

SIZE, SEED, CLIPS = 16, 3, 3
MOVING = MovingScenes(Scenes(seed=SEED, size=SIZE), CLIPS)
quick = pytest.mark.usefixtures("quick_intervals", "blind")


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not looked for: reading takes time and is not what is tested here."""
    from datamodules.world.read import Reading

    nothing = Reading((), "white", None, 0.0)
    monkeypatch.setattr("emu_edit.evaluation.generated_scores.read_scene", lambda _: nothing)


def clips_of(moving: MovingScenes, side: int = SIZE) -> list[torch.Tensor]:
    clips = [item.clip for item in moving.benchmark(side, 8).items]
    return [torch.from_numpy(clip().source) for clip in clips if clip is not None]


@pytest.fixture(scope="module")
def backwards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's videos: the true clips from their ends to their beginnings."""
    folder = tmp_path_factory.mktemp("backwards")
    for item, clip in zip(MOVING.benchmark(64, 8).items, clips_of(MOVING), strict=True):
        (folder / item.key).mkdir()
        for number, frame in enumerate(clip.flip(0)):
            save_png(folder / item.key / f"{number:05d}.png", frame)
    return folder


def evaluated(path: Path, out: Path, *more: str) -> dict[str, Any]:
    place = ["--pairs", str(CLIPS), "--seed", str(SEED), "--size", str(SIZE)]
    call = ["evaluate", str(path), "--benchmark", "world-clips", *place, "-o", str(out)]
    assert main([*call, *more]) == 0
    return json.loads((out / "results.json").read_text())


@quick
def test_every_row_is_compared_with_true_clips_of_other_captions(
    backwards: Path, tmp_path: Path
) -> None:
    true, other = clips_of(MOVING), list(MOVING.others(SIZE, 8))
    assert len(other) == CLIPS
    assert not any(torch.equal(one, clip) for one in other for clip in true)
    rows = {row["editor"]: row for row in evaluated(backwards, tmp_path)["distances"]}
    sets = {
        "model": [clip.flip(0) for clip in true],
        "still": [clip[:1].expand(clip.shape) for clip in true],
        "oracle": true,
    }
    assert list(rows) == list(sets)
    for editor, clips in sets.items():
        assert rows[editor]["distance"] == pytest.approx(frechet_of(other, clips), rel=1e-6)
        assert (rows[editor]["drawn"], rows[editor]["true"]) == (CLIPS, CLIPS)
    warning = "3 clips for features of width 64: the distance is too large"
    for name in ("table.md", "index.html"):
        text = (tmp_path / name).read_text()
        assert text.count(NO_FVD) == text.count(FLOOR) == text.count(warning) == 1
        assert FLAT_ONLY not in text
        for row in rows.values():
            assert f"{row['distance']:.2f}" in text
            assert f"{row['kernel']:.4f}" in text
    results = json.loads((tmp_path / "results.json").read_text())
    results["protocol"]["flat"] = False
    assert FLAT_ONLY in table_of(results)


def test_stills_and_noise_are_farther_than_the_floor_of_so_few_clips() -> None:
    moving = MovingScenes(Scenes(seed=5, size=16), 32)
    true = clips_of(moving)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (32, 8, 3, 16, 16), generator=generator, dtype=torch.uint8)
    sets = {
        "oracle": true,
        "still": [clip[:1].expand(clip.shape) for clip in true],
        "noise": list(noise),
    }
    rows = {str(row["editor"]): row for row in world_distances(moving.others(16, 8), sets)}
    floor, still, noisy = (float(str(rows[name]["distance"])) for name in sets)
    assert floor < still < noisy
    floor, still, noisy = (float(str(rows[name]["kernel"])) for name in sets)
    assert 10 * abs(floor) < still < noisy  # unbiased: of true clips it is 0


def test_one_clip_is_no_set(backwards: Path, tmp_path: Path, blind: None) -> None:
    del blind
    for place in sorted(backwards.iterdir())[:1]:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / place.name).symlink_to(place)
    results = evaluated(tmp_path / "one", tmp_path / "out", "--pairs", "1")
    assert results["distances"] == []
    for name in ("table.md", "index.html"):
        assert "kernel distance" not in (tmp_path / "out" / name).read_text()


@quick
@pytest.mark.slow
def test_clip_says_how_consistent_frames_are(
    backwards: Path, backbones: Path, tmp_path: Path
) -> None:
    without = evaluated(backwards, tmp_path / "without")
    results = evaluated(
        backwards, tmp_path / "out", "--backbones", str(backbones), "--first-frame", "given"
    )
    new = ["clip_fc", "clip_ic", "clip_tc"]
    assert results["protocol"]["metrics"] == [*without["protocol"]["metrics"], *new]
    clip = load_clip(backbones, "cpu")
    assert list(results["backbones"].values()) == [clip.sha256]
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()
    ]
    for item, frames, line in zip(
        MOVING.benchmark(64, 8).items, clips_of(MOVING), lines, strict=True
    ):
        told = consistency(frames.flip(0), first_of(item), item.instruction, clip)
        wanted = (told.frames, told.picture, told.text)
        assert [line["scores"][name] for name in new] == pytest.approx(wanted)
    rows = results["blocks"]["single edits"]["rows"]
    still = rows["still"]["all"]
    assert [still[name]["mean"] for name in new[:2]] == pytest.approx([100, 100])
    assert rows["oracle"]["all"]["clip_fc"]["mean"] < 100
    assert "FC ↑" in (tmp_path / "out" / "table.md").read_text()
    drawn = evaluated(backwards, tmp_path / "drawn", "--backbones", str(backbones))
    model = drawn["blocks"]["single edits"]["rows"]["model"]["all"]
    assert model["clip_ic"]["mean"] is None  # nobody knows what it began with
    assert model["clip_tc"] == rows["model"]["all"]["clip_tc"]


def test_a_folder_without_clip_is_refused_before_anything_is_drawn(
    backwards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["evaluate", str(backwards), "--benchmark", "world-clips", "-o", str(tmp_path / "out")]
    assert main([*call, "--backbones", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "get it with: hf download openai/clip-vit-base-patch32" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()
