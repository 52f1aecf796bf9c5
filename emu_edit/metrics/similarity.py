"""How alike two pictures, or a picture and a text, are: pure functions, in float64.

The metrics of the Emu Edit and MagicBrush benchmarks are made of these. What is compared with
what, and which network the features are from, is a protocol's business.
"""

from jaxtyping import Float, Float64, UInt8
from torch import Tensor

ROUNDING = 1e-6  # relative; what a network in float32 leaves between equal inputs, at most


def cosine(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Compute a · b / (|a| |b|) row by row; NaN where a or b is zero.

    CLIPim and CLIP-I of two pictures' features, CLIPout and CLIP-T of a picture's and a text's,
    DINO of two pictures'.
    """
    a, b = a.double(), b.double()
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def clip_dir(
    image_in: Float[Tensor, "n d"],
    image_out: Float[Tensor, "n d"],
    text_in: Float[Tensor, "n d"],
    text_out: Float[Tensor, "n d"],
) -> Float64[Tensor, " n"]:
    """Say whether pictures moved the way their captions did, row by row.

    cos(f(out) - f(in), g(caption_out) - g(caption_in)), of features of unit length

    Captions that do not differ ask for no direction: NaN, for the caller to count. A picture that
    did not move at all went nowhere: 0, so that copying the input scores 0 and is not left out.
    If both hold, NaN. The papers' formulas do not say whether features are normalised; the released
    code of InstructPix2Pix does it, and without it the longer feature would tilt the direction.

    Source: Emu Edit, arXiv:2311.10089; Gal et al. 2021, arXiv:2108.00946.
    """
    image, text = _direction(image_in, image_out), _direction(text_in, text_out)
    score = cosine(image, text)
    did_not_move = (image == 0).all(dim=1) & (text != 0).any(dim=1)
    return score.masked_fill(did_not_move, 0.0)


def l1(a: UInt8[Tensor, "3 _ _"], b: UInt8[Tensor, "3 _ _"]) -> float:
    """Average the absolute difference of two pictures with values in [0, 1].

    Raises:
        ValueError: if they differ in size.
    """
    return _difference(a, b).abs().mean().item()


def l2(a: UInt8[Tensor, "3 _ _"], b: UInt8[Tensor, "3 _ _"]) -> float:
    """Average the squared difference (no root) of two pictures with values in [0, 1].

    Source: MagicBrush, arXiv:2306.10012, its evaluation.

    Raises:
        ValueError: if they differ in size.
    """
    return _difference(a, b).square().mean().item()


def _direction(start: Tensor, end: Tensor) -> Float64[Tensor, "n d"]:
    """Subtract unit vectors; a step that is only rounding is zero."""
    start, end = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (start, end))
    step = end - start
    return step.masked_fill(step.norm(dim=1, keepdim=True) <= ROUNDING, 0.0)


def _difference(a: Tensor, b: Tensor) -> Float64[Tensor, "3 h w"]:
    if a.shape != b.shape:  # torch would stretch a side of one pixel without a word
        first, second = (f"{picture.shape[-1]}x{picture.shape[-2]}" for picture in (a, b))
        raise ValueError(
            f"pictures of {first} and {second} cannot be compared pixel by pixel; resample one"
        )
    return (a.double() - b.double()) / 255
