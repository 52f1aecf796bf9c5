"""Colours of video: what a frame's numbers mean, and how they become the RGB that editors see.

A video stores Y'CbCr. Which matrix, range, primaries and transfer curve made it is written in tags
that are often missing; a library that guesses shifts every colour (PyAV writes BT.601 numbers under
a BT.709 tag unless told otherwise). Here every conversion names both ends. Codes are those of ITU-T
H.273. Only wide gamut and HDR change a pixel's colour: brought to BT.709, bright parts rolled off.
"""

from dataclasses import dataclass, replace

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

RGB_MATRIX, BT709, UNSPECIFIED, BT601, BT2020 = 0, 1, 2, 6, 9
MATRICES_601 = (5, 6)  # BT.470BG (625 lines) and SMPTE 170M (525 lines): the same numbers
PQ, HLG = 16, 18
LUMA = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722)}  # kr and kb; ITU-T H.273, table 4
HD_HEIGHT = 720  # untagged video of so many lines and more is taken as BT.709

WHITE_NITS = 203.0  # of diffuse white in HDR; ITU-R BT.2408-7, table 1
PEAK_NITS = 1000.0  # of the display that HLG is shown on; ITU-R BT.2100-2, table 5
GAMMA = 2.4  # of an SDR display; ITU-R BT.1886
KNEE = 0.75  # linear light up to which tone mapping changes nothing; ours

# linear light of BT.2020 to BT.709; ITU-R BT.2087-0, section 4
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    dtype=np.float32,
)
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class Colour:
    """What Y'CbCr numbers mean, by the codes of ITU-T H.273.

    Attributes:
        matrix: of Y'CbCr (1 BT.709, 5 and 6 BT.601, 9 BT.2020; 0 is RGB).
        primaries: which red, green and blue.
        transfer: the curve between numbers and light (16 PQ, 18 HLG).
        is_full: whether luma runs from 0 to 255, or from 16 to 235.
    """

    matrix: int
    primaries: int
    transfer: int
    is_full: bool

    @property
    def is_wide(self) -> bool:
        """Whether pixels have to change: BT.2020 primaries, or the curves of HDR."""
        return self.primaries == BT2020 or self.transfer in {PQ, HLG}

    def written(self) -> "Colour":
        """Say how the edited RGB of such a video is stored again: never wide, never RGB.

        BT.601 and full range stay what they are; missing tags are filled in as the matrix implies.
        """
        if self.is_wide:
            return Colour(BT709, BT709, BT709, is_full=False)
        matrix = BT601 if self.matrix in MATRICES_601 else BT709
        given = {
            name: value
            for name, value in (("primaries", self.primaries), ("transfer", self.transfer))
            if value not in {0, UNSPECIFIED}
        }
        return replace(Colour(matrix, matrix, matrix, self.is_full), **given)


def colour_of(frame: av.VideoFrame) -> Colour:
    """Read a frame's tags; a missing matrix is BT.709 from 720 lines up, BT.601 below."""
    is_rgb = frame.format.is_rgb or frame.format.has_palette
    matrix = int(frame.colorspace)
    if is_rgb:
        matrix = BT709
    elif matrix in {RGB_MATRIX, UNSPECIFIED}:
        matrix = assumed_matrix(frame.height)
    is_full = not is_rgb and (
        frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    )
    return Colour(matrix, int(frame.color_primaries), int(frame.color_trc), is_full)


def assumed_matrix(height: int) -> int:
    """Return the matrix of a video without tags."""
    return BT709 if height >= HD_HEIGHT else BT601


def to_rgb(frame: av.VideoFrame, colour: Colour) -> np.ndarray:
    """Return a frame as uint8 "h w 3" RGB of BT.709 or BT.601; wide colours are brought there."""
    name = "rgb48le" if colour.is_wide else "rgb24"
    if frame.format.has_palette or any(part.is_alpha for part in frame.format.components):
        return _over_white(frame)
    if frame.format.is_rgb:
        converted = frame.reformat(format=name, interpolation=EXACT)
    else:
        converted = frame.reformat(
            format=name,
            src_colorspace=_sws_matrix(colour.matrix),
            src_color_range=ColorRange.JPEG if colour.is_full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=EXACT,
        )
    pixels = converted.to_ndarray()
    return to_bt709(pixels, colour.transfer) if colour.is_wide else pixels


def from_rgb(pixels: np.ndarray, colour: Colour, pixel_format: str) -> av.VideoFrame:
    """Return uint8 "h w 3" as a frame whose numbers and tags say `colour`."""
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    if not av.VideoFormat(pixel_format).is_rgb:
        matrix, levels = _sws_matrix(colour.matrix), ColorRange.MPEG
        if colour.is_full:
            levels = ColorRange.JPEG
            frame = av.VideoFrame.from_ndarray(full_range(pixels, colour.matrix), format="yuv444p")
        frame = frame.reformat(
            format=pixel_format,
            src_colorspace=matrix if colour.is_full else None,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=matrix,
            dst_color_range=levels,
            interpolation=EXACT,
        )
        frame.colorspace = colour.matrix
        frame.color_range = levels
    elif pixel_format != "rgb24":
        frame = frame.reformat(format=pixel_format)
    frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
    return frame


def full_range(pixels: np.ndarray, matrix: int) -> np.ndarray:
    """Turn uint8 RGB "h w 3" into rounded Y'CbCr "3 h w" of BT.601 or BT.709, all 256 levels used.

        Y = kr R + (1 - kr - kb) G + kb B
        Cb = (B - Y) / (2 - 2 kb) + 128
        Cr = (R - Y) / (2 - 2 kr) + 128

    Source: ITU-T H.273, equations 38 to 46. Here, because swscale 9.5 (FFmpeg 8.1) rounds the
    chroma of full range down, which makes pictures greener.
    """
    kr, kb = LUMA[BT601 if matrix in (*MATRICES_601, BT601) else BT709]
    luma = np.array([kr, 1 - kr - kb, kb])
    rows = [luma, (np.eye(3)[2] - luma) / (2 - 2 * kb), (np.eye(3)[0] - luma) / (2 - 2 * kr)]
    levels = np.stack(rows).astype(np.float32) @ pixels.reshape(-1, 3).T.astype(np.float32)
    levels[1:] += 128
    np.rint(levels, out=levels)
    return np.minimum(levels, 255, out=levels).astype(np.uint8).reshape(3, *pixels.shape[:2])


def to_bt709(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """Bring uint16 "h w 3" of BT.2020 (PQ, HLG or SDR) to uint8 BT.709.

    To linear light where 1 is diffuse white, to the primaries of BT.709, then each pixel scaled so
    that its largest channel m becomes m' = m up to the knee k, and above it
        m' = k + (1 - k) (1 - exp(-(m - k) / (1 - k)))
    which is smooth, keeps hue, and never reaches 1. Source: the curves, ITU-R BT.2100-2, tables 4
    and 5; the primaries, ITU-R BT.2087-0; the roll-off is ours.
    """
    signal = pixels.astype(np.float32) / 65535
    light = linear_light(signal, transfer) @ TO_BT709.T
    light = np.maximum(light, 0)
    if transfer in {PQ, HLG}:
        brightest = np.maximum(light.max(-1, keepdims=True), 1e-6)
        above = KNEE + (1 - KNEE) * -np.expm1(-np.maximum(brightest - KNEE, 0) / (1 - KNEE))
        light *= np.where(brightest <= KNEE, 1, above / brightest)
    levels = np.minimum(light, 1) ** (1 / GAMMA) * 255
    return np.rint(levels).astype(np.uint8)


def linear_light(signal: np.ndarray, transfer: int) -> np.ndarray:
    """Turn the numbers of a signal, 0 to 1, into light in which 1 is diffuse white.

    PQ: 10000 (max(E^(1/m2) - c1, 0) / (c2 - c3 E^(1/m2)))^(1/m1) nits
    HLG: E^2 / 3 up to 1/2, else (exp((E - c) / a) + b) / 12; then times its luminance^0.2, in
    nits of a display of 1000
    SDR: E^2.4

    Source: ITU-R BT.2100-2, tables 4 and 5; ITU-R BT.1886.
    """
    if transfer == PQ:
        m1, m2 = 2610 / 16384, 2523 / 4096 * 128
        c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        power = signal ** (1 / m2)
        nits = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
        return nits / WHITE_NITS
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        luminance = scene @ np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
        return scene * luminance[..., None] ** 0.2 * PEAK_NITS / WHITE_NITS
    return signal**GAMMA


def _over_white(frame: av.VideoFrame) -> np.ndarray:
    rgba = frame.reformat(format="rgba", interpolation=EXACT).to_ndarray().astype(np.uint16)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _sws_matrix(matrix: int) -> Colorspace:
    if matrix in MATRICES_601:
        return Colorspace.ITU601
    known = {BT2020: Colorspace.BT2020, 10: Colorspace.BT2020, 7: Colorspace.SMPTE240M}
    return known.get(matrix, Colorspace.ITU709)
