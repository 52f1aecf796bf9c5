"""Teach a finished task predictor one task more, from a few instructions.

Encoder and linear map stay as they are; what is learnt is one row of weights and a bias beside
them. So the logits of the old tasks keep their bits, and only a new logit that is too high could
change what is predicted for their texts: the row's bias is lowered until it is not, for every text
of theirs that is known. Logistic regression, so the same texts and seed give the same row.
Ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import softplus

from emu_edit.editing.predictor import TEXTS_AT_ONCE, TaskPredictor
from emu_edit.errors import InputError
from emu_edit.text_rules import clean_instruction
from emu_edit.training.predictor import Rephraser, Texts, torch_threads

NEW_TEXTS = 480  # rephrased instructions of the new task
OLD_TEXTS = 1600  # rephrased instructions of the old tasks, 100 for each of sixteen
PENALTY = 1e-3  # on the squared weights of standardized features
ITERATIONS = 200  # of L-BFGS, at most; it converges in a few dozen
SMALL = 10_000_000  # weights of an encoder
GAP = 0.1  # by which an old task's logit stays above the new one on its own texts


def learn_predictor_row(
    predictor: TaskPredictor,
    texts: Sequence[str],
    others: Sequence[tuple[str, str]],
    *,
    seed: int = 0,
) -> Float[Tensor, " m"]:
    """Return weights and bias of a new task; the predictor is left as it is.

    With s = (new logit - log of the summed exponentials of the old ones) / temperature,

    mean of softplus(-s) over the new task's texts + mean of softplus(s) over the others' + penalty

    is least; the texts are those given and rephrased ones.

    Args:
        predictor: trained, in eval mode.
        texts: how people would ask for the new task; a handful in different words is enough.
        others: instructions of the old tasks and the names of those, as it was trained on. What is
            predicted for them does not change.
        seed: of the rephrasing.

    Raises:
        InputError: if there are no texts, one is empty or too long, or most of them cannot be told
            from an old task's.
    """
    texts = list(dict.fromkeys(clean_instruction(text) for text in texts))
    if not texts:
        raise InputError("the predictor learns a task from instructions; give at least one")
    by_task: dict[str, list[str]] = {}
    for text, task in dict.fromkeys(others):
        by_task.setdefault(task, []).append(text)
    plain = [text for of_task in by_task.values() for text in of_task]
    if not plain:
        raise InputError("a predictor's new task is learnt against the old ones; give their texts")
    rephrase = Rephraser.of([*texts, *plain])
    asked = Texts(predictor.encoder, rephrase, (texts,), (0,))
    against = Texts(
        predictor.encoder, rephrase, tuple(by_task.values()), tuple(range(len(by_task)))
    )
    varied, _ = asked.draw(NEW_TEXTS, seed=seed, purpose="new predictor texts", step=0)
    varied_old, _ = against.draw(OLD_TEXTS, seed=seed, purpose="old predictor texts", step=0)
    # a small encoder is fastest on one thread; None leaves what is set
    is_small = sum(p.numel() for p in predictor.encoder.parameters()) < SMALL
    with torch_threads(1 if is_small else None):
        new = _encode(predictor, [*texts, *varied])
        old = _encode(predictor, [*plain, *varied_old])
    row = _fit(new, old)
    # rephrased texts of the old tasks might be anybody's; the plain ones are theirs
    row[-1] -= max(float(_excess(row, old.first(len(plain))).max()) + GAP, 0.0)
    _check_known(predictor, texts, row, new.first(len(texts)))
    return (row * predictor.temperature).float()


@dataclass(frozen=True)
class _Encoded:
    """Features of texts with a one behind them, and their logits divided by the temperature."""

    features: Float64[Tensor, "b m"]
    logits: Float64[Tensor, "b n"]

    def first(self, count: int) -> "_Encoded":
        return _Encoded(self.features[:count], self.logits[:count])


@torch.no_grad()
def _encode(predictor: TaskPredictor, texts: Sequence[str]) -> _Encoded:
    """Encode any number of texts; what is returned is on the CPU."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in a batch
    features = torch.empty(len(texts), predictor.encoder.dim)
    logits = torch.empty(len(texts), len(predictor.tasks))
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        rows = order[first : first + TEXTS_AT_ONCE]
        found = predictor.encoder([texts[i] for i in rows]).mean()
        features[rows] = found.float().cpu()
        logits[rows] = predictor.logits_of(found).float().cpu()
    ones = torch.ones(len(texts), 1, dtype=torch.float64)
    return _Encoded(
        torch.cat([features.double(), ones], dim=1), logits.double() / predictor.temperature
    )


def _fit(new: _Encoded, old: _Encoded) -> Float64[Tensor, " m"]:
    """Return the row that minimizes the loss, in units of a logit divided by the temperature."""
    # standardized, so that the penalty asks as much of every feature
    features = torch.cat([new.features, old.features])
    scale = features.std(dim=0).clamp(min=1e-6)
    scale[-1] = 1
    row = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [row], max_iter=ITERATIONS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        above = (new.features / scale) @ row - new.logits.logsumexp(dim=1)
        above_old = (old.features / scale) @ row - old.logits.logsumexp(dim=1)
        penalty = PENALTY * row[:-1].square().sum()
        total = softplus(-above).mean() + softplus(above_old).mean() + penalty
        total.backward()
        return total

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]  # torch annotates a float
    return row.detach() / scale


def _excess(row: Float64[Tensor, " m"], texts: _Encoded) -> Float64[Tensor, " b"]:
    """Return by how much the new logit is above the highest old one."""
    return texts.features @ row - texts.logits.max(dim=1).values


def _check_known(
    predictor: TaskPredictor, texts: Sequence[str], row: Float64[Tensor, " m"], new: _Encoded
) -> None:
    """Refuse a row by which most of the new task's own texts are taken for an old task's."""
    missed = [i for i, above in enumerate(_excess(row, new).tolist()) if above <= 0]
    if 2 * len(missed) > len(texts):
        first = missed[0]
        taken_for = predictor.tasks.names[int(new.logits[first].argmax())]
        raise InputError(
            f"{len(missed)} of {len(texts)} instructions cannot be told from those of old tasks, "
            f"e.g. {texts[first][:60]!r} from {taken_for}; give others, or name the task when "
            "editing (--task)"
        )
