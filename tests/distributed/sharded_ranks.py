"""Training on parts of the weights in two processes; torchrun starts it with a folder.

Each rank writes what it has at the end: whole weights, averages, losses, and what was refused.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from callbacks.durable import Checkpoints
from callbacks.edit_grid import EditGrid
from callbacks.ema import Ema
from callbacks.finite import Finite
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import LogitNormal
from emu_edit.editing.settings import EditorSettings
from emu_edit.models.chat_text import ChatText
from emu_edit.models.codec import PackedCodec
from emu_edit.models.dit import DiTDenoiser
from emu_edit.runs.failures import closing_connections
from emu_edit.training.checkpoint_io import DurableCheckpointIO
from emu_edit.training.module import EditModule
from emu_edit.training.optim import OptimizerSettings, trainable
from emu_edit.training.sharding import NAME
from tests.distributed.two_ranks import train_spoilt
from tests.training.stage import SIZE, TASKS, TRAINER_WARNINGS, Squares, make_module, make_trainer

STEPS, BATCH, EPOCHS = 2, 4, 2
CHECKPOINT, LAST = (f"checkpoints/step-{n * STEPS:08}.ckpt" for n in (1, EPOCHS))
MIXED = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "max_epochs": 1}
OPTIMIZER = OptimizerSettings(lr=1e-3, warmup_steps=0)
Make = Callable[[Path], EditModule]


def unet(_folder: Path) -> EditModule:
    """Build the smallest U-Net, with a text encoder that learns beside it."""
    return make_module(optimizer=OPTIMIZER, weights_seed=_seed())


def klein(folder: Path) -> EditModule:
    """Build a FLUX.2 klein of two blocks, trained whole; its maps begin at random."""
    base = str(folder / "klein")
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(_seed())
        module = EditModule(
            denoiser=DiTDenoiser(base, task_dim=8, gradient_checkpointing=True),
            text_encoder=ChatText(base, layers=[1, 2, 3], max_tokens=96),
            codec=PackedCodec(base),
            tasks=TASKS,
            prediction=Prediction.flow,
            logit_normal=LogitNormal(),
            optimizer=OPTIMIZER,
            editor=EditorSettings(image_size=SIZE, num_steps=2),
        )
        for weight in module.networks.denoiser.maps().values():
            torch.nn.init.normal_(weight, std=0.1)
    return module


def _seed() -> int:
    """Let ranks begin with other weights; training has to begin with those of rank 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors, put together from their parts, on all ranks."""
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in tensors.items()
    }


class Seen(Callback):
    """Keep the gradients of the first optimizer step, and all losses."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.parts: dict[str, tuple[int, ...]] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        weights = trainable(pl_module)
        if not self.gradients:
            self.gradients = whole({n: p.grad for n, p in weights.items() if p.grad is not None})
            self.parts = {
                n: tuple(p.to_local().shape) for n, p in weights.items() if isinstance(p, DTensor)
            }

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def train(
    make: Make,
    folder: Path,
    *,
    strategy: str = "auto",
    ckpt_path: Path | None = None,
    **settings,
) -> dict:
    """Train; return gradients of the first step, losses, and weights and averages at the end.

    In float64, where rounding is far below what AdamW adds to the root of its second moment: a
    gradient that is nothing but rounding moves no weight.
    """
    module, ema, seen, folder = make(folder.parents[1]), Ema(), Seen(), folder / strategy
    trainer = make_trainer(
        folder,
        ema,
        Finite(),
        seen,
        Checkpoints(str(folder / "checkpoints")),
        *([] if ckpt_path else [EditGrid(every=STEPS)]),
        devices=1 if strategy == "auto" else 2,
        strategy=strategy,
        plugins=[DurableCheckpointIO()],
        enable_checkpointing=True,
        **{"precision": "64-true", "gradient_clip_val": 0.05, "max_epochs": EPOCHS, **settings},
    )
    data = Squares(steps=STEPS * trainer.accumulate_grad_batches, batch=BATCH)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return {
        "gradients": seen.gradients,
        "losses": seen.losses,
        "parts": seen.parts,
        "weights": whole(dict(trainable(module))),
        "average": whole(ema.average or {}),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }


def main() -> None:
    """Train in parts and copied, go on from checkpoints, and write the results of this rank."""
    folder = Path(sys.argv[1])
    for line in TRAINER_WARNINGS:
        warnings.filterwarnings("ignore", message=line.removeprefix("ignore:"))
    result: dict[str, Any] = {
        "unet": train(unet, folder / "unet" / "run", strategy=NAME),
        "klein": train(klein, folder / "klein" / "run", strategy=NAME),
        "klein ddp": train(klein, folder / "klein" / "run", strategy="ddp"),
        "mixed": train(klein, folder / "klein" / "mixed", strategy=NAME, **MIXED),
        "mixed ddp": train(klein, folder / "klein" / "mixed", strategy="ddp", **MIXED),
    }
    for begun in ("auto", NAME):
        half = folder / "unet" / "run" / begun / CHECKPOINT
        result[begun] = train(
            unet, folder / "unet" / f"from-{begun}", strategy=NAME, ckpt_path=half
        )
    result["spoilt"], weights = train_spoilt(folder / "spoilt", strategy=NAME)
    result["spoilt weights"] = whole(weights)
    torch.save(result, folder / f"rank{dist.get_rank()}.pt")


if __name__ == "__main__":
    with closing_connections():
        main()
