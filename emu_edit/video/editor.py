"""The picture editor on the frames of a video, in constant memory.

`VideoEditor` takes frames as they come and gives edited ones as soon as they are finished. What
ties a scene's frames together costs no training and each part can be chosen alone: their noise,
where self-attention looks, pixels kept of the source, colours held at the scene's first window.
Everything that is remembered ends at a cut. Knows no file.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load, save
from torch import Tensor

from emu_edit.diffusion.samplers import StepEnd
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings, Sampling
from emu_edit.editing.task_mix import TaskChoice
from emu_edit.editing.threshold import Threshold, check_alpha, default_alpha, mean_difference
from emu_edit.errors import InputError
from emu_edit.models.frame_attention import FrameAttention, Look, looking, looking_layers
from emu_edit.randomness import check_seed, keyed_generator
from emu_edit.text_rules import clean_instruction
from emu_edit.video.noise import ALPHA, NoiseMode, frame_noise
from emu_edit.video.windows import Shot, Window, Windowed, check_window

BATCH = 8  # frames that are edited in one call where no frame looks at another
MOST_LOOKED_AT = 65536  # pixels of a frame from which its colour shift is taken


@dataclass(frozen=True)
class VideoSettings:
    """How the frames of a scene are tied together.

    Attributes:
        noise: how the frames' first noise is related, see `NoiseMode`.
        noise_alpha: weight of what mixed and progressive noise share.
        look: where self-attention looks besides its own frame, see `Look`.
        window: frames that are edited together where `look` is not own; without meaning otherwise.
        overlap: frames that a window shares with the one before, blended.
        pool: side of the patches that `Look.coarse` averages over.
        threshold: alpha of `keep_unchanged` against the source frame, so that what an edit leaves
            alone are the source's own pixels; None takes the result as it comes. By default on,
            unless the task repaints the whole picture (`benchmarks/video_options.py`).
        memory: share of a pixel's last difference that still counts in the next frame, 0 to 1.
        hold_colour: keep the shift of colours that the scene's first window has.
    """

    noise: NoiseMode = NoiseMode.shared
    noise_alpha: float = ALPHA
    look: Look = Look.own
    window: int = 8
    overlap: int = 0
    pool: int = 2
    threshold: float | Threshold | None = Threshold.default
    memory: float = 0.5
    hold_colour: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing, before a model is loaded."""
        check_window(self.window, self.overlap)
        if isinstance(self.threshold, float | int):
            check_alpha(self.threshold)
        if not 0 <= self.memory <= 1:
            raise InputError(f"memory must be from 0 to 1, got {self.memory:g}")
        if not self.noise_alpha >= 0:
            raise InputError(f"noise alpha must be at least 0, got {self.noise_alpha:g}")
        if self.pool < 1:
            raise InputError(f"pool must be at least 1, got {self.pool}")


@dataclass(frozen=True)
class VideoTurn:
    """One instruction for a whole video.

    Attributes:
        instruction: what to change, in words.
        task: its task; None asks the model's predictor, once.
        negative: what the frames should not show; "" for nothing.
        sampling: steps, guidance and sampler where they are not to be the model's.
        seed: of the noise.
    """

    instruction: str
    task: TaskChoice | None = None
    negative: str = ""
    sampling: Sampling = Sampling()
    seed: int = 0


@dataclass
class Stage:
    """One instruction on a stream of frames, and what it remembers of the scene.

    Attributes:
        editor: what edits pictures.
        turn: what is asked, its task named.
        settings: how frames are tied together.
        on_step: hears of every step of every window, and may replace its latents.
        sources: frames whose results are not finished.
        anchor: the scene's first frame.
        difference: the smoothed d_bar of the last frame.
        shift: of colours, in the scene's first window; the mean over so many frames.
    """

    editor: Editor
    turn: VideoTurn
    settings: VideoSettings
    on_step: StepEnd | None = None
    sources: dict[int, UInt8[Tensor, "3 h w"]] = field(default_factory=dict)
    anchor: Shot | None = None
    difference: Float[Tensor, "h w"] | None = None
    shift: Float[Tensor, " 3"] | None = None
    shift_of: int = 0

    def __post_init__(self) -> None:
        """Make the windows."""
        alone = self.settings.look is Look.own
        size, overlap = (BATCH, 0) if alone else (self.settings.window, self.settings.overlap)
        self.windows = Windowed(self._edit, size, overlap)

    def push(self, shot: Shot) -> Iterator[Shot]:
        """Take the next frame; yield what is finished by it."""
        # generators run late: what is remembered of a scene must outlive its last frames
        finished = list(self.windows.flush()) if shot.starts else []
        yield from map(self._finished, finished)
        if shot.starts:
            self.anchor, self.difference, self.shift, self.shift_of = shot, None, None, 0
        self.sources[shot.number] = shot.pixels
        yield from map(self._finished, list(self.windows.push(shot)))

    def flush(self) -> Iterator[Shot]:
        """Yield all that is left at the end of the video."""
        yield from map(self._finished, list(self.windows.flush()))

    def _edit(self, window: Window) -> UInt8[Tensor, "f 3 h w"]:
        shots, count = list(window.shots), len(window.shots)
        if self.settings.look is Look.own:
            shots += [shots[-1]] * (BATCH - count)  # one size of batch: the same rounding always
            return self._edited(shots)[:count]
        # the anchor comes along where it is not in the window; so does the neighbour before
        leads = [self.anchor] if self.anchor and shots[0].number != self.anchor.number else []
        if self.settings.look is Look.coarse:
            leads = []
        return self._edited([*leads, *shots])[len(leads) :]

    def _edited(self, shots: Sequence[Shot]) -> UInt8[Tensor, "f 3 h w"]:
        editor, turn = self.editor, self.turn
        frames = torch.stack([shot.pixels for shot in shots])
        numbers = [shot.number for shot in shots]
        latents = editor.encode(frames)
        size = (latents.shape[-2], latents.shape[-1])
        attention = FrameAttention(self.settings.look, len(shots), size, self.settings.pool)
        noise = frame_noise(
            self.settings.noise, turn.seed, numbers, latents.shape[1:], self.settings.noise_alpha
        )
        assert turn.task is not None
        with looking(editor.networks.denoiser, attention):
            edited = editor.edit_latents(
                latents,
                [turn.instruction] * len(shots),
                [turn.task] * len(shots),
                [self._step_seed(number) for number in numbers],
                negative=[turn.negative],
                settings=self.usual,
                on_step=self.on_step,
                noise=noise,
                pictures=frames,
            )
        return editor.decode(edited, frames.shape[-2:])

    @property
    def usual(self) -> EditorSettings:
        """Steps, guidance and sampler of this turn."""
        return self.turn.sampling.applied(self.editor.settings)

    def _step_seed(self, number: int) -> int:
        """Return the seed of the noise that an ancestral sampler adds on the way."""
        if self.settings.noise is NoiseMode.shared:
            return self.turn.seed
        drawn = keyed_generator(self.turn.seed, "video steps", number)
        return int(drawn.integers(2**62))

    def _finished(self, shot: Shot) -> Shot:
        source, result = self.sources.pop(shot.number), shot.pixels
        if self.settings.hold_colour:
            result = self._held_colour(source, result)
        alpha = self.settings.threshold
        if isinstance(alpha, Threshold):
            assert self.turn.task is not None
            alpha = default_alpha(self.turn.task, turn=2)
        if alpha is not None:
            result = self._kept(source, result, alpha)
        return Shot(result, shot.number, shot.starts)

    def _held_colour(
        self, source: UInt8[Tensor, "3 h w"], result: UInt8[Tensor, "3 h w"]
    ) -> UInt8[Tensor, "3 h w"]:
        """Move colours so that their median shift is the first window's.

        result - (median(result - source) - shift), in each channel. The median is of what most of a
        frame does: of the untouched part in a small edit, of the whole look in a large one. Ours.
        """
        step = max(1, round((source[0].numel() / MOST_LOOKED_AT) ** 0.5))
        change = result[:, ::step, ::step].float() - source[:, ::step, ::step].float()
        now = change.flatten(1).median(dim=1).values
        if self.shift is None or self.shift_of < self.settings.window:
            known = torch.zeros(3) if self.shift is None else self.shift
            self.shift_of += 1
            self.shift = known + (now - known) / self.shift_of
            return result
        moved = result.float() - (now - self.shift)[:, None, None]
        return moved.round().clamp(0, 255).to(torch.uint8)

    def _kept(
        self, source: UInt8[Tensor, "3 h w"], result: UInt8[Tensor, "3 h w"], alpha: float
    ) -> UInt8[Tensor, "3 h w"]:
        """Keep the source where little changes, with a mask that lets go slowly.

            D[f] = max(d[f], (1 - m) d[f] + m D[f - 1])      d = `mean_difference`, m the memory

        An edit shows at once, and a pixel near the threshold does not flicker: it stays edited for
        a few frames more. Source: the threshold, Sheynin et al. 2023, arXiv:2311.10089; the
        smoothing is ours.
        """
        now, m = mean_difference(source, result), self.settings.memory
        if self.difference is not None:
            now = torch.maximum(now, (1 - m) * now + m * self.difference)
        self.difference = now
        return torch.where(now < alpha, source, result)

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return all that is remembered, as tensors and as numbers."""
        windows = self.windows
        tensors = {f"source.{number}": pixels for number, pixels in self.sources.items()}
        tensors |= {f"waiting.{i}": shot.pixels for i, shot in enumerate(windows.waiting)}
        tensors |= {f"held.{i}": pixels for i, pixels in enumerate(windows.held)}
        named = {"difference": self.difference, "shift": self.shift}
        if self.anchor is not None:
            named["anchor"] = self.anchor.pixels
        tensors |= {name: value for name, value in named.items() if value is not None}
        numbers: dict[str, object] = {
            "waiting": [(shot.number, shot.starts) for shot in windows.waiting],
            "fresh": windows.fresh,
            "anchor": None if self.anchor is None else self.anchor.number,
            "shift_of": self.shift_of,
        }
        return {name: value.contiguous().clone() for name, value in tensors.items()}, numbers

    def restore(self, tensors: dict[str, Tensor], numbers: dict) -> None:
        """Remember what `state` returned."""
        self.sources = {
            int(name.removeprefix("source.")): value
            for name, value in tensors.items()
            if name.startswith("source.")
        }
        windows = self.windows
        windows.waiting = [
            Shot(tensors[f"waiting.{i}"], number, starts)
            for i, (number, starts) in enumerate(numbers["waiting"])
        ]
        held = sum(name.startswith("held.") for name in tensors)
        windows.held = [tensors[f"held.{i}"] for i in range(held)]
        windows.fresh, self.shift_of = numbers["fresh"], numbers["shift_of"]
        self.difference, self.shift = tensors.get("difference"), tensors.get("shift")
        if numbers["anchor"] is not None:
            self.anchor = Shot(tensors["anchor"], numbers["anchor"], starts=True)


class VideoEditor:
    """Edit the frames of videos by one or several instructions, in one pass.

    Each instruction works on the results of the one before. For the same frames, cuts, turns and
    settings the results are the same however frames are batched, windows aside.
    """

    def __init__(
        self,
        editor: Editor,
        turns: Sequence[VideoTurn],
        settings: VideoSettings = VideoSettings(),
        on_step: StepEnd | None = None,
        make_stage: "Callable[..., Stage] | None" = None,
    ) -> None:
        """Name the tasks that are left open; `on_step` hears of every step, see `StepEnd`.

        `make_stage` takes the arguments of `Stage` and makes another one, see `video_editor`.

        Raises:
            InputError: for no turn, an unknown task, an instruction that is empty, too long or not
                text, a seed out of range, a task left open on a model without a predictor, or
                frames that are to look at others where the network is no U-Net.
        """
        if not turns:
            raise InputError("a video needs at least one instruction")
        looking_layers(editor.networks.denoiser, settings.look)
        self.turns = [_settled(editor, turn) for turn in turns]
        self.settings = settings
        make = Stage if make_stage is None else make_stage
        self.stages = [make(editor, turn, settings, on_step) for turn in self.turns]

    def push(self, shot: Shot) -> list[Shot]:
        """Take the next frame; return those that it finishes."""
        shots = [shot]
        for stage in self.stages:
            shots = [done for each in shots for done in stage.push(each)]
        return shots

    def flush(self) -> list[Shot]:
        """Return the frames that are left at the end."""
        shots: list[Shot] = []
        for stage in self.stages:
            shots = [*(done for each in shots for done in stage.push(each)), *stage.flush()]
        return shots

    def edit(self, shots: Iterable[Shot]) -> Iterator[Shot]:
        """Edit a whole video, frame by frame."""
        for shot in shots:
            yield from self.push(shot)
        yield from self.flush()

    def state(self) -> bytes:
        """Return what is remembered between two frames, a safetensors file."""
        tensors, numbers = {}, []
        for index, stage in enumerate(self.stages):
            mine, known = stage.state()
            tensors |= {f"{index}.{name}": value for name, value in mine.items()}
            numbers.append(known)
        return save(tensors, metadata={"stages": json.dumps(numbers)})

    def restore(self, state: bytes) -> None:
        """Go on where `state` was taken."""
        header = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])
        tensors = load(state)
        for index, (stage, numbers) in enumerate(
            zip(self.stages, json.loads(header["__metadata__"]["stages"]), strict=True)
        ):
            first = f"{index}."
            mine = {
                name.removeprefix(first): value
                for name, value in tensors.items()
                if name.startswith(first)
            }
            stage.restore(mine, numbers)


def _settled(editor: Editor, turn: VideoTurn) -> VideoTurn:
    check_seed(turn.seed)
    text = clean_instruction(turn.instruction)
    task = turn.task if turn.task is not None else editor.predict_tasks([text])[0].task
    negative = clean_instruction(turn.negative, what="negative text") if turn.negative else ""
    return VideoTurn(text, task, negative, turn.sampling, turn.seed)
