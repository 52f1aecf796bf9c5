"""A model directory and pictures for the command line to work on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.models.codec import PatchCodec
from emu_edit.models.task_embedding import TaskEmbedding
from emu_edit.models.tiny import TinyText
from emu_edit.models.unet import UNetDenoiser
from emu_edit.models.weights import EditNetworks
from emu_edit.tasks import SIXTEEN
from tests.data.benchmark_files import (
    EMU_KEYS,
    SESSIONS,
    picture,
    write_emu_edit,
    write_magicbrush,
)
from tests.models.conftest import stable_diffusion

__all__ = ["stable_diffusion"]  # a fixture


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model directory."""
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
    from tests.cli.backbones import write_backbones

    return write_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture
def quick_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples where nobody looks at the intervals: thousands take seconds."""
    from functools import partial

    from emu_edit.metrics.bootstrap import bootstrap_mean

    quick = partial(bootstrap_mean, n=20)
    monkeypatch.setattr("emu_edit.evaluation.results.bootstrap_mean", quick)


@pytest.fixture
def emu(tmp_path: Path) -> Path:
    """The Emu Edit test set, four edits of it."""
    return write_emu_edit(tmp_path / "emu")


@pytest.fixture
def brush(tmp_path: Path) -> Path:
    """The MagicBrush test set, three sessions of it."""
    return write_magicbrush(tmp_path / "brush")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A result for each edit of the test split."""
    folder = tmp_path / "made"
    folder.mkdir()
    for index, key in enumerate(EMU_KEYS[:4]):
        picture(50 + index).save(folder / f"{key}.png")
    return folder


@pytest.fixture
def brushed(tmp_path: Path) -> Path:
    """A result for each edit of MagicBrush, laid out as its authors' program does."""
    folder = tmp_path / "brushed"
    for session, instructions in SESSIONS.items():
        (folder / session).mkdir(parents=True)
        names = [f"{session}_1"]
        for turn in range(2, len(instructions) + 1):
            names += [f"{session}_inde_{turn}", f"{session}_iter_{turn}"]
        for number, name in enumerate(names):
            picture(int(session) + number).save(folder / session / f"{name}.png")
    return folder
