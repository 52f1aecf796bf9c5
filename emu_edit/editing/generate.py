"""From captions to pictures: an edit of a source that is withheld.

A model that was trained on captions without sources (the task `caption`) has learnt to draw; one
that edits and began as Stable Diffusion still can, as well as its training left it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.samplers import StepEnd
from emu_edit.editing.editor import Editor, Seed
from emu_edit.editing.find import choose_device
from emu_edit.editing.settings import EditorSettings
from emu_edit.editing.task_mix import TaskChoice
from emu_edit.errors import InputError
from emu_edit.models.unet import PretrainedUNetDenoiser
from emu_edit.models.weights import check_draws, is_plain, load_drawing
from emu_edit.randomness import check_seed
from emu_edit.tasks import CAPTION
from emu_edit.text_rules import clean_instruction

# of a base of diffusers as its authors sample it: Rombach et al. 2022, arXiv:2112.10752
BASE_STEPS, BASE_GUIDANCE = 50, 7.5


def load_generator(path: Path | str, device: str | None = None) -> Editor:
    """Load what draws: a model of ours, or a Stable Diffusion 1.x or 2.x of diffusers as it is.

    Args:
        path: model directory, run folder or `released`; or a directory with unet/, text_encoder/,
            tokenizer/, vae/ and scheduler/.
        device: cpu, cuda, ...; None takes an accelerator if there is one, else the CPU.

    Raises:
        InputError: if it is neither or only edits, or a part is missing or of another kind.
    """
    folder = Path(path).expanduser()
    if not is_plain(folder):
        editor = Editor.from_pretrained(path, device)
        check_draws(editor.networks, path)
        return editor
    networks = load_drawing(folder)
    denoiser = networks.denoiser
    assert isinstance(denoiser, PretrainedUNetDenoiser)
    base = denoiser.trained_as
    assert base is not None  # of every pretrained one
    side = int(denoiser.unet.config["sample_size"]) * networks.codec.factor
    return Editor(
        networks.to(choose_device(device)),
        schedule=base.schedule(base.prediction, zero_terminal_snr=base.zero_terminal_snr),
        prediction=base.prediction,
        settings=EditorSettings(side, Guidance(BASE_GUIDANCE, 1.0), BASE_STEPS),
    )


def draw_pictures(
    editor: Editor,
    captions: Sequence[str],
    seeds: Sequence[Seed],
    *,
    size: Sequence[int] | None = None,
    task: TaskChoice = CAPTION,
    negative: str = "",
    settings: EditorSettings | None = None,
    on_step: StepEnd | None = None,
) -> UInt8[Tensor, "b 3 h w"]:
    """Draw a picture of each caption; the result is on the CPU.

    Args:
        editor: the model.
        captions: what the pictures show, in words.
        seeds: one for each; same seed, same pixels, in whatever company.
        size: (height, width) of the pictures; None means as trained.
        task: what the model calls it.
        negative: what none of them should show, "" for nothing.
        settings: steps, guidance and sampler; None means the model's. Guidance of the source has
            nothing to say.
        on_step: as of `Editor.edit_batch`.

    Raises:
        InputError: for an unknown task, a seed out of range, a size far beyond the training's, a
            caption that is empty, too long or not text, or a model that needs a picture.
    """
    if editor.networks.text_encoder.sees_pictures:
        raise InputError(
            "this model edits what its text encoder sees, and draws nothing from a caption; give "
            "it a picture: 'emu-edit edit'"
        )
    usual = editor.settings if settings is None else settings
    height, width = (usual.image_size, usual.image_size) if size is None else size
    editor.check_size(height, width)
    for seed in seeds:
        if not isinstance(seed, torch.Generator):
            check_seed(seed)
    cells = (-(-side // editor.multiple) for side in (height, width))
    drawn = editor.edit_latents(
        torch.zeros(len(captions), editor.networks.codec.latent_channels, *cells),
        [clean_instruction(text, what="caption") for text in captions],
        [task] * len(captions),
        seeds,
        negative=[clean_instruction(negative, what="negative text") if negative else ""],
        settings=replace(usual, guidance=replace(usual.guidance, image=1.0)),
        on_step=on_step,
    )
    return editor.decode(drawn, (height, width))
