"""ImgEdit's masks: inverted pictures, run lengths, the joining of paths; none rather than wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.convert.run import convert
from tests.datamodules.convert.released import SIZE, pixels, quarantine, save
from tests.datamodules.convert.shards import read_back
from tests.datamodules.convert.test_convert_imgedit import SAMPLE, row, table, unpack

LAION = "00094/00030/000304748.jpg"
HEIGHT, WIDTH = SIZE


def region(scale: int = 1) -> np.ndarray:
    """Return where `edited` paints, in a multiple of the size."""
    mask = np.zeros((HEIGHT * scale, WIDTH * scale), dtype=bool)
    mask[4 * scale : 12 * scale, 6 * scale : 14 * scale] = True
    return mask


def runs(mask: np.ndarray) -> str:
    """Return the mask as a COCO string; its runs are short enough for a group or two each."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    lengths = np.diff(ends, prepend=0).tolist()
    text = ""
    for i, length in enumerate(lengths):
        number = length - lengths[i - 2] if i > 2 else length
        while not -16 <= number < 16:
            text += chr(48 + 32 + (number & 31))
            number >>= 5
        text += chr(48 + (number & 31))
    return text


BOX = [6.0, 4.0, 14.0, 12.0]


def result(**changes: object) -> dict:
    edited_object = {"class_name": "dog", "bbox": BOX, "mask": "", "score": 0.9}
    made = {
        "original_path": LAION,
        "resolution": {"height": HEIGHT, "width": WIDTH},
        "edit_obj": edited_object,
        "edit_type": "remove",
    }
    return made | changes


def recap(*, path: str = LAION, scale: int = 1, bbox: list[float] = BOX) -> dict:
    other = {"class_name": "dog", "bbox": [0.0, 0.0, 3.0, 3.0], "mask": runs(~region(scale))}
    found = {"class_name": "dog", "bbox": bbox, "mask": runs(region(scale))}
    return {
        "path": path,
        "resolution": {"height": HEIGHT * scale, "width": WIDTH * scale},
        "segmentation": {"background": [], "object": [other, found], "box_format": "xyxy"},
    }


@pytest.fixture
def root(tmp_path):
    """One sample of one table, without any mask."""
    table(tmp_path / "in", "remove_part5", row("results_remove_laion_part5"))
    unpack(tmp_path / "in" / "results_remove_laion_part5", 0)
    return tmp_path / "in"


def beside(root: Path) -> Path:
    return root / "results_remove_laion_part5" / SAMPLE


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def mask_of(root: Path, out: Path) -> list[list[bool]] | None:
    """Convert and return the mask of the one sample."""
    convert("imgedit", root, out)
    (sample,) = read_back(out)
    return (pixels(sample["mask.png"]) == 255).tolist() if "mask.png" in sample else None


def test_mask_pictures_are_black_where_the_edit_was(root, tmp_path):
    save(beside(root) / "mask.png", np.repeat(~region()[..., None], 3, axis=2) * np.uint8(255))
    assert mask_of(root, tmp_path / "out") == region().tolist()


def test_a_mask_of_the_original_size_is_brought_to_the_pairs_size(root, tmp_path):
    Image.fromarray(~region(4)).save(beside(root) / "mask.png")
    assert mask_of(root, tmp_path / "out") == region().tolist()


def test_a_mask_of_another_shape_is_dropped(root, tmp_path):
    Image.new("L", (WIDTH, WIDTH)).save(beside(root) / "mask.png")
    assert mask_of(root, tmp_path / "out") is None


def test_runs_in_the_result_are_read(root, tmp_path):
    made = result()
    made["edit_obj"]["mask"] = runs(region())
    write_json(beside(root) / "result.json", made)
    assert mask_of(root, tmp_path / "out") == region().tolist()


@pytest.mark.parametrize(
    "name", [f"{SAMPLE}.json", f"{SAMPLE.replace('_', '')}.json", "00094/00030/000304748.json"]
)
def test_runs_of_the_recap_are_joined_by_path_class_and_box(root, tmp_path, name):
    write_json(beside(root) / "result.json", result())
    write_json(root / "ImgEdit_recap_mask" / "jsons" / "part0" / name, recap(scale=2))
    assert mask_of(root, tmp_path / "out") == region().tolist()


def test_for_add_the_object_is_what_came(root, tmp_path):
    came = {"class_name": "dog", "bbox": BOX, "mask": ""}
    made = result(edit_obj=None, edit_result=came)
    write_json(beside(root) / "result.json", made)
    write_json(root / "jsons" / f"{SAMPLE}.json", recap())
    assert mask_of(root, tmp_path / "out") == region().tolist()


@pytest.mark.parametrize(
    ("of_result", "of_recap"),
    [
        (None, recap()),  # nothing says which object
        (result(), None),
        (result(), recap(path="00094/00030/000304749.jpg")),  # another picture
        (result(), recap(bbox=[9.0, 4.0, 14.0, 12.0])),  # another dog
        (result(edit_obj={"class_name": "dog"}), recap()),
        (result(edit_obj="dog"), recap()),
        ({"style": "ghibli"}, recap()),
    ],
)
def test_no_mask_rather_than_a_guessed_one(root, tmp_path, of_result, of_recap):
    if of_result is not None:
        write_json(beside(root) / "result.json", of_result)
    if of_recap is not None:
        write_json(root / "jsons" / f"{SAMPLE}.json", of_recap)
    assert mask_of(root, tmp_path / "out") is None


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("{", "result.json: is not JSON"),
        (json.dumps(result(edit_obj={"class_name": "dog", "mask": "0S1"})), "its runs cover 35"),
        (
            json.dumps(result(edit_obj={"class_name": "a", "mask": "0"}, resolution=None)),
            "the mask's resolution is None, needs height and width",
        ),
    ],
)
def test_a_damaged_mask_leaves_its_pair_out(root, tmp_path, text, detail):
    good = row("results_remove_laion_part5", "00000_00000_000000001")
    table(root, "remove_part5", row("results_remove_laion_part5"), good)
    unpack(root / "results_remove_laion_part5", 1, "00000_00000_000000001")
    (beside(root) / "result.json").write_text(text)
    convert("imgedit", root, tmp_path / "out")
    ((name, reason, why),) = quarantine(tmp_path / "out")
    assert (name, reason) == ("remove_part5.parquet, row 0", "unreadable picture")
    assert detail in why
