"""However a model directory is damaged: it is refused in one line that names it, or it works."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.editing.editor import Editor
from emu_edit.editing.predictor import TaskPredictor
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.codec import KLCodec
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import LearnedTask
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.text import TransformersText
from emu_edit.models.tiny import TinyText
from emu_edit.models.unet import PretrainedUNetDenoiser
from emu_edit.tasks import TaskTable
from tests.models.malformed import (
    Damage,
    extra_damages,
    file_damages,
    json_damages,
    weight_damages,
)

# libraries warn of what is odd in a directory and go on; here it matters whether it works
pytestmark = pytest.mark.filterwarnings("ignore")
FEW, MANY = 24, 60  # damages of a kind and layout that are tried


@pytest.fixture(scope="session")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of ours with everything one can have: a predictor and a learned task."""
    editor = Editor.from_pretrained(model, device="cpu")
    encoder = TinyText(dim=16, num_layers=1, num_heads=2)
    editor.predictor = TaskPredictor(encoder, editor.networks.tasks)
    learned = LearnedTask(
        name="mine",
        description="",
        vector=torch.ones(8),
        base=model_hash(editor.networks),
        pairs=1,
        steps=1,
        seed=0,
        created="2026-01-01",
        instruction="",
    )
    editor.add_task(learned)
    folder = tmp_path_factory.mktemp("malformed") / "exported"
    editor.save_pretrained(folder)
    return folder


def load_exported(folder: Path) -> Editor:
    return Editor.from_pretrained(folder, device="cpu")


def load_base(folder: Path) -> Editor:
    networks = EditNetworks(
        PretrainedUNetDenoiser(str(folder), task_dim=6),
        TransformersText(str(folder)),
        KLCodec(str(folder)),
        task_embedding=TaskEmbedding(2, 6),
        tasks=TaskTable(("local", "remove")),
    )
    return Editor(
        networks.eval(),
        schedule=NoiseSchedule.scaled_linear(),
        prediction=Prediction.v,
        settings=EditorSettings(num_steps=1, guidance=Guidance(1.0, 1.0)),
    )


def complaint(load: Callable[[Path], Editor], folder: Path) -> str | None:
    """Load a directory and edit with it; return what is wrong with how that ends."""
    try:
        editor = load(folder)
        task = editor.networks.tasks.names[0]
        picture = torch.zeros(3, 16, 16, dtype=torch.uint8)
        assert editor.edit(picture, "make it red", task=task).shape == picture.shape
    except InputError as error:
        line = str(error)
        return None if str(folder) in line and "\n" not in line else f"says {line!r}"
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"raises {error!r}"
    return None


def complaints(root: Path, damages: list[tuple[str, Damage]], tmp_path: Path) -> dict[str, str]:
    """Do each damage to a copy; return what is wrong, by damage."""
    load = load_exported if (root / "model_index.json").exists() else load_base
    found = {}
    for number, (name, damage) in enumerate(damages):
        folder = Path(shutil.copytree(root, tmp_path / str(number), copy_function=os.link))
        damage(folder)
        if (wrong := complaint(load, folder)) is not None:
            found[name] = wrong
        shutil.rmtree(folder)
    return found


def spread(damages: list[tuple[str, Damage]], count: int) -> list[tuple[str, Damage]]:
    """Choose so many of a list, evenly."""
    return [damages[i * len(damages) // count] for i in range(count)]


LAYOUTS = pytest.mark.parametrize("layout", ["exported", "stable_diffusion"])
KINDS = pytest.mark.parametrize("kind", [file_damages, weight_damages, json_damages])


@LAYOUTS
def test_a_directory_that_is_as_it_was_written_works(layout, request):
    root = request.getfixturevalue(layout)
    load = load_exported if layout == "exported" else load_base
    assert complaint(load, root) is None
    load(root)


@LAYOUTS
@KINDS
def test_a_malformed_directory_is_refused_in_one_line_or_works(layout, kind, request, tmp_path):
    root = request.getfixturevalue(layout)
    assert complaints(root, spread(list(kind(root)), FEW), tmp_path) == {}


@pytest.mark.slow
@LAYOUTS
@KINDS
def test_many_malformed_directories_are_refused_in_one_line_or_work(
    layout, kind, request, tmp_path
):
    root = request.getfixturevalue(layout)
    assert complaints(root, spread(list(kind(root)), MANY), tmp_path) == {}


@LAYOUTS
def test_files_that_could_run_or_redirect_are_refused_and_never_run(layout, request, tmp_path):
    root = request.getfixturevalue(layout)
    load = load_exported if layout == "exported" else load_base
    for number, (_, damage) in enumerate(extra_damages()):
        folder = Path(shutil.copytree(root, tmp_path / str(number), copy_function=os.link))
        damage(folder)
        with pytest.raises(InputError, match=r"run|plain file|another model|same folder|\d files"):
            load(folder)
