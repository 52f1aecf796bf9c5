"""`emu-edit app`: a web page for editing, on this computer only unless told otherwise."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from emu_edit.cli.arguments import ArgumentParser, importing, positive_int, positive_or_zero
from emu_edit.editing.find import find_model
from emu_edit.errors import InputError
from emu_edit.web.guard import MEBI, Limits
from emu_edit.web.server import LOOPBACK, free_port, serve

DEFAULT = Limits()


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit app",
        description="Serve a web page for editing pictures in turns, with undo, branches and "
        "downloads, and videos by one instruction. "
        "Needs gradio: pip install 'emu-edit[app]'.",
        epilog="example:\n  emu-edit app --model runs/tiny\n  then open http://127.0.0.1:7860",
    )
    made.add_argument(
        "--model", type=Path, help="model directory or run folder (default: newest in ./runs)"
    )
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    made.add_argument(
        "--host",
        default=LOOPBACK[0],
        help="address to listen on (default 127.0.0.1: this computer only); there is no password",
    )
    made.add_argument(
        "--port", type=port_number, default=7860, help="port (default 7860; 0 takes a free one)"
    )
    limits = made.add_argument_group("limits")
    for option, default, what in (
        ("--max-upload-mib", DEFAULT.upload_bytes // MEBI, "size of an uploaded file in MiB"),
        (
            "--max-pixels",
            DEFAULT.edited_pixels,
            "pixels of the picture, or of the eight frames, edited at once",
        ),
        ("--max-frames", DEFAULT.frames, "frames of a video"),
        ("--max-characters", DEFAULT.characters, "length of an instruction"),
        ("--max-steps", DEFAULT.steps, "sampler steps of one edit"),
        ("--max-turns", DEFAULT.turns, "edits in a row"),
        ("--max-queue", DEFAULT.queue, "edits that wait for their turn"),
    ):
        limits.add_argument(
            option, type=positive_int, default=default, help=f"{what} (default {default})"
        )
    return made


def port_number(text: str) -> int:
    """Parse a port, 0 to 65535 (an argparse type)."""
    value = positive_or_zero(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"needs a port of at most 65535, got {text!r}")
    return value


def run(arguments: list[str]) -> int:
    """Serve the page until Ctrl-C or SIGTERM; temporary files are gone afterwards.

    Raises:
        InputError: if gradio is missing, the model cannot be used, or the port is taken.
    """
    options = parser().parse(arguments)
    model = find_model(options.model)
    if find_spec("gradio") is None:
        raise InputError("the web page needs gradio; install it with pip install 'emu-edit[app]'")
    port, limits = free_port(options.host, options.port), limits_of(options)
    if sys.stderr.isatty():  # it may take a while, and a log needs no line about that
        sys.stderr.write(f"loading {model} …\n")
    # everything above answers in an instant; only now is torch needed
    with importing():
        from emu_edit.editing.editor import Editor

    editor = Editor.from_pretrained(model, device=options.device)
    serve(editor, limits, options.host, port)
    return 0


def limits_of(options: argparse.Namespace) -> Limits:
    """Read the limits from the command line."""
    return Limits(
        upload_bytes=options.max_upload_mib * MEBI,
        edited_pixels=options.max_pixels,
        frames=options.max_frames,
        characters=options.max_characters,
        steps=options.max_steps,
        turns=options.max_turns,
        queue=options.max_queue,
    )
