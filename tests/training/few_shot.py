"""Two small bases a vector can be learnt for, and pairs of a task that they do not know."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.editing.editor import Editor
from emu_edit.models.codec import PatchCodec
from emu_edit.models.interfaces import Conditioning, Denoiser
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.surgery import freeze
from emu_edit.models.tiny import TinyText
from emu_edit.models.unet import UNetDenoiser
from emu_edit.tasks import TaskTable
from emu_edit.training.few_shot import FewShotPair
from emu_edit.training.inversion import InversionSettings
from tests.training.stage import COLOURS, TASKS, make_module, picture

QUICK = InversionSettings(steps=6, batch_size=2, check_every=2, init="mean")


def make_base(*, seed: int = 0) -> Editor:
    """Return an editor whose task vectors do something: the maps of a new net are zero."""
    module = make_module(weights_seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    denoiser = module.networks.denoiser
    assert isinstance(denoiser, UNetDenoiser)
    with torch.no_grad():
        for linear in (denoiser.task_to_tokens, denoiser.task_to_time):
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / 2)
    return module.make_editor()


class Contrast(Denoiser):
    """A net whose edits are known: it adds v_0 times the source, and v_1.

    Colours are inverted by the vector (-2, 0, ...), and by no other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latent_channels, self.task_dim, self.text_dim = 48, 8, 16
        self.gain = nn.Parameter(torch.ones(()))

    def forward(
        self,
        z_t: Float[Tensor, "b c h w"],
        t: Int64[Tensor, " b"],  # noqa: ARG002
        cond: Conditioning,
    ) -> Float[Tensor, "b c h w"]:
        """Return the change."""
        scale, shift = cond.v_task[:, :2, None, None, None].unbind(dim=1)
        return self.gain * (scale * cond.z_source + shift + 0 * z_t)


def make_contrast_base() -> Editor:
    """Return an editor with a `Contrast`; its tasks: nothing, half the contrast, brighter."""
    table = TaskEmbedding(len(TASKS), 8)
    table.table.data = torch.zeros(len(TASKS), 8)
    table.table.data[1, 0], table.table.data[2, 1] = -0.5, 1.0
    networks = EditNetworks(
        Contrast(),
        TinyText(dim=16, num_layers=1, num_heads=2),
        freeze(PatchCodec()),
        task_embedding=table,
        tasks=TaskTable(tuple(TASKS)),
    )
    return Editor(
        networks.eval(),
        schedule=NoiseSchedule.scaled_linear(zero_terminal_snr=True),
        prediction=Prediction.change,
        settings=make_module().editor_settings,
    )


def make_pairs(count: int) -> list[FewShotPair]:
    """Return pairs of one task: colours are inverted."""
    names = list(COLOURS)
    return [
        FewShotPair(before, 255 - before, "invert it", name=f"pair-{i}")
        for i in range(count)
        for before in [picture(names[i % 4], i)]
    ]


def edits(editor: Editor, tasks: list[str]) -> Tensor:
    """Return a picture edited by each task."""
    image = picture("red", 0)
    count = len(tasks)
    return editor.edit_batch(
        image.expand(count, -1, -1, -1), ["invert it"] * count, tasks, [0] * count
    )
