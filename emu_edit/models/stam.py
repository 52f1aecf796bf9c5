"""Temporal attention that shifts no features: centred over frames, its maps bounded, gated.

New layers of time in a picture model move the distribution of its features, which its own layers
then misread. EI² blames the layer norm: it divides by the spread of whatever comes, so that what is
constant in time is blown up like what moves. Here only what differs from the mean over time is
attended to, and neither map makes it larger.
Source: EI², Zhang et al. 2023, arXiv:2305.17431: instance centring and normalised maps. The paper's
formulas could not be read; that the mean is over frames at each place and channel, that the maps of
values and of the output are the bounded ones, and the gate, are ours.
"""

from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from emu_edit.models.temporal import TemporalSpec, check_heads, rotate


class Stam(nn.Module):
    """Attention over the frames at every place, in the slot of `TemporalAttention`.

        c = x - mean over f of x,   x' = x + tanh(g) W_o / s(W_o) attend(q(c), k(c), W_v / s(W_v) c)

    s is the largest singular value, followed by power iteration, and g starts at 0. Attention is a
    mean of values, so the branch is nowhere longer than the longest c; a clip that is constant in
    time passes unchanged, whatever was learnt.

    Args:
        channels: of a place, in and out.
        spec: width of a head.

    Raises:
        InputError: if `spec.head_dim` does not divide `channels`.
    """

    def __init__(self, channels: int, spec: TemporalSpec) -> None:
        super().__init__()
        check_heads(channels, spec)
        self.heads, self.rotary_base = channels // spec.head_dim, spec.rotary_base
        self.to_qk = nn.Linear(channels, 2 * channels, bias=False)
        self.to_v, self.to_out = (
            cast("nn.Linear", spectral_norm(nn.Linear(channels, channels, bias=False)))
            for _ in range(2)
        )
        self.gate = nn.Parameter(torch.zeros(()) if spec.identity else torch.ones(()))

    def forward(
        self, x: Float[Tensor, "p f c"], positions: Float[Tensor, " f"]
    ) -> Float[Tensor, "p f c"]:
        """Attend over f; `positions` are times in frames, of which only differences count."""
        centred = x - x.mean(dim=1, keepdim=True)
        qk = self.to_qk(centred)
        q, k = rearrange(qk, "p f (two a d) -> two p a f d", two=2, a=self.heads)
        q, k = (rotate(each, positions, self.rotary_base) for each in (q, k))
        v = rearrange(self.to_v(centred), "p f (a d) -> p a f d", a=self.heads)
        out = functional.scaled_dot_product_attention(q, k, v)
        out = self.to_out(rearrange(out, "p a f d -> p f (a d)"))
        return x + torch.tanh(self.gate) * out
