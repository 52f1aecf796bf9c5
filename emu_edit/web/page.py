"""The web page: upload a picture, edit it in turns, compare, go back, branch, download.

Here the page is laid out and its events are tied to `handlers.py`. Only these two files know
gradio, which reads its environment while it is imported: `server.py` prepares that first.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from emu_edit.editing.session import about_training
from emu_edit.tasks import TASKS
from emu_edit.web.guard import MEBI
from emu_edit.web.handlers import AGAINST, KEEPING, PICTURE_HEIGHT, PREDICTED, Handlers
from emu_edit.web.state import SEED_DIGITS

TITLE = "Emu Edit"
# the papers' scales are 5 and 1.5; beyond these, pictures burn out
MOST_TEXT_GUIDANCE = 15.0
MOST_IMAGE_GUIDANCE = 5.0

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
  const look = (files) => {
    const large = [...(files || [])].find((file) => file.size > MOST_BYTES);
    document.querySelector('#too-large').textContent = large
      ? `${large.name} has ${(large.size / 1048576).toFixed(1)} MiB, at most MOST_MIB are taken; `
        + 'save it as JPEG or make it smaller.'
      : '';
  };
  const isUpload = (event) => event.target.closest && event.target.closest('#upload');
  addEventListener('change', (event) => isUpload(event) && look(event.target.files), true);
  addEventListener('drop', (event) => isUpload(event) && look(event.dataTransfer.files), true);
}
"""

# where the columns are one below the other, the picture would change out of sight
SCROLL = """
(words) => {
  const panel = document.querySelector('#panel');
  if (words.trim() && panel && panel.getBoundingClientRect().top > window.innerHeight / 2) {
    panel.scrollIntoView({behavior: 'smooth'});
  }
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
            f"## {TITLE}\nUpload a picture, say what to change, and go on from the result. "
            f"{about_training(handlers.editor)}",
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=4, min_width=330):
                form = _form(handlers)
            with gr.Column(scale=7, min_width=330):
                view = _view(handlers)
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
        usual, words = settings.guidance, "Follow the words (text guidance)"
        text = _guidance(usual.text, MOST_TEXT_GUIDANCE, words)
        image = _guidance(usual.image, MOST_IMAGE_GUIDANCE, "Keep the picture (image guidance)")
        with gr.Row():
            steps = gr.Slider(
                1,
                limits.steps,
                value=min(settings.num_steps, limits.steps),
                step=1,
                label="Steps",
                min_width=140,
            )
            # no Number: as soon as it is drawn, an empty one says 0, and so is every turn's noise
            seed = gr.Textbox(
                label="Seed",
                placeholder="new for each turn",
                max_length=SEED_DIGITS,
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


def _guidance(usual: float, most: float, label: str) -> Any:
    return gr.Slider(min(1, usual), max(most, usual), value=usual, step=0.1, label=label)


def _task_choice(handlers: Handlers) -> tuple[Any, Any]:
    """Offer the model's tasks, and its predictor if it has one."""
    networks = handlers.editor.networks
    definitions = {task.name: task.definition for task in TASKS}
    definitions |= {task.name: task.description for task in networks.learned if task.description}
    choices = [
        (f"{name}: {definitions[name]}" if name in definitions else name, name)
        for name in networks.tasks.names
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
        event(None, form.instruction, js=SCROLL, **quiet)
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
