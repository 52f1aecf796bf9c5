"""`emu-edit app`: a web page for editing, on this computer only unless told otherwise."""

import argparse
import errno
import logging
import os
import signal
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_edit.cli.arguments import ArgumentParser, positive_int, positive_or_zero
from emu_edit.editing.find import find_model
from emu_edit.errors import InputError
from emu_edit.web.limits import MEBI, Limits

if TYPE_CHECKING:
    from emu_edit.editing.editor import Editor

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT = Limits()


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit app",
        description="Serve a web page for editing in turns, with undo, branches and downloads. "
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
        ("--max-pixels", DEFAULT.edited_pixels, "pixels of the picture that is edited"),
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
    port = free_port(options.host, options.port)
    limits = limits_from(options)
    if sys.stderr.isatty():  # it may take a while, and a log needs no line about that
        sys.stderr.write(f"loading {model} …\n")
    # everything above answers in an instant; only now is torch needed
    from emu_edit.editing.devices import choose_device
    from emu_edit.editing.editor import Editor

    editor = Editor.from_pretrained(model, device=choose_device(options.device))
    if options.host not in LOOPBACK:
        sys.stderr.write(
            f"emu-edit: warning: listening on {options.host}: whoever can reach this computer can "
            "use the page; there is no password and no encryption\n"
        )
    # a service is stopped with SIGTERM; like Ctrl-C, so that the temporary files go
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="emu-edit-app-") as folder:
        prepare_environment(Path(folder))
        serve(editor, limits, Path(folder), options.host, port)
    return 0


def limits_from(options: argparse.Namespace) -> Limits:
    """Return the limits with what the command line says."""
    return Limits(
        upload_bytes=options.max_upload_mib * MEBI,
        edited_pixels=options.max_pixels,
        characters=options.max_characters,
        steps=options.max_steps,
        turns=options.max_turns,
        queue=options.max_queue,
    )


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0, after trying to listen on it.

    Raises:
        InputError: if the port is taken or not allowed, or the host is not one of this computer's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            # as the server does: a port closed a moment ago is free
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            return tried.getsockname()[1]
    except socket.gaierror as error:
        raise InputError(f"--host {host}: {error.strerror}; try --host 127.0.0.1") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"--host {host} is no address of this computer; try --host 127.0.0.1"
            ) from error
        raise InputError(
            f"cannot listen on {host}:{port} ({error.strerror}); try another --port, or --port 0"
        ) from error


def prepare_environment(folder: Path) -> None:
    """Say before gradio is imported, which reads it then: no telemetry, files in `folder`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    # its client asks the model hub nothing either
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def serve(editor: "Editor", limits: Limits, folder: Path, host: str, port: int) -> None:
    """Serve the page until it is interrupted."""
    from emu_edit.web.handlers import CSS, Handlers, page_theme
    from emu_edit.web.page import build_page

    # one line for each request would bury what matters
    logging.getLogger("httpx").setLevel(logging.WARNING)
    page = build_page(Handlers(editor, limits, folder))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            show_error=False,  # unexpected errors stay on this side
            prevent_thread_lock=True,
            inbrowser=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            pwa=False,
            footer_links=[],
            max_file_size=limits.upload_bytes,
            state_session_capacity=limits.visitors,
            app_kwargs=server_options(limits, folder, host),
            theme=page_theme(),
            css=CSS,
        )
        sys.stdout.write(f"the page is at http://{host}:{port} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        signal.pause()
    except KeyboardInterrupt:
        sys.stderr.write("emu-edit: the page is closed\n")
    finally:
        page.close(verbose=False)


def server_options(limits: Limits, folder: Path, host: str) -> dict[str, Any]:
    """Return what FastAPI is made with: the guard, and no pages about the interface."""
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]
    from starlette.middleware.trustedhost import (  # pyright: ignore[reportMissingImports]
        TrustedHostMiddleware,
    )

    from emu_edit.web.guard import RequestGuard

    # a name that other sites let point to this computer must not reach the page (DNS rebinding)
    hosts = ["127.0.0.1", "localhost", "[::1]"] if host in LOOPBACK else ["*"]
    return {
        "middleware": [
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
            Middleware(RequestGuard, limits=limits, folder=folder),
        ],
        "docs_url": None,
        "redoc_url": None,
        "openapi_url": None,
    }
