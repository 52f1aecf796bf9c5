"""A running mean of the trainable weights: for pictures and numbers, never trained from.

The mean lives here and in the checkpoint's callback state. The module holds it only inside
`averaged`, which gives the trained weights back whatever happens; a checkpoint cannot be written
meanwhile. Lightning's own callback copies the frozen encoders too, and saves the wrong weights when
validation is interrupted.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.training.optim import (
    EMA_STATE_KEY,
    check_matches,
    copy_of,
    decay_at,
    trainable,
    update,
    with_weights,
)
from emu_edit.training.sharding import gathered, part_like


class Ema(Callback):
    """Average the weights after each optimizer step.

    a = d a + (1 - d) w,   d = min(decay, (1 + n) / (10 + n)) in update n

    Validation and tests run with the average. Ranks hold the same weights, so they hold the same
    average.

    Args:
        decay: how much of the past is kept; 0.999 looks back about a thousand steps.

    Raises:
        InputError: if decay is not in [0, 1).

    Source: Karras et al. 2024, arXiv:2312.02696, section 3 (why); the warm-up is TensorFlow's.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"the decay of the weight average must be in [0, 1), got {decay!r}")
        self.decay = decay
        self.num_updates = 0
        self.average: dict[str, Tensor] | None = None
        self.is_swapped = False
        self._seen_step = 0
        self._lent = ExitStack()

    @property
    def state_key(self) -> str:
        """The name of this state in checkpoints."""
        return EMA_STATE_KEY

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the present weights, or from the average of the checkpoint that is resumed."""
        if self.average is None:
            self.average = copy_of(pl_module)
        check_matches(self.average, pl_module)
        self.average = _in_order_of(pl_module, self.average)
        self._seen_step = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the step that was restored."""
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Average once per optimizer step, not per micro-batch."""
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        if self.average is not None:
            update(self.average, pl_module, decay_at(self.num_updates, self.decay))
            self.num_updates += 1

    @contextmanager
    def averaged(self, module: LightningModule) -> Iterator[None]:
        """Lend the module the averaged weights.

        Does nothing inside another `averaged`, or without an average.
        """
        if self.average is None or self.is_swapped:
            yield
            return
        with with_weights(module, self.average):
            self.is_swapped = True
            try:
                yield
            finally:
                self.is_swapped = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average; outside training, the one of the checkpoint that is validated."""
        self._lent.enter_context(self.averaged(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the trained weights back."""
        self._lent.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test the average."""
        self._lent.enter_context(self.averaged(pl_module))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the trained weights back."""
        self._lent.close()

    def on_exception(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        exception: BaseException,
    ) -> None:
        """Give the trained weights back when validation is interrupted."""
        self._lent.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the trained weights back."""
        self._lent.close()

    def on_save_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        checkpoint: dict,
    ) -> None:
        """Refuse to save while the module holds the average: training would go on from it."""
        if self.is_swapped:
            raise RuntimeError(
                "a checkpoint was to be written while the module holds averaged weights"
            )

    def state_dict(self) -> dict[str, object]:
        """Return the average and its age: tensors and a number, safe under `weights_only`.

        Of a sharded training it is whole on rank 0 and empty elsewhere; all ranks must call it.
        """
        average = None if self.average is None else gathered(self.average)
        return {"num_updates": self.num_updates, "average": average}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over an average; it is checked and moved when training starts."""
        self.num_updates = state_dict["num_updates"]
        self.average = state_dict["average"]


def _in_order_of(module: LightningModule, average: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the average in the order, on the devices and in the parts of the weights."""
    return {name: part_like(average[name], own) for name, own in trainable(module).items()}
