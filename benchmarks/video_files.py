"""Foreign videos through reader and writer, without an edit: what comes out, as ffprobe sees it.

    python -m benchmarks.video_files [-o FOLDER] [FILE ...]

Makes a file of each kind with the `ffmpeg` program (variable rate, rotation, 10 bits, 4:4:4, full
range, matrices, interlaced, several sound tracks, PCM, subtitles, an edit list, one frame, GIF,
WebM, MOV, MKV, AVI, ...), passes each through as a video job does, and prints a row: frames in and
out, the largest difference of a time after the first, how far the first moved, the largest
difference of a frame's mean colour (the codec's own loss included), sound tracks and whether their
packets are the same, and what was said. Names of further files are added.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.terminal import markdown_table, step_bar
from emu_edit.video.coding import CONTAINERS
from emu_edit.video.io import Frame, open_video
from emu_edit.video.job import Job, run
from emu_edit.video.preview import Unedited

PICTURES = ["-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25:duration=1"]
SOUND = ["-f", "lavfi", "-i", "sine=duration=1"]
H264 = ["-c:v", "libx264"]
SUBTITLES = "1\n00:00:00,100 --> 00:00:00,500\nHello\n"
INTERLACED = ["-f", "lavfi", "-i", "testsrc2=size=160x120:rate=50:duration=1"]
ALPHA = ["-f", "lavfi", "-i", "color=red@0.5:size=64x64:rate=10:duration=1,format=rgba"]
MADE: dict[str, list[str]] = {
    "vfr.mp4": [*PICTURES, "-vf", "select='not(mod(n,3))+gt(n,15)'", "-vsync", "vfr", *H264],
    "10bit.mkv": [*PICTURES, "-pix_fmt", "yuv420p10le", "-c:v", "libx265"],
    "yuv444.mp4": [*PICTURES, "-pix_fmt", "yuv444p", *H264],
    "full_range.mp4": [*PICTURES, "-pix_fmt", "yuvj420p", *H264, "-color_range", "pc"],
    "bt601.mp4": [
        *PICTURES,
        "-vf",
        "scale=out_color_matrix=bt601",
        *H264,
        "-colorspace",
        "smpte170m",
    ],
    "bt709.mp4": [*PICTURES, "-vf", "scale=out_color_matrix=bt709", *H264, "-colorspace", "bt709"],
    "bt2020.mp4": [
        *PICTURES,
        "-vf",
        "scale=out_color_matrix=bt2020",
        *H264,
        "-colorspace",
        "bt2020nc",
        "-color_primaries",
        "bt2020",
        "-color_trc",
        "bt709",
    ],
    "pq.mkv": [
        *PICTURES,
        "-pix_fmt",
        "yuv420p10le",
        "-c:v",
        "libx265",
        "-colorspace",
        "bt2020nc",
        "-color_primaries",
        "bt2020",
        "-color_trc",
        "smpte2084",
    ],
    "interlaced.mp4": [*INTERLACED, "-vf", "tinterlace=4", *H264, "-flags", "+ilme+ildct"],
    "silent.mp4": [*PICTURES, *H264],
    "three_tracks.mkv": [
        *PICTURES,
        *SOUND,
        *SOUND,
        *SOUND,
        "-map",
        "0",
        "-map",
        "1",
        "-map",
        "2",
        "-map",
        "3",
        *H264,
        "-c:a",
        "aac",
    ],
    "pcm.mov": [*PICTURES, *SOUND, *H264, "-c:a", "pcm_s16le"],
    "subtitles.mkv": [*PICTURES, "-i", "s.srt", *H264, "-c:s", "srt"],
    "edit_list.mp4": [*PICTURES, *SOUND, *H264, "-bf", "3", "-ss", "0.3", "-c:a", "aac"],
    "one_frame.mp4": [*PICTURES, "-frames:v", "1", *H264],
    "animation.gif": ["-f", "lavfi", "-i", "testsrc2=size=160x120:rate=10:duration=1"],
    "vp9.webm": [*PICTURES, *SOUND, "-c:v", "libvpx-vp9", "-c:a", "libopus"],
    "mpeg4.avi": [*PICTURES, *SOUND, "-c:v", "mpeg4", "-c:a", "mp3"],
    "mpeg2.mpg": [*PICTURES, *SOUND, "-c:v", "mpeg2video", "-c:a", "mp2"],
    "stream.ts": [*PICTURES, *SOUND, *H264, "-c:a", "aac"],
    "prores.mov": [*PICTURES, "-c:v", "prores_ks"],
    "alpha.mov": [*ALPHA, "-c:v", "qtrle"],
    **{
        f"rotated_{angle}.mp4": [
            "-i",
            "silent.mp4",
            "-c",
            "copy",
            "-metadata:s:v:0",
            f"rotate={angle}",
        ]
        for angle in (90, 180, 270)
    },
}


def main() -> int:
    """Make the files, pass them through, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, help="keep sources and results here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, step_bar("passing", "files") as on_step:
        folder = options.output or Path(temporary)
        folder.mkdir(exist_ok=True)
        sources = [*make(folder), *options.files]
        rows = []
        for number, source in enumerate(sources):
            rows.append(passed(source, folder))
            on_step(number + 1, len(sources))
    head = ["file", "result", "frames", "times", "start", "colour", "sound", "said"]
    sys.stdout.write(markdown_table(head, rows) + "\n")
    return 0


def make(folder: Path) -> list[Path]:
    """Make a file of each kind."""
    (folder / "s.srt").write_text(SUBTITLES)
    for name, arguments in MADE.items():
        command = ["ffmpeg", "-y", "-loglevel", "error", *arguments, name]
        subprocess.run(command, check=True, cwd=folder)
    return [folder / name for name in MADE]


def passed(source: Path, folder: Path) -> list[str]:
    """Pass a file through a job and compare."""
    suffix = source.suffix if source.suffix in CONTAINERS and source.suffix != ".gif" else ".mp4"
    output = folder / f"out_{source.stem}{suffix}"
    output.unlink(missing_ok=True)
    try:
        video = open_video(source)
        done = run(Job(video, output), Unedited())
        result = open_video(output)
    except InputError as error:
        return [source.name, f"refused: {error}", *[""] * 6]
    before, after = list(video.frames()), list(result.frames())
    old, new = times(source), times(output)
    apart = max(abs((a - old[0]) - (b - new[0])) for a, b in zip(old, new, strict=False))
    pairs = zip(before, after, strict=False)
    colour = max(float((mean(a) - mean(b)).abs().max()) for a, b in pairs)
    tracks = len(streams(source, "audio"))
    kept = sum(sound(source, i) == sound(output, i) for i in range(tracks))
    picture = streams(output, "video")[0]
    shape = f"{picture['width']}x{picture['height']}, {picture['pix_fmt']}"
    return [
        source.name,
        f"{suffix} {shape}, {picture.get('color_space', 'no matrix')}",
        f"{len(before)} = {len(after)}" if len(before) == len(after) else "DIFFER",
        f"{1000 * apart:.2f} ms",
        f"{1000 * (new[0] - old[0]):+.0f} ms",
        f"{colour:.2f}",
        f"{kept} of {tracks} equal" if tracks else "none",
        "; ".join([*video.info.notes, *done.notes]),
    ]


def times(path: Path) -> list[float]:
    """Return when frames are shown, in seconds, as ffprobe says."""
    command = ["ffprobe", "-loglevel", "error", "-select_streams", "v:0", "-show_entries"]
    command += ["frame=best_effort_timestamp_time", "-of", "json", str(path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(frame["best_effort_timestamp_time"]) for frame in json.loads(told)["frames"]]


def mean(frame: Frame) -> Tensor:
    """Return the mean of each channel."""
    return frame.pixels.float().mean((1, 2))


def streams(path: Path, kind: str) -> list[dict]:
    """Return what ffprobe says of the streams of a kind."""
    command = ["ffprobe", "-loglevel", "error", "-show_streams", "-of", "json", str(path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [each for each in json.loads(told)["streams"] if each["codec_type"] == kind]


def sound(path: Path, index: int) -> str:
    """Return the MD5 of a track's packets, as the ffmpeg program copies them."""
    command = ["ffmpeg", "-loglevel", "error", "-i", str(path), "-map", f"0:a:{index}"]
    done = subprocess.run(
        [*command, "-c", "copy", "-f", "md5", "-"], capture_output=True, text=True
    )
    return done.stdout.strip() or f"no track {index} in {path}"


if __name__ == "__main__":
    sys.exit(main())
