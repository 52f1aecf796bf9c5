"""While videos are learnt: film strips, a page that moves, and both in Weights & Biases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import wandb
from PIL import Image

from callbacks.edit_grid import EditGrid, drawn_clips, evaluating, first_of_each_task
from callbacks.ema import Ema
from emu_edit.batch import ClipSample
from emu_edit.editing.animate import animate
from emu_edit.images import to_pil
from emu_edit.models.given import Given, GivenFrames
from emu_edit.training.loggers import WandbLogger
from emu_edit.training.optim import with_weights
from emu_edit.video.io import open_video
from emu_edit.video.strip import ClipRow, moving_grid, strip_grid
from tests.runs.wandb_records import read_run
from tests.training.stage import TRAINER_WARNINGS, make_trainer
from tests.training.video_stage import FRAMES, SIZE, Clips, make_clip, module, write_base

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """W&B without an account, and without a process of an earlier test."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home" / name))
    wandb.teardown()
    yield
    wandb.finish()
    wandb.teardown()


def blue(level: int, frames: int = FRAMES, side: int = SIZE) -> torch.Tensor:
    """Return frames of a colour no letter has: frame f is (level + f, 0, 99)."""
    clip = torch.zeros(frames, 3, side, side, dtype=torch.uint8)
    clip[:, 0] = torch.arange(level, level + frames, dtype=torch.uint8)[:, None, None]
    clip[:, 2] = 99
    return clip


def levels_in(page: Image.Image) -> list[int]:
    """Return the levels of the frames that are on a page."""
    return sorted(c[0] for _, c in page.getcolors(1 << 20) or [] if c[1:] == (0, 99))  # type: ignore[index]


@pytest.mark.usefixtures("offline")
def test_a_training_of_videos_leaves_strips_and_moving_pages_in_its_folder_and_in_wandb(
    tmp_path: Path,
) -> None:
    ours, ema = module(write_base(tmp_path / "base")), Ema(0.5)
    run = tmp_path / "run"
    logger = WandbLogger(save_dir=str(run), project="demo", name="clips")
    trainer = make_trainer(run, EditGrid(every=3), ema, logger=logger, max_epochs=2)
    trainer.fit(ours, Clips())
    assert trainer.global_step == 4
    names = ["step-000003.mp4", "step-000003.png", "step-000004.mp4", "step-000004.png"]
    assert sorted(file.name for file in (run / "grids").iterdir()) == names
    with Image.open(run / "grids" / names[1]) as page:
        assert page.width > FRAMES * 128
        assert page.height > 2 * 128
    info = open_video(run / "grids" / names[0]).info
    assert (info.frames, info.rate) == (FRAMES, 8)

    wandb.finish()
    wandb.teardown()  # as at the end of a program: everything is written
    (folder,) = (run / "wandb").glob("offline-run-*")
    media = folder / "files" / "media"
    assert len([*(media / "images").rglob("*.png")]) == 2
    films = sorted((media / "videos").rglob("*.mp4"))
    written = [(run / "grids" / name).read_bytes() for name in (names[0], names[2])]
    assert sorted(film.read_bytes() for film in films) == sorted(written)
    kept = read_run(folder).history
    (kind,) = {*kept["videos._type"]}
    assert kind == "videos"
    assert kept["videos.captions"] == [[f"step {n}, averaged weights"] for n in (3, 4)]

    # with the averaged weights, which the module does not keep
    assert ema.average is not None
    clip = make_clip(9)
    with evaluating(ours):
        (raw,) = drawn_clips(ours, [clip], seed=0)
        with with_weights(ours, ema.average):
            (averaged,) = drawn_clips(ours, [clip], seed=0)
    page = strip_grid([averaged], "step 4, averaged weights")
    with Image.open(run / "grids" / names[3]) as last:
        assert last.tobytes() == page.tobytes()
    assert not torch.equal(raw.drawn, averaged.drawn)


@torch.no_grad()
def test_a_clip_is_drawn_as_the_model_draws_it_whichever_frames_it_is_given(tmp_path: Path) -> None:
    base, clip = write_base(tmp_path / "base"), make_clip(9)
    with evaluating(ours := module(base)):
        (row,) = drawn_clips(ours, [clip], seed=3)
        made = animate(ours.animator(), clip.target[0], clip.instruction, seed=3)
    assert torch.equal(row.drawn, made)
    told: list[torch.Tensor] = []
    going_on = module(base, given=GivenFrames(Given.past))
    denoiser = going_on.networks.denoiser
    denoiser.register_forward_pre_hook(
        lambda _m, _i, named: told.append(named["cond"].z_source), with_kwargs=True
    )
    with evaluating(going_on):
        (row,) = drawn_clips(going_on, [make_clip(1)], seed=3)
    assert row.drawn.shape == row.true.shape
    given = told[0][0].unflatten(0, (FRAMES, -1)).flatten(1).any(1).tolist()
    assert given == [True, False, False]  # half of three


def test_held_out_clips_are_taken_whole_with_their_captions() -> None:
    (clip,) = first_of_each_task(Clips().val_dataloader(), num_tasks=1, per_task=2)
    assert isinstance(clip, ClipSample)
    assert (clip.key, clip.instruction, clip.rate, clip.source) == (
        "clip-009",
        "square 0 moves to the right",
        8.0,
        None,
    )
    assert torch.equal(clip.target, make_clip(9).target)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_without_validation_clips_nothing_is_drawn_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class NoneHeldOut(Clips):
        def val_dataloader(self):  # pyright: ignore[reportIncompatibleMethodOverride]
            return []

    trainer = make_trainer(tmp_path, EditGrid(every=1), max_epochs=1)
    trainer.fit(module(write_base(tmp_path / "base")), NoneHeldOut())
    assert trainer.global_step == 2
    assert caplog.text.count("no grid of edits drawn; --data.val DIR gives some") == 1
    assert not (tmp_path / "grids").exists()


def test_strips_show_drawn_frames_above_true_ones_enlarged_without_blur() -> None:
    row = ClipRow(blue(100), blue(200), "a blue square", "caption")
    page = strip_grid([row, row], "title")
    drawn, true = [*range(100, 100 + FRAMES)], [*range(200, 200 + FRAMES)]
    assert levels_in(page) == [*drawn, *true]
    middle = page.width // 2
    down = [page.getpixel((middle, y)) for y in range(page.height)]
    seen = [colour[0] for colour in down if colour[1:] == (0, 99)]  # type: ignore[index]
    assert seen == [101] * 128 + [201] * 128 + [101] * 128 + [201] * 128
    with pytest.raises(ValueError, match="at least one clip"):
        strip_grid([], "title")


def test_of_long_clips_eight_frames_are_shown_first_and_last_among_them() -> None:
    row = ClipRow(blue(100, frames=30), blue(200, frames=30), "a", "caption")
    drawn = [n for n in levels_in(strip_grid([row], "t")) if n < 200]
    assert (drawn[0], drawn[-1], len(drawn)) == (100, 129, 8)


def test_large_frames_are_made_smaller() -> None:
    row = ClipRow(blue(100, 2, 512), blue(200, 2, 512), "a", "caption")
    assert strip_grid([row], "t").height < 2 * 200


def test_the_moving_page_has_a_page_per_frame_with_what_was_given_drawn_and_true() -> None:
    pages = moving_grid([ClipRow(blue(100), blue(200), "a blue square", "caption")], "title")
    found = [levels_in(to_pil(page)) for page in pages]
    assert found == [sorted({200, 100 + f, 200 + f}) for f in range(FRAMES)]
