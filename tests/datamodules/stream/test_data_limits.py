"""What only the model knows of a sample is known to who reads it: long texts, sizes, tasks."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from callbacks.skip_counts import FEW, SkipCounts, SkipLimits
from callbacks.skipped import FILE, Skipped
from datamodules.edit import EditDataModule
from datamodules.shards.manifest import write_manifest
from datamodules.shards.writer import write_task_shards
from datamodules.stream.limits import LongTexts, TextRule
from emu_edit.batch import TEXT_TOO_LONG, BadSample
from emu_edit.errors import BadDataError, BadSampleError, ExitStatus, InputError
from emu_edit.models.interfaces import TextLimit
from emu_edit.models.tiny import TinyText
from tests.datamodules.toy import SaveEverything
from tests.datamodules.toy_shards import records
from tests.training.stage import SIZE, TRAINER_WARNINGS, make_module

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]

LONG = " ".join(f"word {i}," for i in range(60))
LONG_KEY = "local_00003"
WORDS = TextLimit(3, lambda text: len(text.split(" ")) if text else 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of 8 + 4 pairs, one of which has an instruction of some 240 tokens."""
    local = list(records("local", 8))
    local[3] = replace(local[3], instruction=LONG)
    pairs = {"local": local, "add": list(records("add", 4))}
    folder = tmp_path / "data"
    folder.mkdir()
    entries = [e for task, own in pairs.items() for e in write_task_shards(folder, task, own)]
    write_manifest(folder, entries, made_by={"program": "test"})
    return folder


def train(data: Path, run: Path, *, ckpt: Path | None = None, **options: Any):
    module = make_module()
    given = EditDataModule(
        str(data),
        image_size=SIZE,
        global_batch=4,
        steps_per_epoch=4,
        tasks=list(module.networks.tasks.names),
        **options,
    )
    skipped = Skipped(every=1, after=1, max_fraction=0.0, max_shard_fraction=0.0)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=run,
        callbacks=[SaveEverything(run), skipped],
    )
    trainer.fit(module, datamodule=given, ckpt_path=None if ckpt is None else str(ckpt))
    return module, skipped.counts


def test_a_text_is_cut_behind_the_last_word_that_fits():
    assert WORDS.cut("make it blue now please") == "make it blue"
    assert WORDS.cut("make it blue") == "make it blue"
    limit = TinyText(dim=16, num_layers=1, num_heads=2, max_tokens=20).limit
    cut = limit.cut(LONG)
    rest = LONG.removeprefix(cut)
    assert limit.fits(cut)
    assert rest.startswith(" ")
    assert not limit.fits(cut + " " + rest.split(" ")[1])


def test_a_first_word_that_does_not_fit_is_cut_itself_and_no_character_is_halved():
    limit = TinyText(dim=16, num_layers=1, num_heads=2, max_tokens=10).limit
    cut = limit.cut("🦄" * 300)
    assert cut
    assert set(cut) == {"🦄"}
    assert limit.fits(cut)
    assert not limit.fits(cut + "🦄")


def test_what_becomes_of_long_wordings_is_the_rules():
    wordings = ["a b", "a b c d", "e"]
    assert [one.text for one in TextRule()(wordings, "x")] == wordings
    cut = TextRule(WORDS)(wordings, "x")
    assert [one.text for one in cut] == ["a b", "a b c", "e"]
    assert [bool(one.reason) for one in cut] == [False, True, False]
    skip = TextRule(WORDS, LongTexts.skip)
    assert [one.text for one in skip(wordings, "x")] == ["a b", "e"]
    with pytest.raises(BadSampleError, match=r"x: the instruction has 4 tokens, .* most 3") as no:
        skip(["a b c d"], "x")
    assert no.value.kind == TEXT_TOO_LONG
    with pytest.raises(BadDataError, match=r"x: .*; shorten it, or choose long_texts: truncate"):
        TextRule(WORDS, LongTexts.refuse)(wordings, "x")


@pytest.mark.parametrize("rule", [LongTexts.truncate, LongTexts.skip])
def test_one_long_caption_ends_no_training_and_a_resumed_one_is_the_same_bit_for_bit(
    rule: LongTexts, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        module, counts = train(data, tmp_path / "run", long_texts=rule)
    assert counts.seen == 32
    if rule is LongTexts.skip:
        assert not counts.cut
        assert counts.kinds == {"local": {TEXT_TOO_LONG: counts.skipped}}
        lines = (tmp_path / "run" / FILE).read_text().splitlines()
        assert {json.loads(line)["key"] for line in lines} == {LONG_KEY}
        assert f"sample '{LONG_KEY}' cannot be used (the instruction has" in caplog.text
    else:
        assert counts.skipped == 0
        assert set(counts.cut) == {"local"}
        assert caplog.text.count(f"sample '{LONG_KEY}': the instruction has") == 1  # said once
        assert f"{counts.cut['local']} of 32 instructions were longer" in caplog.text
    ckpt = tmp_path / "run" / "step-3.ckpt"
    resumed, again = train(data, tmp_path / "run", ckpt=ckpt, long_texts=rule)
    assert again == counts
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_long_caption_is_refused_by_name_before_the_first_step_if_so_wished(
    data: Path, tmp_path: Path
):
    with pytest.raises(
        BadDataError, match=rf"sample '{LONG_KEY}': the instruction has \d+ tok"
    ) as e:
        train(data, tmp_path / "run", long_texts=LongTexts.refuse)
    assert e.value.status is ExitStatus.bad_data
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_a_long_or_broken_pair_of_validation_ends_no_training_and_is_named_once(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        train(data, tmp_path / "run", val=str(data), long_texts=LongTexts.skip)
    assert caplog.text.count(f"'{LONG_KEY}' cannot be used (the instruction") == 2  # train and val
    assert caplog.text.count("validation measures another in its place") == 1


def test_the_rule_for_long_texts_is_part_of_what_a_checkpoint_was_trained_with(
    data: Path, tmp_path: Path
):
    train(data, tmp_path / "run")
    with pytest.raises(InputError, match="trained with other data: long_texts was None, is 'skip'"):
        train(
            data,
            tmp_path / "run",
            ckpt=tmp_path / "run" / "step-3.ckpt",
            long_texts=LongTexts.skip,
        )


def test_sizes_and_tasks_that_are_not_the_models_are_refused_before_the_first_step(
    data: Path, tmp_path: Path
):
    def stage(**options: Any) -> tuple[Trainer, Any]:
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1,
            enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        return trainer, EditDataModule(str(data), **options)

    trainer, odd = stage(image_size=18, tasks=["local", "add", "style"])
    with pytest.raises(InputError, match=r"data.image_size=18 is no multiple of 4.*; set 16 or 20"):
        trainer.fit(make_module(), datamodule=odd)
    trainer, other = stage(image_size=16, tasks=["add", "local"])
    with pytest.raises(InputError, match=r"data.tasks is add, local, but the model's tasks are l"):
        trainer.fit(make_module(), datamodule=other)


def test_what_is_left_out_by_choice_is_counted_and_not_held_against_the_limits():
    bad = [
        BadSample(i, "local", "data/local-000000.tar", i, 20, f"k{i}", TEXT_TOO_LONG, "long")
        for i in range(3 * FEW)
    ]
    counts = SkipCounts()
    counts.add(20, bad)
    assert counts.skipped == 3 * FEW
    assert counts.scalars()["data/skipped/local"] == 3 * FEW
    counts.refuse_too_many(SkipLimits(0.0, 1, 0.0), "skipped.jsonl")
    assert SkipCounts.from_dict(counts.to_dict()) == counts
