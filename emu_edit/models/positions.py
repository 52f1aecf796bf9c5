"""Telling a U-Net from scratch where in the picture each of its cells is.

A convolution sees the picture's edge and nothing else of its place, so a small network learns late
what depends on the place: words in their band, "in the top left corner", a mosaic's tiles. Here
sines and cosines of a cell's place in the picture, linearly mapped by weights that start at zero,
are added wherever the resolution has just changed.
Source: waves as in NeRF, Mildenhall et al. 2020, arXiv:2003.08934, eq. 4; coordinates for
convolutions as in CoordConv, Liu et al. 2018, arXiv:1807.03247; added as a transformer's position
embedding is, Vaswani et al. 2017, arXiv:1706.03762. Where they are added: ours.
"""

from collections.abc import Iterator
from functools import partial

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn


def positions(like: Float[Tensor, "b c h w"], octaves: int) -> Float[Tensor, "1 p h w"]:
    """Return where each cell is in its picture: p = 4 `octaves` waves.

    sin(2^k pi x), cos(2^k pi x) for k = 0 ... octaves - 1, then the same of y; x and y are the
    cell's centre in fractions of the picture, so the waves stretch with it.
    """
    height, width = like.shape[-2:]
    frequencies = torch.pi * 2.0 ** torch.arange(octaves, device=like.device)

    def waves(count: int) -> Float[Tensor, "k n"]:
        centres = (torch.arange(count, device=like.device) + 0.5) / count
        angles = frequencies[:, None] * centres
        return torch.cat([angles.sin(), angles.cos()])

    across = waves(width)[:, None, :].expand(-1, height, -1)
    down = waves(height)[:, :, None].expand(-1, -1, width)
    return torch.cat([across, down]).to(like)[None]


class PositionMaps(nn.Module):
    """Adds a linear map of the positions to what some layers of a U-Net give.

    Args:
        unet: gets a hook at its first convolution and at every change of resolution; it owns none
            of the weights here, so `unet/` stays a plain diffusers directory.
        octaves: of the positions, at least 1.
    """

    def __init__(self, unet: UNet2DConditionModel, octaves: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.maps = nn.ModuleList()
        for layer, channels in _resolution_changes(unet):
            linear = nn.Conv2d(4 * octaves, channels, kernel_size=1, bias=False)
            nn.init.zeros_(linear.weight)
            self.maps.append(linear)
            layer.register_forward_hook(partial(_add, linear, octaves))


def _add(
    linear: nn.Conv2d, octaves: int, _layer: nn.Module, _inputs: object, output: Tensor
) -> Tensor:
    return output + linear(positions(output, octaves)).to(output)


def _resolution_changes(unet: UNet2DConditionModel) -> Iterator[tuple[nn.Module, int]]:
    """Yield the layers after which a resolution begins, with the channels of their output."""
    yield unet.conv_in, unet.conv_in.out_channels
    for layer in unet.modules():
        if isinstance(layer, Downsample2D | Upsample2D):
            yield layer, layer.out_channels
