"""What a converter is: it lists the pairs of one data set or layout, and knows its task names.

Reading, judging, naming tasks and writing are the run's (`datamodules.convert.run`) and the same
for all.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from datamodules.convert.pair import RawPair, Skipped


@dataclass(frozen=True)
class Converter:
    """What a converter says of itself.

    Attributes:
        name: as on the command line.
        list_pairs: lists the pairs of a file or folder, in an order that depends on nothing else;
            it is called twice, so listing must be cheap: no picture is read. Raises InputError if
            the layout or the columns are another's.
        tasks: the data's task names in ours; None where there is no such task of the sixteen. No
            table at all means that the names are ours. Letters and digits alone count, so one line
            stands for "color_alter" and "ColorAlter".
    """

    name: str
    list_pairs: Callable[[Path], Iterator[RawPair | Skipped]]
    tasks: Mapping[str, str | None] | None = None
