"""Course: where training stands in its stream, and by which mixture it draws from there on.

It owns the state of the data plane: the samples trained on, and what has become of the order since
training began. The mixture may be steered at any position: there a new stretch of the order begins,
in which the groups have other shares, and every lane goes on where it was. So the stream is a pure
function of seed and position, given what it was steered by; that is a quota for each lane, and is
all that a checkpoint keeps of it.
"""

from collections.abc import Mapping
from typing import Any

from datamodules.stream.counts import LaneCount, count_lanes
from datamodules.stream.mixing import Mixture
from datamodules.stream.order import Order, OrderSpec, Stretch
from datamodules.stream.resume import Fingerprint, StreamState, continued, fingerprint_of


class Course:
    """The position of training in a stream.

    Args:
        mixture: what it draws from, and how often until it is steered.
        seed: of the order.
        window: number of shards of a lane whose samples are mixed.

    Attributes:
        consumed: the samples trained on, counted at optimizer steps.
    """

    def __init__(self, mixture: Mixture, *, seed: int, window: int) -> None:
        self.mixture = mixture
        self.consumed = 0
        self._seed, self._window = seed, window
        self._start = 0
        self._drawn: dict[str, int] = {}
        self._steered: dict[str, int] = {}

    @property
    def spec(self) -> OrderSpec:
        """The order that holds now."""
        return self.mixture.spec(
            seed=self._seed,
            window=self._window,
            start=self._start,
            drawn=self._drawn,
            steered=self._steered,
        )

    def stretch(self) -> Stretch:
        """Return what distinguishes the order that holds now."""
        return self.spec.stretch

    def steer(self, shares: Mapping[str, float]) -> None:
        """Let the groups have these shares of the draws from the present position on."""
        self._drawn = self._drawn | Order(self.spec).drawn_before(self.consumed)
        self._start, self._steered = self.consumed, self.mixture.steered(shares)

    def count(self, position: int | None = None) -> list[LaneCount]:
        """Return how often each lane was drawn up to a position; by default, so far.

        A position before the present stretch is taken for its start.
        """
        upto = self.consumed if position is None else max(position, self._start)
        return count_lanes(self.mixture, self.spec, upto)

    def fingerprint(self, settings: Mapping[str, Any]) -> Fingerprint:
        """Return what decides which pictures a step sees, but for steering."""
        configured = self.mixture.spec(seed=self._seed, window=self._window)
        return fingerprint_of(configured, self.mixture.hashes(), settings)

    def state(self, accumulate: int, settings: Mapping[str, Any]) -> StreamState:
        """Return what a checkpoint keeps."""
        return StreamState(
            consumed=self.consumed,
            accumulate=accumulate,
            start=self._start,
            drawn=self._drawn,
            fingerprint=self.fingerprint(settings),
            steered=self._steered,
        )

    def restore(
        self, state: StreamState, settings: Mapping[str, Any], *, allow_change: bool
    ) -> None:
        """Go on where a checkpoint ended.

        Raises:
            InputError: if the data are not those of the checkpoint.
        """
        state = continued(state, self.fingerprint(settings), allow_change=allow_change)
        self.consumed = state.consumed
        self._start, self._drawn = state.start, dict(state.drawn)
        self._steered = dict(state.steered)
