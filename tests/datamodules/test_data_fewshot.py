"""The pairs of a new task: every layout, the right ones, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.fewshot import FewShotSource, read_few_shot, usual_instruction
from datamodules.shards.manifest import write_manifest
from datamodules.shards.writer import PairRecord, write_task_shards
from emu_edit.errors import InputError, ShardError
from tests.datamodules.toy_shards import make_folder


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_sides(
    folder: Path, count: int, sides: tuple[str, str] = ("source", "target"), **size
) -> Path:
    for i in range(count):
        pixels = picture(i, **size)
        save(folder / sides[0] / f"{i}.png", pixels)
        save(folder / sides[1] / f"{i}.png", 255 - pixels)
    return folder


def write_lines(folder: Path, lines: list[dict]) -> Path:
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "instructions.jsonl").write_text(text)
    return folder


def read(path: Path, *, crops: int = 1, **options):
    return read_few_shot(FewShotSource(path, "invert", **options), image_size=16, crops=crops)


def assert_inverted(pairs, count: int) -> None:
    assert len(pairs) == count
    for pair in pairs:
        assert torch.equal(pair.target, 255 - pair.source)


def test_a_folder_with_lines_is_read_in_their_order(tmp_path: Path) -> None:
    folder = write_sides(tmp_path, 3)
    write_lines(folder, [{"file": f"{i}.png", "instruction": f"do {i}"} for i in (2, 0, 1)])
    pairs = read(folder)
    assert_inverted(pairs, 3)
    assert [pair.instruction for pair in pairs] == ["do 2", "do 0", "do 1"]
    assert torch.equal(pairs[0].source, torch.from_numpy(picture(2)).permute(2, 0, 1))
    assert len({pair.name for pair in pairs}) == 3
    assert read(folder / "instructions.jsonl")[0].instruction == "do 2"


def test_a_control_folder_is_read(tmp_path: Path) -> None:
    folder = write_sides(tmp_path, 2, ("control", "images"))
    for i in range(2):
        (folder / "images" / f"{i}.txt").write_text("invert it")
    pairs = read(folder)
    assert_inverted(pairs, 2)
    assert usual_instruction(pairs) == "invert it"


def test_two_folders_and_one_instruction_are_enough(tmp_path: Path) -> None:
    pairs = read(write_sides(tmp_path, 2), instruction="invert it")
    assert_inverted(pairs, 2)
    assert [pair.instruction for pair in pairs] == ["invert it"] * 2


def test_shards_are_read(tmp_path: Path) -> None:
    make_folder(tmp_path, {"local": 6})
    pairs = read(tmp_path)
    assert_inverted(pairs, 6)
    assert pairs[5].instruction == "do local number 5"
    assert usual_instruction(pairs) == ""


def test_an_instruction_fills_only_gaps(tmp_path: Path) -> None:
    folder = write_lines(
        write_sides(tmp_path, 2), [{"file": "0.png", "instruction": "do 0"}, {"file": "1.png"}]
    )
    pairs = read(folder, instruction="invert it")
    assert [pair.instruction for pair in pairs] == ["do 0", "invert it"]


def test_of_several_tasks_the_new_one_is_taken(tmp_path: Path) -> None:
    make_folder(tmp_path / "shards", {"local": 2, "invert": 3})
    assert [pair.instruction[:9] for pair in read(tmp_path / "shards")] == ["do invert"] * 3
    lines = [{"file": f"{i}.png", "instruction": "x", "task": "invert"} for i in range(2)]
    lines[1]["task"] = "other"
    folder = write_lines(write_sides(tmp_path / "folder", 2), lines)
    assert len(read(folder)) == 1


def test_a_share_is_drawn_by_the_seed(tmp_path: Path) -> None:
    make_folder(tmp_path, {"local": 12})

    def drawn(seed: int) -> list[str]:
        return [pair.name for pair in read(tmp_path, pairs=4, seed=seed)]

    everything = [pair.name for pair in read(tmp_path)]
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert len(drawn(0)) == 4
    assert [name for name in everything if name in drawn(0)] == drawn(0)


def test_pictures_are_cut_and_resampled_alike(tmp_path: Path) -> None:
    folder = write_sides(tmp_path, 1, size=(20, 40))
    views = read(folder, crops=3, instruction="x")
    whole = torch.from_numpy(picture(0, (20, 40))).permute(2, 0, 1)
    assert [view.source.shape for view in views] == [(3, 16, 16)] * 3
    assert len({view.name for view in views}) == 1
    for view, left in zip(views, (10, 0, 20), strict=True):
        square = whole[:, :, left : left + 20]
        (alone,) = read(write_one(tmp_path / str(left), square), instruction="x")
        assert torch.equal(view.source, alone.source)
        # resampling rounds, so that the inverted picture may differ by one level
        assert (view.target.int() - (255 - view.source.int())).abs().max() <= 1
    assert len(read(folder, instruction="x")) == 1


def write_one(folder: Path, pixels: torch.Tensor) -> Path:
    array = pixels.permute(1, 2, 0).numpy()
    save(folder / "source" / "0.png", array)
    save(folder / "target" / "0.png", 255 - array)
    return folder


def test_a_square_picture_has_one_view(tmp_path: Path) -> None:
    assert len(read(write_sides(tmp_path, 2), crops=3, instruction="x")) == 2


def test_an_empty_mask_says_that_nothing_may_change(tmp_path: Path) -> None:
    masks = [np.zeros((16, 16), dtype=np.bool_), None]
    records = [
        PairRecord(
            key=f"pair-{i}",
            source=picture(i),
            target=picture(i) if i == 0 else 255 - picture(i),
            instruction="x",
            task="local",
            mask=mask,
        )
        for i, mask in enumerate(masks)
    ]
    write_manifest(tmp_path, write_task_shards(tmp_path, "local", records), made_by={})
    assert len(read(tmp_path)) == 2


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_place_without_pairs_is_refused(tmp_path: Path) -> None:
    assert "nowhere: no such file or folder; give a folder of shards" in refusal(
        tmp_path / "nowhere"
    )
    assert "has no pairs of a known layout; give" in refusal(tmp_path)
    write_lines(tmp_path, [])
    assert "has no pairs; it needs at least one" in refusal(tmp_path)


def test_too_many_and_too_few_pairs_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, {"local": 5})
    message = "has 5 pairs, a new task takes at most 4; say how many to take"
    assert message in refusal(tmp_path, max_pairs=4)
    assert len(read(tmp_path, max_pairs=4, pairs=5)) == 5
    assert "has 5 pairs, fewer than the 6 asked for" in refusal(tmp_path, pairs=6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("unpaired", "1 of 2 pairs cannot be used, the first is target/1: target/1 has no picture"),
        ("sizes", "the first is target/1: source and target are 16x16 and 16x8"),
        ("identical", "the first is target/1: source and target have the same pixels"),
        ("unreadable", "the first is target/1: .*1.png"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named(tmp_path: Path, change: str, words: str) -> None:
    write_sides(tmp_path, 2)
    target = tmp_path / "target" / "1.png"
    match change:
        case "unpaired":
            target.unlink()
        case "sizes":
            save(target, picture(0, (8, 16)))
        case "identical":
            save(target, picture(1))
        case "unreadable":
            target.write_bytes(b"no picture")
    assert re.search(words, refusal(tmp_path, instruction="x"))


def test_pairs_in_which_nothing_changes_teach_nothing(tmp_path: Path) -> None:
    empty = np.zeros((16, 16), dtype=np.bool_)
    record = PairRecord("a", picture(0), picture(0), "x", task="local", mask=empty)
    write_manifest(tmp_path, write_task_shards(tmp_path, "local", [record]), made_by={})
    assert "nothing changes in any pair; there is nothing to learn" in refusal(tmp_path)


def test_identical_pairs_of_shards_are_named(tmp_path: Path) -> None:
    record = PairRecord("same", picture(0), picture(0), "x", task="local")
    write_manifest(tmp_path, write_task_shards(tmp_path, "local", [record]), made_by={})
    words = "1 of 1 pairs cannot be used, the first is same: source and target have the same pixels"
    assert words in refusal(tmp_path)


def test_pairs_without_an_instruction_are_refused(tmp_path: Path) -> None:
    message = refusal(write_sides(tmp_path, 1))
    assert "add it, or give one for all (--instruction TEXT)" in message
    write_lines(tmp_path, [{"file": "0.png"}])
    assert "the instruction is empty; add it, or give one for all" in refusal(tmp_path)


def test_pairs_of_other_tasks_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, {"local": 1, "inverts": 1})
    message = refusal(tmp_path)
    assert "has pairs of local, inverts, none of 'invert'; give pairs of one task" in message
    assert "Did you mean 'inverts'?" in message


def test_no_pair_is_lost_in_silence(tmp_path: Path) -> None:
    folder = write_sides(tmp_path / "in", 3)
    (folder / "source" / ".DS_Store").touch()  # hidden files and notes are no pairs
    (folder / "notes.md").touch()
    assert_inverted(read(folder, instruction="invert"), 3)
    write_lines(folder, [{"file": f"{i}.png", "instruction": "do"} for i in range(2)])
    lost = r"2 of 4 pairs cannot be used, the first is source/2.png: .*no line names it; to take a"
    with pytest.raises(InputError, match=lost):
        read(folder)
    assert_inverted(read(folder / "instructions.jsonl"), 2)
    (folder / "instructions.jsonl").unlink()
    (folder / "source" / "more").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InputError, match=r"first is source/more: .*more: is a link to a folder"):
        read(folder, instruction="invert")


def test_what_others_wrote_is_refused_with_the_command_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "0.tar").touch()
    with pytest.raises(InputError, match=r"shards convert webdataset .* OUT --source jpg --target"):
        read(tmp_path)


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, {"local": 2})
    (tmp_path / "local-000000.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=r"local-000000\.tar"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, "pairs of a new task must be at least 1, got 0"),
        ({"max_pairs": 0}, "max_pairs of a new task must be at least 1, got 0"),
        ({"instruction": "\u200b"}, "the instruction is empty"),
    ],
)
def test_odd_options_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FewShotSource(tmp_path, "invert", **options)


def test_no_crop_is_no_view(tmp_path: Path) -> None:
    make_folder(tmp_path, {"local": 1})
    with pytest.raises(InputError, match="crops of a new task must be at least 1, got 0"):
        read(tmp_path, crops=0)
