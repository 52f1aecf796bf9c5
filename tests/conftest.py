"""Fixtures every area may use. Heavy imports stay inside: collecting the tests must be quick."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

# before torch is imported, here and in the processes that tests start: their tensors are so small
# that several threads mostly wait for each other, beside other work ten times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")


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


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model directory."""
    from emu_edit.diffusion.guidance import Guidance
    from emu_edit.diffusion.prediction import Prediction
    from emu_edit.diffusion.schedule import NoiseSchedule
    from emu_edit.editing.editor import Editor
    from emu_edit.editing.settings import EditorSettings
    from emu_edit.models.codec import PatchCodec
    from emu_edit.models.networks import EditNetworks, TaskEmbedding
    from emu_edit.models.tiny import TinyText
    from emu_edit.models.unet import UNetDenoiser
    from emu_edit.tasks import SIXTEEN

    networks = EditNetworks(
        UNetDenoiser(
            48,
            [16, 16],
            attention=[False, True],
            text_dim=16,
            task_dim=8,
            head_dim=8,
            norm_groups=4,
            sample_size=4,
        ),
        TinyText(dim=16, num_layers=1, num_heads=2),
        PatchCodec(),
        task_embedding=TaskEmbedding(len(SIXTEEN), 8),
        tasks=SIXTEEN,
    ).eval()
    editor = Editor(
        networks,
        schedule=NoiseSchedule.scaled_linear(),
        prediction=Prediction.change,
        settings=EditorSettings(image_size=16, num_steps=1, guidance=Guidance(1.0, 1.0)),
    )
    path = tmp_path_factory.mktemp("models") / "model"
    editor.save_pretrained(path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A 20x16 picture."""
    import numpy as np
    from PIL import Image

    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random network under each name that the protocols ask for."""
    from tests.evaluation.backbones import write_backbones

    return write_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture
def quick_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples where nobody looks at the intervals: thousands take seconds."""
    from functools import partial

    from emu_edit.metrics.intervals import bootstrap_mean

    quick = partial(bootstrap_mean, n=20)
    monkeypatch.setattr("emu_edit.evaluation.results.bootstrap_mean", quick)


@pytest.fixture
def emu(tmp_path: Path) -> Path:
    """The Emu Edit test set, four edits of it."""
    from tests.datamodules.benchmark_files import write_emu_edit

    return write_emu_edit(tmp_path / "emu")


@pytest.fixture
def brush(tmp_path: Path) -> Path:
    """The MagicBrush test set, three sessions of it."""
    from tests.datamodules.benchmark_files import write_magicbrush

    return write_magicbrush(tmp_path / "brush")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A result for each edit of the test split."""
    from tests.datamodules.benchmark_files import EMU_KEYS, picture

    folder = tmp_path / "made"
    folder.mkdir()
    for index, key in enumerate(EMU_KEYS[:4]):
        picture(50 + index).save(folder / f"{key}.png")
    return folder


@pytest.fixture
def brushed(tmp_path: Path) -> Path:
    """A result for each edit of MagicBrush, laid out as its authors' program does."""
    from tests.datamodules.benchmark_files import SESSIONS, picture

    folder = tmp_path / "brushed"
    for session, instructions in SESSIONS.items():
        (folder / session).mkdir(parents=True)
        names = [f"{session}_1"]
        for turn in range(2, len(instructions) + 1):
            names += [f"{session}_inde_{turn}", f"{session}_iter_{turn}"]
        for number, name in enumerate(names):
            picture(int(session) + number).save(folder / session / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion in diffusers' layout, random weights."""
    from tests.models.conftest import write_stable_diffusion

    folder = tmp_path_factory.mktemp("sd") / "model"
    write_stable_diffusion(folder)
    return folder
