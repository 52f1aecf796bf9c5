"""What the web page does when a visitor does something: the state's next value, and its drawing.

What a button means is decided in `state.py`; here its answer is turned into what gradio shows, in
the page's colours and fonts. An InputError becomes a one-line message. Of any other error the
visitor learns nothing: gradio writes its traceback to the server's stderr and answers "Error".
"""

import html
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.themes import Default  # pyright: ignore[reportMissingImports]
from PIL import Image

from datamodules.world.pair import make_pair
from emu_edit.editing.editor import Editor
from emu_edit.editing.session import EditSession, TurnSettings
from emu_edit.editing.settings import Sampling
from emu_edit.editing.threshold import ALPHA, Threshold
from emu_edit.errors import BadImageError, InputError
from emu_edit.images import encode_png, from_pil, to_pil
from emu_edit.web import state as web_state
from emu_edit.web.guard import Limits
from emu_edit.web.state import PageState

PREDICTED = "predicted"  # the entry of the drop-down that asks the predictor
KEEPING = {"automatic": Threshold.default, "always": ALPHA, "never": None}
AGAINST = ("compare with the turn before", "compare with the original")

EXAMPLES = ("remove", "add", "global", "background")  # tasks of the pictures to try

SUMMARY, AFTER_SUMMARY = 8, 5  # place of the summary in what `_show` draws, and how many follow

# gradio recognises a parameter whose default is a Progress, and fills it
PROGRESS = gr.Progress()


@contextmanager
def one_line() -> Iterator[None]:
    """Turn a user's mistake into a message of the page; gradio shows messages as HTML."""
    try:
        yield
    except InputError as error:
        line = html.escape(" ".join(str(error).split()))
        raise gr.Error(line, duration=6, print_exception=False) from None


class Handlers:
    """The model, the limits and the folder of files behind one page.

    Args:
        editor: what edits.
        limits: what a visitor may ask.
        folder: for downloads; it is gradio's cache, which is emptied by age.
    """

    def __init__(self, editor: Editor, limits: Limits, folder: Path) -> None:
        self.editor = editor
        self.limits = limits
        self.folder = folder
        self.examples = draw_examples(min(max(editor.settings.image_size, 16), 128))

    def opened(
        self, state: PageState | None, against: str, data: bytes | None, is_resized: bool
    ) -> Any:
        """Begin with the uploaded picture."""
        del state  # a new picture is a new session
        if data is None:
            return self._refused(InputError("no file came; choose a picture"))
        try:
            opened = web_state.open_picture(
                self.editor, data, is_resized=is_resized, limits=self.limits
            )
        except InputError as error:
            if isinstance(error, BadImageError):
                self.forget_upload(data)
            return self._refused(error)
        return self._show(opened, against)

    def example_chosen(self, against: str, clicked: gr.SelectData) -> list[Any]:
        """Begin with the example that was clicked, and its instruction."""
        image, words = self.examples[int(clicked.index)]
        opened = PageState((EditSession.start(self.editor, from_pil(image)),))
        return [*self._show(opened, against), words]

    def resized(
        self, state: PageState | None, against: str, data: bytes | None, is_resized: bool
    ) -> Any:
        """Open the picture again at the other size, unless turns would be lost."""
        has_turns = state is not None and any(line.turns for line in state.lines)
        if data is None or has_turns:
            return gr.skip()
        return self.opened(state, against, data, is_resized)

    def edited(
        self,
        state: PageState | None,
        against: str,
        instruction: str | None,
        task: str | None,
        negative: str | None,
        text: float,
        image: float,
        steps: int,
        seed: str | None,
        keeping: str,
        progress: gr.Progress = PROGRESS,
    ) -> list[Any]:
        """Make the edit that the form asks for."""

        def on_step(done: int, total: int) -> None:
            progress((done, total), desc="editing", unit="steps")

        with one_line():
            settings = read_settings(task, negative, text, image, steps, seed, keeping)
            edited = web_state.edit(
                state, instruction or "", settings, limits=self.limits, on_step=on_step
            )
            return self._show(edited, against)

    def undone(self, state: PageState | None, against: str) -> list[Any]:
        """Take the last turn back."""
        with one_line():
            return self._show(web_state.undo(state), against)

    def turn_clicked(
        self, state: PageState | None, against: str, clicked: gr.SelectData
    ) -> list[Any]:
        """Go to the turn that was clicked in the history."""
        with one_line():
            return self._show(web_state.show_turn(state, int(clicked.index)), against)

    def line_chosen(self, state: PageState | None, against: str, line: int) -> list[Any]:
        """Go to the end of another branch."""
        with one_line():
            return self._show(web_state.show_line(state, line), against)

    def compared(self, state: PageState | None, against: str) -> Any:
        """Draw the pictures of the turn: before, after, both in the slider, their difference."""
        if state is None:
            return gr.skip()
        with_original = against == AGAINST[1]
        before, after = web_state.comparison(state, is_with_original=with_original)
        names = web_state.picture_names(state, is_with_original=with_original)
        pair = to_pil(before), to_pil(after)
        return [
            # before the first turn there is one picture only
            gr.Image(pair[0], label=names[0], alt_text=names[0], visible=state.turn > 0),
            gr.Image(pair[1], label=names[1], alt_text=names[1]),
            pair,
            to_pil(web_state.draw_difference(before, after)),
        ]

    def typed(self, instruction: str | None, task: str | None) -> str:
        """Say which task the words ask for; nothing while they ask for none."""
        words = (instruction or "")[: self.limits.characters]
        try:
            (prediction,) = self.editor.predict_tasks([words])
        except InputError:  # half an instruction is no mistake yet
            return ""
        shares = [(html.escape(name), share(part)) for name, part in prediction.ranking[:3]]
        first = f"**{shares[0][0]}** ({shares[0][1]})"
        if task not in {None, PREDICTED}:
            return f"You chose it yourself; the prediction is {first}."
        if prediction.is_sure:
            return f"Predicted: {first}"
        others = " or ".join(f"{name} ({part})" for name, part in shares[1:])
        return f"Not sure: {first}, perhaps {others}. Choose above if the first is wrong."

    def forget_upload(self, data: bytes) -> None:
        """Remove a file that nobody needs.

        gradio keeps it in a folder called by a hash of 64 digits, which begins with a secret of
        gradio's: it is found by its content.
        """
        for path in self.folder.glob(f"{'[0-9a-f]' * 64}/*"):
            with suppress(OSError):  # gone meanwhile
                if path.stat().st_size == len(data) and path.read_bytes() == data:
                    shutil.rmtree(path.parent)

    def _refused(self, error: InputError) -> list[Any]:
        """Leave the page as it is, and say above the picture, for good, why a file is not taken."""
        line = html.escape(" ".join(str(error).split()))
        return [gr.skip()] * SUMMARY + [f"**Not taken:** {line}."] + [gr.skip()] * AFTER_SUMMARY

    def _show(self, state: PageState, against: str) -> list[Any]:
        """Draw a state, in the order of `page._tie`."""
        session = state.session
        names = web_state.line_names(state)
        manifest = json.dumps(session.manifest(), indent=1)
        return [
            state,
            gr.Column(visible=False),
            gr.Column(visible=True, elem_classes=[PIXELATED] if web_state.is_small(state) else []),
            *self.compared(state, against),
            # in the first turn both are the same
            gr.Radio(visible=state.turn > 1),
            html.escape(web_state.summary(state)),
            gr.Gallery(
                value=[(to_pil(image), text) for image, text in web_state.history(state)],
                selected_index=state.turn,
            ),
            gr.Radio(
                choices=[(name, index) for index, name in enumerate(names)],
                value=state.line,
                visible=len(names) > 1,
            ),
            gr.Button(interactive=state.turn > 0),
            self._download("edited.png", encode_png(session.image)),
            self._download("manifest.json", manifest.encode()),
        ]

    def _download(self, name: str, data: bytes) -> Any:
        place = self.folder / secrets.token_urlsafe(16)  # other visitors must not guess it
        place.mkdir(mode=0o700)
        (place / name).write_bytes(data)
        return gr.DownloadButton(value=str(place / name))


def read_settings(
    task: str | None,
    negative: str | None,
    text: float,
    image: float,
    steps: int,
    seed: str | None,
    keeping: str,
) -> TurnSettings:
    """Read what `form.task_choice` and `form.strength` were filled in with.

    Raises:
        InputError: if no task is chosen, or the seed is no number.
    """
    if task is None:
        raise InputError("choose the kind of edit first: this model cannot guess it")
    return TurnSettings(
        task=None if task == PREDICTED else task,
        negative=(negative or "").strip(),
        sampling=Sampling(int(steps), float(text), float(image)),
        threshold=KEEPING[keeping],
        seed=web_state.read_seed(seed or ""),
    )


def draw_examples(size: int) -> list[tuple[Image.Image, str]]:
    """Draw pictures to try, each with an instruction that nobody was trained on."""
    pairs = [make_pair(1, 3, task=task, size=size, split="heldout") for task in EXAMPLES]
    return [(Image.fromarray(pair.source), pair.instruction) for pair in pairs]


def share(part: float) -> str:
    """Word a probability in per cent; only a certainty is called 100%."""
    return "over 99%" if 0.995 <= part < 1 else f"{part:.0%}"


# in pixels: with it everything but a long history fits a window of 1280x900
PICTURE_HEIGHT = 340

PIXELATED = "pixelated"  # class of the panel that shows a small picture

# fonts of the visitor's computer: gradio's own themes load theirs from Google
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")

STYLE_SHEET = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
CSS = f".gradio-container {{ --picture-height: {PICTURE_HEIGHT}px; }}\n{STYLE_SHEET}"


def page_theme() -> Any:
    """Give gradio's plain theme the visitor's fonts and a green that white text shows on."""
    theme = Default(font=FONTS, font_mono=MONO, primary_hue="teal", neutral_hue="slate")
    return theme.set(
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        loader_color="*primary_700",
    )
