"""One part of a data set, so that no source picture is in two: training and held-out pairs.

A pair's group (its session, prompt or, where the data name none, its source picture) is mapped to a
number by SHA-256, so the same pairs fall into the same part on every machine, in any order, and
nothing has to be remembered.
"""

import hashlib
from dataclasses import dataclass

from datamodules.convert.pair import RawPair
from datamodules.writer import PairRecord
from emu_edit.errors import InputError

TRAIN, HELD_OUT = "train", "heldout"


@dataclass(frozen=True)
class Part:
    """A part: its name and the share of the groups that is held out.

    Attributes:
        name: "train" or "heldout".
        held_out: share of the groups, above 0 and below 1.
    """

    name: str
    held_out: float

    def __post_init__(self) -> None:
        """Refuse what is no part."""
        if self.name not in {TRAIN, HELD_OUT}:
            raise InputError(f"part {self.name!r} must be {TRAIN} or {HELD_OUT}")
        if not 0 < self.held_out < 1:
            raise InputError(f"held out {self.held_out:g} must be a share above 0 and below 1")

    def has(self, pair: RawPair, record: PairRecord) -> bool:
        """Tell whether a pair is in this part."""
        group = pair.group.encode() if pair.group else record.source.tobytes()
        number = int.from_bytes(hashlib.sha256(group).digest()[:8], "big") / 2**64
        return (number < self.held_out) == (self.name == HELD_OUT)
