"""The paper's claims on exact truth, one command each.

    python -m benchmarks.claims NAME -o DIR [--steps 1600] [--seeds 3] [--pairs 25]
                                [--model released] [FLAGS OF FIT]

    NAME             claim of Emu Edit (Sheynin et al. 2023, arXiv:2311.10089)
    task-embedding   told the task > predicting it > never told (Table 3); another task's vector
                     does another thing
    vision-tasks     training on marks and maps makes the other tasks better (Table 4)
    thresholding     pixel thresholding over ten turns, with a sweep of alpha and blur
    terminal-snr     zero-terminal SNR for very dark and bright targets (its section 4.2)
    guidance         what guidance by the text costs in fidelity to the source

What has to be trained is trained by `emu-edit fit` at 32 px on the built-in world, STEPS times 16
samples each, into DIR, once for all claims, logged by W&B offline; what is there is not trained
again, so a study can be stopped and gone on with. `thresholding` and the predictor are of --model.
NAME.json, NAME.md and NAME.png in DIR have every number, mean and 95 % interval over the seeds,
NAME-worst.png the pictures behind them, worst first.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.claims.arms import Study
from benchmarks.claims.measures import CLAIMS
from benchmarks.claims.tables import write_claim
from emu_edit.cli.arguments import positive_int
from emu_edit.errors import ExitStatus, InputError


def main(arguments: list[str] | None = None) -> int:
    """Measure a claim and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=CLAIMS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    usual = asdict(Study(Path()))
    for option in ("steps", "seeds", "pairs"):
        parser.add_argument(f"--{option}", type=positive_int, default=usual[option])
    parser.add_argument("--model", default=usual["model"])
    options, flags = parser.parse_known_args(arguments)
    folder = options.output.resolve()
    numbers = (options.steps, options.seeds, options.pairs)
    study = Study(folder, *numbers, options.model, tuple(flags))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        measured = list(CLAIMS[options.name](study))
    except InputError as error:
        sys.stderr.write(f"claims: error: {error}\n")
        return ExitStatus.usage
    sys.stdout.write(write_claim(study, options.name, measured))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
