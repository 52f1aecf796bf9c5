"""How far a set of videos is from a set of true ones: lines of results.json, and their table.

Everything else that is printed of a video is an average over videos; these are of whole sets.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from emu_edit.evaluation.figures import ORACLE
from emu_edit.metrics.frechet import Moments, few_samples, frechet_distance, kernel_distance
from emu_edit.metrics.world_video import RECORD, Clip, world_features
from emu_edit.terminal import markdown_table

WORLD_NETWORK = "world_video"
HEAD = ("Fréchet distance ↓", "kernel distance ↓", "drawn", "true", "width")
NO_FVD = (
    "Distances between sets are by the small network of the world that comes with the package: "
    "they are no FVD."
)
FLOOR = (
    "True are as many clips of other captions of the same kind, so that what is drawn is no copy "
    f"of them; {ORACLE} is the true clips of these captions, which is what so few clips come to "
    "where nothing is wrong."
)
FLAT_ONLY = "The network was trained on flat clips and has not seen all that these show."

Row = Mapping[str, Any]  # of `distances` in results.json


def compared(true: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"]) -> dict[str, object]:
    """Compare two sets of features, as a line of results.json has it.

    Raises:
        InputError: if a set has fewer than two, or a feature is not finite.
    """
    moments = Moments.of(true), Moments.of(drawn)
    return {
        "drawn": len(drawn),
        "true": len(true),
        "width": true.shape[1],
        "distance": frechet_distance(*moments),
        "kernel": kernel_distance(true, drawn),
        "few": few_samples(*moments),
    }


def world_distances(
    true: Iterable[Clip], sets: Mapping[str, Iterable[Clip]]
) -> list[dict[str, object]]:
    """Compare sets of clips of the world with true ones, by the network of the package.

    Args:
        true: at least two clips, or there is no distance.
        sets: clips by whose they are; those with fewer than two are left out.
    """
    network = {"network": WORLD_NETWORK, "sha256": json.loads(RECORD.read_text())["sha256"]}
    wanted = world_features(true)
    features = {name: world_features(clips) for name, clips in sets.items()}
    return [
        {"editor": name, **network, **compared(wanted, drawn)}
        for name, drawn in features.items()
        if min(len(wanted), len(drawn)) > 1
    ]


def distance_cells(row: Row) -> list[str]:
    """Write what stands below `HEAD`."""
    numbers = [f"{row['distance']:.2f}", f"{row['kernel']:.4f}"]
    return [*numbers, *(str(row[name]) for name in HEAD[2:])]


def distance_table(rows: Sequence[Row], names: str, head: str = "") -> str:
    """Write a table of distances, each line begun by what its row has under `names`."""
    return markdown_table([head, *HEAD], [[row[names], *distance_cells(row)] for row in rows])


def few_notes(rows: Sequence[Row]) -> list[str]:
    """Warn of few samples, once each."""
    return list(dict.fromkeys(row["few"] for row in rows if row["few"]))


def world_notes(results: Mapping[str, Any]) -> list[str]:
    """Say what a reader of the distances of clips of the world must know, one sentence a line."""
    few = [f"{note}." for note in few_notes(results["distances"])]
    full = [] if results["protocol"]["flat"] else [FLAT_ONLY]
    return [NO_FVD, FLOOR, *few, *full]
