"""Frames in windows: what is edited together, and how overlapping windows become one video.

A window never crosses a cut. The last one of a scene is moved back to be whole; frames that two
windows share are blended with weights that rise from the older to the newer and sum to 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.errors import InputError


@dataclass(frozen=True)
class Shot:
    """A frame on its way through the editor.

    Attributes:
        pixels: the picture.
        number: of the frame in its video, from 0.
        starts: whether a scene begins with it.
    """

    pixels: UInt8[Tensor, "3 h w"]
    number: int
    starts: bool


@dataclass(frozen=True)
class Window:
    """Frames of one scene that are edited together.

    Attributes:
        shots: the frames, in order.
        old: so many of the first were in the window before, too, and are blended with its result.
        context: so many more of the first were finished by windows before: only looked at.
    """

    shots: list[Shot]
    old: int = 0
    context: int = 0


def check_window(size: int, overlap: int) -> None:
    """Refuse (InputError) windows without frames, or that never move on."""
    if size < 1:
        raise InputError(f"a window needs at least 1 frame, got {size}")
    if not 0 <= overlap < size:
        raise InputError(
            f"windows of {size} frames overlap by 0 to {size - 1} of them, got {overlap}"
        )


@dataclass
class Windowed:
    """Edit a stream of frames window by window; constant memory.

    Attributes:
        edit: gives a window's results, one picture for each of its frames.
        size: frames of a window.
        overlap: frames that a window shares with the one before.
        waiting: the scene's newest frames, at least those of the window before.
        fresh: how many of them no window had yet.
        held: results that the next window is blended into.
    """

    edit: Callable[[Window], UInt8[Tensor, "f 3 h w"]]
    size: int
    overlap: int = 0
    waiting: list[Shot] = field(default_factory=list)
    fresh: int = 0
    held: list[UInt8[Tensor, "3 h w"]] = field(default_factory=list)

    def push(self, shot: Shot) -> Iterator[Shot]:
        """Take the next frame; yield what is finished by it."""
        if shot.starts:
            yield from self.flush()
        self.waiting.append(shot)
        self.fresh += 1
        if len(self.held) + self.fresh == self.size:
            yield from self._finish(is_last=False)

    def flush(self) -> Iterator[Shot]:
        """End the scene; yield all that is left of it."""
        if self.fresh:
            yield from self._finish(is_last=True)
        elif self.held:
            yield from self._released(len(self.held))
        self.waiting, self.fresh, self.held = [], 0, []

    def _finish(self, *, is_last: bool) -> Iterator[Shot]:
        shots = self.waiting[-self.size :]
        old = len(self.held)
        context = len(shots) - self.fresh - old
        results = list(self.edit(Window(shots, old, context)))[context:]
        for index in range(old):
            weight = (index + 1) / (old + 1)
            results[index] = blend(self.held[index], results[index], weight)
        self.held = results
        self.waiting, self.fresh = shots, 0
        yield from self._released(len(results) - (0 if is_last else self.overlap))

    def _released(self, count: int) -> Iterator[Shot]:
        shots = self.waiting[len(self.waiting) - len(self.held) :]
        for shot, pixels in zip(shots[:count], self.held[:count], strict=True):
            yield Shot(pixels, shot.number, shot.starts)
        self.held = self.held[count:]


def blend(
    older: UInt8[Tensor, "3 h w"], newer: UInt8[Tensor, "3 h w"], weight: float
) -> UInt8[Tensor, "3 h w"]:
    """Mix two results of a frame, rounded; equal pictures stay as they are."""
    mixed = older.float() + weight * (newer.float() - older.float())
    return mixed.round().to(torch.uint8)
