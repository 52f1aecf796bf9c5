"""`emu-edit evaluate MODEL`: score a model, or pictures someone else made, by a benchmark.

`--benchmark world` (the default) scores single edits of every task against exact ground truth;
`--drift` scores sessions of several turns with and without thresholding; `emu-edit` and
`magicbrush` score edits of photographs by a pinned protocol; `world-video` and `tgve` edits of
videos; `world-captions` and `world-clips` pictures and videos drawn from captions.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import ArgumentParser, add_sampling, positive_int, sampling_of, seed_int
from emu_edit.cli.evaluate_kinds import (
    BENCHMARKS,
    DRAWN,
    FIRST_FRAME,
    FOREIGN,
    VIDEOS,
    WORLD,
    WORLD_CLIPS,
    WORLD_VIDEO,
    Kind,
    kind_of,
    refuse,
)
from emu_edit.cli.evaluate_scenes import (
    CAPTIONS_DRAWN,
    CLIPS,
    FRAMES,
    PAIRS,
    SEED,
    benchmark_of,
    clips_of,
    given_or,
    moving_of,
    scenes_of,
)
from emu_edit.errors import InputError
from emu_edit.terminal import fitted, terminal_width

if TYPE_CHECKING:
    from emu_edit.evaluation.candidate import Candidate, Outcome

SESSIONS, TURNS = 20, 10  # as the records of emu_edit.evaluation have it
SOME_FAILED = 1  # exit status

EPILOG = """\
benchmarks of photographs, read from where you downloaded them (--data):
  emu-edit     the Emu Edit test set: parquet files of the hub (needs pyarrow), or metadata.jsonl
               or .csv with pictures
  magicbrush   the MagicBrush test set: test/edit_sessions.json, test/images, captions
benchmarks of models that draw:
  world-captions  pictures drawn from held-out captions of the world, read by the scene reader
  world-clips     videos drawn from held-out captions of moving clips, read by the scene reader: are
                  the figures there, do they go where they should, do they stay what they are?
                  The set beside true ones; with CLIP ViT-B/32 of --backbones FC, IC, TC. Videos
                  of others as KEY.mp4, KEY.png (animated) or KEY/00000.png, …

benchmarks of videos:
  world-video  clips of the moving world, per frame against exact truth, with exact flow; what the
               scene reader recognises. KEY.mp4, KEY.png (animated) or KEY/00000.png, … of others
  tgve         TGVE or TGVE+, where it was unpacked (--data): PickScore, CLIPFrame, ViCLIP.
               KEY.mp4 of others, or SECTION/NAME/KIND/00000.jpg as its authors want it
  ucf101       videos drawn for UCF-101's classes, as a set beside the real ones of --data: FVD by
               i3d/ and the same by videomae/ of --backbones. Any videos of others

protocols: emu-b32, emu-l14, emu-l14-filtered (CLIPdir, CLIPim, CLIPout, L1, DINO; both benchmarks;
default emu-l14) and magicbrush (L1, L2, CLIP-I, DINO, CLIP-T; default of magicbrush). CLIP and DINO
come from --backbones, a folder with openai--clip-vit-large-patch14 and the like, or from the hub.
tgve (default) and tgve-internvid (TGVE): PickScore, CLIPFrame over all pairs of frames and over
neighbours, CLIPText, ViCLIPdir, ViCLIPout; their networks always come from --backbones.

A folder instead of a model holds someone's pictures, KEY.png each: test-add-12.png (emu-edit:
split, task, idx), SESSION_1.png, SESSION_inde_2.png, SESSION_iter_2.png (magicbrush, also in
folders), or (emu-edit) a download of emu_edit_test_set_generations, whose rows belong to edits by
their hash. For the world, --write-inputs DIR writes what is to be edited: DIR/KEY.png, and
DIR/inputs.jsonl with key, task, instruction and captions; --data DIR scores on just these pairs.
Of photographs, a model writes its pictures to DIR/images, and the same command again goes on where
it stopped; results.json, items.jsonl, table.md and index.html, a page to look at, are written.

exit status: 0 done; 1 some edits failed and count as not edited; 2 nothing could be scored.

examples:
  emu-edit evaluate --benchmark world --write-inputs inputs --pairs 25
  emu-edit evaluate results --benchmark world --data inputs
  emu-edit evaluate runs/mine --benchmark emu-edit --data emu_edit_test_set --compare published
  emu-edit evaluate results --benchmark magicbrush --data MagicBrush --backbones ../backbones
  emu-edit evaluate runs/mine --benchmark world-video --pairs 1 --frames 8
  emu-edit evaluate runs/videos --benchmark world-clips --first-frame given
"""


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    verb = ArgumentParser(
        prog="emu-edit evaluate",
        description="Score a model per task, beside copy-input (nothing edited) and the oracle "
        "(the target itself); writes results.json, table.md and grid.png. With --drift, over the "
        "turns of sessions, without and with thresholding; writes drift.json, drift.md, drift.png "
        "(curves) and sessions.png. Benchmarks of photographs: see below.",
        epilog=EPILOG,
    )
    verb.add_argument(
        "model",
        type=Path,
        nargs="?",
        help="model directory, run folder, .ckpt file; or a folder of pictures",
    )
    verb.add_argument(
        "--benchmark", choices=BENCHMARKS, default=WORLD, help="what to score on (default world)"
    )
    verb.add_argument(
        "--split",
        help="world: heldout (phrasings and colour/shape pairs that training never saw; default), "
        "sentences or pairs (only the one or the other) or train; emu-edit: test (default) or "
        "validation",
    )
    verb.add_argument(
        "--size",
        type=positive_int,
        help="side in pixels, the shorter one of photographs (default: as trained)",
    )
    add_sampling(verb)
    verb.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: beside MODEL, named after it"
    )
    verb.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    verb.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the downloaded benchmark; world: the folder that --write-inputs wrote",
    )
    verb.add_argument(
        "--allow-missing",
        action="store_true",
        default=None,
        help="of a folder: let pictures that are missing count as not edited",
    )
    _add_world(verb)
    _add_others(verb)
    return verb


def _add_world(verb: ArgumentParser) -> None:
    group = verb.add_argument_group("world")
    group.add_argument(
        "--pairs",
        type=positive_int,
        help=f"pairs per task (default {PAIRS}, clips {CLIPS}); captions: all ({CAPTIONS_DRAWN})",
    )
    group.add_argument(
        "--frames",
        type=positive_int,
        help=f"of world-video (default {FRAMES}), world-clips (as trained) or ucf101 (16)",
    )
    group.add_argument(
        "--first-frame",
        choices=("drawn", "given"),
        help="world-clips: a model draws it (default), or is given that of the true clip, which "
        "leaves its temporal layers alone to be judged; a folder's videos begin with that",
    )
    group.add_argument(
        "--full",
        action="store_true",
        default=None,
        help="world-captions, world-clips: all that scenes may have, not the flat ones of recipes",
    )
    group.add_argument(
        "--drift",
        action="store_true",
        default=None,
        help="sessions: odd turns edit, even ones ask for nothing",
    )
    group.add_argument("--turns", type=positive_int, help=f"of a drift session (default {TURNS})")
    group.add_argument("--sessions", type=positive_int, help=f"to drift (default {SESSIONS})")
    group.add_argument("--seed", type=seed_int, help=f"of pairs and noise (default {SEED})")
    group.add_argument(
        "--photos",
        action="append",
        metavar="PLACE",
        help="photographs for all backgrounds, and to edit: a folder, or installed for those of "
        "packages (repeatable); only those that training leaves out",
    )
    group.add_argument(
        "--write-inputs",
        type=Path,
        metavar="DIR",
        help="without MODEL: write the pictures to edit, and what to do with each, for any editor",
    )


def _add_others(verb: ArgumentParser) -> None:
    group = verb.add_argument_group("emu-edit, magicbrush, tgve and ucf101")
    group.add_argument("--protocol", metavar="NAME", help="what the numbers mean, see below")
    group.add_argument("--backbones", type=Path, metavar="DIR", help="folder of CLIP and the like")
    group.add_argument(
        "--instructions",
        type=Path,
        metavar="JSON",
        help="tgve: what to do, as InsV2V published it; ucf101: a sentence by class",
    )
    group.add_argument(
        "--compare",
        metavar="FILE",
        help="print published rows below; the word 'published' means those that come along",
    )
    group.add_argument(
        "--limit", type=positive_int, metavar="N", help="only the first N edits, sessions or videos"
    )
    group.add_argument(
        "--tasks",
        choices=("predicted", "given"),
        help="who tells a model the task: its predictor (default, if it has one) or the benchmark",
    )


def run(arguments: list[str]) -> int:
    """Score the model or the pictures, print the table, write it down.

    Raises:
        InputError: if model, size, photographs, data or an option cannot be used.
    """
    options = parser().parse(arguments)
    kind = kind_of(options)
    refuse(options, FOREIGN[kind])
    if kind == Kind.inputs:
        return write_inputs(options)
    if options.model is None:
        raise InputError(
            "evaluate needs a model or a folder of pictures; see emu-edit evaluate --help"
        )
    from datamodules.evaluation_sets.items import as_unicode

    start = time.monotonic()
    outcome = evaluate(options, kind)
    seconds = time.monotonic() - start
    table = fitted(outcome.table, terminal_width())
    text = f"{table}\n\nwrote {outcome.folder} in {seconds:.0f} s\n"
    sys.stdout.write(as_unicode(text))
    return SOME_FAILED if outcome.failed else 0


def candidate_of(options: argparse.Namespace) -> "Candidate":
    """Read what is scored from the command line."""
    from emu_edit.evaluation.candidate import Candidate, holds_pictures

    return Candidate(
        options.model,
        are_pictures=holds_pictures(options.model, options.benchmark),
        sampling=sampling_of(options),
        device=options.device,
        allow_missing=options.allow_missing is not None,
        output=options.output,
    )


def write_inputs(options: argparse.Namespace) -> int:
    """Write what is to be edited, for any editor; return the exit status."""
    if options.model is not None:
        raise InputError(
            f"--write-inputs writes what is to be edited and scores nothing; leave {options.model} "
            "out"
        )
    folder = options.write_inputs
    if options.benchmark == WORLD_VIDEO:
        from emu_edit.evaluation.videos import write_clips

        refuse(options, DRAWN)
        told = write_clips(folder, clips_of(options))
    elif options.benchmark == WORLD_CLIPS:
        from emu_edit.evaluation.generated import write_captions

        refuse(options, FIRST_FRAME)
        told = write_captions(folder, moving_of(options))
    else:
        from emu_edit.evaluation.world_inputs import write_inputs

        refuse(options, VIDEOS)
        told = write_inputs(folder, benchmark_of(options))
    sys.stdout.write(told)
    return 0


def evaluate(options: argparse.Namespace, kind: Kind) -> "Outcome":
    """Turn the command line into the record of its kind of evaluation, and run that."""
    if kind == Kind.world:
        from emu_edit.evaluation.world import WorldOptions, run_world

        return run_world(WorldOptions(candidate_of(options), benchmark_of(options)))
    if kind == Kind.drift:
        from emu_edit.evaluation.drift import DriftBenchmark, DriftOptions, run_drift

        sessions, turns = given_or(options.sessions, SESSIONS), given_or(options.turns, TURNS)
        benchmark = DriftBenchmark(sessions, turns, scenes_of(options))
        return run_drift(DriftOptions(candidate_of(options), benchmark))
    if kind == Kind.captions:
        from emu_edit.evaluation.captions import CaptionOptions, run_captions

        captions, flat = given_or(options.pairs, CAPTIONS_DRAWN), options.full is None
        return run_captions(
            CaptionOptions(candidate_of(options), scenes_of(options), captions, flat=flat)
        )
    if kind == Kind.generated:
        from emu_edit.evaluation.generated import FirstFrame, GeneratedOptions, run_generated

        first = FirstFrame[given_or(options.first_frame, FirstFrame.drawn.name)]
        return run_generated(
            GeneratedOptions(candidate_of(options), moving_of(options), first, options.backbones)
        )
    if kind == Kind.ucf101:
        from emu_edit.evaluation import ucf101

        return ucf101.run_ucf101(
            ucf101.UcfOptions(
                candidate_of(options),
                options.data,
                options.backbones,
                prompts=options.instructions,
                samples=given_or(options.limit, ucf101.SAMPLES),
                frames=given_or(options.frames, ucf101.FRAMES),
                compare=options.compare,
            )
        )
    if kind in {Kind.clips, Kind.tgve}:
        return _evaluate_videos(options, kind)
    from emu_edit.evaluation.photographs import PhotographOptions, run_photographs

    return run_photographs(
        PhotographOptions(
            candidate_of(options),
            options.benchmark,
            options.data,
            split=options.split,
            protocol=options.protocol,
            backbones=options.backbones,
            size=options.size,
            tasks=options.tasks,
            limit=options.limit,
            compare=options.compare,
        )
    )


def _evaluate_videos(options: argparse.Namespace, kind: Kind) -> "Outcome":
    from emu_edit.evaluation.videos import VideoOptions, run_videos

    return run_videos(
        VideoOptions(
            candidate_of(options),
            options.benchmark,
            clips_of(options),
            data=options.data,
            instructions=options.instructions,
            protocol=options.protocol,
            backbones=options.backbones,
            size=options.size if kind == Kind.tgve else None,
            limit=options.limit,
            compare=options.compare,
        )
    )
