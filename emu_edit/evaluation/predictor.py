"""How well a task predictor does: accuracy per task, confusions, calibration; JSON and pictures.

What may be meant in several ways has several right answers: then any of them counts as right.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from emu_edit.editing.predictor import TaskPrediction, TaskPredictor
from emu_edit.editing.sheets import new_figure
from emu_edit.errors import InputError
from emu_edit.metrics.calibration import ConfidenceBin, expected_calibration_error, reliability
from emu_edit.tasks import TaskTable
from emu_edit.terminal import plural
from emu_edit.text_rules import clean_instruction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBERS, PICTURE, CURVE = "confusion.json", "confusion.png", "calibration.png"
MOST_MISTAKES = 100  # written down one by one
VERY_SURE = 0.9  # above it, a wrong answer is worse than a question
Asked = tuple[str, tuple[str, ...]]  # a text, and the tasks that are right
FADED = 0.5  # shares above it are written in white, on dark


@dataclass(frozen=True)
class Mistake:
    """One instruction of which none of the tasks that are right was predicted."""

    instruction: str
    asked: tuple[str, ...]
    prediction: TaskPrediction


@dataclass(frozen=True)
class PredictorScore:
    """What a predictor made of instructions whose task is known.

    Attributes:
        tasks: the predictor's table.
        confusion: row = task asked for, column = task predicted; counts.
        calibration_error: expected calibration error, 0 to 1.
        sure: share of the instructions it is sure of.
        right_when_sure: share of those that are right; 1 when there are none.
        wrong_when_very_sure: share of all instructions that are wrong with a confidence above 0.9.
        calibration: confidence against truth, in ten bins.
        mistakes: all that went wrong, in order.
    """

    tasks: tuple[str, ...]
    confusion: Int64[Tensor, "n n"]
    calibration_error: float
    sure: float
    right_when_sure: float
    wrong_when_very_sure: float
    calibration: tuple[ConfidenceBin, ...]
    mistakes: tuple[Mistake, ...]

    @property
    def num_texts(self) -> int:
        """How many instructions were asked."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of all instructions whose task was named."""
        return float(self.confusion.diagonal().sum()) / self.num_texts

    def of_task(self, index: int) -> tuple[int, float]:
        """Count the instructions of a task, and say which share of them was right."""
        asked = int(self.confusion[index].sum())
        return asked, float(self.confusion[index, index]) / max(asked, 1)


def read_sentences(file: Path, tasks: TaskTable) -> list[Asked]:
    """Read sentences and the tasks that are right from JSON lines: "text", and "tasks" or "task".

    Raises:
        InputError: if a line is no such object, or a task is not in the table.
    """
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{file}:{number}"
        try:
            values = json.loads(line)
            text, right = values["text"], tuple(values.get("tasks") or (values["task"],))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f'{where} is no JSON object with a "text" and its "tasks", a list of names'
            ) from error
        for task in right:
            tasks.index(task)
        found.append((clean_instruction(text, where), right))
    if not found:
        raise InputError(f"{file} has no sentences; give one JSON object a line")
    return found


def score(predictor: TaskPredictor, instructions: Sequence[Asked]) -> PredictorScore:
    """Ask for the task of every instruction.

    Raises:
        InputError: if a task is not in the predictor's table, or a text is too long.
    """
    table = predictor.tasks
    probabilities = predictor.probabilities([text for text, _ in instructions])
    predictions = predictor.rank(probabilities)
    # of several right answers the one that was given, else the first, stands for what was asked
    asked = torch.tensor([
        table.index(p.task if p.task in right else right[0])
        for p, (_, right) in zip(predictions, instructions, strict=True)
    ])
    confidence, predicted = probabilities.max(dim=1)
    is_sure = torch.tensor([p.is_sure for p in predictions])
    is_right = predicted == asked
    return PredictorScore(
        tasks=table.names,
        confusion=multiclass_confusion_matrix(predicted, asked, len(table)),
        calibration_error=expected_calibration_error(probabilities, asked),
        sure=float(is_sure.float().mean()),
        right_when_sure=float(is_right[is_sure].float().mean()) if is_sure.any() else 1.0,
        wrong_when_very_sure=float((~is_right & (confidence > VERY_SURE)).float().mean()),
        calibration=tuple(reliability(confidence, is_right)),
        mistakes=tuple(
            Mistake(text, right, prediction)
            for (text, right), prediction in zip(instructions, predictions, strict=True)
            if prediction.task not in right
        ),
    )


def format_score(result: PredictorScore) -> str:
    """Write a table for the terminal: a line per task, then the whole."""
    lines = [f"{'task':<12}{'asked':>7}{'right':>8}  taken for"]
    for index, task in enumerate(result.tasks):
        asked, share = result.of_task(index)
        row = result.confusion[index].tolist()
        wrong = {result.tasks[j]: n for j, n in enumerate(row) if n and j != index}
        ranked = sorted(wrong.items(), key=lambda entry: -entry[1])
        others = ", ".join(f"{name} ({n})" for name, n in ranked)
        lines.append(
            f"{task:<12}{asked:>7}{f'{share:.1%}' if asked else '-':>8}  {others}".rstrip()
        )
    lines += [
        "",
        f"accuracy {result.accuracy:.2%} on {plural(result.num_texts, 'instruction')}; "
        f"expected calibration error {result.calibration_error:.3f}",
        f"sure of {result.sure:.1%}, and right in {result.right_when_sure:.1%} of those; "
        f"wrong with over {VERY_SURE:.0%} confidence: {result.wrong_when_very_sure:.2%} of all",
        "",
        f"{'confidence':>10}{'texts':>7}{'right':>8}",
        *(f"{b.confidence:>10.0%}{b.count:>7}{b.accuracy:>8.0%}" for b in result.calibration),
    ]
    return "\n".join(lines)


def format_side_by_side(results: Mapping[str, PredictorScore]) -> str:
    """Write the share right of each task for several predictors of one table, then the whole."""
    names = list(results)
    scores = list(results.values())
    lines = ["  ".join([f"{'task':<12}", *(f"{name:>14}" for name in names)])]
    for i, task in enumerate(scores[0].tasks):
        shares = [f"{score.of_task(i)[1]:>14.1%}" for score in scores]
        lines.append("  ".join([f"{task:<12}", *shares]))
    rows = {
        "all": [s.accuracy for s in scores],
        "wrong > 90%": [s.wrong_when_very_sure for s in scores],
        "calibration": [s.calibration_error for s in scores],
    }
    for name, values in rows.items():
        lines.append("  ".join([f"{name:<12}", *(f"{value:>14.1%}" for value in values)]))
    return "\n".join(lines)


def write_score(folder: Path, result: PredictorScore, *, predictor: str, source: str) -> None:
    """Write `confusion.json`, `confusion.png` and `calibration.png` into a folder.

    Args:
        folder: where to; it is made if missing.
        result: what was measured.
        predictor: which one, for the record.
        source: where the instructions are from, for record and title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "predictor": predictor,
        "instructions_from": source,
        "instructions": result.num_texts,
        "accuracy": result.accuracy,
        "expected_calibration_error": result.calibration_error,
        "sure": result.sure,
        "right_when_sure": result.right_when_sure,
        "wrong_when_very_sure": result.wrong_when_very_sure,
        "calibration": [asdict(entry) for entry in result.calibration],
        "accuracy_by_task": {
            task: result.of_task(i)[1] if result.of_task(i)[0] else None
            for i, task in enumerate(result.tasks)
        },
        "tasks": list(result.tasks),
        "confusion": result.confusion.tolist(),
        "num_mistakes": len(result.mistakes),
        "mistakes": [
            {
                "instruction": mistake.instruction,
                "asked": " or ".join(mistake.asked),
                "predicted": mistake.prediction.task,
                "first_three": [list(entry) for entry in mistake.prediction.ranking[:3]],
            }
            for mistake in result.mistakes[:MOST_MISTAKES]
        ],
    }
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (folder / NUMBERS).write_text(text, encoding="utf-8")
    title = f"{source}: {result.accuracy:.1%} of {result.num_texts} instructions right"
    draw_confusion(result, folder / PICTURE, title=title)
    draw_calibration(result, folder / CURVE, title=title)


def draw_confusion(result: PredictorScore, path: Path, *, title: str) -> None:
    """Draw the confusion matrix: rows are the tasks asked for, columns those predicted."""
    n = len(result.tasks)
    side = max(5.0, 0.5 * n + 2)  # inches
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    counts = result.confusion.double()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    _write_counts(axes, result.confusion, shares.tolist())
    axes.set_xticks(range(n), result.tasks, rotation=90)
    axes.set_yticks(range(n), result.tasks)
    axes.set_xticks([i - 0.5 for i in range(n + 1)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(n + 1)], minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("asked for")
    axes.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=100)


def _write_counts(axes: "Axes", confusion: Int64[Tensor, "n n"], shares: list[list[float]]) -> None:
    """Write the counts that are not 0 into their cells."""
    for row, counts in enumerate(confusion.tolist()):
        for column, count in enumerate(counts):
            if count:
                colour = "white" if shares[row][column] > FADED else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", color=colour, fontsize=8
                )


def draw_calibration(result: PredictorScore, path: Path, *, title: str) -> None:
    """Draw how often answers of a confidence are right; on the line, it means what it says."""
    figure = new_figure(5.0, 5.0)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot(
        [b.confidence for b in result.calibration],
        [b.accuracy for b in result.calibration],
        marker="o",
    )
    for entry in result.calibration:
        place = (entry.confidence, entry.accuracy)
        axes.annotate(str(entry.count), place, (4, -12), textcoords="offset points", fontsize=8)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share that is right")
    axes.set_title(title, fontsize="small")
    figure.savefig(path, dpi=100)
