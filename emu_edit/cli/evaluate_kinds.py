"""Which kind of evaluation a command line asks for, and which options say nothing to it."""

import argparse
from collections.abc import Mapping
from enum import Enum

from emu_edit.errors import InputError

WORLD = "world"
WORLD_VIDEO, TGVE = "world-video", "tgve"
CAPTIONS, WORLD_CLIPS, UCF101 = "world-captions", "world-clips", "ucf101"
BENCHMARKS = (WORLD, "emu-edit", "magicbrush", WORLD_VIDEO, TGVE, CAPTIONS, WORLD_CLIPS, UCF101)


Kind = Enum(
    "Kind",
    "inputs world drift photographs clips tgve captions generated ucf101",
)  # of evaluation

# why an option is refused that says nothing to a kind of evaluation
_PHOTOGRAPHS = dict.fromkeys(
    ("protocol", "backbones", "compare", "limit", "tasks"),
    "belongs to --benchmark emu-edit or magicbrush; leave it out",
)
_TGVE_ONLY = "belongs to --benchmark tgve or ucf101; leave it out"
FRAMES = {"frames": "belongs to --benchmark world-video, world-clips or ucf101; leave it out"}
FIRST_FRAME = {"first_frame": "belongs to --benchmark world-clips; leave it out"}
DRAWN = {
    **FIRST_FRAME,
    "full": "belongs to --benchmark world-captions or world-clips; leave it out",
}
VIDEOS = {**FRAMES, **DRAWN, "instructions": _TGVE_ONLY}
_SESSIONS = dict.fromkeys(("turns", "sessions"), "belongs to --drift; add --drift or leave it out")
_SAMPLING = ("steps", "guidance_text", "guidance_image", "sampler")
_SCORING = dict.fromkeys(
    (*_SAMPLING, "output", "device", "data", "allow_missing", "drift"),
    "belongs to scoring; with --write-inputs leave it out",
)
_MADE = {
    "instructions": _TGVE_ONLY,
    "data": "is made, not read; leave it out",
    "drift": "belongs to --benchmark world; leave it out",
}
FOREIGN: dict[Kind, dict[str, str]] = {
    Kind.inputs: {**_SCORING, **_PHOTOGRAPHS, **_SESSIONS, "instructions": _TGVE_ONLY},
    Kind.world: {**_PHOTOGRAPHS, **_SESSIONS, **VIDEOS},
    Kind.clips: {**_PHOTOGRAPHS, **_SESSIONS, **DRAWN, **_MADE},
    Kind.generated: {
        **{name: why for name, why in _PHOTOGRAPHS.items() if name != "backbones"},
        **_SESSIONS,
        **_MADE,
    },
    Kind.captions: {
        **_PHOTOGRAPHS,
        **_SESSIONS,
        **FRAMES,
        **FIRST_FRAME,
        "instructions": _TGVE_ONLY,
        **dict.fromkeys(
            ("data", "write_inputs", "allow_missing", "drift"),
            "says nothing to --benchmark world-captions; leave it out",
        ),
    },
    Kind.tgve: {
        **FRAMES,
        **DRAWN,
        **_SESSIONS,
        **dict.fromkeys(
            ("pairs", "seed", "photos", "split", "write_inputs", "drift", "tasks"),
            "says nothing to --benchmark tgve; leave it out",
        ),
    },
    Kind.ucf101: {
        **DRAWN,
        **_SESSIONS,
        "protocol": "belongs to --benchmark emu-edit, magicbrush or tgve; leave it out",
        **dict.fromkeys(
            (
                *("pairs", "seed", "photos", "split", "size", "write_inputs", "drift", "tasks"),
                "allow_missing",
            ),
            "says nothing to --benchmark ucf101; leave it out",
        ),
    },
    Kind.drift: {
        **_PHOTOGRAPHS,
        **VIDEOS,
        "pairs": "counts pairs of single edits; with --drift give --sessions",
        "data": "is about single edits; with --drift leave it out",
    },
    Kind.photographs: {
        **VIDEOS,
        **dict.fromkeys(
            ("pairs", "seed", "photos", "write_inputs", "turns", "sessions", "drift"),
            "belongs to --benchmark world; leave it out",
        ),
    },
}


def kind_of(options: argparse.Namespace) -> Kind:
    """Tell which kind of evaluation a command line asks for."""
    if options.write_inputs is not None and options.benchmark in {WORLD, WORLD_VIDEO, WORLD_CLIPS}:
        return Kind.inputs
    if options.benchmark == WORLD:
        return Kind.world if options.drift is None else Kind.drift
    return {
        WORLD_VIDEO: Kind.clips,
        TGVE: Kind.tgve,
        CAPTIONS: Kind.captions,
        WORLD_CLIPS: Kind.generated,
        UCF101: Kind.ucf101,
    }.get(options.benchmark, Kind.photographs)


def refuse(options: argparse.Namespace, foreign: Mapping[str, str]) -> None:
    """Refuse options that were given and say nothing here.

    Raises:
        InputError: naming the first, and why.
    """
    given = vars(options)
    for name, why in foreign.items():
        if given[name] is not None:
            raise InputError(f"--{name.replace('_', '-')} {why}")
