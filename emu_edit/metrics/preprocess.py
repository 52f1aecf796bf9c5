"""From a picture to the numbers a pretrained vision backbone was trained on.

Resize so that the short side fits, cut the centre, scale to [0, 1], normalise: the transform of
both CLIP and DINO, with Pillow's anti-aliased filters as their authors use them. What differs
between protocols is a field of `Preprocess`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64, UInt8
from PIL import Image
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.images import from_pil, to_pil

Filter = Literal["bicubic", "bilinear", "lanczos"]
Channels = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True)
class Preprocess:
    """How a picture is brought to a backbone's input.

    Attributes:
        short_side: length the shorter side is resampled to; the other keeps the aspect.
        filter: Pillow's filter for it.
        crop: side of the centre square that is kept, at most `short_side`.
        mean: subtracted from values in [0, 1].
        std: what is left is divided by it.
    """

    short_side: int
    filter: Filter
    crop: int
    mean: Channels
    std: Channels

    def __post_init__(self) -> None:
        """Refuse settings no picture fits.

        Raises:
            InputError: for a crop that is larger than what it is cut from, or a std that is not
                positive.
        """
        if not 1 <= self.crop <= self.short_side:
            raise InputError(
                f"preprocess.crop={self.crop}, needs 1 to short_side={self.short_side}; "
                "a centre square cannot be larger than the picture"
            )
        if min(self.std) <= 0:
            raise InputError(f"preprocess.std={self.std}, needs positive numbers")

    def __call__(self, picture: UInt8[Tensor, "3 _ _"]) -> Float64[Tensor, "3 crop crop"]:
        """Normalise the centre of the picture, in float64, on the CPU."""
        centre = self.centre(picture).double() / 255
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        return (centre - mean) / std

    def centre(self, picture: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 crop crop"]:
        """Cut the square that the backbone sees, not yet normalised.

        The long side is short_side * long / short rounded down; of an odd margin of 2k + 1 pixels
        round(k + 1/2), to even, is cut off above and to the left: the rules of torchvision's Resize
        and CenterCrop, which CLIP's and DINO's own transforms are made of. (transformers' image
        processors cut off k, one pixel less where k is odd.)
        """
        height, width = picture.shape[-2:]
        short = min(height, width)
        size = (self.short_side * height // short, self.short_side * width // short)
        resized = resample(picture, size, self.filter)
        top, left = (round((side - self.crop) / 2) for side in size)
        return resized[:, top : top + self.crop, left : left + self.crop]


CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)  # Radford et al. 2021, released code
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)  # DINO (Caron et al. 2021) and most of ImageNet
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)

CLIP_PREPROCESS = Preprocess(
    short_side=224, filter="bicubic", crop=224, mean=CLIP_MEAN, std=CLIP_STD
)
DINO_PREPROCESS = Preprocess(
    short_side=256, filter="bicubic", crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD
)


def resample(
    picture: UInt8[Tensor, "3 _ _"], size: tuple[int, int], name: Filter
) -> UInt8[Tensor, "3 _ _"]:
    """Resample to `size` = (height, width) with one of Pillow's filters, in 8 bits.

    Equal size returns the argument itself. ("bicubic" is what Pillow takes when none is named.)
    """
    height, width = size
    if tuple(picture.shape[-2:]) == size:
        return picture
    kernel = Image.Resampling[name.upper()]
    return from_pil(to_pil(picture).resize((width, height), kernel))
