"""A training of what hangs on a picture model, whose weights stay out of the checkpoint."""

from jaxtyping import UInt8
from torch import Tensor

from emu_edit.batch import ClipSample
from emu_edit.errors import InputError
from emu_edit.models.learned_task import SHOWN
from emu_edit.training.module import EditModule

BASE = "base"  # in checkpoints: the hash of the picture model


class BasedModule(EditModule):
    """An `EditModule` that names the picture model it learns on, and refuses another.

    Attributes:
        adapter_base: the picture model's `base_fingerprint`.
    """

    adapter_base: str

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Write down which picture model the weights are for."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[BASE] = self.adapter_base

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse weights that were learnt on another picture model.

        Raises:
            InputError: naming both.
        """
        found = checkpoint.get(BASE)
        if found != self.adapter_base:
            raise InputError(
                f"the checkpoint's layers are for the picture model {str(found)[:SHOWN]}, "
                f"model.model is {self.adapter_base[:SHOWN]}; give the model it was begun with"
            )
        super().on_load_checkpoint(checkpoint)


class ClipModule(BasedModule):
    """One that learns from clips, and can show what it makes of one."""

    def draw_clip(self, clip: ClipSample, seed: int) -> UInt8[Tensor, "f 3 h w"]:
        """Make what a clip of the data shows, from what is given of it."""
        raise NotImplementedError
