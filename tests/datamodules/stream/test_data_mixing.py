"""Several data sets: quotas of each data set x task, resume, what is logged and what is refused."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from datamodules.edit import EditDataModule
from datamodules.shards.folder import LocalFolder
from datamodules.shards.manifest import Manifest, ShardEntry
from datamodules.stream.mixing import DataSet, Lane, lanes_of, mixture_of, named_folders
from datamodules.stream.order import PERIOD, Order
from datamodules.stream.resume import changes
from emu_edit.batch import Batch
from emu_edit.errors import InputError
from tests.datamodules.toy import SaveEverything, Toy, fit, make_trainer
from tests.datamodules.toy_shards import make_named_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 asks torch 2.13 in a way that has a successor
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

COUNTS = {"old": {"local": 6, "add": 3}, "new": {"local": 2, "depth": 5}}
Make = Callable[..., EditDataModule]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes the data module of two small folders; keys name the folder."""
    for name, counts in COUNTS.items():
        make_named_folder(tmp_path / name, counts, name)
    folders = {name: str(tmp_path / name) for name in COUNTS}

    def make_data(**options: Any) -> EditDataModule:
        settings: dict[str, Any] = {"global_batch": 4, "steps_per_epoch": 3, "image_size": 8}
        settings |= {"train": folders}
        return EditDataModule(**(settings | options))

    return make_data


def lanes(counts: dict[str, dict[str, int]] = COUNTS) -> list[Lane]:
    """Return lanes of shards that are nowhere."""
    return lanes_of(DataSet(name, folder_of(name, tasks)) for name, tasks in counts.items())


def folder_of(name: str, counts: dict[str, int]) -> LocalFolder:
    entries = (ShardEntry(t, f"{t}.tar", 1, f"{name} {t}", n) for t, n in counts.items())
    return LocalFolder(Path(name or "alone"), Manifest(tuple(entries), {}))


def shares(weights: dict[str, float] | None, counts: dict[str, dict[str, int]] = COUNTS) -> Any:
    mixture = mixture_of(lanes(counts), weights)
    assert sum(mixture.quotas) == PERIOD
    return {lane.name: quota for lane, quota in zip(mixture.lanes, mixture.quotas, strict=True)}


def first_epoch(data: EditDataModule) -> list[Batch]:
    data.setup("fit")
    return list(data.train_dataloader())


class Keys(Callback):
    """Note what is trained on, as `dataset_task` and in full."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del trainer, pl_module, batch_idx
        self.keys += batch.key

    @property
    def lanes(self) -> Counter[str]:
        return Counter("/".join(key.split("_")[:2]) for key in self.keys)


def test_a_tasks_weight_is_shared_out_by_numbers_of_samples():
    assert shares(None, {"old": {"local": 6}, "new": {"local": 2}}) == {
        "new/local": 1024,
        "old/local": 3072,
    }
    assert shares({"local": 3.0, "add": 1.0, "depth": 4.0}) == {
        "new/local": 384,
        "new/depth": 2048,
        "old/local": 1152,
        "old/add": 512,
    }


def test_one_task_of_one_data_set_has_its_own_weight():
    assert shares({"old/local": 1.0, "new/local": 1.0, "new/depth": 2.0}) == {
        "new/local": 1024,
        "new/depth": 2048,
        "old/local": 1024,
    }
    assert shares({"new/depth": 3.0, "local": 1.0}) == {
        "new/local": 256,
        "new/depth": 3072,
        "old/local": 768,
    }


def test_a_further_data_set_leaves_the_mixture_of_tasks_as_it_was():
    alone = shares(None, {"": {"local": 6, "add": 3}})
    both = shares(None, {"": {"local": 6, "add": 3}, "new": {"local": 2}})
    assert both["local"] + both["new/local"] == alone["local"]
    assert both["add"] == alone["add"]


def test_the_set_without_a_name_can_be_weighed_too():
    counts = {"": {"local": 6}, "new": {"local": 2}}
    assert shares({"/local": 1.0, "new/local": 3.0}, counts) == {"local": 1024, "new/local": 3072}


def test_quotas_of_all_lanes_are_exact_in_every_period():
    mixture = mixture_of(lanes(), {"local": 3.0, "add": 1.5, "new/depth": 0.7})
    order = Order(mixture.spec(seed=5, window=2))
    drawn = Counter(order(g).lane for g in range(7 * PERIOD, 8 * PERIOD))
    assert [drawn[i] for i in range(4)] == list(mixture.quotas)


def test_the_order_does_not_depend_on_how_the_folders_are_listed():
    listed = mixture_of(lanes(), None)
    otherwise = mixture_of(lanes(dict(reversed(COUNTS.items()))), None)
    assert [lane.name for lane in listed.lanes] == [lane.name for lane in otherwise.lanes]
    assert listed.spec(seed=0, window=2) == otherwise.spec(seed=0, window=2)


def test_every_sample_of_every_lane_comes_once_an_epoch(make: Make):
    data = make(steps_per_epoch=20, weights={"old/local": 1.0, "new/local": 1.0})
    keys = [key for batch in first_epoch(data) for key in batch.key]
    for lane, count in (("old_local", 6), ("new_local", 2)):
        of_lane = [key for key in keys if key.startswith(lane)]
        assert len(of_lane) == 40
        for epoch in range(40 // count):
            assert len(set(of_lane[epoch * count : (epoch + 1) * count])) == count


def test_one_named_folder_shows_the_samples_of_that_folder(make: Make, tmp_path: Path):
    alone = first_epoch(make(train=str(tmp_path / "old")))
    unnamed = first_epoch(make(train={"": str(tmp_path / "old")}))
    assert [b.key for b in alone] == [b.key for b in unnamed]
    named = first_epoch(make(train={"x": str(tmp_path / "old")}))
    assert sorted(Counter(b.task.tolist()[0] for b in named)) == sorted(
        Counter(b.task.tolist()[0] for b in alone)
    )


def test_the_state_of_a_folder_alone_is_that_of_before_there_could_be_several(
    make: Make, tmp_path: Path
):
    data = make(train=str(tmp_path / "old"), weights={"add": 3.0, "local": 1.0}, window=2)
    data.setup("fit")
    state = data.state_dict()
    hashes = state["fingerprint"].pop("data")
    assert {task: len(value) for task, value in hashes.items()} == {"local": 16, "add": 16}
    assert state == {
        "version": 1,
        "consumed": 0,
        "accumulate": 1,
        "start": 0,
        "drawn": {},
        "fingerprint": {
            "order_version": 1,
            "seed": 0,
            "window": 2,
            "quotas": {"local": 1024, "add": 3072},
            "global_batch": 4,
            "steps_per_epoch": 3,
            "image_size": 8,
            "flip": False,
        },
    }


def test_samples_of_equal_file_names_come_from_their_own_folder(make: Make):
    tasks = {key: int(t) for b in first_epoch(make()) for key, t in zip(b.key, b.task, strict=True)}
    assert {key.split("_")[0] for key in tasks} == {"old", "new"}


def test_resuming_a_mixture_is_exact(make: Make, tmp_path: Path):
    whole = fit(make(), SaveEverything(tmp_path / "ckpt"))
    for name in ("step-2", "epoch-0", "step-5"):
        file = tmp_path / "ckpt" / f"{name}.ckpt"
        steps = torch.load(file, weights_only=True)["global_step"]
        toy = fit(make(micro_batch=2), ckpt=file)
        assert [g for batch in toy.seen for g in batch] == list(range(steps * 4, 24))
        torch.testing.assert_close(toy.weights(), whole.weights(), rtol=1e-12, atol=0)


def assert_no_sample_is_repeated_or_skipped(keys: list[str], sizes: dict[str, int]) -> None:
    for lane, count in sizes.items():
        of_lane = [key for key in keys if key.startswith(lane)]
        assert len(of_lane) > count
        for epoch in range(len(of_lane) // count):
            assert len(set(of_lane[epoch * count : (epoch + 1) * count])) == count


def test_weights_changed_in_the_middle_neither_repeat_nor_skip_in_any_lane(
    make: Make, tmp_path: Path
):
    first, second = Keys(), Keys()
    fit(make(), first, SaveEverything(tmp_path / "ckpt"))
    weights = {"old/local": 1.0, "new/local": 3.0, "new/depth": 2.0, "old/add": 1.0}
    changed = make(weights=weights, allow_change=True)
    fit(changed, second, ckpt=tmp_path / "ckpt" / "step-4.ckpt", max_epochs=5)
    sizes = {"old_local": 6, "new_local": 2, "new_depth": 5, "old_add": 3}
    assert_no_sample_is_repeated_or_skipped(first.keys[:16] + second.keys, sizes)


def test_a_data_set_joins_a_run_that_began_with_one_folder(make: Make, tmp_path: Path):
    first, second = Keys(), Keys()
    alone, joined = str(tmp_path / "old"), str(tmp_path / "new")
    fit(make(train=alone), first, SaveEverything(tmp_path / "ckpt"))
    both = {"": alone, "new": joined}
    file = tmp_path / "ckpt" / "step-4.ckpt"
    with pytest.raises(
        InputError, match=r"data of new/depth, new/local; quotas of add, local, new"
    ):
        fit(make(train=both), ckpt=file)
    fit(make(train=both, allow_change=True), second, ckpt=file, max_epochs=6)
    sizes = {"old_local": 6, "old_add": 3, "new_local": 2, "new_depth": 5}
    assert_no_sample_is_repeated_or_skipped(first.keys[:16] + second.keys, sizes)


def test_what_is_logged_is_what_was_trained_on(make: Make, tmp_path: Path):
    keys = Keys()
    weights = {"old/local": 5.0, "new/local": 1.0}
    trainer = make_trainer(keys, max_epochs=2, log_every_n_steps=1)
    trainer.loggers = [CSVLogger(tmp_path, name="log", version=0)]
    trainer.fit(Toy(), datamodule=make(weights=weights))
    trainer.loggers[0].save()
    rows = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), map(float, rows[-1].split(",")), strict=True))
    assert sum(keys.lanes.values()) == 24
    for lane, count in (("old/local", 6), ("new/local", 2)):
        assert last[f"data/share/{lane}"] == pytest.approx(keys.lanes[lane] / 24)
        assert last[f"data/epochs/{lane}"] == pytest.approx(keys.lanes[lane] / count)


def test_shares_after_a_change_of_weights_are_those_of_the_new_weights(make: Make, tmp_path: Path):
    fit(make(), SaveEverything(tmp_path / "ckpt"))
    keys = Keys()
    weights = {"old/local": 1.0, "new/local": 9.0}
    changed = make(weights=weights, allow_change=True)
    fit(changed, keys, ckpt=tmp_path / "ckpt" / "step-4.ckpt", max_epochs=4)
    counts = {count.name: count for count in changed.lane_counts()}
    for lane in ("old/local", "new/local"):
        assert counts[lane].share == keys.lanes[lane] / sum(keys.lanes.values())
        assert counts[lane].drawn > keys.lanes[lane]
    assert counts["new/local"].wanted == pytest.approx(0.9, abs=1e-3)


def test_the_mixture_of_several_data_sets_is_shown_at_the_end(
    make: Make, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, logger="datamodules"):
        fit(make(weights={"old/local": 3.0, "new/local": 1.0}))
    (table,) = [m for m in caplog.messages if m.startswith("trained on")]
    assert table.splitlines()[1].split() == [
        "lane", "samples", "drawn", "wanted", "share", "epochs",
    ]  # fmt: skip
    assert table.splitlines()[3].split() == ["old/local", "6", "18", "75.00%", "75.00%", "3.00"]


@pytest.mark.slow
def test_few_samples_gone_through_very_often_are_warned_of_once_before_training(
    make: Make, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, logger="datamodules"):
        fit(make(weights={"old/local": 3.0, "new/local": 1.0}, global_batch=64), max_epochs=2)
        assert caplog.messages == []
        fit(make(weights={"old/local": 1.0, "new/local": 3.0}, global_batch=64), max_epochs=2)
    (told,) = [message for message in caplog.messages if "training goes through" in message]
    assert "by its end training goes through new/local 144 times (2 samples), more than 100" in told


REFUSED = {
    "zero": (
        {"old/local": 0.0, "add": -1.0, "depth": 1.0},
        r"task 'old/local' has weight 0\.0, task 'add' has weight -1\.0, needs one above 0",
    ),
    "unknown": (
        {"old/depth": 1.0, "lokal": 1.0, "new/local": 1.0},
        r"names task 'old/depth', 'lokal', data\.train has .* mean 'depth'\? Did you mean 'local'",
    ),
    "both": (
        {"local": 1.0, "old/local": 1.0, "depth": 1.0},
        r"names both 'local' and 'old/local'; give task 'local' one weight, or one for each data",
    ),
    "idle": (
        {"add": 1.0},
        r"draws nothing from data set 'new' \(local, depth\); give a task of it",
    ),
    "tiny": (
        {"local": 1e-4, "add": 1.0, "depth": 1.0},
        r"task 'new/local' has 1\.2e-05 of the sum, task 'old/local' has .* at least 1/4096",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_cannot_be_drawn_by_are_refused_with_the_list(make: Make, name: str):
    weights, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        make(weights=weights).setup("fit")


def test_a_kind_with_hardly_any_pairs_is_drawn_all_the_same():
    folder = folder_of("", {"local": 1})
    sizes = {"noop": 100_000, "swap": 1}
    kinds = [
        Lane("", "local", kind, folder, (ShardEntry("local", f"{kind}.tar", 1, kind, size),))
        for kind, size in sizes.items()
    ]
    mixture = mixture_of(kinds, {"local": 2.0})
    assert sum(mixture.quotas) == PERIOD
    assert 1 <= mixture.by_name()["local:swap"] <= 2


def test_folders_that_cannot_be_mixed_are_refused(make: Make, tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.train is empty; give a folder of shards"):
        make(train={})
    with pytest.raises(InputError, match=r"names a data set 'a/b'; a name is letters"):
        make(train={"a/b": "x"})
    old = str(tmp_path / "old")
    with pytest.raises(InputError, match=r"data sets 'a' and 'b' .* hold the same shard local-0"):
        make(train={"b": old, "a": old}).setup("fit")


def test_a_change_of_the_order_of_tasks_is_a_change():
    old = {"quotas": {"a": 1, "b": 1}}
    assert changes(old, {"quotas": {"b": 1, "a": 1}}) == {
        "quotas": "the order of tasks was a, b, is b, a"
    }
    assert changes(old, old) == {}


def test_a_folder_alone_has_the_empty_name():
    assert named_folders("shards") == {"": "shards"}
    assert named_folders({"a": "x", "": "y"}) == {"a": "x", "": "y"}


@pytest.mark.parametrize(
    ("given", "folders"),
    [
        (["--data.train", "shards"], {"": "shards"}),
        (["--data.train", "{a: x, b: 'https://h/y'}"], {"a": "x", "b": "https://h/y"}),
        (["--data.train.a", "x", "--data.train.b", "y"], {"a": "x", "b": "y"}),
    ],
)
def test_folders_are_given_alone_or_by_name_on_the_command_line(
    given: list[str], folders: dict[str, str]
):
    parser = ArgumentParser()
    parser.add_subclass_arguments(EditDataModule, "data")
    config = parser.parse_args(["--data=EditDataModule", *given, "--data.weights", "{b/add: 2}"])
    data = parser.instantiate(config)["data"]
    assert data.train_folders == folders
    assert data.weights == {"b/add": 2.0}
