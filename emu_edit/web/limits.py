"""What one visitor may ask of the web page; every bound in one record, so that none is forgotten.

The page answers strangers as soon as someone starts it with `--host`: whatever costs memory or time
has a number here, and what goes beyond it is refused in one line before the work begins.
"""

from dataclasses import dataclass, fields

from emu_edit.errors import InputError
from emu_edit.images import MOST_TIMES_LARGER

MEBI = 2**20
# beside the file, a multipart upload carries boundaries and names
MULTIPART_OVERHEAD = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """The bounds of the web page; all at least 1.

    Attributes:
        upload_bytes: size of an uploaded file.
        upload_pixels: pixels of an uploaded picture, read from its header; a phone's photo fits.
        edited_pixels: pixels of the picture that is edited, after resizing if that was asked for.
            A session of `turns` turns holds `3 * (turns + 1)` bytes for each.
        times_larger: how many times longer a side may be than the model's training pictures; the
            network knows nothing of such sizes, and time grows with their fourth power.
        message_bytes: size of any other request; they hold an instruction and some numbers.
        characters: length of an instruction.
        steps: sampler steps of one edit.
        turns: edits in a row.
        branches: lines of turns a visitor keeps side by side.
        queue: edits that wait for their turn; one is made at a time.
        visitors: sessions kept in memory; the one idle for longest goes first.
        idle_seconds: age at which sessions and temporary files are deleted.
    """

    upload_bytes: int = 20 * MEBI
    upload_pixels: int = 32 * MEBI
    edited_pixels: int = 2 * MEBI
    times_larger: int = MOST_TIMES_LARGER
    message_bytes: int = 256 * 1024
    characters: int = 1000
    steps: int = 100
    turns: int = 20
    branches: int = 8
    queue: int = 8
    visitors: int = 16
    idle_seconds: int = 3600

    def __post_init__(self) -> None:
        """Refuse a bound that would refuse everything."""
        for field in fields(self):
            if getattr(self, field.name) < 1:
                value = getattr(self, field.name)
                raise InputError(f"the limit {field.name} must be at least 1, got {value}")

    @property
    def body_bytes(self) -> int:
        """Size of the request that carries an upload."""
        return self.upload_bytes + MULTIPART_OVERHEAD
