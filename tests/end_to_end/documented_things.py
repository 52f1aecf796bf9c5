"""The things that documented commands name, tiny, each made when a command first needs it."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
import numpy as np
from PIL import Image

from datamodules.shards.clips import encode_mp4
from emu_edit.editing.find import PREDICTOR, RELEASED
from tests.datamodules.benchmark_files import EMU_KEYS, SESSIONS, write_emu_edit, write_magicbrush
from tests.datamodules.convert import test_convert_hq_edit as hq_edit
from tests.datamodules.convert import test_convert_imagefolder as imagefolder
from tests.datamodules.convert import test_convert_instruct_pix2pix as instruct_pix2pix
from tests.datamodules.convert import test_convert_magicbrush as magicbrush
from tests.datamodules.convert import test_convert_promptfix as promptfix
from tests.datamodules.convert import test_convert_ultraedit as ultraedit
from tests.datamodules.convert import test_convert_webdataset as webdataset
from tests.datamodules.convert.sets import after, before, save, write_parquet
from tests.datamodules.toy_shards import make_folder
from tests.end_to_end.documented import ROOT
from tests.models.tiny_flux3 import write_dev, write_flux3
from tests.models.tiny_published import (
    write_klein,
    write_kontext,
    write_longcat,
    write_qwen,
    write_sdxl,
)
from tests.models.tiny_vae import tiny_vae

HUB_NAME = "stable-diffusion-v1-5/stable-diffusion-v1-5"
FLUX2_DEV = "black-forest-labs/FLUX.2-dev"
FLUX3 = "black-forest-labs/FLUX.3-klein-base"
KLEIN = "black-forest-labs/FLUX.2-klein-base-4B"
KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"
QWEN = "Qwen/Qwen-Image-Edit-2511"
LONGCAT = "meituan-longcat/LongCat-Image-Edit"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
PAIRS = 60  # so many that a share of 2 % is a pair
ENDINGS = {"-o", "--output", "--run", "--write-inputs", "--list"}  # what follows is written


@dataclass(frozen=True)
class Things:
    """Makes what commands name, out of a tiny model, a tiny Stable Diffusion and tiny networks."""

    model: Path
    stable_diffusion: Path
    backbones: Path

    def provide(self, words: Sequence[str], page: str) -> None:
        """Make, in the working directory, those of `words` that are read and not yet there.

        A test set and a training set of one name differ, so the page decides for MagicBrush.
        Somebody's results are made anew for each benchmark.
        """
        if "results" in words:
            shutil.rmtree("results", ignore_errors=True)
            write_results(Path("results"), words[words.index("--benchmark") + 1])
        for word in words:
            name = word.partition("/*")[0].partition("/part-")[0]
            made = self._makers(page).get(name)
            if made is not None and not Path(name).exists():
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                made(Path(name))

    def _makers(self, page: str) -> dict[str, Callable[[Path], object]]:
        brush = write_training_brush if page == "public_sets.md" else write_brush
        shards = ("shards/train", "shards/val", "my_shards", "my_val_shards", "my_pictures")
        return {
            "sentences.jsonl": lambda path: path.write_text(
                '{"text": "blur it", "task": "color"}\n'
            ),
            "lines.txt": lambda path: path.write_text("juggle\n"),
            "docs/scene.png": lambda path: shutil.copy(ROOT / "docs" / "scene.png", path),
            "photo.png": lambda path: save(path, before(0)),
            "clip.mp4": write_clip,
            "my_videos": write_videos,
            "drawn_by_a": write_drawn,
            "drawn_by_b": write_drawn,
            **dict.fromkeys(("answers-ann.json", "answers-bob.json"), write_answers),
            "photos": write_photos,
            "DIR": write_photos,
            **dict.fromkeys(("my_pairs", "MY_PAIRS", "raw/mine"), write_pairs),
            **dict.fromkeys(shards, lambda path: make_folder(path, {"local": 4, "style": 3})),
            **dict.fromkeys(("UltraEdit", "raw/UltraEdit"), write_ultraedit),
            "raw/MagicBrush": write_training_brush,
            "MagicBrush": brush,
            "emu_edit_test_set": write_emu_edit,
            "clip-filtered-dataset": instruct_pix2pix.write_seeds,
            "PromptfixData": write_promptfix,
            "HQ-Edit": write_hq_edit,
            "theirs": write_webdataset,
            "pictures": write_imagefolder,
            "backbones": lambda path: path.symlink_to(self.backbones),
            "MODEL_DIR": lambda path: path.symlink_to(self.model),
            "runs/RUN/checkpoints/last.ckpt": copy_checkpoint,
            "runs/RUN": lambda path: self._write_model(path / "model"),
            "runs/tiny-20261121-120000/model": self._write_model,
            HUB_NAME: self._write_base,
            FLUX2_DEV: write_dev,
            FLUX3: write_flux3,
            KLEIN: write_klein,
            KONTEXT: write_kontext,
            QWEN: write_qwen,
            LONGCAT: write_longcat,
            SDXL: write_sdxl,
        }

    def _write_model(self, folder: Path) -> None:
        """Write the tiny model with the released one's predictor."""
        shutil.copytree(self.model, folder)
        shutil.copytree(RELEASED / PREDICTOR, folder / PREDICTOR)

    def _write_base(self, folder: Path) -> None:
        """Write the tiny Stable Diffusion; as the real one's, its autoencoder has no shift."""
        shutil.copytree(self.stable_diffusion, folder)
        tiny_vae(shift=None).save_pretrained(folder / "vae")


def read_by(arguments: list[str]) -> list[str]:
    """Return the words of a command of ours that may name what it reads."""
    written = {number + 1 for number, word in enumerate(arguments) if word in ENDINGS}
    match arguments:
        case ["shards", "convert", *_]:
            written.add(4)
        case ["shards", "world", *_]:
            written.add(2)
    return [word for number, word in enumerate(arguments) if number not in written]


def copy_checkpoint(path: Path) -> None:
    """Copy the checkpoint of a training that the page has run."""
    shutil.copy(next(Path("runs").glob("*/checkpoints/last.ckpt")), path)


def write_clip(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = cast("av.VideoStream", container.add_stream("libx264", rate=2))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 200, 50):
            pixels = np.full((48, 64, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))


def write_videos(folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed in range(2):
        frames = np.stack([np.roll(before(seed), time, axis=1) for time in range(20)])
        (folder / f"{seed}.mp4").write_bytes(encode_mp4(frames, rate=8))
        (folder / f"{seed}.txt").write_text(f"blocks number {seed} move to the right")


def write_drawn(folder: Path) -> None:
    for seed in range(2):
        save(folder / f"{seed}.png", before(seed))
        (folder / f"{seed}.txt").write_text(f"blocks number {seed}")


def write_answers(path: Path) -> None:
    """Write what a rater of the page `rating` says, whose key the command before has written."""
    answer = {"item": 0, "question": "quality", "choice": "left", "reasons": ["sharper picture"]}
    page = json.loads(Path("rating.key.json").read_text())["page"]
    path.write_text(json.dumps({"page": page, "rater": path.stem, "answers": [answer]}))


def write_photos(folder: Path) -> None:
    for seed in range(2):
        save(folder / f"{seed}.jpg", before(seed))


def write_pairs(folder: Path) -> None:
    lines = []
    for seed in range(PAIRS):
        save(folder / "source" / f"{seed}.png", before(seed))
        save(folder / "target" / f"{seed}.png", after(seed))
        lines.append(json.dumps({"file": f"{seed}.png", "instruction": f"invert number {seed}"}))
    (folder / "instructions.jsonl").write_text("\n".join(lines))


def write_ultraedit(folder: Path) -> None:
    write_parquet(folder / "a.parquet", [ultraedit.row(seed) for seed in range(6)])


def write_hq_edit(folder: Path) -> None:
    write_parquet(folder / "a.parquet", [hq_edit.row(seed) for seed in range(6)])


def write_promptfix(folder: Path) -> None:
    rows = [promptfix.row(seed, name) for seed, name in enumerate(promptfix.TASKS)]
    write_parquet(folder / "a.parquet", rows)


def write_training_brush(folder: Path) -> None:
    magicbrush.write_folder(folder)


def write_brush(folder: Path) -> None:
    write_magicbrush(folder)


def write_webdataset(folder: Path) -> None:
    for shard in range(100):
        text = json.dumps({"edit_prompt": f"make it night, {shard}"}).encode()
        files = webdataset.members(shard, json=text)
        webdataset.write_tar(folder / f"part-{shard:04d}.tar", files)


def write_imagefolder(folder: Path) -> None:
    imagefolder.write_table(folder / "metadata.jsonl", imagefolder.write_pairs(folder))


def write_results(folder: Path, benchmark: str) -> None:
    """Write somebody's results: a picture as big as what was to be edited under each key."""
    if benchmark == "world":
        for picture in Path("inputs").glob("*.png"):
            save(folder / picture.name, 255 - np.asarray(Image.open(picture)))
        return
    keys = [key for key in EMU_KEYS if key.startswith("test")] if benchmark == "emu-edit" else []
    for session, instructions in SESSIONS.items() if benchmark == "magicbrush" else ():
        keys.append(f"{session}_1")
        for turn in range(2, len(instructions) + 1):
            keys += [f"{session}_inde_{turn}", f"{session}_iter_{turn}"]
    for number, key in enumerate(keys):
        save(folder / f"{key}.png", before(number))
