"""What the web page remembers of a visitor, and how each button changes it; knows no web library.

A visitor has lines of turns (a new line begins where an earlier turn was edited again) and looks at
one turn of one line. The state is immutable and so are the sessions in it: each function takes a
state and gives the next, or refuses in one line and changes nothing.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.diffusion.samplers import OnStep
from emu_edit.editing.doubts import doubt_about
from emu_edit.editing.editor import Editor
from emu_edit.editing.large import way_for
from emu_edit.editing.session import EditSession, TurnSettings
from emu_edit.errors import BadImageError, InputError
from emu_edit.images import decode_rgb, is_far_larger, resize, with_shorter_side
from emu_edit.web.guard import MEBI, Limits

THUMBNAIL = 192  # longer side in the history, in pixels
CAPTION = 40  # characters of an instruction in the history: three lines, with number and task
BRANCH = 32  # and in the name of a branch
SEED_DIGITS = 19  # of the largest seed

# A picture with no longer side is enlarged without smoothing: its pixels are what one looks for.
# Larger ones are scaled as browsers do, because that would make them jagged.
MOST_PIXELATED = 160

# Ours: a channel that differs by more levels, of 255, is seen side by side; a model's output
# differs from its input by a few everywhere
VISIBLE = 8

# Level of the smallest change, of 255. Ours: one grey level in one channel must be told from black.
FAINTEST = 48


@dataclass(frozen=True, eq=False)
class PageState:
    """A visitor's lines of turns and the turn that is shown.

    Attributes:
        lines: sessions that begin with the same picture, at least one.
        line: index of the one that is shown.
        turn: the turn that is shown, 0 is the original; the next edit goes on from here.
    """

    lines: tuple[EditSession, ...]
    line: int = 0
    turn: int = 0

    @property
    def whole_line(self) -> EditSession:
        """The line that is shown, with the turns after the one shown."""
        return self.lines[self.line]

    @property
    def session(self) -> EditSession:
        """The line up to the turn that is shown."""
        return self.whole_line.at(self.turn)

    @property
    def is_at_end(self) -> bool:
        """Whether the last turn of the line is shown."""
        return self.turn == len(self.whole_line.turns)


def read_upload(data: bytes, limits: Limits) -> UInt8[Tensor, "3 h w"]:
    """Decode an uploaded picture: pixels only, upright; metadata (EXIF, GPS) is left behind.

    Raises:
        BadImageError: if it has too many bytes or pixels, or is no picture.
    """
    if len(data) > limits.upload_bytes:
        most = limits.upload_bytes / MEBI
        raise BadImageError(
            f"the file has {len(data) / MEBI:.1f} MiB, at most {most:g} are taken; "
            "save it as JPEG or make it smaller"
        )
    try:
        return decode_rgb(data, most_pixels=limits.upload_pixels)
    except BadImageError as error:
        # what is shown stands alone, without the name of a file
        line = str(error).replace("the picture is no picture", "the file is no picture")
        raise BadImageError(line) from error


def open_picture(editor: Editor, data: bytes, *, is_resized: bool, limits: Limits) -> PageState:
    """Begin with an uploaded picture, its shorter side resized to the model's size if asked.

    Raises:
        BadImageError: if the file is refused, see `read_upload`.
        InputError: if the picture is too large to be edited as it is.
    """
    image = read_upload(data, limits)
    height, width = image.shape[-2:]
    trained = editor.settings.image_size
    edited = way_for(None, (height, width), trained).edited_size((height, width))
    if is_resized:
        image = resize(image, with_shorter_side(trained, height=height, width=width))
    elif height * width > limits.edited_pixels or is_far_larger(
        trained, height=edited[0], width=edited[1], times=limits.times_larger
    ):
        raise InputError(
            f"the picture is {width}x{height}, too large for this model, which was trained at "
            f"{trained} px; tick 'Resize' below the upload to edit a copy of that size"
        )
    try:
        return PageState((EditSession.start(editor, image),))
    except InputError as error:  # how to ask for a smaller copy is another thing here
        what = str(error).partition(";")[0]
        raise InputError(
            f"{what}; tick 'Resize' below the upload to edit a copy of {trained} px"
        ) from error


def edit(
    state: PageState | None,
    instruction: str,
    settings: TurnSettings,
    *,
    limits: Limits,
    on_step: OnStep | None = None,
) -> PageState:
    """Edit the picture that is shown; from an earlier turn this begins a new line.

    Raises:
        InputError: if there is no picture, a limit is exceeded, or the editor refuses.
    """
    state = _opened(state)
    _check(state, instruction, settings, limits)
    session = state.session.edit(instruction, settings, on_step)
    turn = len(session.turns)
    if state.is_at_end:
        return replace(state, lines=_replaced(state, session), turn=turn)
    return PageState((*state.lines, session), len(state.lines), turn)


def undo(state: PageState | None) -> PageState:
    """Take the last turn back; when an earlier one is shown, nothing is lost: go one turn back.

    Raises:
        InputError: if there is no picture, or the original is shown.
    """
    state = _opened(state)
    shorter = state.session.undo()
    if state.is_at_end:
        return replace(state, lines=_replaced(state, shorter), turn=state.turn - 1)
    return replace(state, turn=state.turn - 1)


def show_turn(state: PageState | None, turn: int) -> PageState:
    """Show a turn of the line, 0 is the original; the next edit goes on from it.

    Raises:
        InputError: if there is no picture or no such turn.
    """
    state = _opened(state)
    state.whole_line.at(turn)
    return replace(state, turn=turn)


def show_line(state: PageState | None, line: int) -> PageState:
    """Show the last turn of another line.

    Raises:
        InputError: if there is no picture or no such line.
    """
    state = _opened(state)
    if not 0 <= line < len(state.lines):
        raise InputError(f"there are branches 1 to {len(state.lines)}, there is no {line + 1}")
    return replace(state, line=line, turn=len(state.lines[line].turns))


def comparison(
    state: PageState, *, is_with_original: bool
) -> tuple[UInt8[Tensor, "3 h w"], UInt8[Tensor, "3 h w"]]:
    """Choose the two pictures to compare: the one before the shown turn, or the original, first."""
    session = state.session
    before = session.original if is_with_original else session.images[max(state.turn - 1, 0)]
    return before, session.image


def draw_difference(
    before: UInt8[Tensor, "3 h w"], after: UInt8[Tensor, "3 h w"]
) -> UInt8[Tensor, "3 h w"]:
    """Draw the mean absolute difference over RGB: exactly black is exactly the same, yellow most.

    The colour goes with the square root of the difference (ours): most edits change a few tenths,
    and small errors outside them are what people look for here.
    """
    from matplotlib import colormaps

    difference = (before.short() - after.short()).abs().float().mean(0) / 255
    levels = FAINTEST + difference.sqrt() * (255 - FAINTEST)
    colours = colormaps["inferno"](levels.round().to(torch.uint8).numpy(), bytes=True)
    drawn = torch.from_numpy(np.ascontiguousarray(colours[..., :3])).permute(2, 0, 1)
    return torch.where((before != after).any(0), drawn, 0)


def picture_names(state: PageState, *, is_with_original: bool) -> tuple[str, str]:
    """Name the two pictures of `comparison`."""
    if state.turn == 0:
        return "Original", "Original"
    before = 0 if is_with_original else state.turn - 1
    return f"Before: {f'turn {before}' if before else 'original'}", f"After: turn {state.turn}"


def is_small(state: PageState) -> bool:
    """Whether the picture is to be enlarged without smoothing."""
    return max(state.session.image.shape[-2:]) <= MOST_PIXELATED


def history(state: PageState) -> list[tuple[UInt8[Tensor, "3 _ _"], str]]:
    """Make a thumbnail and a caption of the original and of each turn of the line."""
    line = state.whole_line
    captions = ["original"] + [
        f"{number}. {shortened(turn.instruction)} [{turn.task}]"
        for number, turn in enumerate(line.turns, start=1)
    ]
    return [
        (_thumbnail(image), caption) for image, caption in zip(line.images, captions, strict=True)
    ]


def line_names(state: PageState) -> list[str]:
    """Name each line by its number, the instruction it ends with, and its turns."""
    return [
        f"branch {number}: {shortened(line.turns[-1].instruction, BRANCH)}"
        f" ({len(line.turns)} turn{'' if len(line.turns) == 1 else 's'})"
        if line.turns
        else f"branch {number}: original"
        for number, line in enumerate(state.lines, start=1)
    ]


def summary(state: PageState) -> str:
    """Say in a few words what is shown, how it was made and what comes next."""
    session = state.session
    height, width = session.image.shape[-2:]
    size = f"{width}x{height} px"
    branches = "" if state.is_at_end else " The next edit begins a branch."
    if not session.turns:
        return f"The original, {size}. {_advice(session)}{_doubt(session)}{branches}"
    last = session.turns[-1]
    return (
        f"Turn {state.turn} of {len(state.whole_line.turns)}, {size}. Task {last.task}, "
        f"seed {last.seed}, steps {last.num_steps}. {_how_much(session)}"
        f"{_doubt(session)}{branches}"
    )


def shortened(text: str, length: int = CAPTION) -> str:
    """Cut a text to what fits below a thumbnail, between two words unless one is very long."""
    if len(text) <= length:
        return text
    cut = text[:length]
    words, _, last = cut.rpartition(" ")
    return f"{words if len(last) < length // 2 else cut[:-1]}…"


def read_seed(text: str) -> int | None:
    """Read the seed that was typed; nothing typed, None, asks for a new one in each turn."""
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= SEED_DIGITS):
        raise InputError(
            f"the seed must be a whole number of at most {SEED_DIGITS} digits, got "
            f"{shortened(text)!r}; leave it empty for a new one in each turn"
        )
    return int(text)


def check_request(editor: Editor, instruction: str, settings: TurnSettings, limits: Limits) -> None:
    """Refuse what no visitor may ask for, of a picture or of a video.

    Raises:
        InputError: for words that are too long, too many steps, or a task that nobody chose.
    """
    for what, text in (("instruction", instruction), ("negative text", settings.negative)):
        if len(text) > limits.characters:
            raise InputError(
                f"the {what} has {len(text)} characters, at most {limits.characters} are taken; "
                "shorten it"
            )
    num_steps = settings.sampling.applied(editor.settings).num_steps
    if num_steps > limits.steps:
        raise InputError(f"steps must be 1 to {limits.steps}, got {num_steps}")
    if settings.task is None and editor.predictor is None:
        raise InputError("this model has no task predictor; choose the kind of edit")


def _advice(session: EditSession) -> str:
    editor, trained = session.editor, session.editor.settings.image_size
    size = session.image.shape[-2:]
    way = way_for(session.large, size, trained)
    told = editor.forecast(size, editor.settings, way)
    if told is not None and told.is_long:
        return f"An edit of it takes {told} here; tick 'Resize' for a quicker one."
    if not (described := way.describe(size)):
        return "Say what to change."
    return f"That is larger than the {trained} px this model was trained at: {described}."


def _how_much(session: EditSession) -> str:
    change = (session.images[-2].short() - session.image.short()).abs().amax(0)
    if not change.any():
        return "Nothing changed: every pixel is as before. Try other words or another seed."
    is_seen = change > VISIBLE
    count = int(is_seen.sum())
    if count == 0:
        return (
            f"Nothing visible changed: no pixel by more than {VISIBLE} of 255 levels. Try other "
            "words or another seed."
        )
    if count == is_seen.numel():
        return "Every pixel changed visibly."
    # never 0 % or 100 %, which would claim the above
    share = min(max(round(100 * count / is_seen.numel()), 1), 99)
    kept = "" if session.turns[-1].threshold is None else ", what hardly changed was kept"
    return f"{share}% of pixels changed visibly{kept}."


def _doubt(session: EditSession) -> str:
    doubt = session.doubts[-1] if session.doubts else doubt_about(session.editor, session.original)
    return f" {doubt[0].upper()}{doubt[1:]}." if doubt else ""


def _opened(state: PageState | None) -> PageState:
    if state is None:
        raise InputError("there is no picture yet; upload one first")
    return state


def _check(state: PageState, instruction: str, settings: TurnSettings, limits: Limits) -> None:
    check_request(state.whole_line.editor, instruction, settings, limits)
    if state.turn >= limits.turns:
        raise InputError(
            f"a session has at most {limits.turns} turns; download the picture and upload it again"
        )
    if not state.is_at_end and len(state.lines) >= limits.branches:
        raise InputError(
            f"at most {limits.branches} branches are kept; go on from the end of one of them"
        )


def _replaced(state: PageState, session: EditSession) -> tuple[EditSession, ...]:
    lines = state.lines
    return (*lines[: state.line], session, *lines[state.line + 1 :])


def _thumbnail(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 _ _"]:
    height, width = image.shape[-2:]
    scale = min(THUMBNAIL / max(height, width), 1)
    return resize(image, (max(round(height * scale), 1), max(round(width * scale), 1)))
