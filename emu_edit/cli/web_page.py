"""The web page: upload a picture, edit it in turns, compare, go back, branch, download.

Here the page is laid out and its events are tied to `web_handlers.py`. Only these two files know
gradio, and gradio reads its environment while it is imported: import them after
`app.prepare_environment`.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.themes import Default  # pyright: ignore[reportMissingImports]

from emu_edit.cli.web_handlers import AGAINST, KEEPING, PREDICTED, Handlers
from emu_edit.cli.web_limits import MEBI
from emu_edit.tasks import TASKS

TITLE = "Emu Edit"
# the papers' scales are 5 and 1.5; beyond these, pictures burn out
MOST_TEXT_GUIDANCE = 15.0
MOST_IMAGE_GUIDANCE = 5.0
# in pixels: with them everything fits a window of 1280x900 but the opened settings
PICTURE_HEIGHT = 340
HISTORY_HEIGHT = 165

# fonts of the visitor's computer: gradio's own themes load theirs from Google
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto; }
#title h2 { margin: 0; }
#title p, #predicted p, #summary p { margin: 0; }
#title p { color: var(--body-text-color-subdued); }
#task input { text-overflow: ellipsis; }
#difference img {
  width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated;
}
#history .caption-label {
  left: 0; right: 0; bottom: 0; max-width: 100%; padding: 1px 4px; border-radius: 0;
  font-size: 0.75rem; line-height: 1.25; white-space: normal; overflow: hidden;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
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
    """The right column: what the visitor sees. The fields are gradio's components."""

    summary: Any
    against: Any
    compare: Any
    difference: Any
    history: Any
    line: Any
    picture: Any
    manifest: Any


def build_page(handlers: Handlers) -> Any:
    """Lay the page out; the result is gradio's `Blocks`, not yet served."""
    limits = handlers.limits
    age = limits.idle_seconds
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(max(age // 10, 1), age), fill_width=True
    ) as page:
        state = gr.State(None, time_to_live=age)
        gr.Markdown(
            f"## {TITLE}\nUpload a picture, say what to change, and go on from the result.",
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=4, min_width=330):
                form = _form(handlers)
            with gr.Column(scale=7, min_width=480):
                view = _view()
        _tie(handlers, state, form, view)
    page.queue(max_size=limits.queue, default_concurrency_limit=1, status_update_rate="auto")
    return page


def page_theme() -> Any:
    """Return the looks: gradio's plain theme with the fonts of the visitor's computer."""
    return Default(font=FONTS, font_mono=MONO, primary_hue="teal", neutral_hue="slate")


def _form(handlers: Handlers) -> Form:
    limits, settings = handlers.limits, handlers.editor.settings
    upload = gr.File(
        label=f"Picture: JPEG, PNG or WebP, up to {limits.upload_bytes / MEBI:g} MiB",
        type="binary",
        file_types=[".jpg", ".jpeg", ".png", ".webp"],
        height=150,
        elem_id="upload",
    )
    is_resized = gr.Checkbox(
        label=f"Resize to the model's size (shorter side {settings.image_size} px)",
        value=False,
        elem_id="resize",
        container=False,
    )
    instruction = gr.Textbox(
        label="What to change",
        placeholder="e.g. paint the chair red",
        max_lines=3,
        max_length=limits.characters,
        elem_id="instruction",
    )
    task, predicted = _task_choice(handlers)
    with gr.Row():
        undo = gr.Button("Undo", interactive=False, elem_id="undo", min_width=80)
        edit = gr.Button("Edit", variant="primary", elem_id="edit", min_width=80, scale=2)
    strength = _strength(handlers)
    return Form(upload, is_resized, instruction, task, predicted, *strength, edit, undo)


def _strength(handlers: Handlers) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Lay out what is seldom changed: negative text, guidance, steps, seed and thresholding."""
    limits, settings = handlers.limits, handlers.editor.settings
    with gr.Accordion("Strength, steps, seed", open=False, elem_id="more"):
        text = gr.Slider(
            min(1, settings.guidance.text),
            max(MOST_TEXT_GUIDANCE, settings.guidance.text),
            value=settings.guidance.text,
            step=0.1,
            label="Follow the words (text guidance)",
        )
        image = gr.Slider(
            min(1, settings.guidance.image),
            max(MOST_IMAGE_GUIDANCE, settings.guidance.image),
            value=settings.guidance.image,
            step=0.1,
            label="Keep the picture (image guidance)",
        )
        with gr.Row():
            steps = gr.Slider(
                1,
                limits.steps,
                value=min(settings.num_steps, limits.steps),
                step=1,
                label="Steps",
                min_width=140,
            )
            seed = gr.Number(
                label="Seed",
                precision=0,
                value=None,
                placeholder="new for each turn",
                min_width=140,
                elem_id="seed",
            )
        keeping = gr.Radio(
            list(KEEPING),
            value=next(iter(KEEPING)),
            label="Keep pixels that hardly changed, bit for bit",
        )
        negative = gr.Textbox(
            label="What it should not show",
            info="needs text guidance above 1",
            max_length=limits.characters,
        )
    return negative, text, image, steps, seed, keeping


def _task_choice(handlers: Handlers) -> tuple[Any, Any]:
    """Offer the model's tasks, and its predictor if it has one."""
    definitions = {task.name: task.definition for task in TASKS}
    choices = [
        (f"{name}: {definitions[name]}" if name in definitions else name, name)
        for name in handlers.editor.networks.tasks.names
    ]
    has_predictor = handlers.editor.predictor is not None
    if has_predictor:
        choices.insert(0, ("predicted from the words", PREDICTED))
    task = gr.Dropdown(
        choices,
        value=PREDICTED if has_predictor else None,
        label="Kind of edit" if has_predictor else "Kind of edit (this model cannot guess it)",
        elem_id="task",
    )
    return task, gr.Markdown("", visible=has_predictor, elem_id="predicted")


def _view() -> View:
    summary = gr.Markdown("No picture yet.", elem_id="summary")
    with gr.Tabs():
        with gr.Tab("Before and after", id="compare"):
            compare = gr.ImageSlider(
                show_label=False,
                interactive=False,
                format="png",
                # not `height`: with it gradio 6.31 crops the one picture and stretches the other
                max_height=PICTURE_HEIGHT,
                elem_id="compare",
            )
            against = gr.Radio(
                list(AGAINST),
                value=AGAINST[0],
                show_label=False,
                container=False,
                elem_id="against",
            )
        with gr.Tab("What the turn changed", id="difference"):
            difference = gr.Image(
                show_label=False,
                interactive=False,
                format="png",
                height=PICTURE_HEIGHT,
                buttons=["fullscreen"],
                elem_id="difference",
            )
            gr.Markdown("Black: the same pixel, bit for bit. The brighter, the more it changed.")
    return View(summary, against, compare, difference, *_past())


def _past() -> tuple[Any, Any, Any, Any]:
    """Lay out history, branches and downloads."""
    gr.Markdown("**History.** Click a turn to go on from there.")
    line = gr.Dropdown([], label="Branch", visible=False, interactive=True, elem_id="line")
    history = gr.Gallery(
        show_label=False,
        columns=5,
        fit_columns=False,
        height=HISTORY_HEIGHT,
        format="png",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="history",
    )
    with gr.Row():
        picture = gr.DownloadButton("Download picture (PNG)", interactive=False, elem_id="picture")
        manifest = gr.DownloadButton(
            "Download manifest (JSON)", interactive=False, elem_id="manifest"
        )
    return history, line, picture, manifest


def _tie(handlers: Handlers, state: Any, form: Form, view: View) -> None:
    """Tie the events to the handlers; everything that draws goes one at a time."""
    shown = [
        state, view.compare, view.difference, view.summary, view.history, view.line,
        form.undo, view.picture, view.manifest,
    ]  # fmt: skip
    asked = [
        state, view.against, form.instruction, form.task, form.negative, form.text, form.image,
        form.steps, form.seed, form.keeping,
    ]  # fmt: skip
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    drawing = {"outputs": shown, "concurrency_id": "model", "api_visibility": "private"}
    opening = [state, view.against, form.upload, form.is_resized]
    form.upload.upload(handlers.opened, opening, show_progress_on=view.compare, **drawing)
    form.is_resized.change(handlers.resized, opening, show_progress="hidden", **drawing)
    for event in (form.edit.click, form.instruction.submit):
        event(handlers.edited, asked, show_progress_on=view.compare, **drawing)
    looking = {**drawing, "show_progress": "hidden"}
    form.undo.click(handlers.undone, [state, view.against], **looking)
    view.history.select(handlers.turn_clicked, [state, view.against], **looking)
    view.line.input(handlers.line_chosen, [state, view.against, view.line], **looking)
    view.against.input(handlers.compared, [state, view.against], view.compare, **quiet)
    if handlers.editor.predictor is not None:
        form.instruction.input(
            handlers.typed,
            form.instruction,
            form.predicted,
            trigger_mode="always_last",
            concurrency_id="words",
            **quiet,
        )
