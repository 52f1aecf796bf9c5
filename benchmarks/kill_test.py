"""Interrupt trainings at random moments, go on, and compare with a training left alone.

    python -m benchmarks.kill_test --trials 200 --seed 0 -o kill_test

A trial draws a layout in turn ({1, 2} ranks x {0, 2} workers x accumulation {1, 2}) and up to three
blows: SIGKILL, SIGTERM, SIGUSR1 or SIGINT, to all ranks or to one, at a moment of the whole life of
the program, its start and its end included. Then it trains to the end. A trial is exact when every
micro-batch, also one trained on again, had the keys it has in the training left alone, none is
missing (its rank began it, and at least one rank came to its end), and weights, optimizer, weight
average and data state are equal to the last bit. Every tenth trial (`--every-cli`) goes through
`python -m emu_edit fit`, the others through the same parts in a forked process, which spares them
the imports. Goes on with what `-o` holds already. Exit status 1 if a trial was not exact or
something hung.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.kill_test_process import Blow, HangsError, How, run_once, strike
from benchmarks.kill_test_run import Layout, diary, differences, gaps, write_data

LAYOUTS = [Layout(*cell) for cell in product((1, 2), (0, 2), (1, 2))]
SIGNALS = ("SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT")
SHARES = (0.4, 0.3, 0.1, 0.2)
MOST_BLOWS = 3
SAVED = {75, 130}  # exit statuses of rank 0 that promise that no step is lost


@dataclass(frozen=True)
class Trial:
    """One trial and its result.

    Attributes:
        seed: of all draws.
        index: of the trial.
        how: through the command line or forked.
        layout: of the training.
        blows: signals that met a living process, with the exit statuses it answered.
        problems: what differs from the training left alone; empty if nothing.
        seconds: it took.
    """

    seed: int
    index: int
    how: How
    layout: Layout
    blows: list[str]
    problems: list[str]
    seconds: float

    @staticmethod
    def of(fields: dict) -> "Trial":
        """Build a trial from a line of the file."""
        return Trial(**{**fields, "layout": Layout(**fields["layout"])})


class Bench:
    """Makes trials, and the trainings they are compared with.

    Args:
        folder: where everything is written.
        seed: of all draws.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder.absolute()
        self.seed = seed
        self.data = self.folder / "data"
        self._alone: dict[tuple[How, Layout], tuple[Path, float]] = {}
        if not (self.data / "val" / "manifest.json").exists():
            write_data(self.data)

    def alone(self, how: How, layout: Layout) -> tuple[Path, float]:
        """Return the folder of a training left alone, and its seconds; trains at the first call.

        Raises:
            RuntimeError: if it fails.
        """
        if (how, layout) not in self._alone:
            folder = self.folder / f"alone-{how}-{layout}-{time.time_ns()}"
            start = time.monotonic()
            statuses = run_once(how, folder, self.data, layout)
            if any(statuses):
                raise RuntimeError(f"the training left alone ended with {statuses}: {folder}.log")
            self._alone[how, layout] = folder, time.monotonic() - start
        return self._alone[how, layout]

    def trial(self, index: int, how: How, layout: Layout) -> Trial:
        """Interrupt a training, go on with it until it is done, and compare."""
        alone, seconds = self.alone(how, layout)
        folder = self.folder / f"trial-{self.seed}-{index:05}"
        if folder.exists():  # begun by an earlier call of this program, which was interrupted
            folder.rename(folder.with_name(f"{folder.name}-broken-{time.time_ns()}"))
        start = time.monotonic()
        blows: list[str] = []
        try:
            problems = self._interrupted(
                how, folder, layout, draw_blows(self.seed, index, layout, seconds), blows
            )
            problems += differences(folder, alone)
        except HangsError as error:
            problems = [str(error)]
        took = round(time.monotonic() - start, 2)
        return Trial(self.seed, index, how, layout, blows, problems, took)

    def _interrupted(
        self, how: How, folder: Path, layout: Layout, draws: Iterator[Blow], blows: list[str]
    ) -> list[str]:
        """Train to the end with interruptions; return what went wrong, and add to `blows`."""
        ends, saved = [], []
        for blow in draws:
            statuses = strike(how, folder, self.data, layout, blow)
            if statuses is None:  # it was done before
                break
            blows.append(f"{blow} -> {' '.join(map(str, statuses))}")
            ends.append(len(diary(folder, 0)))
            saved.append(statuses[0] in SAVED)
        statuses = run_once(how, folder, self.data, layout)
        ends.append(len(diary(folder, 0)))
        problems = gaps([line["step"] for line in diary(folder, 0)], ends, saved)
        if any(statuses):
            problems.append(f"going on ended with {statuses}: {folder}.log")
        return problems


def draw_blows(seed: int, index: int, layout: Layout, seconds: float) -> Iterator[Blow]:
    """Yield one to three blows of a trial, each somewhere in the life of a process."""
    rng = np.random.default_rng([seed, index])
    for _ in range(int(rng.integers(1, MOST_BLOWS + 1))):
        yield Blow(
            signal=str(rng.choice(SIGNALS, p=SHARES)),
            rank=None if rng.random() < 0.5 else int(rng.integers(layout.ranks)),
            after=float(rng.uniform(0, seconds)),
        )


def table(trials: Sequence[Trial]) -> str:
    """Return one row for each layout: trials, blows by signal, how many were exact."""
    lines = [
        f"| ranks | workers | accumulate | trials | {' | '.join(SIGNALS)} | blows | exact |",
        "|" + " ---: |" * (6 + len(SIGNALS)),
    ]
    for layout in [*LAYOUTS, None]:
        chosen = [trial for trial in trials if layout in {None, trial.layout}]
        if not chosen:
            continue
        names = Counter(blow.partition(" ")[0] for trial in chosen for blow in trial.blows)
        exact = sum(not trial.problems for trial in chosen)
        cell = "all | all | all" if layout is None else " | ".join(map(str, vars(layout).values()))
        counts = " | ".join(str(names[name]) for name in SIGNALS)
        lines.append(
            f"| {cell} | {len(chosen)} | {counts} | {names.total()} | {exact}/{len(chosen)} |"
        )
    return "\n".join(lines) + "\n"


def read_trials(file: Path, seed: int) -> list[Trial]:
    """Return the trials of a seed that were made before."""
    if not file.exists():
        return []
    trials = [Trial.of(json.loads(line)) for line in file.read_text("utf-8").splitlines()]
    return [trial for trial in trials if trial.seed == seed]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_test", description=__doc__)
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-cli", type=int, default=10, help="0: all trials are forked")
    parser.add_argument("--ranks", type=int, choices=(1, 2), help="only layouts of so many ranks")
    parser.add_argument("-o", "--output", type=Path, default=Path("kill_test"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the trials that are missing, print the table; return the exit status."""
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "trials.jsonl"
    trials = read_trials(file, options.seed)
    known = {trial.index for trial in trials}
    layouts = [each for each in LAYOUTS if options.ranks in {None, each.ranks}]
    bench = Bench(options.output, options.seed)
    for index in (i for i in range(options.trials) if i not in known):
        is_cli = options.every_cli and index % options.every_cli == options.every_cli - 1
        # through the command line the layouts take turns, too
        turn = index // options.every_cli if is_cli else index
        trial = bench.trial(index, "cli" if is_cli else "forked", layouts[turn % len(layouts)])
        trials.append(trial)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(trial)) + "\n")
        verdict = "; ".join(trial.problems) or "exact"
        sys.stdout.write(
            f"{index} {trial.how} {trial.layout} {trial.seconds} s [{', '.join(trial.blows)}] "
            f"{verdict}\n"
        )
        sys.stdout.flush()
    text = table(trials)
    (options.output / "table.md").write_text(text, encoding="utf-8")
    sys.stdout.write("\n" + text)
    return int(any(trial.problems for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
