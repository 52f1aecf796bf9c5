from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.edit import EditDataModule, refuse_trainer
from datamodules.stream.sampler import Layout
from emu_edit.batch import Batch
from emu_edit.errors import InputError, ShardError
from emu_edit.tasks import SIXTEEN
from tests.datamodules.toy import Toy, fit, make_trainer
from tests.datamodules.toy_shards import make_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 asks torch 2.13 in a way that has a successor
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

Make = Callable[..., EditDataModule]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes the data module of one small folder."""
    make_folder(tmp_path / "train", {"local": 7, "add": 5, "depth": 1})
    make_folder(tmp_path / "val", {"local": 3, "add": 4})

    def make_data(**options: Any) -> EditDataModule:
        settings: dict[str, Any] = {"global_batch": 8, "steps_per_epoch": 2, "image_size": 8}
        settings |= {"val": str(tmp_path / "val"), "train": str(tmp_path / "train")}
        return EditDataModule(**(settings | options))

    return make_data


def first_epoch(data: EditDataModule) -> list[Batch]:
    data.setup("fit")
    return list(data.train_dataloader())


def test_training_measures_some_of_many_validation_pairs_and_validate_all(make: Make):
    data, positions = make(val_pairs=4), []
    for stage in ("fit", "validate"):
        data.setup(stage)
        batches = list(data.val_dataloader())
        positions.append(torch.cat([batch.position for batch in batches]).tolist())
    assert positions == [[0, 1, 3, 4, 5], list(range(7))]


def test_without_a_trainer_it_loads_all_the_same(make: Make):
    batches = first_epoch(make())
    assert [len(batch) for batch in batches] == [8, 8]
    assert torch.cat([batch.position for batch in batches]).tolist() == list(range(16))
    assert batches[0].source.shape == (8, 3, 8, 8)
    assert batches[0].source.dtype == torch.uint8


def test_tasks_are_drawn_equally_by_default_and_by_weight_when_given(make: Make):
    equal = first_epoch(make(steps_per_epoch=12))  # 96 draws
    counts = Counter(torch.cat([batch.task for batch in equal]).tolist())
    for task in ("local", "add", "depth"):
        assert abs(counts[SIXTEEN.index(task)] - 32) <= 2
    weights = {"local": 5.0, "depth": 1.0}
    batches = first_epoch(make(steps_per_epoch=12, weights=weights))
    counts = Counter(torch.cat([batch.task for batch in batches]).tolist())
    assert counts.keys() == {SIXTEEN.index("local"), SIXTEEN.index("depth")}
    assert abs(counts[SIXTEEN.index("local")] - 80) <= 3


def test_no_ops_are_for_training_only_and_only_for_their_tasks(make: Make):
    data = make(noops={"local": 1.0})
    for batch in first_epoch(data):
        is_noop = (batch.source == batch.target).flatten(1).all(dim=1)
        assert torch.equal(is_noop, batch.task == SIXTEEN.index("local"))
    for batch in data.val_dataloader():
        assert not (batch.source == batch.target).flatten(1).all(dim=1).any()


def test_task_indices_follow_the_table(make: Make):
    table = ["depth", "other", "add", "local"]
    for batch in first_epoch(make(tasks=table)):
        for key, task in zip(batch.key, batch.task.tolist(), strict=True):
            assert key.startswith(table[task])


def test_validation_sees_every_sample_once_in_order(make: Make):
    toy = Toy()
    make_trainer().validate(toy, datamodule=make(micro_batch=2), verbose=False)
    assert [g for batch in toy.evaluated for g in batch] == list(range(7))
    toy = Toy()
    make_trainer().test(toy, datamodule=make(micro_batch=2), verbose=False)
    assert [g for batch in toy.evaluated for g in batch] == list(range(7))


def test_training_needs_no_validation_folder_but_validation_does(make: Make):
    fit(make(val=None))
    with pytest.raises(InputError, match=r"data\.val is not set"):
        make_trainer().validate(Toy(), datamodule=make(val=None), verbose=False)


def test_the_trainer_is_told_how_often_to_accumulate(make: Make):
    trainer = make_trainer()
    trainer.fit(Toy(), datamodule=make(micro_batch=2))
    assert trainer.accumulate_grad_batches == 4
    assert trainer.global_step == 4


def test_the_micro_batch_follows_from_the_trainers_accumulation(make: Make):
    toy = fit(make(), accumulate_grad_batches=4)
    assert {len(batch) for batch in toy.seen} == {2}


def test_a_trainer_can_fit_twice(make: Make):
    trainer, data = make_trainer(max_epochs=1), make(micro_batch=4)
    trainer.fit(Toy(), datamodule=data)
    assert data.consumed == 16
    other = make(micro_batch=4)
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(InputError, match="has 2 optimizer steps but its data state"):
        trainer.fit(Toy(), datamodule=other)


REFUSED = {
    "steps": ({"steps_per_epoch": 0}, r"data\.steps_per_epoch=0 must be at least 1"),
    "validation": ({"val_pairs": 0}, r"data\.val_pairs=0 must be at least 1"),
    "workers": ({"num_workers": -1}, r"data\.num_workers=-1 must be at least 0"),
    "size": ({"image_size": 4}, r"data\.image_size=4 must be at least 8"),
    "no tasks": ({"tasks": []}, "needs at least one task"),
    "batch": ({"global_batch": 0}, r"data\.global_batch=0 .*must be at least 1"),
    "window": ({"window": 0}, r"data\.window=0 must be at least 1 shard"),
    "micro": (
        {"micro_batch": 3},
        r"micro_batch=3 on 1 processes does not divide .*=8; data\.micro_batch may be 1, 2, 4, 8$",
    ),
    "micro 0": ({"micro_batch": 0}, r"data\.micro_batch=0 .* may be 1, 2, 4, 8$"),
    "micro above": ({"micro_batch": 16}, r"data\.micro_batch=16 .* may be 1, 2, 4, 8$"),
    "no folder": ({"train": "nowhere"}, r"nowhere is not a shard folder"),
    "no val folder": ({"val": "nowhere"}, r"nowhere is not a shard folder"),
    "zero weight": ({"weights": {"local": 0.0}}, r"data\.weights: task 'local' has weight 0\.0"),
    "negative": ({"weights": {"add": -2.0}}, r"data\.weights: task 'add' has weight -2\.0"),
    "unknown weight": (
        {"weights": {"lokal": 1.0}},
        r"data\.weights names task 'lokal', .* has local, add, depth\. Did you mean 'local'\?",
    ),
    "no weights": ({"weights": {}}, "data.weights is empty"),
    "no share": ({"noops": {"local": 1.5}}, r"data\.noops\.local=1\.5 must be a share from 0 to 1"),
    "unknown no-op": (
        {"noops": {"lokal": 0.1}},
        r"data\.noops names task 'lokal', .* has local, add, depth\. Did you mean 'local'\?",
    ),
    "task not in table": (
        {"tasks": ["local", "depht", "add"]},
        r"has shards of unknown task 'depth'\. Did you mean 'depht'\?",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_settings_are_refused_before_training(make: Make, name: str):
    options, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        make(**options).setup("fit")


def test_data_that_changed_since_the_manifest_are_refused_at_the_start(make: Make, tmp_path: Path):
    path = tmp_path / "train" / "add-000000.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ShardError, match=r"add-000000\.tar changed since the manifest was written"):
        make().setup("fit")


TRAINER = {
    "accumulate": (
        {"accumulate_grad_batches": 3},
        r"accumulate_grad_batches=3 contradicts data\.global_batch=8 .* 4; leave it out",
    ),
    "overfit": ({"overfit_batches": 1}, r"trainer\.overfit_batches has no effect"),
    "max_steps": ({"max_steps": 3}, r"max_steps=3 with 4 accumulated .* trainer\.max_epochs"),
    "limit": (
        {"limit_train_batches": 5},
        r"limit_train_batches=5 ends after 5 batches, inside .* give a multiple of 4",
    ),
    "fraction": ({"limit_train_batches": 0.8}, r"limit_train_batches=0\.8 ends after 6 batches"),
}


@pytest.mark.parametrize("name", TRAINER)
def test_settings_of_the_trainer_that_contradict_are_refused(make: Make, name: str):
    options, reason = TRAINER[name]
    with pytest.raises(InputError, match=reason):
        fit(make(micro_batch=2), **options)


def test_a_distributed_trainer_must_leave_the_samplers_alone():
    layout = Layout(8, 1, 2)
    with pytest.raises(InputError, match=r"use_distributed_sampler must be false: .* 2 processes"):
        refuse_trainer(make_trainer(), layout, 2)
    refuse_trainer(make_trainer(use_distributed_sampler=False), layout, 2)


def test_a_fast_run_for_development_works(make: Make):
    toy = fit(make(micro_batch=2), fast_dev_run=True)
    assert len(toy.seen) == 1


def test_a_batch_that_is_not_due_is_a_defect(make: Make):
    class Shifted(EditDataModule):
        def _next_position(self) -> int:
            return super()._next_position() + 1

    shifted = Shifted(train=make().train_folders[""], global_batch=8, steps_per_epoch=2)
    with pytest.raises(RuntimeError, match="starts at position 1 of the stream, due is 0"):
        fit(shifted)


def test_an_accumulation_changed_behind_its_back_is_noticed(make: Make):
    class Meddling(Toy):
        def on_train_start(self) -> None:
            self.trainer.accumulate_grad_batches = 1

    trainer: Trainer = make_trainer()
    with pytest.raises(RuntimeError, match="after 8 samples there should be 1 optimizer steps"):
        trainer.fit(Meddling(), datamodule=make(micro_batch=4))
