import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks.skip_counts import FEW, SkipCounts, SkipLimits, TooManySkippedError
from callbacks.skipped import FILE, Skipped
from datamodules.edit import EditDataModule
from emu_edit.batch import BadSample
from emu_edit.errors import BadDataError, ExitStatus, InputError
from tests.datamodules.bad_shards import spoil
from tests.datamodules.toy import SaveEverything, Toy, fit, make_trainer
from tests.datamodules.toy_shards import make_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # runs of a few steps are shorter than Lightning's logging interval
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    # Lightning 2.6 asks torch 2.13 in a way that has a successor
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

BATCH, STEPS, EPOCHS = 4, 4, 2
FAULTS = {"local_00003": "source", "local_00006": "json", "add_00004": "target"}
Run = Callable[..., tuple[Toy, Skipped]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of 10 + 6 samples in shards of 4, three of which cannot be used."""
    make_folder(tmp_path / "data", {"local": 10, "add": 6})
    spoil(tmp_path / "data", FAULTS)
    return tmp_path / "data"


def module(data: Path, micro_batch: int = 2, workers: int = 0) -> EditDataModule:
    return EditDataModule(
        str(data),
        image_size=8,
        global_batch=BATCH,
        micro_batch=micro_batch,
        steps_per_epoch=STEPS,
        window=2,
        num_workers=workers,
    )


def train(
    data: EditDataModule, folder: Path, *callbacks: Any, ckpt: Path | None = None, **limits: Any
) -> tuple[Toy, Skipped]:
    """Train the toy; a callback that saves comes before the one that counts."""
    skipped = Skipped(**({"max_fraction": 1.0, "every": 3} | limits))
    toy = fit(data, *callbacks, skipped, ckpt=ckpt, max_epochs=EPOCHS, default_root_dir=folder)
    return toy, skipped


def listed(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def expected(data: Path, count: int = BATCH * STEPS * EPOCHS) -> list[BadSample]:
    """Return what the samples of the stream say themselves, read one by one."""
    source = module(data)
    source.setup("fit")
    samples = source.train_dataloader()._samples
    return [bad for g in range(count) for bad in samples[g].bad]


def test_every_bad_sample_that_was_trained_around_is_listed_once_and_counted(
    data: Path, tmp_path: Path
):
    bad = expected(data)
    assert {sample.key for sample in bad} == FAULTS.keys()
    _, skipped = train(module(data), tmp_path / "run")
    assert listed(tmp_path / "run") == [asdict(sample) for sample in bad]
    assert skipped.counts.seen == BATCH * STEPS * EPOCHS
    assert skipped.counts.skipped == len(bad)
    for kind in ("source_unreadable", "text_unusable"):
        assert skipped.counts.kinds["local"][kind] == sum(sample.kind == kind for sample in bad)
    assert skipped.counts.bad[str(data / "local-000000.tar")] == {3}


def assert_every_resume_counts_on(data: Path, tmp_path: Path, micro: int, workers: int) -> None:
    run, saved = tmp_path / "run", tmp_path / "saved"
    saved.mkdir()
    whole, counted = train(module(data, micro, workers), run, SaveEverything(saved))
    text = (run / FILE).read_text()
    for file in sorted(saved.glob("*.ckpt")):
        # in the same folder, whose list holds more than the checkpoint knows
        toy, skipped = train(module(data, micro, workers), run, ckpt=file)
        assert toy.weights() == whole.weights(), file.name
        assert skipped.counts == counted.counts, file.name
        assert (run / FILE).read_text() == text, file.name


def test_a_resumed_training_counts_on_and_lists_nothing_twice(data: Path, tmp_path: Path):
    assert_every_resume_counts_on(data, tmp_path, micro=2, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize("micro", [1, 4])
def test_a_resumed_training_with_workers_counts_on(data: Path, tmp_path: Path, micro: int):
    assert_every_resume_counts_on(data, tmp_path, micro=micro, workers=2)


def test_lines_of_a_training_that_died_are_dropped_with_a_cut_one(data: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(module(data), run)
    text = (run / FILE).read_text()
    ahead = json.dumps({"position": 10**6}) + "\n"
    (run / FILE).write_text(text + ahead + '{"position": 3, "ke')
    train(module(data), run)  # from the beginning: every line comes again
    assert (run / FILE).read_text() == text


def train_with_log(data: EditDataModule, skipped: Skipped, folder: Path) -> None:
    """Train in `folder`/run and log to `folder`/logs."""
    trainer = make_trainer(skipped, max_epochs=EPOCHS, default_root_dir=folder / "run")
    trainer.logger = CSVLogger(folder, name="", version="logs")
    trainer.fit(Toy(), datamodule=data)


def test_good_data_leave_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_folder(tmp_path / "good", {"local": 6})
    skipped = Skipped(every=1, max_fraction=0.0, max_shard_fraction=0.0)
    train_with_log(module(tmp_path / "good"), skipped, tmp_path)
    assert not (tmp_path / "run" / FILE).exists()
    metrics = tmp_path / "logs" / "metrics.csv"
    assert not metrics.exists() or "data/skipped" not in metrics.read_text()
    assert not [record for record in caplog.records if record.name.startswith("callbacks")]
    assert skipped.counts == SkipCounts(seen=BATCH * STEPS * EPOCHS)


def test_counts_are_logged_by_task_and_kind(data: Path, tmp_path: Path):
    skipped = Skipped(max_fraction=1.0)
    train_with_log(module(data), skipped, tmp_path)
    header, *rows = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    for name, value in skipped.counts.scalars().items():
        assert float(last[name]) == value
    assert {"data/skipped/add", "data/skipped/local/text_unusable"} <= last.keys()


def test_the_first_bad_sample_and_the_sum_are_said(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    _, skipped = train(module(data), tmp_path / "run", every=1)
    first, last = (record for record in caplog.records if record.name == "callbacks.skipped")
    key = listed(tmp_path / "run")[0]["key"]
    assert f"sample {key!r} cannot be used (" in first.getMessage()
    assert f"{skipped.counts.skipped} of 32 samples could not be used" in last.getMessage()


def test_above_the_limit_training_ends_with_a_table(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    saved = tmp_path / "saved"
    saved.mkdir()
    with pytest.raises(
        TooManySkippedError,
        match=r"of 24 samples \(\d+\.\d+%\) could not be used, allowed are 1\.00% after 20: "
        r".*add \d.*local \d .*text_unusable \d.*are listed in .*run/skipped\.jsonl; .*raise max_f",
    ) as caught:
        train(module(data), tmp_path / "run", SaveEverything(saved), max_fraction=0.01, after=20)
    assert caught.value.status is ExitStatus.bad_data
    assert "\n" not in str(caught.value)
    # looked at after steps 3 and 6: 12 samples are too few to judge, 24 are not
    assert {path.name for path in saved.glob("step-*")} == {f"step-{i}.ckpt" for i in range(1, 7)}
    table = caplog.records[-1].getMessage()
    assert "local  text_unusable" in table
    assert f"{data}/local-000000.tar  1 of 4" in table


def test_within_the_limit_training_goes_on(data: Path, tmp_path: Path):
    _, skipped = train(module(data), tmp_path / "run", max_fraction=0.9, after=1)
    assert skipped.counts.seen == BATCH * STEPS * EPOCHS


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_one_broken_shard_ends_training_whatever_the_rest(tmp_path: Path, share: float):
    make_folder(tmp_path / "data", {"local": 8, "add": 8}, pairs_per_shard=8)
    spoil(tmp_path / "data", {f"add_{i:05d}": "target" for i in range(FEW + 1)})
    make = {"max_shard_fraction": share, "every": STEPS * EPOCHS}
    if share == 1.0:
        train(module(tmp_path / "data"), tmp_path / "run", **make)
        return
    with pytest.raises(
        TooManySkippedError,
        match=r"add-000000\.tar: 4 of its 8 samples cannot be used, allowed are 5\.00%; fetch or",
    ):
        train(module(tmp_path / "data"), tmp_path / "run", **make)


def bad_sample(position: int, index: int, samples: int = 100) -> BadSample:
    return BadSample(position, "local", "a.tar", index, samples, f"k{index}", "sizes_differ", "no")


def test_few_bad_samples_of_a_small_shard_are_no_broken_shard():
    limits = SkipLimits(fraction=1.0, after=0, shard_fraction=0.05)
    counts = SkipCounts()
    counts.add(1000, [bad_sample(g, g, samples=4) for g in range(FEW)])
    counts.refuse_too_many(limits, "skipped.jsonl")
    counts.add(0, [bad_sample(3, 3, samples=4)])
    with pytest.raises(TooManySkippedError, match=r"a\.tar: 4 of its 4 samples"):
        counts.refuse_too_many(limits, "skipped.jsonl")


def test_a_sample_that_comes_in_every_epoch_is_one_bad_sample_of_its_shard():
    counts = SkipCounts()
    counts.add(1000, [bad_sample(g, 7) for g in range(20)])
    assert counts.skipped == 20
    assert counts.bad == {"a.tar": {7}}
    counts.refuse_too_many(SkipLimits(0.02, 0, 0.05), "skipped.jsonl")


def test_the_counters_survive_a_checkpoint_as_primitives(tmp_path: Path):
    counts = SkipCounts()
    counts.add(50, [bad_sample(3, 9), replace(bad_sample(4, 2), task="add", shard="b.tar")])
    torch.save(counts.to_dict(), tmp_path / "state.pt")
    assert SkipCounts.from_dict(torch.load(tmp_path / "state.pt", weights_only=True)) == counts
    with pytest.raises(BadDataError, match="counts skipped samples in version 7, this program in"):
        SkipCounts.from_dict(counts.to_dict() | {"version": 7})


def test_a_list_that_cannot_be_written_does_not_end_training(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "run" / FILE).mkdir(parents=True)
    _, skipped = train(module(data), tmp_path / "run")
    assert skipped.counts.seen == BATCH * STEPS * EPOCHS
    assert "cannot be written" in "".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"Skipped\.every must be at least 1, got 0"),
        ({"max_fraction": 1.5}, r"Skipped\.max_fraction=1\.5 must be a share"),
        ({"max_shard_fraction": -0.1}, r"Skipped\.max_shard_fraction=-0\.1 must be a share"),
    ],
)
def test_limits_that_mean_nothing_are_refused(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        Skipped(**options)
