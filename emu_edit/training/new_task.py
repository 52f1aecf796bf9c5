"""The vector of a new task, learning in front of networks that do not, and where it begins.

What is frozen is computed once: latents (mean and deviation, so that sampling stays fresh), source
latents and text features of every picture pair, by its key. A step is then the denoiser's forward
pass and the backward pass to its input; with its weights frozen, none of their gradients exist.
Source: task inversion, Sheynin et al. 2023, arXiv:2311.10089, section 4.3. The paper names no
beginning; those here are ours: what the base already does is seldom far from what is wanted.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from emu_edit.batch import EditBatch
from emu_edit.diffusion.schedule import tokens_of
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError, closest
from emu_edit.images import to_float
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.learned_task import BEGINNINGS, BEST, MEAN, NEAREST, NONE
from emu_edit.training.draws import DrawnBatch, Phase, draw
from emu_edit.training.module import StepOutput
from emu_edit.training.objective import Objective


@dataclass(frozen=True)
class PairFeatures:
    """What the frozen networks make of a pair: the target's posterior, source and instruction."""

    mean: Float[Tensor, "c h w"]
    std: Float[Tensor, "c h w"]
    z_source: Float[Tensor, "c h w"]
    tokens: Float[Tensor, "l d"]
    mask: Bool[Tensor, " l"]


class NewTask(nn.Module):
    """A task vector and what it takes to learn it; only the vector is a parameter of the module.

    Args:
        editor: the base; its networks are used where they are and must be frozen (`frozen`).
        objective: what the base was trained to make small.

    Raises:
        InputError: if the objective does not go with the editor's prediction and schedule.
    """

    def __init__(self, editor: Editor, objective: Objective) -> None:
        """Start with the zero vector: no task."""
        super().__init__()
        objective.check(editor.prediction, editor.schedule)
        width = editor.networks.task_embedding.dim
        self.vector = nn.Parameter(torch.zeros(width, device=editor.device))
        self.editor = editor  # no nn.Module, so its networks are not taken for parts of this one
        self.objective = objective
        self._features: dict[str, PairFeatures] = {}

    @torch.no_grad()
    def begin(self, vector: Float[Tensor, " k"]) -> None:
        """Set the vector."""
        self.vector.copy_(vector)

    def drawn(self, batch: EditBatch, *, seed: int, phase: Phase) -> DrawnBatch:
        """Return the batch, still on the CPU, with its random numbers."""
        codec = self.editor.networks.codec
        height, width = (side // codec.factor for side in batch.target.shape[-2:])
        shape = (codec.latent_channels, height, width)
        return draw(batch, seed=seed, phase=phase, latent_shape=shape)

    def step(self, batch: DrawnBatch) -> StepOutput:
        """Return the loss of training, and each sample's unweighted error and timestep (detached).

        Nothing is withheld: the base has learnt its null branches, and keeps them.
        """
        error, weight, t = self.errors(batch, self.vector)
        return {"loss": (weight * error).mean(), "error": error.detach(), "t": t}

    def errors(
        self, batch: DrawnBatch, vector: Float[Tensor, " k"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Tensor]:
        """Return each sample's error with a task vector, how much it counts, and its timestep."""
        assert isinstance(batch.batch, EditBatch)  # few pairs are never encoded beforehand
        pairs = self._encoded(batch.batch)
        z_0 = torch.stack([p.mean for p in pairs])
        z_0 = z_0 + torch.stack([p.std for p in pairs]) * batch.eps_posterior
        cond = Conditioning(
            text=_stacked_text(pairs),
            z_source=torch.stack([p.z_source for p in pairs]),
            v_task=vector.expand(len(pairs), -1),
        )
        t = self.objective.timesteps(batch.u[:, 0], self.editor.schedule, tokens_of(z_0))
        error, weight = self.objective.errors(
            self.editor.networks.denoiser.told(cond),
            z_0,
            cond.z_source,
            eps=batch.eps,
            t=t,
            schedule=self.editor.schedule,
            prediction=self.editor.prediction,
        )
        return error, weight, t

    @torch.no_grad()
    def loss(self, batches: Sequence[DrawnBatch], vector: Float[Tensor, " k"]) -> float:
        """Return the loss of a vector, averaged over all samples; waits for the device."""
        losses = []
        for batch in batches:
            error, weight, _ = self.errors(batch, vector)
            losses.append(error * weight)
        return float(torch.cat(losses).mean())

    @torch.no_grad()
    def _encoded(self, batch: EditBatch) -> list[PairFeatures]:
        """Return the features of each pair, computed when its key is first met."""
        place = {key: i for i, key in enumerate(batch.key) if key not in self._features}
        if place:
            new = list(place.values())
            networks = self.editor.networks
            mean, std = networks.codec.posterior(to_float(batch.target[new]))
            shown = to_float(batch.source[new])
            z_source = networks.codec.encode_condition(shown)
            text, _ = networks.encode_text([batch.instruction[i] for i in new], pictures=shown)
            rows = zip(
                mean.float(), std.float(), z_source.float(), text.tokens, text.mask, strict=True
            )
            for key, row in zip(place, rows, strict=True):
                self._features[key] = PairFeatures(*row)
        return [self._features[key] for key in batch.key]


def _stacked_text(pairs: list[PairFeatures]) -> TextFeatures:
    """Stack texts that were padded to different lengths; what is added is masked."""
    longest = max(len(p.mask) for p in pairs)
    return TextFeatures(
        tokens=torch.stack([pad(p.tokens, (0, 0, 0, longest - len(p.mask))) for p in pairs]),
        mask=torch.stack([pad(p.mask, (0, longest - len(p.mask))) for p in pairs]),
    )


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Take a module out of training for a while.

    Afterwards each weight learns or not as before, and lies in memory as before: both decide the
    last bits of its output.
    """
    learns = {p: p.requires_grad for p in module.parameters()}
    modes = {part: part.training for part in module.modules()}
    # the very tensors: laid out again, a 1x1 convolution has other strides than it came with
    convolutions = {p: p.data for p in module.parameters() if p.ndim == 4 and p.is_contiguous()}
    module.eval().requires_grad_(False)
    for parameter in convolutions:  # they are faster so
        parameter.data = parameter.data.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, data in convolutions.items():
            parameter.data = data
        for parameter, requires_grad in learns.items():
            parameter.requires_grad_(requires_grad)
        for part, mode in modes.items():
            part.training = mode


@dataclass(frozen=True)
class Beginning:
    """A vector to begin with, and what it is called."""

    name: str
    vector: Float[Tensor, " k"]


def check_init(init: str, editor: Editor) -> None:
    """Refuse an unknown beginning; call it before long work.

    Raises:
        InputError: for an unknown word, or "nearest" without a predictor.
    """
    known = [*BEGINNINGS, *editor.networks.tasks.names]
    if init not in known:
        raise InputError(
            f"cannot begin at {init!r}; give one of {', '.join(known)}.{closest(init, known)}"
        )
    if init == NEAREST and editor.predictor is None:
        raise InputError(
            "this model has no task predictor to find the nearest task; begin at 'best' or at a "
            "task by its name"
        )


@torch.no_grad()
def beginning(task: NewTask, init: str, batches: Sequence[DrawnBatch]) -> Beginning:
    """Find where a new task's vector begins.

    "best" tries every task of the base on the pairs, the mean of all, and no task at all: forward
    passes only, a few seconds for the tiny model. What else `init` may be: see `InversionSettings`.
    The vector that `task` has now is not looked at.

    Raises:
        InputError: see `check_init`.
    """
    networks = task.editor.networks
    check_init(init, task.editor)
    mean = networks.base_table().mean(dim=0)
    vectors = dict(zip(networks.tasks.names, networks.task_embedding.table, strict=True))
    # the base has learnt the zero vector as "no task was told"
    vectors |= {MEAN: mean, NONE: torch.zeros_like(mean)}
    if init == BEST:
        name = min(vectors, key=lambda name: task.loss(batches, vectors[name]))
    else:
        name = _nearest(task.editor, batches) if init == NEAREST else init
    return Beginning(name, vectors[name])


def _nearest(editor: Editor, batches: Sequence[DrawnBatch]) -> str:
    """Return the task that the predictor gives most, summed over the instructions."""
    shares: defaultdict[str, float] = defaultdict(float)
    texts = list(dict.fromkeys(text for drawn in batches for text in drawn.batch.instruction))
    for prediction in editor.predict_tasks(texts):
        for name, share in prediction.ranking:
            shares[name] += share
    return max(shares, key=lambda name: shares[name])
