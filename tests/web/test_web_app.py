import io
import json
import re
import socket
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emu_edit.cli import app
from emu_edit.cli.main import main
from emu_edit.editing.editor import Editor
from emu_edit.editing.session import TurnSettings
from emu_edit.editing.settings import WORLD, Sampling
from emu_edit.errors import InputError
from emu_edit.images import encode_png
from emu_edit.web import state as web_state
from emu_edit.web.guard import MEBI, Limits
from emu_edit.web.state import PageState, draw_difference

LIMITS = Limits(turns=3, branches=2, steps=4, characters=40)


@pytest.fixture(scope="module")
def editor(model: Path) -> Editor:
    return Editor.from_pretrained(model)


def picture(width: int = 20, height: int = 16, kind: str = "PNG", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def header_of(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that promises a large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def edit(
    state: PageState | None, instruction: str = "make it red", *, steps: int = 1, **changes: Any
) -> PageState:
    settings = TurnSettings(**{"task": "local", "sampling": Sampling(steps, 1.0, 1.0), **changes})
    return web_state.edit(state, instruction, settings, limits=LIMITS)


def opened(editor: Editor) -> PageState:
    return web_state.open_picture(editor, picture(), is_resized=False, limits=LIMITS)


def instructions(state: PageState) -> list[str]:
    return [turn.instruction for turn in state.session.turns]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0" * (MEBI + 1), r"the file has 1\.0 MiB, at most 1 are taken"),
        (header_of(6000, 6000), r"the picture is 6000x6000, at most 33\.6 megapixels are decoded"),
        (header_of(50_000, 50_000), "pixels"),
        (
            b"GIF89a" + b"\0" * 40,
            "the picture is a damaged GIF, needs a JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF picture",
        ),
        (b"<svg xmlns='x'/>", "is SVG, needs a JPEG"),
        (b"no picture at all", "^the file is no picture, needs a JPEG"),
        (b"", r"is empty \(0 bytes\)"),
        (picture()[:60], "cannot be decoded"),
    ],
    ids=["bytes", "pixels", "bomb", "gif", "svg", "text", "empty", "cut"],
)
def test_an_upload_beyond_the_limits_or_of_another_kind_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        web_state.read_upload(data, Limits(upload_bytes=MEBI))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_known_by_its_content_and_gives_its_pixels(kind: str) -> None:
    assert web_state.read_upload(picture(kind=kind), LIMITS).shape == (3, 16, 20)


def test_camera_position_and_other_metadata_do_not_leave_again(editor: Editor) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif.get_ifd(0x8825)[1] = "N"  # GPS latitude reference
    exif[0x010E] = "SECRET"
    data = picture(kind="JPEG", exif=exif, comment=b"SECRET")
    assert data.count(b"SECRET") == 2
    state = web_state.open_picture(editor, data, is_resized=False, limits=LIMITS)
    state = edit(state)
    made = encode_png(state.session.image)
    with Image.open(io.BytesIO(made)) as image:
        assert image.size == (16, 20)
        assert not image.getexif()
        assert image.info == {}
    assert b"SECRET" not in made
    assert "SECRET" not in json.dumps(state.session.manifest())


def test_a_picture_too_large_for_the_model_is_refused_or_resized_when_asked(editor: Editor) -> None:
    data = picture(300, 20)
    with pytest.raises(InputError, match=r"300x20, too large for this model, .* tick 'Resize'"):
        web_state.open_picture(editor, data, is_resized=False, limits=LIMITS)
    small = web_state.open_picture(editor, data, is_resized=True, limits=LIMITS)
    assert small.session.image.shape == (3, 16, 240)
    with pytest.raises(InputError, match="20x16, too large"):
        web_state.open_picture(
            editor, picture(), is_resized=False, limits=Limits(edited_pixels=319)
        )


def test_turns_follow_each_other_and_undo_takes_the_last_back(editor: Editor) -> None:
    first = edit(opened(editor), "one")
    second = edit(first, "two")
    assert instructions(second) == ["one", "two"]
    back = web_state.undo(second)
    assert instructions(back) == ["one"]
    assert torch.equal(back.session.image, first.session.image)
    assert instructions(second) == ["one", "two"]  # a state never changes
    with pytest.raises(InputError, match="there is no turn to undo"):
        web_state.undo(web_state.undo(back))


def test_editing_an_earlier_turn_begins_a_branch_and_keeps_the_other(editor: Editor) -> None:
    state = opened(editor)
    for text in ("one", "two"):
        state = edit(state, text)
    earlier = web_state.show_turn(state, 1)
    assert instructions(earlier) == ["one"]
    branched = edit(earlier, "three")
    assert instructions(branched) == ["one", "three"]
    assert web_state.line_names(branched) == [
        "branch 1: two (2 turns)",
        "branch 2: three (2 turns)",
    ]
    assert instructions(web_state.show_line(branched, 0)) == ["one", "two"]
    # at an earlier turn undo only looks back: nothing is lost
    looked = web_state.undo(web_state.show_turn(branched, 1))
    assert looked.turn == 0
    assert web_state.summary(looked).endswith("Say what to change. The next edit begins a branch.")
    assert not web_state.summary(branched).endswith("branch.")
    undone = web_state.undo(web_state.undo(branched))
    assert web_state.line_names(undone)[1] == "branch 2: original"
    assert len(looked.whole_line.turns) == 2
    with pytest.raises(InputError, match="at most 2 branches are kept"):
        edit(looked, "four")
    with pytest.raises(InputError, match="branches 1 to 2, there is no 3"):
        web_state.show_line(branched, 2)
    with pytest.raises(InputError, match="there is no 9"):
        web_state.show_turn(branched, 9)


def test_the_page_shows_history_comparison_and_what_was_done(editor: Editor) -> None:
    state = opened(editor)
    assert web_state.summary(state) == "The original, 20x16 px. Say what to change."
    for text in ("x" * 40, "two"):
        state = edit(state, text)
    captions = [caption for _, caption in web_state.history(state)]
    assert captions == ["original", f"1. {'x' * 40} [local]", "2. two [local]"]
    assert re.match(
        r"Turn 2 of 2, 20x16 px\. Task local, seed \d+, steps 1", web_state.summary(state)
    )
    assert web_state.picture_names(state, is_with_original=False) == (
        "Before: turn 1",
        "After: turn 2",
    )
    assert web_state.picture_names(state, is_with_original=True)[0] == "Before: original"
    original = web_state.show_turn(state, 0)
    assert web_state.picture_names(original, is_with_original=True) == ("Original", "Original")
    previous, after = web_state.comparison(state, is_with_original=False)
    original, _ = web_state.comparison(state, is_with_original=True)
    images = state.session.images
    assert torch.equal(previous, images[1])
    assert torch.equal(original, images[0])
    assert torch.equal(after, images[2])


@pytest.mark.parametrize(
    ("changes", "levels", "kept", "words"),
    [
        (0, 9, 0.03, "Nothing changed: every pixel is as before. Try other words or another seed."),
        (320, 8, None, "Nothing visible changed: no pixel by more than 8 of 255 levels. Try other"),
        (1, 9, None, "1% of pixels changed visibly."),
        (160, 9, 0.03, "50% of pixels changed visibly, what hardly changed was kept."),
        (319, 9, None, "99% of pixels changed visibly."),
        (320, 9, 0.03, "Every pixel changed visibly."),
    ],
)
def test_the_page_counts_what_one_sees_and_never_rounds_to_all_or_nothing(
    editor: Editor, changes: int, levels: int, kept: float | None, words: str
) -> None:
    state = edit(opened(editor))
    after = state.session.original.clone()
    flat = after.view(3, -1)[0, :changes]
    flat.copy_(torch.where(flat > 127, flat - levels, flat + levels))
    turn = replace(state.session.turns[0], threshold=kept)
    session = replace(state.session, images=(state.session.original, after), turns=(turn,))
    said = web_state.summary(replace(state, lines=(session,)))
    assert re.match(r"Turn 1 of 1, 20x16 px\. Task local, seed \d+, steps 1\. ", said)
    assert f"steps 1. {words}" in said


def test_the_page_says_that_a_model_of_the_world_has_never_seen_a_photograph(model: Path) -> None:
    editor = Editor.from_pretrained(model)
    editor.trained_on = WORLD
    state = opened(editor)
    words = "This looks like a photograph, and the model has never seen one."
    for shown in (state, edit(state)):
        assert words in web_state.summary(shown)


def test_a_picture_much_larger_than_the_training_pictures_gets_an_advice(editor: Editor) -> None:
    for width, height, is_large in ((200, 20, False), (40, 33, True)):
        data = picture(width, height)
        state = web_state.open_picture(editor, data, is_resized=False, limits=Limits())
        words = (
            "larger than the 16 px this model was trained at: edited as a copy of 19x16, the change"
        )
        assert (words in web_state.summary(state)) is is_large


def test_only_small_pictures_are_enlarged_without_smoothing(editor: Editor) -> None:
    for width, is_small in ((160, True), (161, False)):
        data = picture(width, 16)
        state = web_state.open_picture(editor, data, is_resized=False, limits=Limits())
        assert web_state.is_small(state) is is_small


def test_thumbnails_are_small_and_captions_short(editor: Editor) -> None:
    state = web_state.open_picture(editor, picture(250, 100), is_resized=False, limits=Limits())
    (image, _), *_ = web_state.history(state)
    assert image.shape == (3, 77, 192)
    assert web_state.shortened("y" * 40) == "y" * 40
    assert web_state.shortened("y" * 41) == "y" * 39 + "…"
    long = "include a red star in the bottom left corner"
    assert web_state.shortened(long) == "include a red star in the bottom left…"


def test_a_seed_is_a_number_or_left_empty() -> None:
    assert web_state.read_seed(" ") is None
    assert web_state.read_seed(" 12 ") == 12
    for text in ("-1", "1.5", "one", "²", "9" * 20, "9" * 5000):
        with pytest.raises(
            InputError, match="the seed must be a whole number of at most 19 digits"
        ):
            web_state.read_seed(text)


@pytest.mark.parametrize(
    ("instruction", "changes", "words"),
    [
        ("x" * 41, {}, "the instruction has 41 characters, at most 40"),
        (" ", {}, "the instruction is empty"),
        ("a", {"steps": 5}, "steps must be 1 to 4, got 5"),
        ("a", {"steps": 0}, "num_steps must be at least 1, got 0"),
        ("a", {"task": "lokal"}, "unknown task 'lokal'.* Did you mean 'local'"),
        ("a", {"task": None}, "this model has no task predictor; choose the kind of edit"),
        ("a", {"negative": "n" * 41}, "the negative text has 41"),
        ("a", {"seed": -1}, "seed must be at least 0"),
    ],
)
def test_an_edit_beyond_the_limits_is_refused(
    editor: Editor, instruction: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        edit(opened(editor), instruction, **changes)


def test_a_session_ends_at_its_number_of_turns(editor: Editor) -> None:
    state = opened(editor)
    for _ in range(LIMITS.turns):
        state = edit(state)
    with pytest.raises(InputError, match="a session has at most 3 turns; download the picture"):
        edit(state)


def test_without_a_picture_every_button_asks_for_one() -> None:
    for press in (
        lambda: edit(None),
        lambda: web_state.undo(None),
        lambda: web_state.show_turn(None, 0),
        lambda: web_state.show_line(None, 0),
    ):
        with pytest.raises(InputError, match="there is no picture yet; upload one first"):
            press()


def test_the_difference_is_black_exactly_where_nothing_changed() -> None:
    before = torch.full((3, 2, 3), 100, dtype=torch.uint8)
    after = before.clone()
    after[0, 0, 1] += 1  # the least there is
    after[:, 1, 2] = 255
    light = draw_difference(before, after).int().sum(0)
    assert (light == 0).tolist() == [[True, False, True], [True, True, False]]
    assert light[1, 2] > 2 * light[0, 1] > 60


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="the limit turns must be at least 1, got 0"):
        Limits(turns=0)


def test_options_of_the_command_line_become_limits() -> None:
    given = "--max-upload-mib 3 --max-pixels 4 --max-characters 5 --max-steps 6 --max-frames 8"
    options = app.parser().parse([*given.split(), "--max-turns=7", "--max-queue=9"])
    limits = app.limits_of(options)
    assert limits == Limits(
        3 * MEBI, edited_pixels=4, frames=8, characters=5, steps=6, turns=7, queue=9
    )
    assert app.limits_of(app.parser().parse([])) == Limits()
    assert app.parser().parse([]).host == "127.0.0.1"


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(["app", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("emu-edit: error: ")
    assert printed.count("\n") == 1
    assert re.search(words, printed), printed


def test_what_cannot_be_served_is_refused_in_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--model", str(model)]
    monkeypatch.setattr(app, "find_spec", {}.get)
    refused(capsys, where, r"the web page needs gradio; install it with pip install 'emu-edit\[app")
    monkeypatch.setattr(app, "find_spec", str)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(
            capsys, [*where, "--port", str(port)], f"cannot listen on 127.0.0.1:{port} .*--port"
        )
    refused(capsys, [*where, "--host=192.0.2.1"], r"192\.0\.2\.1 is no address of this computer")
    refused(capsys, [*where, "--port=65536"], "--port: needs a port of at most 65535")
    refused(capsys, [*where, "--max-steps=0"], "--max-steps: needs a whole number of at least 1")
    refused(capsys, ["--model=missing"], "there is no model at missing")


def test_a_terminal_is_told_that_the_model_is_loaded_and_a_log_is_not(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("as far as this")

    monkeypatch.setattr(app, "find_spec", str)
    monkeypatch.setattr(Editor, "from_pretrained", refuse)
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)  # noqa: B023
        assert main(["app", "--port=0", "--device=cpu", "--model", str(model)]) == 2
        told = f"loading {model} …\n" * is_terminal
        assert capsys.readouterr().err == f"{told}emu-edit: error: as far as this\n"
