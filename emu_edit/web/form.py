"""Parts of a form that pictures and videos share: the kind of edit, and how strongly it is made."""

from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from emu_edit.tasks import TASKS
from emu_edit.web.handlers import KEEPING, PREDICTED, Handlers
from emu_edit.web.state import SEED_DIGITS

# the papers' scales are 5 and 1.5; beyond these, pictures burn out
MOST_TEXT_GUIDANCE = 15.0
MOST_IMAGE_GUIDANCE = 5.0


# where the columns are one below the other, the picture would change out of sight
SCROLL = """
(words) => {
  const panel = document.querySelector('PANEL');
  if (words.trim() && panel && panel.getBoundingClientRect().top > window.innerHeight / 2) {
    panel.scrollIntoView({behavior: 'smooth'});
  }
}
"""


def scroll_to(panel: str) -> str:
    """Return the script that shows a panel when there are words to edit by."""
    return SCROLL.replace("PANEL", panel)


def strength(handlers: Handlers, *, prefix: str = "") -> tuple[Any, Any, Any, Any, Any, Any]:
    """Lay out what is seldom changed: negative text, guidance, steps, seed and thresholding."""
    limits, settings = handlers.limits, handlers.editor.settings
    with gr.Accordion("Strength, steps, seed", open=False, elem_id=f"{prefix}more"):
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
                elem_id=f"{prefix}seed",
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


def task_choice(handlers: Handlers, *, prefix: str = "") -> tuple[Any, Any]:
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
        elem_id=f"{prefix}task",
    )
    return task, gr.Markdown("", visible=has_predictor, elem_id=f"{prefix}predicted")
