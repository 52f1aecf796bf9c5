"""A long video through a whole job: memory against frame number, and what of the file is the same.

    python -m benchmarks.video_stream [--frames 5000] [-o FOLDER]

Draws a clip of 1280x720 that moves, with cuts, a rate that varies and sound, and passes it through
a job twice, each time in a process of its own: without an edit at full size, and resized to 64
pixels through a small random editor. Prints the most memory that was resident (joining included)
while the first 1,000 frames were done, and after, their ratio, which may be at most 1.05, and
whether frames, duration, every time and every packet of sound are those of the source.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import cast

import av
import numpy as np
import torch

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings
from emu_edit.images import resize
from emu_edit.models.codec import PatchCodec
from emu_edit.models.networks import EditNetworks, TaskEmbedding
from emu_edit.models.tiny import TinyText
from emu_edit.models.unet import UNetDenoiser
from emu_edit.tasks import SIXTEEN
from emu_edit.terminal import markdown_table, step_bar
from emu_edit.video.coding import Coding
from emu_edit.video.editor import VideoEditor, VideoTurn
from emu_edit.video.io import open_video
from emu_edit.video.job import Job, run
from emu_edit.video.preview import Unedited

SIZE, UNIT, RATE = (720, 1280), Fraction(1, 30000), 48000
FIRST = 1000  # frames in which memory is allowed to grow to its level
MOST = 1.05  # of that level, that it may have later
SCENE = 700  # frames between two cuts
SMALL = (64, 112)  # what the random editor gets
EVERY = 0.02  # seconds between two looks at memory
CODING = Coding("libx264", preset="ultrafast")  # what is measured is not the encoder's search


@dataclass
class Memory:
    """Looks at this process's resident memory from a thread of its own.

    Attributes:
        done: frames that are done, set by the job.
        most: MiB, at most, by hundreds of frames done.
    """

    done: int = 0
    most: dict[int, float] = field(default_factory=dict)

    def __enter__(self) -> "Memory":
        """Begin to look."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") / 2**20
        while not self._stop.wait(EVERY):
            now = int(Path("/proc/self/statm").read_text().split()[1]) * page
            self.most[self.done // 100] = max(now, self.most.get(self.done // 100, 0))


def main() -> int:
    """Draw, pass and compare; exit status 1 if memory grows or anything is not the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("-o", "--output", type=Path, help="keep source and results here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        folder.mkdir(exist_ok=True)
        source = folder / f"{options.frames}.mp4"
        if not source.exists():
            draw(source, options.frames)
        rows, is_good = [], True
        for name in ("none", "random network"):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                most, seconds = fresh.submit(passed, source, folder / f"{name}.mp4", name).result()
            first = max(mib for at, mib in most.items() if 100 * at < FIRST)
            last = max(mib for at, mib in most.items() if 100 * at >= FIRST)
            same = compared(source, folder / f"{name}.mp4")
            is_good &= last <= MOST * first and all(same.values())
            row = [name, f"{first:.0f} MiB", f"{last:.0f} MiB", f"{last / first:.3f}"]
            row += [f"{options.frames / seconds:.1f}"]
            rows.append(row + ["equal" if each else "DIFFER" for each in same.values()])
            curve = ", ".join(f"{100 * at}: {mib:.0f}" for at, mib in most.items() if at % 5 == 0)
            sys.stdout.write(f"{name}: {curve}\n")
    head = ["edit", f"first {FIRST}", "later", "ratio", "frames/s", *same]
    sys.stdout.write(markdown_table(head, rows) + "\n")
    return 0 if is_good else 1


def draw(path: Path, frames: int) -> None:
    """Write a clip whose background wanders and whose squares run, each scene in other colours."""
    half = path.with_suffix(".half.mp4")
    ground = None
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    with av.open(half, "w") as output, step_bar("drawing", "frames") as on_step:
        options = {"preset": "ultrafast", "crf": "20"}
        stream = cast("av.VideoStream", output.add_stream("libx264", rate=25, options=options))
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = stream.time_base = UNIT
        voice = cast("av.AudioStream", output.add_stream("aac", rate=RATE, layout="stereo"))
        random, now, heard = np.random.default_rng(0), 0, 0
        for number in range(frames):
            scene = number // SCENE
            if number % SCENE == 0 or ground is None:
                waves = [np.sin(x / (90 + 40 * scene) + y / 70 + 2 * c + scene) for c in range(3)]
                ground = (127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)
            pixels = np.roll(ground, (number, 3 * number), (0, 1))
            for square in range(6):
                top, left = (97 * square + 5 * number) % 620, (211 * square + 9 * number) % 1180
                pixels[top : top + 100, left : left + 100] = (40 * square, 255 - 40 * square, 90)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = now, UNIT
            output.mux(stream.encode(frame))
            now += 1001 * (1 + (number % 7 == 0))  # every seventh frame is shown twice as long
            while heard * UNIT.denominator < now * RATE:
                wobble = random.normal(0, 0.1, (2, 1024)).astype(np.float32)
                sound = av.AudioFrame.from_ndarray(wobble, format="fltp", layout="stereo")
                sound.sample_rate, sound.pts, sound.time_base = RATE, heard, Fraction(1, RATE)
                output.mux(voice.encode(sound))
                heard += 1024
            on_step(number + 1, frames)
        output.mux(stream.encode(None))
        output.mux(voice.encode(None))
    half.replace(path)


def passed(source: Path, output: Path, name: str) -> tuple[dict[int, float], float]:
    """Pass a file through a job; return MiB at most by hundreds of frames, and the seconds."""
    torch.set_num_threads(1)
    output.unlink(missing_ok=True)
    editor, resized = Unedited(), None
    if name != "none":
        editor = VideoEditor(random_editor(), [VideoTurn("make it red", "global")])
        resized = partial(resize, size=SMALL)
    with Memory() as memory, step_bar("passing", "frames") as on_step:

        def on_frame(done: int, frames: int) -> None:
            memory.done = done
            on_step(done, frames)

        began = time.perf_counter()
        run(Job(open_video(source), output, coding=CODING), editor, on_frame, resized)
        seconds = time.perf_counter() - began
    return memory.most, seconds


def random_editor() -> Editor:
    """Return an editor that has learnt nothing."""
    denoiser = UNetDenoiser(
        48,
        [16, 16],
        attention=[False, True],
        text_dim=16,
        task_dim=8,
        head_dim=8,
        norm_groups=4,
        sample_size=SMALL[0] // 4,
    )
    networks = EditNetworks(
        denoiser,
        TinyText(dim=16, num_layers=1, num_heads=2),
        PatchCodec(),
        task_embedding=TaskEmbedding(len(SIXTEEN), 8),
        tasks=SIXTEEN,
    )
    return Editor(
        networks.eval(),
        schedule=NoiseSchedule.scaled_linear(),
        prediction=Prediction.change,
        settings=EditorSettings(image_size=64, num_steps=1, guidance=Guidance(1.0, 1.0)),
    )


def compared(source: Path, result: Path) -> dict[str, bool]:
    """Tell what is the same in both files, by their packets."""
    before, after = packets_of(source), packets_of(result)
    return {what: before[what] == after[what] for what in before}


def packets_of(path: Path) -> dict[str, object]:
    """Return the frames, duration, times and sound of a file, as its packets say."""
    sound, times, end = sha256(), list[Fraction](), Fraction(0)
    with av.open(path) as container:
        for packet in container.demux():
            begin, unit = packet.pts, Fraction(packet.time_base or 1)
            if begin is None:
                continue
            if packet.stream.type == "audio":
                sound.update(f"{begin * unit} {packet.size} ".encode() + bytes(packet))
                continue
            times.append(begin * unit)
            end = max(end, (begin + (packet.duration or 0)) * unit)
    return {
        "frames": len(times),
        "duration": end,
        "times": sorted(times),
        "sound": sound.hexdigest(),
    }


if __name__ == "__main__":
    sys.exit(main())
