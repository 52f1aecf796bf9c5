"""Videos edited by an edit adapter and temporal layers on one picture model, aligned or plugged.

The first frame is edited as a picture is; it is what the temporal layers begin with. Longer videos
come in windows that share frames: of those the result is known, and the next window is led to it.
Source: Emu Video Edit (EVE), Singer et al. 2024, arXiv:2403.09334, sections 3 and 4.1; the windows,
InsV2V, Cheng et al. 2023, arXiv:2311.00213, section 3.4.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.diffusion.guidance import guided
from emu_edit.diffusion.samplers import StepEnd, sample
from emu_edit.diffusion.windows import towards
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import find_model
from emu_edit.editing.layers import read_layers
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.conditioning import branches
from emu_edit.models.directory import TEMPORAL
from emu_edit.models.edit_adapter import EditAdapterDenoiser
from emu_edit.models.eve import EveDenoiser, Mode, placed
from emu_edit.models.given import Given
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.lora import FILE, read_lora, write_lora
from emu_edit.models.temporal_files import load_temporal

LORA = "lora"  # the folder in a model directory
UNET = "unet"  # what a stock pipeline calls the network that the LoRA is of


@dataclass(frozen=True)
class VideoStack:
    """An editor of pictures, and what makes it one of videos.

    Attributes:
        editor: edits pictures, with the adapter alone.
        denoiser: all together.
        frames: of a clip in training, which is a window.
        layers: folder of the temporal layers, which is copied where this is written.
    """

    editor: Editor
    denoiser: EveDenoiser
    frames: int
    layers: Path

    @staticmethod
    def join(editor: Editor, layers: Path, where: str) -> "VideoStack":
        """Put temporal layers on the picture model of an editor; nothing is aligned yet.

        Args:
            editor: of an edit adapter.
            layers: the folder of the temporal layers.
            where: what the editor was loaded from, in messages.

        Raises:
            InputError: if the editor has no edit adapter, or the layers are of another picture
                model, another prediction or schedule, or do not begin with a picture.
        """
        adapter = editor.networks.denoiser
        if not isinstance(adapter, EditAdapterDenoiser):
            raise InputError(
                f"{where} edits with a {type(adapter).__name__}; videos are edited so with an edit "
                "adapter, see 'emu-edit fit --config edit_adapter'"
            )
        told = read_layers(layers)
        if told.given.kind is not Given.first:
            raise InputError(
                f"{layers}: these layers are told {told.given.kind.name} frames, and an edited "
                "video begins with its first; give those of emu_video"
            )
        ends = editor.schedule.has_zero_terminal_snr
        if (told.prediction, told.zero_terminal_snr) != (editor.prediction, ends):
            raise InputError(
                f"{layers}: these layers predict {told.prediction.name} (zero terminal SNR "
                f"{told.zero_terminal_snr}), the edit adapter {editor.prediction.name} ({ends}); "
                "train both alike"
            )
        temporal = load_temporal(layers, adapter.base)
        return VideoStack(editor, EveDenoiser(adapter, temporal), told.frames, layers)

    @staticmethod
    def from_pretrained(path: Path | str | None, device: str | None = None) -> "VideoStack":
        """Load a model directory or run folder that has temporal layers; with its LoRA, if any.

        Raises:
            InputError: if there is none, or a part is missing, damaged or foreign.
        """
        folder = find_model(path)
        editor = Editor.from_pretrained(folder, device)
        stack = VideoStack.join(editor, folder / TEMPORAL, str(folder))
        if (folder / LORA / FILE).is_file():
            read_lora(stack.denoiser.editor.base.unet, folder / LORA, UNET)
            stack.denoiser.follow_mode()
        stack.denoiser.eval().requires_grad_(False)
        return stack

    def save_pretrained(self, path: Path | str) -> None:
        """Write the editor's directory, and `temporal/` and `lora/` in it."""
        self.editor.save_pretrained(path, write_layers=self._write_layers)

    def _write_layers(self, folder: Path) -> None:
        # a copy: with its LoRA, the picture model is not the one that the layers name
        shutil.copytree(self.layers, folder / TEMPORAL)
        if self.denoiser.is_aligned:
            (folder / LORA).mkdir()
            write_lora(self.denoiser.editor.base.unet, folder / LORA, UNET)

    @property
    def usual_mode(self) -> Mode:
        """What edits: the student where it was aligned."""
        return Mode.student if self.denoiser.is_aligned else Mode.plugged

    @torch.no_grad()
    def window(
        self,
        source: Float[Tensor, "f c h w"],
        known: Float[Tensor, "n c h w"],
        text: str,
        v_task: Float[Tensor, "1 k"],
        *,
        noise: Float[Tensor, "f c h w"],
        settings: EditorSettings,
        negative: str = "",
        mode: Mode | None = None,
        on_step: StepEnd | None = None,
    ) -> Float[Tensor, "f c h w"]:
        """Edit one window.

        Args:
            source: latents of its frames, scaled.
            known: of its first frames, those whose result is known; none for the first of a scene.
            text: the instruction, with the caption of the result if that is known.
            v_task: the task's vector.
            noise: of each frame.
            settings: steps, guidance and sampler.
            negative: what the frames should not show.
            mode: which network; None takes the usual one.
            on_step: hears of every step.
        """
        editor, device = self.editor, self.editor.device
        source, known = source.to(device)[None], known.to(device)[None]
        told_text, null_text = editor.networks.encode_text([text], [negative])
        shown = editor.networks.codec.as_condition(source[0])[None]
        cond = Conditioning(told_text, placed(known[:, :1], shown), v_task)
        stacked = branches(cond, null_text, settings.guidance.needed)
        told = self.denoiser.told(stacked, self.usual_mode if mode is None else mode)
        predict = guided(told, settings.guidance)
        if known.shape[1] > 1:
            predict = towards(
                predict,
                known,
                schedule=editor.schedule,
                prediction=editor.prediction,
                steps=-(-settings.num_steps // 2),  # of the paper: the first half
            )
        return sample(
            predict,
            noise.to(device).flatten(0, 1)[None],
            schedule=editor.schedule,
            prediction=editor.prediction,
            num_steps=settings.num_steps,
            sampler=settings.sampler,
            generator=torch.Generator().manual_seed(0),
            on_step=on_step,
        )[0].unflatten(0, (len(source[0]), -1))
