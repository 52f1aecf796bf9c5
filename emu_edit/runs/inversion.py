"""What an inversion leaves behind: the task's file, a picture, and a few lines (or JSON).

What `fit --config inversion` leaves behind: the same files as `invert`, in the run's folder.
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
from emu_edit.editing.find import RELEASED, RELEASED_NAME
from emu_edit.editing.sheets import GridRow, picture_grid
from emu_edit.errors import InputError
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import SUFFIX, LearnedTask
from emu_edit.models.task_files import install_task
from emu_edit.runs.curves import draw_curves, read_curves
from emu_edit.runs.folder import METRICS
from emu_edit.runs.learned_tasks import taught
from emu_edit.training.few_shot import FewShotPair
from emu_edit.training.inversion import InversionResult
from emu_edit.training.inversion_module import InversionModule

MOST_ROWS = 16  # of the picture


@dataclass(frozen=True)
class NewTaskReport:
    """What was learnt, and from what.

    Attributes:
        name: of the task.
        description: of the task, "" if nobody said.
        pairs: all pairs, those held out too.
        inverted: the vector and how it came about.
        seed: of the inversion.
        seconds: how long learning took.
    """

    name: str
    description: str
    pairs: Sequence[FewShotPair]
    inverted: InversionResult
    seed: int
    seconds: float

    def task(self, base: str) -> LearnedTask:
        """Return the learned task as a record."""
        return LearnedTask(
            name=self.name,
            description=self.description,
            vector=self.inverted.vector,
            base=base,
            pairs=len(self.inverted.trained_on) + len(self.inverted.held_out),
            steps=self.inverted.best_step,
            seed=self.seed,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            instruction=usual_instruction(self.pairs),
        )

    def shown(self) -> list[FewShotPair]:
        """Return the pairs to show: those held out, or else those learnt from; one view of each."""
        names = self.inverted.held_out or self.inverted.trained_on
        first = {pair.name: pair for pair in reversed(self.pairs)}
        return [first[name] for name in names[:MOST_ROWS]]


@dataclass(frozen=True)
class Told:
    """What the user is told.

    Attributes:
        file: the learned task.
        picture: what becomes of the pairs.
        model: the base.
        installed: whether the model knows the task now.
        error_over_copy: mean distance of the shown results from their targets, relative to that of
            their sources: 1 is as if nothing was done.
        nearer: how many of the shown results are nearer to the target than their source is.
        shown: how many are shown.
    """

    file: Path
    picture: Path
    model: Path
    installed: bool
    error_over_copy: float
    nearer: int
    shown: int
    report: NewTaskReport

    def to_json(self) -> str:
        """Return one JSON object and a line's end."""
        inverted = self.report.inverted
        before, after = _errors(inverted)
        return (
            json.dumps({
                "task": self.report.name,
                "file": str(self.file),
                "picture": str(self.picture),
                "model": str(self.model),
                "installed": self.installed,
                "trained_on": len(inverted.trained_on),
                "held_out": len(inverted.held_out),
                "began_at": inverted.began_at,
                "best_step": inverted.best_step,
                "stopped_early": inverted.stopped_early,
                "error_before": before,
                "error_after": after,
                "error_over_copy": self.error_over_copy,
                "nearer": self.nearer,
                "shown": self.shown,
                "seconds": round(self.report.seconds, 1),
                "history": [asdict(check) for check in inverted.history],
            })
            + "\n"
        )

    def to_words(self) -> str:
        """Return a few lines for people, the last ones with what to do next."""
        inverted, name = self.report.inverted, self.report.name
        before, after = _errors(inverted)
        which = "held-out" if inverted.held_out else "training"
        held_out = f", {len(inverted.held_out)} held out" if inverted.held_out else ""
        instruction = quote(usual_instruction(self.report.pairs) or "...")
        use = name if self.installed else quote(str(self.file))
        model = quote(RELEASED_NAME if self.model == RELEASED else str(self.model))
        lines = [
            f"{name}: {len(inverted.trained_on)} pairs learnt from{held_out}; error on {which} "
            f"pairs {before:.3f} as {inverted.began_at!r}, {after:.3f} at step "
            f"{inverted.best_step} ({self.report.seconds:.0f} s)",
            f"{which} pairs: {self.nearer} of {self.shown} results are nearer to their target than "
            f"the source is; what is left to do: {self.error_over_copy:.0%}",
            f"wrote {self.file} ({self.file.stat().st_size} bytes) and {self.picture}",
            "edit with it:",
            f"  emu-edit edit PICTURE {instruction} --task {use} -o edited.png --model {model}",
        ]
        if not self.installed and self.model == RELEASED:
            lines += [
                "keep it in a copy of the model:",
                f"  emu-edit tasks add {model} {use} -o DIR",
            ]
        elif not self.installed:
            lines += ["keep it in the model:", f"  emu-edit tasks add {model} {use}"]
        return "\n".join(lines) + "\n"


def write_new_task(
    report: NewTaskReport,
    editor: Editor,
    model: Path,
    *,
    output: Path,
    install: bool,
    with_predictor: bool,
) -> Told:
    """Write file and picture, and put the task into the model directory if that is wished.

    Raises:
        InputError: if a file cannot be written, or the predictor cannot tell the task from others.
    """
    task = report.task(model_hash(editor.networks))
    task.save(output)  # first of all: what comes next may fail, minutes of learning must not
    if with_predictor and editor.predictor is not None:
        texts = [pair.instruction for pair in report.pairs]
        try:
            task = taught(task, editor.predictor, texts, seed=report.seed)
        except InputError as error:
            raise InputError(f"{output} is written, but nothing else: {error}") from error
        task.save(output)
    if install:
        install_task(model, task, base=task.base)
    editor.add_task(task)
    rows = _edited(report, editor)
    which = "held-out" if report.inverted.held_out else "training"
    picture = output.with_suffix(".png")
    picture_grid(rows, f"{task.name}: {which} pairs, {task.pairs} in all").save(picture)
    ratios = [ratio for row in rows if (ratio := _error_over_copy(row)) is not None]
    return Told(
        output,
        picture,
        model,
        installed=install,
        error_over_copy=sum(ratios) / max(len(ratios), 1),
        nearer=sum(ratio < 1 for ratio in ratios),
        shown=len(ratios),
        report=report,
    )


def _edited(report: NewTaskReport, editor: Editor) -> list[GridRow]:
    """Edit the shown pairs; pair i meets the noise of seed i."""
    pairs = report.shown()
    results = editor.edit_batch(
        torch.stack([pair.source for pair in pairs]),
        [pair.instruction for pair in pairs],
        [report.name] * len(pairs),
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


def _errors(inverted: InversionResult) -> tuple[float, float]:
    """Return the error at the beginning and of the vector that was kept: held out, or training."""
    kept = next(check for check in inverted.history if check.step == inverted.best_step)
    checks = (inverted.history[0], kept)
    if inverted.held_out:
        return tuple(check.held_out for check in checks)  # type: ignore[return-value]
    return checks[0].train, checks[1].train


def write_inversion(
    trainer: Trainer, module: InversionModule, folder: Path, seconds: float
) -> None:
    """Write the learned task, its picture and the curves, and tell what to do next.

    Raises:
        InputError: if the data were no few pairs, or a file cannot be written.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, FewShotData):
        raise InputError("data: a new task is learnt from datamodules.fewshot_data.FewShotData")
    ema = next((c for c in trainer.callbacks if isinstance(c, Ema)), None)  # type: ignore[attr-defined]
    average = None if ema is None or ema.average is None else ema.average["new_task.vector"]
    report = NewTaskReport(
        name=module.name,
        description=module.description,
        pairs=[*data.train_pairs, *data.held_out_pairs],
        inverted=module.result(average),
        seed=module.seed,
        seconds=seconds,
    )
    told = write_new_task(
        report,
        module.editor,
        module.model,
        output=folder / f"{module.name}{SUFFIX}",
        install=False,
        with_predictor=False,
    )
    metrics = folder / METRICS
    if metrics.is_file():
        draw_curves(read_curves(metrics), folder / "curves.png")
    sys.stdout.write(told.to_words())
