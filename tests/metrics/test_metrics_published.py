"""The packaged rows hold what their sources print; a file of one's own is read or refused."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from emu_edit.errors import InputError
from emu_edit.metrics.protocols import METRICS, PROTOCOLS
from emu_edit.metrics.published import PACKAGED, load_published
from emu_edit.metrics.video_protocols import VIDEO_PROTOCOLS

ROW = {
    "model": "mine",
    "benchmark": "emu-edit",
    "protocol": "emu-l14",
    "values": {"l1": 0.1},
    "source": "a paper",
}


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_packaged_rows_hold_the_papers_numbers():
    rows = {(r.model, r.benchmark, r.split, r.protocol): r for r in load_published(PACKAGED)}
    emu = rows["Emu Edit", "emu-edit", "test", "mixed/unknown"].values
    assert emu == {
        "clip_dir": 0.109,
        "clip_im": 0.859,
        "clip_out": 0.231,
        "l1": 0.094,
        "dino": 0.819,
    }
    brush = rows["InstructPix2Pix + MagicBrush", "magicbrush", "final turns", "magicbrush"]
    assert brush.values == {
        "l1": 0.0964,
        "l2": 0.0353,
        "clip_i": 0.8924,
        "dino": 0.8273,
        "clip_t": 0.2754,
    }
    assert brush.items == 535


def test_packaged_rows_of_video_hold_eves_table_1():
    rows = [row for row in load_published(PACKAGED) if row.benchmark == "tgve"]
    assert Counter(row.split for row in rows) == {"TGVE": 6, "TGVE+": 7}
    eve = [list(row.values.values()) for row in rows if row.model == "EVE"]
    assert eve == [[20.76, 0.922, 0.221, 0.262], [20.88, 0.926, 0.198, 0.251]]
    assert not any(row.protocol in VIDEO_PROTOCOLS for row in rows)  # ViCLIP's input is not stated


def test_packaged_rows_of_generated_videos_hold_the_papers_numbers():
    rows = [row for row in load_published(PACKAGED) if row.benchmark == "ucf101"]
    fvd = {row.model: row.values["fvd"] for row in rows}
    assert len(fvd) == 9
    assert (fvd["Emu Video"], fvd["Make-A-Video"], fvd["Lumiere"]) == (317.1, 367.23, 332.49)
    moved = [row for row in load_published(PACKAGED) if row.benchmark == "image-animation"]
    assert Counter(row.split for row in moved) == {
        "prompts of Align Your Latents": 4,
        "prompts of Make-A-Video": 2,
    }
    assert moved[0].values == {"clip_fc": 99.3, "clip_ic": 94.2, "clip_tc": 34.2}


def test_packaged_rows_are_named_once_and_in_our_metrics():
    rows = load_published(PACKAGED)
    names = Counter((row.model, row.benchmark, row.split, row.protocol) for row in rows)
    assert max(names.values()) == 1
    assert {name for row in rows for name in row.values} <= METRICS.keys()
    assert {row.benchmark for row in rows} == {
        *("emu-edit", "magicbrush", "tgve", "ucf101", "image-animation")
    }


def test_no_published_row_of_the_emu_edit_set_claims_one_of_our_protocols():
    """The Emu Edit paper names no networks, and nobody else states theirs in full."""
    rows = [row for row in load_published(PACKAGED) if row.protocol in PROTOCOLS]
    assert {(row.benchmark, row.protocol) for row in rows} == {("magicbrush", "magicbrush")}
    assert {(row.split, row.items) for row in rows} == {("all turns", 1053), ("final turns", 535)}


def test_a_file_of_ones_own_is_read(tmp_path: Path):
    (row,) = load_published(written(tmp_path, [{**ROW, "split": "test", "items": 7}]))
    assert (row.model, row.split, row.items, row.values) == ("mine", "test", 7, {"l1": 0.1})
    assert load_published(written(tmp_path, [asdict(row)])) == (row,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": []}, "holds a dict, needs a list of published rows"),
        ([1], r"row 1 is a int, needs an object"),
        ([ROW, {**ROW, "source": ""}], r"row 2: source is '', needs a text"),
        ([{**ROW, "model": None}], "model is None, needs a text"),
        ([{**ROW, "note": 3}], "note is 3, needs a text or nothing"),
        ([{**ROW, "protocoll": "x"}], "unknown field 'protocoll'"),
        ([{**ROW, "values": {}}], "values is {}, needs numbers by metric"),
        ([{**ROW, "values": {"l1": "0.1"}}], "l1 is '0.1', needs a number"),
        ([{**ROW, "values": {"l1": True}}], "l1 is True, needs a number"),
        ([{**ROW, "values": {"l1": float("nan")}}], "l1 is nan, needs a number"),
        ([{**ROW, "items": 0}], "items is 0, needs how many edits were scored, or null"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path: Path, content: object, message: str):
    with pytest.raises(InputError, match=message):
        load_published(written(tmp_path, content))


def test_a_missing_broken_or_huge_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"there is no file .*nowhere.json.*word 'published'"):
        load_published(tmp_path / "nowhere.json")
    broken = tmp_path / "broken.json"
    broken.write_bytes(b"[{\xff")
    with pytest.raises(InputError, match=r"broken.json is not JSON"):
        load_published(broken)
    broken.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        load_published(broken)
