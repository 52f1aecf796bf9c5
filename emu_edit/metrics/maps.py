"""Errors of depth and normal maps that were coded as pictures."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class NormalErrors:
    """The angles between two fields of normals, summed up as the surface-normal papers do.

    Attributes:
        mean: in degrees in [0, 180].
        median: in degrees; of an even number of pixels the mean of the middle two.
        within_11: share of pixels off by less than 11.25 degrees, 0 to 1.
        within_22: by less than 22.5 degrees.
        within_30: by less than 30 degrees.
    """

    mean: float
    median: float
    within_11: float
    within_22: float
    within_30: float


def depth_rmse(edited: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]) -> float:
    """Return the root mean squared error of depth in [0, 1], coded as grey (the mean channel)."""
    difference = edited.double().mean(0) - target.double().mean(0)
    return (difference / 255).square().mean().sqrt().item()


def normal_degrees(edited: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]) -> float:
    """Return the mean angle between two fields of normals, in degrees in [0, 180]."""
    return normal_angles(edited, target).mean().item()


def normal_errors(edited: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]) -> NormalErrors:
    """Return mean, median and shares below three limits of the angle between two fields.

    Source: Fouhey et al. 2013, "Data-driven 3D primitives for single image understanding".
    """
    angles = normal_angles(edited, target)
    within = [(angles < limit).double().mean().item() for limit in (11.25, 22.5, 30.0)]
    return NormalErrors(
        mean=angles.mean().item(),
        median=angles.flatten().quantile(0.5).item(),
        within_11=within[0],
        within_22=within[1],
        within_30=within[2],
    )


def normal_angles(
    edited: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]
) -> Float64[Tensor, "h w"]:
    """Return the angle between two fields of normals at each pixel, in degrees in [0, 180].

    angle = atan2(|a x b|, a · b), exact for equal normals where arccos(a · b) is not
    """
    a, b = _normals(edited), _normals(target)
    angle = torch.atan2(torch.linalg.cross(a, b, dim=0).norm(dim=0), (a * b).sum(0))
    return angle.rad2deg()


def _normals(picture: UInt8[Tensor, "3 h w"]) -> Float64[Tensor, "3 h w"]:
    """Decode colours as directions: n = 2 c / 255 - 1; their lengths do not matter."""
    return picture.double() / 127.5 - 1
