"""Phrasings and vocabulary: enough of them, disjoint splits, and all of it in the corpus."""

from string import Formatter

import numpy as np
import pytest

from datamodules.world import filters
from datamodules.world.instructions import EFFECTS, FILTERS, STYLES, corpus
from datamodules.world.pair import make_pair
from datamodules.world.palette import (
    BACKGROUNDS,
    BANDS,
    COLOURS,
    HELDOUT_PAIRS,
    INKS,
    MARKS,
    PLACES,
    SHAPES,
    TEXTURES,
    WORDS,
    stands_out,
    visible_colours,
    visible_inks,
)
from datamodules.world.phrasings import PHRASINGS
from datamodules.world.scene import Background, Scene, Thing
from datamodules.world.sprites import bitmap, word_coverage
from emu_edit.tasks import SIXTEEN
from emu_edit.text_rules import clean_instruction


def all_phrasings(task: str, split: str) -> list[str]:
    return [t for kind in PHRASINGS[task].values() for t in getattr(kind, split)]


@pytest.mark.parametrize("task", SIXTEEN.names)
def test_a_task_has_eight_phrasings_and_two_more_held_out(task: str):
    train, heldout = all_phrasings(task, "train"), all_phrasings(task, "heldout")
    assert len(set(train)) >= 8
    assert len(set(heldout)) >= 2
    assert not set(train) & set(heldout)


def test_no_phrasing_belongs_to_two_tasks():
    texts = [text for split in ("train", "heldout") for text, _ in corpus(split)]
    assert len(set(texts)) == len(texts)


def test_each_kind_of_edit_uses_the_same_slots_in_both_splits():
    for kinds in PHRASINGS.values():
        for kind in kinds.values():
            slots = [
                {slot for _, slot, _, _ in Formatter().parse(text) if slot}
                for text in (*kind.train, *kind.heldout)
            ]
            allowed = set.union(*slots)
            assert all(found == allowed or allowed == {"command", "clause"} for found in slots)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_corpus_has_every_task_and_every_word_the_pairs_use(split):
    texts = corpus(split)
    assert {task for _, task in texts} == set(SIXTEEN.names)
    known = {word.strip(",.?:") for text, _ in texts for word in text.split()}
    for index in range(160):
        words = make_pair(7, index, size=16, split=split).instruction.split()
        assert {word.strip(",.?:") for word in words} <= known


def test_the_training_corpus_names_all_words_and_no_held_out_combination():
    texts = [text for text, _ in corpus("train")]
    joined = "\n".join(texts)
    words = (*COLOURS, *SHAPES, *TEXTURES, *WORDS, *BANDS, *INKS, *MARKS, *PLACES, *BACKGROUNDS)
    assert all(word in joined for word in words)
    assert all(f"{colour} {shape}" not in joined for colour, shape in HELDOUT_PAIRS)


def test_every_instruction_is_one_the_editor_accepts():
    for split in ("train", "heldout"):
        for text, _ in corpus(split):
            assert clean_instruction(text) == text


def test_articles_fit_the_word_that_follows():
    for split in ("train", "heldout"):
        for text, _ in corpus(split):
            padded = f" {text} "
            assert not any(f" a {vowel}" in padded for vowel in "aeiou")


def test_every_background_shows_enough_colours_of_each_shape():
    for background in BACKGROUNDS:
        assert len(visible_inks(background)) >= 3
        for shape in SHAPES:
            train = [c for c in visible_colours(background) if (c, shape) not in HELDOUT_PAIRS]
            assert len(train) >= 3


def test_any_colours_together_have_two_backgrounds_to_stand_out_on():
    shared = [b for b in BACKGROUNDS if all(stands_out(colour, b) for colour in COLOURS)]
    assert len(shared) >= 3


def test_every_filter_has_words_and_every_word_a_filter():
    assert set(filters.EFFECTS) == set(EFFECTS)
    assert set(filters.STYLES) == set(STYLES)
    assert set(filters.ADJUSTMENTS) == set(FILTERS) - {"sharpen"}


def test_a_mosaic_has_square_tiles_of_the_mean_colour():
    generator = np.random.default_rng(0)
    picture = generator.random((24, 24, 3), dtype=np.float32)
    tiles = filters.mosaic(picture)
    np.testing.assert_allclose(tiles[0, 0], picture[:2, :2].mean(axis=(0, 1)), rtol=1e-5)
    assert (tiles[:2, :2] == tiles[0, 0]).all()


def test_a_blur_keeps_flat_pictures_and_the_mean_of_a_spot():
    flat = np.full((32, 32, 3), 90, dtype=np.float32)
    np.testing.assert_allclose(filters.blur(flat), flat, rtol=1e-5)
    spot = np.zeros((32, 32, 3), dtype=np.float32)
    spot[16, 16] = 100
    blurred = filters.blur(spot)
    np.testing.assert_allclose(blurred.sum(), 300, rtol=1e-4)
    assert blurred[16, 16, 0] < 60


def test_every_word_can_be_written_and_fits_the_picture():
    for text in WORDS:
        covered = word_coverage(text, "top", 64)
        assert bitmap(text).shape == (7, 6 * len(text) - 1)
        assert covered.sum() == 4 * bitmap(text).sum()  # two by two pixels for each cell
        assert not covered[:, 0].any()
        assert not covered[:, -1].any()


def test_a_word_covers_the_same_area_at_any_size():
    shares = [word_coverage("CAT", "bottom", size).mean() for size in (32, 48, 64, 100)]
    np.testing.assert_allclose(shares, shares[0], rtol=1e-4)


def test_a_caption_tells_the_scene():
    scene = Scene.of(
        Background("beach"),
        (
            Thing("star", "orange", "dotted", 0.2, 0.2, 0.15),
            Thing("circle", "red", "plain", 0.5, 0.7, 0.15),
        ),
    )
    assert scene.caption == "a dotted orange star and a red circle on a beach"
    assert Scene.of(Background("mint"), ()).caption == "nothing on a plain mint backdrop"
