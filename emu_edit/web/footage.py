"""A visitor's video: what is taken, what a browser plays of it, and its edit; knows no web library.

An upload is judged in the order of what it costs: bytes, kind, size of its frames, their number;
only then is it read. FFmpeg also reads playlists, which name other files and addresses: a video is
one of `KINDS` or nothing. What happens is said by `OnFrame`, which may raise to stop it.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.editing.doubts import doubt_about
from emu_edit.editing.editor import Editor
from emu_edit.editing.session import TurnSettings
from emu_edit.errors import InputError
from emu_edit.images import is_far_larger, resize, with_shorter_side
from emu_edit.terminal import plural
from emu_edit.text_rules import clean_instruction
from emu_edit.video.clip import Video
from emu_edit.video.cuts import GivenCuts
from emu_edit.video.editor import BATCH, VideoEditor, VideoSettings, VideoTurn
from emu_edit.video.io import open_video
from emu_edit.video.job import Job, OnFrame, run
from emu_edit.video.preview import Unedited
from emu_edit.web.guard import MEBI, Limits
from emu_edit.web.state import check_request

# FFmpeg's names of the files that are taken; each holds its frames itself
KINDS = ("mov", "matroska", "avi", "gif", "mpegts", "mpeg")
# what browsers decode, by these files' usual endings; caniuse.com, "video format"
PLAYED = {".mp4": {"h264", "av1"}, ".webm": {"vp8", "vp9", "av1"}}
HEARD = {".mp4": {"aac", "mp3"}, ".webm": {"opus", "vorbis"}}
SOURCE = "source"  # name of the upload in its folder
LEAST = 16  # pixels of a side
SHOWN = 480  # shorter side, in pixels, of the copy that stands for a source no browser plays

Resized = Callable[[UInt8[Tensor, "3 _ _"]], UInt8[Tensor, "3 _ _"]]


@dataclass(frozen=True)
class OpenedVideo:
    """A video that was taken.

    Attributes:
        folder: holds its files and nothing else.
        video: the source.
        shown: the source, or a copy that a browser plays.
        doubt: why the model may not do what is asked; "" when no reason is known.
    """

    folder: Path
    video: Video
    shown: Path
    doubt: str


@dataclass(frozen=True)
class EditedVideo:
    """The result of one instruction.

    Attributes:
        file: an MP4 with H.264, in a folder of its own.
        said: what was done, in a few words.
    """

    file: Path
    said: str


@contextmanager
def new_folder(where: Path) -> Iterator[Path]:
    """Make a folder, and remove it when what is made in it fails or is stopped."""
    folder = where / secrets.token_urlsafe(16)  # other visitors must not guess it
    folder.mkdir(mode=0o700)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def open_upload(
    editor: Editor, data: bytes, where: Path, limits: Limits, on_frame: OnFrame | None = None
) -> OpenedVideo:
    """Take an uploaded video, and make a copy that a browser plays if it does not play this one.

    Args:
        editor: what will edit it.
        data: the file.
        where: the page's folder.
        limits: of bytes, pixels and frames.
        on_frame: called with (frames copied, frames in all).

    Raises:
        InputError: in one line that stands without the name of a file, if it is refused.
    """
    if len(data) > limits.upload_bytes:
        raise InputError(
            f"the file has {len(data) / MEBI:.1f} MiB, at most {limits.upload_bytes / MEBI:g} are "
            "taken; make it shorter or smaller"
        )
    with new_folder(where) as folder, _unnamed(folder):
        upload = folder / "upload"
        upload.write_bytes(data)
        playable = judged(upload, limits)
        video = open_video(upload.rename(folder / f"{SOURCE}{playable}"))
        info = video.info
        if min(info.size) < LEAST:
            raise InputError(
                f"the frames are {info.size[1]}x{info.size[0]}, needs at least {LEAST} px a side; "
                "make them larger"
            )
        if info.frames > limits.frames:
            raise InputError(
                f"the video has {info.frames} frames, at most {limits.frames} are edited; make it "
                "shorter"
            )
        doubt = doubt_about(editor, next(video.frames()).pixels)
        shown = info.path
        if not playable:
            shown = folder / "shown.mp4"
            height, width = info.size
            smaller = with_shorter_side(min(SHOWN, *info.size), height=height, width=width)
            job = Job(video, shown, cuts=GivenCuts.of([0], info.frames))
            run(job, Unedited(), on_frame, _even(smaller))
    return OpenedVideo(folder, video, shown, doubt)


def edit(
    editor: Editor,
    opened: OpenedVideo,
    instruction: str,
    settings: TurnSettings,
    where: Path,
    *,
    is_resized: bool,
    limits: Limits,
    on_frame: OnFrame | None = None,
) -> EditedVideo:
    """Edit a video by one instruction, in a folder of its own that is gone if that fails.

    Raises:
        InputError: if a limit is exceeded, or the editor refuses.
    """
    with new_folder(where) as folder, _unnamed(opened.folder, folder):
        check_request(editor, instruction, settings, limits)
        if not opened.video.info.path.exists():
            raise InputError("the video was not used for long and is gone; upload it again")
        for file in opened.folder.iterdir():
            file.touch()  # the oldest files of the page go first
        text, task, doubt = clean_instruction(instruction), settings.task, opened.doubt
        if task is None:
            (prediction,) = editor.predict_tasks([text])
            task = prediction.task
            if not prediction.is_sure:
                doubt = f"{doubt}; " * bool(doubt) + f"not sure of it: {prediction.describe()}"
        resized = edited_size(editor, opened.video, is_resized=is_resized, limits=limits)
        seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
        turn = VideoTurn(text, task, settings.negative, settings.sampling, seed)
        videos = VideoEditor(editor, [turn], VideoSettings(threshold=settings.threshold))
        job = Job(opened.video, folder / "edited.mp4")
        done = run(job, videos, on_frame, _even(resized))
    height, width = _halves(resized)
    scenes = "" if len(done.scenes) == 1 else f" in {len(done.scenes)} scenes"
    steps = settings.sampling.applied(editor.settings).num_steps
    rate = done.edited / done.seconds
    said = (
        f"Edited, {width}x{height} px, {plural(done.frames, 'frame')}{scenes}. Task {task}, "
        f"seed {seed}, steps {steps}, {rate:.1f} frames/s.{sentence(doubt)}"
    )
    return EditedVideo(job.output, said)


def edited_size(
    editor: Editor, video: Video, *, is_resized: bool, limits: Limits
) -> tuple[int, int]:
    """Return the height and width that frames are edited at.

    Raises:
        InputError: if they are too large for the page, the model, or the memory that is free.
    """
    height, width = video.info.size
    trained = editor.settings.image_size
    if is_resized:
        height, width = with_shorter_side(trained, height=height, width=width)
    # so many frames are edited at once
    if height * width * BATCH > limits.edited_pixels or is_far_larger(
        trained, height=height, width=width, times=limits.times_larger
    ):
        what = "" if is_resized else "; tick 'Resize' below the upload to edit a copy of that size"
        raise InputError(
            f"the frames are {width}x{height}, too large for this page and a model trained at "
            f"{trained} px{what}"
        )
    try:
        editor.forecast((height, width), editor.settings)
    except InputError as error:  # how to ask for a smaller copy is another thing here
        raise InputError(str(error).partition(";")[0]) from error
    return height, width


def about(opened: OpenedVideo) -> str:
    """Say in a few words what was taken."""
    info = opened.video.info
    height, width = info.size
    seconds = float(info.frames / info.rate)
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in info.notes)
    return (
        f"The original, {width}x{height} px, {plural(info.frames, 'frame')}, {seconds:.1f} s. Say "
        f"what to change.{notes}{sentence(opened.doubt)}"
    )


def sentence(text: str) -> str:
    """Make a sentence, with a space before it, of what is not empty."""
    return f" {text[0].upper()}{text[1:]}." if text else ""


def judged(source: Path, limits: Limits) -> str:
    """Look at a file before anything of it is decoded, and return the ending browsers play it with.

    "" if they do not.

    Raises:
        InputError: if it is none of `KINDS`, or its frames are too large.
    """
    kinds = {"format_whitelist": ",".join(KINDS)}
    try:
        with av.open(source, options=kinds, metadata_errors="replace") as container:
            for stream in container.streams.video:
                pictures = stream.codec_context
                if pictures is None:
                    raise InputError(
                        "the file's pictures are coded in a way that is not known here; give MP4 "
                        "with H.264"
                    )
                if pictures.width * pictures.height > limits.upload_pixels:
                    raise InputError(
                        f"the frames are {pictures.width}x{pictures.height}, at most "
                        f"{limits.upload_pixels / 1e6:.1f} megapixels are decoded; make it smaller"
                    )
            return next((end for end in PLAYED if _is_played(container, end)), "")
    except (FFmpegError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "the file is no video that can be read; give MP4, MOV, MKV, WebM, AVI or GIF"
        ) from error


def _is_played(container: InputContainer, ending: str) -> bool:
    """Tell whether browsers play a file under this ending, its sound included."""
    is_mov = container.format.name.startswith("mov")
    is_quicktime = container.metadata.get("major_brand", "").strip() == "qt"
    if is_mov is (ending == ".webm") or is_quicktime or len(container.streams.video) != 1:
        return False
    if not is_mov and "matroska" not in container.format.name:
        return False
    pictures = container.streams.video[0].codec_context
    sounds = {
        "unknown" if stream.codec_context is None else stream.codec_context.name
        for stream in container.streams.audio
    }
    return (
        pictures.name in PLAYED[ending]
        and pictures.pix_fmt in {"yuv420p", "yuvj420p"}
        and sounds <= HEARD[ending]
    )


def _even(size: tuple[int, int]) -> Resized:
    """Resize to a size whose odd sides are cut by a pixel, as 4:2:0 needs it."""
    height, width = _halves(size)

    def resized(pixels: UInt8[Tensor, "3 _ _"]) -> UInt8[Tensor, "3 _ _"]:
        fitting = pixels if pixels.shape[-2:] == size else resize(pixels, size)
        return fitting[:, :height, :width].contiguous()

    return resized


def _halves(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2 * 2, size[1] // 2 * 2


@contextmanager
def _unnamed(*folders: Path) -> Iterator[None]:
    """Say errors without the names that files have here."""
    try:
        yield
    except InputError as error:
        line = str(error)
        for folder in folders:
            line = line.replace(f"{folder}/", "")
        for name in (SOURCE, *(f"{SOURCE}{ending}" for ending in PLAYED)):
            line = line.replace(f"{name}: ", "the file: ", 1)
        raise InputError(line) from error
