"""Frames between the frames of a video: a model that is told every k-th frame draws all of them.

Frame i of the video is frame k (i + 1) of the result, which begins k frames earlier and ends k
frames later: n frames become k (n + 1) + 1, 8 become 37 for k = 4. Longer videos come in windows
that share a frame: the older window's last k + 1 frames and the newer one's first k are dropped, as
the paper joins two halves. (Its halves of 16 share none, and so become 65: there the last frame of
the first half falls out, and what moves jumps. Here 15 frames become 65, and 16 become 69.)
Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 3.4.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.editing.animate import Animator, Drawing
from emu_edit.errors import InputError
from emu_edit.models.given import Given

Picture = UInt8[Tensor, "3 h w"]


def interpolate(
    animator: Animator,
    frames: Iterable[Picture],
    drawing: Drawing,
    *,
    factor: int | None = None,
    redraw: bool = False,
) -> Iterator[UInt8[Tensor, "f 3 h w"]]:
    """Yield a video with more frames, window by window, on the CPU; one window is in memory.

    A longer video begins as a shorter one does before its last frame. The video's own frames are
    kept, bit for bit. The paper's are drawn again: a model that is told them with noise (t = 100)
    mends the faults of generated frames, and draws frames between that fit the mended ones. That is
    `redraw`; of a recording it would lose what the noise hides.

    Args:
        animator: the model, of `Given.interleaved`.
        frames: of one size, at least 2.
        drawing: what the video shows; its caption may be "".
        factor: how many times as many frames a second; k, or a divisor of it, for which only some
            of what is drawn is kept. None means k.
        redraw: whether the video's own frames are drawn, too.

    Raises:
        InputError: if the model draws no frames between others, for another factor, a video of one
            frame, frames far larger than in training, or a caption that is too long.
    """
    step = check_factor(animator, factor)
    return _joined(animator, frames, drawing, step=step, redraw=redraw)


def check_factor(animator: Animator, factor: int | None) -> int:
    """Return of how many drawn frames one is kept: the model's factor by the one asked for.

    Raises:
        InputError: if the model draws no frames between others, or the factor does not divide its.
    """
    animator.check_kind(Given.interleaved)
    own = animator.given.factor
    if factor is None:
        return 1
    if factor < 2 or own % factor:
        can = [n for n in range(2, own + 1) if own % n == 0]
        raise InputError(
            f"factor {factor}: this model draws {own} times as many frames; give "
            f"{' or '.join(map(str, can))}, or interpolate its result once more"
        )
    return own // factor


def _joined(
    animator: Animator,
    frames: Iterable[Picture],
    drawing: Drawing,
    *,
    step: int,
    redraw: bool,
) -> Iterator[UInt8[Tensor, "f 3 h w"]]:
    k, done = animator.given.factor, 0
    for window in windows_of(frames, len(animator.places)):
        pictures = torch.stack(window.frames)
        n, first = len(pictures), k * window.first
        if window.is_last and window.first == 0 and n == 1:
            raise InputError("the video has 1 frame, and frames between need 2; give a longer one")
        latents = drawing.window(
            animator, animator.video.encode(pictures), first=first, frames=animator.given.count(n)
        )
        drawn = animator.video.decode(latents, pictures.shape[-2:])
        if not redraw:
            drawn[k : k * n + 1 : k] = pictures
        end = first + (len(drawn) if window.is_last else k * n)
        start = done + -done % step  # the next whose number the step divides
        yield drawn[start - first : end - first : step]
        done = end


@dataclass(frozen=True)
class Window:
    """Frames that follow each other.

    Attributes:
        frames: the pictures.
        first: number of the first of them in their video.
        is_last: whether none follows.
    """

    frames: list[Picture]
    first: int
    is_last: bool


def windows_of(frames: Iterable[Picture], size: int) -> Iterator[Window]:
    """Cut a stream into windows, each beginning with the last frame of the one before.

    The last one is moved back to be whole; a video that is shorter than `size` (at least 2) is one
    window.
    """
    recent: deque[Picture] = deque(maxlen=size)
    stream = iter(frames)
    coming, seen = next(stream, None), 0
    while coming is not None:
        recent.append(coming)
        seen += 1
        coming = next(stream, None)
        is_whole = seen >= size and (seen - 1) % (size - 1) == 0
        if is_whole or coming is None:
            yield Window(list(recent), seen - len(recent), coming is None)
