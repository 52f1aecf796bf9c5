"""What is held out, apart: sentences and colour/shape pairs; and the many more ways to ask."""

from pathlib import Path
from string import Formatter

import pytest

from datamodules.shards.manifest import read_manifest
from datamodules.stream.reader import OpenShard
from datamodules.world.data import WorldData
from datamodules.world.instructions import paraphrased_templates, slots_of
from datamodules.world.pair import make_pair
from datamodules.world.palette import HELDOUT_PAIRS, HELDOUT_WORDS
from datamodules.world.phrasings import PHRASINGS
from datamodules.world.sessions import make_noop
from datamodules.world.write import HARD, Extras, write_world
from emu_edit.errors import InputError
from emu_edit.tasks import SIXTEEN

COUNT = 160  # ten of each task
HELD_OUT = tuple(f"{colour} {shape}" for colour, shape in HELDOUT_PAIRS)


def fixed_words(template: str) -> list[str]:
    """The pieces of a sentence between its slots."""
    return [text.strip() for text, _, _, _ in Formatter().parse(template) if text.strip()]


def is_of(instruction: str, task: str, which: str) -> bool:
    """Whether an instruction can be one of a split's phrasings: has all of one's fixed pieces."""
    plain = instruction.replace(" an ", " a ")
    templates = [t for kind in PHRASINGS[task].values() for t in getattr(kind, which)]
    return any(all(piece in plain for piece in fixed_words(t)) for t in templates)


@pytest.mark.parametrize(
    ("split", "sentences"),
    [("train", "train"), ("heldout", "heldout"), ("sentences", "heldout"), ("pairs", "train")],
)
def test_the_sentences_are_those_of_the_split(split: str, sentences: str):
    for index in range(COUNT):
        pair = make_pair(3, index, size=16, split=split)
        assert is_of(pair.instruction, pair.task, sentences), pair.instruction


@pytest.mark.parametrize("split", ["train", "sentences"])
def test_training_figures_are_never_held_out_combinations(split: str):
    for index in range(COUNT):
        pair = make_pair(3, index, size=16, split=split)
        text = f"{pair.source_caption}; {pair.target_caption}"
        assert not any(f"{name} " in f"{text} " for name in HELD_OUT), text


def test_the_split_pairs_has_a_held_out_combination_in_every_region_edit():
    named = 0
    for index in range(COUNT):
        pair = make_pair(3, index, size=16, split="pairs")
        text = f"{pair.source_caption}; {pair.target_caption}; {pair.instruction}"
        if pair.task in {"local", "remove", "texture", "detect", "segment", "add"}:
            assert any(name in text for name in HELD_OUT), text
            named += 1
        if pair.task == "text":
            held = {(pair.extra.get("ink"), pair.extra.get("word"))} & HELDOUT_WORDS
            assert held or pair.extra["kind"] in {"recolour", "replace"}
    assert named == 60


def test_splits_share_no_key_and_no_scene():
    keys = {make_pair(3, 4, size=16, split=s).key for s in ("train", "heldout", "sentences")}
    assert len(keys) == 3


def test_every_kind_of_edit_has_more_ways_to_ask_and_none_is_held_out():
    for task, kinds in PHRASINGS.items():
        heldout = {t for kind in kinds.values() for t in kind.heldout}
        for kind, phrasings in kinds.items():
            templates = paraphrased_templates(task, kind)
            assert templates[: len(phrasings.train)] == phrasings.train
            assert len(set(templates)) >= len(phrasings.train) + 4
            assert not heldout & set(templates)
            slots = {frozenset(slots_of(t)) for t in phrasings.train}
            assert {frozenset(slots_of(t)) for t in templates} <= slots


def test_paraphrases_are_asked_for_and_change_neither_scene_nor_held_out_sentences():
    asked = 0
    for index in range(COUNT):
        plain = make_pair(3, index, size=16)
        other = make_pair(3, index, size=16, paraphrased=True)
        assert (other.source == plain.source).all()
        assert (other.target == plain.target).all()
        asked += not is_of(other.instruction, other.task, "train")
    assert asked > COUNT / 4
    held = make_pair(3, 5, size=16, split="heldout")
    assert make_pair(3, 5, size=16, split="heldout", paraphrased=True).instruction == (
        held.instruction
    )
    noops = [make_noop(3, i, task="remove", size=16, paraphrased=True) for i in range(30)]
    assert any(not is_of(pair.instruction, "remove", "train") for pair in noops)


@pytest.mark.slow
def test_hard_pairs_are_the_next_ones_of_kinds_that_are_learnt_last(tmp_path: Path):
    write_world(tmp_path, 32, size=16, extras=Extras(hard=5))
    data = WorldData(str(tmp_path / "as_data"), 32, hard_pairs=5, image_size=16)
    data.prepare_data()
    for folder in (tmp_path, tmp_path / "as_data" / "train"):
        manifest = read_manifest(folder)
        assert manifest.made_by["hard"] == 5
        for task in SIXTEEN.names:
            shards = [OpenShard(folder / e.file, e) for e in manifest.of_task(task)]
            keys = [shard.key(i) for shard in shards for i in range(len(shard.index))]
            assert len(set(keys)) == len(keys) == 2 + 5 * (task in HARD)
            pairs = [make_pair(0, int(key.rpartition("-")[2]), size=16) for key in keys]
            assert [pair.key for pair in pairs] == keys
            if task in HARD:
                assert {pair.extra["kind"] for pair in pairs[2:]} <= HARD[task]


def test_fewer_than_no_pairs_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.noop_pairs=-1 must be at least 0"):
        WorldData(str(tmp_path), 32, noop_pairs=-1)
    with pytest.raises(InputError, match=r"data\.hard_pairs=-2 must be at least 0"):
        WorldData(str(tmp_path), 32, hard_pairs=-2)


@pytest.mark.slow
def test_a_folder_asked_for_in_other_ways_is_refused(tmp_path: Path):
    WorldData(str(tmp_path / "world"), 32, paraphrased=True, image_size=16).prepare_data()
    WorldData(str(tmp_path / "world"), 32, paraphrased=True, image_size=16).prepare_data()
    with pytest.raises(InputError, match="was made with paraphrased=True, needed is None"):
        WorldData(str(tmp_path / "world"), 32, image_size=16).prepare_data()


@pytest.mark.slow
def test_a_folder_of_other_hard_kinds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = WorldData(str(tmp_path / "world"), 32, hard_pairs=1, image_size=16)
    data.prepare_data()
    monkeypatch.setitem(HARD, "color", frozenset({"blur"}))
    with pytest.raises(InputError, match="was made with hard_kinds="):
        data.prepare_data()
