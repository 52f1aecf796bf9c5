"""The page as gradio lays it out; without a browser. Skipped where the extra `app` is missing."""

import asyncio
import gc
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from emu_edit.editing.editor import Editor
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.images import from_pil
from emu_edit.web.guard import Limits
from emu_edit.web.server import prepare_environment

pytestmark = [
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio (the extra app)"),
    pytest.mark.filterwarnings("ignore"),  # gradio's own, on import
]


class Guesser:
    """A predictor that is sure of instructions with the word `sure`."""

    def predict(self, instructions: Sequence[str]) -> list[TaskPrediction]:
        def one(text: str) -> TaskPrediction:
            first = 0.9 if "sure" in text else 0.5
            ranking = (("style", first), ("local", 0.08), ("add", 0.02), ("remove", 0.0))
            return TaskPrediction("style", first, ranking)

        return [one(text) for text in instructions]


@pytest.fixture
def handlers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
    folder = tmp_path / "page"
    folder.mkdir()
    prepare_environment(folder)
    from emu_edit.web.handlers import Handlers

    # gradio asks for an event loop and leaves it open: give it one, and clean up while warnings of
    # forgotten sockets are ignored
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield Handlers(Editor.from_pretrained(model), Limits(), folder)
    asyncio.set_event_loop(None)
    loop.close()
    gc.collect()


@pytest.fixture
def guessing(handlers: Any) -> Any:
    handlers.editor.predictor = Guesser()
    return handlers


def layout(handlers: Any) -> dict[str, dict[str, Any]]:
    """Return the properties of the page's components by element id."""
    from emu_edit.web.page import build_page

    components = build_page(handlers).get_config_file()["components"]
    return {part["props"].get("elem_id"): part["props"] for part in components}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (200, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def asked(state: Any, **changes: Any) -> list[Any]:
    values = {
        "state": state, "against": "compare with the original", "instruction": "make it red",
        "task": "local", "negative": None, "text": 1.0, "image": 1.0, "steps": 2, "seed": None,
        "keeping": "automatic",
    }  # fmt: skip
    return list({**values, **changes}.values())


def test_without_a_predictor_the_drop_down_offers_no_prediction(handlers: Any) -> None:
    task = layout(handlers)["task"]
    assert task.get("value") is None
    assert [value for _, value in task["choices"]] == list(handlers.editor.networks.tasks.names)


def test_with_a_predictor_the_drop_down_begins_with_it(guessing: Any) -> None:
    task = layout(guessing)["task"]
    assert task["value"] == "predicted"
    assert task["choices"][0] == ("predicted from the words", "predicted")


def test_layout_and_theme_name_no_address_of_the_network(handlers: Any) -> None:
    from emu_edit.web.handlers import CSS, page_theme

    theme = page_theme()
    assert theme._stylesheets == []
    assert "http" not in theme._get_theme_css().replace("http://www.w3.org/2000/svg", "")
    assert "http" not in CSS
    assert "http" not in json.dumps(layout(handlers), default=str)


@pytest.mark.usefixtures("handlers")
def test_text_shows_on_the_colours_it_is_written_on() -> None:
    from emu_edit.web.handlers import page_theme

    theme = page_theme()

    def luminance(colour: str) -> float:
        hexadecimal = {"white": "#ffffff"}.get(colour) or getattr(theme, colour.removeprefix("*"))
        levels = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    # white on the button; the others on white. WCAG 2.2 asks for 4.5
    for name in (
        "button_primary_background_fill",
        "button_primary_background_fill_hover",
        "color_accent",
        "body_text_color_subdued",
        "input_placeholder_color",
    ):
        contrast = (luminance("white") + 0.05) / (luminance(getattr(theme, name)) + 0.05)
        assert contrast >= 4.5, name


def test_words_are_answered_with_the_task_or_three_when_unsure(guessing: Any) -> None:
    assert guessing.typed("surely a painting", "predicted") == "Predicted: **style** (90%)"
    unsure = guessing.typed("a painting", "predicted")
    assert unsure.startswith("Not sure: **style** (50%), perhaps local (8%) or add (2%). Choose")
    for nothing in ("  ", None):
        assert guessing.typed(nothing, "predicted") == ""
    # a choice is not answered as if it were the prediction
    chosen = guessing.typed("surely a painting", "local")
    assert chosen == "You chose it yourself; the prediction is **style** (90%)."


@pytest.mark.usefixtures("handlers")
def test_only_a_certainty_is_called_100_per_cent() -> None:
    from emu_edit.web.handlers import share

    assert [share(part) for part in (0.004, 0.994, 0.9999, 1.0)] == [
        "0%",
        "99%",
        "over 99%",
        "100%",
    ]


def test_an_empty_seed_is_drawn_as_empty(handlers: Any) -> None:
    # gradio's Number says 0 as soon as it is drawn, and then every turn had the noise of seed 0
    seed = layout(handlers)["seed"]
    assert seed["name"] == "textbox"
    assert seed["placeholder"] == "new for each turn"


def test_a_session_through_the_buttons(guessing: Any) -> None:
    import gradio as gr  # pyright: ignore[reportMissingImports]

    against = "compare with the original"
    state, *_ = guessing.opened(None, against, picture(), False)
    state, *_ = guessing.edited(*asked(state))
    state, start, panel, before, after, pair, difference, choice, summary, _, line, undo, *_ = (
        guessing.edited(*asked(state, task="predicted", instruction="surely a painting", seed="7"))
    )
    assert "Turn 2 of 2, 20x16 px. Task style, seed 7, steps 2" in summary
    assert (start.visible, panel.visible, panel.elem_classes) == (False, True, ["pixelated"])
    assert (before.label, after.label, choice.visible) == (
        "Before: original",
        "After: turn 2",
        True,
    )
    assert pair[0].getpixel((0, 0)) == (200, 10, 10)
    assert difference.size == pair[1].size == (20, 16)
    assert undo.interactive
    assert not line.visible
    clicked = gr.SelectData(None, {"index": 1, "value": None})
    state, *_ = guessing.turn_clicked(state, against, clicked)
    state, *_, line, _, picture_file, manifest_file = guessing.edited(*asked(state))
    assert (line.visible, line.value) == (True, 1)
    assert [value for _, value in line.choices] == [0, 1]
    manifest = json.loads(Path(manifest_file.value["path"]).read_text())
    assert [turn["task"] for turn in manifest["turns"]] == ["local", "local"]
    with Image.open(picture_file.value["path"]) as image:
        assert image.info == {}
    state, *_ = guessing.line_chosen(state, against, 0)
    state, *_ = guessing.undone(state, against)
    assert state.turn == 1


def test_before_the_first_turn_there_is_one_picture_and_no_comparison(handlers: Any) -> None:
    against = "compare with the original"
    state, _, _, before, after, _, _, choice, *_ = handlers.opened(None, against, picture(), False)
    assert (before.visible, after.label, choice.visible) == (False, "Original", False)
    (
        state,
        _,
        _,
        before,
        *_,
    ) = handlers.edited(*asked(state))
    assert (before.visible, before.label) == (True, "Before: original")


def test_a_choice_of_comparison_redraws_all_pictures_of_the_turn(handlers: Any) -> None:
    state, *_ = handlers.opened(None, "compare with the original", picture(), False)
    for _ in range(2):
        state, *_ = handlers.edited(*asked(state))
    drawn = {
        against: handlers.compared(state, against)
        for against in ("compare with the turn before", "compare with the original")
    }
    (first, _, pair, difference), (other, _, other_pair, other_difference) = drawn.values()
    assert (first.label, other.label) == ("Before: turn 1", "Before: original")
    assert pair[0].tobytes() != other_pair[0].tobytes()
    assert difference.tobytes() != other_difference.tobytes()


def test_a_mistake_is_one_escaped_line_and_a_picture_with_turns_is_kept(handlers: Any) -> None:
    import gradio as gr  # pyright: ignore[reportMissingImports]

    against = "compare with the turn before"
    with pytest.raises(gr.Error) as refused:
        handlers.edited(*asked(None))
    assert refused.value.message == "there is no picture yet; upload one first"
    state, *_ = handlers.opened(None, against, picture(), False)
    for changes, line in (
        ({"task": None}, "choose the kind of edit first"),
        ({"task": "<img src=x>"}, "&lt;img src=x"),
        (
            {"seed": "<b>"},
            "the seed must be a whole number of at most 19 digits, got &#x27;&lt;b&gt;",
        ),
    ):
        with pytest.raises(gr.Error) as refused:
            handlers.edited(*asked(state, **changes))
        assert line in refused.value.message
        assert not refused.value.print_exception
    resized, *_ = handlers.resized(state, against, picture(), True)
    assert resized.session.image.shape == (3, 16, 20)
    edited, *_ = handlers.edited(*asked(state))
    assert not isinstance(handlers.resized(edited, against, picture(), True), list)


def test_requests_wait_in_a_queue_of_the_stated_length(handlers: Any) -> None:
    from emu_edit.web.page import build_page

    handlers.limits = replace(handlers.limits, queue=3, idle_seconds=50)
    page = build_page(handlers)
    assert page._queue.max_size == 3
    assert page.delete_cache == (5, 50)


def test_whatever_draws_waits_until_the_one_before_it_is_done(guessing: Any) -> None:
    from emu_edit.web.page import build_page

    functions = build_page(guessing).fns.values()
    model = {fn.name: fn.concurrency_limit for fn in functions if fn.concurrency_id == "model"}
    assert set(model) == {
        "example_chosen",
        "opened",
        "resized",
        "edited",
        "undone",
        "turn_clicked",
        "line_chosen",
    }
    assert set(model.values()) <= {1, "default"}


def test_a_file_that_is_refused_says_so_where_the_picture_would_be_and_is_not_kept(
    handlers: Any,
) -> None:
    against = "compare with the original"
    drawn = handlers.opened(None, against, picture(), False)
    for data, words in (
        (None, r"\*\*Not taken:\*\* no file came; choose a picture"),
        (b"no picture at all", r"\*\*Not taken:\*\* the file is no picture, needs a JPEG"),
    ):
        # gradio hashes a secret and the content
        upload = handlers.folder / hashlib.sha256(b"secret" + (data or b"")).hexdigest() / "a.png"
        upload.parent.mkdir()
        upload.write_bytes(data or b"")
        refused = handlers.opened(None, against, data, False)
        assert len(refused) == len(drawn)
        (said,) = [part for part in refused if isinstance(part, str)]
        assert re.match(words, said)
        assert isinstance(drawn[refused.index(said)], str)  # the summary
        assert upload.exists() is (data is None)


def test_a_click_on_an_example_opens_it_with_its_instruction(handlers: Any) -> None:
    import gradio as gr  # pyright: ignore[reportMissingImports]

    assert len(layout(handlers)["examples"]["value"]) == len(handlers.examples) == 4
    clicked = gr.SelectData(None, {"index": 2, "value": None})
    state, *_, words = handlers.example_chosen("compare with the original", clicked)
    image, instruction = handlers.examples[2]
    assert words == instruction
    assert torch.equal(state.session.image, from_pil(image))


def test_the_page_says_what_the_model_was_trained_on(handlers: Any) -> None:
    assert "its directory does not say" in layout(handlers)["title"]["value"]
    handlers.editor.trained_on = "world"
    said = layout(handlers)["title"]["value"]
    assert "drawn scenes of the built-in world only, 16 px" in said
    assert "It has never seen a photograph." in said


def test_a_file_too_large_to_be_sent_has_a_place_for_its_message(handlers: Any) -> None:
    from emu_edit.web.page import build_page

    handlers.limits = replace(handlers.limits, upload_bytes=3 * 2**20)
    assert "too-large" in layout(handlers)
    scripts = [fn["js"] for fn in build_page(handlers).get_config_file()["dependencies"]]
    (script,) = [one for one in scripts if isinstance(one, str) and "#too-large" in one]
    assert "file.size > 3145728" in script
    assert "at most 3 are taken" in script
