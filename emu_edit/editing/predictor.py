"""The task predictor: an instruction in, the task it asks for out, with calibrated confidence.

A text encoder, the mean over its real tokens, and a linear map to the tasks of the model's table.
The encoder is the embedded bag of n-grams (`models.ngrams`) or any encoder of transformers.
The logits are divided by a temperature fitted on texts that were held back from training, so that a
confidence of 0.9 is right nine times in ten. A predictor lies in a directory of its own, usually
`predictor/` of a model directory: `predictor.json`, `head.safetensors`, and the encoder, one of
transformers in its format. A task that was learnt by inversion brings a row of its own for the
linear map (`know`), which belongs to its file and not to this directory.
Source: task index from a fine-tuned Flan-T5, Sheynin et al. 2023, arXiv:2311.10089; temperature
scaling, Guo et al. 2017, arXiv:1706.04599.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Float64
from safetensors.torch import save_file
from torch import Tensor, nn

from emu_edit.errors import InputError
from emu_edit.files import write_json
from emu_edit.models.directory import new_directory, read_json
from emu_edit.models.fingerprints import hash_of
from emu_edit.models.learned_task import LearnedTask
from emu_edit.models.networks import EditNetworks
from emu_edit.models.ngrams import NgramText, is_ngram_text
from emu_edit.models.sources import check_safetensors, load_tensors
from emu_edit.models.text import ModelText, TransformersText
from emu_edit.models.trust import judge_directory
from emu_edit.tasks import TaskTable
from emu_edit.text_rules import parted

INDEX = "predictor.json"
HEAD = "head.safetensors"
VERSION = 1  # of the directory's layout
TEXTS_AT_ONCE = 128
AGAIN = "train it again with 'emu-edit predictor fit MODEL'"
AnyText = ModelText | NgramText


@dataclass(frozen=True)
class TaskPrediction:
    """What the predictor thinks of one instruction.

    Attributes:
        task: the most probable task.
        confidence: its calibrated probability, 0 to 1.
        ranking: all tasks with their probabilities, most probable first.
    """

    task: str
    confidence: float
    ranking: tuple[tuple[str, float], ...]

    SURE = 0.8  # below it, people are shown the first three

    @property
    def is_sure(self) -> bool:
        """Whether the confidence is high enough not to ask."""
        return self.confidence >= self.SURE

    def describe(self) -> str:
        """Word it for people: the task, or the first three with their probabilities when unsure."""
        if self.is_sure:
            return f"{self.task} ({self.confidence:.0%})"
        return ", ".join(f"{task} ({share:.0%})" for task, share in self.ranking[:3])


class TaskPredictor(nn.Module):
    """Tell which task of a table an instruction asks for.

    Args:
        encoder: n-grams, or T5, CLIP, BERT or another encoder of transformers, its padding masked.
        tasks: the table it is trained for.
        temperature: what logits are divided by before the softmax, above 0; 1 until it is fitted.
    """

    def __init__(self, encoder: AnyText, tasks: TaskTable, *, temperature: float = 1.0) -> None:
        """Put a head of zeros on an encoder: every task is equally probable until it is trained.

        Raises:
            ValueError: if the encoder attends to its padding, which a mean must not see.
        """
        super().__init__()
        if encoder.attend_padding:
            raise ValueError("a predictor's encoder masks its padding; give attend_padding=False")
        self.encoder = encoder
        self.trained_tasks = tasks
        self.tasks = tasks  # with the learned ones
        self.temperature = temperature
        # whether a text may tell what comes out, too, after an arrow that is not read here
        self.takes_captions = False
        # skip_init: nn.Linear would draw weights from the global generator, to be overwritten
        head = nn.utils.skip_init(nn.Linear, encoder.dim, len(tasks))
        self.head = cast("nn.Linear", head)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # weights and bias of the learned tasks; apart, so that the others' logits keep their bits
        self.rows: Tensor
        self.register_buffer("rows", torch.zeros(0, encoder.dim + 1), persistent=False)

    def forward(self, instructions: Sequence[str]) -> Float[Tensor, "b n"]:
        """Return the logits of all tasks, not yet divided by the temperature.

        Raises:
            InputError: if an instruction has more tokens than the encoder takes.
        """
        return self.logits_of(self.encoder(list(instructions)).mean())

    def logits_of(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        """Return the logits for features that the encoder gave."""
        logits = self.head(features)
        if not len(self.rows):
            return logits
        return torch.cat([logits, features @ self.rows[:, :-1].T + self.rows[:, -1]], dim=1)

    def know(self, task: LearnedTask) -> bool:
        """Predict a learned task, too, from now on; return whether it has a row for this predictor.

        A row of another predictor means nothing here and is left alone; a row that an earlier task
        of this name had is given up.

        Raises:
            InputError: if the predictor was trained with a task of this name.
        """
        if task.name in self.trained_tasks.names:
            raise InputError(
                f"the predictor was trained with a task {task.name!r}; give the learned one "
                "another name"
            )
        if task.name in self.tasks.names:
            rows = self.tasks.index(task.name) - len(self.trained_tasks)
            self.rows = torch.cat([self.rows[:rows], self.rows[rows + 1 :]])
            self.tasks = TaskTable(tuple(name for name in self.tasks.names if name != task.name))
        if task.predictor_row is None or task.predictor != self.hash():
            return False
        self.rows = torch.cat([self.rows, task.predictor_row[None].to(self.rows)])
        self.tasks = TaskTable((*self.tasks.names, task.name))
        return True

    def hash(self) -> str:
        """Return the SHA-256 of what was trained: encoder, linear map, tasks and temperature."""
        about = {"tasks": list(self.trained_tasks.names), "temperature": self.temperature}
        return hash_of(about, sorted(self.state_dict().items()), torch.float32)

    @torch.no_grad()
    def logits(self, instructions: Sequence[str]) -> Float[Tensor, "b n"]:
        """Return the logits of any number of instructions, on the CPU."""
        found = torch.zeros(len(instructions), len(self.tasks))
        for places in self.encoder.by_length(list(instructions)):
            for first in range(0, len(places), TEXTS_AT_ONCE):
                some = places[first : first + TEXTS_AT_ONCE]
                found[some] = self([instructions[i] for i in some]).float().cpu()
        return found

    def probabilities(self, instructions: Sequence[str]) -> Float64[Tensor, "b n"]:
        """Return the calibrated probability of each task, in the order of the table, on the CPU."""
        return torch.softmax(self.logits(instructions).double() / self.temperature, dim=1)

    def predict(self, instructions: Sequence[str]) -> list[TaskPrediction]:
        """Predict the task of each instruction; put the module in eval mode first.

        Args:
            instructions: as `clean_instruction` returns them, any number.

        Raises:
            InputError: if an instruction has more tokens than the encoder takes.
        """
        if self.takes_captions:
            instructions = [parted(text)[0] for text in instructions]
        return self.rank(self.probabilities(instructions))

    def rank(self, probabilities: Float64[Tensor, "b n"]) -> list[TaskPrediction]:
        """Name the tasks of rows of `probabilities`, most probable first."""
        rankings = [
            tuple(sorted(zip(self.tasks.names, row, strict=True), key=lambda task: -task[1]))
            for row in probabilities.tolist()
        ]
        return [TaskPrediction(*ranking[0], ranking=ranking) for ranking in rankings]

    def save_pretrained(self, path: Path | str) -> None:
        """Write the predictor's directory, whole or not at all; one that exists is replaced.

        Raises:
            InputError: if `path` is a file or a directory of something else.
        """
        with new_directory(path, INDEX, what="task predictor") as part:
            self.write_parts(part)

    def write_parts(self, folder: Path) -> None:
        """Write the predictor's files into an empty folder."""
        self.encoder.write(folder)
        head = {"weight": self.head.weight, "bias": self.head.bias}
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in head.items()}, folder / HEAD
        )
        write_json(
            folder / INDEX,
            {
                "version": VERSION,
                "tasks": list(self.trained_tasks.names),
                "temperature": self.temperature,
                "max_tokens": self.encoder.max_tokens,
            },
        )

    @classmethod
    def from_pretrained(
        cls, path: Path | str, *, tasks: TaskTable | None = None
    ) -> "TaskPredictor":
        """Load a predictor's directory: frozen, in eval mode, on the CPU. Nothing is unpickled.

        Args:
            path: directory written by `save_pretrained`.
            tasks: when given, the table that the predictor must be trained for: the model's without
                its learned tasks.

        Raises:
            InputError: if it is no such directory, a part is missing or damaged, or it is for
                another table.
        """
        folder = Path(path).expanduser()
        table, temperature, max_tokens = _read_index(folder)
        judge_directory(folder, is_ours=True)
        if tasks is not None and table != tasks:
            raise InputError(
                f"{folder} predicts other tasks than the model has: {', '.join(table.names)}; "
                f"the model has {', '.join(tasks.names)}; {AGAIN}"
            )
        # without this, TransformersText would take a missing folder's name for one on the hub
        check_safetensors(folder / "text_encoder", "text_encoder")
        if is_ngram_text(folder):
            encoder = NgramText.read(folder)
        else:
            encoder = TransformersText(str(folder), attend_padding=False, max_tokens=max_tokens)
        predictor = cls(encoder, table, temperature=temperature)
        predictor.head.load_state_dict(_read_head(folder, predictor.head))
        return predictor.eval().requires_grad_(False)


def _read_index(folder: Path) -> tuple[TaskTable, float, int]:
    """Read table, temperature and longest text of a predictor's directory."""
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} is no task predictor (it has no {INDEX}); {AGAIN}")
    values = read_json(folder / INDEX)
    if values.get("version") != VERSION:
        raise InputError(
            f"{folder / INDEX} is of version {values.get('version')!r}, this program reads "
            f"{VERSION}; {AGAIN}"
        )
    names = values.get("tasks")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{folder / INDEX} has no list of task names; {AGAIN}")
    temperature, max_tokens = values.get("temperature"), values.get("max_tokens")
    if (
        not isinstance(temperature, float)
        or not math.isfinite(temperature)
        or temperature <= 0
        or type(max_tokens) is not int
        or max_tokens < 1
    ):
        raise InputError(
            f"{folder / INDEX}: temperature and max_tokens must be numbers above 0, got "
            f"{temperature!r} and {max_tokens!r}; {AGAIN}"
        )
    try:
        return TaskTable(tuple(names)), temperature, max_tokens
    except InputError as error:
        raise InputError(f"{folder / INDEX}: {error}; {AGAIN}") from error


def _read_head(folder: Path, head: nn.Linear) -> dict[str, Tensor]:
    """Read weight and bias of the linear map, of the shapes of `head`."""
    file = folder / HEAD
    found = load_tensors(file)
    needed = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if shapes != needed:
        raise InputError(
            f"{file} has {shapes}, needs {needed}: its encoder or its tasks are another "
            f"predictor's; {AGAIN}"
        )
    return found


def load_predictor(folder: Path, networks: EditNetworks) -> TaskPredictor | None:
    """Load a model's predictor, which also names the learned tasks that have a row for it."""
    if not folder.exists():
        return None
    predictor = TaskPredictor.from_pretrained(folder, tasks=networks.base_tasks)
    predictor.takes_captions = networks.text_encoder.takes_captions
    for task in networks.learned:
        predictor.know(task)
    return predictor
