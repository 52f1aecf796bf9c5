"""What a model was trained on, and doubts about requests it was not trained for, each in a line.

A model of the built-in world answers anything: a photograph gets blotches, an unknown wish the edit
that the words are nearest to. Nothing is refused for that, but it is said: by the command line, the
page and `EditSession.doubts`.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.editing.editor import WORLD, Editor
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.images import resize, with_shorter_side

# Ours. At 64 px, 68 % and more of the neighbours in 800 pictures of the world differ by so many
# levels or fewer; in photographs of people, animals and things 4 to 40 %.
LEVELS = 2
LEAST_FLAT = 0.55


def about_training(editor: Editor) -> str:
    """Say what the model was trained on."""
    if editor.trained_on == WORLD:
        return (
            "This model was trained on drawn scenes of the built-in world only, "
            f"{editor.settings.image_size} px: named shapes, stick figures and words. It has never "
            "seen a photograph."
        )
    return (
        f"This model was trained on pictures of {editor.settings.image_size} px; what they show, "
        "its directory does not say."
    )


def doubt_about(
    editor: Editor, image: UInt8[Tensor, "3 h w"], prediction: TaskPrediction | None = None
) -> str:
    """Say in a line why the model may not do what is asked; "" when there is no reason known.

    Args:
        editor: what is to edit.
        image: the picture.
        prediction: of the task, if the predictor chose it.
    """
    lines = []
    if editor.trained_on == WORLD and is_photograph(image):
        lines.append("this looks like a photograph, and the model has never seen one")
    if prediction is not None and not prediction.is_sure:
        lines.append(f"not sure which task is meant: {prediction.describe()}")
    return "; ".join(lines)


def is_photograph(image: UInt8[Tensor, "3 h w"]) -> bool:
    """Guess whether a picture is a photograph: hardly any neighbours in it are alike."""
    height, width = image.shape[-2:]
    size = with_shorter_side(64, height=height, width=width)
    small = resize(image, size).to(torch.int16)
    is_flat = (small[:, :, 1:] - small[:, :, :-1]).abs().amax(0) <= LEVELS
    return is_flat.float().mean().item() < LEAST_FLAT
