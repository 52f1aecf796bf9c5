import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from callbacks.mixture import CopyingTable, SteeredMixture, steered
from datamodules.edit import EditDataModule
from datamodules.shards.manifest import write_manifest
from datamodules.shards.writer import PairRecord, write_task_shards
from emu_edit.errors import InputError
from emu_edit.models.unet import UNetDenoiser
from emu_edit.runs.curves import read_curves
from emu_edit.training.draws import Phase
from emu_edit.training.module import EditModule
from emu_edit.training.optim import OptimizerSettings
from tests.training.stage import (
    SIZE,
    TRAINER_WARNINGS,
    Squares,
    make_batch,
    make_module,
    make_trainer,
)

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]
ROOT = Path(__file__).parents[2]
EVEN = {"a": 0.5, "b": 0.5}
STEPS = 20  # in an epoch


def test_shares_grow_by_the_excess_and_keep_a_floor():
    # w = (3 · 0.5, 1 · 0.5) / 2, and a fifth of the configured
    found = steered(
        EVEN, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.0}, wanted=EVEN, rate=math.log(3), floor=0.2
    )
    assert found == pytest.approx({"a": 0.8 * 0.75 + 0.1, "b": 0.8 * 0.25 + 0.1})


def test_what_was_lost_counts_beside_what_is_missing():
    found = steered(
        EVEN, {"a": 0.4, "b": 0.4}, {"a": 0.1, "b": 0.4}, wanted=EVEN, rate=1.0, floor=0.1
    )
    assert found["a"] == pytest.approx(0.9 / (1 + math.exp(-0.3)) + 0.05)


def test_a_group_that_is_not_measured_is_drawn_as_the_average():
    shares = {"a": 0.25, "b": 0.25, "c": 0.5}
    errors = {"a": 0.9, "b": 0.1}
    found = steered(shares, errors, errors, wanted=shares, rate=0.1, floor=0.01)
    assert found["b"] < 0.25 < found["a"]
    assert found["c"] == pytest.approx(0.5, abs=1e-3)  # e^x against 1 + x, at 0.04


def test_nothing_is_forgotten_however_long_it_lasts_and_the_past_fades():
    wanted = {"a": 0.1, "b": 0.3, "c": 0.6}
    shares, errors = wanted, {"a": 1.0, "b": 0.0, "c": 0.0}
    for _ in range(200):
        shares = steered(shares, errors, errors, wanted=wanted, rate=2.0, floor=0.25)
        assert sum(shares.values()) == pytest.approx(1)
        assert all(shares[name] >= 0.25 * wanted[name] for name in wanted)
    assert shares["a"] > 0.7
    done = dict.fromkeys(wanted, 0.05)
    for _ in range(30):
        shares = steered(shares, done, done, wanted=wanted, rate=2.0, floor=0.25)
    assert shares == pytest.approx(wanted, abs=1e-3)


def test_errors_are_those_of_groups_relative_to_copying():
    table = CopyingTable(("easy", "hard", "noop", "unseen"), torch.tensor([0, 0, 1, 1, 2, 3]))
    table.update(
        torch.tensor([4, 0, 2]), torch.tensor([0.5, 0.1, 9.0]), torch.tensor([0.0, 1.0, 2.0])
    )
    table.update(torch.tensor([1, 3]), torch.tensor([0.2, 1.0]), torch.tensor([2.0, 3.0]))
    assert table.compute() == {"easy": 0.1, "hard": 1.0}  # 0.3 / 3; 10 / 5 is no better than 1


def test_a_network_that_changes_nothing_has_the_error_of_copying():
    module = make_module()
    denoiser = module.networks.denoiser
    assert isinstance(denoiser, UNetDenoiser)
    for parameter in denoiser.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    output = module.step(module.drawn(make_batch(range(4)), Phase.validate), dropout=None)
    torch.testing.assert_close(output["error"], output["copying"], rtol=1e-4, atol=1e-6)
    assert "copying" not in module.step(
        module.drawn(make_batch(range(4)), Phase.train), dropout=module.dropout
    )


def write_pairs(folder: Path, task: str, count: int) -> list:
    """Write pairs; those of `add` turn grey, which is easy, of `local` into noise, which is not."""

    def record(number: int) -> PairRecord:
        rng = np.random.default_rng([number, len(task), len(folder.name)])
        source = np.repeat(rng.integers(60, 200, (1, 1, 3)), SIZE, 0).repeat(SIZE, 1)
        noise = rng.integers(0, 256, (SIZE, SIZE, 3))
        target = noise if task == "local" else np.full_like(source, 255)
        pictures = source.astype(np.uint8), target.astype(np.uint8)
        return PairRecord(f"{folder.name}_{task}_{number}", *pictures, f"do {task}", task)

    return write_task_shards(folder, task, map(record, range(count)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixture")
    for name, count in (("train", 24), ("val", 4)):
        entries = [e for task in ("local", "add") for e in write_pairs(root / name, task, count)]
        write_manifest(root / name, entries, made_by={})
    return root


def data_of(shards: Path, **options) -> EditDataModule:
    settings = {"image_size": SIZE, "global_batch": 8, "steps_per_epoch": STEPS}
    settings |= {"tasks": ["local", "add", "style"], "val": str(shards / "val")}
    return EditDataModule(str(shards / "train"), **{**settings, **options})


class Saver(Callback):
    """Save at the end of every epoch, and at one step in the middle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: object, **__: object) -> None:
        if trainer.global_step == STEPS + 7:
            trainer.save_checkpoint(self.folder / "middle.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, *_: object, **__: object) -> None:
        trainer.save_checkpoint(self.folder / f"epoch-{trainer.current_epoch}.ckpt")


def train(
    shards: Path, folder: Path, *, ckpt: Path | None = None, **options
) -> tuple[EditModule, SteeredMixture, EditDataModule]:
    """Train for three epochs; checkpoints and logs go into `folder`."""
    module = make_module(optimizer=OptimizerSettings(lr=3e-3, warmup_steps=0))
    mixture, data = SteeredMixture(), data_of(shards, **options)
    logger = CSVLogger(folder, name="", version="logs")
    trainer = make_trainer(folder, mixture, Saver(folder), max_epochs=3, logger=logger)
    trainer.fit(module, datamodule=data, ckpt_path=None if ckpt is None else str(ckpt))
    return module, mixture, data


@pytest.fixture(scope="module")
def whole(shards: Path) -> tuple[EditModule, SteeredMixture, EditDataModule]:
    return train(shards, shards / "whole")


def test_the_task_with_harder_data_is_drawn_more_often(shards: Path, whole):
    _, mixture, data = whole
    assert mixture.best["add"] < 0.3 < 0.8 < mixture.best["local"]
    counts = {count.name: count for count in data.lane_counts()}
    assert counts["local"].drawn > 1.3 * counts["add"].drawn
    curves = read_curves(shards / "whole" / "logs" / "metrics.csv")
    shares = [share for _, share in curves["mixture/share/local"]]
    assert [step for step, _ in curves["mixture/share/local"]] == [0, STEPS, 2 * STEPS, 3 * STEPS]
    assert shares[0] == 0.5
    assert shares == sorted(shares)
    assert counts["local"].wanted == pytest.approx(mixture.shares["local"], abs=1e-3)
    # what the second epoch drew by the shares that the first came to
    (_, first), (_, second), _ = curves["data/share/local"]
    assert first == 0.5
    assert abs(second - shares[1]) < 3 / (8 * STEPS)


@pytest.mark.parametrize("name", ["epoch-0", "middle"])
@pytest.mark.slow
def test_a_restart_is_steered_as_without_to_the_last_bit(
    shards: Path, whole, tmp_path: Path, name: str
):
    module, mixture, data = whole
    file = shards / "whole" / f"{name}.ckpt"
    state = torch.load(file, weights_only=True)["callbacks"]["SteeredMixture"]
    assert len(repr(state)) < 300
    again, resumed, stream = train(shards, tmp_path, ckpt=file)
    assert resumed.state_dict() == mixture.state_dict()
    assert stream.state_dict() == data.state_dict()
    for key, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_what_cannot_steer_is_refused(shards: Path, tmp_path: Path):
    for rate, floor in ((0.0, 0.5), (1.0, 0.0), (1.0, 1.5)):
        with pytest.raises(InputError, match=r"rate above 0 and floor in 0\.\.1, got"):
            SteeredMixture(rate, floor)
    trainer: Trainer = make_trainer(tmp_path, SteeredMixture())
    with pytest.raises(InputError, match=r"needs held-out pairs .*\(local, add\), data.val has no"):
        trainer.fit(make_module(), datamodule=data_of(shards, val=None))
    trainer = make_trainer(tmp_path, SteeredMixture())
    with pytest.raises(InputError, match=r"steers data of shards .* data is Squares"):
        trainer.fit(make_module(), datamodule=Squares())


@pytest.mark.slow
def test_two_processes_are_steered_alike_and_as_one(shards: Path, whole, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.callbacks.steered_ranks", str(shards), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["mixture"] == second["mixture"]
    assert first["stream"] == second["stream"]
    # means of gradients in another order
    assert first["mixture"]["shares"] == pytest.approx(whole[1].shares, abs=1e-3)
