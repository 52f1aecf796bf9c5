"""What a model was trained on, and in a line why it may not do what is asked.

A model answers anything: a photograph it does not know gets blotches, an unknown wish the edit that
the words are nearest to. Nothing is refused for that, but it is said.
"""

from collections.abc import Iterable

from jaxtyping import UInt8
from torch import Tensor

from emu_edit.editing.editor import Editor
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.editing.settings import PHOTOGRAPHS_TOO, WORLD
from emu_edit.editing.task_mix import TaskChoice, task_names
from emu_edit.images import is_photograph
from emu_edit.tasks import SIXTEEN

# as datamodules.world teaches them
LEARNT_ON_PHOTOGRAPHS = frozenset({"global", "style", "color", "sketch"})


def about_training(editor: Editor) -> str:
    """Say what the model was trained on."""
    if editor.trained_on == WORLD:
        return (
            "This model was trained on drawn scenes of the built-in world only, "
            f"{editor.settings.image_size} px: named shapes, stick figures and words. It has never "
            "seen a photograph."
        )
    if editor.trained_on == PHOTOGRAPHS_TOO:
        return (
            f"This model was trained on pictures of {editor.settings.image_size} px: drawn scenes "
            "of the built-in world, some before a photograph, and photographs whose light, colours "
            "and style were changed as a whole. It does not know the things on photographs."
        )
    return (
        f"This model was trained on pictures of {editor.settings.image_size} px; what they show, "
        "its directory does not say."
    )


def doubt_about(
    editor: Editor,
    image: UInt8[Tensor, "3 h w"],
    prediction: TaskPrediction | None = None,
    tasks: Iterable[TaskChoice] = (),
) -> str:
    """Say in a line why the model may not do what is asked; "" when there is no reason known.

    Args:
        editor: what is to edit.
        image: the picture.
        prediction: of the task, if the predictor chose it.
        tasks: that are to be done, whoever chose them.
    """
    lines = []
    if editor.trained_on == WORLD and is_photograph(image):
        lines.append("this looks like a photograph, and the model has never seen one")
    names = dict.fromkeys(name for task in tasks for name in task_names(task))
    # of what was learnt by inversion nothing is known
    drawn = [name for name in names if name in SIXTEEN.names and name not in LEARNT_ON_PHOTOGRAPHS]
    if editor.trained_on == PHOTOGRAPHS_TOO and drawn and is_photograph(image):
        words = ", ".join(drawn)
        lines.append(f"{words}: learnt on drawn scenes, and this looks like a photograph")
    if prediction is not None and not prediction.is_sure:
        lines.append(f"not sure which task is meant: {prediction.describe()}")
    return "; ".join(lines)
