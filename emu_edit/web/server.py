"""The web page's server: its port, its environment and its guard, from start to Ctrl-C.

Nothing here imports gradio before `prepare_environment`, which tells it to send no telemetry and to
keep its files in a folder that is gone afterwards. A server that was killed could not remove its
folder; the next one does.
"""

import errno
import fcntl
import logging
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_edit.errors import InputError
from emu_edit.web.guard import Limits, RequestGuard

if TYPE_CHECKING:  # the command line's help page imports this file
    from emu_edit.editing.editor import Editor

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PREFIX = "emu-edit-app-"  # of the folders of temporary files
YOUNG = 60.0  # seconds; a folder may be another server's that is about to lock it


def free_port(host: str, port: int) -> int:
    """Try to listen on a port, or find a free one for 0.

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


def serve(editor: "Editor", limits: Limits, host: str, port: int) -> None:
    """Serve the page until Ctrl-C or SIGTERM; temporary files are gone afterwards."""
    if host not in LOOPBACK:
        sys.stderr.write(
            f"emu-edit: warning: listening on {host}: whoever can reach this computer can "
            "use the page; there is no password and no encryption\n"
        )
    # a service is stopped with SIGTERM; like Ctrl-C, so that the temporary files go
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # one line for each request would bury what matters
    logging.getLogger("httpx").setLevel(logging.WARNING)
    remove_abandoned(Path(tempfile.gettempdir()))
    with held_folder() as folder:
        prepare_environment(folder)
        from emu_edit.web.handlers import CSS, Handlers, page_theme
        from emu_edit.web.page import build_page

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
                app_kwargs=_server_options(limits, folder, host),
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


@contextmanager
def held_folder() -> Iterator[Path]:
    """Make a folder for temporary files, locked as long as this process lives."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock)


def remove_abandoned(where: Path, clock: Callable[[], float] = time.time) -> None:
    """Remove the folders of servers that were killed: ours, not young, and held by nobody."""
    for folder in where.glob(f"{PREFIX}*"):
        try:
            about = folder.lstat()
            is_ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if not is_ours or clock() - about.st_mtime < YOUNG:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # gone meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # another page that is being served
            continue
        finally:
            os.close(lock)


def prepare_environment(folder: Path) -> None:
    """Tell gradio, which reads this on import: no telemetry, files in `folder`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    # its client asks the model hub nothing either
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _server_options(limits: Limits, folder: Path, host: str) -> dict[str, Any]:
    """Tell FastAPI about the guard, and to serve no pages about its interface."""
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]
    from starlette.middleware.trustedhost import (  # pyright: ignore[reportMissingImports]
        TrustedHostMiddleware,
    )

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
