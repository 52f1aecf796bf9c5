import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.edit import EditDataModule
from datamodules.stream.resume import StreamState, rescale_progress
from emu_edit.errors import InputError
from tests.datamodules.toy import SaveEverything, Toy, fit, make_trainer
from tests.datamodules.toy_shards import make_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 asks torch 2.13 in a way that has a successor
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

BATCH, STEPS = 4, 3  # per optimizer step, per virtual epoch
Make = Callable[..., EditDataModule]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes the data module of one small folder."""
    make_folder(tmp_path / "train", {"local": 7, "add": 5, "depth": 1})
    make_folder(tmp_path / "val", {"local": 3, "add": 2})

    def make_data(**options: Any) -> EditDataModule:
        settings: dict[str, Any] = {
            "global_batch": BATCH,
            "steps_per_epoch": STEPS,
            "image_size": 8,
            "window": 2,
        }
        settings |= {"val": str(tmp_path / "val"), "train": str(tmp_path / "train")}
        return EditDataModule(**(settings | options))

    return make_data


def by_step(toy: Toy, micro: int) -> list[list[int]]:
    """Return the positions of each optimizer step of one process."""
    flat = [g for batch in toy.seen for g in batch]
    assert all(len(batch) == micro for batch in toy.seen)
    return [flat[i : i + BATCH] for i in range(0, len(flat), BATCH)]


def test_training_reads_the_stream_from_its_beginning_once(make: Make):
    toy = fit(make(micro_batch=2))
    assert by_step(toy, 2) == [list(range(s * 4, s * 4 + 4)) for s in range(2 * STEPS)]


def test_layouts_train_on_the_same_stream(make: Make):
    weights = [fit(make(micro_batch=micro)).weights() for micro in (1, 2, 4)]
    # sums of gradients in another order: equal to a few roundings of float64
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(weights[0], weights[2], rtol=1e-12, atol=0)


def assert_every_resume_is_exact(make: Make, folder: Path, workers: int, micro: int) -> None:
    data = make(micro_batch=micro, num_workers=workers)
    whole = fit(data, SaveEverything(folder))
    assert data.consumed == 2 * STEPS * BATCH
    files = sorted(folder.glob("*.ckpt"))
    assert len(files) == 2 * STEPS + 2
    for file in files:
        steps = torch.load(file, weights_only=True)["global_step"]
        resumed = fit(make(micro_batch=micro, num_workers=workers), ckpt=file)
        assert by_step(resumed, micro) == by_step(whole, micro)[steps:], file.name
        assert resumed.weights() == whole.weights(), file.name


def test_resuming_at_every_step_gives_bit_equal_weights(make: Make, tmp_path: Path):
    assert_every_resume_is_exact(make, tmp_path, workers=0, micro=2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_resuming_at_every_step_is_exact_in_every_layout(
    make: Make, tmp_path: Path, workers: int, micro: int
):
    assert_every_resume_is_exact(make, tmp_path, workers, micro)


def test_a_checkpoint_goes_on_with_another_accumulation_and_workers(make: Make, tmp_path: Path):
    whole = fit(make(micro_batch=1), SaveEverything(tmp_path))
    for name in ("step-2", "step-3", "epoch-0", "step-5"):
        file = tmp_path / f"{name}.ckpt"
        steps = torch.load(file, weights_only=True)["global_step"]
        toy = fit(make(micro_batch=4), ckpt=file)
        assert by_step(toy, 4) == by_step(whole, 1)[steps:]
        torch.testing.assert_close(toy.weights(), whole.weights(), rtol=1e-12, atol=0)


class SaveAtBatch(Callback):
    """Save after one micro-batch, wherever it lies."""

    def __init__(self, batch: int, file: Path) -> None:
        self.batch, self.file = batch, file

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch
        if batch_idx == self.batch and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("batch", [0, 2, 3])
def test_a_checkpoint_inside_an_accumulation_window_repeats_the_window(
    make: Make, tmp_path: Path, batch: int
):
    file = tmp_path / "inside.ckpt"
    whole = fit(make(micro_batch=1), SaveAtBatch(batch, file))
    for micro in (1, 2):
        toy = fit(make(micro_batch=micro), ckpt=file)
        assert by_step(toy, micro) == by_step(whole, 1)[(batch + 1) // 4 :]
        torch.testing.assert_close(toy.weights(), whole.weights(), rtol=1e-12, atol=0)


def test_a_checkpoint_goes_on_after_two_changes_of_layout(make: Make, tmp_path: Path):
    whole = fit(make(micro_batch=4), SaveEverything(tmp_path / "a"), max_epochs=3)
    fit(make(micro_batch=1), SaveEverything(tmp_path / "b"), ckpt=tmp_path / "a" / "step-2.ckpt")
    toy = fit(make(micro_batch=2), ckpt=tmp_path / "b" / "step-5.ckpt", max_epochs=3)
    assert by_step(toy, 2) == by_step(whole, 4)[5:]
    torch.testing.assert_close(toy.weights(), whole.weights(), rtol=1e-12, atol=0)


class Scheduled(Toy):
    """Asks the trainer for its number of steps, which makes Lightning build the loader early."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize("name", ["step-2", "epoch-0", "step-4"])
def test_a_schedule_that_needs_the_length_resumes_exactly(make: Make, tmp_path: Path, name: str):
    whole, toy = Scheduled(), Scheduled()
    trainer = make_trainer(SaveEverything(tmp_path))
    trainer.fit(whole, datamodule=make(micro_batch=2))
    assert trainer.global_step == 2 * STEPS
    make_trainer().fit(
        toy, datamodule=make(micro_batch=2), ckpt_path=str(tmp_path / f"{name}.ckpt")
    )
    assert toy.weights() == whole.weights()


@pytest.mark.parametrize("name", ["step-2", "step-3", "epoch-0", "step-4"])
def test_training_by_steps_without_accumulation_resumes_exactly(
    make: Make, tmp_path: Path, name: str
):
    whole = fit(make(), SaveEverything(tmp_path), max_epochs=-1, max_steps=5)
    file = tmp_path / f"{name}.ckpt"
    steps = torch.load(file, weights_only=True)["global_step"]
    toy = fit(make(), ckpt=file, max_epochs=-1, max_steps=5)
    assert by_step(toy, 4) == by_step(whole, 4)[steps:]
    assert toy.weights() == whole.weights()


def test_fewer_batches_per_epoch_leave_no_gap_in_the_stream(make: Make):
    toy = fit(make(micro_batch=2), max_epochs=3, limit_train_batches=4)
    assert by_step(toy, 2) == [list(range(s * 4, s * 4 + 4)) for s in range(6)]


def test_the_data_state_of_a_checkpoint_is_small_and_primitive(make: Make, tmp_path: Path):
    fit(make(micro_batch=2), SaveEverything(tmp_path))
    state = torch.load(tmp_path / "step-5.ckpt", weights_only=True)["EditDataModule"]
    assert state["consumed"] == 5 * BATCH
    assert state["accumulate"] == 2
    assert len(repr(state)) < 1000


def resume(make: Make, tmp_path: Path, **changes: Any) -> Toy:
    fit(make(), SaveEverything(tmp_path))
    return fit(make(**changes), ckpt=tmp_path / "step-2.ckpt")


CHANGES = {
    "seed": ({"seed": 1}, "seed was 0, is 1"),
    "window": ({"window": 5}, "window was 2, is 5"),
    "image_size": ({"image_size": 16}, "image_size was 8, is 16"),
    "flip": ({"flip": True}, "flip was False, is True"),
    "noops": ({"noops": {"add": 0.5}}, "noops was None, is {'add': 0.5}"),
    "steps": ({"steps_per_epoch": 9}, "steps_per_epoch was 3, is 9"),
    "weights": (
        {"weights": {"local": 1.0, "add": 1.0, "depth": 2.0}},
        "quotas of add, depth, local",
    ),
    "fewer tasks": ({"weights": {"local": 1.0, "add": 1.0}}, "data of depth; quotas of add"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_settings_are_refused_by_name(make: Make, tmp_path: Path, name: str):
    changes, reason = CHANGES[name]
    with pytest.raises(InputError, match=f"trained with other data: {reason}.*allow_change"):
        resume(make, tmp_path, **changes)


def test_changed_shards_are_refused_by_task(make: Make, tmp_path: Path):
    fit(make(), SaveEverything(tmp_path))
    make_folder(tmp_path / "train", {"local": 7, "add": 6, "depth": 1})
    with pytest.raises(InputError, match=r"trained with other data: data of add; put it back"):
        fit(make(), ckpt=tmp_path / "step-2.ckpt")


def test_another_global_batch_is_refused_even_when_changes_are_allowed(make: Make, tmp_path: Path):
    with pytest.raises(InputError, match=r"another global_batch was 4, is 8; put it back"):
        resume(make, tmp_path, global_batch=8, allow_change=True)


def test_an_allowed_change_of_weights_goes_on_where_each_task_was(make: Make, tmp_path: Path):
    keys: dict[bool, list[str]] = {}

    class Keys(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            del trainer, pl_module, batch_idx
            keys.setdefault(is_second, []).extend(batch.key)

    is_second = False
    fit(make(), Keys(), SaveEverything(tmp_path))
    weights = {"local": 1.0, "add": 3.0, "depth": 1.0}
    is_second = True
    changed = make(weights=weights, allow_change=True)
    fit(changed, Keys(), SaveEverything(tmp_path / "b"), ckpt=tmp_path / "step-4.ckpt")
    seen = keys[False][: 4 * BATCH] + keys[True]
    assert len(seen) == 2 * STEPS * BATCH
    for task, count in (("local", 7), ("add", 5)):
        of_task = [key for key in seen if key.startswith(task)]
        for epoch in range(len(of_task) // count):
            assert len(set(of_task[epoch * count : (epoch + 1) * count])) == count
    # and from its checkpoint it goes on without a further allowance
    again = fit(make(weights=weights), ckpt=tmp_path / "b" / "step-5.ckpt", max_epochs=3)
    straight = make(weights=weights, allow_change=True)
    whole = fit(straight, ckpt=tmp_path / "step-4.ckpt", max_epochs=3)
    assert by_step(again, 4) == by_step(whole, 4)[1:]
    assert again.weights() == whole.weights()


def test_a_virtual_epoch_shorter_than_what_was_trained_of_it_is_refused(make: Make, tmp_path: Path):
    with pytest.raises(InputError, match=r"steps_per_epoch=1 is less than the 2 steps of its epoc"):
        resume(make, tmp_path, steps_per_epoch=1, allow_change=True)


def test_a_checkpoint_of_another_kind_of_data_module_is_refused(make: Make, tmp_path: Path):
    class OtherData(EditDataModule):
        pass

    fit(make(), SaveEverything(tmp_path))
    other = OtherData(train=str(tmp_path / "train"), global_batch=4, steps_per_epoch=3)
    with pytest.raises(InputError, match=r"has 2 optimizer steps but its data state .OtherData. s"):
        fit(other, ckpt=tmp_path / "step-2.ckpt")


def test_a_state_of_another_version_is_refused():
    with pytest.raises(InputError, match="data state has version 7, this program reads 1"):
        StreamState.from_dict({"version": 7})


def test_evaluation_takes_any_checkpoint(make: Make, tmp_path: Path):
    fit(make(), SaveEverything(tmp_path))
    toy = Toy()
    data = make(seed=5, train="nowhere")
    file = str(tmp_path / "step-2.ckpt")
    make_trainer().validate(toy, datamodule=data, ckpt_path=file, verbose=False)
    assert sorted(g for batch in toy.evaluated for g in batch) == list(range(5))


@pytest.mark.parametrize(
    ("ready", "completed", "old", "new", "expected"),
    [
        (6, 6, 2, 1, (3, 3)),
        (6, 5, 2, 3, (9, 8)),  # saved at the end of a batch, before it counts as completed
        (7, 6, 2, 2, (6, 6)),
        (7, 7, 2, 1, (3, 3)),
        (0, 0, 1, 4, (0, 0)),
    ],
)
def test_progress_counters_are_rescaled_at_step_boundaries(
    ready: int, completed: int, old: int, new: int, expected: tuple[int, int]
):
    def counters() -> dict[str, int]:
        return {"ready": ready, "started": ready, "processed": ready, "completed": completed}

    progress = {"total": counters(), "current": counters(), "is_last_batch": True}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    rescale_progress(checkpoint, old, new)
    for scope in ("total", "current"):
        assert (progress[scope]["ready"], progress[scope]["completed"]) == expected
    assert progress["is_last_batch"] == (ready % old == 0)


@pytest.mark.slow
def test_two_processes_share_the_stream_and_one_goes_on_from_their_checkpoint(
    make: Make, tmp_path: Path
):
    whole = fit(make(micro_batch=2))
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, "-m", "tests.datamodules.two_processes", str(tmp_path), str(out)],
        check=True,
        capture_output=True,
        timeout=600,
    )
    first, second = (json.loads((out / f"rank-{r}.json").read_text()) for r in range(2))
    assert first["weights"] == second["weights"]
    torch.testing.assert_close(tuple(first["weights"]), whole.weights(), rtol=1e-12, atol=0)
    # accumulate 2 x world 2 x micro 1
    assert first["seen"] == [[g] for g in range(0, 24, 2)]
    assert second["seen"] == [[g] for g in range(1, 24, 2)]
    # five samples, two batches on each rank, after a sanity check and two epochs
    last_pass = [*first["evaluated"][-2:], *second["evaluated"][-2:]]
    assert sorted(g for batch in last_pass for g in batch) == list(range(5))
    for name in ("step-2", "epoch-0", "step-5"):
        steps = torch.load(out / f"{name}.ckpt", weights_only=True)["global_step"]
        toy = fit(make(micro_batch=4), ckpt=out / f"{name}.ckpt")
        assert by_step(toy, 4) == by_step(whole, 2)[steps:]
        torch.testing.assert_close(toy.weights(), whole.weights(), rtol=1e-12, atol=0)
