"""A mixture that is steered: what is drawn, by whom, and what a restart goes on with."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.edit import EditDataModule
from datamodules.shards.folder import LocalFolder
from datamodules.shards.manifest import Manifest, ShardEntry
from datamodules.stream.course import Course
from datamodules.stream.mixing import DataSet, lanes_of, mixture_of
from datamodules.stream.order import PERIOD, Order
from datamodules.stream.resume import StreamState
from tests.datamodules.toy import SaveEverything, Toy, fit
from tests.datamodules.toy_shards import make_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 asks torch 2.13 in a way that has a successor
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

# of each data set: samples of each task and kind
KINDS = {
    "old": {("text", "add"): 30, ("text", "replace"): 10, ("local", ""): 20},
    "new": {("text", "add"): 10, ("depth", ""): 5},
}
SCHEDULE = ({"local": 0.8, "add": 0.1, "depth": 0.1}, {"local": 0.1, "add": 0.6, "depth": 0.3})
Make = Callable[..., EditDataModule]


def course(**options: Any) -> Course:
    """Return the course over shards that are nowhere."""
    sets = []
    for name, kinds in KINDS.items():
        entries = tuple(
            ShardEntry(task, f"{task}-{kind}.tar", 1, f"{name} {task} {kind}", count, kind)
            for (task, kind), count in kinds.items()
        )
        sets.append(DataSet(name, LocalFolder(Path(name), Manifest(entries, {}))))
    return Course(mixture_of(lanes_of(sets), **{"weights": None, **options}), seed=3, window=2)


def drawn(followed: Course, first: int, count: int) -> list[tuple[str, int, int]]:
    """Return lane, epoch and sample of some draws."""
    order, names = Order(followed.spec), [lane.name for lane in followed.mixture.lanes]
    places = (order(g) for g in range(first, first + count))
    return [(names[place.lane], place.epoch, place.sample) for place in places]


def test_kinds_of_a_task_share_its_weight_by_their_samples_and_so_do_data_sets():
    found = course(weights={"text": 5.0, "local": 2.0, "depth": 1.0}).mixture.by_name()
    assert found == {
        "new/text:add": PERIOD * 1 // 8,
        "new/depth": PERIOD * 1 // 8,
        "old/text:add": PERIOD * 3 // 8,
        "old/text:replace": PERIOD * 1 // 8,
        "old/local": PERIOD * 2 // 8,
    }
    by_set = course(weights={"old/text": 4.0, "new/text": 1.0, "local": 2.0, "depth": 1.0}).mixture
    assert by_set.by_name() == found


def test_groups_get_the_shares_they_are_given_and_their_lanes_share_as_before():
    steered = course()
    shares = {"text:add": 0.5, "text:replace": 0.25, "local": 0.125, "depth": 0.125}
    assert sum(steered.mixture.shares().values()) == pytest.approx(1)
    assert steered.mixture.shares().keys() == shares.keys()
    steered.consumed = 40
    steered.steer(shares)
    counts = Counter(name for name, _, _ in drawn(steered, 40, PERIOD))
    assert counts == {
        "old/text:add": PERIOD * 3 // 8,
        "new/text:add": PERIOD // 8,
        "old/text:replace": PERIOD // 4,
        "old/local": PERIOD // 8,
        "new/depth": PERIOD // 8,
    }


def test_nothing_is_steered_out_of_the_stream():
    steered = course()
    steered.steer({"text:add": 1.0, "text:replace": 0.0, "local": 1e-9, "depth": 1e-5})
    quotas = steered.mixture.steered({"text:add": 1.0, "text:replace": 0.0, "local": 0, "depth": 0})
    assert sum(quotas.values()) == PERIOD
    assert min(quotas.values()) >= 1
    assert set(Counter(name for name, _, _ in drawn(steered, 0, PERIOD))) == set(quotas)


def test_each_lane_goes_on_where_it_was_over_any_number_of_changes():
    steered, seen = course(), []
    for k in range(6):
        seen += drawn(steered, steered.consumed, 90)
        steered.consumed += 90
        rest = 0.4 + 0.1 * k
        others = (1 - rest) / 3
        steered.steer({"text:add": rest, "text:replace": others, "local": others, "depth": others})
    unsteered = drawn(course(), 0, 2000)
    for lane in steered.mixture.lanes:
        own = [place for place in seen if place[0] == lane.name]
        assert own == [place for place in unsteered if place[0] == lane.name][: len(own)]
    counts = {count.name: count.drawn for count in steered.count()}
    assert counts == Counter(name for name, _, _ in seen)


def test_a_course_is_restored_from_its_state():
    steered, again = course(), course()
    for consumed in (64, 128):
        steered.consumed = consumed
        steered.steer({"text:add": 0.7, "text:replace": 0.1, "local": 0.1, "depth": 0.1})
    steered.consumed += 32
    state = StreamState.from_dict(steered.state(1, {}).to_dict())
    again.restore(state, {}, allow_change=False)
    assert drawn(again, 160, 500) == drawn(steered, 160, 500)
    assert again.state(1, {}) == state
    assert "steered" not in course().state(1, {}).to_dict()


def test_after_a_change_of_the_weights_lanes_go_on_from_a_steered_stream():
    steered = course()
    steered.steer({"text:add": 0.7, "text:replace": 0.1, "local": 0.1, "depth": 0.1})
    steered.consumed = 100
    changed = course(weights={"text": 1.0, "local": 2.0, "depth": 1.0})
    changed.restore(steered.state(1, {}), {}, allow_change=True)
    assert {c.name: c.drawn for c in changed.count()} == {c.name: c.drawn for c in steered.count()}
    assert changed.spec.stretch.quotas == changed.mixture.quotas


class Steer(Callback):
    """Steer by a schedule at the end of every epoch, and note the keys of all samples."""

    def __init__(self, schedule: tuple[Mapping[str, float], ...] = SCHEDULE) -> None:
        self.schedule, self.keys = schedule, []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del trainer, pl_module, batch_idx
        self.keys += batch.key

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        shares = self.schedule[trainer.current_epoch % len(self.schedule)]
        trainer.datamodule.steer(shares)  # type: ignore[attr-defined]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes the data module of one small folder."""
    make_folder(tmp_path / "train", {"local": 30, "add": 20, "depth": 10})

    def make_data(**options: Any) -> EditDataModule:
        settings = {"global_batch": 8, "steps_per_epoch": 5, "image_size": 8, "window": 2}
        return EditDataModule(str(tmp_path / "train"), **{**settings, **options})

    return make_data


def trained(make: Make, **options: Any) -> tuple[Toy, list[str]]:
    steer = Steer()
    toy = fit(make(**options), steer, max_epochs=3)
    return toy, steer.keys


def test_shares_hold_from_the_first_sample_of_the_next_epoch(make: Make):
    _, keys = trained(make)
    for epoch, shares in enumerate(({"local": 1 / 3, "add": 1 / 3, "depth": 1 / 3}, *SCHEDULE)):
        counts = Counter(key.split("_")[0] for key in keys[40 * epoch : 40 * epoch + 40])
        for task, share in shares.items():
            assert abs(counts[task] - 40 * share) < 1 + 3 * share  # see `order`


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 1, "micro_batch": 2}])
@pytest.mark.slow
def test_workers_that_read_ahead_draw_by_the_shares_of_their_epoch(make: Make, options: dict):
    # each has the whole epoch of 5 or 20 batches in hand, or begins the next, long before its end
    toy, keys = trained(make)
    other, with_workers = trained(make, **options)
    assert with_workers == keys
    torch.testing.assert_close(other.weights(), toy.weights(), rtol=1e-12, atol=0)


def test_a_steered_training_resumes_exactly_from_any_step(make: Make, tmp_path: Path):
    whole = Steer()
    toy = fit(make(), whole, SaveEverything(tmp_path / "ckpt"), max_epochs=3)
    for name in ("step-3", "epoch-0", "step-6", "step-9", "epoch-1", "step-12"):
        rest = Steer()
        file = tmp_path / "ckpt" / f"{name}.ckpt"
        steps = torch.load(file, weights_only=True)["global_step"]
        again = fit(make(), rest, ckpt=file, max_epochs=3)
        assert rest.keys == whole.keys[8 * steps :], name
        assert again.weights() == toy.weights(), name


def test_held_out_positions_are_told_by_group(make: Make, tmp_path: Path):
    make_folder(tmp_path / "val", {"local": 3, "add": 2})
    data = make(val=str(tmp_path / "val"))
    data.setup("fit")
    names, groups = data.held_out_groups()
    found = [
        names[groups[position]]
        for batch in data.val_dataloader()
        for position in batch.position.tolist()
    ]
    assert found == ["local"] * 3 + ["add"] * 2
    without = make()
    without.setup("fit")
    assert without.held_out_groups()[0] == ()
