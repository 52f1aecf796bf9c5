"""`shards convert` from the command line: options, table, exit status."""

import json
import shutil
from pathlib import Path

import pytest

from datamodules.convert.gates import Gates
from datamodules.convert.pair import Converter
from datamodules.convert.registry import KINDS, load_converter
from datamodules.shards.manifest import read_manifest
from emu_edit.cli.main import main
from emu_edit.cli.shards_convert import GATES
from tests.datamodules.convert.sets import after, before, quarantine, region, save


def write_pairs(root: Path, count: int = 4, **fields: str) -> Path:
    lines = []
    root.mkdir(parents=True)
    for seed in range(count):
        save(root / "source" / f"{seed}.png", before(seed))
        save(root / "target" / f"{seed}.png", after(seed))
        lines.append({"file": f"{seed}.png", "instruction": f"make it red {seed}", **fields})
    (root / "instructions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def spoil(root: Path, seed: int) -> None:
    save(root / "target" / f"{seed}.png", before(seed))


def convert(root: Path, *options: str) -> int:
    return main(["shards", "convert", "folder", str(root), str(root.parent / "out"), *options])


def refused(capsys: pytest.CaptureFixture[str], root: Path, *options: str, status: int = 2) -> str:
    assert convert(root, *options) == status
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_some_left_out_is_success_and_told_in_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_pairs(tmp_path / "in")
    spoil(root, 2)
    assert convert(root, "--task", "local") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "left",
        "out",
        "because",
        "entries",
        "share",
        "the",
        "first",
        "of",
        "them",
    ]
    assert lines[1].startswith(
        "identical pair    1        25.00%  instructions.jsonl:3: source and"
    )
    assert lines[-1].startswith(
        "3 pairs written (local 3); 1 left out: 1 identical pair (listed in"
    )


def test_all_left_out_is_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pairs(tmp_path / "in", count=2)
    for seed in range(2):
        spoil(root, seed)
    line = refused(capsys, root, "--task", "local", status=65)
    assert "in: no pair is left to write: 2 left out: 2 identical pair; see " in line
    assert len(quarantine(tmp_path / "out")) == 2


def test_an_empty_set_is_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pairs(tmp_path / "in", count=0)
    line = refused(capsys, root, "--task", "local", status=65)
    assert "in: no pair is left to write: nothing was listed" in line


def test_options_reach_the_run(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in", task="recolour")
    spoil(root, 0)
    save(root / "target" / "1.png", before(1)[::-1].copy())
    (tmp_path / "bad.txt").write_text("\n instructions.jsonl:3 \n")
    options = ("--map", "recolour=color", "--gate", "min_side=20", "--gate", "blank=off")
    options += ("--gate", "captions=off", "--gate", "near_identical=3.5")
    assert convert(root, *options, "--skip-names", str(tmp_path / "bad.txt")) == 0
    made_by = read_manifest(tmp_path / "out").made_by
    gates = made_by["gates"]
    assert isinstance(gates, dict)
    chosen = {name: gates[name] for name in ("min_side", "blank", "captions", "near_identical")}
    assert chosen == {"min_side": 20, "blank": None, "captions": False, "near_identical": 3.5}
    assert made_by["written"] == {"color": 2}
    assert made_by["skipped"] == {"identical pair": 1, "listed as bad": 1}


def test_parts_are_told_in_the_manifest(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in", count=12)
    assert convert(root, "--task", "local", "--part", "train", "--held-out", "0.4") == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.made_by["part"] == {"name": "train", "held_out": 0.4}
    assert 1 <= manifest.num_samples < 12


def test_pictures_of_an_evaluation_set_are_excluded(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in")
    save(tmp_path / "benchmark" / "x.png", before(1))
    assert convert(root, "--task", "local", "--exclude", str(tmp_path / "benchmark")) == 0
    (item,) = quarantine(tmp_path / "out")
    assert (item["name"], item["reason"]) == ("instructions.jsonl:2", "evaluation leak")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gate", "size=3"), "unknown gate 'size'; known gates: min_side"),
        (("--gate", "blank=dark"), "--gate blank needs a number, got 'dark'"),
        (("--gate", "blank=nan"), "--gate blank needs a number, got 'nan'"),
        (("--gate", "captions=3"), "--gate captions must be on or off, got '3'"),
        (("--gate", "captions"), "needs NAME=VALUE, got 'captions'"),
        (("--min-score", "ssim=high"), "--min-score ssim needs a number, got 'high'"),
        (("--min-score", "ssim=0.5"), "no pair has a score ssim; there are: none"),
        (("--map", "a=b"), "unknown task 'b'"),
        (("--task", "stile"), "unknown task 'stile'"),
        (("--skip-names", "nowhere.txt"), "--skip-names nowhere.txt: cannot be read"),
        (("--held-out", "0.1"), "say which part: --part train"),
        (("--per-group", "0"), "needs a whole number of at least 1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    root = write_pairs(tmp_path / "in", count=2)
    task = () if "--task" in options else ("--task", "local")
    assert message in refused(capsys, root, *task, *options)


def test_the_help_lists_every_converter_and_every_gate_with_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["shards", "convert", "--help"])
    text = capsys.readouterr().out
    for name, kind in KINDS.items():
        assert f"  {name}" in text
        assert kind.summary in text
    for name, about in GATES.items():
        default = getattr(Gates, name)
        word = {None: "off", True: "on"}.get(default, f"{default:g}" if default else "")
        assert about.split("(")[1].startswith(word)
        assert f"  {name} " in text


@pytest.mark.parametrize("name", KINDS)
def test_every_entry_is_a_converter_of_that_name(name: str) -> None:
    converter = load_converter(name)
    assert isinstance(converter, Converter)
    assert converter.name == name


def test_masks_reach_the_shards(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in", count=1)
    save(root / "mask" / "0.png", region())
    assert convert(root, "--task", "local") == 0
    assert read_manifest(tmp_path / "out").num_samples == 1


def test_sizes_that_differ_are_told_with_the_gate_that_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_pairs(tmp_path / "in")
    save(root / "target" / "1.png", after(1).repeat(2, axis=0).repeat(2, axis=1))
    assert convert(root, "--task", "local") == 0
    advice = "targets of another size can be resampled: --gate resize=0.02"
    assert capsys.readouterr().out.splitlines()[-1] == advice
    shutil.rmtree(tmp_path / "out")
    assert convert(root, "--task", "local", "--gate", "resize=0.02") == 0
    assert capsys.readouterr().out == "4 pairs written (local 4)\n"
