"""Instructions for the task predictor: the world's own, paraphrases, and those of shard folders."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.shards.manifest import write_manifest
from datamodules.shards.writer import write_task_shards
from datamodules.stream import reader
from datamodules.world import predictor_texts as instructions
from datamodules.world.everyday.sentences import everyday
from datamodules.world.instructions import corpus, slots_of
from datamodules.world.pair import make_pair
from datamodules.world.palette import HELDOUT_PAIRS
from datamodules.world.phrasings import PARAPHRASES, PHRASINGS
from datamodules.world.predictor_texts import (
    paraphrase_words,
    paraphrases,
    shard_instructions,
    training_instructions,
    unseen_instructions,
    world_instructions,
)
from datamodules.world.write import write_world
from emu_edit.errors import InputError, ShardError
from emu_edit.tasks import SIXTEEN
from emu_edit.text_rules import clean_instruction
from tests.datamodules.bad_shards import spoil
from tests.datamodules.toy_shards import make_folder, records


def sentences(split: str) -> set[str]:
    return {t for kinds in PHRASINGS.values() for k in kinds.values() for t in getattr(k, split)}


def words_of(template: str) -> set[str]:
    return set(re.findall(r"[a-z']+", re.sub(r"\{.*?\}", " ", template).lower()))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_worlds_instructions_are_those_of_its_pairs(split: str) -> None:
    found = world_instructions(3, 32, split=split)
    assert [task for _, task in found] == [*SIXTEEN.names, *SIXTEEN.names]
    for index in (0, 5, 11, 14, 31):
        assert found[index][0] == make_pair(3, index, size=64, split=split).instruction


def test_an_instruction_is_a_function_of_seed_and_index() -> None:
    assert world_instructions(3, 20) == world_instructions(3, 32)[:20]
    assert world_instructions(3, 20) != world_instructions(4, 20)
    assert paraphrases(3, 20) == paraphrases(3, 40)[:20]
    assert paraphrases(3, 20) != paraphrases(4, 20)


def test_no_paraphrase_is_a_sentence_of_the_world() -> None:
    given = sentences("train") | sentences("heldout")
    for templates in PARAPHRASES.values():
        assert not given & set(templates)
        assert len(set(templates)) == len(templates) >= 9


def test_no_paraphrase_has_a_word_that_only_held_out_sentences_have() -> None:
    trained = set().union(*map(words_of, sentences("train")))
    only_held_out = set().union(*map(words_of, sentences("heldout"))) - trained
    assert {"vanish", "wrap", "pixels"} <= only_held_out
    for templates in PARAPHRASES.values():
        for template in templates:
            assert not words_of(template) & only_held_out, template


def test_no_paraphrase_has_a_combination_that_is_held_out() -> None:
    texts = " | ".join(text for text, _ in paraphrases(0, 3200))
    assert all(f"{colour} {shape}" not in texts for colour, shape in HELDOUT_PAIRS)
    known = [*paraphrase_words()["thing"], *paraphrase_words()["new"], *paraphrase_words()["scene"]]
    assert all(f"{c} {s}" not in " | ".join(known) for c, s in HELDOUT_PAIRS)


def test_paraphrases_are_shared_equally_and_clean_and_filled() -> None:
    found = paraphrases(0, 1600)
    assert set(Counter(task for _, task in found).values()) == {100}
    for text, _ in found:
        assert clean_instruction(text) == text
        assert "{" not in text
        assert not any(f" a {vowel}" in f" {text} " for vowel in "aeiou")


def test_every_slot_of_every_paraphrase_has_words() -> None:
    for templates in PARAPHRASES.values():
        for template in templates:
            assert set(slots_of(template)) <= set(paraphrase_words())


def test_no_paraphrase_reads_like_another_tasks_sentence() -> None:
    tasks = dict([*corpus("train"), *corpus("heldout")])
    for text, task in paraphrases(0, 8000):
        assert tasks.setdefault(text, task) == task, text


def test_shards_are_read_without_their_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, {"local": 6, "add": 3})
    roles = []
    read = reader.OpenShard.member

    def watched(shard: reader.OpenShard, sample: int, role: str) -> bytes | None:
        roles.append(role)
        return read(shard, sample, role)

    monkeypatch.setattr(reader.OpenShard, "member", watched)
    expected = [
        (f"do {task} number {i}", task) for task, n in (("local", 6), ("add", 3)) for i in range(n)
    ]
    assert shard_instructions(tmp_path) == expected
    assert set(roles) == {"json"}


@pytest.mark.parametrize(
    ("most", "picked"), [(1, [0]), (3, [0, 4, 8]), (4, [0, 3, 6, 9]), (99, [*range(10)])]
)
def test_at_most_so_many_texts_of_a_task_are_read_at_equal_distances(
    tmp_path: Path, most: int, picked: list[int]
) -> None:
    make_folder(tmp_path, {"local": 10, "add": 1}, pairs_per_shard=4)
    found = shard_instructions(tmp_path, most_per_task=most)
    assert found == [
        *((f"do local number {i}", "local") for i in picked),
        ("do add number 0", "add"),
    ]


def test_other_wordings_are_read_too_and_progress_counts_pairs(tmp_path: Path) -> None:
    first, second = records("local", 2)
    pairs = [replace(first, extra={"instruction_alt": ["in other words"]}), second]
    write_manifest(tmp_path, write_task_shards(tmp_path, "local", pairs), made_by={})
    steps: list[tuple[int, int]] = []
    found = shard_instructions(tmp_path, on_step=lambda done, total: steps.append((done, total)))
    assert found == [
        ("do local number 0", "local"),
        ("in other words", "local"),
        ("do local number 1", "local"),
    ]
    assert steps == [(2, 2)]


def test_a_text_that_cannot_be_used_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_folder(tmp_path, {"local": 3})
    spoil(tmp_path, {"local_00001": "json"})
    found = shard_instructions(tmp_path)
    assert [text for text, _ in found] == ["do local number 0", "do local number 2"]
    assert (
        "1 texts cannot be used, the first: local-000000.tar: sample 'local_00001'" in caplog.text
    )


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="is not a shard folder"):
        shard_instructions(tmp_path)


def test_too_few_instructions_and_unknown_splits_are_refused() -> None:
    with pytest.raises(InputError, match="0 instructions are too few"):
        world_instructions(0, 0)
    with pytest.raises(InputError, match="-1 instructions are too few"):
        paraphrases(0, -1)
    with pytest.raises(InputError, match="unknown split 'test'"):
        world_instructions(0, 1, split="test")


@pytest.mark.slow
def test_training_takes_paraphrases_and_everyday_texts_for_the_world_and_for_no_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instructions, "WORLD_TEXTS", 32)
    monkeypatch.setattr(instructions, "PARAPHRASED_TEXTS", 16)
    monkeypatch.setattr(instructions, "EVERYDAY_TEXTS", 48)
    monkeypatch.setattr(instructions, "UNSEEN_TEXTS", 32)
    make_folder(tmp_path / "own", {"local": 6})
    write_world(tmp_path / "world", 32, size=16, workers=1)
    steps: list[tuple[int, int]] = []
    built_in = training_instructions(None, on_step=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (32, 32)
    assert built_in == [*world_instructions(0, 32), *paraphrases(0, 16), *everyday(0, 48)]
    assert sorted(training_instructions(tmp_path / "world")) == sorted(built_in)
    monkeypatch.setattr(instructions, "WORLD_TEXTS", 33)  # now the folder's 32 are too few
    filled_up = [*built_in, *corpus("train")]
    assert sorted(training_instructions(tmp_path / "world")) == sorted(filled_up)
    assert unseen_instructions(tmp_path / "world") == unseen_instructions(None)
    assert training_instructions(tmp_path / "own") == shard_instructions(tmp_path / "own")
    assert unseen_instructions(tmp_path / "own") == []
