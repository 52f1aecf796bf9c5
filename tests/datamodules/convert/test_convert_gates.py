"""The gates that all converters share: each at its threshold, each switched off, none too eager."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.convert.gates import Gates, kept_share
from datamodules.convert.naming import TaskNaming
from datamodules.convert.pair import RawPair, RefusedPairError, key_of, read_pair
from datamodules.convert.picture import Picture
from datamodules.convert.run import ConvertSettings, Part, convert
from datamodules.shards.manifest import read_manifest
from datamodules.shards.writer import PairRecord
from emu_edit.errors import InputError
from tests.datamodules.convert.sets import (
    REGION,
    after,
    before,
    png,
    quarantine,
    region,
    samples,
    save,
    write_parquet,
)

Line = Mapping[str, object]


def write_pairs(root: Path, pairs: Mapping[str, tuple[np.ndarray, np.ndarray, Line]]) -> Path:
    """Write pairs by name: source, target, further fields of the line; `mask` is pixels."""
    lines = []
    for name, (source, target, given) in pairs.items():
        fields = dict(given)
        save(root / "source" / f"{name}.png", source)
        save(root / "target" / f"{name}.png", target)
        mask = fields.pop("mask", None)
        if isinstance(mask, np.ndarray):
            save(root / "mask" / f"{name}.png", mask)
        lines.append({"file": f"{name}.png", "instruction": f"change {name}", **fields})
    (root / "instructions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def outcome(
    tmp_path: Path,
    gates: Gates,
    source: np.ndarray,
    target: np.ndarray,
    fields: Line,
    name: str = "out",
) -> dict[str, int]:
    """Convert a good pair and the given one; return what was left out."""
    good = (before(1), after(1), {})
    root = write_pairs(tmp_path / "in", {"good": good, "other": (source, target, fields)})
    settings = ConvertSettings(naming=TaskNaming("local"), gates=gates)
    report = convert("folder", root, tmp_path / name, settings)
    assert report.written == {"local": 2 - sum(report.skipped.values())}
    return report.skipped


def one_block(levels: int) -> np.ndarray:
    """Return `before(2)` with one 8x8 block changed by so many levels."""
    picture = before(2)
    picture[8:16, 8:16] += np.uint8(levels)
    return picture


def flat(level: int, spread: int = 0) -> np.ndarray:
    picture = np.full((24, 32, 3), level, dtype=np.uint8)
    picture[12, 16] += np.uint8(spread)
    return picture


WIDE = np.ascontiguousarray(after(2).repeat(2, axis=1))
HALF = np.ascontiguousarray(after(2)[::2, ::2])
SHIFTED = np.roll(region(), 15, axis=1)

SAME_WORDS = {"source_caption": "A cat", "target_caption": "a cat"}
GATES = {
    "near-identical pair": (before(2), one_block(1), {}, Gates(near_identical=None)),
    "blank picture": (before(2), flat(0, 8), {}, Gates(blank=None)),
    "equal captions": (before(2), after(2), SAME_WORDS, Gates(captions=False)),
    "mask does not fit": (before(2), after(2), {"mask": SHIFTED}, Gates(mask_fit=False)),
}


@pytest.mark.parametrize("reason", GATES)
def test_a_gate_leaves_out_unless_it_is_switched_off(tmp_path: Path, reason: str) -> None:
    source, target, fields, off = GATES[reason]
    assert outcome(tmp_path, Gates(), source, target, fields) == {reason: 1}
    assert outcome(tmp_path, off, source, target, fields, name="off") == {}


def test_the_smallest_side_counts_and_no_side_is_too_small_unless_asked(tmp_path: Path) -> None:
    small = (before(2)[:20], after(2)[:20], {})
    assert outcome(tmp_path, Gates(), *small) == {}
    assert outcome(tmp_path, Gates(min_side=20), *small, name="b") == {}
    assert outcome(tmp_path, Gates(min_side=21), *small, name="c") == {"too small": 1}
    assert quarantine(tmp_path / "c")[0]["detail"] == "is 32x20, both sides need 21"


def test_an_edit_of_one_block_by_three_levels_is_an_edit(tmp_path: Path) -> None:
    assert outcome(tmp_path, Gates(), before(2), one_block(3), {}) == {}


def test_a_jpeg_copy_is_nearly_identical(tmp_path: Path) -> None:
    blocks = np.random.default_rng(3).integers(60, 200, (3, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((64, 48), Image.Resampling.BICUBIC))
    copy = np.asarray(Image.open(save(tmp_path / "copy.jpg", smooth, quality=95)))
    assert (copy != smooth).any()
    assert outcome(tmp_path, Gates(), smooth, copy, {}) == {"near-identical pair": 1}


@pytest.mark.parametrize(
    ("picture", "is_blank"),
    [(flat(0), True), (flat(247, 8), True), (flat(128, 8), True), (flat(0, 9), False)],
)
def test_black_white_and_grey_are_blank(
    tmp_path: Path, picture: np.ndarray, is_blank: bool
) -> None:
    assert outcome(tmp_path, Gates(), before(2), picture, {}) == (
        {"blank picture": 1} if is_blank else {}
    )


def test_captions_that_are_empty_or_say_nothing_are_not_equal(tmp_path: Path) -> None:
    captions = {"source_caption": "None", "target_caption": "none"}
    assert outcome(tmp_path, Gates(), before(2), after(2), captions) == {}
    assert "None" not in str([sample.text for sample in samples(tmp_path / "out")])


@pytest.mark.parametrize("mask", [region(), np.full((24, 32), 255, dtype=np.uint8)])
def test_a_mask_around_the_edit_or_everything_fits(tmp_path: Path, mask: np.ndarray) -> None:
    assert outcome(tmp_path, Gates(), before(2), after(2), {"mask": mask}) == {}


def test_an_empty_mask_of_a_pair_that_changes_does_not_fit(tmp_path: Path) -> None:
    mask = np.zeros((24, 32), dtype=np.uint8)
    found = outcome(tmp_path, Gates(), before(2), after(2), {"mask": mask})
    assert found == {"mask does not fit": 1}
    assert "the mask is empty, but the pictures differ" in quarantine(tmp_path / "out")[0]["detail"]


def test_a_target_of_another_size_is_resampled_where_asked_unless_its_shape_differs(
    tmp_path: Path,
) -> None:
    pair = (before(2), HALF, {"mask": region()})
    assert outcome(tmp_path, Gates(), *pair) == {"sizes differ": 1}
    assert outcome(tmp_path, Gates(resize=0.02), *pair, name="resized") == {}
    sample = samples(tmp_path / "resized")[1]
    assert sample.target.shape == sample.source.shape == (24, 32, 3)
    assert np.abs(sample.target.astype(int) - after(2)).mean() < 12
    wide = (before(2), WIDE, {})
    assert outcome(tmp_path, Gates(resize=0.02), *wide, name="wide") == {"aspect differs": 1}
    assert outcome(tmp_path, Gates(resize=1.0), *wide, name="any") == {}


def test_pictures_that_do_not_belong_together_are_found_where_asked(tmp_path: Path) -> None:
    apart = (before(2), 255 - before(2), {})
    assert outcome(tmp_path, Gates(), *apart) == {}
    gates = Gates(similarity=0.5)
    assert outcome(tmp_path, gates, *apart, name="on") == {"pictures unlike each other": 1}
    assert outcome(tmp_path, gates, before(2), one_block(30), {}, name="alike") == {}


def test_the_likeness_that_a_converter_asks_for_counts_unless_switched_off() -> None:
    pair = RawPair(
        name="n",
        identity="n",
        source=Picture.of(png(before(2)), "s"),
        target=Picture.of(png(before(3)), "t"),
        instruction="x",
        likeness=0.5,
    )
    record = read_pair(pair, "local")
    with pytest.raises(RefusedPairError, match=r"leaves \d% of the picture, such .* needs 50%"):
        Gates().check_record(record, pair)
    Gates(likeness=False).check_record(record, pair)
    Gates().check_record(record, dataclasses.replace(pair, likeness=None))


def test_the_same_pictures_and_words_count_once_whatever_they_are_called(tmp_path: Path) -> None:
    pair = (before(2), after(2))
    root = write_pairs(
        tmp_path / "in",
        {
            "a": (*pair, {"instruction": "make it red"}),
            "b": (*pair, {"instruction": "make it red"}),
            "c": (*pair, {"instruction": "paint it red"}),
            "d": (pair[1], pair[0], {"instruction": "make it red"}),
        },
    )
    settings = ConvertSettings(naming=TaskNaming("local"))
    report = convert("folder", root, tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"local": 3}, {"duplicate": 1})
    assert quarantine(tmp_path / "out")[0]["name"] == "instructions.jsonl:2"
    settings = dataclasses.replace(settings, gates=Gates(duplicates=False))
    assert convert("folder", root, tmp_path / "off", settings).written == {"local": 4}


def test_two_pairs_of_one_identity_are_a_duplicate_even_with_the_gate_off(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [
        {
            "img_id": "7",
            "turn_index": 1,
            "source_img": {"bytes": png(before(seed)), "path": None},
            "target_img": {"bytes": png(after(seed)), "path": None},
            "instruction": "paint it",
        }
        for seed in range(2)
    ]
    write_parquet(tmp_path / "a.parquet", rows)
    settings = ConvertSettings(naming=TaskNaming("local"), gates=Gates(duplicates=False))
    report = convert("magicbrush", tmp_path / "a.parquet", tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"local": 1}, {"duplicate": 1})
    assert "the data name this pair twice" in quarantine(tmp_path / "out")[0]["detail"]


def test_pairs_that_are_listed_as_bad_are_left_out_by_name_or_key(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in", {str(n): (before(n), after(n), {}) for n in range(4)})
    listed = {"instructions.jsonl:2", key_of("instructions.jsonl:4 3.png 3.png")}
    settings = ConvertSettings(naming=TaskNaming("local"), gates=Gates(excluded=frozenset(listed)))
    report = convert("folder", root, tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"local": 2}, {"listed as bad": 2})


def test_a_guard_keeps_pictures_of_evaluation_sets_out(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in", {str(n): (before(n), after(n), {}) for n in range(3)})
    settings = ConvertSettings(
        naming=TaskNaming("local"),
        guard=lambda record: "is known" if np.array_equal(record.source, before(1)) else None,
    )
    report = convert("folder", root, tmp_path / "out", settings)
    assert (report.written, report.skipped) == ({"local": 2}, {"evaluation leak": 1})
    assert quarantine(tmp_path / "out")[0]["detail"] == "instructions.jsonl:2: is known"


def test_no_source_is_in_both_parts_and_every_pair_is_in_one(tmp_path: Path) -> None:
    pairs: dict[str, tuple[np.ndarray, np.ndarray, Line]] = {}
    for number in range(40):
        target = after(number)
        pairs[f"{number}a"] = (before(number), target, {})
        pairs[f"{number}b"] = (before(number), np.ascontiguousarray(target[::-1]), {})
    root = write_pairs(tmp_path / "in", pairs)
    sources = {}
    for name in ("train", "heldout"):
        settings = ConvertSettings(naming=TaskNaming("local"), part=Part(name, 0.25))
        report = convert("folder", root, tmp_path / name, settings)
        found = samples(tmp_path / name)
        assert report.other_part == 80 - len(found)
        assert f"; {report.other_part} are of the other part" in report.summary()
        sources[name] = [sample.source.tobytes() for sample in found]
    assert not set(sources["train"]) & set(sources["heldout"])
    assert len(sources["train"]) + len(sources["heldout"]) == 80
    assert 4 <= len(set(sources["heldout"])) <= 16


@pytest.mark.parametrize(
    ("name", "share", "message"),
    [("test", 0.1, "part 'test' must be train or heldout"), ("train", 1.0, "above 0 and below 1")],
)
def test_a_part_that_is_none_is_refused(name: str, share: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Part(name, share)


def test_the_manifest_tells_the_gates_and_the_counts(tmp_path: Path) -> None:
    outcome(tmp_path, Gates(min_side=20), before(2), before(2), {})
    made_by = read_manifest(tmp_path / "out").made_by
    assert made_by["listed"] == 2
    assert made_by["written"] == {"local": 1}
    assert made_by["skipped"] == {"identical pair": 1}
    gates = made_by["gates"]
    assert isinstance(gates, dict)
    assert (gates["min_side"], gates["near_identical"], gates["excluded"]) == (20, 2.0, 0)


def test_the_report_is_a_table_with_the_first_finding_of_each_reason(tmp_path: Path) -> None:
    pairs: dict[str, tuple[np.ndarray, np.ndarray, Line]] = {}
    pairs |= {str(n): (before(n), before(n), {}) for n in range(3)}
    pairs["flat"] = (before(5), flat(0), {})
    pairs["good"] = (before(6), after(6), {})
    root = write_pairs(tmp_path / "in", pairs)
    report = convert("folder", root, tmp_path / "out", ConvertSettings(naming=TaskNaming("local")))
    head, *rows = report.rows()
    assert head == ("left out because", "entries", "share", "the first of them")
    first = "instructions.jsonl:1: source and target have the same pixels"
    assert rows[0] == ("identical pair", "3", "60.00%", first)
    assert rows[1][:3] == ("blank picture", "1", "20.00%")
    assert len(quarantine(tmp_path / "out")) == 4


def test_the_region_is_where_the_fixture_says() -> None:
    changed = (before(1) != after(1)).any(axis=2)
    assert changed[REGION].all()
    assert changed.sum() == changed[REGION].size


def test_a_bold_local_edit_leaves_enough_and_a_strangers_picture_does_not() -> None:
    painted = before(2)
    painted[8:, 8:] = 255 - painted[8:, 8:]  # half of it
    shares = [
        kept_share(
            PairRecord(key="k", source=before(2), target=target, instruction="x", task="add")
        )
        for target in (before(2), painted, before(3))
    ]
    assert shares[0] == 1
    assert shares[1] > 0.4
    assert shares[2] < 0.05
