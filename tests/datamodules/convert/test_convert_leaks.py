"""`shards convert --exclude`: planted evaluation pictures stay out, and are named."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from datamodules.world.pair import make_pair
from emu_edit.cli.shards_convert import run_convert
from emu_edit.errors import InputError
from tests.datamodules.convert.released import quarantine, save
from tests.datamodules.convert.shards import read_back


@pytest.fixture
def folders(tmp_path):
    """Eight pairs of the world; the inputs of two benchmarks, with copies of three pictures."""
    lines = []
    for index in range(8):
        pair = make_pair(5, index, task="add", size=48)
        save(tmp_path / "in" / "source" / f"{index}.png", pair.source)
        save(tmp_path / "in" / "target" / f"{index}.png", pair.target)
        line = {"file": f"{index}.png", "instruction": pair.instruction, "task": "add"}
        lines.append(json.dumps(line))
    (tmp_path / "in" / "instructions.jsonl").write_text("\n".join(lines))
    third = Image.open(tmp_path / "in" / "source" / "3.png")
    buffer = io.BytesIO()
    third.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((96, 96)).save(buffer, "JPEG")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "mirrored.jpg").write_bytes(buffer.getvalue())
    fifth = np.asarray(Image.open(tmp_path / "in" / "target" / "5.png"))
    save(tmp_path / "more" / "deep" / "result.png", fifth)
    return tmp_path


def test_pairs_that_show_evaluation_pictures_are_left_out_with_both_names(folders, capsys):
    out = folders / "out"
    arguments = ["folder", str(folders / "in"), str(out)]
    exclude = ["--exclude", str(folders / "bench"), "--exclude", str(folders / "more")]
    assert run_convert([*arguments, *exclude]) == 0
    assert "evaluation leak" in capsys.readouterr().out
    assert len(read_back(out)) == 6
    rows = {name: (reason, detail) for name, reason, detail in quarantine(out)}
    assert set(rows) == {"instructions.jsonl:4", "instructions.jsonl:6"}
    reason, detail = rows["instructions.jsonl:4"]
    assert reason == "evaluation leak"
    mirrored = folders / "bench" / "mirrored.jpg"
    assert f"the source shows the mirror image of the evaluation picture {mirrored}" in detail
    reason, detail = rows["instructions.jsonl:6"]
    assert reason == "evaluation leak"  # of source or target: an added thing is small
    assert f"shows the evaluation picture {folders / 'more/deep/result.png'}" in detail


def test_without_evaluation_pictures_nothing_is_left_out(folders):
    assert run_convert(["folder", str(folders / "in"), str(folders / "out")]) == 0
    assert len(read_back(folders / "out")) == 8


def test_a_folder_without_pictures_is_no_silent_guard(folders):
    (folders / "empty").mkdir()
    arguments = ["folder", str(folders / "in"), str(folders / "out")]
    with pytest.raises(InputError, match=r"empty: holds no pictures"):
        run_convert([*arguments, "--exclude", str(folders / "empty")])
    assert not (folders / "out").exists()
