"""How well a task predictor does: accuracy per task, confusions as JSON and as a picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from datamodules.world.predictor_texts import Instruction
from emu_edit.editing.predictor import TaskPrediction, TaskPredictor
from emu_edit.editing.sheets import new_figure
from emu_edit.metrics.calibration import expected_calibration_error
from emu_edit.terminal import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBERS, PICTURE = "confusion.json", "confusion.png"
MOST_MISTAKES = 100  # written down one by one
FADED = 0.5  # shares above it are written in white, on dark


@dataclass(frozen=True)
class Mistake:
    """One instruction whose task was not the one predicted."""

    instruction: str
    asked: str
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
        mistakes: all that went wrong, in order.
    """

    tasks: tuple[str, ...]
    confusion: Int64[Tensor, "n n"]
    calibration_error: float
    sure: float
    right_when_sure: float
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


def score(predictor: TaskPredictor, instructions: list[Instruction]) -> PredictorScore:
    """Ask for the task of every instruction.

    Raises:
        InputError: if a task is not in the predictor's table, or a text is too long.
    """
    texts = [text for text, _ in instructions]
    asked = torch.tensor([predictor.tasks.index(task) for _, task in instructions])
    probabilities = predictor.probabilities(texts)
    predictions = predictor.rank(probabilities)
    predicted = torch.tensor([predictor.tasks.index(p.task) for p in predictions])
    is_sure = torch.tensor([p.is_sure for p in predictions])
    is_right = predicted == asked
    mistakes = tuple(
        Mistake(text, task, prediction)
        for (text, task), prediction in zip(instructions, predictions, strict=True)
        if prediction.task != task
    )
    return PredictorScore(
        tasks=predictor.tasks.names,
        confusion=multiclass_confusion_matrix(predicted, asked, len(predictor.tasks)),
        calibration_error=expected_calibration_error(probabilities, asked),
        sure=float(is_sure.float().mean()),
        right_when_sure=float(is_right[is_sure].float().mean()) if is_sure.any() else 1.0,
        mistakes=mistakes,
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
        f"sure of {result.sure:.1%}, and right in {result.right_when_sure:.1%} of those",
    ]
    return "\n".join(lines)


def write_score(folder: Path, result: PredictorScore, *, predictor: str, source: str) -> None:
    """Write `confusion.json` and `confusion.png` into a folder, which is made if missing.

    Args:
        folder: where to.
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
                "asked": mistake.asked,
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
