"""Train a task predictor on (instruction, task) pairs, then fit the temperature of its confidence.

Every batch has as many texts of one task as of another, each rephrased anew. The temperature is
fitted on texts that training never saw: of everyday patterns held back for it where there are any,
else on a share of the texts, rephrased too: on tidy ones of known sentences a good predictor is
always right, and would learn to be certain of everything.
Source: a Flan-T5 that names the task, Sheynin et al. 2023, arXiv:2311.10089; temperature scaling,
Guo et al. 2017, arXiv:1706.04599.

People write capitals and full stops, say please, make slips, and use words no training set has. A
predictor that has only seen tidy sentences relies on one or two telling words; with words left out,
put in, swapped or replaced by invented ones it has to use all that is left. Half of the invented
words are spliced from known ones, so that no piece of a word is a sure sign of a task either.
Ours; in the spirit of Wei & Zou 2019, "EDA", arXiv:1901.11196.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from emu_edit.editing.predictor import AnyText, TaskPredictor
from emu_edit.errors import InputError
from emu_edit.metrics.calibration import expected_calibration_error, nll_temperature
from emu_edit.models.ngrams import NgramText
from emu_edit.models.surgery import learns
from emu_edit.models.text import TransformersText, unpacked
from emu_edit.randomness import check_seed, keyed_generator
from emu_edit.tasks import TaskTable
from emu_edit.training.optim import OptimizerSettings, parameter_groups, warmup_cosine_schedule

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST, LONGEST = 2, 6  # letters of a word invented letter by letter: each may be a token
FIRST = 0.2  # share of the texts whose first word is an invented one
CHANGED = 0.7  # share of the texts in which words are changed,
MOST_CHANGED = 0.35  # each word with a probability drawn up to this
SHUFFLED = 0.05  # share of the texts whose words are put in another order


@dataclass(frozen=True)
class Rephraser:
    """Makes variants of instructions; `words` are those it splices new ones from.

    Of `reworded`, a share of the texts, it changes the words, of the others only how they are
    written.
    """

    words: tuple[str, ...]
    reworded: float = 1.0

    @staticmethod
    def of(texts: Iterable[str], reworded: float = 1.0) -> "Rephraser":
        """Return a rephraser that knows the words of some texts, each once."""
        words = dict.fromkeys(word for text in texts for word in text.split(" "))
        return Rephraser(tuple(words), reworded)

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        """Return a variant of an instruction that asks for the same, as far as words can tell."""
        if self.reworded < 1 and generator.random() >= self.reworded:
            return _in_another_hand(text, generator)
        words = text.split(" ")
        # the verb of a request comes first, and of all its words people vary it most
        if len(words) > 1 and generator.random() < FIRST:
            words[0] = self._invented(generator)
        if generator.random() < CHANGED:
            words = self._changed(words, generator) or words
        if generator.random() < SHUFFLED:
            words = [words[i] for i in generator.permutation(len(words))]
        return _in_another_hand(" ".join(words), generator)

    def _changed(self, words: list[str], generator: np.random.Generator) -> list[str]:
        """Return the words, some replaced, left out, or followed by one that means nothing."""
        rate = MOST_CHANGED * generator.random()
        kept: list[str] = []
        for word, draw in zip(words, generator.random(len(words)), strict=True):
            if draw >= rate:
                kept.append(word)
            elif draw < 0.5 * rate:
                kept.append(self._invented(generator))
            elif draw < 0.75 * rate:
                kept += [word, self._invented(generator)]
        return kept

    def _invented(self, generator: np.random.Generator) -> str:
        if generator.random() < 0.5:
            length = int(generator.integers(SHORTEST, LONGEST + 1))
            return "".join(LETTERS[i] for i in generator.integers(len(LETTERS), size=length))
        first, second = (self.words[i] for i in generator.integers(len(self.words), size=2))
        cut, other = generator.random(2)
        return first[: 1 + int(cut * len(first))] + second[int(other * len(second)) :]


def _in_another_hand(text: str, generator: np.random.Generator) -> str:
    """Return the text with other capitals, an end mark, or a "please"."""
    case, end, please = generator.random(3)
    if please < 0.05:
        text = f"please {text}"
    elif please < 0.1:
        text = f"{text} please"
    if case < 0.1:
        text = text.lower()
    elif case < 0.35:
        text = text[:1].upper() + text[1:]
    if end < 0.15:
        return f"{text}."
    return f"{text}!" if end < 0.2 else text


OnStep = Callable[[int, int], None]  # called with (steps done, steps in all)
MAX_NORM = 1.0  # of the gradient, as in T5's fine-tuning recipes
WARMUP_STEPS = 30
CALIBRATION_TEXTS = 960  # rephrased texts the temperature is fitted on, without better ones


@dataclass(frozen=True)
class PredictorSettings:
    """How a predictor is trained; the defaults are those of the embedded encoder.

    Attributes:
        steps: optimizer steps.
        batch_size: texts per step, dealt to the tasks in turn.
        lr: peak learning rate of AdamW; a pretrained encoder wants 1e-4 to 4e-4, a head alone 3e-3.
        head_boost: how many times `lr` the head learns with, which starts at zero.
        reworded: share of the texts whose words are changed, in [0, 1].
        held_back: share of each task's texts that only the temperature is fitted on, in (0, 1).
        seed: of batches, rephrasing and dropout: same seed and threads, same weights on a CPU.
        threads: of torch on the CPU while training. One is fastest for n-grams, and makes
            its weights those of any number of cores; None leaves what is set.
    """

    steps: int = 800
    batch_size: int = 256
    lr: float = 0.02
    head_boost: float = 1.0
    reworded: float = 1.0
    held_back: float = 0.1
    seed: int = 0
    threads: int | None = 1

    def __post_init__(self) -> None:
        """Refuse values that train nothing."""
        counts = {"steps": self.steps, "batch_size": self.batch_size, "threads": self.threads}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise InputError(f"{name} of the predictor must be at least 1, got {value}")
        check_seed(self.seed)
        if not self.lr > 0:
            raise InputError(f"lr of the predictor must be above 0, got {self.lr!r}")
        if not self.head_boost > 0:
            raise InputError(f"head_boost must be above 0, got {self.head_boost!r}")
        if not 0 <= self.reworded <= 1:
            raise InputError(f"reworded must be between 0 and 1, got {self.reworded!r}")
        if not 0 < self.held_back < 1:
            raise InputError(f"held_back must be between 0 and 1, got {self.held_back!r}")


@dataclass(frozen=True)
class Calibration:
    """What the texts held back from training say about a predictor.

    Attributes:
        texts: how many it was measured on.
        accuracy: share of them whose task was named.
        temperature: fitted on them.
        error_before: expected calibration error at temperature 1.
        error: the same at the fitted one; small by construction, since it was fitted here.
        tasks_without_texts: tasks of the table there was nothing to learn from.
    """

    texts: int
    accuracy: float
    temperature: float
    error_before: float
    error: float
    tasks_without_texts: tuple[str, ...]


def tiny_predictor(tasks: TaskTable, *, seed: int = 0) -> TaskPredictor:
    """Return an untrained predictor around a bag of n-grams; same seed, same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return TaskPredictor(NgramText(), tasks)


def pretrained_predictor(
    encoder: str, tasks: TaskTable, *, trainable: bool = True
) -> TaskPredictor:
    """Return an untrained head on a pretrained encoder: Flan-T5, CLIP, BERT and their kin.

    `encoder` is a directory or a hub name, see `TransformersText`, or the name of an encoder that
    a package brings, all-MiniLM-L6-v2 (the extra `sentences`). Of a `trainable` one the upper half
    of the layers learns: for as many texts that takes two thirds of the time, and what it knows of
    single words stays. Not `trainable`, it stays frozen and only the head learns.

    Raises:
        InputError: if the encoder cannot be found or loaded.
    """
    with unpacked(encoder) as path:
        text = TransformersText(path, trainable=trainable, attend_padding=False)
    if trainable:
        _freeze_lower_half(text.model)
    return TaskPredictor(text, tasks)


def _freeze_lower_half(model: nn.Module) -> None:
    """Freeze the lower half of the layers and all before them; of a single layer nothing."""
    # the first list is that of the layers; T5 has others inside of them
    layers = next((m for m in model.modules() if isinstance(m, nn.ModuleList)), nn.ModuleList())
    if len(layers) < 2:
        return
    first = next(layers[len(layers) // 2].parameters())
    for parameter in model.parameters():  # in the order in which they are used
        if parameter is first:
            return
        parameter.requires_grad_(False)


def train_predictor(
    predictor: TaskPredictor,
    instructions: Sequence[tuple[str, str]],
    settings: PredictorSettings,
    on_step: OnStep | None = None,
    *,
    unseen: Sequence[tuple[str, str]] = (),
) -> Calibration:
    """Train in place, fit the temperature, and leave the predictor in eval mode where it was.

    Args:
        predictor: untrained or trained; what of its encoder is frozen stays so.
        instructions: text and name of the task; doubles count once.
        settings: how.
        on_step: called after every optimizer step.
        unseen: what the temperature is fitted on, as it is; without, the share held back of the
            instructions, rephrased.

    Raises:
        InputError: if there are no instructions, one is too long for the encoder, or its task is
            not in the predictor's table.
    """
    texts = _by_task(predictor.tasks, instructions)
    split = [_split(of_task, settings, i) for i, of_task in enumerate(texts)]
    train, held_back = (tuple(part) for part in zip(*split, strict=True))
    tasks = tuple(index for index, of_task in enumerate(texts) if of_task)
    rephrase = Rephraser.of((text for of_task in train for text in of_task), settings.reworded)
    held_back = Texts(predictor.encoder, rephrase, held_back, tasks)
    without = (name for name, t in zip(predictor.tasks.names, texts, strict=True) if not t)
    with torch_threads(settings.threads):
        _train(predictor, Texts(predictor.encoder, rephrase, train, tasks), settings, on_step)
        if unseen:
            rows = [text for text, _ in unseen]
            asked = torch.tensor([predictor.tasks.index(task) for _, task in unseen])
        else:
            rows, asked = held_back.draw(
                CALIBRATION_TEXTS, seed=settings.seed, purpose="predictor calibration", step=0
            )
        return _calibrate(predictor, rows, asked, tuple(without))


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let torch compute on so many threads of the CPU for a while; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _by_task(tasks: TaskTable, instructions: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return the distinct texts of each task, in order of appearance."""
    found: list[list[str]] = [[] for _ in tasks.names]
    for text, task in dict.fromkeys(instructions):
        found[tasks.index(task)].append(text)
    if not any(found):
        raise InputError("there are no instructions to train a task predictor on; give some")
    return found


def _split(texts: list[str], settings: PredictorSettings, task: int) -> tuple[list[str], list[str]]:
    """Return the texts to train on and those to hold back; a task's only text is in both."""
    if len(texts) < 2:
        return texts, texts
    number = min(max(round(settings.held_back * len(texts)), 1), len(texts) - 1)
    order = keyed_generator(settings.seed, "held back", task).permutation(len(texts))
    shuffled = [texts[i] for i in order]
    return shuffled[number:], shuffled[:number]


@dataclass(frozen=True)
class Texts:
    """Texts to draw from: of each task of the table, and the indices of the tasks that have any."""

    encoder: AnyText
    rephrase: Rephraser
    of_task: tuple[list[str], ...]
    tasks: tuple[int, ...]

    def draw(
        self, count: int, *, seed: int, purpose: str, step: int
    ) -> tuple[list[str], Int64[Tensor, " b"]]:
        """Return rephrased texts of the tasks in turn; a pure function of the arguments."""
        generator = keyed_generator(seed, purpose, step)
        asked = [self.tasks[(step * count + i) % len(self.tasks)] for i in range(count)]
        plain = [
            self.of_task[task][int(generator.integers(len(self.of_task[task])))] for task in asked
        ]
        rephrased = [self.rephrase(text, generator) for text in plain]
        # a text that only its rephrasing makes too long is the user's no mistake
        fits = self.encoder.limit.fits
        rows = [new if fits(new) else text for text, new in zip(plain, rephrased, strict=True)]
        return rows, torch.tensor(asked)


def _train(
    predictor: TaskPredictor,
    texts: Texts,
    settings: PredictorSettings,
    on_step: OnStep | None,
) -> None:
    optimizer = _optimizer(predictor, settings)
    schedule = warmup_cosine_schedule(
        optimizer, warmup_steps=WARMUP_STEPS, total_steps=settings.steps
    )
    # a frozen encoder stays in eval mode: dropout in it would be noise nothing learns from
    predictor.encoder.train(learns(predictor.encoder))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # of a pretrained encoder's dropout
        for step in range(settings.steps):
            rows, asked = texts.draw(
                settings.batch_size, seed=settings.seed, purpose="predictor batch", step=step
            )
            optimizer.zero_grad()
            _backward(predictor, rows, asked)
            clip_grad_norm_(predictor.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(step + 1, settings.steps)
    if isinstance(predictor.encoder, NgramText):
        predictor.encoder.round()
    predictor.eval()


def _optimizer(predictor: TaskPredictor, settings: PredictorSettings) -> torch.optim.AdamW:
    """Return AdamW over what learns, the head with a rate of its own."""
    defaults = OptimizerSettings(lr=settings.lr)
    rates = ((predictor.encoder, settings.lr), (predictor.head, settings.lr * settings.head_boost))
    groups = [
        group | {"lr": lr}
        for part, lr in rates
        for group in parameter_groups(part, defaults.weight_decay)
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=defaults.betas, fused=True)


def _backward(predictor: TaskPredictor, rows: list[str], asked: Int64[Tensor, " b"]) -> None:
    """Add the gradient of the mean loss of a batch, texts of one length at once."""
    device = predictor.head.weight.device
    for places in predictor.encoder.by_length(rows):
        logits = predictor([rows[i] for i in places])
        loss = cross_entropy(logits, asked[places].to(device)) * (len(places) / len(rows))
        loss.backward()


def _calibrate(
    predictor: TaskPredictor,
    rows: list[str],
    asked: Int64[Tensor, " b"],
    tasks_without_texts: tuple[str, ...],
) -> Calibration:
    logits = predictor.logits(rows)
    predictor.temperature = nll_temperature(logits, asked)
    return Calibration(
        texts=len(rows),
        accuracy=float((logits.argmax(dim=1) == asked).float().mean()),
        temperature=predictor.temperature,
        error_before=expected_calibration_error(logits.softmax(dim=1), asked),
        error=expected_calibration_error(torch.softmax(logits / predictor.temperature, 1), asked),
        tasks_without_texts=tasks_without_texts,
    )
