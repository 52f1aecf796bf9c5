"""MagicBrush: parquet and folders of sessions, masks in their forms, and the refused test set."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.convert.magicbrush import region_of
from datamodules.convert.picture import Picture
from datamodules.convert.run import convert
from emu_edit.errors import InputError
from tests.datamodules.convert.sets import (
    REGION,
    before,
    cell,
    png,
    quarantine,
    region,
    samples,
    save,
    write_parquet,
)
from tests.datamodules.convert.shards import of_task

pytest.importorskip("pyarrow")

TURNS = (("100", 1), ("100", 2), ("200", 1))


def turn_pictures(session: str, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a turn's pictures: the second begins with what the first ended with."""
    picture = before(int(session))
    changed = picture.copy()
    for number in range(1, turn + 1):
        picture = changed.copy()
        changed[REGION] = (changed[REGION].astype(int) + 97 * number) % 256
    return picture, changed


def row(session: str, turn: int) -> dict[str, object]:
    source, target = turn_pictures(session, turn)
    return {
        "img_id": session,
        "turn_index": turn,
        "source_img": cell(source),
        "mask_img": cell(region()),
        "instruction": f"paint it, {session} {turn}",
        "target_img": cell(target),
    }


def write_folder(root: Path, *, with_sessions: bool = True, with_turns: bool = True) -> Path:
    sessions: dict[str, list[dict[str, str]]] = {}
    for session, turn in TURNS:
        source, target = turn_pictures(session, turn)
        names = {
            "input": f"{session}-{'input' if turn == 1 else f'output{turn - 1}'}.png",
            "mask": f"{session}-mask{turn}.png",
            "output": f"{session}-output{turn}.png",
        }
        for name, pixels in zip(names.values(), (source, region(), target), strict=True):
            save(root / "images" / session / name, pixels)
        entry = {**names, "instruction": f"paint it, {session} {turn}"}
        sessions.setdefault(session, []).append(entry)
    if with_sessions:
        (root / "edit_sessions.json").write_text(json.dumps(sessions))
    if with_turns:
        turns = [entry for entries in sessions.values() for entry in entries]
        (root / "edit_turns.json").write_text(json.dumps(turns))
    return root


def check_turns(out: Path) -> None:
    found = samples(out)
    assert [(s.text["session"], s.text["turn"]) for s in found] == [*TURNS]
    for sample, (session, turn) in zip(found, TURNS, strict=True):
        source, target = turn_pictures(session, turn)
        assert sample.text["instruction"] == f"paint it, {session} {turn}"
        assert sample.text["group"] == session
        assert np.array_equal(sample.source, source)
        assert np.array_equal(sample.target, target)
        assert sample.mask is not None
        assert np.array_equal(sample.mask, region() == 255)
    assert np.array_equal(found[1].source, found[0].target)  # turns chain


def test_parquet_comes_back_with_turns_and_masks(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "train-00000.parquet", [row(*turn) for turn in TURNS])
    report = convert("magicbrush", tmp_path / "in", tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 3}, {})
    check_turns(tmp_path / "out")


@pytest.mark.parametrize("names", [(True, True), (True, False), (False, True)])
def test_the_folder_comes_back_the_same_from_either_list(
    tmp_path: Path, names: tuple[bool, bool]
) -> None:
    root = write_folder(tmp_path / "in", with_sessions=names[0], with_turns=names[1])
    report = convert("magicbrush", root, tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 3}, {})
    check_turns(tmp_path / "out")


def test_a_turn_has_one_key_in_every_layout(tmp_path: Path) -> None:
    write_parquet(tmp_path / "table" / "dev.parquet", [row(*turn) for turn in reversed(TURNS)])
    write_folder(tmp_path / "folder")
    keys = []
    for name in ("table", "folder"):
        convert("magicbrush", tmp_path / name, tmp_path / f"{name}_out", of_task("local"))
        keys.append({sample.key for sample in samples(tmp_path / f"{name}_out")})
    assert keys[0] == keys[1]
    assert len(keys[0]) == 3


def test_the_old_revision_without_masks_is_read(tmp_path: Path) -> None:
    new = row("100", 1)
    old = {
        "img_id": "100",
        "turn_index": 1,
        "input_img": new["source_img"],
        "instruction": "paint it",
        "output_img": new["target_img"],
    }
    write_parquet(tmp_path / "a.parquet", [old])
    convert("magicbrush", tmp_path / "a.parquet", tmp_path / "out", of_task("local"))
    (sample,) = samples(tmp_path / "out")
    assert sample.mask is None
    assert np.array_equal(sample.source, before(100))


def test_a_row_without_mask_or_identity(tmp_path: Path) -> None:
    rows = [row("100", 1) | {"mask_img": None}, row("100", 2) | {"turn_index": None}, row("200", 1)]
    write_parquet(tmp_path / "a.parquet", rows)
    report = convert("magicbrush", tmp_path / "a.parquet", tmp_path / "out", of_task("local"))
    assert report.skipped == {"bad line": 1}
    assert [sample.mask is None for sample in samples(tmp_path / "out")] == [True, False]
    detail = quarantine(tmp_path / "out")[0]["detail"]
    assert detail == "a.parquet, row 1: img_id is '100' and turn_index None, needs both"


def test_a_turn_that_does_not_begin_where_the_one_before_ended_is_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "in")
    sessions = json.loads((root / "edit_sessions.json").read_text())
    sessions["100"][1]["input"] = "100-input.png"
    (root / "edit_sessions.json").write_text(json.dumps(sessions))
    report = convert("magicbrush", root, tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 2}, {"bad line": 1})
    detail = quarantine(tmp_path / "out")[0]["detail"]
    assert detail.endswith("begins with 100-input.png, the turn before ended with 100-output1.png")


def test_a_turn_without_words_does_not_cost_the_turn_after_it(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "in")
    sessions = json.loads((root / "edit_sessions.json").read_text())
    third = {**sessions["100"][1], "input": "100-output2.png", "output": "100-output3.png"}
    save(root / "images" / "100" / "100-output3.png", turn_pictures("100", 3)[1])
    sessions["100"] = [sessions["100"][0], {**sessions["100"][1], "instruction": None}, third]
    (root / "edit_sessions.json").write_text(json.dumps(sessions))
    report = convert("magicbrush", root, tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 3}, {"bad line": 1})
    turns = [sample.text["turn"] for sample in samples(tmp_path / "out")]
    assert turns == [1, 3, 1]


def test_a_mask_that_a_turn_names_has_to_be_there(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "in")
    (root / "images" / "100" / "100-mask1.png").unlink()
    report = convert("magicbrush", root, tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 2}, {"missing mask": 1})
    assert "100-mask1.png: no such file" in quarantine(tmp_path / "out")[0]["detail"]


@pytest.mark.parametrize(("mask", "reason"), [("", {}), ("gone.png", {"missing mask": 1})])
def test_lines_name_a_mask_or_none(tmp_path: Path, mask: str, reason: dict[str, int]) -> None:
    for name, picture in zip(("a", "b"), turn_pictures("100", 1), strict=True):
        save(tmp_path / "in" / f"{name}.png", picture)
    line = {"img_id": "1", "turn_index": 1, "source_img": "a.png", "target_img": "b.png"}
    good = {**line, "turn_index": 2, "instruction": "x"}
    lines = [good, {**line, "instruction": "y", "mask_img": mask}]
    (tmp_path / "in" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = convert("magicbrush", tmp_path / "in", tmp_path / "out", of_task("local"))
    assert (sum(report.written.values()), report.skipped) == (2 - len(reason), reason)


@pytest.mark.parametrize("cell_of_none", [None, {"bytes": None, "path": None}])
def test_an_empty_cell_is_a_turn_without_mask(tmp_path: Path, cell_of_none: object) -> None:
    rows = [row("100", 1), row("200", 1) | {"mask_img": cell_of_none}]
    write_parquet(tmp_path / "a.parquet", rows)
    convert("magicbrush", tmp_path / "a.parquet", tmp_path / "out", of_task("local"))
    assert [sample.mask is None for sample in samples(tmp_path / "out")] == [False, True]


@pytest.mark.parametrize(
    ("turn", "reason", "detail"),
    [
        ([], "bad line", "has no text input, output, instruction"),
        ({"input": "100-input.png", "output": 5}, "bad line", "has no text output, instruction"),
        (
            {"input": "../x.png", "output": "100-output1.png", "instruction": "x"},
            "unsafe name",
            "'../x.png' must be the name of a file",
        ),
        (
            {"input": "100-input.png", "output": "after.png", "instruction": "x"},
            "bad line",
            "needs SESSION-outputTURN.png",
        ),
        (
            {"input": "100-input.png", "output": "100-output7.png", "instruction": "x"},
            "missing target",
            "100-output7.png: no such file",
        ),
        (
            {"input": "100-input.png", "output": "100-output1.png", "instruction": " "},
            "empty instruction",
            "the instruction is empty",
        ),
    ],
)
def test_a_broken_turn_is_left_out_with_its_reason(
    tmp_path: Path, turn: object, reason: str, detail: str
) -> None:
    root = write_folder(tmp_path / "in", with_sessions=False)
    turns = json.loads((root / "edit_turns.json").read_text())
    (root / "edit_turns.json").write_text(json.dumps([turns[2], turn]))
    report = convert("magicbrush", root, tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 1}, {reason: 1})
    assert detail in quarantine(tmp_path / "out")[0]["detail"]


def blanked() -> np.ndarray:
    """Return the source with the region painted white, and a white thing elsewhere."""
    picture = before(100)
    picture[20:, 26:] = 255
    picture[REGION] = 255
    return picture


def blanked_source() -> np.ndarray:
    picture = before(100)
    picture[20:, 26:] = 255
    picture[6:8, 8:12] = 255  # white inside the region, too: it belongs to it all the same
    return picture


def test_masks_of_all_forms_give_one_region() -> None:
    source = blanked_source()
    transparent = np.dstack([source, 255 - region()])
    drawing = np.dstack([region()] * 3)
    for form in (transparent, drawing, region(), blanked()):
        found = region_of(Picture.of(png(form), "mask"), source)
        assert found is not None
        assert np.array_equal(found, region() == 255)


def test_a_mask_of_the_wrong_polarity_is_left_out(tmp_path: Path) -> None:
    wrong = row("100", 1) | {"mask_img": cell(255 - region())}
    write_parquet(tmp_path / "a.parquet", [wrong, row("200", 1)])
    report = convert("magicbrush", tmp_path / "a.parquet", tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 1}, {"mask does not fit": 1})
    assert "outside the mask and by 0.0 inside" in quarantine(tmp_path / "out")[0]["detail"]


def test_the_test_set_is_refused_by_name_and_by_its_descriptions(tmp_path: Path) -> None:
    message = "is MagicBrush's test set, which is for evaluation only and never becomes training"
    write_folder(tmp_path / "test")
    write_folder(tmp_path / "renamed")
    (tmp_path / "renamed" / "global_descriptions.json").write_text("{}")
    (tmp_path / "whole" / "test").mkdir(parents=True)
    (tmp_path / "whole" / "test" / "local_descriptions.json").write_text("{}")
    write_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", [row("100", 1)])
    write_parquet(tmp_path / "test-00000.parquet", [row("100", 1)])
    for name in ("test", "renamed", "whole", "hub", "test-00000.parquet"):
        with pytest.raises(InputError, match=message):
            convert("magicbrush", tmp_path / name, tmp_path / "out", of_task("local"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "edit_turns.json: is not JSON"), ("{}", "edit_turns.json: holds dict, needs list")],
)
def test_a_broken_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "edit_turns.json").write_text(text)
    with pytest.raises(InputError, match=message):
        convert("magicbrush", tmp_path / "in", tmp_path / "out", of_task("local"))


def test_a_session_that_is_no_list_is_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "in")
    sessions = json.loads((root / "edit_sessions.json").read_text())
    (root / "edit_sessions.json").write_text(json.dumps({**sessions, "300": "nothing"}))
    report = convert("magicbrush", root, tmp_path / "out", of_task("local"))
    assert (report.written, report.skipped) == ({"local": 3}, {"bad line": 1})
    assert "needs a list of turns, got 'nothing'" in quarantine(tmp_path / "out")[0]["detail"]


def test_dev_is_not_mixed_into_train_unless_given_itself(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "data" / "train-00000.parquet", [row("100", 1), row("100", 2)])
    dev = write_parquet(tmp_path / "in" / "data" / "dev-00000.parquet", [row("200", 1)])
    report = convert("magicbrush", tmp_path / "in", tmp_path / "out", of_task("local"))
    assert report.written == {"local": 2}
    (item,) = quarantine(tmp_path / "out")
    assert item["name"] == "dev-00000.parquet"
    assert "a validation split; to convert it, give the file itself" in item["detail"]
    assert convert("magicbrush", dev, tmp_path / "dev", of_task("local")).written == {"local": 1}


def test_a_folder_of_both_splits_asks_for_one(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        write_folder(tmp_path / "in" / split)
    with pytest.raises(InputError, match="in: holds dev, train; give one of these folders"):
        convert("magicbrush", tmp_path / "in", tmp_path / "out", of_task("local"))
