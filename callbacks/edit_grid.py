"""Draw what the editor can do by now: the same held-out pairs, the same noise, again and again.

The first few validation pairs of each task are edited with the averaged weights, and drawn beside
source and target. Of a model of videos the pairs are clips: it is told the caption of each and the
frames it is trained to be given, and what it draws moves beside what is true.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import UInt8
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from callbacks.ema import Ema
from callbacks.progress import showing
from emu_edit.batch import ClipBatch, ClipSample, EditBatch, EditSample
from emu_edit.editing.animate import counted_steps
from emu_edit.editing.generate import draw_pictures
from emu_edit.editing.settings import EditorSettings
from emu_edit.editing.sheets import GridRow, picture_grid
from emu_edit.errors import InputError
from emu_edit.randomness import check_seed
from emu_edit.terminal import OnStep
from emu_edit.training.based import ClipModule
from emu_edit.training.loggers import wandb_loggers
from emu_edit.training.module import EditModule
from emu_edit.training.sharding import ShardedStrategy
from emu_edit.video.preview import PLAYED
from emu_edit.video.strip import ClipRow, moving_grid, strip_grid
from emu_edit.video.write import write_clip

EDITS_AT_ONCE = 16
Pair = EditSample | ClipSample

logger = logging.getLogger(__name__)


class EditGrid(Callback):
    """Write `grids/step-000123.png` into the trainer's root folder, and log it to W&B if in use.

    Of videos the picture shows film strips, and `grids/step-000123.mp4` beside it moves. Without
    validation pairs nothing is drawn, which is said once, before the first step.

    Args:
        every: optimizer steps between two grids; there is always one at the end.
        per_task: pairs of each task.
        seed: of the noise; pair i uses seed + i.
        steps: of the sampler at most, for all devices wait: a model that is sampled in more is
            drawn in so many.

    Raises:
        InputError: if a number is below 1.
    """

    def __init__(
        self, every: int = 1000, per_task: int = 1, seed: int = 0, steps: int = 25
    ) -> None:
        if every < 1 or per_task < 1 or steps < 1:
            raise InputError(
                f"EditGrid needs every, per_task and steps of at least 1, got {every}, {per_task} "
                f"and {steps}"
            )
        check_seed(seed, "the seed of EditGrid")
        self.every = every
        self.per_task = per_task
        self.seed = seed
        self.steps = steps
        self._pairs: list[Pair] = []
        self._drawn_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the pairs, so that missing ones are noticed now and not after an hour."""
        self._drawn_step, self._pairs = trainer.global_step, []
        if trainer.is_global_zero:
            self._find(trainer, pl_module)
        if isinstance(trainer.strategy, ShardedStrategy):  # no rank can draw alone
            self._pairs = trainer.strategy.broadcast(self._pairs)

    def _find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (loader := _val_loader(trainer)) is None:
            logger.warning(
                "there are no validation pairs, so no validation loss is measured and no grid of "
                "edits drawn; --data.val DIR gives some"
            )
            return
        num_tasks = len(_edit_module(pl_module).networks.tasks)
        self._pairs = first_of_each_task(loader, num_tasks, self.per_task)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Draw every so many optimizer steps."""
        if trainer.global_step - self._drawn_step >= self.every:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final state."""
        if trainer.global_step != self._drawn_step:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_step = trainer.global_step
        if not self._pairs:  # of another rank, or there are none
            return
        module = _edit_module(pl_module)
        ema = next((c for c in trainer.callbacks if isinstance(c, Ema)), None)  # type: ignore[attr-defined]
        weights = "trained weights" if ema is None else "averaged weights"
        usual = module.editor_settings
        settings = replace(usual, num_steps=min(usual.num_steps, self.steps))
        title = f"step {trainer.global_step}, {weights}"
        unit = "clips" if isinstance(module, ClipModule) else "steps"
        if settings != usual:
            title += f", {settings.num_steps} steps in place of {usual.num_steps}"
        file = Path(trainer.default_root_dir) / "grids" / f"step-{trainer.global_step:06}.png"
        with (
            ema.averaged(module) if ema is not None else nullcontext(),
            evaluating(module),
            trainer.precision_plugin.forward_context(),
            showing(trainer, "drawing", unit) as on_step,
            sampled(module, settings),
        ):
            page, moving = _drawn(module, self._pairs, self.seed, title, on_step)
        if not trainer.is_global_zero:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        page.save(file)
        if moving is not None:
            write_clip(file.with_suffix(".mp4"), *moving, PLAYED)
        for logger in wandb_loggers(trainer):  # one name at all steps: W&B shows it with a slider
            step, captions = trainer.global_step, [title]
            logger.log_image("edits", [page], step=step, caption=captions)
            if moving is not None:  # W&B encodes no frames itself without moviepy: it gets the file
                files = [str(file.with_suffix(".mp4"))]
                logger.log_video("videos", files, step=step, caption=captions)


def _drawn(
    module: EditModule, pairs: list[Pair], seed: int, title: str, on_step: OnStep
) -> tuple[Image.Image, tuple[UInt8[Tensor, "f 3 _ _"], Fraction] | None]:
    """Return the page, and of clips the frames and the rate of the one that moves."""
    if isinstance(module, ClipModule):
        clips = [pair for pair in pairs if isinstance(pair, ClipSample)]
        rows = drawn_clips(module, clips, seed, on_step)
        rate = Fraction(clips[0].rate).limit_denominator(1001)
        return strip_grid(rows, title), (moving_grid(rows, title), rate)
    pictures = [pair for pair in pairs if isinstance(pair, EditSample)]
    return picture_grid(edited_rows(module, pictures, seed, on_step), title), None


def first_of_each_task(
    batches: Iterable[EditBatch | ClipBatch], num_tasks: int, per_task: int
) -> list[Pair]:
    """Return the first pairs of every task, in order of task."""
    found: dict[int, list[Pair]] = {task: [] for task in range(num_tasks)}
    for batch in batches:
        for i, task in enumerate(batch.task.tolist()):
            if len(found[task]) < per_task:
                found[task].append(pair_at(batch, i))
        if all(len(pairs) == per_task for pairs in found.values()):
            break
    return [pair for task in sorted(found) for pair in found[task]]


def pair_at(batch: EditBatch | ClipBatch, i: int) -> Pair:
    """Take pair i out of a batch."""
    source = batch.source[i] if batch.has_source[i] else None
    said = {"key": batch.key[i], "instruction": batch.instruction[i], "task": int(batch.task[i])}
    if isinstance(batch, ClipBatch):
        rate = float(batch.rate[i])
        said["target_caption"] = batch.target_caption[i]
        return ClipSample(source=source, target=batch.target[i], rate=rate, **said)
    return EditSample(source=source, target=batch.target[i], **said)


def edited_rows(
    module: EditModule, pairs: list[EditSample], seed: int, on_step: OnStep | None = None
) -> list[GridRow]:
    """Edit the pairs, a few at a time; pair i always meets the noise of seed + i."""
    editor = module.make_editor()
    names = module.networks.tasks.names
    rows: list[GridRow] = []
    parts = list(_of_one_size(pairs))
    count = counted_steps(on_step, len(parts), editor.settings.num_steps)
    for start, part in parts:
        instructions = [pair.instruction for pair in part]
        tasks = [names[pair.task] for pair in part]
        seeds = [seed + start + i for i in range(len(part))]
        sources = [pair.source for pair in part if pair.source is not None]
        if len(sources) == len(part):
            made = editor.edit_batch(
                torch.stack(sources), instructions, tasks, seeds, on_step=count
            )
        else:  # a data set of captions
            size = part[0].target.shape[-2:]
            made = draw_pictures(
                editor, instructions, seeds, size=size, task=tasks[0], on_step=count
            )
        rows += [
            GridRow(
                pair.target if pair.source is None else pair.source,
                picture,
                pair.target,
                text,
                task,
            )
            for pair, picture, text, task in zip(part, made, instructions, tasks, strict=True)
        ]
    return rows


def _of_one_size(pairs: list[EditSample]) -> Iterator[tuple[int, list[EditSample]]]:
    """Yield the pairs in parts that can be edited at once, and the number of the first of each."""
    start = 0
    for end in range(1, len(pairs) + 1):
        is_full = end - start == EDITS_AT_ONCE
        if end == len(pairs) or is_full or pairs[end].target.shape != pairs[start].target.shape:
            yield start, pairs[start:end]
            start = end


def drawn_clips(
    module: ClipModule, clips: list[ClipSample], seed: int, on_step: OnStep | None = None
) -> list[ClipRow]:
    """Show what the module makes of clips; clip i meets the noise of seed + i."""
    names = module.networks.tasks.names
    rows: list[ClipRow] = []
    for i, clip in enumerate(clips):
        made = module.draw_clip(clip, seed + i)
        rows.append(ClipRow(made, clip.target, clip.instruction, names[clip.task]))
        if on_step is not None:
            on_step(i + 1, len(clips))
    return rows


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and every part back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def sampled(module: EditModule, settings: EditorSettings) -> Iterator[None]:
    """Let a module's editor be sampled in another way until the block ends."""
    usual, module.editor_settings = module.editor_settings, settings
    try:
        yield
    finally:
        module.editor_settings = usual


def _val_loader(trainer: Trainer) -> Iterable[EditBatch | ClipBatch] | None:
    data = trainer.datamodule  # type: ignore[attr-defined]
    loader = trainer.val_dataloaders if data is None else data.val_dataloader()
    return loader or None


def _edit_module(module: LightningModule) -> EditModule:
    if not isinstance(module, EditModule):
        raise TypeError(f"the EditGrid callback draws an EditModule, got {type(module).__name__}")
    return module
