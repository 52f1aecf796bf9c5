"""Errors of depth and normal maps that were coded as pictures."""

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor


def depth_rmse(edited: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]) -> float:
    """Return the root mean squared error of depth in [0, 1], coded as grey (the mean channel)."""
    difference = edited.double().mean(0) - target.double().mean(0)
    return (difference / 255).square().mean().sqrt().item()


def normal_degrees(edited: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]) -> float:
    """Return the mean angle between two fields of normals, in degrees in [0, 180].

    angle = atan2(|a x b|, a · b), exact for equal normals where arccos(a · b) is not
    """
    a, b = _normals(edited), _normals(target)
    angle = torch.atan2(torch.linalg.cross(a, b, dim=0).norm(dim=0), (a * b).sum(0))
    return angle.rad2deg().mean().item()


def _normals(picture: UInt8[Tensor, "3 h w"]) -> Float64[Tensor, "3 h w"]:
    """Decode colours as directions: n = 2 c / 255 - 1; their lengths do not matter."""
    return picture.double() / 127.5 - 1
