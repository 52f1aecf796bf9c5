"""Calls of `evaluate --benchmark`, and what they leave behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from emu_edit.cli.main import main


class Run:
    """What a call of `evaluate` left behind."""

    def __init__(self, folder: Path) -> None:
        self.results: dict[str, Any] = json.loads((folder / "results.json").read_text())
        lines = (folder / "items.jsonl").read_text().splitlines()
        self.items = {line["key"]: line for line in map(json.loads, lines)}
        self.table = (folder / "table.md").read_text()

    def mean(self, row: str, metric: str, block: str | None = None) -> float:
        blocks = self.results["blocks"]
        return blocks[block or next(iter(blocks))]["rows"][row]["all"][metric]["mean"]


def arguments(pictures: Path, data: Path, backbones: Path, out: Path, *more: str) -> list[str]:
    name = "magicbrush" if (data / "test").is_dir() else "emu-edit"
    places = ["--data", str(data), "--backbones", str(backbones), "-o", str(out)]
    return ["evaluate", str(pictures), "--benchmark", name, *places, "--device", "cpu", *more]


def evaluate(pictures: Path, data: Path, backbones: Path, *more: str, status: int = 0) -> Run:
    out = pictures.parent / "out"
    assert main(arguments(pictures, data, backbones, out, *more)) == status
    return Run(out)


def refused(
    capsys: pytest.CaptureFixture[str], pictures: Path, data: Path, backbones: Path, *more: str
) -> str:
    """Return the one line that a call is refused with."""
    capsys.readouterr()
    assert main(arguments(pictures, data, backbones, pictures.parent / "out", *more)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1, told.err
    return told.err
