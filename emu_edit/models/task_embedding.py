"""The learned table of task vectors: row i is what the denoiser is told to do task i.

Rows are in the order of the model's `TaskTable`; task inversion appends one row to a finished
table.
Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.2 (learned task embedding).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class TaskEmbedding(nn.Module):
    """A table of `num_tasks` vectors of width `dim`, drawn from N(0, 1) as `nn.Embedding` does."""

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
