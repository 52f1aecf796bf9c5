"""What the tests of converters share: settings, and webdataset's own reader to read back."""

from pathlib import Path

from webdataset.tariterators import group_by_keys, tar_file_expander

from datamodules.convert.naming import TaskNaming
from datamodules.convert.run import ConvertSettings


def of_task(name: str) -> ConvertSettings:
    """Return the settings that give a task to pairs that name none."""
    return ConvertSettings(naming=TaskNaming(name))


def read_back(folder: Path) -> list[dict]:
    """Return every sample; the streams are ours, because `WebDataset` leaves its own open."""
    samples = []
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            source = {"url": str(path), "stream": stream}
            samples += group_by_keys(tar_file_expander([source]))
    return samples
