"""A small editor with random weights, and pictures for it."""

import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.editing.editor import Editor
from emu_edit.editing.pipeline import EmuEditPipeline
from emu_edit.editing.settings import EditorSettings
from emu_edit.models.codec import PatchCodec
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.tiny import TinyText
from emu_edit.models.unet import UNetDenoiser
from emu_edit.tasks import SIXTEEN

SETTINGS = EditorSettings(image_size=16, num_steps=2, guidance=Guidance(text=2.0, image=1.2))


def make_networks(seed: int = 7) -> EditNetworks:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        networks = EditNetworks(
            UNetDenoiser(
                12,
                [16, 16],
                attention=[False, True],
                text_dim=16,
                task_dim=8,
                head_dim=8,
                norm_groups=4,
            ),
            TinyText(dim=16, num_layers=1, num_heads=2),
            PatchCodec(patch=2),
            task_embedding=TaskEmbedding(len(SIXTEEN), 8),
            tasks=SIXTEEN,
        ).eval()
        # an untrained model ignores its task: the maps of the task are zero
        for parameter in networks.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.05)
    return networks


def make_editor(
    networks: EditNetworks | None = None,
    *,
    prediction: Prediction = Prediction.change,
    settings: EditorSettings = SETTINGS,
) -> Editor:
    return Editor(
        make_networks() if networks is None else networks,
        schedule=NoiseSchedule.scaled_linear(),
        prediction=prediction,
        settings=settings,
    )


def make_pipeline(editor: Editor) -> EmuEditPipeline:
    pipe = EmuEditPipeline(editor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def editor() -> Editor:
    return make_editor()


@pytest.fixture(scope="module")
def pipe(editor: Editor) -> EmuEditPipeline:
    return make_pipeline(editor)


def picture(height: int = 16, width: int = 16, seed: int = 0) -> UInt8[Tensor, "3 h w"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
