"""All networks of a model together, its table of task vectors, and the names of its tasks."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, device, nn

from emu_edit.errors import InputError
from emu_edit.models.interfaces import Denoiser, ImageCodec, TextEncoder, TextFeatures
from emu_edit.models.learned_task import LearnedTask
from emu_edit.tasks import TaskTable


class TaskEmbedding(nn.Module):
    """A table of `num_tasks` vectors of width `dim`; row i tells the denoiser to do task i.

    Rows are in the order of the model's `TaskTable`; task inversion appends one to a finished
    table. They begin as N(0, 1), as `nn.Embedding` does.
    Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.2 (learned task embedding).
    """

    def __init__(self, num_tasks: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_tasks, dim))

    @property
    def dim(self) -> int:
        """Width k of a task vector."""
        return self.table.shape[1]

    def __len__(self) -> int:
        return self.table.shape[0]

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Return v_task, one row of the table for each index."""
        return self.table[index]

    def append(self, vector: Float[Tensor, " k"]) -> None:
        """Add one task at the end; earlier rows keep their bits.

        The table becomes a new Parameter: optimisers built before must be built again.
        """
        row = vector.detach().to(self.table)[None]
        self.table = nn.Parameter(torch.cat([self.table.detach(), row]), self.table.requires_grad)


class EditNetworks(nn.Module):
    """The four networks of a model and the names of its tasks.

    The rows of the table are those of the tasks it was trained with, then those of `learned`.

    Attributes:
        tasks: the names, in the order of the table.
        learned: the tasks that were added by `add_task`.

    Raises:
        InputError: if they do not fit together (widths of text, task or latent, or number of
            tasks).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        text_encoder: TextEncoder,
        codec: ImageCodec,
        *,
        task_embedding: TaskEmbedding,
        tasks: TaskTable,
    ) -> None:
        super().__init__()
        text, task, rows = text_encoder.dim, task_embedding.dim, len(task_embedding)
        latent, channels = denoiser.latent_channels, codec.latent_channels
        _check_equal("denoiser.text_dim", denoiser.text_dim, "the text encoder's width", text)
        _check_equal(
            "the width of the text's vector that the denoiser is told",
            denoiser.pooled_dim,
            "the one that the text encoder gives",
            text_encoder.pooled_dim,
        )
        _check_equal("denoiser.task_dim", denoiser.task_dim, "the task table's width", task)
        _check_equal("denoiser.latent_channels", latent, "the codec's latent channels", channels)
        _check_equal("the number of task names", len(tasks), "the rows of the task table", rows)
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        self.codec = codec
        self.task_embedding = task_embedding
        self.tasks = tasks
        self.learned: tuple[LearnedTask, ...] = ()

    @property
    def device(self) -> device:
        """Where the task table is; the networks are moved together."""
        return self.task_embedding.table.device

    @property
    def base_tasks(self) -> TaskTable:
        """The tasks the model was trained with: all but the learned ones."""
        return TaskTable(self.tasks.names[: len(self.tasks) - len(self.learned)])

    def base_table(self) -> Float[Tensor, "n k"]:
        """Return the vectors of the base tasks."""
        return self.task_embedding.table[: len(self.base_tasks)]

    def add_task(self, task: LearnedTask) -> None:
        """Add a learned task, or replace the learned one of its name; other rows keep their bits.

        Whether it was learnt with these networks is the caller's to check, see `check_base`.

        Raises:
            InputError: if its vector has another width, or its name is that of a base task.
        """
        _check_equal(
            f"the width of the vector of task {task.name}",
            len(task.vector),
            "the task table's width",
            self.task_embedding.dim,
        )
        if task.name in self.base_tasks.names:
            raise InputError(
                f"the model was trained with a task {task.name!r}; give the learned one another "
                "name"
            )
        if task.name in self.tasks.names:
            row = self.tasks.index(task.name)
            self.task_embedding.table.data[row] = task.vector.to(self.task_embedding.table)
            self.learned = tuple(task if old.name == task.name else old for old in self.learned)
            return
        self.task_embedding.append(task.vector)
        self.tasks = TaskTable((*self.tasks.names, task.name))
        self.learned = (*self.learned, task)

    def encode_text(
        self,
        texts: tuple[str, ...] | list[str],
        null_texts: tuple[str, ...] | list[str] = ("",),
        pictures: Float[Tensor, "b 3 H W"] | None = None,
    ) -> tuple[TextFeatures, TextFeatures]:
        """Return the features of `texts` and of `null_texts`, of equal token count.

        `pictures` are the sources, for a text encoder that sees them; then there are as many null
        texts as texts, each with its picture.
        """
        b = len(texts)
        if self.text_encoder.sees_pictures:
            nulls = list(null_texts) * (b if len(null_texts) == 1 else 1)
            shown = None if pictures is None else torch.cat([pictures, pictures])
            features = self.text_encoder([*texts, *nulls], shown)
        else:
            features = self.text_encoder([*texts, *null_texts])
        return (
            TextFeatures(tokens=features.tokens[:b], mask=features.mask[:b]),
            TextFeatures(tokens=features.tokens[b:], mask=features.mask[b:]),
        )

    def task_vectors(self, names: tuple[str, ...] | list[str]) -> Float[Tensor, "b k"]:
        """Return v_task for each name.

        Raises:
            InputError: if a name is not in the model's table.
        """
        index = [self.tasks.index(name) for name in names]
        return self.task_embedding.table[index]


def _check_equal(name: str, value: int, other_name: str, other: int) -> None:
    if value != other:
        raise InputError(f"{name} is {value}, but {other_name} is {other}; make them equal")
