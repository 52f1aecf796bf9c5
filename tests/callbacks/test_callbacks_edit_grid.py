import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from callbacks.edit_grid import EditGrid, edited_rows, evaluating, first_of_each_task
from callbacks.ema import Ema
from callbacks.progress import Progress
from emu_edit.batch import EditSample
from emu_edit.editing.sheets import GridRow, picture_grid
from emu_edit.errors import InputError
from emu_edit.training.loggers import WandbLogger
from emu_edit.training.module import EditModule
from emu_edit.training.optim import with_weights
from tests.training.stage import TRAINER_WARNINGS, Squares, make_batch, make_module, make_trainer

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


class Kept(WandbLogger):
    """A logger that keeps what W&B would be given."""

    def __init__(self) -> None:
        self.images: list[tuple[str, list, int | None]] = []
        self._name = self._save_dir = self._project = self._id = None

    def log_image(self, key, images, step=None, **kwargs):
        assert kwargs == {"caption": [f"step {step}, averaged weights"]}
        self.images.append((key, images, step))

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass

    def finalize(self, status):
        pass

    @property
    def experiment(self):
        return None


def row(size: int = 16, instruction: str = "make it red") -> GridRow:
    picture = torch.zeros(3, size, size, dtype=torch.uint8)
    return GridRow(picture, picture + 100, picture + 200, instruction, "local")


def test_the_first_pairs_of_each_task_are_taken_in_order_of_task():
    batches = [make_batch([4, 2, 7]), make_batch([1, 0, 3])]
    pairs = first_of_each_task(batches, num_tasks=3, per_task=2)
    # tasks are position % 3
    assert [pair.key for pair in pairs] == [
        "pair-000",
        "pair-003",
        "pair-004",
        "pair-007",
        "pair-002",
    ]
    assert pairs[2].source is not None
    assert torch.equal(pairs[2].source, make_batch([4]).source[0])


def test_reading_stops_when_every_task_has_its_pairs():
    def batches():
        yield make_batch([0, 1, 2])
        raise AssertionError("read on")

    assert len(first_of_each_task(batches(), num_tasks=3, per_task=1)) == 3


def test_a_grid_shows_pictures_enlarged_without_blur():
    page = picture_grid([row(), row()], "title")
    assert page.width > 3 * 128
    colours = {colour for _, colour in page.getcolors(1 << 20) or []}
    assert {(0, 0, 0), (100, 100, 100), (200, 200, 200)} <= colours
    assert page.crop((8, 60, 130, 180)).getcolors() == [(122 * 120, (0, 0, 0))]


def test_pictures_of_several_shapes_stand_in_one_grid_unsqueezed():
    wide = torch.full((3, 12, 20), 90, dtype=torch.uint8)
    page = picture_grid([row(), GridRow(wide, wide, wide, "make it red", "local")], "t")
    # cells as wide and high as the largest, 20 x 16, eight times
    assert page.crop((8, 52, 8 + 128, 52 + 128)).getcolors() == [(128 * 128, (0, 0, 0))]
    top = 52 + 128 + 8
    assert page.crop((8, top, 8 + 160, top + 96)).getcolors() == [(160 * 96, (90, 90, 90))]


def test_pairs_of_several_sizes_are_edited_in_parts_of_one_size():
    wide = torch.zeros(3, 16, 24, dtype=torch.uint8)
    even = torch.zeros(3, 16, 16, dtype=torch.uint8)
    pairs = [
        EditSample(key=str(i), source=p, target=p, instruction="make it red", task=0)
        for i, p in enumerate([even, wide, wide, even])
    ]
    module = make_module()
    rows = edited_rows(module, pairs, seed=3)
    assert [tuple(r.edited.shape) for r in rows] == [tuple(p.target.shape) for p in pairs]
    # the noise of a pair is that of its place
    (alone,) = edited_rows(module, pairs[2:3], seed=5)
    assert torch.equal(rows[2].edited, alone.edited)


def test_many_rows_stand_in_panels_side_by_side():
    few, many = picture_grid([row()] * 8, "t"), picture_grid([row()] * 9, "t")
    assert many.height == few.height
    assert many.width > 1.9 * few.width


def test_a_long_instruction_stays_inside_its_row():
    short, long = (
        picture_grid([row(), row()], "t"),
        picture_grid([row(instruction="very " * 200), row()], "t"),
    )
    assert short.size == long.size
    below = (0, 52 + 128, short.width, short.height)
    assert short.crop(below).tobytes() == long.crop(below).tobytes()


def test_an_empty_grid_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="at least one row"):
        picture_grid([], "t")


def test_training_writes_grids_at_the_interval_and_at_the_end(tmp_path):
    logger = Kept()
    trainer = make_trainer(tmp_path, EditGrid(every=2), Ema(), logger=logger)
    trainer.fit(make_module(), datamodule=Squares(steps=5))
    files = sorted(path.name for path in (tmp_path / "grids").iterdir())
    assert files == ["step-000002.png", "step-000004.png", "step-000005.png"]
    with Image.open(tmp_path / "grids" / files[-1]) as page:
        assert page.height > 3 * 128
    assert [(key, step) for key, _, step in logger.images] == [
        ("edits", 2),
        ("edits", 4),
        ("edits", 5),
    ]


def test_the_grid_is_made_with_the_averaged_weights_and_leaves_the_module_as_it_was(
    tmp_path, monkeypatch
):
    drawn: list[list[GridRow]] = []

    def keep(rows: list[GridRow], _: str) -> Image.Image:
        drawn.append(rows)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("callbacks.edit_grid.picture_grid", keep)
    module, ema = make_module(), Ema(0.5)
    make_trainer(tmp_path, EditGrid(every=100, seed=7), ema, limit_val_batches=0).fit(
        module, datamodule=Squares(steps=4)
    )
    assert module.networks.denoiser.training
    pairs = first_of_each_task([make_batch(range(6))], num_tasks=3, per_task=1)
    pairs = [pair for pair in pairs if isinstance(pair, EditSample)]
    assert ema.average is not None
    with evaluating(module):
        raw = edited_rows(module, pairs, seed=7)
        with with_weights(module, ema.average):
            averaged = edited_rows(module, pairs, seed=7)
    (rows,) = drawn
    assert [r.instruction for r in rows] == [pair.instruction for pair in pairs]
    assert all(torch.equal(a.edited, b.edited) for a, b in zip(rows, averaged, strict=True))
    assert not all(torch.equal(a.edited, b.edited) for a, b in zip(rows, raw, strict=True))


@pytest.mark.filterwarnings(
    "ignore:Total length of `list` across ranks is zero"
)  # Lightning notices too
def test_without_validation_pairs_training_goes_on_and_says_so_once(tmp_path, caplog):
    class NoPairs(Squares):
        def val_dataloader(self):  # pyright: ignore[reportIncompatibleMethodOverride]
            return []

    trainer = make_trainer(tmp_path, EditGrid(every=1))
    trainer.fit(make_module(), datamodule=NoPairs(steps=2))
    assert trainer.global_step == 2
    assert caplog.text.count("no validation loss is measured and no grid of edits drawn; ") == 1
    assert not (tmp_path / "grids").exists()


def test_each_part_gets_its_own_mode_back_also_after_an_exception():
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).eval())
    with pytest.raises(KeyError), evaluating(module):  # noqa: PT012
        assert not module[0].training
        raise KeyError
    assert [part.training for part in module] == [True, False]


@pytest.mark.parametrize(("own", "asked"), [(50, 25), (4, 4)])
def test_a_model_of_many_steps_is_drawn_in_25_and_says_so(tmp_path, monkeypatch, own, asked):
    titles: list[str] = []

    def keep(_rows: list[GridRow], title: str) -> Image.Image:
        titles.append(title)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("callbacks.edit_grid.picture_grid", keep)
    module = make_module()
    module.editor_settings = replace(module.editor_settings, num_steps=own)
    bar = Progress(line_every=1e-9)
    bar.console = Console(file=(file := io.StringIO()), width=200)
    trainer = make_trainer(tmp_path, EditGrid(), bar, limit_val_batches=0, enable_progress_bar=True)
    passes = count_passes(module)
    trainer.fit(module, datamodule=Squares(steps=3))
    # the three pairs in one batch, one branch of guidance
    assert len(passes) == 3 + asked
    assert f"drawing {asked}/{asked} (100 %) · 0:00 left · " in file.getvalue()
    more = f", {asked} steps in place of {own}" if asked < own else ""
    assert titles == [f"step 3, trained weights{more}"]


def count_passes(module: EditModule) -> list[int]:
    """Return a list that grows by the rows of every forward pass of the denoiser."""
    passes: list[int] = []
    module.networks.denoiser.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    return passes


@pytest.mark.parametrize("values", [{"every": 0}, {"per_task": 0}, {"steps": 0}])
def test_numbers_below_one_are_refused(values):
    with pytest.raises(InputError, match="EditGrid needs every, per_task and steps of at least 1"):
        EditGrid(**values)
