"""A callback that ends its process as a lost machine would: without any notice."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer

KILL_AT = "TEST_KILL_AT"  # the optimizer step, in the environment so that configs stay equal


class Killer(Callback):
    """Kill -9 this process after an optimizer step, when the environment names one."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the step."""
        del pl_module, outputs, batch, batch_idx
        if os.environ.get(KILL_AT) == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)
