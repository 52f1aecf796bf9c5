"""What an inversion leaves behind: the task's file, a picture, and a few lines (or JSON).

The same for `invert` and, in the run's folder, for `fit --config inversion`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote

import torch
from lightning.pytorch import Trainer

from callbacks.ema import Ema
from datamodules.fewshot import usual_instruction
from datamodules.fewshot_data import FewShotData
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import RELEASED, shown_path
from emu_edit.editing.sheets import GridRow, picture_grid
from emu_edit.errors import InputError
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import SUFFIX, LearnedTask
from emu_edit.models.task_files import install_task
from emu_edit.runs.curves import draw_curves, read_curves
from emu_edit.runs.folder import METRICS
from emu_edit.runs.learned_tasks import with_predictor_row
from emu_edit.terminal import plural
from emu_edit.training.few_shot import FewShotPair
from emu_edit.training.inversion import InversionResult
from emu_edit.training.inversion_module import InversionModule
from emu_edit.training.loggers import wandb_loggers

MOST_ROWS = 16  # of the picture


@dataclass(frozen=True)
class Inversion:
    """A finished inversion: what was learnt, and from what; `pairs` has those held out, too."""

    name: str
    description: str
    pairs: Sequence[FewShotPair]
    result: InversionResult
    seed: int
    seconds: float

    def task(self, base: str) -> LearnedTask:
        """Return the learned task of the model whose hash is `base`."""
        return LearnedTask(
            name=self.name,
            description=self.description,
            vector=self.result.vector,
            base=base,
            pairs=len(self.result.trained_on) + len(self.result.held_out),
            steps=self.result.best_step,
            seed=self.seed,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            instruction=usual_instruction(self.pairs),
        )

    def shown(self) -> list[FewShotPair]:
        """Return the pairs to show: those held out, or else those learnt from; one view of each."""
        names = self.result.held_out or self.result.trained_on
        first = {pair.name: pair for pair in reversed(self.pairs)}
        return [first[name] for name in names[:MOST_ROWS]]

    @property
    def kind(self) -> str:
        """Which pairs are shown and measured, in a word."""
        return "held-out" if self.result.held_out else "training"

    def errors(self) -> tuple[float, float]:
        """Return the loss on these pairs at the beginning, and of the vector that was kept."""
        history, best = self.result.history, self.result.best_step
        checks = (history[0], next(check for check in history if check.step == best))
        before, after = (c.train if c.held_out is None else c.held_out for c in checks)
        return before, after


@dataclass(frozen=True)
class InversionReport:
    """What a user reads about a finished inversion.

    Attributes:
        installed: whether the model knows the task now.
        error_over_copy: mean distance of the shown results from their targets, relative to that of
            their sources: 1 is as if nothing was done.
        nearer: how many of the shown results are nearer to the target than their source is.
        shown: how many are shown.
    """

    inversion: Inversion
    file: Path
    picture: Path
    model: Path
    installed: bool
    error_over_copy: float
    nearer: int
    shown: int

    def to_json(self) -> str:
        """Return one JSON object and a line's end."""
        result = self.inversion.result
        before, after = self.inversion.errors()
        values = {
            "task": self.inversion.name,
            "file": str(self.file),
            "picture": str(self.picture),
            "model": str(self.model),
            "installed": self.installed,
            "trained_on": len(result.trained_on),
            "held_out": len(result.held_out),
            "began_at": result.began_at,
            "best_step": result.best_step,
            "stopped_early": result.stopped_early,
            "error_before": before,
            "error_after": after,
            "error_over_copy": self.error_over_copy,
            "nearer": self.nearer,
            "shown": self.shown,
            "seconds": round(self.inversion.seconds, 1),
            "history": [asdict(check) for check in result.history],
        }
        return f"{json.dumps(values)}\n"

    def to_words(self) -> str:
        """Return a few lines for people, the last ones with what to do next."""
        result, name, kind = self.inversion.result, self.inversion.name, self.inversion.kind
        before, after = self.inversion.errors()
        held_out = f", {len(result.held_out)} held out" if result.held_out else ""
        instruction = quote(usual_instruction(self.inversion.pairs) or "...")
        use = name if self.installed else quote(str(self.file))
        model = quote(shown_path(self.model))
        lines = [
            f"{name}: {plural(len(result.trained_on), 'pair')} learnt from{held_out}; "
            f"error on {kind} pairs "
            f"{before:.3f} as {result.began_at!r}, {after:.3f} at step {result.best_step} "
            f"({self.inversion.seconds:.0f} s)",
            f"{kind} pairs: {self.nearer} of {self.shown} results are nearer to their target than "
            f"the source is; what is left to do: {self.error_over_copy:.0%}",
            f"wrote {self.file} ({self.file.stat().st_size} bytes) and {self.picture}",
            "edit with it:",
            f"  emu-edit edit PICTURE {instruction} --task {use} -o edited.png --model {model}",
        ]
        if not self.installed:
            is_released = self.model == RELEASED
            lines += [
                f"keep it in {'a copy of ' if is_released else ''}the model:",
                f"  emu-edit tasks add {model} {use}{' -o DIR' if is_released else ''}",
            ]
        return "\n".join(lines) + "\n"


def write_new_task(
    inversion: Inversion,
    editor: Editor,
    model: Path,
    *,
    output: Path,
    install: bool = False,
    with_predictor: bool = False,
) -> InversionReport:
    """Write file and picture, and put the task into the model directory if that is wished.

    Raises:
        InputError: if a file cannot be written, or the predictor cannot tell the task from others.
    """
    task = inversion.task(model_hash(editor.networks))
    task.save(output)  # first of all: what comes next may fail, minutes of learning must not
    if with_predictor and editor.predictor is not None:
        texts = [pair.instruction for pair in inversion.pairs]
        try:
            task = with_predictor_row(task, editor.predictor, texts, seed=inversion.seed)
        except InputError as error:
            raise InputError(f"{output} is written, but nothing else: {error}") from error
        task.save(output)
    if install:
        install_task(model, task, base=task.base)
    editor.add_task(task)
    rows = _edited(inversion, editor)
    picture = output.with_suffix(".png")
    picture_grid(rows, f"{task.name}: {inversion.kind} pairs, {task.pairs} in all").save(picture)
    ratios = [ratio for row in rows if (ratio := _error_over_copy(row)) is not None]
    return InversionReport(
        inversion,
        output,
        picture,
        model,
        installed=install,
        error_over_copy=sum(ratios) / max(len(ratios), 1),
        nearer=sum(ratio < 1 for ratio in ratios),
        shown=len(ratios),
    )


def _edited(inversion: Inversion, editor: Editor) -> list[GridRow]:
    """Edit the shown pairs; pair i meets the noise of seed i."""
    pairs = inversion.shown()
    results = editor.edit_batch(
        torch.stack([pair.source for pair in pairs]),
        [pair.instruction for pair in pairs],
        [inversion.name] * len(pairs),
        list(range(len(pairs))),
    )
    return [
        GridRow(pair.source, result, pair.target, pair.instruction, pair.name)
        for pair, result in zip(pairs, results, strict=True)
    ]


def _error_over_copy(row: GridRow) -> float | None:
    """Return |edited - target| / |source - target|, None where nothing was to be done."""
    target = row.target.float()
    copy = (row.source.float() - target).abs().mean()
    return None if copy == 0 else float((row.edited.float() - target).abs().mean() / copy)


def write_inversion(
    trainer: Trainer, module: InversionModule, folder: Path, seconds: float
) -> None:
    """Write the learned task, its picture and the curves, and print what to do next.

    Raises:
        InputError: if the data were no few pairs, or a file cannot be written.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, FewShotData):
        raise InputError("data: a new task is learnt from datamodules.fewshot_data.FewShotData")
    ema = next((c for c in trainer.callbacks if isinstance(c, Ema)), None)  # type: ignore[attr-defined]
    average = None if ema is None or ema.average is None else ema.average["new_task.vector"]
    inversion = Inversion(
        name=module.name,
        description=module.description,
        pairs=[*data.train_pairs, *data.held_out_pairs],
        result=module.result(average),
        seed=module.seed,
        seconds=seconds,
    )
    output = folder / f"{module.name}{SUFFIX}"
    report = write_new_task(inversion, module.editor, module.model, output=output)
    metrics = folder / METRICS
    if metrics.is_file():
        draw_curves(read_curves(metrics), folder / "curves.png")
    before, after = inversion.errors()
    numbers = {"error_before": before, "error_after": after, "seconds": seconds}
    numbers |= {"error_over_copy": report.error_over_copy}
    for logger in wandb_loggers(trainer):
        logger.log_results(
            trainer.global_step,
            numbers | {"nearer": report.nearer / max(report.shown, 1)},
            table=[asdict(check) for check in inversion.result.history],
            pictures={"edits": report.picture, "curves": folder / "curves.png"},
            artifact=report.file,
        )
    sys.stdout.write(report.to_words())
