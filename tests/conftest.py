"""Fixtures every area may use. Heavy imports stay inside: collecting the tests must be quick."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch


@pytest.fixture
def cpu_generator() -> "torch.Generator":
    """A CPU generator with a fixed seed, new for each test."""
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny_pairs_folder(tmp_path: Path) -> Path:
    """Six good 24x16 pairs of the tasks color and local: `source/ target/ instructions.jsonl`."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "pairs"
    (folder / "source").mkdir(parents=True)
    (folder / "target").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for index in range(6):
        source = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(source).save(folder / "source" / f"{index}.png")
        Image.fromarray(255 - source).save(folder / "target" / f"{index}.png")
        task = ("color", "local")[index % 2]
        line = {"file": f"{index}.png", "instruction": f"invert number {index}", "task": task}
        lines.append(json.dumps(line) + "\n")
    (folder / "instructions.jsonl").write_text("".join(lines))
    return folder
