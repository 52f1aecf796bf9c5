"""The page's tab of videos: upload one, give one instruction, see both side by side, download.

What happens to a file is decided in `footage.py`; here it is laid out and tied to gradio's events.
The players are the browser's own: gradio's component of videos runs the ffmpeg program on what it
shows, if there is one, and converts what that does not like.
"""

import contextvars
import html
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr  # pyright: ignore[reportMissingImports]

from emu_edit.errors import InputError
from emu_edit.video.job import OnFrame
from emu_edit.web import footage
from emu_edit.web.form import scroll_to, strength, task_choice
from emu_edit.web.guard import MEBI
from emu_edit.web.handlers import PIXELATED, PROGRESS, Handlers, read_settings
from emu_edit.web.state import MOST_PIXELATED

ENDINGS = [".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif"]

START = """\
1. **Upload** a video: MP4, MOV, MKV, WebM, AVI or GIF, up to {frames} frames.
2. **Say what to change** in all of it, for example *make it night*.
3. **Compare** the two side by side, and download the result: H.264 with the sound of the source.
"""

# what one player does the other follows
TOGETHER = """
() => {
  const follow = ({target, type}) => {
    const players = target.closest && target.closest('#players');
    const other = players && [...players.querySelectorAll('video')].find((one) => one !== target);
    if (!other) return;
    if (Math.abs(other.currentTime - target.currentTime) > 0.1) {
      other.currentTime = target.currentTime;
    }
    if (type === 'play' && other.paused) other.play();
    if (type === 'pause' && target.isConnected) other.pause();
  };
  for (const type of ['play', 'pause', 'seeked']) addEventListener(type, follow, true);
}
"""

ENABLED = "() => ({__type__: 'update', interactive: true})"


class StoppedError(Exception):
    """The visitor wants no more of it, or has gone."""


@dataclass(frozen=True)
class VideoState:
    """What the tab remembers of a visitor.

    Attributes:
        opened: the video.
        edited: its last result, if there is one.
    """

    opened: footage.OpenedVideo
    edited: footage.EditedVideo | None = None

    def forget(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.opened.folder, ignore_errors=True)
        if self.edited is not None:
            shutil.rmtree(self.edited.file.parent, ignore_errors=True)


class VideoHandlers:
    """What the tab does when a visitor does something.

    Args:
        page: the model, the limits and the folder of files.
    """

    def __init__(self, page: Handlers) -> None:
        self.page = page
        self.running: dict[str | None, threading.Event] = {}

    def opened(
        self,
        state: VideoState | None,
        data: bytes | None,
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
    ) -> list[Any]:
        """Begin with the uploaded video."""
        page = self.page
        if data is None:
            return self._refused("Not taken", InputError("no file came; choose a video"))
        try:
            with self._told(request, progress, "making a copy to play") as on_frame:
                opened = footage.open_upload(page.editor, data, page.folder, page.limits, on_frame)
        except (InputError, StoppedError) as error:
            page.forget_upload(data)
            return self._refused("Not taken", error)
        if state is not None:
            state.forget()
        return self._show(VideoState(opened), footage.about(opened))

    def edited(
        self,
        state: VideoState | None,
        is_resized: bool,
        instruction: str | None,
        task: str | None,
        negative: str | None,
        text: float,
        image: float,
        steps: int,
        seed: str | None,
        keeping: str,
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
    ) -> list[Any]:
        """Make the edit that the form asks for."""
        page = self.page
        if state is None:
            nothing = InputError("there is no video yet; upload one first")
            return self._refused("Not edited", nothing)
        try:
            settings = read_settings(task, negative, text, image, steps, seed, keeping)
            with self._told(request, progress, "editing") as on_frame:
                edited = footage.edit(
                    page.editor,
                    state.opened,
                    instruction or "",
                    settings,
                    page.folder,
                    is_resized=is_resized,
                    limits=page.limits,
                    on_frame=on_frame,
                )
        except (InputError, StoppedError) as error:
            return self._refused("Not edited", error)
        if state.edited is not None:
            shutil.rmtree(state.edited.file.parent, ignore_errors=True)
        return self._show(replace(state, edited=edited), edited.said)

    def stopped(self, request: gr.Request) -> None:
        """Stop what the visitor's session is making; also when the visitor has gone."""
        if (stop := self.running.get(request.session_hash)) is not None:
            stop.set()

    @contextmanager
    def _told(self, request: gr.Request, progress: gr.Progress, what: str) -> Iterator[OnFrame]:
        """Yield what moves the page's bar, and raises when the work must stop."""
        stop, began = threading.Event(), time.monotonic()
        most = self.page.limits.job_seconds
        context = contextvars.copy_context()  # frames are encoded in another thread

        def on_frame(done: int, total: int) -> None:
            if stop.is_set():
                raise StoppedError(f"stopped after {done} of {total} frames")
            if time.monotonic() - began > most:
                raise InputError(
                    f"it took more than {most} s, and {done} of {total} frames were done; give a "
                    "shorter or smaller video, or fewer steps"
                )
            context.run(progress, (done, total), desc=what, unit="frames")

        self.running[request.session_hash] = stop
        try:
            yield on_frame
        finally:
            self.running.pop(request.session_hash, None)

    def _refused(self, what: str, error: Exception) -> list[Any]:
        """Leave the tab as it is, and say for good why."""
        line = html.escape(" ".join(str(error).split()))
        return [gr.skip(), f"**{what}:** {line}.", *[gr.skip()] * 3, gr.Button(interactive=False)]

    def _show(self, state: VideoState, said: str) -> list[Any]:
        """Draw a state, in the order of `video_tab`."""
        result = None if state.edited is None else state.edited.file
        return [
            state,
            html.escape(said),
            gr.Column(visible=False),
            gr.HTML(players(state.opened.shown, result), visible=True),
            gr.DownloadButton(value=result and str(result), visible=result is not None),
            gr.Button(interactive=False),
        ]


def players(source: Path, result: Path | None) -> str:
    """Write the two players; both are muted, or browsers would not begin to play."""
    shown = [("before", "Original", source), ("after", "Edited", result)]
    figures = "".join(
        f"<figure><figcaption>{label}</figcaption>"
        f'<video id="video-{name}" src="gradio_api/file={quote(str(file))}" controls loop muted '
        "autoplay playsinline "
        # a small one is enlarged without smoothing, as pictures are
        f"onloadedmetadata=\"this.classList.toggle('{PIXELATED}', "
        f'Math.max(this.videoWidth, this.videoHeight) <= {MOST_PIXELATED})"></video></figure>'
        for name, label, file in shown
        if file is not None
    )
    return f'<div class="pair">{figures}</div>'


def video_tab(page: Handlers, blocks: Any) -> None:
    """Lay the tab out and tie its events; `blocks` is the page around it."""
    state = gr.State(
        None,
        time_to_live=page.limits.idle_seconds,
        delete_callback=lambda old: old and old.forget(),
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=330):
            form = _form(page)
        with gr.Column(scale=7, min_width=330):
            summary = gr.Markdown("No video yet.", elem_id="video-summary")
            with gr.Column() as start:
                gr.Markdown(START.format(frames=page.limits.frames), elem_id="video-start")
            both = gr.HTML("", visible=False, elem_id="players")
            result = gr.DownloadButton(
                "Download video (MP4)", size="sm", visible=False, elem_id="video-result"
            )
    _tie(VideoHandlers(page), blocks, form, [state, summary, start, both, result, form.stop])
    blocks.load(None, js=TOGETHER, api_visibility="private")


@dataclass(frozen=True)
class Form:
    """The left column. The fields are gradio's components; `seldom` are those of `strength`."""

    upload: Any
    is_resized: Any
    instruction: Any
    task: Any
    predicted: Any
    stop: Any
    edit: Any
    seldom: tuple[Any, ...]


def _form(page: Handlers) -> Form:
    limits = page.limits
    upload = gr.File(
        label=f"Video, up to {limits.upload_bytes / MEBI:g} MiB",
        type="binary",
        file_types=ENDINGS,
        height=160,
        elem_id="video-upload",
    )
    gr.HTML("", elem_id="video-too-large")
    size = page.editor.settings.image_size
    is_resized = gr.Checkbox(
        label=f"Resize to the model's size (shorter side {size} px)",
        value=True,
        container=False,
        elem_id="video-resize",
    )
    with gr.Group():
        instruction = gr.Textbox(
            label="What to change",
            placeholder="e.g. make it night",
            max_lines=3,
            max_length=limits.characters,
            elem_id="video-instruction",
        )
        task, predicted = task_choice(page, prefix="video-")
    with gr.Row():
        stop = gr.Button("Stop", interactive=False, elem_id="video-stop", min_width=80)
        edit = gr.Button("Edit", variant="primary", elem_id="video-edit", min_width=80, scale=2)
    seldom = strength(page, prefix="video-")
    return Form(upload, is_resized, instruction, task, predicted, stop, edit, seldom)


def _tie(handlers: VideoHandlers, blocks: Any, form: Form, shown: list[Any]) -> None:
    """Tie the events to the handlers; videos and pictures are made one at a time."""
    state, _, _, both, *_ = shown
    quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "words"}
    drawing = {
        "outputs": shown,
        "concurrency_id": "model",
        "api_visibility": "private",
        "show_progress_on": both,
    }
    asked = [state, form.is_resized, form.instruction, form.task, *form.seldom]
    form.upload.upload(None, None, form.stop, js=ENABLED, **quiet)
    form.upload.upload(handlers.opened, [state, form.upload], **drawing)
    for event in (form.edit.click, form.instruction.submit):
        event(None, None, form.stop, js=ENABLED, **quiet)
        event(None, form.instruction, js=scroll_to("#players"), **quiet)
        event(handlers.edited, asked, **drawing)
    form.stop.click(handlers.stopped, None, None, **quiet)
    blocks.unload(handlers.stopped)
    if handlers.page.editor.predictor is not None:
        for event, mode in ((form.instruction.input, "always_last"), (form.task.input, "once")):
            event(
                handlers.page.typed,
                [form.instruction, form.task],
                form.predicted,
                trigger_mode=mode,
                **quiet,
            )
