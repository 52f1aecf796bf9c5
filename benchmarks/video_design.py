"""Emu Video's design, row by row at equal budget: what each choice is worth on the moving world.

    python -m benchmarks.video_design PICTURES -o DIR [--steps 400] [--seeds 3] [--pairs 48]
                                      [--sampler-steps 25] [--rows ROW ...]

PICTURES is a run of `emu-edit fit --config text_to_image`. Every row and seed is a training of
`emu_video` without its motion reader, which is not the paper's, on the same flat clips with one
option changed, then `evaluate --benchmark world-clips` on the same held-out captions, videos drawn
after the true first frame. DIR keeps what is done, so that the same command goes on where it
stopped, and several, with other rows each, may share it. The table has the mean over the seeds and
the lowest and highest; `sooner` is the share of the steps after which the row's held-out error is
as low as that of the row "random start" in the end.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

from emu_edit.files import write_text
from emu_edit.terminal import markdown_table, step_bar

CLIPS, FRAMES, SIZE, PARTS = 4000, 8, 32, 8  # of the clips; validations in a training
SHOWN = ("right", "figures", "background", "moves", "stays", "kept", "way")
PAPER, RANDOM = "the paper's", "random start"
COMMON = ("--model.temporal.motion=0", "--model.optimizer.lr=4e-4")
ROWS: dict[str, list[str]] = {
    PAPER: [],
    "with a motion reader": ["--model.temporal.motion=64"],
    "direct: no picture first": [
        "--model.temporal.picture_condition=false",
        "--model.temporal.still=false",
    ],
    "z0, not a change from the picture": ["--model.temporal.still=false"],
    RANDOM: ["--model.temporal.identity=false"],
    "without zero-terminal SNR": ["--model.zero_terminal_snr=false"],
    "spatial layers learn, too": ["--model.spatial=true"],
}


def main() -> int:
    """Train and score what is missing, then print the table and write `table.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    for name, usual in (("steps", 400), ("seeds", 3), ("pairs", 48), ("sampler-steps", 25)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--rows", nargs="*", choices=[*ROWS], default=[*ROWS])
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, clips, split in (("clips", CLIPS, "train"), ("clips-val", 64, "heldout")):
        if not (options.output / name / "manifest.json").is_file():
            shape = ("--size", str(SIZE), "--frames", str(FRAMES), "--split", split)
            world = ("shards", "world", name, "--clips", str(clips), "--captions", "--flat")
            emu_edit(options.output, *world, *shape)
    runs = [(row, seed) for seed in range(options.seeds) for row in options.rows]
    with step_bar("training", "runs") as on_step:
        for number, (row, seed) in enumerate(runs, 1):
            train_and_score(options, row, seed)
            on_step(number, len(runs))
    table = table_of(options)
    write_text(options.output / "table.md", table)
    sys.stdout.write(table)
    return 0


def name_of(row: str, seed: int) -> str:
    """Return the folder of a training."""
    return f"{''.join(c if c.isalnum() else '-' for c in row)}-{seed}"


def train_and_score(options: argparse.Namespace, row: str, seed: int) -> None:
    """Train and score a row with a seed, unless that is done already."""
    run = options.output / name_of(row, seed)
    each = options.steps // PARTS
    if not (run / "results.json").is_file():
        emu_edit(
            options.output,
            *("fit", "--config", "emu_video", "--run", run.name),
            *(f"--model.model={options.pictures.resolve()}", *COMMON, *ROWS[row]),
            *("--data.train=clips", "--data.val=clips-val"),
            *(f"--seed_everything={seed}", f"--model.seed={seed}", f"--data.seed={seed}"),
            *(f"--data.steps_per_epoch={each}", f"--trainer.max_epochs={PARTS}"),
            *("--trainer.check_val_every_n_epoch=1", "--model.optimizer.warmup_steps=50"),
        )
    if not scores_of(run):
        emu_edit(
            options.output,
            *("evaluate", run.name, "--benchmark", "world-clips"),
            *("--pairs", str(options.pairs), "--first-frame", "given"),
            *("--steps", str(options.sampler_steps)),
        )


def emu_edit(folder: Path, *arguments: str) -> None:
    """Run a verb as a user does; what it prints goes to `log.txt`."""
    environment = os.environ | {"WANDB_MODE": "disabled", "PYTHONPATH": str(Path.cwd())}
    with (folder / "log.txt").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "emu_edit", *arguments],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            check=True,
        )


def scores_of(run: Path) -> dict[str, float]:
    """Return the model's row of the benchmark's table."""
    file = run.with_name(f"{run.name}-world-clips-heldout-given") / "results.json"
    if not file.is_file():
        return {}
    results = json.loads(file.read_text())
    (block,) = results["blocks"].values()
    of_model = block["rows"]["model"]["all"]
    (kernel,) = (one["kernel"] for one in results["distances"] if one["editor"] == "model")
    return {name: of_model[name]["mean"] for name in SHOWN} | {"kernel distance": kernel}


def held_out_errors(run: Path) -> list[float]:
    """Return the held-out error after each part of the training."""
    with next(run.glob("logs/**/metrics.csv")).open() as lines:
        return [float(row["val/loss"]) for row in csv.DictReader(lines) if row.get("val/loss")]


def table_of(options: argparse.Namespace) -> str:
    """Return the table of what has been trained."""
    lines, names = [], []
    for row in options.rows:
        runs = [options.output / name_of(row, seed) for seed in range(options.seeds)]
        scores = [scores_of(run) for run in runs]
        names = [*scores[0]]
        cells = [_spread([one[name] for one in scores]) for name in names]
        lines.append([
            row,
            *cells,
            _spread([held_out_errors(run)[-1] for run in runs]),
            _sooner(options, row),
        ])
    return markdown_table(["", *names, "held-out error", "sooner"], lines)


def _sooner(options: argparse.Namespace, row: str) -> str:
    if RANDOM not in options.rows:
        return "-"
    shares = []
    for seed in range(options.seeds):
        goal = held_out_errors(options.output / name_of(RANDOM, seed))[-1]
        errors = held_out_errors(options.output / name_of(row, seed))
        reached = next((i for i, error in enumerate(errors, 1) if error <= goal), None)
        shares.append(None if reached is None else reached / len(errors))
    known = [share for share in shares if share is not None]
    return "never" if len(known) < len(shares) else _spread(known)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3g} ({min(values):.3g}-{max(values):.3g})"


if __name__ == "__main__":
    raise SystemExit(main())
