"""What a mixture has come to: how often each lane was drawn from, for logs, tables and warnings.

Counted from the position of the stream alone (`datamodules.stream.order`), so ranks and loader
processes need not be asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.stream.mixing import Mixture
from datamodules.stream.order import Order, OrderSpec
from emu_edit.terminal import aligned

MANY_EPOCHS = 100  # ours: a lane gone through so often is learnt by heart


@dataclass(frozen=True)
class LaneCount:
    """The numbers of one lane.

    Attributes:
        name: `task` or `dataset/task`.
        samples: how many it has.
        drawn: how often it was drawn from since training began.
        wanted: its share of the draws by weight.
        share: its share of the draws since the present weights hold; the wanted one before any.
    """

    name: str
    samples: int
    drawn: int
    wanted: float
    share: float

    @property
    def epochs(self) -> float:
        """How often its samples were gone through."""
        return self.drawn / self.samples


def count_lanes(mixture: Mixture, spec: OrderSpec, position: int) -> list[LaneCount]:
    """Return the numbers of each lane for a stream trained on up to `position`."""
    drawn = Order(spec).drawn_before(position)
    since = position - spec.start
    counts = []
    for lane, ordered in zip(mixture.lanes, spec.lanes, strict=True):
        wanted = ordered.quota / spec.period
        share = (drawn[lane.name] - ordered.drawn) / since if since else wanted
        counts.append(LaneCount(lane.name, lane.num_samples, drawn[lane.name], wanted, share))
    return counts


def lane_metrics(counts: Sequence[LaneCount]) -> dict[str, float]:
    """Return `data/share/<lane>` and `data/epochs/<lane>`."""
    shares = {f"data/share/{count.name}": count.share for count in counts}
    return shares | {f"data/epochs/{count.name}": count.epochs for count in counts}


def lane_table(counts: Sequence[LaneCount]) -> str:
    """Return the numbers as a table, one row for each lane."""
    rows = [("lane", "samples", "drawn", "wanted", "share", "epochs")]
    rows += [
        (
            count.name,
            str(count.samples),
            str(count.drawn),
            f"{count.wanted:.2%}",
            f"{count.share:.2%}",
            f"{count.epochs:.2f}",
        )
        for count in counts
    ]
    return "\n".join(aligned(rows, numbers=True))


def repeated_often(counts: Sequence[LaneCount], *, until: str) -> str:
    """Return one line naming the lanes gone through more than `MANY_EPOCHS` times, or ""."""
    often = [
        f"{count.name} {count.epochs:.0f} times ({count.samples} samples)"
        for count in counts
        if count.epochs > MANY_EPOCHS
    ]
    if not often:
        return ""
    return (
        f"{until} training goes through {', '.join(often)}, more than {MANY_EPOCHS} times; such "
        "few samples are learnt by heart: lower their data.weights, or add samples"
    )
