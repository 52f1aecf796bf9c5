"""What only the model knows of a sample: how long a text may be, which sizes and tasks there are.

A limit that shows up in the text encoder, in the middle of a batch, ends a training at some late
step without a name, and again after every resumption. So the processes that read are given the
limit, and a text that is too long is cut, skipped as any other bad sample, or refused by name;
sizes and tasks are compared with the model before the first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from lightning.pytorch import Trainer

from datamodules.shards.folder import ShardFolder
from datamodules.stream.transforms import Crop
from emu_edit.batch import TEXT_TOO_LONG
from emu_edit.errors import BadDataError, BadSampleError, InputError, closest
from emu_edit.models.interfaces import TextLimit
from emu_edit.models.networks import EditNetworks
from emu_edit.tasks import TaskTable
from emu_edit.training.module import EditModule


class LongTexts(Enum):
    """What becomes of instructions that are longer than the text encoder takes.

    `truncate` keeps the words that fit and counts; `skip` takes another sample; `refuse` stops.
    """

    truncate = "truncate"
    skip = "skip"
    refuse = "refuse"


class Fitted(NamedTuple):
    """A text as it is read; `reason` says how long it was if a part was left out, else ""."""

    text: str
    reason: str = ""


@dataclass(frozen=True)
class TextRule:
    """Bring the wordings of an instruction within a limit; without one they stay as they are."""

    limit: TextLimit | None = None
    long_texts: LongTexts = LongTexts.truncate

    def __call__(self, wordings: Sequence[str], where: str) -> list[Fitted]:
        """Return the wordings that can be read, as many as given unless long ones are skipped.

        Raises:
            BadSampleError: if there are none, starting with `where`.
            BadDataError: if one is too long and that is to be refused.
        """
        limit = self.limit
        if limit is None:
            return [Fitted(text) for text in wordings]
        fitted: list[Fitted] = []
        reason = ""
        for text in wordings:
            if limit.fits(text):
                fitted.append(Fitted(text))
                continue
            reason = too_long(text, limit)
            if self.long_texts is LongTexts.refuse:
                raise BadDataError(
                    f"{where}: {reason}; shorten it, or choose long_texts: truncate or skip"
                )
            if self.long_texts is LongTexts.truncate and (beginning := limit.cut(text)):
                fitted.append(Fitted(beginning, reason))
        if not fitted:
            raise BadSampleError(f"{where}: {reason}", TEXT_TOO_LONG)
        return fitted

    def fit(self, trainer: Trainer | None, table: TaskTable, crop: Crop) -> "TextRule":
        """Return this rule with the limit of the model that is trained; without one, itself.

        Raises:
            InputError: if the sides of the pictures or the numbers of the tasks are not the
                model's.
        """
        module = None if trainer is None else trainer.lightning_module
        if not isinstance(module, EditModule):
            return self
        refuse_other_model(module.networks, table, crop)
        return replace(self, limit=module.networks.text_encoder.limit)


def too_long(text: str, limit: TextLimit) -> str:
    """Say how long a text is and how long it may be."""
    return (
        f"the instruction has {limit.count(text)} tokens, the text encoder takes at most "
        f"{limit.max_tokens}"
    )


def refuse_unknown_tasks(folder: ShardFolder, table: TaskTable) -> None:
    """Do nothing if all tasks of a folder are in the table.

    Raises:
        InputError: naming the first that is not.
    """
    for task in folder.manifest.tasks:
        if task not in table.names:
            hint = closest(task, list(table.names))
            raise InputError(
                f"{folder} has shards of unknown task {task!r}.{hint} Known are those of data.tasks"
            )


def refuse_other_model(networks: EditNetworks, table: TaskTable, crop: Crop) -> None:
    """Compare what the data are brought to with what a model takes.

    Raises:
        InputError: if the size of the pictures or the numbers of the tasks are not the model's.
    """
    factor, image_size = networks.codec.factor * crop.parts, crop.image_size
    if image_size % factor:
        below = image_size // factor * factor
        sizes = " or ".join(str(size) for size in (below, below + factor) if size)
        raise InputError(
            f"data.image_size={image_size} is no multiple of {factor}, as the model's codec needs"
            f"{' for data.buckets' if crop.parts > 1 else ''}; set {sizes}"
        )
    known = networks.tasks.names
    if known[: len(table)] != table.names:
        raise InputError(
            f"data.tasks is {', '.join(table.names)}, but the model's tasks are "
            f"{', '.join(known)}; model.tasks has to begin with data.tasks, the sixteen if not set"
        )
