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
