"""The order of training as a pure function: position g of the stream -> (lane, epoch, sample).

Nothing is shuffled in memory and nothing is remembered. Rank, worker, batch size and history do not
enter, so the state of the data plane is one integer, and a resume costs the same at step 1 and at
step 10^9. Three parts:

  pattern      stream is cut into periods of P draws; in each, lane t has exactly q_t draws, spread
               evenly: draw j of lane t lies at (j + u) / q_t, u uniform in [0, 1); sort by place
  epoch        draw k of lane t belongs to epoch e and place p: e, p = divmod(k, N_t)
  permutation  order of the shards in (t, e), then one shuffle over each window of w neighbouring
               shards; both are keyed bijections evaluated at one point

A lane is one task of one data set. Each of its epochs is an exact permutation of its samples, and
the realised mixture differs from the weights by less than 1 + T q_t / P draws in every prefix of
the stream. Where the mixture changes, a new stretch begins: lanes go on where they were. It is the
same on every machine: integer arithmetic, and the raw 64-bit words of Philox.

Where lanes are of several buckets (sizes of pictures, `datamodules.buckets`), all B draws of
a step are of one. A bucket with Q of the P draws then has Q of every P steps, dealt by a pattern of
steps, and its own steps in a row are a stream with a pattern of Q draws of its lanes: in P steps
lane t has exactly B q_t draws, the share it would have without buckets.

Source: ours; the idea of a stream as a function is that of MosaicML Streaming and Grain.
"""

import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from emu_edit.errors import InputError
from emu_edit.randomness import check_seed, keyed_generator

IN_BUCKET = "@"  # before the bucket in the name of a lane that has one
ORDER_VERSION = 1  # part of every fingerprint; a change of the function below changes this number
PERIOD = 4096

_MASK = 2**64 - 1
_NUM_ROUNDS = 6  # Feistel rounds; Luby and Rackoff 1988 need 4 for strong pseudo-randomness


class Position(NamedTuple):
    """Where draw g of the stream is: indices of lane, of its shard, and of the sample in it."""

    lane: int
    epoch: int
    shard: int
    sample: int


@dataclass(frozen=True)
class LaneOrder:
    """What the order needs to know of a lane.

    Args:
        name: keys the lane's permutations, so another lane more or less leaves them as they are.
        quota: draws per period.
        shard_sizes: number of samples of each shard.
        drawn: draws of this lane before the spec's `start`.
        bucket: lanes of another bucket are never drawn from in the same step.
    """

    name: str
    quota: int
    shard_sizes: tuple[int, ...]
    drawn: int = 0
    bucket: str = ""

    def __post_init__(self) -> None:
        """Refuse what has no order."""
        if self.quota < 1 or not self.shard_sizes or min(self.shard_sizes) < 1:
            raise InputError(
                f"task {self.name!r} has quota {self.quota} and shards of "
                f"{list(self.shard_sizes[:4])} samples; all of them must be at least 1"
            )


@dataclass(frozen=True)
class Stretch:
    """What changes of an order with its mixture; one value for each lane, in their order.

    Attributes:
        start: the position from which it holds.
        quotas: draws per period.
        drawn: draws before `start`.
    """

    start: int
    quotas: tuple[int, ...]
    drawn: tuple[int, ...]


@dataclass(frozen=True)
class OrderSpec:
    """The whole definition of an order.

    Args:
        seed: another seed, another order.
        lanes: their quotas sum to the period.
        window: number of neighbouring shards whose samples are mixed; larger shuffles better and
            reads more files at a time.
        start: the position from which this definition holds (a changed mixture starts a new one).
        step: draws that are of one bucket, from `start` on; says nothing to lanes without.
    """

    seed: int
    lanes: tuple[LaneOrder, ...]
    window: int = 8
    start: int = 0
    step: int = 1

    def __post_init__(self) -> None:
        """Refuse what has no order."""
        check_seed(self.seed, "data.seed")
        if not self.lanes:
            raise InputError("an order needs at least one task, got none")
        if self.window < 1:
            raise InputError(f"data.window={self.window} must be at least 1 shard")
        if self.step < 1:
            raise ValueError(f"a step of {self.step} draws is none")

    @property
    def period(self) -> int:
        """The number of draws after which the quotas are exact."""
        return sum(lane.quota for lane in self.lanes)

    @property
    def stretch(self) -> Stretch:
        """What would change with the mixture."""
        quotas, drawn = zip(*((lane.quota, lane.drawn) for lane in self.lanes), strict=True)
        return Stretch(self.start, quotas, drawn)

    def on(self, stretch: Stretch) -> "OrderSpec":
        """Return the definition that holds on another stretch."""
        lanes = (
            replace(lane, quota=quota, drawn=drawn)
            for lane, quota, drawn in zip(self.lanes, stretch.quotas, stretch.drawn, strict=True)
        )
        return replace(self, lanes=tuple(lanes), start=stretch.start)


def refuse_not_positive(weights: Mapping[str, float | Fraction]) -> None:
    """Refuse weights with which nothing could be drawn."""
    bad = {task: weight for task, weight in weights.items() if not 0 < weight < float("inf")}
    if bad:
        listed = ", ".join(f"task {task!r} has weight {weight}" for task, weight in bad.items())
        raise InputError(f"data.weights: {listed}, needs one above 0; leave out what not to draw")


def quotas(weights: Mapping[str, float | Fraction], period: int = PERIOD) -> dict[str, int]:
    """Return the draws of each task per period, by largest remainder; their sum is `period`.

    Raises:
        InputError: if a weight is not positive, or too small to be drawn once in a period.
    """
    refuse_not_positive(weights)
    total = sum(Fraction(weight) for weight in weights.values())
    ideal = {task: Fraction(weight) / total * period for task, weight in weights.items()}
    tiny = [
        f"task {task!r} has {float(draws / period):.2g} of the sum"
        for task, draws in ideal.items()
        if draws < 1
    ]
    if tiny:
        raise InputError(
            f"data.weights: {', '.join(tiny)}, needs at least 1/{period}; raise it or leave the "
            "task out"
        )
    result = {task: int(draws) for task, draws in ideal.items()}
    by_remainder = sorted(ideal, key=lambda task: result[task] - ideal[task])
    for task in by_remainder[: period - sum(result.values())]:
        result[task] += 1
    return result


def _mix(x: int) -> int:
    """Scramble 64 bits. Source: splitmix64, Steele et al. 2014, fig. 19."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _key(*parts: int) -> int:
    key = 0
    for part in parts:
        key = _mix(key ^ (part & _MASK))
    return key


class Permutation:
    """A keyed bijection of 0 .. n-1, evaluated at one point in constant time and memory.

    A Feistel network on the smallest square of a power of two that holds n; values beyond n are
    fed back until one falls inside (cycle walking), at most 4 passes on average.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", method 2.
    """

    __slots__ = ("_half", "_keys", "n")

    def __init__(self, n: int, key: int) -> None:
        self.n = n
        self._half = max(1, ((n - 1).bit_length() + 1) // 2)
        self._keys = [_mix(key ^ _mix(round_index)) for round_index in range(_NUM_ROUNDS)]

    def __call__(self, index: int) -> int:
        """Return the image of `index`."""
        if not 0 <= index < self.n:
            raise IndexError(f"index {index} is outside 0..{self.n - 1}")
        half, mask = self._half, (1 << self._half) - 1
        while True:
            left, right = index >> half, index & mask
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) & mask)
            index = left << half | right
            if index < self.n:
                return index


class _Epoch:
    """The order of one epoch of one lane: its shards permuted, then cut into windows."""

    def __init__(self, sizes: Sequence[int], window: int, key: int) -> None:
        permutation = Permutation(len(sizes), _key(key, 0))
        shards = [permutation(i) for i in range(len(sizes))]
        self._windows = [shards[i : i + window] for i in range(0, len(shards), window)]
        self._inner = [[0, *accumulate(sizes[s] for s in part)] for part in self._windows]
        self._outer = [0, *accumulate(inner[-1] for inner in self._inner)]
        self._permutations = [
            Permutation(inner[-1], _key(key, 1, i)) for i, inner in enumerate(self._inner)
        ]

    def __call__(self, place: int) -> tuple[int, int]:
        i = bisect_right(self._outer, place) - 1
        place = self._permutations[i](place - self._outer[i])
        j = bisect_right(self._inner[i], place) - 1
        return self._windows[i][j], place - self._inner[i][j]


class _Pattern:
    """Deals the draws of a stream to parts by their quotas: draw h -> (part, how many it had).

    Keyed by the seed, a purpose, and the first draw of each period, counted on from `start`.
    """

    def __init__(self, quotas: Sequence[int], seed: int, purpose: str, start: int) -> None:
        self._quotas = np.array(quotas)
        self.period = int(self._quotas.sum())
        self._seed, self._purpose, self._start = seed, purpose, start
        self._block = -1
        self._parts: list[int] = []
        self._ranks: list[int] = []

    def __call__(self, h: int) -> tuple[int, int]:
        if len(self._quotas) == 1:
            return 0, h
        block, draw = divmod(h, self.period)
        self._go_to(block)
        part = self._parts[draw]
        return part, block * int(self._quotas[part]) + self._ranks[draw]

    def before(self, h: int) -> list[int]:
        """Return how many of the draws before h each part had."""
        if len(self._quotas) == 1:
            return [h]
        block, draw = divmod(h, self.period)
        self._go_to(block)
        found = Counter(self._parts[:draw])
        return [block * quota + found[part] for part, quota in enumerate(self._quotas.tolist())]

    def _go_to(self, block: int) -> None:
        if block == self._block:
            return
        first = self._start + block * self.period
        generator = keyed_generator(self._seed, self._purpose, first)
        words = generator.bit_generator.random_raw(self.period)
        u = (words >> np.uint64(11)) * 2.0**-53
        parts = np.repeat(np.arange(len(self._quotas)), self._quotas)
        ranks = np.concatenate([np.arange(quota) for quota in self._quotas])
        by_place = np.argsort((ranks + u) / self._quotas[parts], kind="stable")
        self._parts, self._ranks = parts[by_place].tolist(), ranks[by_place].tolist()
        self._block = block


class Order:
    """The function g -> Position of a spec; keeps only what is quickly computed again."""

    def __init__(self, spec: OrderSpec) -> None:
        self._sizes = [sum(lane.shard_sizes) for lane in spec.lanes]
        self._names = [zlib.crc32(lane.name.encode()) for lane in spec.lanes]
        self._epochs: dict[int, dict[int, _Epoch]] = {t: {} for t in range(len(spec.lanes))}
        self._deal(spec)

    def __call__(self, g: int) -> Position:
        """Return what is drawn at position g of the stream.

        Raises:
            IndexError: if g lies before the spec's start.
        """
        if g < self.spec.start:
            raise IndexError(f"position {g} lies before the order's start {self.spec.start}")
        step, draw = divmod(g - self.spec.start, self.spec.step)
        bucket, steps = self._steps(step)
        place, rank = self._draws[bucket](steps * self.spec.step + draw)
        t = self._lanes[bucket][place]
        epoch, place = divmod(self.spec.lanes[t].drawn + rank, self._sizes[t])
        return Position(t, epoch, *self._epoch_of(t, epoch)(place))

    def follow(self, stretch: Stretch) -> bool:
        """Go over to a stretch, if it is another; the orders within lanes stay as they are."""
        if stretch == self.spec.stretch:
            return False
        self._deal(self.spec.on(stretch))
        return True

    def drawn_before(self, g: int) -> dict[str, int]:
        """Return how often each lane was drawn before position g, since the start of training."""
        step, draw = divmod(g - self.spec.start, self.spec.step)
        counts = [steps * self.spec.step for steps in self._steps.before(step)]
        counts[self._steps(step)[0]] += draw
        found = {}
        for count, draws, lanes in zip(counts, self._draws, self._lanes, strict=True):
            for t, ranks in zip(lanes, draws.before(count), strict=True):
                found[t] = self.spec.lanes[t].drawn + ranks
        return {lane.name: found[t] for t, lane in enumerate(self.spec.lanes)}

    def _deal(self, spec: OrderSpec) -> None:
        """Lay out the patterns: of the steps over buckets, and of each bucket over its lanes."""
        self.spec = spec
        lanes: dict[str, list[int]] = {}
        for t, lane in enumerate(spec.lanes):
            lanes.setdefault(lane.bucket, []).append(t)
        self._lanes = list(lanes.values())
        self._draws = [
            _Pattern([spec.lanes[t].quota for t in own], spec.seed, f"order{bucket}", spec.start)
            for bucket, own in lanes.items()
        ]
        in_period = [draws.period for draws in self._draws]
        self._steps = _Pattern(in_period, spec.seed, "steps", spec.start)

    def _epoch_of(self, t: int, epoch: int) -> _Epoch:
        cache = self._epochs[t]
        if epoch not in cache:
            if len(cache) == 2:  # the prefetch of one epoch overlaps the end of another
                del cache[min(cache)]
            key = _key(self.spec.seed, self._names[t], epoch)
            sizes = self.spec.lanes[t].shard_sizes
            cache[epoch] = _Epoch(sizes, self.spec.window, key)
        return cache[epoch]
