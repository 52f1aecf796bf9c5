"""The web page: upload a picture, edit it in turns, compare, go back, branch, download.

Here the page and its tab of pictures are laid out, and their events tied to `handlers.py`; the tab
of videos is in `video.py`. Only these and `form.py` know gradio, which reads its environment while
it is imported: `server.py` prepares that first.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from emu_edit.editing.doubts import about_training
from emu_edit.web.form import scroll_to, strength, task_choice
from emu_edit.web.guard import MEBI
from emu_edit.web.handlers import AGAINST, PICTURE_HEIGHT, Handlers
from emu_edit.web.video import video_tab

TITLE = "Emu Edit"

START = """\
1. **Upload** a picture: JPEG, PNG, WebP, TIFF …
2. **Say what to change**, for example *remove the red circle*, *make it night* or
   *turn it into a sketch*.{guess}
3. **Go on from the result.** Every turn stays in the history: click one to go back to it, edit it
   again to branch off.
"""
GUESS = " The kind of edit is predicted from the words; choose it when the guess is wrong."

# gradio looks at a file's size before it is sent, and its message is gone after seconds
TOO_LARGE = """
() => {
  const look = (files, said, advice) => {
    const large = [...(files || [])].find((file) => file.size > MOST_BYTES);
    document.querySelector(said).textContent = large
      ? `${large.name} has ${(large.size / 1048576).toFixed(1)} MiB, at most MOST_MIB are taken; `
        + `${advice}.`
      : '';
  };
  const at = (event, files) => {
    const is = (box) => event.target.closest && event.target.closest(box);
    if (is('#upload')) look(files, '#too-large', 'save it as JPEG or make it smaller');
    if (is('#video-upload')) look(files, '#video-too-large', 'make it shorter or smaller');
  };
  addEventListener('change', (event) => at(event, event.target.files), true);
  addEventListener('drop', (event) => at(event, event.dataTransfer.files), true);
}
"""


@dataclass(frozen=True)
class Form:
    """The left column: what the visitor gives. The fields are gradio's components."""

    upload: Any
    is_resized: Any
    instruction: Any
    task: Any
    predicted: Any
    negative: Any
    text: Any
    image: Any
    steps: Any
    seed: Any
    keeping: Any
    edit: Any
    undo: Any


@dataclass(frozen=True)
class View:
    """The right column: what the visitor sees. The fields are gradio's components.

    `pictures` are those of the turn that is shown, in the order of `Handlers.compared`.
    """

    summary: Any
    start: Any
    examples: Any
    panel: Any
    pictures: tuple[Any, Any, Any, Any]
    against: Any
    picture: Any
    manifest: Any
    line: Any
    history: Any


def build_page(handlers: Handlers) -> Any:
    """Lay the page out; the result is gradio's `Blocks`, not yet served."""
    limits = handlers.limits
    age = limits.idle_seconds
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(max(age // 10, 1), age), fill_width=True
    ) as page:
        state = gr.State(None, time_to_live=age)
        gr.Markdown(
            f"## {TITLE}\nUpload a picture or a video and say what to change. "
            f"{about_training(handlers.editor)}",
            elem_id="title",
        )
        with gr.Tabs(elem_id="kinds"):
            with gr.Tab("Picture", id="picture-tab"), gr.Row():
                with gr.Column(scale=4, min_width=330):
                    form = _form(handlers)
                with gr.Column(scale=7, min_width=330):
                    view = _view(handlers)
            with gr.Tab("Video", id="video-tab"):
                video_tab(handlers, page)
        _tie(handlers, state, form, view)
        most = limits.upload_bytes
        look = TOO_LARGE.replace("MOST_BYTES", str(most)).replace("MOST_MIB", f"{most / MEBI:g}")
        page.load(None, js=look, api_visibility="private")
    page.queue(max_size=limits.queue, default_concurrency_limit=1, status_update_rate="auto")
    return page


def _form(handlers: Handlers) -> Form:
    limits, settings = handlers.limits, handlers.editor.settings
    upload = gr.File(
        label=f"Picture, up to {limits.upload_bytes / MEBI:g} MiB",
        type="binary",
        file_types=[".jpg", ".jpeg", ".png", ".webp"],
        height=160,
        elem_id="upload",
    )
    gr.HTML("", elem_id="too-large")
    is_resized = gr.Checkbox(
        label=f"Resize to the model's size (shorter side {settings.image_size} px)",
        value=False,
        elem_id="resize",
        container=False,
    )
    with gr.Group():
        instruction = gr.Textbox(
            label="What to change",
            placeholder="e.g. paint the chair red",
            max_lines=3,
            max_length=limits.characters,
            elem_id="instruction",
        )
        task, predicted = task_choice(handlers)
    with gr.Row():
        undo = gr.Button("Undo", interactive=False, elem_id="undo", min_width=80)
        edit = gr.Button("Edit", variant="primary", elem_id="edit", min_width=80, scale=2)
    seldom = strength(handlers)
    return Form(upload, is_resized, instruction, task, predicted, *seldom, edit, undo)


def _view(handlers: Handlers) -> View:
    has_predictor = handlers.editor.predictor is not None
    summary = gr.Markdown("No picture yet.", elem_id="summary")
    with gr.Column() as start:
        gr.Markdown(START.format(guess=GUESS if has_predictor else ""), elem_id="start")
        examples = gr.Gallery(
            handlers.examples,
            label="Or try one of these",
            columns=4,
            format="png",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="examples",
        )
    with gr.Column(visible=False, elem_id="panel") as panel:
        pictures = _pictures()
        against = gr.Radio(
            list(AGAINST),
            value=AGAINST[0],
            show_label=False,
            container=False,
            visible=False,
            elem_id="against",
        )
        with gr.Row():
            picture = gr.DownloadButton("Download picture (PNG)", size="sm", elem_id="picture")
            manifest = gr.DownloadButton("Download manifest (JSON)", size="sm", elem_id="manifest")
        line, history = _past()
    return View(
        summary, start, examples, panel, pictures, against, picture, manifest, line, history
    )


def _pictures() -> tuple[Any, Any, Any, Any]:
    """Lay out the three ways to look at a turn: before and after, a slider, the difference."""
    alone = {"interactive": False, "format": "png", "buttons": ["fullscreen"]}
    with gr.Tabs():
        with gr.Tab("Side by side", id="pair"), gr.Row():
            sized = {**alone, "min_width": 150}
            before = gr.Image(label="Before", elem_id="before", **sized)
            after = gr.Image(label="After", elem_id="after", **sized)
        with gr.Tab("Slider", id="compare"):
            compare = gr.ImageSlider(
                show_label=False,
                # not `height`: with it gradio 6.31 crops the one picture and stretches the other
                max_height=PICTURE_HEIGHT,
                elem_id="compare",
                **alone,
            )
        with gr.Tab("Difference", id="difference"):
            difference = gr.Image(
                show_label=False, height=PICTURE_HEIGHT, elem_id="difference", **alone
            )
            gr.Markdown(
                "Black: the same pixel, bit for bit. The brighter, the more it changed.",
                elem_id="legend",
            )
    return before, after, compare, difference


def _past() -> tuple[Any, Any]:
    """Lay out branches and history."""
    gr.Markdown("**History.** Click a turn to go on from there.", elem_id="history-title")
    line = gr.Radio(
        [],
        label="Branch",
        show_label=False,
        container=False,
        visible=False,
        interactive=True,
        elem_id="line",
    )
    history = gr.Gallery(
        show_label=False,
        format="png",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="history",
    )
    return line, history


def _tie(handlers: Handlers, state: Any, form: Form, view: View) -> None:
    """Tie the events to the handlers; everything that draws goes one at a time."""
    shown = [
        state, view.start, view.panel, *view.pictures, view.against, view.summary, view.history,
        view.line, form.undo, view.picture, view.manifest,
    ]  # fmt: skip
    asked = [
        state, view.against, form.instruction, form.task, form.negative, form.text, form.image,
        form.steps, form.seed, form.keeping,
    ]  # fmt: skip
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    drawing = {"outputs": shown, "concurrency_id": "model", "api_visibility": "private"}
    looking = {**drawing, "show_progress": "hidden"}
    # one picture in each tab, so that the progress is seen whichever is open
    editing = {**drawing, "show_progress_on": list(view.pictures[1:])}
    opening = [state, view.against, form.upload, form.is_resized]
    form.upload.upload(handlers.opened, opening, **looking)
    form.is_resized.change(handlers.resized, opening, **looking)
    for event in (form.edit.click, form.instruction.submit):
        event(None, form.instruction, js=scroll_to("#panel"), **quiet)
        event(handlers.edited, asked, **editing)
    view.examples.select(
        handlers.example_chosen,
        [view.against],
        **{**looking, "outputs": [*shown, form.instruction]},
    )
    form.undo.click(handlers.undone, [state, view.against], **looking)
    view.history.select(handlers.turn_clicked, [state, view.against], **looking)
    view.line.input(handlers.line_chosen, [state, view.against, view.line], **looking)
    view.against.input(handlers.compared, [state, view.against], list(view.pictures), **quiet)
    if handlers.editor.predictor is not None:
        for event, mode in ((form.instruction.input, "always_last"), (form.task.input, "once")):
            event(
                handlers.typed,
                [form.instruction, form.task],
                form.predicted,
                trigger_mode=mode,
                concurrency_id="words",
                **quiet,
            )
