"""A folder with a tiny random network in the place of each that a video protocol asks for."""

import json
from dataclasses import replace
from pathlib import Path

from emu_edit.metrics.video_protocols import TGVE, VideoProtocol
from tests.metrics.tiny_backbones import CLIP_CUT, write_clip
from tests.metrics.tiny_viclip import write_viclip

PROTOCOL = replace(TGVE, clip_preprocess=CLIP_CUT, dtype="float64")


def place(folder: Path, protocol: VideoProtocol, network: str) -> Path:
    """Return where a network is looked for."""
    return folder / protocol.download(network).name.replace("/", "--")


def vocabulary(clip: Path) -> dict[str, int]:
    """Read the words of a tokenizer."""
    return json.loads((clip / "vocab.json").read_text())


def write_video_backbones(folder: Path) -> Path:
    """Write all three; PickScore without a tokenizer, as it is published."""
    clip = write_clip(place(folder, TGVE, "clip"))
    pickscore = write_clip(place(folder, TGVE, "pickscore"), positions=60)  # other weights, too
    for file in pickscore.iterdir():
        if file.name not in TGVE.pickscore.files:
            file.unlink()
    write_viclip(place(folder, TGVE, "viclip"), len(vocabulary(clip)))
    return folder
