"""Editing in several turns: an immutable session, so that undo, branches and replay are free.

`Editor` answers one question; a session remembers. Each turn edits the last picture, keeps what
hardly changed bit for bit (`threshold.py`) and gives a new session; the old one stays as it was, so
undoing is going back to it and branching is editing it twice. `manifest()` writes down all that
decides the pixels, `replay` makes them again. Every turn has a noise of its own: the same noise at
every turn adds up to a visible pattern. Knows no file and no screen.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from emu_edit.diffusion.samplers import OnStep, Sampler, progress
from emu_edit.editing.doubts import doubt_about
from emu_edit.editing.editor import Editor
from emu_edit.editing.large import Large, is_drawn_locally, parse_large, way_for
from emu_edit.editing.manifest import Manifest, Turn, fingerprint, pixel_hash
from emu_edit.editing.settings import Sampling
from emu_edit.editing.task_mix import TaskChoice, parse_task, task_names
from emu_edit.editing.threshold import Threshold, check_alpha, default_alpha, is_unchanged
from emu_edit.errors import InputError
from emu_edit.images import from_pil, reflect_to_multiple
from emu_edit.models.learned_task import SUFFIX
from emu_edit.randomness import check_seed, keyed_generator


@dataclass(frozen=True)
class TurnSettings:
    """How one turn is made, besides its instruction; what is left out is the usual.

    Attributes:
        task: name of the task or a mix of two; None asks the model's task predictor.
        negative: what the picture should not show; "" for nothing.
        sampling: steps, guidance and sampler where they are not to be the model's.
        threshold: alpha of `keep_unchanged`, or None to take the result as it comes; by default on
            from the second turn, unless the task repaints the whole picture.
        seed: of this turn's noise; None derives it from the session's.
    """

    task: TaskChoice | None = None
    negative: str = ""
    sampling: Sampling = Sampling()
    threshold: float | Threshold | None = Threshold.default
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no threshold, before a model is loaded."""
        if isinstance(self.threshold, float | int):
            check_alpha(self.threshold)


@dataclass(frozen=True, eq=False)
class EditSession:
    """A picture, the turns it went through, and all pictures on the way.

    Make one with `start`; `edit`, `undo` and `at` return new sessions and leave this one alone.
    Sessions share their pictures: a branch costs no memory.

    Attributes:
        editor: what edits.
        seed: of the session; the turns' seeds come from it.
        images: the original, then the result of each turn, on the CPU.
        turns: what was done, one entry per result.
        latents: the latents of each of `images`, for a session that chains them; else None.
        large: as `start` takes it.
        doubts: for each turn that `edit` made, in a line, why the model may not have done what was
            asked; "" where no reason is known.
    """

    editor: Editor
    seed: int
    images: tuple[UInt8[Tensor, "3 h w"], ...]
    turns: tuple[Turn, ...] = ()
    latents: tuple[Float[Tensor, "c lh lw"], ...] | None = None
    doubts: tuple[str, ...] = ()
    large: Large | None = None

    @classmethod
    def start(
        cls,
        editor: Editor,
        image: UInt8[Tensor, "3 h w"] | Image.Image,
        *,
        seed: int = 0,
        chain_latents: bool = False,
        large: Large | None = None,
    ) -> "EditSession":
        """Begin with a picture of any size; a PIL image is turned upright and made RGB first.

        Args:
            editor: what edits.
            image: the picture.
            seed: of the session; the turns' seeds come from it.
            chain_latents: give each turn the latents that the turn before ended with, instead of
                encoding its picture: what an autoencoder loses is then lost once, not once a turn.
            large: how a picture is edited that is larger than the model's training pictures, see
                `emu_edit.editing.large`; None chooses.

        Raises:
            InputError: if the picture is far larger than the model's training pictures or takes
                more memory than there is, or the seed is out of range.
        """
        check_seed(seed)
        pixels = from_pil(image) if isinstance(image, Image.Image) else image.cpu()
        way = way_for(large, pixels.shape[-2:], editor.settings.image_size)
        editor.forecast(pixels.shape[-2:], editor.settings, way)
        latents = (editor.encode(pixels[None])[0].cpu(),) if chain_latents else None
        return cls(editor, seed, (pixels,), latents=latents, large=large)

    @property
    def original(self) -> UInt8[Tensor, "3 h w"]:
        """The picture the session began with."""
        return self.images[0]

    @property
    def image(self) -> UInt8[Tensor, "3 h w"]:
        """The last picture."""
        return self.images[-1]

    def edit(
        self,
        instruction: str,
        settings: TurnSettings = TurnSettings(),
        on_step: OnStep | None = None,
    ) -> "EditSession":
        """Edit the last picture; return the session with one turn more.

        Args:
            instruction: what to change, in words.
            settings: task, strength, seed and threshold, as far as they are not to be the usual.
            on_step: called with (steps done, steps in all), for progress bars.

        Raises:
            InputError: for an unknown task, an instruction that is empty, too long or not text, a
                number out of range, or a task that is left open on a model without a predictor.
        """
        prediction, task = None, settings.task
        if task is None:
            prediction = self.editor.predict_tasks([instruction])[0]
            task = prediction.task
            settings = replace(settings, task=task)
        doubt = doubt_about(self.editor, self.original, prediction, [task])
        edited = self.play(self.next_turn(instruction, settings), on_step)
        return replace(edited, doubts=(*self.doubts, doubt))

    def next_turn(self, instruction: str, settings: TurnSettings = TurnSettings()) -> Turn:
        """Say what `edit` would do, with every default filled in.

        Raises:
            InputError: as `edit`.
        """
        usual = settings.sampling.applied(self.editor.settings)
        number, task, alpha = len(self.turns) + 1, settings.task, settings.threshold
        if task is None:
            task = self.editor.predict_tasks([instruction])[0].task
        if isinstance(alpha, Threshold):
            alpha = default_alpha(task, number)
        size, trained = self.image.shape[-2:], self.editor.settings.image_size
        local = is_drawn_locally(self.image[None], [task])
        way = way_for(self.large, size, trained, is_local=local)
        return Turn(
            instruction=instruction,
            task=str(task),
            seed=turn_seed(self.seed, number) if settings.seed is None else settings.seed,
            negative=settings.negative,
            guidance_text=float(usual.guidance.text),
            guidance_image=float(usual.guidance.image),
            num_steps=usual.num_steps,
            sampler=usual.sampler.name,
            threshold=None if alpha is None else float(alpha),
            large=str(way),
        )

    def play(self, turn: Turn, on_step: OnStep | None = None) -> "EditSession":
        """Edit the last picture exactly as `turn` says.

        Raises:
            InputError: if the model does not know the turn's task, or cannot take its steps.
        """
        editor = self.editor
        sampling = Sampling(
            turn.num_steps, turn.guidance_text, turn.guidance_image, Sampler[turn.sampler]
        )
        settings = sampling.applied(editor.settings)
        way = editor.announce(self.image.shape[-2:], settings, parse_large(turn.large))
        small = way.shrunk(self.image[None])
        is_copy = small.shape != self.image[None].shape
        chained = None if self.latents is None else self.latents[-1][None]
        before = editor.encode(small) if chained is None or is_copy else chained
        after = editor.edit_latents(
            before,
            [turn.instruction],
            # read back from its text, here as in a replay: a mix keeps six digits there
            [parse_task(turn.task)],
            [turn.seed],
            negative=[turn.negative],
            settings=settings,
            on_step=progress(on_step, turn.num_steps),
            tile=way.tile(editor.multiple),
            pictures=small,
        )
        edited = editor.decode(after, small.shape[-2:])
        edited = way.enlarged(self.image[None], small, edited)[0]
        if chained is not None and is_copy:
            before, after = chained, editor.encode(edited[None])
        if turn.threshold is not None:
            kept = is_unchanged(self.image, edited, alpha=turn.threshold)
            edited = torch.where(kept, self.image, edited)
            if chained is not None:
                after = _kept_cells(kept, before.to(after), after, editor.multiple)
        chain = None if self.latents is None else (*self.latents, after[0].cpu())
        images = (*self.images, edited)
        turns, doubts = (*self.turns, turn), (*self.doubts, "")
        return replace(self, images=images, turns=turns, latents=chain, doubts=doubts)

    def undo(self) -> "EditSession":
        """Take the last turn back.

        Raises:
            InputError: if there is no turn.
        """
        if not self.turns:
            raise InputError("there is no turn to undo: the picture is the original")
        return self.at(len(self.turns) - 1)

    def at(self, turn: int) -> "EditSession":
        """Go back to the session as it was after `turn`, to branch from; 0 is the original.

        Raises:
            InputError: if it has no such turn.
        """
        if not 0 <= turn <= len(self.turns):
            raise InputError(f"the session has turns 0 to {len(self.turns)}, there is no {turn}")
        chain = None if self.latents is None else self.latents[: turn + 1]
        images, doubts = self.images[: turn + 1], self.doubts[:turn]
        return replace(self, images=images, turns=self.turns[:turn], latents=chain, doubts=doubts)

    def manifest(self) -> dict[str, object]:
        """Write down what `replay` needs, as JSON-ready primitives, without file or person."""
        height, width = self.original.shape[-2:]
        return Manifest(
            seed=self.seed,
            width=width,
            height=height,
            original=pixel_hash(self.original),
            model=fingerprint(self.editor),
            chain_latents=self.latents is not None,
            turns=self.turns,
            results=tuple(pixel_hash(image) for image in self.images[1:]),
            learned_tasks=self._learned_tasks(),
        ).to_dict()

    def _learned_tasks(self) -> dict[str, str]:
        """Hash the vector of each learned task that a turn uses, by name."""
        used = {name for turn in self.turns for name in task_names(parse_task(turn.task))}
        learned = self.editor.networks.learned
        return {task.name: task.vector_hash() for task in learned if task.name in used}


def replay(
    editor: Editor,
    image: UInt8[Tensor, "3 h w"] | Image.Image,
    manifest: dict[str, object],
    on_turn: OnStep | None = None,
) -> EditSession:
    """Make a session again from its manifest: the same model, picture and turns, the same pixels.

    Pixels are identical on the kind of device and the torch version that made them; elsewhere sums
    round differently. Compare `manifest()["results"]` of the two to know.

    Args:
        editor: the model the session was made with.
        image: the picture it began with.
        manifest: what `EditSession.manifest` returned.
        on_turn: called with (turns done, turns in all) before the first turn and after each.

    Raises:
        InputError: if the manifest is malformed or of another version, model or picture.
    """
    wanted = Manifest.from_dict(manifest)
    large = parse_large(wanted.turns[0].large) if wanted.turns else None
    session = EditSession.start(
        editor, image, seed=wanted.seed, chain_latents=wanted.chain_latents, large=large
    )
    _check_same(session, wanted)
    for done, turn in enumerate(wanted.turns):
        if on_turn is not None:
            on_turn(done, len(wanted.turns))
        session = session.play(turn)
    if on_turn is not None:
        on_turn(len(wanted.turns), len(wanted.turns))
    return session


def turn_seed(seed: int, turn: int) -> int:
    """Derive the seed of a turn (counted from 1) from the session's, and from nothing else.

    The first turn has the session's own, so that a session of one turn is the plain edit with that
    seed; later ones are drawn, below 2^32.
    """
    if turn == 1:
        return seed
    return int(keyed_generator(seed, "turn", turn).integers(2**32))


def _kept_cells(
    kept: Bool[Tensor, "h w"],
    before: Float[Tensor, "1 c lh lw"],
    after: Float[Tensor, "1 c lh lw"],
    multiple: int,
) -> Float[Tensor, "1 c lh lw"]:
    """Take the latents of `before` where every pixel of a cell was kept, else those of `after`."""
    changed = (~kept).to(torch.uint8).expand(1, 3, -1, -1)
    changed = reflect_to_multiple(changed, multiple)[:, :1].float()
    is_kept = functional.max_pool2d(changed, multiple) == 0
    return torch.where(is_kept.to(after.device), before, after)


def _check_same(session: EditSession, wanted: Manifest) -> None:
    height, width = session.original.shape[-2:]
    if (width, height) != (wanted.width, wanted.height):
        shorter = min(wanted.width, wanted.height)
        raise InputError(
            f"the manifest is of a picture of {wanted.width}x{wanted.height}, this one is "
            f"{width}x{height}; give the original, or --size {shorter} if it was resized"
        )
    if pixel_hash(session.original) != wanted.original:
        raise InputError(
            "the manifest is of another picture: the size agrees, the pixels do not; "
            "give the original"
        )
    if fingerprint(session.editor) != wanted.model:
        raise InputError(
            "the manifest was made with another model (its weights differ); give that one"
        )
    _check_learned(session.editor, wanted)


def _check_learned(editor: Editor, wanted: Manifest) -> None:
    has = {task.name: task.vector_hash() for task in editor.networks.learned}
    for name, vector_hash in wanted.learned_tasks.items():
        if name not in has:
            raise InputError(
                f"the manifest uses the learned task {name!r}, which this model has not; give its "
                f"file (--task {name}{SUFFIX}), or put it into the model with 'emu-edit tasks add'"
            )
        if has[name] != vector_hash:
            raise InputError(
                f"the manifest was made with another vector of the learned task {name!r}; give the "
                f"file it was made with (--task {name}{SUFFIX})"
            )
