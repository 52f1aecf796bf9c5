"""Optical flow of videos that have no truth, by RAFT from a local file."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from emu_edit.errors import InputError
from emu_edit.files import sha256_of
from emu_edit.images import to_float
from emu_edit.metrics.backbones import in_full_precision
from emu_edit.metrics.published_weights import PublishedWeights
from emu_edit.metrics.raft_network import STRIDE, Raft
from emu_edit.models.surgery import freeze

FOLDER, FILE = "raft_large", "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
LEAST = 128  # pixels of a side, as torchvision's documentation asks for
UPDATES = 12  # as the published weights were measured


class FlowBackbone:
    """RAFT, its weights and its input.

    Attributes:
        sha256: of the weight file.
    """

    def __init__(self, network: Raft, *, sha256: str) -> None:
        self.sha256 = sha256
        self._network = freeze(network)

    @staticmethod
    def load(
        folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "FlowBackbone":
        """Read the weights; nothing in the file is run.

        Raises:
            InputError: if they are missing, cannot be read or are not RAFT's.
        """
        path = folder / FILE
        if not path.is_file():
            raise InputError(
                f"{folder} has no {FILE}, needs torchvision's weights of RAFT; download it, or "
                f"move {folder} away to go without warp error"
            )
        network = Raft.of_weights(PublishedWeights.read(path, "RAFT"))
        return FlowBackbone(network.to(device=device, dtype=dtype), sha256=sha256_of(path))

    @torch.no_grad()
    def __call__(
        self, before: UInt8[Tensor, "3 h w"], after: UInt8[Tensor, "3 h w"]
    ) -> Float[Tensor, "2 h w"]:
        """Compute where each pixel of one frame is in another: (x, y) in pixels, on the CPU.

        Sides are padded, evenly at both ends, to multiples of 8 and at least 128 by repeating the
        border, and the flow of the padding is cut off. The memory grows with the square of the
        frame: 0.5 GB at 480 x 854, 2 GB at 720 x 1280.

        Raises:
            InputError: if the network returns NaN or infinity.
        """
        height, width = before.shape[-2:]
        top, bottom = _padding(height)
        left, right = _padding(width)
        first = next(self._network.parameters())
        frames = to_float(torch.stack([before, after])).to(first.device, first.dtype)
        padded = F.pad(frames, (left, right, top, bottom), mode="replicate")
        with in_full_precision():
            flow = self._network(padded[:1], padded[1:], UPDATES)[0].cpu()
        if not flow.isfinite().all():
            raise InputError("RAFT returned NaN or infinity; its weights are damaged")
        return flow[:, top : top + height, left : left + width]


def _padding(length: int) -> tuple[int, int]:
    """Return how much a side lacks at its beginning and at its end."""
    lack = max(LEAST, -(-length // STRIDE) * STRIDE) - length
    return lack // 2, lack - lack // 2
