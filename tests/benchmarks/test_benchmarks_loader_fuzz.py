"""Damaged shards are refused or read right; and the fuzzer would notice if they were not."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import loader_fuzz
from benchmarks.loader_damage import (
    DAMAGES,
    FORGERIES,
    content_of,
    joined,
    members_of,
    shuffle_samples,
    trade,
)
from benchmarks.loader_fuzz import (
    SAMPLES,
    WAYS,
    Original,
    Results,
    as_found,
    as_known,
    fuzz,
    make_original,
    run_case,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """The sound shard."""
    return make_original(tmp_path_factory.mktemp("fuzz") / "original")


def test_no_way_of_damage_crashes_hangs_or_mixes_up_samples():
    results = fuzz(0, 2 * len(WAYS))
    assert results.failures == []
    total = sum(results.counts.values(), Counter())
    assert total["refused"] > 80
    assert total["reported"] > 0
    assert total["whole"] >= 4
    assert json.loads(json.dumps(results.to_json()))["outcomes"] == dict(total)
    assert {len(row) for row in results.rows()} == {2 + len(total)}


def test_the_sound_shard_is_read_whole(original: Original, tmp_path: Path):
    assert as_found(original.tar, original, tmp_path, "none") == ("whole", "")
    assert as_known(original.tar, original, tmp_path) == ("whole", "")
    assert len(members_of(original.tar)) == 3 * SAMPLES + SAMPLES // 2
    assert joined(members_of(original.tar)) == original.tar.rstrip(b"\0").ljust(
        len(joined(members_of(original.tar))), b"\0"
    )


@pytest.mark.parametrize("way", DAMAGES | FORGERIES)
def test_every_damage_changes_the_bytes_and_is_the_same_again(original: Original, way: str):
    damage = (DAMAGES | FORGERIES)[way]
    made = [damage(original.tar, np.random.default_rng(seed)) for seed in (0, 0, 1, 2)]
    assert made[0] == made[1]
    assert any(bad != original.tar for bad in made)
    assert len(set(made)) > 1


def test_samples_in_another_order_are_read_right(original: Original, tmp_path: Path):
    moved = shuffle_samples(original.tar, np.random.default_rng(0))
    assert as_found(moved, original, tmp_path, "shuffle_samples") == ("whole", "")


def test_members_of_different_samples_are_noticed(original: Original, tmp_path: Path):
    # seed 0 trades the contents of two pictures: without an index this is a shard like any other
    traded = trade(original.tar, np.random.default_rng(0))
    before, after = members_of(original.tar), members_of(traded)
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert len(changed) == 2
    assert content_of(after[changed[0]]) == content_of(before[changed[1]])
    (tmp_path / "found").mkdir()
    outcome, told = as_found(traded, original, tmp_path / "found", "trade")
    assert outcome == "mixed up"
    assert "has members of" in told
    assert as_known(traded, original, tmp_path / "known")[0] == "refused"


def test_a_defect_and_a_hang_are_noticed(original: Original, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> tuple[str, str]:
        raise KeyError("x")

    def endless(*_: object) -> tuple[str, str]:
        while True:
            pass

    monkeypatch.setattr(loader_fuzz, "as_found", broken)
    monkeypatch.setattr(loader_fuzz, "as_known", endless)
    results = Results()
    run_case(0, original, results, limit=0.1)
    assert [failure["outcome"] for failure in results.failures] == ["crash", "hang"]
    assert results.failures[0]["detail"] == "KeyError: 'x'"
